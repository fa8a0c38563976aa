"""What MFCVAE promises besides what all models do."""

from __future__ import annotations

import re
import warnings

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import scdeepclust as sdc
from scdeepclust.model import MFCVAE
from scdeepclust.model.mfcvae import _crossed_groups
from scdeepclust.model.mfcvae._independence import dependence as hsic
from scdeepclust.model.mfcvae._module import FREE_BITS, MFCVAEModule
from scdeepclust.nn import Covariates

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def crossed():
    """600 cells of 3 types and, independent of them, 2 groups; a model of them."""
    scvi.settings.seed = 0
    adata = sdc.datasets.simulate_counts(
        600, 200, n_clusters=3, n_facet_groups=2, n_markers=15, marker_log_fold_change=2.5, depth=400, seed=1
    )
    MFCVAE.setup_anndata(adata)
    model = MFCVAE(adata, n_clusters=3)
    model.train(pretrain_epochs=60, max_epochs=10, **QUIET)
    yield adata, model
    scvi.settings.seed = None


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def outputs_of(model, n=32):
    tensors = next(iter(model._minibatches(indices=range(n))))
    return tensors, model._encode(tensors)


def test_each_planted_clustering_has_its_own_facet(crossed):
    adata, model = crossed
    found = model.get_facets()
    assert adjusted_rand_score(adata.obs["cell_type"], found["facet0"]) > 0.9
    assert adjusted_rand_score(adata.obs["facet"], found["facet1"]) > 0.9
    assert normalized_mutual_info_score(found["facet0"], found["facet1"]) < 0.03
    assert model.crossing_[1] < 0.9
    np.testing.assert_array_equal(found["facet0"].astype(str), model.predict())
    for name in found:
        assert (np.diff(found[name].value_counts().reindex(found[name].cat.categories)) <= 0).all()


def test_the_codes_of_the_facets_do_not_depend_on_each_other(crossed):
    adata, model = crossed
    types, groups = (pd.get_dummies(adata.obs[key]).to_numpy(float) for key in ("cell_type", "facet"))

    def explained(z, x):
        residual = z - x @ np.linalg.lstsq(x, z, rcond=None)[0]
        return 1 - residual.var(axis=0).sum() / z.var(axis=0).sum()

    z0, z1 = model.get_facet_representation(0), model.get_facet_representation(1)
    assert explained(z0, types) > 10 * explained(z0, groups)
    assert explained(z1, groups) > 10 * explained(z1, types)
    np.testing.assert_array_equal(np.hstack([z0, z1]), model.get_latent_representation())


def test_loadings_name_the_markers_of_each_facet(crossed):
    adata, model = crossed
    for facet, prefix in ((0, "type"), (1, "facet")):
        loadings = model.get_facet_loadings(facet)
        top = loadings.max(axis=1).nlargest(20).index
        assert adata.var.loc[top, "marker_of"].astype(str).str.startswith(prefix).mean() > 0.9
        weights = model.module.mixtures[facet].log_weights.exp().detach().numpy()
        np.testing.assert_allclose(loadings.to_numpy() @ weights, 0, atol=1e-4)


def test_swapping_a_facet_changes_that_facet_only(crossed):
    adata, model = crossed
    found = model.get_facets().astype(str)
    cells = np.flatnonzero((found["facet0"] == "0") & (found["facet1"] == "0"))[:20]
    donors = np.flatnonzero((found["facet0"] == "1") & (found["facet1"] == "1"))[:20]
    before, after = model.swap_facets(1, cells, cells), model.swap_facets(1, cells, donors)
    np.testing.assert_array_equal(before, model.swap_facets(0, cells, cells))
    np.testing.assert_allclose(before.sum(axis=1), 1, rtol=1e-4)
    change = np.log(after.mean() / before.mean())
    group = adata.obs["facet"].iloc[donors].mode()[0]
    owner = adata.var["marker_of"].astype(str)
    assert change[owner == group].mean() > 0.8
    assert change[owner.str.startswith("type")].abs().mean() < 0.3
    with pytest.raises(ValueError, match="one cell for each of the 20"):
        model.swap_facets(1, cells, donors[:3])


