"""Gates read back from an AnnData object, with the expression behind them. For `tl` and `pl`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scdeepclust._keys import ResultKeys
from scdeepclust.tl._labels import written_clusters

if TYPE_CHECKING:
    from anndata import AnnData

# Cells made dense at a time, and the bound of standardised expression: both as in the model.
_BLOCK = 4096
_BOUND = 10.0


class GatedData:
    """Labels, gates and log-normalised expression of the genes that a gated model was trained on.

    Parameters
    ----------
    adata
        Data after `write_back` of a gated model.
    key
        Key of the results.

    Raises
    ------
    ValueError
        If the results are not there.
    """

    def __init__(self, adata: AnnData, key: str):
        keys = ResultKeys(key)
        needed = {"obs": keys.labels, "layers": keys.gates, "varm": keys.global_gates, "uns": keys.uns}
        for slot, name in needed.items():
            if name not in getattr(adata, slot):
                raise ValueError(
                    f"`key`: `adata.{slot}` has no {name!r}. Gates are stored by `model.write_back(adata)` of an IDC "
                    "model; `key` is its `key_added`."
                )
        global_gates = adata.varm[keys.global_gates]
        used = ~np.isnan(np.asarray(global_gates, dtype=float)).any(axis=1)
        self.genes = adata.var_names[used]
        self.labels = pd.Categorical(adata.obs[keys.labels])
        # of the labels as they are called now; missing for a label that is no cluster of the model any more
        names = _current_names(adata, keys, self.labels, _names(global_gates))
        gates = pd.DataFrame(np.asarray(global_gates, dtype=float)[used], index=self.genes, columns=names)
        self.global_gates = gates.reindex(columns=self.labels.categories)
        self.gates = csr_matrix(adata.layers[keys.gates])[:, used]
        layer = adata.uns[keys.uns]["setup"].get("layer")
        self.counts = csr_matrix(adata.X if layer is None else adata.layers[layer])[:, used]

    def log_normalised(self) -> csr_matrix:
        """log1p of counts scaled to 10,000 a cell."""
        totals = np.asarray(self.counts.sum(axis=1)).ravel()
        scaled = self.counts.astype(np.float32)
        scaled.data = np.log1p(scaled.data * np.repeat(1e4 / np.maximum(totals, 1), np.diff(scaled.indptr)))
        return scaled

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of cells: their rows, gates (n, G), and standardised expression (n, G)."""
        expression = self.log_normalised()
        mean = np.asarray(expression.mean(axis=0)).ravel()
        variance = np.asarray(expression.multiply(expression).mean(axis=0)).ravel() - mean**2
        sd = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1.0)
        rows = np.arange(len(self.labels)) if rows is None else rows
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            u = np.clip((expression[block].toarray() - mean) / sd, -_BOUND, _BOUND)
            yield block, self.gates[block].toarray(), u

    def cluster_means(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """Of each gene in each cluster (genes x clusters): mean gate, share of cells open, mean gated expression."""
        k = len(self.labels.categories)
        sums = np.zeros((3, k, len(self.genes)))
        for rows, gates, u in self.blocks():
            member = np.eye(k)[self.labels.codes[rows]].T  # (K, n)
            for total, values in zip(sums, (gates, gates > 0, gates * u), strict=True):
                total += member @ values
        sizes = np.maximum(np.bincount(self.labels.codes, minlength=k), 1)[:, None]
        mean, opened, contribution = (
            pd.DataFrame((total / sizes).T, index=self.genes, columns=self.labels.categories) for total in sums
        )
        return mean, opened, contribution


def _current_names(adata: AnnData, keys: ResultKeys, labels: pd.Categorical, names: list[str]) -> list:
    """The label that each cluster has now, or its own name where that says nothing."""
    if keys.probabilities not in adata.obsm:
        return names
    of_labels = written_clusters(labels.codes, adata.obsm[keys.probabilities])
    label_of = {cluster: labels.categories[code] for code, cluster in of_labels.items()}
    return [label_of.get(cluster, f"no label, {name}") for cluster, name in enumerate(names)]


def _names(global_gates) -> list[str]:
    return [str(name) for name in getattr(global_gates, "columns", range(global_gates.shape[1]))]
