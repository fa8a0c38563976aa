"""What is particular to SOMVAE."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import nbinom
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc
from scdeepclust._keys import CELL_INDEX
from scdeepclust.model import SOMVAE
from scdeepclust.model.somvae import SOMVAEModule
from scdeepclust.model.somvae._lay_map import FINAL_RADIUS, vote_regions
from scdeepclust.model.somvae._som import Grid, neighbourhood

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


@pytest.fixture(scope="module")
def _course():
    return sdc.datasets.simulate_counts(
        1000, 200, n_clusters=4, n_time_points=4, depth=300, marker_log_fold_change=2.5, seed=1
    )


@pytest.fixture
def course(_course):
    """1000 cells, 250 sequences of four cells, from the chain 0 -> 1 -> {2, 3}."""
    return _course.copy()


def fitted(adata, pretrain_epochs=3, max_epochs=2, n_clusters=4, setup=None, **kwargs):
    SOMVAE.setup_anndata(adata, **({"batch_key": "batch"} if setup is None else setup))
    model = SOMVAE(adata, n_clusters=n_clusters, **kwargs)
    model.train(pretrain_epochs=pretrain_epochs, max_epochs=max_epochs, **QUIET)
    return model


def minibatch(model, n=32):
    return next(iter(model._minibatches(indices=np.arange(n), batch_size=n)))


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_is_two_reconstructions_plus_weighted_map_terms(adata):
    """Restated in numpy; in particular the scale of the weights, on which the method stands or falls."""
    model = fitted(adata, grid=(3, 4), commitment_weight=0.3, som_weight=0.7, smoothness_weight=0.2)
    batch, module = minibatch(model), model.module
    arrivals = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(12), size=adata.n_obs), dtype=torch.float32)
    module.arrivals = arrivals
    with torch.no_grad():
        outputs, generative, loss = module(batch, loss_kwargs={"phase": "map"})
        z, codebook = outputs["z_mean"].double().numpy(), module.codebook.double().numpy()
        d = ((z[:, None] - codebook[None]) ** 2).sum(-1)
        node = d.argmin(1)
        heads_q = module.decoder(module.codebook[node], module.covariates(batch))
    x = batch["X"].to_dense().numpy().astype(float)

    def nll(heads):
        mu = x.sum(1, keepdims=True) * torch.softmax(heads.scores.double(), -1).numpy()
        theta = heads.log_theta.exp().double().numpy()
        return -nbinom.logpmf(x, theta, theta / (theta + mu)).sum(axis=1)

    scale = float(module.scale)
    around = neighbourhood(module.grid.squared_distances(), FINAL_RADIUS).numpy()
    s = 1 / (1 + d / scale)
    log_s = np.log(s / s.sum(1, keepdims=True))
    terms = {
        "commitment": d.min(1).mean() / scale,
        "som": (around[node] * d).sum(1).mean() / scale,
        "smoothness": -(arrivals[batch[CELL_INDEX]].numpy() * log_s).sum(1).mean(),
    }
    for name, value in terms.items():
        np.testing.assert_allclose(loss.extra_metrics[name].item(), value, rtol=1e-3, err_msg=name)
    weighted = 0.3 * terms["commitment"] + 0.7 * terms["som"] + 0.2 * terms["smoothness"]
    expected = nll(generative["heads"]).mean() + nll(heads_q).mean() + x.shape[1] * weighted
    np.testing.assert_allclose(loss.loss.item(), expected, rtol=1e-4)


def test_cells_are_drawn_to_the_node_they_were_laid_on(adata):
    module = fitted(adata, grid=(3, 4)).module
    z = module.codebook.detach()[[5, 7, 2]] + 0.01
    cells = torch.tensor([8, 3, 6])
    assert module._target_nodes(z, cells).tolist() == [5, 7, 2]
    module.start_nodes = torch.full((adata.n_obs,), -1)
    module.start_nodes[3] = 11
    assert module._target_nodes(z, cells).tolist() == [5, 11, 2]  # -1: a cell held out


def test_training_keeps_cells_where_they_were_laid(adata, monkeypatch):
    from scdeepclust.model.somvae import _model as _somvae

    laid = {}

    def vote(node, *arguments):
        laid["node"] = node
        return vote_regions(node, *arguments)

    monkeypatch.setattr(_somvae, "vote_regions", vote)
    model = fitted(adata, pretrain_epochs=30, max_epochs=20, grid=(3, 4))
    assert (model.get_nodes()["node"].cat.codes == laid["node"]).mean() > 0.9


def test_commitment_moves_cells_and_the_map_term_moves_nodes(adata):
    model = fitted(adata, grid=(3, 4))
    module = model.module
    batch = minibatch(model)
    outputs = module.inference(**module._get_inference_input(batch))
    covariates = module.covariates(batch)
    z = module.encode_without_noise(outputs["u"], covariates)
    terms = module.map_terms(z, module.distances(z.detach()).argmin(1), batch[CELL_INDEX])
    encoder, codebook = module.z_head.weight, module.codebook
    of_commitment = torch.autograd.grad(terms["commitment"], [encoder, codebook], retain_graph=True, allow_unused=True)
    of_som = torch.autograd.grad(terms["som"], [encoder, codebook], allow_unused=True)
    assert of_commitment[0].abs().max() > 0
    assert of_commitment[1] is None
    assert of_som[0] is None
    assert of_som[1].abs().max() > 0


# ---- the map ---------------------------------------------------------------------------------------------------------


def test_the_map_is_ordered_has_no_dead_nodes_and_its_clusters_are_connected(adata):
    model = fitted(adata, pretrain_epochs=40, max_epochs=10, grid=(4, 5))
    quality = model.get_map_quality()
    assert quality["topographic_error"] < 0.15
    assert quality["dead_nodes"] < 0.1
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) > 0.9
    touches, cluster = model.module.grid.adjacency(diagonal=True).numpy(), model.module.node_cluster.numpy()
    for k in range(4):
        own = np.flatnonzero(cluster == k)
        assert connected_components(touches[np.ix_(own, own)])[0] == 1


def test_a_cell_is_in_the_cluster_of_its_node(adata):
    model = fitted(adata)
    cluster = model.get_som_map()["cluster"]
    np.testing.assert_array_equal(cluster.loc[model.get_nodes()["node"]], model.predict())


def test_nodes_are_the_nearest_and_their_places_fit_the_names(adata):
    model = fitted(adata, grid=(3, 5))
    nodes, z = model.get_nodes(indices=[4, 0, 9]), model.get_latent_representation(indices=[4, 0, 9])
    assert list(nodes.index) == list(adata.obs_names[[4, 0, 9]])
    d = ((z[:, None] - model.module.codebook.detach().numpy()[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(5 * nodes["row"] + nodes["column"], d.argmin(1))
    assert list(nodes["node"]) == [f"r{k // 5}c{k % 5}" for k in d.argmin(1)]
    np.testing.assert_allclose(nodes["distance"], np.sqrt(d.min(1) / float(model.module.scale)), rtol=1e-3)
    assert (abs(nodes["x"] - nodes["column"]) < 1).all()
    assert (abs(nodes["y"] - nodes["row"]) < 1).all()


def test_the_map_counts_hits_and_profiles_are_shares(adata):
    model = fitted(adata, grid=(3, 4))
    table = model.get_som_map()
    assert table["hits"].sum() == adata.n_obs
    assert (table["u_distance"] > 0).all()
    profiles = model.get_node_profiles()
    assert profiles.shape == (adata.n_vars, 12)
    np.testing.assert_allclose(profiles.sum(), 1, rtol=1e-4)


def test_profiles_follow_the_markers_of_the_cells_of_a_node(adata):
    model = fitted(adata, pretrain_epochs=40, max_epochs=5, grid=(4, 5))
    node_type = pd.crosstab(model.get_nodes()["node"], adata.obs["cell_type"]).idxmax(axis=1)
    for name in ("type_0", "type_1"):
        of_type = model.get_node_profiles()[node_type.index[node_type == name]].mean(axis=1)
        others = model.get_node_profiles()[node_type.index[node_type != name]].mean(axis=1)
        ratio = of_type / others
        markers = adata.var["marker_of"] == name
        assert ratio[markers.to_numpy()].median() > 3 * ratio[~markers.to_numpy()].median()


def test_what_is_written_back(adata):
    model = fitted(adata, grid=(3, 4))
    model.write_back(confidence="posterior")
    assert {"somvae_node", "somvae_row", "somvae_column", "somvae_distance"} <= set(adata.obs)
    assert adata.obsm["X_somvae_map"].shape == (adata.n_obs, 2)
    assert adata.varm["somvae_profiles"].shape == (adata.n_vars, 12)
    assert list(adata.uns["somvae"]["grid"]) == [3, 4]
    assert adata.uns["somvae"]["codebook"].shape == (12, 16)
    assert 0 <= adata.uns["somvae"]["topographic_error"] <= 1
    assert not {"transition_matrix", "transition_counts", "stationary_distribution"} & set(adata.uns["somvae"])


def test_profiles_are_written_to_data_with_more_genes(adata):
    some = adata[:, 20:180].copy()
    model = fitted(some, grid=(3, 4))
    model.write_back(adata, confidence="posterior")
    profiles = adata.varm["somvae_profiles"]
    assert np.isnan(profiles[:20]).all()
    np.testing.assert_allclose(profiles[20:180], model.get_node_profiles(), rtol=1e-5)


@pytest.mark.parametrize(
    ("grid", "message"), [((3,), "two whole numbers"), ((0, 4), "at least 1"), ((2.5, 4), "whole"), ((1, 3), "too few")]
)
def test_a_grid_that_cannot_be_is_refused(adata, grid, message):
    SOMVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match=f"`grid`.*{message}"):
        SOMVAE(adata, n_clusters=4, grid=grid)


def test_training_goes_on_from_the_map_it_has(adata):
    model = fitted(adata, pretrain_epochs=20)
    before = model.get_som_map()
    model.train(max_epochs=0, **QUIET)
    pd.testing.assert_frame_equal(model.get_som_map()[["row", "column"]], before[["row", "column"]])
    assert model.phases_ == [("pretrain", 20), ("map", 2)]  # nothing was added


def test_a_folded_map_and_many_dead_nodes_are_reported(adata):
    model = fitted(adata, pretrain_epochs=20, grid=(4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model._warn_if_degenerate(model._probabilities())
    with torch.no_grad():
        model.module.codebook.copy_(model.module.codebook[torch.randperm(20)].clone())
    with pytest.warns(UserWarning, match="folded"):
        model._warn_if_degenerate(model._probabilities())
    with torch.no_grad():
        model.module.codebook[5:] = 1e3
    with pytest.warns(UserWarning, match="of the nodes have no cells"):
        model._warn_if_degenerate(model._probabilities())


@pytest.mark.parametrize(
    "options",
    [{"gene_likelihood": "zinb"}, {"gene_likelihood": "poisson"}, {"gene_likelihood": "normal"},
     {"encode_covariates": False}, {"grid": (1, 12)}],
    ids=str,
)  # fmt: skip
def test_every_option_recovers_simulated_clusters(adata, options):
    model = fitted(adata, pretrain_epochs=30, max_epochs=5, **options)
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) > 0.85


def test_tiny_data_work():
    x = np.random.default_rng(0).poisson(2, (6, 4)).astype(np.float32)
    tiny = anndata.AnnData(x + np.eye(6, 4, k=2, dtype=np.float32))
    assert len(fitted(tiny, n_clusters=2, setup={}).predict()) == 6


# ---- time ------------------------------------------------------------------------------------------------------------

SEQUENCES = {"time_key": "time", "trajectory_key": "trajectory"}


def true_order(model, adata):
    table = pd.crosstab(adata.obs["cell_type"], model.predict())
    assert len(set(table.idxmax(axis=1))) == len(table)
    return list(table.idxmax(axis=1))


def test_the_matrix_of_a_markov_chain_is_recovered_from_sequences(course, tmp_path):
    model = fitted(course, 40, 6, setup=SEQUENCES)
    order = true_order(model, course)
    matrix = model.get_transition_matrix("cluster").loc[order, order].to_numpy()
    truth = course.uns["simulation"]["transition_matrix"].to_numpy()
    assert (np.abs(matrix - truth).sum(axis=1) / 2).mean() < 0.12
    nodes = model.get_transition_matrix()
    known = nodes.dropna()
    np.testing.assert_allclose(known.sum(axis=1), 1)
    # the counts are those of the pairs: one for each cell that is not the last of its sequence
    assert model.transition_counts_.sum() == pytest.approx(750)
    silent = model.transition_counts_.sum(axis=1) < 5
    assert nodes.isna().all(axis=1).to_numpy().tolist() == silent.tolist()
    assert "smoothness_train" in model.history
    model.write_back(confidence="posterior")
    assert course.uns["somvae"]["stationary_distribution"].sum() == pytest.approx(1)
    control = sdc.tl.time_control(model, n_permutations=5)
    assert control.loc["direction", "observed"] > 0.8
    assert control.loc["direction", "permuted_mean"] < 0.3
    model.save(str(tmp_path / "m"))
    loaded = SOMVAE.load(str(tmp_path / "m"), course)
    pd.testing.assert_frame_equal(loaded.get_transition_matrix(), nodes)


def test_destructive_snapshots_show_the_direction_of_the_chain(course):
    pytest.importorskip("ot")
    model = fitted(course, 40, 4, setup={"time_key": "time"})
    order = true_order(model, course)
    matrix = model.get_transition_matrix("cluster").loc[order, order].to_numpy()
    onward = matrix - np.diag(np.diag(matrix))
    assert onward[0].argmax() == 1
    assert set(np.argsort(onward[1])[2:]) == {2, 3}
    control = sdc.tl.time_control(model, n_permutations=3)
    assert control.loc["direction", "excess"] > 0.4


def test_a_given_matrix_takes_the_place_of_times(course):
    n = course.n_obs
    successor = np.random.default_rng(0).permutation(n)
    course.obsp["kernel"] = csr_matrix((np.full(n, 0.5), (np.arange(n), successor)), shape=(n, n))
    model = fitted(course, setup={"transition_key": "kernel"})
    node = model.get_nodes()["node"].cat.codes.to_numpy()
    counts = np.zeros_like(model.transition_counts_)
    np.add.at(counts, (node, node[successor]), 0.5)
    np.testing.assert_allclose(model.transition_counts_, counts)


def test_expected_arrivals_belong_to_their_cells(course):
    model = fitted(course, setup=SEQUENCES, grid=(2, 3))
    model._find_pairs(np.arange(course.n_obs), None)
    node = model.get_nodes()["node"].cat.codes.to_numpy()
    model._count_transitions(node)
    p = (model.transition_counts_ + 1 / 6) / (model.transition_counts_.sum(1, keepdims=True) + 1)
    at = course.obs.assign(i=np.arange(course.n_obs)).set_index(["trajectory", "time"])["i"]
    cell, before = at[(3, 2)], at[(3, 1)]
    expected = p[node[before]] * course.n_obs / 750
    np.testing.assert_allclose(model.module.arrivals[cell], expected, rtol=1e-4)
    assert model.module.arrivals[at[(3, 0)]].sum() == 0  # nothing leads to a first cell


def test_paths_follow_the_chain():
    from scdeepclust.model.somvae._transitions import _chain, _likeliest_path, _sampled_paths

    counts = np.array([[1.0, 9, 0], [0, 2, 8], [0, 0, 1]])  # the last has too few to say
    matrix = _chain(counts, 5)
    np.testing.assert_allclose(matrix, [[0.1, 0.9, 0], [0, 0.2, 0.8], [0, 0, 1]])
    np.testing.assert_array_equal(_likeliest_path(matrix, 0, 3), [0, 1, 2, 2])
    # the most likely path is not the one of the most likely steps
    trap = np.array([[0, 0.6, 0.4, 0], [0, 0.3, 0.3, 0.4], [0, 0, 0, 1.0], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(_likeliest_path(trap, 0, 2), [0, 2, 3])
    paths = _sampled_paths(matrix, 0, 2, 4000, np.random.default_rng(0))
    shares = np.bincount(paths[:, 2], minlength=3) / 4000
    np.testing.assert_allclose(shares, matrix[0] @ matrix, atol=0.03)


def test_trajectories_are_named_and_reproducible(course):
    model = fitted(course, setup=SEQUENCES, grid=(2, 3))
    path = model.simulate_trajectory("r0c1", 4)
    assert path.shape == (1, 5)
    assert path.iloc[0, 0] == "r0c1"
    sample = model.simulate_trajectory("0", 3, level="cluster", n_samples=7, seed=1)
    assert sample.shape == (7, 4)
    pd.testing.assert_frame_equal(sample, model.simulate_trajectory("0", 3, level="cluster", n_samples=7, seed=1))
    with pytest.raises(ValueError, match="`start`: there is no node 'r9c9'"):
        model.simulate_trajectory("r9c9")
    with pytest.raises(ValueError, match="`level`"):
        model.get_transition_matrix("cell")


def test_without_time_there_is_no_matrix(adata):
    model = fitted(adata)
    with pytest.raises(ValueError, match="registered without time.*`time_key`"):
        model.get_transition_matrix()
    with pytest.raises(ValueError, match="`time_key`"):
        sdc.tl.time_control(model)
    assert "smoothness_train" not in model.history


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"time_key": "hour"}, "'hour'"),
        ({"trajectory_key": "trajectory"}, "`trajectory_key` needs `time_key`"),
        ({"transition_key": "kernel"}, "`adata.obsp` has no 'kernel'"),
        ({"transition_key": "negative"}, "negative"),
        ({"time_key": "cell_type"}, "have no order"),
    ],
)
def test_time_that_does_not_fit_is_refused_before_anything_is_written(course, setup, message):
    course.obsp["negative"] = csr_matrix(-np.eye(course.n_obs))
    before = set(course.obs), set(course.uns)
    with pytest.raises(ValueError, match=message):
        SOMVAE.setup_anndata(course, **setup)
    assert (set(course.obs), set(course.uns)) == before


def test_new_cells_need_no_time(course):
    model = fitted(course, setup=SEQUENCES)
    new = course[:50].copy()
    del new.obs["time"], new.obs["trajectory"]
    assert len(model.predict(new)) == 50
    query = SOMVAE.load_query_data(new, model)
    query.train(max_epochs=0, **QUIET)
    np.testing.assert_array_equal(query.predict(), model.predict(new))


# ---- drawings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(_course):
    scvi.settings.seed = 0
    adata = _course.copy()
    fitted(adata, 5, 2, setup=SEQUENCES, grid=(4, 5)).write_back(confidence="posterior")
    return adata


def test_every_plane_is_drawn(drawn):
    names = ["clusters", "hits", "u_matrix", "gene_0", "time", "cell_type"]
    drawing = sdc.pl.som(drawn, color=names)
    panels = list(drawing.values())
    assert list(drawing) == [ax.get_title() for ax in panels] == names
    hits = panels[1].images[0].get_array()
    nodes = drawn.obs["somvae_node"].value_counts()
    assert hits.shape == (4, 5)
    assert hits[2, 3] == nodes.get("r2c3", 0)
    gene = drawn.varm["somvae_profiles"][0].reshape(4, 5) * 1e4
    np.testing.assert_allclose(panels[3].images[0].get_array(), gene)
    time = drawn.obs.groupby("somvae_node", observed=True)["time"].mean()
    assert panels[4].images[0].get_array()[0, 0] == pytest.approx(time.get("r0c0", np.nan), nan_ok=True)


def test_renamed_clusters_are_drawn_with_their_new_names(drawn):
    renamed = drawn.copy()
    renamed.obs["somvae"] = renamed.obs["somvae"].cat.rename_categories(lambda c: f"type {c}")
    planes = [sdc.pl.som(adata, color="clusters")["clusters"] for adata in (drawn, renamed)]
    before, after = (ax.images[0].get_array() for ax in planes)
    np.testing.assert_array_equal(before, after)
    assert (np.asarray(after) < 1).any()
    names = [{text.get_text() for text in ax.texts} for ax in planes]
    assert names[1] == {f"type {name}" for name in names[0]}


def test_names_on_the_map_do_not_overlap(drawn):
    """Short names are pushed apart, long ones go into a legend."""
    drawn = drawn.copy()
    scattered = np.random.default_rng(0).integers(0, 12, drawn.n_obs)
    drawn.obs["lane"] = pd.Categorical([f"lane{i:03}" for i in scattered])
    drawn.obs["kind"] = drawn.obs["lane"].cat.rename_categories(lambda name: f"a long name of {name}")
    panels = sdc.pl.som(drawn, color=["lane", "kind"])
    panels.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in panels["lane"].texts]
    assert len(boxes) > 4
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[i + 1 :])
    assert not panels["kind"].texts
    names = [text.get_text() for text in panels["kind"].get_legend().get_texts()]
    assert "a long name of lane003" in names


def test_arrows_point_along_the_mean_step(drawn):
    from matplotlib.quiver import Quiver

    ax = sdc.pl.transitions(drawn)
    arrows = next(artist for artist in ax.collections if isinstance(artist, Quiver))
    counts = drawn.uns["somvae"]["transition_counts"]
    k = int(arrows.X[0] + 5 * arrows.Y[0])
    mean_column = (counts[k] / counts[k].sum()) @ np.tile(np.arange(5), 4)
    step = mean_column - k % 5
    assert np.sign(arrows.U[0]) == np.sign(step) or abs(step) < 1e-6


def test_drawings_say_what_is_missing(drawn, adata):
    with pytest.raises(ValueError, match="uns has no map under 'other'"):
        sdc.pl.som(drawn, "other")
    with pytest.raises(ValueError, match="'no_gene' is none of"):
        sdc.pl.som(drawn, color="no_gene")
    fitted(adata).write_back(confidence="posterior")
    with pytest.raises(ValueError, match="no transitions"):
        sdc.pl.transitions(adata)


def test_the_map_starts_at_the_means_of_the_cells_in_units_of_their_median_spread():
    generator = torch.Generator().manual_seed(0)
    node = torch.tensor([0, 0, 0, 2, 2, 2, 2, 5])  # nodes 1, 3 and 4 have no cells
    z = torch.randn(8, 3, generator=generator) + 5 * node[:, None]
    z[7] += 100  # a cell alone on its node; and one that lies far from the others of its own
    z[0, 0] += 20
    module = SOMVAEModule(10, n_clusters=0, n_latent=3)
    module.start_map(z, node, Grid(2, 3), torch.tensor([0, 0, 1, 0, 1, 1]), 2)
    means = torch.stack([z[node == k].mean(dim=0) for k in (0, 2, 5)])
    torch.testing.assert_close(module.codebook.detach()[[0, 2, 5]], means, rtol=1e-2, atol=1e-2)
    spread = (z - module.codebook.detach()[node]).square().sum(dim=1)
    torch.testing.assert_close(module.scale, spread.median())
    distances = (z[:, None] - module.codebook.detach()).square().sum(dim=2)
    torch.testing.assert_close(module.distances(z).detach(), distances / spread.median(), rtol=1e-3, atol=1e-2)