def test_samples_are_of_the_clusters_asked_for_and_vary_as_the_model_says(crossed):
    _, model = crossed
    torch.manual_seed(0)
    drawn = model.sample(2000, clusters={0: "1", 1: "0"}, library_size=1000)
    assert set(drawn.index.get_level_values("facet0")) == {"1"}
    other = model.sample(2000, clusters={0: "1", 1: "1"}, library_size=1000)
    genes = model.get_facet_loadings(1)["1"].nlargest(5).index
    assert (other[genes].mean() > 2 * drawn[genes].mean()).all()
    mean, variance = drawn.mean(), drawn.var()
    expressed = mean > 1
    assert (variance[expressed] > 1.2 * mean[expressed]).mean() > 0.9  # more than Poisson
    theta = model.module.decoder.log_theta[0].exp().detach().numpy()
    expected = mean + mean**2 / theta
    assert 0.8 < (variance / expected)[expressed].median() < 1.8  # and spread within the cluster besides
    free = model.sample(500)
    shares = free.index.get_level_values("facet0").value_counts(normalize=True)
    assert shares.index[0] == "0"
    with pytest.raises(ValueError, match="clusters.*'9'"):
        model.sample(5, clusters={0: "9"})
    with pytest.raises(ValueError, match="there is no facet 2"):
        model.sample(5, clusters={2: "0"})


def test_the_divergence_is_that_of_the_best_component_posterior(crossed):
    _, model = crossed
    _, outputs = outputs_of(model)
    for j in (0, 1):
        mean, log_var = model.module.posterior(outputs, j)
        mixture = model.module.mixtures[j]
        log_r = model.module.log_responsibilities(outputs, j)
        log_p = mixture.mean_log_joint(mean, log_var.exp())
        log_q = -0.5 * (log_var + np.log(2 * np.pi) + 1).sum(dim=1)

        def bound(log_r, log_p=log_p, log_q=log_q):
            return log_q + (log_r.exp() * (log_r - log_p)).sum(dim=1)

        divergence = model.module.divergence(outputs, j)
        torch.testing.assert_close(divergence, bound(log_r), rtol=1e-4, atol=1e-4)
        for _ in range(5):
            assert (divergence <= bound(torch.log_softmax(log_r + torch.randn_like(log_r), dim=1)) + 1e-4).all()


