from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scdeepclust.tl._arguments import checked, with_data

if TYPE_CHECKING:
    import pandas as pd

    from scdeepclust.model import GMVAE, SCDeepCluster


@checked
def estimate_n_clusters(
    model: GMVAE | SCDeepCluster, *, max_clusters: int = 40, n_repeats: int = 5, seed: int = 0
) -> pd.DataFrame:
    """A curve and a shortlist for the number of clusters.

    Micro-clusters in the denoised expression of the model are merged pair by pair. At each number of clusters this
    tells how far apart the two closest ones are, and how well the clusters are found again from half of the cells.
    There is no true number: cell types have subtypes. Read the shortlist as the numbers worth looking at.

    Parameters
    ----------
    model
        A trained model, whatever its own number of clusters (also None).
    max_clusters
        Largest number considered.
    n_repeats
        Repeats from random halves of the cells, for the stability.
    seed
        Seed of the repeats.

    Returns
    -------
    Indexed by ``n_clusters``, 2 to ``max_clusters``, with columns

    - ``separation``: distance of the two closest clusters, weighted by their size, in units of the spread of all
      cells. It falls with the number of clusters.
    - ``gap``: log of the ratio of this separation to that of one cluster more. Large where one more cluster would
      split something compact.
    - ``stability``: mean adjusted Rand index between the clusters and those found from half of the cells.
    - ``rank``: 1 for the number of Leiden communities (where ``n_clusters=None`` starts), 2 and 3 for alternatives
      with a large gap, 0 for all others.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If ``max_clusters`` or ``n_repeats`` is too small, or there are too few cells.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=4, marker_log_fold_change=3, depth=200)
    >>> sdc.model.GMVAE.setup_anndata(adata)
    >>> model = sdc.model.GMVAE(adata, n_clusters=8)
    >>> model.train(pretrain_epochs=30, max_epochs=0, enable_progress_bar=False)
    >>> table = sdc.tl.estimate_n_clusters(model, max_clusters=12)
    >>> list(table)
    ['separation', 'gap', 'stability', 'rank']
    >>> best = table["rank"].eq(1).idxmax()
    """
    from scdeepclust.train import count_table

    n_obs = with_data(model).n_obs
    if max_clusters < 3 or n_repeats < 1:
        raise ValueError(
            f"`max_clusters` must be at least 3 and `n_repeats` at least 1; found {max_clusters} and {n_repeats}."
        )
    if n_obs < 8 * max_clusters:
        raise ValueError(
            f"`max_clusters`={max_clusters} needs at least {8 * max_clusters} cells, 4 a cluster in each half; there "
            f"are {n_obs}. Ask for fewer clusters."
        )
    points = model._start_points(np.arange(n_obs))
    return count_table(points, max_clusters=max_clusters, n_repeats=n_repeats, seed=seed)
