from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked

if TYPE_CHECKING:
    from scdeepclust.model import MFCVAE


@checked
def facet_report(model: MFCVAE | Sequence[MFCVAE], obs_keys: str | Sequence[str] = ()) -> pd.DataFrame:
    """What each facet of a model says, and whether it says it again.

    Parameters
    ----------
    model
        A trained model, or several of the same cells, trained with different seeds. The first is reported; the others
        tell how stable its facets are.
    obs_keys
        Columns of ``obs`` to compare the facets with. Numbers with more than 20 different values are cut into ten
        groups of equal size.

    Returns
    -------
    One row a facet, with columns

    - ``n_clusters``, ``n_used``: clusters of the facet, and those with at least 5 cells and 0.1 % of all cells,
    - ``kl``: mean divergence of its code from the prior, in nats; near 0 it says nothing,
    - ``crossing``: for facets that were found, the error of crossed clusters over that of as many ordinary ones; a
      facet with 1 or more was left closed,
    - ``nmi[facet0]``, ...: normalised mutual information with the other facets; facets should not repeat each other,
    - ``nmi[key]`` for each of ``obs_keys``,
    - ``stability``, with several models: mean over the others of the adjusted Rand index with their best facet.

    Raises
    ------
    RuntimeError
        If a model is not trained.
    ValueError
        If a column is missing, or the models have different cells.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(400, 300, n_clusters=3, n_facet_groups=2, depth=200)
    >>> sdc.model.MFCVAE.setup_anndata(adata)
    >>> model = sdc.model.MFCVAE(adata, n_clusters=3, n_facet_clusters=2)
    >>> model.train(pretrain_epochs=6, max_epochs=2, enable_progress_bar=False)
    >>> report = sdc.tl.facet_report(model, ["cell_type", "facet"])
    >>> list(report.columns[-2:])
    ['nmi[cell_type]', 'nmi[facet]']
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    models = list(model) if isinstance(model, Sequence) else [model]
    for each in models:
        if not hasattr(each, "get_facets"):
            raise ValueError(f"model: facets are those of an MFCVAE model, found {type(each).__name__}")
    first, others = models[0], models[1:]
    obs = first.adata.obs
    keys = [obs_keys] if isinstance(obs_keys, str) else list(obs_keys)
    if missing := [key for key in keys if key not in obs]:
        raise ValueError(f"obs_keys: obs has no column {missing[0]!r}; it has {', '.join(map(str, obs.columns))}")
    if any(not other.adata.obs_names.equals(first.adata.obs_names) for other in others):
        raise ValueError("model: the models were trained on different cells; give models of the same cells")
    facets = first.get_facets()
    least = max(5, 1e-3 * len(facets))
    report = pd.DataFrame(
        {
            "n_clusters": [len(facets[name].cat.categories) for name in facets],
            "n_used": [int((facets[name].value_counts() >= least).sum()) for name in facets],
            "kl": first.get_facet_kl().mean().to_numpy(),
            "crossing": [first.crossing_.get(j, np.nan) for j in range(len(facets.columns))],
        },
        index=facets.columns,
    )
    for name in facets:
        report[f"nmi[{name}]"] = [normalized_mutual_info_score(facets[name], facets[other]) for other in facets]
    for key in keys:
        known = obs[key].notna().to_numpy()
        groups = _groups(obs[key][known])
        report[f"nmi[{key}]"] = [normalized_mutual_info_score(groups, facets[name][known]) for name in facets]
    if others:
        tables = [other.get_facets() for other in others]
        report["stability"] = [
            np.mean([max(adjusted_rand_score(facets[name], table[other]) for other in table) for table in tables])
            for name in facets
        ]
    return report


def _groups(values: pd.Series) -> np.ndarray:
    """Codes of the categories of a column; ten groups of equal size of many numbers."""
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 20:
        values = pd.qcut(values, 10, duplicates="drop")
    return pd.factorize(values)[0]