def test_the_loss_is_the_bound_plus_the_penalty_and_the_start_groups(crossed):
    _, model = crossed
    module = model.module
    tensors, outputs = outputs_of(model)
    with torch.inference_mode():
        generated = module.generative(**module._get_generative_input(tensors, outputs))
        plain = module.loss(tensors, outputs, generated)
        kl = sum(module.divergence(outputs, j).mean() for j in (0, 1))
        reconstruction = -module.log_likelihood(outputs["counts"], generated["heads"], outputs["log_library"]).mean()
        dependence = plain.extra_metrics["dependence"]
        expected = reconstruction + kl + module.independence * module.n_input * dependence
        torch.testing.assert_close(plain.loss, expected)
        module.guides = {1: torch.zeros(model.adata.n_obs, dtype=torch.long)}
        module.guides[1][:16] = -1  # without a group: no part
        guided = module.loss(tensors, outputs, generated)
        log_r = module.log_responsibilities(outputs, 1)
        module.guides, module.anchor = {0: module.guides[1]}, 3.0
        anchored = module.loss(tensors, outputs, generated)
        log_r0 = module.log_responsibilities(outputs, 0)
        module.guides, module.anchor = {}, 0.0
        torch.testing.assert_close(guided.loss - plain.loss, -10 * log_r[16:, 0].sum() / 32, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(anchored.loss - plain.loss, -3 * log_r0[16:, 0].sum() / 32, rtol=1e-3, atol=1e-2)


def test_facets_are_written_back_and_survive_h5ad(crossed, tmp_path):
    adata, model = crossed
    target = adata.copy()
    model.write_back(target, confidence="posterior")
    target.write_h5ad(tmp_path / "a.h5ad")
    target = anndata.read_h5ad(tmp_path / "a.h5ad")
    for j, n_latent in ((0, 16), (1, 4)):
        assert f"mfcvae_facet{j}_confidence" in target.obs
        assert target.obsm[f"X_mfcvae_facet{j}"].shape == (600, n_latent)
        assert target.varm[f"mfcvae_facet{j}_loadings"].shape == (200, 3 - j)
    assert list(target.obs["mfcvae_facet0"]) == list(target.obs["mfcvae"])
    assert target.uns["mfcvae"]["crossing"]["facet1"] == pytest.approx(model.crossing_[1])


def test_loading_keeps_every_facet(crossed, tmp_path):
    adata, model = crossed
    model.save(str(tmp_path / "m"))
    loaded = MFCVAE.load(str(tmp_path / "m"), adata)
    pd.testing.assert_frame_equal(loaded.get_facets(), model.get_facets())
    pd.testing.assert_frame_equal(loaded.get_facet_loadings(1), model.get_facet_loadings(1))
    assert loaded.crossing_ == model.crossing_


def test_report_and_plot(crossed):
    adata, model = crossed
    report = sdc.tl.facet_report([model, model], ["cell_type", "facet"])
    assert report.loc["facet0", "nmi[cell_type]"] > 0.85 > 0.1 > report.loc["facet0", "nmi[facet]"]
    assert report.loc["facet1", "nmi[facet]"] > 0.85 > 0.1 > report.loc["facet1", "nmi[cell_type]"]
    assert list(report["n_used"]) == [3, 2]
    assert (report["kl"] > 0.5).all()
    np.testing.assert_allclose(report["stability"], 1)
    with pytest.raises(ValueError, match="obs_keys.*'nothing'"):
        sdc.tl.facet_report(model, "nothing")
    with pytest.raises(ValueError, match="MFCVAE model, found AnnData"):
        sdc.tl.facet_report(adata)
    target = adata.copy()
    model.write_back(target, key_added="mine", confidence="posterior")
    panels = sdc.pl.facets(target, "mine", covariates="cell_type", n_genes=2)
    assert list(panels) == [ax.get_title() for ax in panels.values()] == ["mutual information", "facet 0", "facet 1"]
    for j in (0, 1):  # genes of every cluster
        loadings = target.varm[f"mine_facet{j}_loadings"].dropna()
        shown = loadings.loc[[text.get_text() for text in panels[f"facet {j}"].get_yticklabels()]]
        assert (np.bincount(shown.to_numpy().argmax(axis=1), minlength=loadings.shape[1]) == 2).all()
    plt.close(panels.figure)
    with pytest.raises(ValueError, match="write_back"):
        sdc.pl.facets(adata, "other")


def test_a_guided_facet_follows_its_column_and_the_main_one_is_freed_of_it(crossed):
    adata, _ = crossed
    adata = adata.copy()
    adata.obs["seen"] = adata.obs["facet"].astype(object).where(np.arange(600) % 4 > 0)
    MFCVAE.setup_anndata(adata)
    model = MFCVAE(adata, n_clusters=3, guides="seen")
    model.train(pretrain_epochs=45, max_epochs=5, **QUIET)
    found = model.get_facets()
    hidden = adata.obs["seen"].isna().to_numpy()
    assert adjusted_rand_score(adata.obs["facet"][hidden], found["facet1"][hidden]) > 0.9
    assert normalized_mutual_info_score(adata.obs["facet"], found["facet0"]) < 0.05


def test_without_a_second_clustering_the_facet_stays_closed(adata):
    MFCVAE.setup_anndata(adata, batch_key="batch")
    model = MFCVAE(adata, n_clusters=4)
    with pytest.warns(
        UserWarning, match=r"Facet 1 says nothing \(ratio 1.*The 4 main.*n_clusters=2.*`guides`.*n_facets=1"
    ):
        model.train(pretrain_epochs=45, max_epochs=5, **QUIET)
    assert model.get_facets()["facet1"].nunique() == 1
    assert model.module.decoder.body.fade.tolist() == [1.0, 0.0]
    assert (model.get_facet_loadings(1) == 0).all(axis=None)
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) > 0.9


