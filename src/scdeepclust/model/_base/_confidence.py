"""How likely each cell is to be in its cluster again: the clusters are looked for in other halves of the counts.

Half of the counts is noisier than the cell sequenced again would be, while the encoder stays the same one. So this says
which cells and clusters are shaky; how many repeat at all is also asked of a second fit, to half of the counts.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from anndata import AnnData

from scdeepclust.train import (
    MAX_POINTS,
    Profiles,
    cluster_profiles,
    given_labels,
    initial_labels,
    matched,
    misfit,
    nearest,
    novelty,
    repeat_intercept,
    repeat_probability,
)

from ._checks import check_choice
from ._data import Indices
from ._halves import csr_of, half_points, halve
from ._refit import RefitMixin
from ._start import denoised_components, hash_of_names

# What a confidence is: of a repeat, or of this one fit.
Confidence = Literal["repeat", "posterior"]

# Ways in which counts are halved to look for the clusters again, in both halves.
N_RESTART_HALVINGS = 4


class Evidence(NamedTuple):
    """What says where cells would be again, in one clustering."""

    probabilities: np.ndarray  # assignment probabilities, (n, K)
    votes: np.ndarray  # share of the restarts that put a cell into each cluster, (n, K)

    @property
    def labels(self) -> np.ndarray:
        """Cluster of each cell, (n,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def own(self) -> np.ndarray:
        """Probability of the cluster of each cell, (n,)."""
        return self.probabilities.max(axis=1)

    @property
    def share(self) -> np.ndarray:
        """Share of the restarts that put each cell into its cluster, (n,)."""
        return np.take_along_axis(self.votes, self.labels[:, None], axis=1)[:, 0]

    def likely(self, intercept: float) -> np.ndarray:
        """How likely a repeat puts a cell into each cluster (n, K).

        Its own cluster has the confidence, the others share the rest by the votes of the restarts and the assignment
        probabilities.
        """
        own, cells = repeat_probability(self.own, self.share, intercept), np.arange(len(self.votes))
        others = self.votes + self.probabilities + 1e-3  # no cluster is out of the question
        others[cells, self.labels] = 0
        likely = others * ((1 - own) / np.maximum(others.sum(axis=1), 1e-9))[:, None]
        likely[cells, self.labels] = own
        return likely


class ConfidenceMixin(RefitMixin):
    """Confidence of cells in the clusters of a model."""

    restarts_: dict[str, Any] | None = None

    def get_confidence(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        batch_size: int | None = None,
        *,
        confidence: Confidence = "repeat",
    ) -> np.ndarray:
        """How far the cluster of each cell can be relied on.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`predict`.
        confidence
            ``"repeat"``: the probability that an independent repeat, the cell sequenced and the model fitted again,
            puts the cell into the same cluster. The first call looks for the clusters again in halves of the counts of
            the cells of the fit, and fits the model once more, to at most 20,000 cells: one and a half times to twice
            the time of the fit. What it learns is kept, and saved with the model.
            ``"posterior"``: the highest assignment probability, which says how sure this one fit is.

        Returns
        -------
        Array of shape (n_cells,), float32. Counts are halved at random: calls for other cells give values that differ
        by a few hundredths.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the model has no cells to look for clusters in, and has not done so before.

        Notes
        -----
        A repeat can share an error: a cell can be sure of its cluster and the cluster be no cell type.
        :func:`scdeepclust.tl.check_confidence` measures how well the values hold on the data of the model.
        """
        self._check_if_trained(warn=False)
        check_choice("confidence", confidence, get_args(Confidence))
        cells, rows = self._cells(adata, indices)
        return self._confidences(cells, rows, batch_size, confidence=confidence)[0]

    def _confidences(
        self, adata=None, indices=None, batch_size=None, *, confidence: Confidence = "repeat"
    ) -> list[np.ndarray]:
        """Confidence (n,) float32 in each clustering that the model has; the first is that of ``predict``."""
        if confidence == "posterior":
            values = [p.max(axis=1) for p in self._all_assignments(adata, indices, batch_size)]
        else:
            restarts = self._restarts()
            values = [
                repeat_probability(evidence.own, evidence.share, intercept)
                for evidence, intercept in zip(
                    self._evidence(restarts, adata, indices, batch_size), restarts["intercepts"], strict=True
                )
            ]
        return [value.astype(np.float32) for value in values]

    def get_novelty(
        self, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> np.ndarray:
        """How badly new cells fit the cluster that they are put into.

        Parameters
        ----------
        adata
            Cells that were not of the fit; by default those of a query.
        indices, batch_size
            As in :meth:`predict`.

        Returns
        -------
        Share of the cells of the fit, at about the same depth, that fit their own cluster better, (n_cells,) float32.
        Above .95 are 5 % of the cells of known kinds; a cell of a kind that the fit did not have is close to 1 if its
        kind has genes of its own, and no novelty at all if it differs by degree from one that was there.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If these are the cells of the fit, or the model has not looked at those and does not have them any more.

        Notes
        -----
        A cell is compared with the mean profile of the other cells of its cluster, by the 30 genes that it has most in
        excess (squared standard deviations of a negative binomial). Cells of another protocol have other genes in
        excess, and are new in that sense.
        """
        self._check_if_trained(warn=False)
        cells, rows = self._cells(adata, indices)
        if self._restarts()["names"] == hash_of_names(cells):
            raise ValueError("`adata` holds the cells of the fit: novelty is that of other cells.")
        return self._novelty(cells, rows, batch_size)

    @torch.inference_mode()
    def _novelty(self, adata: AnnData, indices: Indices = None, batch_size: int | None = None) -> np.ndarray:
        profiles = Profiles(**self._restarts()["profiles"])
        self.module.eval()
        blocks = []
        for tensors in self._minibatches(adata, indices, batch_size):
            inputs = self.module._get_inference_input(tensors)
            labels, counts = self._assignments(inputs)[0].argmax(axis=1), csr_of(inputs["counts"])
            totals = counts.sum(axis=1).A1
            blocks.append(novelty(profiles, misfit(profiles, counts, labels, own=False), totals))
        return np.concatenate(blocks).astype(np.float32)

    @torch.inference_mode()
    def _all_assignments(self, adata=None, indices=None, batch_size=None) -> list[np.ndarray]:
        """Assignment probabilities (n, K) of each clustering that the model has."""
        self.module.eval()
        minibatches = self._minibatches(adata, indices, batch_size)
        blocks = [self._assignments(self.module._get_inference_input(tensors)) for tensors in minibatches]
        return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]

    @torch.inference_mode()
    def _evidence(self, restarts: dict[str, Any], adata=None, indices=None, batch_size=None) -> list[Evidence]:
        """What says where cells would be again, for each clustering that the model has."""
        generator = torch.Generator().manual_seed(self._start_seed)
        self.module.eval()
        blocks = []
        for tensors in self._minibatches(adata, indices, batch_size):
            inputs = self.module._get_inference_input(tensors)
            probabilities = self._assignments(inputs)
            votes = self._votes(restarts, inputs, probabilities, generator)
            blocks.append([Evidence(*pair) for pair in zip(probabilities, votes, strict=True)])
        return [
            Evidence(*(np.concatenate(values) for values in zip(*of_clustering, strict=True)))
            for of_clustering in zip(*blocks, strict=True)
        ]

    def _assignments(self, inputs: dict) -> list[np.ndarray]:
        """Assignment probabilities (B, K) of each clustering."""
        outputs = self.module.inference(**inputs)
        assignments = self.module.log_assignments_of_all(outputs, inputs["covariates"])
        return [values.float().exp().cpu().numpy() for values in assignments]

    def _votes(
        self, restarts: dict[str, Any], inputs: dict, probabilities: list[np.ndarray], generator: torch.Generator
    ) -> list[np.ndarray]:
        """Share of the restarts that put cells into each cluster (B, K), for each clustering."""
        votes = [np.zeros_like(values) for values in probabilities]
        n_restarts, rows = 2 * N_RESTART_HALVINGS, np.arange(len(votes[0]))
        for first in range(0, n_restarts, 2):
            for number, half in enumerate(half_points(self.module, inputs, restarts["components"], generator), first):
                place = restarts["partners"][number][nearest(half.points, restarts["centers"][number])]
                votes[0][rows[place >= 0], place[place >= 0]] += 1 / n_restarts
                # clusterings beside that of `predict` are not looked for again: what their clusters say of the half
                for j, values in enumerate(self._assignments(half.inputs)[1:], 1):
                    votes[j][rows, values.argmax(axis=1)] += 1 / n_restarts
        return votes

    @property
    def _knows_repeats(self) -> bool:
        """Whether the model has looked for its clusters again, or has the cells to do so."""
        return self.restarts_ is not None or (self.adata is not None and not self._keeps_reference_clusters)

    def _without_repeats(self) -> str:
        """Why there is no confidence from repeats, and the remedy."""
        who = "reference" if self._keeps_reference_clusters else "model"
        return (
            f"the {who} was saved without what repeats tell, which takes the cells of its fit. Run "
            f"`get_confidence` or `write_back` of the {who} before `save`, or ask for `confidence='posterior'`."
        )

    def _restarts(self) -> dict[str, Any]:
        """Where the clusters lie when they are looked for again, and which cluster of the model each of those is."""
        if self.restarts_ is not None:
            return self.restarts_
        if not self._knows_repeats:
            raise ValueError(f"`confidence='repeat'`: {self._without_repeats()}")
        cells = np.sort(self.train_indices)
        if len(cells) > MAX_POINTS:
            cells = np.sort(np.random.default_rng(self._start_seed).choice(cells, MAX_POINTS, replace=False))
        components = denoised_components(self._denoised_blocks, cells, self.module.n_input, self._start_seed)
        self.module.eval()
        halvings = [
            halve(self.module, self._minibatches(indices=cells), components, self._start_seed + number).points
            for number in range(N_RESTART_HALVINGS)
        ]
        labels = self._probabilities(indices=cells).argmax(axis=1)
        centers, partners = [], []
        for number, pair in enumerate(halvings):
            support = [pair, halvings[(number + 1) % N_RESTART_HALVINGS]]
            for half, points in enumerate(pair):
                found = self._labels_again(points, cells, support, self._start_seed + 2 * number + half + 1)
                found = np.unique(found, return_inverse=True)[1]
                centers.append(np.stack([points[found == k].mean(axis=0) for k in range(found.max() + 1)]))
                partners.append(matched(labels, found))
        restarts = {"components": components, "centers": centers, "partners": partners}
        profiles = cluster_profiles(self._counts_of(cells), labels, self.module.n_clusters)
        self.restarts_ = (
            restarts
            | self._calibrated(restarts, cells)
            | {
                "profiles": profiles._asdict(),
                "names": hash_of_names(self.adata),
            }
        )
        return self.restarts_

    def _labels_again(
        self, points: np.ndarray, cells: np.ndarray, support: list[tuple[np.ndarray, np.ndarray]], seed: int
    ) -> np.ndarray:
        """Labels (n,) 0..K-1 that a fit would start from, had it only half of the counts."""
        n_clusters = None if self.finds_n_clusters_ else self.n_clusters
        if not isinstance(self._init, str):
            return given_labels(self._init, self.adata.n_obs, None)[cells]
        found = initial_labels(points, self._init, n_clusters, n_init=self._n_init, seed=seed)
        return self._supported_labels(cells, found, support) if n_clusters is None else found

    def _calibrated(self, restarts: dict[str, Any], cells: np.ndarray) -> dict[str, Any]:
        """What another fit, to half of the counts, says of the restarts.

        ``intercepts``: of the log-odds of a repeat, for each clustering. Restarts know nothing of the luck of another
        fit, and another fit is a single one: as many cells are to repeat as in the mean of both. ``needed``: how
        unlikely a cluster has to be called for the other fit to have put a cell there, in a third of the cells that
        the intercepts do not know.
        """
        counts, _ = self._halved_counts(cells, self._start_seed)
        some = np.flatnonzero(np.diff(counts.indptr))  # cells that have counts
        with self._refit(counts[some], cells[some], self._start_seed + 1) as refit:
            others = [values.argmax(axis=1) for values in refit._all_assignments()]
        mixed = np.random.default_rng(self._start_seed).permutation(len(some))
        third, rest = np.split(mixed, [max(len(some) // 3, 1)])
        evidences = [Evidence(*(values[some] for values in e)) for e in self._evidence(restarts, indices=cells)]
        agains = [matched(e.labels, other)[other] for e, other in zip(evidences, others, strict=True)]
        intercepts = []
        for evidence, again in zip(evidences, agains, strict=True):
            repeats = (again == evidence.labels)[rest if len(rest) else third]
            rate = float(evidence.share.mean() + repeats.mean()) / 2
            intercepts.append(repeat_intercept(evidence.own, evidence.share, rate))
        likely, again = evidences[0].likely(intercepts[0])[third], agains[0][third]
        needed = np.where(again < 0, 1.0, 1 - likely[np.arange(len(third)), again])
        return {"intercepts": intercepts, "needed": np.sort(needed)}
