"""A search over parameters with scvi-tools, which needs ray and takes minutes."""

from __future__ import annotations

import pytest

import scdeepclust as sdc


@pytest.mark.slow
@pytest.mark.parametrize(("name", "metric", "mode"), [("GMVAE", "elbo_validation", "min"), ("IDC", "iLISI", "max")])
def test_two_trials_of_a_search(adata, tmp_path, name, metric, mode):
    ray = pytest.importorskip("ray")
    pytest.importorskip("hyperopt")
    from scvi.autotune import run_autotune

    model_cls = getattr(sdc.model, name)
    model_cls.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        found = run_autotune(
            model_cls,
            adata,
            metrics=metric,
            mode=mode,
            search_space={
                "model_params": {"n_clusters": 4, "n_hidden": ray.tune.choice([16, 24]), "seed": ray.tune.choice([1])},
                "train_params": {"pretrain_epochs": 3, "max_epochs": 2},
            },
            num_samples=2,
            seed=0,
            scheduler="fifo",
            searcher="random",
            resources={"cpu": 1},
            ignore_reinit_error=True,
            solver="randomized",  # of what stands for X, all zeros, which arpack refuses
            logging_dir=str(tmp_path),
        )
    finally:
        ray.shutdown()
    values = [result.metrics[metric] for result in found.result_grid]
    assert len(values) == 2
    assert all(value == value for value in values)
    assert not found.result_grid.errors