def test_a_facet_that_was_asked_for_but_is_not_crossed_is_reported(adata, crossed, monkeypatch):
    monkeypatch.setattr(_crossed_groups, "N_STARTS", 20)
    MFCVAE.setup_anndata(adata, batch_key="batch")
    model = MFCVAE(adata, n_clusters=4, n_facet_clusters=2)
    with pytest.warns(UserWarning, match=r"Facet 1 has 2 clusters.*ratio [12].*The 4 main clusters.*n_clusters=2"):
        model.train(pretrain_epochs=20, max_epochs=2, **QUIET)
    assert model.crossing_[1] >= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a facet that was found
        crossed[1]._warn_if_degenerate(crossed[1]._probabilities())


@pytest.mark.slow
def test_shallow_types_in_batches_are_not_lost_to_the_prior():
    adata = sdc.datasets.simulate_counts(
        2000, 2000, n_clusters=5, n_batches=4, depth=310, marker_log_fold_change=2.0, seed=0
    )
    MFCVAE.setup_anndata(adata, batch_key="batch")
    model = MFCVAE(adata, n_clusters=5, seed=0)
    model.train(**QUIET)
    scores = sdc.tl.score_clusters(adata.obs.assign(found=model.predict()), "found", label_key="cell_type")
    assert scores.loc["found", "ARI"] > 0.5  # .01 with a prior that is there from a fifth of the phase on


@pytest.mark.slow
def test_the_advice_of_a_closed_facet_leads_to_one_that_is_open(real_data):
    """What was advised, to force a facet, gave one that had nothing to do with the stimulation."""
    adata = real_data("kang_muscat")
    MFCVAE.setup_anndata(adata)
    open_k = MFCVAE(adata)
    with pytest.warns(UserWarning, match=r"Facet 1 says nothing.*such as n_clusters=\d") as caught:
        open_k.train(**QUIET)
    advised = int(
        next(re.search(r"n_clusters=(\d+)", str(w.message)) for w in caught if "Facet 1" in str(w.message))[1]
    )
    model = MFCVAE(adata, n_clusters=advised)
    model.train(**QUIET)
    assert normalized_mutual_info_score(adata.obs["stim"], model.get_facets()["facet1"]) > 0.5


@pytest.mark.parametrize("n_facets", [1, 3])
def test_any_number_of_facets(adata, n_facets):
    MFCVAE.setup_anndata(adata, batch_key="batch")
    model = MFCVAE(adata, n_clusters=4, n_facets=n_facets, n_facet_clusters=2)
    model.train(pretrain_epochs=8, max_epochs=1, **QUIET)
    assert list(model.get_facets()) == [f"facet{j}" for j in range(n_facets)]
    assert [name for name, _ in model.phases_] == ["pretrain", *(f"facet{j}" for j in range(1, n_facets)), "mixture"]
    assert model.get_facet_loadings(n_facets - 1).shape[0] == adata.n_vars


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_facets": 0}, "`n_facets` must be a whole number"),
        ({"n_facets": 3, "n_facet_clusters": [2]}, "`n_facet_clusters` has 1 entries for 2 facets"),
        ({"guides": "nothing"}, "`guides`: there is no column 'nothing'"),
        ({"guides": "constant"}, "'constant' of `adata.obs` has 1 different values"),
    ],
)
def test_bad_arguments_are_named(adata, arguments, message):
    adata.obs["constant"] = "a"
    MFCVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match=message):
        MFCVAE(adata, n_clusters=4, **arguments)


@pytest.fixture(scope="module")
def digits():
    """The first 500 images of 8 x 8 pixels with 17 grey levels."""
    pixels, truth = load_digits(return_X_y=True)
    return anndata.AnnData(pixels[:500].astype(np.float32), obs=pd.DataFrame({"digit": truth[:500].astype(str)}))


