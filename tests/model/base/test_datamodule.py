"""Models whose cells a datamodule yields."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc
from scdeepclust.model import GMVAE, MFCVAE, SCDeepCluster

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


class Cells(pl.LightningDataModule):
    """An AnnData object behind the interface of scvi-tools' datamodules, dense, with all that those send along."""

    def __init__(self, adata, batch_key="batch", index_key="ind_x", n_held_out=0, seed=0):
        super().__init__()
        self.adata, self.batch_key, self.index_key = adata, batch_key, index_key
        self.n_held_out, self.seed = n_held_out, seed
        self.batches = pd.Categorical(adata.obs[batch_key])
        self.n_obs, self.n_vars, self.n_batch = adata.n_obs, adata.n_vars, len(self.batches.categories)
        self.rng = np.random.default_rng(seed)

    @property
    def registry(self):
        fields = {
            "X": {
                "data_registry": {"attr_name": "X", "attr_key": None},
                "state_registry": {
                    "n_obs": self.n_obs,
                    "n_vars": self.n_vars,
                    "column_names": self.adata.var_names.to_numpy(),
                },
                "summary_stats": {"n_vars": self.n_vars, "n_cells": self.n_obs},
            },
            "batch": {
                "data_registry": {"attr_name": "obs", "attr_key": "_scvi_batch"},
                "state_registry": {
                    "categorical_mapping": {name: code for code, name in enumerate(self.batches.categories)},
                    "original_key": self.batch_key,
                },
                "summary_stats": {"n_batch": self.n_batch},
            },
            "labels": {
                "data_registry": {"attr_name": "obs", "attr_key": "_scvi_labels"},
                "state_registry": {"categorical_mapping": None, "original_key": None},
                "summary_stats": {"n_labels": 0},
            },
            "size_factor": {"data_registry": {}, "state_registry": {}, "summary_stats": {}},
            "extra_categorical_covs": {
                "data_registry": {},
                "state_registry": {},
                "summary_stats": {"n_extra_categorical_covs": 0},
            },
            "extra_continuous_covs": {
                "data_registry": {},
                "state_registry": {},
                "summary_stats": {"n_extra_continuous_covs": 0},
            },
        }
        setup = {
            "layer": None,
            "batch_key": self.batch_key,
            "labels_key": None,
            "samples_key": None,
            "size_factor_key": None,
            "categorical_covariate_keys": None,
            "continuous_covariate_keys": None,
        }
        return {
            "scvi_version": "1.4.2",
            "model_name": "SCVI",
            "setup_args": setup,
            "field_registries": fields,
            "setup_method_name": "setup_datamodule",
        }

    def minibatch(self, rows):
        x = torch.from_numpy(self.adata.X[rows].toarray()).float()
        return {
            "X": x,
            "batch": torch.from_numpy(self.batches.codes[rows].astype(np.int64))[:, None],
            "labels": 0,
            "extra_categorical_covs": None,
            "size_factor": x.sum(dim=1, keepdim=True) / x.sum(dim=1).mean(),  # as annbatch: of nobody's use
        } | ({self.index_key: torch.from_numpy(rows)} if self.index_key else {})

    def _loader(self, rows, size):
        return [self.minibatch(part) for part in np.split(rows, range(size, len(rows), size))]

    def train_dataloader(self):
        data = self

        class Shuffled:
            def __iter__(self):
                return iter(data._loader(data.rng.permutation(np.arange(data.n_held_out, data.n_obs)), 128))

        return Shuffled()

    def val_dataloader(self):
        return self._loader(np.arange(self.n_held_out), 128) if self.n_held_out else None

    def inference_dataloader(self):
        return self._loader(np.arange(self.n_obs), 150)


def trained(model_cls, datamodule, pretrain_epochs=60, max_epochs=10, **kwargs):
    model = model_cls(registry=datamodule.registry, n_clusters=4, seed=0, **kwargs)
    model.train(pretrain_epochs=pretrain_epochs, max_epochs=max_epochs, datamodule=datamodule, **QUIET)
    return model


@pytest.fixture
def cells(adata):
    return Cells(adata)


MORE = {"MFCVAE": {"n_facet_clusters": 2}, "SOMVAE": {"grid": (5, 6)}}


