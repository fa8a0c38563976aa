"""Clusters made one of several: the clustering phase once more, from their labels joined."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from scdeepclust.train import undone_on_failure

from ._start import StartsMixin


class MergeMixin(StartsMixin):
    """Clusters that can be merged."""

    def merge_clusters(self, groups: Mapping[str, str], max_epochs: int | None = None, **train_kwargs) -> None:
        """Make one cluster of several, and train the clustering phase from there.

        Labels, probabilities and whatever else the model knows of its clusters are then those of the merged ones, which
        are numbered by size. The networks go on from where they are; a few cells at the borders can change sides. In a
        SOMVAE a cluster is one region of the map: of two that do not touch only one can be the merged one.

        Parameters
        ----------
        groups
            For each cluster the name of its group; those with the same name are merged, those that are not named stay
            as they are. For example ``tl.cluster_tree(model).cut(5)``, or ``{"3": "T", "7": "T"}``.
        max_epochs, **train_kwargs
            As in :meth:`train`.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the model has no data or maps a query, a cluster does not exist, or nothing is to be merged. Whatever
            goes wrong, the model is as it was before.

        Examples
        --------
        >>> import scdeepclust as sdc
        >>> adata = sdc.datasets.pbmc68k_reduced()
        >>> sdc.model.SCDeepCluster.setup_anndata(adata)
        >>> model = sdc.model.SCDeepCluster(adata, n_clusters=8)
        >>> model.train(pretrain_epochs=2, max_epochs=1, enable_progress_bar=False)
        >>> model.merge_clusters({"6": "few", "7": "few"}, max_epochs=1, enable_progress_bar=False)
        >>> model.n_clusters
        7
        """
        self._check_if_trained(warn=False)
        if self.adata is None or self._keeps_reference_clusters:
            raise ValueError("`merge_clusters` needs the cells of the fit: a model with its data that maps no query.")
        names = [str(k) for k in range(self.n_clusters)]
        if not isinstance(groups, Mapping) or not set(map(str, groups)) <= set(names):
            raise ValueError(f"`groups` must map clusters ({', '.join(names)}) to names of groups; found {groups!r}.")
        groups = {str(cluster): group for cluster, group in groups.items()}
        # a cluster that is not named is a group of its own, whatever the others are called
        group = pd.factorize(pd.Series([(name in groups, groups.get(name, name)) for name in names]))[0]
        merged = group[self._probabilities().argmax(axis=1)]
        if len(np.unique(group)) == len(names):
            raise ValueError("`groups` merges nothing: each group has one cluster.")
        with undone_on_failure(self):
            self._given_start = merged
            try:
                self.train(max_epochs, pretrain_epochs=0, **train_kwargs)
            finally:
                self._given_start = None
