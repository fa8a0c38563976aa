"""Numbers that a map is judged by, restated in numpy, and what is held while they are computed."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch
from scipy.sparse import csr_matrix

from scdeepclust.datasets import simulate_counts
from scdeepclust.model import SOMVAE
from scdeepclust.model.somvae import _model as model_file
from scdeepclust.model.somvae import _transitions
from scdeepclust.model.somvae._cell_pairs import _couple
from scdeepclust.model.somvae._model import SOMVAEModule
from scdeepclust.model.somvae._som import Grid
from scdeepclust.model.somvae._transitions import _chain, _likeliest_path


@pytest.fixture(scope="module")
def model():
    scvi.settings.seed = 0
    adata = simulate_counts(300, 100, n_clusters=3, n_time_points=3, depth=200, marker_log_fold_change=2.5, seed=1)
    SOMVAE.setup_anndata(adata, time_key="time", trajectory_key="trajectory")
    model = SOMVAE(adata, n_clusters=3, grid=(3, 4), n_hidden=16)
    model.train(pretrain_epochs=8, max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    yield model
    scvi.settings.seed = None


def test_the_u_distance_is_the_mean_of_distances_to_the_nodes_beside(model):
    codebook, scale = model.module.codebook.detach().numpy().astype(float), float(model.module.scale)
    at = np.array([(row, column) for row in range(3) for column in range(4)])
    beside = np.abs(at[:, None] - at[None]).max(axis=2) == 1
    apart = np.sqrt(np.square(codebook[:, None] - codebook[None]).sum(axis=2) / scale)
    expected = [apart[k, beside[k]].mean() for k in range(12)]
    np.testing.assert_allclose(model.get_som_map()["u_distance"], expected, rtol=1e-3)


def test_the_quality_is_in_units_of_the_spread_of_all_cells(model):
    z, codebook = model.get_latent_representation().astype(float), model.module.codebook.detach().numpy().astype(float)
    apart = np.sqrt(np.square(z[:, None] - codebook[None]).sum(axis=2))
    spread = np.sqrt(np.square(z - z.mean(axis=0)).sum(axis=1).mean())
    order = np.argsort(apart, axis=1)
    rows, columns = order[:, :2] // 4, order[:, :2] % 4
    torn = np.maximum(np.abs(np.diff(rows)), np.abs(np.diff(columns))).ravel() > 1
    quality = model.get_map_quality()
    assert quality["quantisation_error"] == pytest.approx(apart.min(axis=1).mean() / spread, rel=1e-3)
    assert quality["topographic_error"] == pytest.approx(torn.mean(), abs=0.01)
    assert quality["dead_nodes"] == pytest.approx(1 - len(set(order[:, 0])) / 12)


def test_states_with_few_transitions_are_not_left(model):
    counts = np.array([[4.0, 6.0, 0.0], [0.0, 0.0, 4.9], [0.0, 5.0, 0.0]])
    matrix = _chain(counts, 5.0)
    np.testing.assert_allclose(matrix, [[0.4, 0.6, 0], [0, 1, 0], [0, 1, 0]])
    np.testing.assert_allclose(_chain(counts, 0.0)[1], [0, 0, 1])
    np.testing.assert_array_equal(_likeliest_path(matrix, 0, 3), [0, 1, 1, 1])


def transport_by_numpy(x, y):
    """Entropic transport whose marginals are kept at a price; the first rows sum to one."""
    cost = np.square(x[:, None] - y[None]).sum(axis=2)
    kernel = np.exp(-cost / cost.mean() / 0.05)
    u, v = np.ones(len(x)), np.ones(len(y))
    for _ in range(5000):
        u = (1 / len(x) / (kernel @ v)) ** (1 / 1.05)
        v = (1 / len(y) / (kernel.T @ u)) ** (1 / 1.05)
    plan = u[:, None] * kernel * v
    return plan


def test_transport_has_the_penalty_and_the_successors_that_are_documented():
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=(50, 2)) + [0.7, 0]
    now, later = np.arange(30), np.arange(30, 80)
    rows, columns, weights = _couple(x, y, now, later)
    found = csr_matrix((weights, (rows, columns)), shape=(80, 80)).toarray()[:30, 30:]
    plan = transport_by_numpy(x, y)
    assert ((found > 0).sum(axis=1) == 20).all()
    kept = plan >= np.sort(plan, axis=1)[:, [-20]]
    expected = np.where(kept, plan, 0)
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=2e-3)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_nothing_of_the_size_of_cells_by_nodes_is_left_behind(model):
    held = [value for value in vars(model.module).values() if isinstance(value, torch.Tensor)]
    assert not [tuple(value.shape) for value in held if len(value) == model.adata.n_obs]
    assert model._pairs is None


def test_distances_come_block_by_block(model):
    blocks = list(model._node_distances(batch_size=64))
    assert [tuple(block.shape) for block in blocks] == [(64, 12)] * 4 + [(44, 12)]
    nodes = model.get_nodes(batch_size=64)
    np.testing.assert_array_equal(nodes["node"].cat.codes, torch.cat(blocks).argmin(dim=1))
    np.testing.assert_array_equal(model._nearest_nodes(), torch.cat(blocks).argmin(dim=1))


def test_arrivals_and_nodes_do_not_depend_on_the_blocks_they_are_computed_in(model, monkeypatch):
    pairs = csr_matrix(
        np.random.default_rng(0).random((300, 300)) * (np.random.default_rng(1).random((300, 300)) < 0.03)
    )
    node = np.random.default_rng(2).integers(12, size=300)
    z, grid = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)), Grid(3, 4)
    arrivals, codebooks = [], []
    for size in (7, 10_000):
        monkeypatch.setattr(_transitions, "BLOCK_ROWS", size)
        monkeypatch.setattr(model_file, "BLOCK_ROWS", size)
        monkeypatch.setattr(model, "_pairs", pairs)
        model._count_transitions(node)
        arrivals.append(model.module.arrivals)
        module = SOMVAEModule(10, n_clusters=0, n_latent=5)
        module.start_map(z, torch.as_tensor(node), grid, torch.zeros(12, dtype=torch.long), 1)
        codebooks.append(module.codebook.detach())
    model.module.arrivals = None
    torch.testing.assert_close(*arrivals, rtol=0, atol=0)
    torch.testing.assert_close(*codebooks, rtol=1e-5, atol=1e-6)
    counts = np.zeros((12, 12))
    np.add.at(counts, (node[pairs.nonzero()[0]], node[pairs.nonzero()[1]]), pairs.data)
    transitions = (counts + 1 / 12) / (counts.sum(axis=1, keepdims=True) + 1)
    expected = pairs.toarray().T @ transitions[node] * 300 / pairs.sum()
    np.testing.assert_allclose(arrivals[0], expected, rtol=1e-4, atol=1e-6)
