from __future__ import annotations

import warnings
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import scdeepclust as sdc
from scdeepclust.model._systems import SYSTEMS
from scdeepclust.pl import _log_clusters
from scdeepclust.pl._own_view import own_views
from scdeepclust.pl._style import PALETTE

OWN = {"idc": {"gates"}, "mfcvae": {"facets"}, "somvae": {"map"}}


@pytest.fixture(autouse=True)
def no_umap(monkeypatch):
    """Two columns of the embedding instead: the compilation of the UMAP takes longer than all tests here."""

    def lay_out(adata):
        adata.obsm["X_umap"] = np.array(adata.obsm["X_clusters"])[:, :2]

    monkeypatch.setattr(_log_clusters, "_lay_out", lay_out)


def build(name, adata, **options):
    model_cls = getattr(sdc.model, name)
    model_cls.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
    return model_cls(adata, n_clusters=3, seed=0, **({"grid": (3, 4)} if name == "SOMVAE" else {}), **options)


def cells():
    return sdc.datasets.simulate_counts(150, 60, n_clusters=3, n_batches=2, depth=100)


def train(model, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"scdeepclust\.model")  # so short a fit is a bad one
        model.train(max_epochs=2, pretrain_epochs=2, enable_progress_bar=False, **options)


@pytest.mark.parametrize("name", [system.name for system in SYSTEMS])
def test_all_is_reported_and_nothing_is_learnt_from_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr(_log_clusters, "_png", lambda draw: (draw(), plt.close("all"), b"")[-1])  # quick
    adata = cells()
    alone, watched = build(name, adata), build(name, adata)
    train(alone)
    before = set(adata.obs), set(adata.obsm), set(adata.uns)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="LogClusters could not")
        train(watched, logger=CSVLogger(tmp_path), callbacks=[sdc.pl.LogClusters(watched)])
    assert (set(adata.obs), set(adata.obsm), set(adata.uns)) == before
    np.testing.assert_array_equal(alone.predict(soft=True), watched.predict(soft=True))
    assert alone.history.keys() == watched.history.keys()
    assert watched.is_trained

    table = pd.read_csv(next(tmp_path.rglob("metrics.csv")))
    shares = table[[f"cluster_share/{k}" for k in range(3)]].dropna()
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert len(shares) == table["clusters/used"].count() == 1
    last = shares.iloc[-1].sort_values(ascending=False).to_numpy()
    sizes = np.bincount(watched.predict().astype(int), minlength=3) / adata.n_obs
    np.testing.assert_allclose(last, sizes)  # in the end numbered by size
    used, share = table[["clusters/used", "clusters/used_share"]].dropna().iloc[-1]
    assert used == 3 * share == (sizes > 0).sum()
    adata.obs["found"] = watched.predict()
    ari = sdc.tl.score_clusters(adata, "found", label_key="cell_type").loc["found", "ARI"]
    assert table["known_labels/ARI"].dropna().iloc[-1] == pytest.approx(ari)

    pictures = {path.stem.rpartition("_")[0] for path in tmp_path.rglob("figures/*.png")}
    assert {"embedding", "cluster_sizes", "confusion"} | OWN.get(watched.__class__.__name__.lower(), set()) <= pictures
    assert any(picture.endswith("embedding_batch") for picture in pictures)  # of a phase without clusters


def test_tensorboard_gets_pictures_every_so_many_epochs_and_at_the_end(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = build("GMVAE", cells())
    watch = sdc.pl.LogClusters(model, every_n_epochs=2, max_cells=50)
    logger = TensorBoardLogger(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"scdeepclust\.model")
        model.train(max_epochs=3, pretrain_epochs=1, enable_progress_bar=False, logger=logger, callbacks=[watch])
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert len(events.Images("embedding")) == 2
    assert len(events.Images("vae_embedding_cell_type")) == 1
    picture = plt.imread(BytesIO(events.Images("confusion")[-1].encoded_image_string))
    assert min(picture.shape[:2]) > 50
    assert len(events.Scalars("cluster_share/0")) == 2
    assert len(events.Scalars("lr")) == 3
    assert watch._sample().n_obs == 50


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    model = build("GMVAE", cells())
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    train(model, logger=logger, callbacks=[sdc.pl.LogClusters(model)])
    summary = dict(logger.experiment.summary)
    wandb.finish()
    assert {"vae_train_loss", "train_loss", "lr", "cluster_share/0", "confusion"} <= set(summary)
    assert len(list(tmp_path.rglob("media/images/*.png"))) >= 4


def test_a_picture_that_fails_does_not_stop_a_training(tmp_path, monkeypatch):
    model = build("GMVAE", cells())
    monkeypatch.setattr(_log_clusters, "_confusion", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="could not report epoch 2: ZeroDivisionError"):
        train(model, logger=CSVLogger(tmp_path), callbacks=[sdc.pl.LogClusters(model)])
    assert model.is_trained
    assert not plt.get_fignums()


def test_a_cluster_keeps_its_colour_when_others_are_empty():
    model = build("GMVAE", cells())
    watch, adata = sdc.pl.LogClusters(model), cells()
    adata.obs["clusters"] = pd.Categorical(np.where(np.arange(150) < 70, "0", "2"))
    watch._keep_colors(adata)
    assert adata.uns["clusters_colors"] == [PALETTE[0].lower(), PALETTE[2].lower()]


def test_mistakes_are_named(adata):
    model = build("GMVAE", cells())
    for options, message in (
        ({"every_n_epochs": 0}, "every_n_epochs"),
        ({"max_cells": 1.5}, "max_cells"),
        ({"label_key": "no"}, "label_key.*no column 'no'"),
    ):
        with pytest.raises(ValueError, match=message):
            sdc.pl.LogClusters(model, **options)
    with pytest.raises(ValueError, match="`model` must be"):
        sdc.pl.LogClusters(adata)
    with pytest.raises(ValueError, match="`logger`: LogClusters has nothing"):
        train(model, callbacks=[sdc.pl.LogClusters(model)])
    assert not list(own_views(adata, "cell_type"))