def test_grey_values_are_proportions_of_the_largest(digits):
    adata = digits.copy()
    MFCVAE.setup_anndata(adata)
    model = MFCVAE(adata, n_clusters=5, n_facets=1, gene_likelihood="beta_binomial")
    model.train(pretrain_epochs=40, max_epochs=1, **QUIET)
    tensors, outputs = outputs_of(model, 500)
    proportions = digits.X / 16
    expected = (proportions - proportions.mean(axis=0)) / np.sqrt(proportions.var(axis=0).mean())
    u = model.module.network_input(outputs["counts"], outputs["log_library"])
    np.testing.assert_allclose(u, expected, rtol=1e-3, atol=1e-4)
    decoded = model.get_normalized_expression()
    assert np.corrcoef(decoded.mean(), proportions.mean(axis=0))[0, 1] > 0.95
    drawn = model.sample(2000).to_numpy()
    assert set(np.unique(drawn)) <= set(range(17))
    assert abs(drawn.mean() / digits.X.mean() - 1) < 0.15
    brighter = adata.copy()
    brighter.X = brighter.X * 2  # larger than any value seen
    counts = model.module._get_inference_input(next(iter(model._minibatches(brighter))))["counts"]
    outputs = model.module.inference(counts, None)
    heads = model.module.generative(outputs["z"], outputs["log_library"], None)["heads"]
    assert model.module.log_likelihood(counts, heads, outputs["log_library"]).isfinite().all()


def test_an_anchor_keeps_cells_in_their_start_clusters(digits):
    kept = {}
    for anchor in (0.0, 10.0):
        adata = digits.copy()
        MFCVAE.setup_anndata(adata)
        options = {"gene_likelihood": "beta_binomial", "init": "leiden", "n_facets": 1, "input_noise": 0.0}
        model = MFCVAE(adata, n_clusters=10, anchor=anchor, **options)
        model.train(pretrain_epochs=30, max_epochs=30, **QUIET)
        kept[anchor] = adjusted_rand_score(model.initial_labels_, model.predict())
    assert kept[10.0] > 0.97 > kept[0.0]


