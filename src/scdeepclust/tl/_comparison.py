from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust.tl._compare_plan import OPEN, SEARCHED, setting_name
from scdeepclust.tl._compare_runs import DATA

if TYPE_CHECKING:
    from anndata import AnnData

ABOUT = "comparison.json"
_FIRST = ("repeatability", "agreement", "confidence", "batch mixing", "ARI", "NMI", "accuracy", "F1 rare")
_LAST = ("n_clusters", "seconds", "peak_mb")


@dataclass(frozen=True)
class Comparison:
    """What :func:`scdeepclust.tl.compare` left in a folder, as tables.

    Parameters
    ----------
    folder
        The folder.
    about
        Its settings.
    files
        Files of finished runs by their name.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> options = {"models": ["gmvae"], "baselines": ["pca"], "pretrain_epochs": 2, "max_epochs": 1, "n_jobs": 1}
    >>> result = sdc.tl.compare(adata, "comparison", seeds=2, progress=False, **options)
    >>> list(result.runs.columns[:3]), list(result.labels.shape)
    (['method', 'setting', 'seed'], [200, 4])
    """

    folder: Path
    about: dict[str, Any]
    files: dict[str, Path]

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run: method, setting of K, seed, scores, seconds, peak memory in MB, machine."""
        rows = {}
        for name, path in self.files.items():
            with np.load(path) as file:
                about = json.loads(str(file["about"]))
                confidence = float(np.median(file["confidence"])) if "confidence" in file else np.nan
            rows[name] = {
                "method": about["method"], "setting": setting_name(about["k"]), "seed": about["seed"],
                "confidence": confidence, **about["scores"], "seconds": about["seconds"],
                "peak_mb": about["peak_mb"], "host": about["host"],
            }  # fmt: skip
        table = pd.DataFrame.from_dict(rows, orient="index")
        first = [name for name in ("method", "setting", "seed", *_FIRST) if name in table]
        last = [name for name in (*_LAST, "host") if name in table]
        return table[[*first, *(name for name in table if name not in (*first, *last)), *last]]

    @cached_property
    def labels(self) -> pd.DataFrame:
        """Label of each cell in each run, cells x runs."""
        columns = {}
        for name, path in self.files.items():
            with np.load(path) as file:
                columns[name] = pd.Categorical.from_codes(file["codes"], file["names"])
        return pd.DataFrame(columns, index=self._obs.index)

    def result(self, run: str) -> dict[str, np.ndarray]:
        """Arrays of one run: ``labels``, ``embedding``, and ``confidence`` where the method tells one."""
        with np.load(self.files[run]) as file:
            arrays = {name: file[name] for name in ("confidence", "embedding") if name in file}
            return {"labels": file["names"][file["codes"]], **arrays}

    def about_run(self, run: str) -> dict[str, Any]:
        """Method, seed, scores, seconds and versions of one run."""
        with np.load(self.files[run]) as file:
            return json.loads(str(file["about"]))

    @cached_property
    def agreement(self) -> dict[str, pd.DataFrame]:
        """For each setting of K, methods x methods: mean adjusted Rand index between their runs.

        On the diagonal between the seeds of one method, which is its repeatability; missing with a single seed.
        """
        from sklearn.metrics import adjusted_rand_score

        tables = {}
        for setting, runs in self.runs.groupby("setting", sort=False):
            codes = {name: self.labels[name].cat.codes.to_numpy() for name in runs.index}
            methods = list(dict.fromkeys(runs["method"]))
            sums, counts = np.zeros((len(methods),) * 2), np.zeros((len(methods),) * 2)
            for i, a in enumerate(runs.index):
                for b in runs.index[:i]:
                    row, column = sorted(methods.index(runs["method"][name]) for name in (a, b))
                    value = adjusted_rand_score(codes[a], codes[b])
                    for place in {(row, column), (column, row)}:
                        sums[place] += value
                        counts[place] += 1
            with np.errstate(invalid="ignore"):
                tables[str(setting)] = pd.DataFrame(sums / counts, index=methods, columns=methods)
        return tables

    @cached_property
    def summary(self) -> dict[str, pd.DataFrame]:
        """For each setting of K one row a method: means over seeds.

        ``repeatability`` is the mean adjusted Rand index between seeds, ``agreement`` that with the runs of all other
        methods (both need no labels), ``batch mixing`` iLISI of the embedding, ``F1 rare`` the mean over types of less
        than 1 % of the cells (or the rarest one).
        """
        tables = {}
        for setting, runs in self.runs.groupby("setting", sort=False):
            pairs = self.agreement[str(setting)]
            table = runs.drop(columns=["setting", "seed", "host"]).groupby("method", sort=False).mean()
            off_diagonal = pairs.where(~np.eye(len(pairs), dtype=bool))
            table.insert(0, "agreement", off_diagonal.mean(axis=1))
            table.insert(0, "repeatability", np.diag(pairs))
            table.insert(0, "seeds", runs.groupby("method", sort=False).size())
            table.index.name = "method"
            tables[str(setting)] = table.dropna(axis=1, how="all")
        return dict(sorted(tables.items(), key=lambda item: _setting_order(item[0])))

    def best(self) -> str:
        """Run to look at first: of the model that repeats itself and agrees with the others most, its typical seed.

        Labels have no say, so that it can be taken where there are none. Baselines are candidates too. A method that
        only ever finds one cluster comes last: it cannot but repeat itself.
        """
        setting = next(name for name in self.summary if name != setting_name(SEARCHED))
        table = self.summary[setting]
        points = table.reindex(columns=["repeatability", "agreement"]).mean(axis=1)
        method = points.mask(table["n_clusters"] <= 1).fillna(-1).idxmax()
        candidates = self.runs.index[(self.runs["method"] == method) & (self.runs["setting"] == setting)]
        return str(candidates[self.typical(list(candidates))])

    def typical(self, runs: list[str]) -> int:
        """Place of the run that agrees best with the others of a list."""
        from sklearn.metrics import adjusted_rand_score

        codes = [self.labels[name].cat.codes for name in runs]
        return int(np.argmax([sum(adjusted_rand_score(a, b) for b in codes) for a in codes]))

    @property
    def missing(self) -> list[str]:
        """Runs that were asked for and are not there."""
        return [name for name in self.about["runs"] if name not in self.files]

    @property
    def errors(self) -> dict[str, str]:
        """Last line of the error of each run that failed."""
        files = sorted(self.folder.glob("runs/*.error.txt"))
        return {path.name.removesuffix(".error.txt"): path.read_text().strip().splitlines()[-1] for path in files}

    def data(self) -> AnnData:
        """The cells and genes that all runs had: counts in ``X``, batch and labels in ``obs``."""
        import anndata

        return anndata.read_h5ad(self.folder / DATA)

    @cached_property
    def _obs(self) -> pd.DataFrame:
        import anndata

        return anndata.read_h5ad(self.folder / DATA, backed="r").obs

    def __repr__(self) -> str:
        settings = ", ".join(f"{len(table)} methods with {name}" for name, table in self.summary.items())
        return f"Comparison of {len(self.files)} runs in {self.folder}: {settings}; {len(self.missing)} missing"


def _setting_order(setting: str) -> tuple[int, int]:
    """K open, then given numbers, and what labels chose last."""
    if setting == setting_name(OPEN):
        return 0, 0
    return (2, 0) if setting == setting_name(SEARCHED) else (1, int(setting.removeprefix("K = ")))


def read_comparison(folder: str | Path) -> Comparison:
    """What :func:`scdeepclust.tl.compare` has left in a folder so far.

    Parameters
    ----------
    folder
        The ``out`` of ``compare``.

    Returns
    -------
    The comparison. ``runs`` is one row a run, ``summary`` one table for each way to set the number of clusters,
    ``agreement`` the adjusted Rand index between methods, ``labels`` all labels, ``missing`` and ``errors`` what is
    not there.

    Raises
    ------
    ValueError
        If the folder holds no comparison.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> options = {"models": ["gmvae"], "baselines": ["pca"], "pretrain_epochs": 2, "max_epochs": 1, "n_jobs": 1}
    >>> _ = sdc.tl.compare(adata, "comparison", seeds=2, progress=False, **options)
    >>> sdc.tl.read_comparison("comparison").missing
    []
    """
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        raise ValueError(f"`folder`: {folder} holds no comparison; `tl.compare` writes one.")
    about = json.loads((folder / ABOUT).read_text())
    found = {path.stem: path for path in sorted(folder.glob("runs/*.npz")) if not path.name.startswith(".")}
    wanted = [name for name in about["runs"] if name in found]
    return Comparison(folder, about, {name: found[name] for name in wanted})
