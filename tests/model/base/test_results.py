"""What a second `write_back` under one key takes away, and what it leaves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scdeepclust.model._base._results import write_results
from scdeepclust.model._systems import COMMON, SYSTEMS

SLOTS = ("obs", "obsm", "varm", "layers", "uns")


def names(adata):
    return {(slot, name) for slot in SLOTS for name in getattr(adata, slot)}


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_all_that_a_model_writes_is_in_its_record_and_is_removed_by_another_model(loaded, tiny, system):
    adata = tiny.copy()
    before = names(adata)
    loaded(system.name).write_back(adata, key_added="k", confidence="posterior")
    records = {(w.slot, w.name.format(key="k")) for w in (*COMMON, *system.writes)}
    facets = {(slot, name.replace("facet1", "facet0")) for slot, name in names(adata) - before}
    assert facets == records
    adata.obs["k_mine"] = "untouched"
    other = "SCDeepCluster" if system.name != "SCDeepCluster" else "GMVAE"
    loaded(other).write_back(adata, key_added="k", confidence="posterior")
    common = {(w.slot, w.name.format(key="k")) for w in COMMON}
    assert names(adata) - before - {("obs", "k_mine")} == common
    assert adata.uns["k"]["model"] == other


def test_other_keys_keep_what_they_own(loaded, tiny):
    adata = tiny.copy()
    facets, plain = loaded("MFCVAE"), loaded("GMVAE")
    for key in ("a", "a2", "a_facet1", "b"):
        facets.write_back(adata, key_added=key, confidence="posterior")
    kept = names(adata)
    plain.write_back(adata, key_added="a", confidence="posterior")
    gone = kept - names(adata)
    assert gone == {
        (w.slot, w.name.format(key="a").replace("facet0", f"facet{j}"))
        for w in next(s for s in SYSTEMS if s.name == "MFCVAE").writes
        for j in (0, 1)
    } - {(w.slot, w.name.format(key="a_facet1")) for w in COMMON} - {("obs", "a_facet1")}
    assert {("obs", "a2_facet1"), ("varm", "b_facet1_loadings"), ("obs", "a_facet1_facet0")} <= names(adata)


def test_columns_of_the_user_with_such_names_stay_when_nothing_was_written_before(loaded, tiny):
    adata = tiny.copy()
    adata.obs["gmvae_node"] = adata.obs["gmvae_facet1"] = 1.0
    loaded("GMVAE").write_back(adata, confidence="posterior")
    loaded("GMVAE").write_back(adata, confidence="posterior")
    assert {"gmvae_node", "gmvae_facet1"} <= set(adata.obs)  # GMVAE writes neither


@pytest.mark.parametrize(
    ("after", "colors"),
    [(["0", "1", "2"], ["r", "g", "b"]), (["0", "2"], ["r", "b"]), (["0", "1", "2", "3"], None), (None, None)],
)
def test_colors_of_clusters_that_vanished_go_with_them(tiny, after, colors):
    adata = tiny.copy()
    adata.uns["k"], adata.uns["k_colors"], adata.uns["k2_colors"] = {"model": "GMVAE"}, ["r", "g", "b"], ["c"]
    adata.obs["k"] = pd.Categorical.from_codes(np.arange(120) % 3, ["0", "1", "2"])
    results = [("uns", "k", {"model": "GMVAE"})]
    if after is not None:
        results.append(("obs", "k", pd.Categorical.from_codes(np.arange(120) % len(after), after)))
    write_results(adata, "k", results)
    assert adata.uns.get("k_colors") == colors
    assert adata.uns["k2_colors"] == ["c"]
    assert ("k" in adata.obs) == (after is not None)


@pytest.mark.parametrize("key", [3, "", "a/b", "batch", "age"])
def test_keys_that_would_overwrite_what_the_model_reads(loaded, tiny, key):
    model = loaded("GMVAE")
    before = names(model.adata)
    with pytest.raises(ValueError, match=f"`key_added`.*{key!r}"):
        model.write_back(key_added=key, confidence="posterior")
    assert names(model.adata) == before