@pytest.mark.parametrize("name", sdc.model.__all__)
def test_every_model_trains_and_answers(adata, cells, name, tmp_path):
    model_cls = getattr(sdc.model, name)
    small = {"n_hidden": 16, "n_latent": 4} | MORE.get(name, {})
    model = trained(model_cls, cells, pretrain_epochs=8, max_epochs=2, **small)
    assert set(model.predict()) <= {"0", "1", "2", "3"}
    z = model.get_latent_representation()
    assert z.shape == (adata.n_obs, 8 if name == "MFCVAE" else 4)  # both facets
    # the same cells, however they come in
    loader = cells.inference_dataloader()
    np.testing.assert_allclose(model.get_latent_representation(dataloader=loader), z, atol=1e-5)
    np.testing.assert_array_equal(model.predict(dataloader=loader), model.predict())
    soft = model.predict(soft=True, dataloader=loader)
    np.testing.assert_allclose(soft, model.predict(soft=True), atol=1e-5)
    np.testing.assert_allclose(model.get_latent_representation(adata), z, atol=1e-5)
    some = [300, 5, 5, 17]
    np.testing.assert_allclose(model.get_latent_representation(indices=some), z[some], atol=1e-5)
    expression = model.get_normalized_expression(gene_list=list(adata.var_names[:3]), indices=[1, 2])
    assert expression.shape == (2, 3)
    model.write_back(adata, confidence="posterior")
    np.testing.assert_array_equal(adata.obs[name.lower()].astype(str), model.predict())
    model.save(str(tmp_path / name))
    loaded = model_cls.load(str(tmp_path / name), datamodule=cells, accelerator="cpu")
    np.testing.assert_allclose(loaded.get_latent_representation(), z, atol=1e-5)
    without = model_cls.load(str(tmp_path / name), adata=False, accelerator="cpu")
    np.testing.assert_array_equal(without.predict(dataloader=loader), model.predict())


@pytest.mark.slow
@pytest.mark.parametrize("model_cls", [SCDeepCluster, GMVAE])
def test_labels_are_as_good_as_those_of_data_in_memory(adata, cells, model_cls):
    model_cls.setup_anndata(adata, batch_key="batch")
    in_memory = model_cls(adata, n_clusters=4, seed=0)
    in_memory.train(pretrain_epochs=60, max_epochs=10, **QUIET)
    truth = adata.obs["cell_type"]
    expected = adjusted_rand_score(truth, in_memory.predict())
    model = trained(model_cls, cells)
    assert expected > 0.9
    assert adjusted_rand_score(truth, model.predict()) == pytest.approx(expected, abs=0.01)
    # the statistics of the data are those of the whole data
    for name in ("gene_mean", "gene_sd", "median_total", "batch_frequencies"):
        torch.testing.assert_close(getattr(model.module, name), getattr(in_memory.module, name))


