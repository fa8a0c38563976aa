"""Whatever users give by mistake ends in a documented error before anything has changed, or in the right result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import JUNK, arguments, methods, outcome, state, valid_arguments
from scipy.sparse import csc_matrix, csr_array, csr_matrix

import scdeepclust as sdc
from scdeepclust.train import CountsDataset

OUTCOMES: Counter[str] = Counter()


def cases(n: int) -> Callable:
    """So many random cases; a failing one is printed with a blob that runs it again."""
    return settings(max_examples=n, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))


# -- data --------------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable] = {
    "dense": np.asarray,
    "columns first": np.asfortranarray,
    "csr": csr_matrix,
    "csc": csc_matrix,
    "csr_array": csr_array,
    "matrix": np.matrix,
    "masked": np.ma.masked_array,
    "float16": lambda x: x.astype(np.float16),
    "big-endian": lambda x: x.astype(">f4"),
    "float64": lambda x: x.astype(np.float64),
    "int32": lambda x: x.astype(np.int32),
    "uint8": lambda x: x.astype(np.uint8),
    "bool": lambda x: x.astype(bool),
    "sparse int64": lambda x: csr_matrix(x.astype(np.int64)),
    "object": lambda x: x.astype(object),
    "complex": lambda x: x.astype(complex),
    "text": lambda x: x.astype(str),
}

# A value in the matrix, and whether it is a count.
VALUES = {None: True, 3.0: True, 0.0: True, np.nan: False, np.inf: False, -1.0: False, 0.5: False, 1e30: False}

# Columns that may take the place of the batch, by the codes of the batches; and whether they are batches of the model.
COLUMNS: dict[str, tuple[Callable, bool]] = {
    "as they are": (lambda b: b, True),
    "categories": (lambda b: pd.Categorical(b), True),
    "unused categories": (lambda b: pd.Categorical(b, ["gone", *sorted(set(b))]), True),
    "string": (lambda b: pd.array(list(b), dtype="string"), True),
    "one of them": (lambda b: [b[0]] * len(b), True),
    "missing": (lambda b: [None, *b[1:]], False),
    "new": (lambda b: ["猫", *b[1:]], False),
    "numbers": (lambda b: pd.factorize(np.asarray(b))[0], False),
    "truth values": (lambda b: [True] * len(b), False),
    "mixed": (lambda b: [7, *b[1:]], False),
    "lists": (lambda b: [[1]] * len(b), False),
    "dates": (lambda b: pd.to_datetime(["2026-01-01"] * len(b)), False),
}

# What may be done to names and shapes, and whether the model can still be applied.
SHAPES: dict[str, tuple[Callable, bool]] = {
    "as it is": (lambda a: a, True),
    "view": (lambda a: a[:, :], True),
    "view of a view": (lambda a: a[a.obs_names][:, a.var_names], True),
    "one cell": (lambda a: a[:1].copy(), True),
    "no cells": (lambda a: a[:0].copy(), False),
    "genes in another order": (lambda a: a[:, ::-1].copy(), True),
    "a gene is missing": (lambda a: a[:, 1:].copy(), False),
    "one gene": (lambda a: a[:, :1].copy(), False),
    "cells twice": (lambda a: a[np.repeat(np.arange(a.n_obs), 2)], True),
    "a gene twice": (lambda a: a[:, np.append(np.arange(a.n_vars), 0)].copy(), False),
}


@st.composite
def new_data(draw, clean: anndata.AnnData) -> tuple[anndata.AnnData, np.ndarray, bool]:
    """Cells as a user may give them; their rows in the clean data; whether they are cells of the model."""
    layout, value = draw(st.sampled_from(list(LAYOUTS))), draw(st.sampled_from(list(VALUES)))
    column, shape = draw(st.sampled_from(list(COLUMNS))), draw(st.sampled_from(list(SHAPES)))
    x = np.minimum(clean.X.toarray(), 100)
    if value is not None:
        x[0, draw(st.integers(0, x.shape[1] - 1))] = value
    with np.errstate(all="ignore"):
        x = LAYOUTS[layout](x)
    adata = anndata.AnnData(x, obs=clean.obs.copy(), var=clean.var.copy())
    adata.obs["batch"] = COLUMNS[column][0](list(clean.obs["batch"]))
    adata.obs["row"] = np.arange(adata.n_obs)
    adata = SHAPES[shape][0](adata)
    good = VALUES[value] and COLUMNS[column][1] and SHAPES[shape][1] and layout not in ("object", "complex", "text")
    lost = value in (0.5, -1.0, np.inf, np.nan, 1e30) and layout in ("int32", "uint8", "bool", "sparse int64")
    return adata, adata.obs["row"].to_numpy(), good or (lost and None)


def check_getter(
    model: Any, clean: anndata.AnnData, adata: anndata.AnnData, rows: np.ndarray, good: bool | None
) -> str:
    """Probabilities of these cells are those of the same counts in the plainest form, or there is an error in words."""
    before = state(adata)
    kind, result = outcome(model.predict, {"adata": adata, "soft": True})
    assert kind != "fault", result
    assert state(adata) == before
    assert good is None or (kind == "result") == good, result
    if kind == "result":
        genes = adata.var_names.get_indexer(clean.var_names)
        x = csr_matrix(np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X, np.float32)[:, genes])
        plain = anndata.AnnData(
            x, obs=clean.obs.iloc[rows].assign(batch=list(map(str, adata.obs["batch"]))), var=clean.var
        )
        np.testing.assert_allclose(result, model.predict(plain, soft=True), atol=1e-5)
    return kind


# -- tests -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tiny, saved_models) -> dict[str, Any]:
    """The five models, trained once."""
    return {
        name: getattr(sdc.model, name).load(str(saved_models / name), tiny.copy(), accelerator="cpu")
        for name in sdc.model.__all__
    }


@pytest.fixture(scope="module")
def few(tiny) -> anndata.AnnData:
    """Ten cells."""
    return tiny[:10].copy()


def run_data(models: dict[str, Any], few: anndata.AnnData, n: int) -> None:
    @cases(n)
    @given(st.sampled_from(sorted(models)), new_data(few))
    def new_cells(name, data):
        OUTCOMES[f"new cells, {check_getter(models[name], few, *data)}"] += 1

    new_cells()


def run_setup(few: anndata.AnnData, n: int) -> None:
    @cases(n)
    @given(
        st.sampled_from(sdc.model.__all__), new_data(few), st.sampled_from(["batch", "kit", "nowhere", 3, ["batch"]])
    )
    def registration(name, data, batch_key):
        adata, before = data[0], state(data[0])
        kind, words = outcome(getattr(sdc.model, name).setup_anndata, {"adata": adata, "batch_key": batch_key})
        OUTCOMES[f"setup, {kind}"] += 1
        assert kind != "fault", words
        if kind == "refused":
            assert state(adata) == before
            return
        dataset = CountsDataset(getattr(sdc.model, name)._get_most_recent_anndata_manager(adata))
        x = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
        np.testing.assert_array_equal(dataset[np.arange(adata.n_obs)]["X"], x.astype(np.float32))
        codes = pd.Series(adata.obs["_scvi_batch"].to_numpy()).groupby(list(map(str, adata.obs[batch_key])))
        assert (codes.nunique() == 1).all()
        assert sorted(codes.first()) == list(range(len(codes)))

    registration()


def run_arguments(models: dict[str, Any], n: int) -> None:
    calls = [(name, method) for name, model in sorted(models.items()) for method in methods(model)]
    calls = [(name, method) for name, method in calls if arguments(getattr(models[name], method))]

    @cases(n)
    @given(st.data())
    def junk(data):
        name, method = data.draw(st.sampled_from(calls))
        call = getattr(models[name], method)
        argument, junk = data.draw(st.sampled_from(arguments(call))), data.draw(st.sampled_from(sorted(JUNK)))
        before = state(models[name].adata)
        kind, words = outcome(call, valid_arguments(call) | {argument: JUNK[junk]})
        if kind == "fault" and words == "NaN in the result" and method == "get_transition_matrix":
            kind = "result"  # documented: the row of a state of which the data do not say where it goes
        OUTCOMES[f"arguments, {kind}"] += 1
        assert kind != "fault", words
        if method != "write_back" or kind != "result":
            assert state(models[name].adata) == before

    junk()


def test_new_cells_of_any_kind(models, few):
    run_data(models, few, 100)


def test_registration_of_data_of_any_kind(few):
    run_setup(few, 100)


def test_arguments_of_any_kind(models):
    run_arguments(models, 100)


@pytest.mark.slow
def test_many_more_cases(models, few, capsys):
    OUTCOMES.clear()
    run_data(models, few, 3000)
    run_setup(few, 7000)
    run_arguments(models, 4000)
    with capsys.disabled():
        print("\n" + "\n".join(f"{name}: {count}" for name, count in sorted(OUTCOMES.items())))
    assert min(OUTCOMES[f"{what}, result"] for what in ("new cells", "setup", "arguments")) > 300
