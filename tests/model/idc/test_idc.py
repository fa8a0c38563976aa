"""What is particular to IDC: gates, their budget, their meaning, and what is computed and drawn from them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy.stats import nbinom
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import scdeepclust as sdc
from scdeepclust.model import IDC
from scdeepclust.model.idc._module import ALMOST_ALL, SIGMA

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def fitted(adata, pretrain_epochs=3, max_epochs=2, n_clusters=4, **kwargs):
    scvi.settings.seed = 0
    IDC.setup_anndata(adata, layer="counts", batch_key="batch")
    model = IDC(adata, n_clusters=n_clusters, **kwargs)
    model.train(pretrain_epochs=pretrain_epochs, max_epochs=max_epochs, **QUIET)
    scvi.settings.seed = None
    return model


@pytest.fixture(scope="module")
def trained():
    """Eight hundred cells of four types with 25 markers each among 400 genes."""
    adata = sdc.datasets.simulate_counts(
        800, 400, n_clusters=4, n_markers=25, n_batches=2, marker_log_fold_change=2, depth=300, seed=1
    )
    model = fitted(adata, pretrain_epochs=80, max_epochs=50, target_sparsity=0.1)
    model.write_back(adata, confidence="posterior")
    return model, adata


@pytest.fixture
def written(trained):
    return trained[1].copy()


def minibatch(model, n=32):
    return next(iter(model._minibatches(indices=np.arange(n), batch_size=n)))


# -- the model ---------------------------------------------------------------------------------------------------------


def test_the_clusters_come_from_few_genes(trained):
    model, adata = trained
    assert adjusted_rand_score(adata.obs["cell_type"], adata.obs["idc"]) > 0.95
    n_genes = adata.obs["idc_n_genes"]
    assert 20 < n_genes.mean() < 48  # a tenth of 400 are wanted
    assert n_genes.max() < 120


def test_gates_open_for_markers(trained):
    model, adata = trained
    table = sdc.tl.rank_gates(adata)
    matched = pd.crosstab(adata.obs["idc"], adata.obs["cell_type"]).idxmax(axis=1)
    for cluster, rows in table.groupby("cluster", observed=True):
        is_marker = adata.var["marker_of"].loc[rows["gene"]].eq(matched[cluster]).to_numpy()
        assert is_marker[: is_marker.sum()].mean() > 0.7
        assert roc_auc_score(is_marker, rows["contribution"]) > 0.9
        assert rows["wilcoxon_rank"].iloc[:10].median() < 40


def test_global_gates_learn_and_their_classifier_agrees(trained):
    model, _ = trained
    gates = model.get_global_gates()
    assert gates.shape == (400, 4)
    assert (gates > 0).to_numpy().mean() < 0.15  # all were half open at the start
    assert model.history["global_accuracy_train"].iloc[-1, 0] > 0.95


def test_the_label_depends_on_the_gates_that_are_open(trained):
    curves = sdc.tl.gate_curves(trained[0], [20])
    assert curves["deletion_gates"].item() > 3 * curves["deletion_random"].item()
    assert curves["insertion_gates"].item() > curves["insertion_hvg"].item()
    assert curves["insertion_gates"].item() > curves["insertion_random"].item()


def test_a_share_of_the_genes_of_each_cell_is_removed(trained):
    """Restated cell by cell."""
    model, adata = trained
    curves = sdc.tl.gate_curves(model, [0.1, 0.25, 3], max_cells=adata.n_obs)
    assert list(curves.index) == [0.1, 0.25, 3]
    outputs = [model._encode(tensors) for tensors in model._minibatches()]
    u = torch.cat([output["u"] for output in outputs]).numpy()
    moved = u * torch.cat([output["gate_means"] for output in outputs]).clamp(0, 1).numpy()
    n_expressed = (adata.layers["counts"] > 0).sum(axis=1)
    labels = model.predict().astype(int)
    module, tensors = model.module, next(iter(model._minibatches(batch_size=adata.n_obs)))
    for share in (0.1, 0.25):
        less = u.copy()
        for i, n in enumerate(np.asarray(n_expressed).ravel()):
            less[i, np.argsort(-moved[i])[: max(1, round(share * n))]] = 0
        with torch.inference_mode():
            covariates = module.covariates(tensors)
            changed = module.log_assignments(module.codes(torch.as_tensor(less), covariates), covariates).argmax(1)
        assert curves.loc[share, "deletion_gates"] == pytest.approx((changed.numpy() != labels).mean(), abs=0.004)
    for bad in ([], [0], [-0.5, 3]):
        with pytest.raises(ValueError, match="n_genes.*positive"):
            sdc.tl.gate_curves(model, bad)


def test_closed_genes_have_no_say(trained):
    """Behind closed gates anything may stand: the latent code is the same."""
    model, _ = trained
    module, tensors = model.module.eval(), minibatch(model)
    outputs = model._encode(tensors)
    closed = outputs["gate_means"] <= 0
    covariates = module.covariates(tensors)
    with torch.inference_mode():
        x = outputs["u"] * outputs["gate_means"].clamp(0, 1)
        torch.testing.assert_close(outputs["x"], x)
        assert (x[closed] == 0).all()
        torch.testing.assert_close(module.z_head(module.encode(x, covariates)), outputs["z_mean"])


def test_no_noise_at_prediction_and_noise_behind_the_gates_in_training(trained):
    model, _ = trained
    tensors = minibatch(model)
    assert model._encode(tensors)["z_mean"].equal(model._encode(tensors)["z_mean"])
    module = model.module.train()
    seen = []
    hook = module.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        outputs = module.inference(**module._get_inference_input(tensors))
    hook.remove()
    module.eval()
    noise = seen[0] - outputs["x"]
    assert noise[outputs["x"] == 0].std().item() == pytest.approx(2, rel=0.05)
    assert noise[outputs["x"] != 0].std().item() == pytest.approx(2, rel=0.1)


def test_the_loss_of_each_phase_restated(trained):
    model, _ = trained
    module, tensors = model.module.eval(), minibatch(model)
    with torch.no_grad():
        outputs, generative, pretrain = module(tensors, loss_kwargs={"phase": "pretrain"})
        _, _, gates = module(tensors, loss_kwargs={"phase": "gates"})
        _, _, cluster = module(tensors, loss_kwargs={"phase": "cluster"})
    x = tensors["X"].to_dense().double().numpy()
    heads = generative["heads"]
    mu = x.sum(1, keepdims=True) * torch.softmax(heads.scores.double(), -1).numpy()
    theta = heads.log_theta.exp().double().numpy()
    nll = -nbinom.logpmf(x, theta, theta / (theta + mu)).sum(axis=1).mean()
    np.testing.assert_allclose(pretrain.loss.item(), nll, rtol=1e-4)
    g = outputs["gate_means"].clamp(0, 1).double().numpy()
    rate = np.linalg.slogdet(np.eye(400) + 400 / 32 * g.T @ g)[1] / 2 / 32
    np.testing.assert_allclose(gates.loss.item(), nll - module.diversity_weight * 400 * rate, rtol=1e-4)
    # each cluster looks through its own gates, whatever the label
    means = (module.global_gates - module.global_budget.offset).clamp(0, 1).detach().numpy()
    weight = module.scorer_weight.detach().numpy()
    scores = (
        np.stack([(outputs["x"].numpy() * means[k]) @ weight[k] for k in range(4)], axis=1)
        + module.scorer_bias.detach().numpy()
    )
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    labels = model._probabilities(indices=np.arange(32)).argmax(axis=1)
    np.testing.assert_allclose(cluster.loss.item(), -log_p[np.arange(32), labels].mean(), rtol=1e-3, atol=1e-5)


def test_clusters_are_looked_for_in_open_genes_and_in_all_genes_side_by_side(trained):
    model, adata = trained
    cells = np.arange(adata.n_obs)
    blocks = np.split(model._start_points(cells), 2, axis=1)
    assert model.module.uses_gates
    gated = model._denoised_points(cells)
    model.module.uses_gates = False
    ungated = model._denoised_points(cells)
    model.module.uses_gates = True
    assert np.abs(gated - ungated).max() > 0.01
    for block, points in zip(blocks, (gated, ungated), strict=True):
        centred = points - points.mean(axis=0)
        np.testing.assert_allclose(block, centred / (centred**2).sum(axis=1).mean() ** 0.5, atol=1e-4)


def test_the_offset_stays_once_the_gates_are_learnt(adata):
    model = fitted(adata, pretrain_epochs=30, max_epochs=0)
    offset, gates = model.module.budget.offset.clone(), model.get_gates()
    model.train(pretrain_epochs=0, max_epochs=3, **QUIET)
    assert model.module.budget.offset.equal(offset)
    assert (model.get_gates() != gates).nnz == 0


def test_the_last_phase_trains_the_global_gates_alone(adata):
    model = fitted(adata, pretrain_epochs=30, max_epochs=0)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    labels = model.predict()
    model.train(pretrain_epochs=0, max_epochs=2, **QUIET)
    changed = {name for name, value in model.module.state_dict().items() if not value.equal(before[name])}
    assert changed <= {"global_gates", "scorer_weight", "scorer_bias", "global_budget.offset"}
    assert {"global_gates", "scorer_weight"} <= changed
    np.testing.assert_array_equal(model.predict(), labels)


def test_gates_that_tell_nothing_are_reported(adata, trained):
    model = fitted(adata, pretrain_epochs=0, max_epochs=0)
    with torch.no_grad():
        model.module.gating.layers[-1].weight.zero_()
        model.module.budget.offset.fill_(9)
    with pytest.warns(UserWarning, match="no open gate.*target_sparsity"):
        model._warn_if_degenerate(model._probabilities())
    model.module.budget.offset.zero_()
    with pytest.warns(UserWarning, match="same genes in all cells"):
        model._warn_if_degenerate(model._probabilities())
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trained[0]._warn_if_degenerate(trained[0]._probabilities())


def test_the_head_stays_close_to_its_start(trained):
    model, adata = trained
    assert adjusted_rand_score(model.initial_labels_, model.predict()) > 0.95


@pytest.mark.parametrize(("given", "wanted"), [(0.1, 20), (30, 30), (0.5, 100), (10_000, 200), (None, 50)])
def test_target_sparsity_is_a_share_or_a_number(adata, given, wanted):
    model = fitted(adata, pretrain_epochs=0, max_epochs=0, target_sparsity=given)
    assert model.module.n_open == pytest.approx(wanted)


def test_the_target_is_met(adata):
    model = fitted(adata, pretrain_epochs=60, max_epochs=0, target_sparsity=60)
    gates = model._encode(minibatch(model, 400))["gate_means"]
    n_open = torch.special.ndtr(gates / SIGMA).sum(dim=1)
    assert n_open.square().mean().sqrt().item() == pytest.approx(60, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"target_sparsity": 0}, "target_sparsity"), ({"clusterer": "dbscan"}, "clusterer.*mcr2.*dbscan")],
)
def test_bad_arguments_are_refused(adata, arguments, message):
    IDC.setup_anndata(adata)
    with pytest.raises(ValueError, match=message):
        IDC(adata, n_clusters=4, **arguments)


@pytest.mark.parametrize(
    "options",
    [{"clusterer": "kmeans"}, {"clusterer": "leiden"}, {"gene_likelihood": "normal"}, {"diversity_weight": 0.0}],
    ids=str,
)
def test_every_option_recovers_simulated_clusters(adata, options):
    model = fitted(adata, pretrain_epochs=60, max_epochs=0, **options)
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) > 0.85


def test_other_numbers_of_clusters_without_new_gates(adata):
    model = fitted(adata, pretrain_epochs=40, max_epochs=2)
    gates = model.get_gates()
    table = model.sweep_n_clusters([2, 4, 6])
    assert list(table.index) == [2, 4, 6]
    assert (np.diff(table["rate"]) < 0).all()  # more clusters, shorter code
    assert model.n_clusters == 4
    model.recluster(6, max_epochs=2, **QUIET)
    assert model.n_clusters == 6
    assert model.predict(soft=True).shape == (adata.n_obs, 6)
    assert (model.get_gates() != gates).nnz == 0


# -- results -----------------------------------------------------------------------------------------------------------


def test_what_is_written(trained):
    model, adata = trained
    gates = adata.layers["idc_gates"]
    assert gates.format == "csr"
    assert gates.dtype == np.float32
    assert gates.data.min() >= 0.01
    assert gates.data.max() <= 1
    np.testing.assert_array_equal(np.diff(gates.indptr), adata.obs["idc_n_genes"])
    pd.testing.assert_frame_equal(adata.varm["idc_global_gates"], model.get_global_gates())
    np.testing.assert_allclose(model.get_gates(indices=[5, 2]).toarray(), gates[[5, 2]].toarray(), atol=1e-4)


def test_data_with_more_genes_in_another_order(trained):
    model, adata = trained
    extra = adata[:, :5].copy()
    extra.var_names = [f"extra_{i}" for i in range(5)]
    import anndata

    wide = anndata.concat([extra, adata[:, ::-1]], axis=1, merge="same")
    for name in ("idc_gates",):
        del wide.layers[name]
    model.write_back(wide, confidence="posterior")
    again = wide[:, adata.var_names]
    np.testing.assert_allclose(again.layers["idc_gates"].toarray(), adata.layers["idc_gates"].toarray(), atol=1e-5)
    assert wide.layers["idc_gates"][:, :5].nnz == 0
    assert wide.varm["idc_global_gates"].iloc[:5].isna().all(axis=None)
    ours, theirs = (sdc.tl.rank_gates(data, n_genes=5) for data in (adata, wide))
    assert list(ours["gene"]) == list(theirs["gene"])


def test_contributions_restated(trained):
    _, adata = trained
    x = adata.layers["counts"].toarray().astype(float)
    y = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    u = np.clip((y - y.mean(0)) / np.where(y.std(0) > 0, y.std(0), 1), -10, 10)
    moved = adata.layers["idc_gates"].toarray() * u
    table = sdc.tl.rank_gates(adata)
    rows = table[table["cluster"] == "1"].set_index("gene").loc[adata.var_names]
    cells = (adata.obs["idc"] == "1").to_numpy()
    np.testing.assert_allclose(rows["contribution"], moved[cells].mean(0), atol=1e-4)
    np.testing.assert_allclose(rows["open"], (adata.layers["idc_gates"].toarray()[cells] > 0).mean(0), atol=1e-6)
    assert rows["rank"].sort_values().tolist() == list(range(1, 401))
    best = rows["contribution"].idxmax()
    assert rows.loc[best, "rank"] == 1


def test_missing_gates_are_named(written):
    adata = written
    del adata.layers["idc_gates"]
    for call in (sdc.tl.rank_gates, sdc.pl.gates):
        with pytest.raises(ValueError, match="layers.*idc_gates.*write_back"):
            call(adata)
    with pytest.raises(ValueError, match="'nothing'"):
        sdc.tl.rank_gates(adata, "nothing")
    with pytest.raises(TypeError, match="`model` must be a model of this package, found AnnData"):
        sdc.tl.gate_curves(adata)


def test_renamed_clusters_keep_their_global_gates(written):
    before = sdc.tl.rank_gates(written, n_genes=5)
    names = {c: f"type {(int(c) + 1) % 4}" for c in "0123"}
    written.obs["idc"] = written.obs["idc"].cat.rename_categories(names)
    after = sdc.tl.rank_gates(written, n_genes=5)
    assert before["global_gate"].notna().all()
    for name, new in names.items():
        pd.testing.assert_frame_equal(
            after[after["cluster"] == new].drop(columns="cluster").reset_index(drop=True),
            before[before["cluster"] == name].drop(columns="cluster").reset_index(drop=True),
        )
    written.obs["idc"] = written.obs["idc"].cat.rename_categories(list("abcd")).replace({"b": "a"})
    assert sdc.tl.rank_gates(written, n_genes=5)["global_gate"].isna().all()  # nothing says what the joined ones are


def test_scores_are_in_their_ranges(trained):
    model, _ = trained
    scores = sdc.tl.score_gates(model, [model], max_cells=300)
    assert 0 <= scores["diversity"] <= 100
    assert -1 <= scores["faithfulness"] <= 1
    assert scores["uniqueness"] <= scores["lipschitz"]
    assert scores["generalisability"] > 0.9
    assert scores["seed_jaccard"] == 1
    assert scores["deletion_ratio"] > 3
    assert np.isnan(sdc.tl.score_gates(model, max_cells=100)["seed_jaccard"])


def test_diversity_of_disjoint_and_of_equal_gates():
    from scipy.sparse import csr_matrix

    from scdeepclust.tl._gate_scores import _diversity

    labels = np.array(["0", "0", "1", "1"])
    disjoint = csr_matrix(np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=float))
    assert _diversity(disjoint, labels) == 100
    assert _diversity(csr_matrix(np.ones((4, 3))), labels) == 0


def test_drawings(trained):
    _, adata = trained
    axes = sdc.pl.gates(adata, n_genes=3)
    labels = [text.get_text() for text in axes["mainplot_ax"].get_yticklabels()]
    assert labels == list(adata.obs["idc"].cat.categories)
    ax = sdc.pl.cell_gates(adata, adata.obs_names[7], n_genes=6)
    assert len(ax.patches) <= 6
    assert adata.obs_names[7] in ax.get_title()
    assert "less" in ax.get_xlabel()
    assert "average cell" in ax.get_xlabel()
    assert "counts" in ax.get_ylabel()
    with pytest.raises(ValueError, match="no cell 'x'"):
        sdc.pl.cell_gates(adata, "x")
    with pytest.raises(ValueError, match="found row 800"):
        sdc.pl.cell_gates(adata, 800)
    plt.close("all")


def test_the_wanted_number_of_genes_falls_by_the_same_factor_in_each_step(trained):
    module, tensors = trained[0].module.eval(), minibatch(trained[0])
    wanted = []
    with torch.no_grad():
        for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
            module(tensors, loss_kwargs={"phase": "pretrain", "kl_weight": weight})
            wanted.append(module.n_wanted)
    np.testing.assert_allclose(wanted, np.geomspace(ALMOST_ALL * 400, 40, 5))


def test_the_clustering_head_sees_codes_of_unit_variance(trained):
    module = trained[0].module
    z = 3 + torch.randn(500, module.n_latent) * torch.linspace(0.1, 2, module.n_latent)
    other = type(module)(400, n_clusters=0, n_latent=module.n_latent)
    other.start_clusters(z, torch.arange(500) % 3)
    seen = other.standardised(z)
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(module.n_latent), rtol=0, atol=1e-4)
    assert seen.square().mean().item() == pytest.approx(1, rel=1e-4)


def test_forgetting_the_clusters_forgets_the_offset_of_their_gates(adata):
    model = fitted(adata, pretrain_epochs=20, max_epochs=10)
    module = model.module
    offset = module.budget.offset.clone()
    assert module.global_budget.offset != 0
    module.forget_clusters(3)
    assert module.global_budget.offset == 0
    assert module.budget.offset.equal(offset)
    assert module.z_scale == 0
    assert (module.global_gates == 0.5).all()