def test_a_seed_repeats(adata):
    first, second = (trained(SCDeepCluster, Cells(adata), 5, 2).get_latent_representation() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = trained(SCDeepCluster, Cells(adata, seed=1), 5, 2).get_latent_representation()
    assert not np.allclose(first, other)  # the order of the cells is that of the datamodule


def test_confidence_and_further_training(adata, cells):
    model = trained(SCDeepCluster, cells, 30, 3)
    model.write_back()  # into what is known of the cells
    assert model.adata.obs["scdeepcluster_confidence"].between(0, 1).all()
    assert list(model.adata.obs["batch"]) == list(adata.obs["batch"])
    before = model.predict()
    model.train(max_epochs=1, **QUIET)  # the datamodule is kept
    assert adjusted_rand_score(before, model.predict()) > 0.9


def test_held_out_cells_are_validated_on(adata):
    datamodule = Cells(adata, n_held_out=100)
    model = SCDeepCluster(registry=datamodule.registry, n_clusters=4, seed=0)
    model.train(pretrain_epochs=2, max_epochs=2, datamodule=datamodule, check_val_every_n_epoch=1, **QUIET)
    assert len(model.history["elbo_validation"]) == 2
    np.testing.assert_array_equal(model.validation_indices, np.arange(100))
    np.testing.assert_array_equal(model.train_indices, np.arange(100, adata.n_obs))
    assert len(model.initial_labels_) == adata.n_obs - 100
    with pytest.raises(ValueError, match=r"val_dataloader\(\)` yields no cells, but `early_stopping`"):
        model.train(max_epochs=1, early_stopping=True, datamodule=Cells(adata), **QUIET)


def test_columns_that_minibatches_do_not_hold_come_from_obs(adata, cells):
    arguments = {"n_facets": 2, "guides": "batch"}
    model = MFCVAE(registry=cells.registry, n_clusters=4, **arguments)
    model.train(pretrain_epochs=2, max_epochs=1, datamodule=cells, **QUIET)  # the batch is known
    model = MFCVAE(registry=cells.registry, n_clusters=4, n_facets=2, guides="cell_type")
    with pytest.raises(ValueError, match="no column 'cell_type'"):
        model.train(pretrain_epochs=2, max_epochs=1, datamodule=cells, **QUIET)
    cells.obs = adata.obs[["cell_type"]]
    model.train(pretrain_epochs=2, max_epochs=1, datamodule=cells, **QUIET)


# --- what is refused


def refused(datamodule, match, error=ValueError, registry=None, **kwargs):
    model = SCDeepCluster(registry=registry or datamodule.registry, n_clusters=4)
    with pytest.raises(error, match=match):
        model.train(pretrain_epochs=1, max_epochs=1, datamodule=datamodule, **QUIET, **kwargs)
    assert model.adata is None


def test_a_model_of_anndata_takes_no_datamodule(adata, cells):
    SCDeepCluster.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"`datamodule`: this model was made with `adata`. Make it with"):
        SCDeepCluster(adata, n_clusters=4).train(datamodule=cells)
    with pytest.raises(ValueError, match="or give a `datamodule`"):
        SCDeepCluster(registry=cells.registry, n_clusters=4).train()


def test_what_is_no_datamodule_is_refused(cells):
    class Plain(pl.LightningDataModule):
        n_obs = n_vars = 3

    refused(Plain(), "found Plain without `inference_dataloader`, `registry`", TypeError, cells.registry)
    refused([1], "must be a LightningDataModule", TypeError, cells.registry)


@pytest.mark.parametrize("name", ["train_size", "validation_size", "datasplitter_kwargs"])
def test_a_split_is_asked_of_the_datamodule(cells, name):
    value = {"drop_last": True} if name == "datasplitter_kwargs" else 0.5
    refused(cells, f"`{name}` has no effect with a `datamodule`", **{name: value})


def test_minibatches_must_say_which_cells_they_hold(adata):
    refused(Cells(adata, index_key=None), r"train_dataloader\(\)`: a minibatch does not say which cells.*'ind_x'")


def spoilt(change):
    class Spoilt(Cells):
        def minibatch(self, rows):
            return change(super().minibatch(rows))

    return Spoilt


def negative(minibatch):
    minibatch["X"][0, 0] = -1
    return minibatch


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (negative, "negative values"),
        (lambda m: m | {"X": m["X"] * 0}, "400 cells without any count"),
        (lambda m: m | {"X": m["X"][:, 1:]}, "a minibatch has 199 genes, the model 200"),
        (lambda m: m | {"batch": m["batch"] + 1}, "batches are coded from 0 to 1; found 1 to 2"),
        (lambda m: m | {"batch": None}, "a minibatch has no 'batch'"),
        (lambda m: m | {"batch": m["batch"][1:]}, "counts of 150 cells, but 'batch' of 149"),
        (lambda m: {"batch": m["batch"]}, "a minibatch has no 'X'"),
        (lambda m: m | {"ind_x": m["ind_x"] + 7}, "must yield the cells in the order of 'ind_x'"),
    ],
)
def test_bad_minibatches_are_refused_by_name(adata, change, match):
    refused(spoilt(change)(adata), match)


def test_each_cell_comes_once(adata):
    datamodule = Cells(adata)
    datamodule.inference_dataloader = lambda: [datamodule.minibatch(np.arange(300))]
    refused(datamodule, r"yields 300 cells, but `datamodule.n_obs` is 400")


def test_other_genes_are_refused(adata, cells):
    refused(Cells(adata[:, :150].copy()), "has 150 genes, the model 200", registry=cells.registry)


def test_one_source_of_cells_at_a_time(adata, cells):
    model = trained(SCDeepCluster, cells, 1, 1)
    with pytest.raises(ValueError, match="leave out `adata`"):
        model.predict(adata, dataloader=cells.inference_dataloader())
