"""Labels that were given other names after they were written, as users do when they annotate clusters."""

from __future__ import annotations

import numpy as np


def written_clusters(codes: np.ndarray, probabilities: np.ndarray) -> dict[int, int]:
    """Which cluster (column of the stored probabilities) each label stands for.

    Parameters
    ----------
    codes
        Label of each cell as a code, (n,).
    probabilities
        Probabilities as they were written, cells x clusters.

    Returns
    -------
    ``{code: column}``; empty if labels were joined, split or moved, so that other names do not explain them.

    Examples
    --------
    >>> import numpy as np
    >>> written_clusters(np.array([1, 1, 0]), np.eye(3)[[0, 0, 2]])
    {0: 2, 1: 0}
    """
    pairs = np.unique(np.stack([codes, np.asarray(probabilities).argmax(axis=1)]), axis=1)
    one_to_one = all(len(np.unique(side)) == pairs.shape[1] for side in pairs)
    return dict(pairs.T.tolist()) if one_to_one else {}
