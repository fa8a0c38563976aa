"""Loaders: what a minibatch holds, in memory and from a file."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scvi
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc
from scdeepclust._keys import CELL_INDEX
from scdeepclust.model import SCDeepCluster
from scdeepclust.train import BlockShuffleLoader, CountsDataset

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture
def backed(adata, tmp_path):
    """The simulated data and the same in a file."""
    adata.write_h5ad(tmp_path / "a.h5ad")
    return adata, anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")


@pytest.fixture
def in_store(adata, tmp_path):
    """The simulated data in a zarr store of several chunks, its counts left there."""
    import zarr
    from anndata.io import read_elem, sparse_dataset

    adata.write_zarr(tmp_path / "a.zarr", chunks=[100])
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    return anndata.AnnData(sparse_dataset(group["X"]), obs=read_elem(group["obs"]), var=read_elem(group["var"]))


def manager(adata):
    SCDeepCluster.setup_anndata(adata, batch_key="batch")
    return SCDeepCluster._get_most_recent_anndata_manager(adata)


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("rows", [[5, 3, 17], [4, 5, 6], [4, 6, 7], [9], [8, 7, 6], [3, 3, 1]])
def test_a_minibatch_holds_the_rows_asked_for(backed, from_file, rows):
    adata, on_disk = backed
    dataset = CountsDataset(manager(on_disk if from_file else adata), load_sparse_tensor=True)
    minibatch = dataset[rows]
    np.testing.assert_array_equal(minibatch["X"].to_dense().numpy(), adata.X[rows].toarray())
    np.testing.assert_array_equal(minibatch[CELL_INDEX], rows)
    np.testing.assert_array_equal(minibatch["batch"].ravel(), adata.obs["batch"].cat.codes.iloc[rows])


def test_stored_zeros_are_no_counts(adata):
    adata.X.data[adata.X.indptr[:50]] = 0
    minibatch = CountsDataset(manager(adata), load_sparse_tensor=True)[:]
    assert (minibatch["X"].value > 0).all()
    assert adata.X.nnz > len(minibatch["X"].value)  # the data themselves are left alone


@pytest.mark.parametrize("batch_size", [2, 7, 64, 1000])
@pytest.mark.parametrize(("block_rows", "buffer_blocks"), [(16, 3), (256, 32)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_blocks_cover_every_cell_once_an_epoch(backed, monkeypatch, batch_size, block_rows, buffer_blocks, world_size):
    monkeypatch.setattr("scdeepclust.train._data.BLOCK_ROWS", block_rows)
    monkeypatch.setattr("scdeepclust.train._data.BUFFER_BLOCKS", buffer_blocks)
    adata, on_disk = backed
    rows = np.arange(3, 396)
    seen = []
    for rank in range(world_size):
        loader = BlockShuffleLoader(manager(on_disk), rows, batch_size, rank, world_size)
        minibatches = list(loader)
        assert len(minibatches) == len(loader)
        for minibatch in minibatches:
            cells = minibatch[CELL_INDEX].numpy()
            assert len(cells) <= batch_size
            np.testing.assert_array_equal(minibatch["X"].to_dense().numpy(), adata.X[cells].toarray())
            np.testing.assert_array_equal(minibatch["batch"].numpy().ravel(), adata.obs["batch"].cat.codes.iloc[cells])
            seen.extend(cells)
    assert set(seen) == set(rows)
    if world_size == 1:
        assert len(seen) == len(rows)
        assert seen != sorted(seen)


@pytest.mark.parametrize("n_cells", [1, 3, 40, 200, 399])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_some_process_reads_every_cell_in_every_epoch(backed, monkeypatch, n_cells, world_size):
    """Blocks of 8 rows, buffers of 3 blocks: from fewer blocks than processes to many buffers."""
    monkeypatch.setattr("scdeepclust.train._data.BLOCK_ROWS", 8)
    monkeypatch.setattr("scdeepclust.train._data.BUFFER_BLOCKS", 3)
    registered = manager(backed[1])
    rows = np.arange(n_cells)
    for batch_size in (1, 7):
        loaders = [BlockShuffleLoader(registered, rows, batch_size, rank, world_size) for rank in range(world_size)]
        for _ in range(3):  # the order of the blocks must still be the same after buffers were shuffled
            seen = [[minibatch[CELL_INDEX].numpy() for minibatch in loader] for loader in loaders]
            assert len({len(minibatches) for minibatches in seen}) == 1  # or processes would wait for each other
            assert all(len(cells) for minibatches in seen for cells in minibatches)
            assert set(np.concatenate([cells for minibatches in seen for cells in minibatches])) == set(rows)


@pytest.mark.parametrize("model_cls", [SCDeepCluster, sdc.model.GMVAE])
def test_the_same_seed_gives_the_same_model_with_processes_that_read_ahead(adata, monkeypatch, model_cls):
    """SCDeepCluster draws at the start of an epoch, when such processes have read already."""
    results = []
    for n_workers in (0, 2):
        scvi.settings.seed = 0
        monkeypatch.setattr(scvi.settings, "dl_num_workers", n_workers)
        data = adata[:200].copy()
        model_cls.setup_anndata(data)
        model = model_cls(data, n_clusters=3, n_hidden=16, n_latent=4)
        model.train(pretrain_epochs=1, max_epochs=2, batch_size=64, **QUIET)
        results.append(model.get_latent_representation())
    scvi.settings.seed = None
    np.testing.assert_array_equal(*results)


DENSE = {
    "float16": lambda x: x.astype(np.float16),
    "big-endian": lambda x: x.astype(">f4"),
    "bool": lambda x: x.astype(bool),
    "uint8": lambda x: x.astype(np.uint8),
    "int64, columns first": lambda x: np.asfortranarray(x.astype(np.int64)),
    "unmasked": np.ma.masked_array,
}


@pytest.mark.parametrize("kind", DENSE)
def test_dense_counts_of_any_type_are_read_as_they_are(adata, kind):
    x = DENSE[kind](np.minimum(adata.X.toarray(), 200))
    adata.X = x
    minibatch = CountsDataset(manager(adata), load_sparse_tensor=True)[[7, 2, 5]]
    assert minibatch["X"].dtype == np.float32
    assert type(minibatch["X"]) is np.ndarray
    np.testing.assert_array_equal(minibatch["X"], np.asarray(x)[[7, 2, 5]].astype(np.float32))


@pytest.mark.parametrize("layout", ["dense", "csc", "h5py", "zarr"])
def test_matrices_in_files_are_read_in_the_order_asked_for(adata, tmp_path, layout):
    import h5py
    import zarr

    x = adata.X.toarray()
    if layout == "h5py":
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["X"] = x
        adata.X = h5py.File(tmp_path / "x.h5")["X"]
    elif layout == "zarr":
        zarr.open_group(tmp_path / "x.zarr", mode="w").create_array("X", data=x)
        adata.X = zarr.open_group(tmp_path / "x.zarr", mode="r")["X"]
    else:
        adata.X = x if layout == "dense" else adata.X.tocsc()
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    registered = manager(adata)
    rows = [30, 2, 17, 2]
    minibatch = CountsDataset(registered, load_sparse_tensor=True)[rows]["X"]
    np.testing.assert_array_equal(minibatch if layout in ("dense", "h5py", "zarr") else minibatch.to_dense(), x[rows])
    cells = np.concatenate([block[CELL_INDEX] for block in BlockShuffleLoader(registered, np.arange(400), 64)])
    assert sorted(cells) == list(range(400))


def test_the_order_of_blocks_follows_the_seed_of_the_model(adata, tmp_path, monkeypatch):
    adata.write_h5ad(tmp_path / "a.h5ad")

    def codes(seed):
        backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
        sdc.model.SCDeepCluster.setup_anndata(backed)
        monkeypatch.setattr(scvi.settings, "seed", seed)
        model = sdc.model.SCDeepCluster(backed, n_clusters=3, seed=1)
        model.train(pretrain_epochs=2, max_epochs=0, enable_progress_bar=False, accelerator="cpu")
        return model.get_latent_representation()

    np.testing.assert_array_equal(codes(5), codes(6))


def test_a_model_trains_on_a_file_as_in_memory(backed):
    adata, on_disk = backed
    scvi.settings.seed = 0
    try:
        results = []
        for data in (adata, on_disk):
            SCDeepCluster.setup_anndata(data, batch_key="batch")
            model = SCDeepCluster(data, n_clusters=4)
            model.train(pretrain_epochs=60, max_epochs=10, **QUIET)
            results.append((model.predict(), model.history["pretrain_train_loss"].iloc[-1, 0]))
    finally:
        scvi.settings.seed = None
    (in_memory, loss), (from_file, loss_from_file) = results
    assert adjusted_rand_score(adata.obs["cell_type"], in_memory) > 0.9
    assert adjusted_rand_score(adata.obs["cell_type"], from_file) > 0.9
    assert loss_from_file == pytest.approx(loss, rel=0.01)


def test_a_model_reads_a_zarr_store_in_blocks(adata, in_store, monkeypatch):
    monkeypatch.setattr("scdeepclust.train._data.BLOCK_ROWS", 16)
    loaders = []

    class Recorded(BlockShuffleLoader):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            loaders.append(self)

    monkeypatch.setattr("scdeepclust.train._data.BlockShuffleLoader", Recorded)
    SCDeepCluster.setup_anndata(in_store, batch_key="batch")
    model = SCDeepCluster(in_store, n_clusters=4)
    model.train(pretrain_epochs=60, max_epochs=10, **QUIET)
    assert len(loaders) == 2  # one a phase
    minibatch = next(iter(loaders[0]))
    cells = minibatch[CELL_INDEX].numpy()
    np.testing.assert_array_equal(minibatch["X"].to_dense().numpy(), adata.X[cells].toarray())
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) > 0.9


@pytest.mark.parametrize("rows", [np.arange(16), np.array([9]), np.array([300, 301, 5, 6, 150])])
def test_annbatch_reads_the_rows_asked_for(adata, in_store, rows):
    pytest.importorskip("annbatch")
    dataset = CountsDataset(manager(in_store), load_sparse_tensor=True)
    assert dataset._read_counts is not None
    for block in (dataset.read(rows), dataset.read_blocks(np.array_split(rows, min(2, len(rows))))):
        np.testing.assert_array_equal(block["X"].toarray(), adata.X[rows].toarray())
        np.testing.assert_array_equal(block["batch"].ravel(), adata.obs["batch"].cat.codes.iloc[rows])


def test_collections_of_files_train_too(adata, tmp_path):
    """The route of scvi-tools for several files: an AnnCollection with its counts in a layer."""
    from anndata.experimental import AnnCollection
    from scvi.dataloaders import CollectionAdapter

    adata.layers["counts"] = adata.X.copy()
    parts = [adata[:200].copy(), adata[200:].copy()]
    collection = CollectionAdapter(AnnCollection(parts, join_vars="inner", join_obs="inner", label="part"))
    sdc.model.SCDeepCluster.setup_anndata(collection, layer="counts")
    model = sdc.model.SCDeepCluster(collection, n_clusters=4)
    model.train(pretrain_epochs=2, max_epochs=1, **QUIET)
    assert len(model.predict()) == adata.n_obs


def test_a_collection_of_files_is_read_in_blocks(adata, tmp_path, monkeypatch):
    """Files with other genes, or in another order: counts are those of the same cell and gene."""
    from anndata.experimental import AnnCollection
    from scvi.dataloaders import CollectionAdapter

    adata.layers["counts"] = adata.X.copy()
    shared = adata.var_names[:-1]
    for name, part in {"a": adata[:170], "b": adata[170:, adata.var_names[:-1][::-1]]}.items():
        part.copy().write_h5ad(tmp_path / f"{name}.h5ad")
    parts = [anndata.read_h5ad(tmp_path / f"{name}.h5ad", backed="r") for name in "ab"]
    collection = CollectionAdapter(AnnCollection(parts, join_vars="inner", join_obs="inner", label="file"))
    SCDeepCluster.setup_anndata(collection, layer="counts", batch_key="file")
    expected = adata[:, list(collection.var_names)].X.toarray()
    assert set(collection.var_names) == set(shared)
    dataset = CountsDataset(SCDeepCluster._get_most_recent_anndata_manager(collection), load_sparse_tensor=True)
    assert dataset[np.arange(2)]["X"].n_cells == 2
    monkeypatch.setattr(type(collection.collection), "__getitem__", None)  # its own way of reading
    for rows in (np.arange(160, 180), np.array([399, 3, 4, 200, 200]), np.arange(400)):
        block = dataset[rows]
        np.testing.assert_array_equal(block["X"].to_dense().numpy(), expected[rows])
        np.testing.assert_array_equal(block["batch"].ravel(), rows >= 170)
    block = dataset.read_blocks([np.arange(300, 310), np.arange(165, 175)])
    np.testing.assert_array_equal(block["X"].toarray(), expected[[*range(300, 310), *range(165, 175)]])