@pytest.mark.slow
def test_type_and_stimulation_are_found_in_different_facets(real_data):
    adata = real_data("kang_muscat")
    MFCVAE.setup_anndata(adata)
    model = MFCVAE(adata, n_clusters=5)
    model.train(**QUIET)
    report = sdc.tl.facet_report(model, ["cell_type", "stim"])
    assert report.loc["facet0", "nmi[cell_type]"] > 0.65
    assert report.loc["facet0", "nmi[stim]"] < 0.1
    assert report.loc["facet1", "nmi[stim]"] > 0.5
    assert report.loc["facet1", "nmi[cell_type]"] < 0.15
    top = {gene for name, column in model.get_facet_loadings(1).items() for gene in column.nlargest(20).index}
    assert {"ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "ISG20"} <= top


def test_the_kl_weight_and_the_free_bits_are_those_of_the_facet_that_enters(crossed):
    _, model = crossed
    module = model.module
    tensors, outputs = outputs_of(model)
    outputs = outputs | {"z_mean": outputs["z_mean"] + 2}  # far from the prior: no free bits
    with torch.inference_mode():
        generated = module.generative(**module._get_generative_input(tensors, outputs))

        def loss(phase, kl_weight):
            return module.loss(tensors, outputs, generated, phase=phase, kl_weight=kl_weight).loss

        kl = [module.divergence(outputs, j).mean() for j in (0, 1)]
        assert all(value > FREE_BITS * size for value, size in zip(kl, (16, 4), strict=True))
        change = loss("facet1", 1.0) - loss("facet1", 0.25)  # the prior of the main facet has its full weight
        torch.testing.assert_close(change, 0.75 * kl[1], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(loss("mixture", 0.25), loss("mixture", 1.0))
        change = loss("pretrain", 1.0) - loss("pretrain", 0.25)
        torch.testing.assert_close(change, 0.75 * (kl[0] + kl[1]), rtol=1e-3, atol=1e-3)
        # a facet that says less than a quarter of a nat a dimension costs no more than that
        silent = outputs | {name: outputs[name].clone() for name in ("z_mean", "z_log_var")}
        mixture = module.mixtures[1]
        silent["z_mean"][:, 16:] = mixture.means[0]
        silent["z_log_var"][:, 16:] = mixture.clamped_log_var
        assert module.divergence(silent, 1).mean() < 1
        other = silent | {"z_log_var": silent["z_log_var"].clone()}
        other["z_log_var"][:, 16:] += 0.1
        losses = [module.loss(tensors, q, generated, phase="facet1").loss for q in (silent, other)]
        torch.testing.assert_close(*losses)


def three_facets(n_clusters=(3, 2, 4)) -> MFCVAEModule:
    """Untrained, with all facets open and components of different weights."""
    torch.manual_seed(0)
    module = MFCVAEModule(
        12, n_clusters=n_clusters[0], n_facet_clusters=n_clusters[1:], n_latent=3, n_facet_latent=2, n_hidden=8,
        n_batch=2, input_noise=0.0,
    )  # fmt: skip
    module.set_data_statistics(np.zeros(12), np.ones(12), 20.0, np.array([0.3, 0.7]))
    with torch.no_grad():
        for j, mixture in enumerate(module.mixtures):
            mixture.means.normal_()
            mixture.logits.normal_()
            mixture.set_initialised(True)
            module.set_fade(j, 1.0)
    return module.eval()


def test_the_dependence_is_a_sum_over_all_pairs_of_open_facets():
    module = three_facets()
    q = {"z_mean": torch.randn(40, 7), "z_log_var": torch.zeros(40, 7)}
    q["z_mean"][:, 5] += q["z_mean"][:, 3]
    a, b, c = q["z_mean"].split([3, 2, 2], dim=1)
    torch.testing.assert_close(module.facet_dependence(q), hsic(a, b) + hsic(a, c) + hsic(b, c))
    module.close_facet(1)
    torch.testing.assert_close(module.facet_dependence(q), hsic(a, c))
    module.mixtures[2].set_initialised(False)  # has not entered yet
    assert module.facet_dependence(q) == 0


def test_denoised_expression_is_averaged_over_batches_and_the_components_of_other_facets():
    module = three_facets()
    z, batch = torch.randn(5, 7), torch.zeros(5, 1, dtype=torch.long)
    expected = torch.zeros(5, 12)
    with torch.no_grad():
        for k, weight in enumerate(module.mixtures[1].log_weights.exp()):
            for m, other in enumerate(module.mixtures[2].log_weights.exp()):
                means = torch.cat([module.mixtures[1].means[k], module.mixtures[2].means[m]]).expand(5, -1)
                code = torch.cat([z[:, :3], means], dim=1)
                for b, share in enumerate((0.3, 0.7)):
                    scores = module.decoder(code, Covariates(torch.full_like(batch, b))).scores
                    expected += weight * other * share * torch.softmax(scores, dim=1)
        found = module.denoised_expression(z, Covariates(batch))
    torch.testing.assert_close(found.square(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.square().sum(dim=1), torch.ones(5))


def test_an_opened_facet_separates_its_groups_at_unit_scale():
    module = three_facets((3, 0, 0))
    groups = torch.arange(60) % 3
    features = torch.randn(60, 8) * torch.linspace(0.5, 5, 8) + 7
    features[:, 0] += 4 * (groups == 1)
    features[:, 1] += 4 * (groups == 2)
    groups[::10] = -1  # unknown
    module.open_facet(1, features, groups)
    with torch.no_grad():
        mean, log_var = module.heads[1](features).chunk(2, dim=1)
    known = groups >= 0
    torch.testing.assert_close(mean[known].mean(dim=0), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(mean[known].std(dim=0), torch.ones(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_var, torch.full_like(log_var, np.log(0.1)))
    # the components lie on the groups
    expected = torch.stack([mean[groups == k].mean(dim=0) for k in range(3)])
    torch.testing.assert_close(module.mixtures[1].means.detach(), expected, rtol=1e-4, atol=1e-4)
    assert module.mixtures[1].n_components == 3
