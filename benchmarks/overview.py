"""The overview of all benchmarks, and the three numbers of the front page and the README, from the rows of the others.

Nothing is measured here:

    python benchmarks/overview.py   # what `make tables` does after the other pages
"""

from __future__ import annotations

from _methods import OPEN  # first: it sets the number of threads

# isort: split
import tomllib
from collections.abc import Callable

import pandas as pd
from _agreement import MARGIN
from _charts import BLUE, GREY, ORANGE, bars, panels, save, titled
from _quality_tables import OURS, SCVI, cpu_seconds, name_of, per_set
from _report import HERE, Report, between, markdown

ROOT = HERE.parent
PAGES = ROOT / "docs" / "benchmarks"
START, END = "<!-- three numbers, written by benchmarks/overview.py -->", "<!-- end of the three numbers -->"
FAST = "scdeepcluster"


def rows_of(name: str) -> pd.DataFrame:
    return Report(f"{name}.py", ()).read()


class Numbers:
    """What the front page and this overview say, worked out once."""

    def __init__(self) -> None:
        quality, confidence = rows_of("quality"), rows_of("confidence")
        ari = per_set(quality, "ari")
        # what users have: nobody tells the number of clusters; Harmony is PCA where there are no batches
        models = [f"{key}{OPEN}" for key in OURS if f"{key}{OPEN}" in ari and ari[f"{key}{OPEN}"].notna().all()]
        complete = [m for m in ("pca+leiden", "harmony+leiden", "scvi+leiden") if m in ari and ari[m].notna().all()]
        self.ari = ari[[*models, *complete]]
        self.model = str(self.ari[models].mean().idxmax())
        self.baselines = self.ari[complete].mean()
        self.gap = self.ari[self.model] - self.ari[complete].max(axis=1)
        self.cpu = cpu_seconds(quality)
        self.ratio = (self.cpu[SCVI] / self.cpu[FAST]).dropna()
        self.sure = confidence[(confidence.k == "given") & (confidence.model == "gmvae")]

    def table(self, link: Callable[[str, str], str]) -> str:
        """The three numbers, each beside what it has to be compared with and what is lost."""
        best, worst = str(self.baselines.idxmax()), self.gap.idxmin()
        sure, unsure = self.sure, self.sure.loc[self.sure.error.idxmax()]
        kmeans = self.cpu["pca+kmeans"].max()
        lines = [
            ["", "here", "beside it", "what is lost", "rows"],
            [
                f"**label quality**: mean ARI on {len(self.ari)} sets, number of clusters not told",
                f"**{self.ari[self.model].mean():.2f}** ({name_of(self.model)})",
                f"{self.baselines[best]:.2f}, {name_of(best)} at its default, the best baseline by this mean",
                f"{self.gap.min():+.2f} on `{worst}` against the best baseline of that set; better on "
                f"{(self.gap > MARGIN).sum()} sets, worse on {(self.gap < -MARGIN).sum()}",
                link("quality", "label quality"),
            ],
            [
                f"**time** of a fit with labels, one CPU thread, {len(self.ratio)} sets",
                f"**{self.ratio.median():.0f} times less** than scVI with Leiden ({name_of(FAST)}, median)",
                f"{self.ratio.min():.1f} to {self.ratio.max():.0f} times less, set by set",
                f"PCA with k-means needs at most {kmeans:.0f} s, and is as good on some sets",
                link("quality", "CPU seconds"),
            ],
            [
                f"**confidence that repeats**: calibration error, {sure.data.nunique()} sets",
                f"**{sure.error.mean():.3f}** (GMVAE)",
                f"{sure.error_posterior.mean():.3f}, the highest assignment probability of the same fits",
                f"{unsure.error:.3f} on `{unsure.data}`, the worst set",
                link("confidence", "confidence"),
            ],
        ]
        return markdown(lines)

    def chart(self) -> None:
        """The same three, drawn."""
        figure, (quality, time, sure) = panels(3, height=2.6)
        ari = self.ari.mean().to_frame("ARI")
        ari.index = [name_of(name) for name in ari.index]
        bars(quality, ari, (BLUE,), "mean adjusted Rand index")
        titled(quality, f"Labels, K unknown, {len(self.ari)} sets")
        methods = [m for m in ("pca+kmeans", *OURS, SCVI) if m in self.cpu]
        seconds = self.cpu.loc[self.ratio.index, methods].median().to_frame("s")
        seconds.index = [name_of(name) for name in seconds.index]
        bars(time, seconds, (ORANGE,), "CPU seconds, median", log=True, form="{:.1f}")
        titled(time, f"Time, {len(self.ratio)} sets")
        means = self.sure[["error", "error_posterior"]].mean().to_frame("error")
        means.index = ["probability\nof a repeat", "assignment\nprobability"]
        bars(sure, means, (GREY,), "mean calibration error", form="{:.3f}")
        titled(sure, f"Confidence, {self.sure.data.nunique()} sets")
        for ax in (quality, time, sure):
            ax.tick_params(axis="y", labelsize=7)
        save(figure, PAGES / "figures" / "overview.svg")


def urls() -> dict[str, str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]


CLAIMS = {  # page: claim, how it was measured, what is lost
    "quality": ("Labels agree with known types better than those of PCA, Harmony and scVI with k-means or\n"
                "Leiden, on most sets.",
                "Labelled sets, one default configuration, same cells and genes for all, seeds; told and not told the "
                "number of clusters in separate tables.",
                "Single sets, by a lot; see its chart. Labels of most sets are themselves made by clustering."),
    "confidence": ("A confidence of .9 means that an independent repeat puts nine of ten such cells into the same\n"
                   "cluster.",
                   "Counts split into two halves, a fit to each with another seed, no labels.",
                   "Time of one to two further fits; it is no probability that the label is a cell type."),
    "one_population": ("`n_clusters=None` rarely splits one population.",
                       "Simulated and real single populations with continuous factors and batches.",
                       "Power: small or weakly different groups are joined."),
    "evidence": ("Genes of clusters are tested on counts that did not make the clusters; cells of an unknown type\n"
                 "are marked.",
                 "Null sets without any difference, mixtures of cell lines, types left out of the fit.",
                 "Half of the depth; types that resemble a known one are not noticed."),
    "integration": ("The embedding of `GMVAE` takes batches out about as well as scVI.",
                    "scib-metrics on sets with batches, same sizes of networks and epochs.",
                    "Batch correction against bio conservation: see both means."),
    "gates": ("The genes that `IDC` opens are those that the label hangs on.",
              "Genes removed or kept by gate, by dispersion and at random.",
              "Genes that say the same stand in for each other, from fit to fit."),
    "facets": ("`MFCVAE` tells type and treatment apart in the same cells.",
               "Blood cells with and without interferon, simulated crossed groups, images of digits.",
               "One clustering of its main facet is no better than those of the other models."),
    "maps": ("The map of `SOMVAE` keeps neighbours together, and time gives it a direction.",
             "Real counts, images, a simulated time course and its permutation.",
             "Clusters are unions of nodes; optimal transport restates likeness."),
    "mixture": ("The probabilities of `GMVAE` are calibrated where clusters are types.",
                "Simulated cells with known types that overlap more and more.",
                "Not where types overlap: there a cluster is something else."),
    "k_grid": ("K changes the clusters of `GMVAE`, hardly its latent space.",
               "The protocol of a published study, on one set.",
               "Components that are too many are used, not emptied."),
    "speed": ("The kernels and steps are several times faster than the plain form.",
              "Both sides in turns in one process on one thread, gates at the lower quartile.",
              "A little more overhead in each step."),
    "scale": ("Time grows with the cells, memory hardly.",
              "Simulated counts in processes of their own, in memory and in a file.",
              "Only the models in its table were measured."),
    "published_size": ("`GMVAE` at the size of the published study fits a laptop.",
                       "Minibatches of that size, scaled up to an epoch.",
                       "The published code was not run beside it."),
    "gpu": ("How long a step on a GPU takes, beside scVI.",
            "Whole epochs on one card, with loading.",
            "The card mostly waits; see which rows are missing."),
    "genes": ("Genes by dispersion, within batches, are the selection that loses least.",
              "Six selections, sets with more than 2,000 genes, labels of the same methods.",
              "Single sets, by a lot: see its tables."),
    "stress": ("Where nothing can be found, and where clusters come apart.",
               "Simulated counts over depth, effect, types, batches and cells.",
               "One seed; the simplest kind of noise."),
    "kill": ("A killed fit goes on to the same end, bit for bit.",
             "Fits killed at random moments by SIGKILL, continued in another process.",
             "A share of a percent of the time for writing."),
    "trust_examples": ("The examples of the user guide, with a good and a bad case for each question.",
                       "`GMVAE` at its defaults, seed 0.",
                       "One seed."),
}  # fmt: skip


def write_index(numbers: Numbers) -> None:
    sections = []
    for page, (claim, how, lost) in CLAIMS.items():
        title = (PAGES / f"{page}.md").read_text().partition("\n")[0].removeprefix("# ")
        sections.append(f"### [{title}]({page}.md)\n\n{claim}\n\n- *Measured:* {how}\n- *Lost:* {lost}")
    others = "\n".join(sorted(CLAIMS, key=list(CLAIMS).index))
    text = f"""\
# Benchmarks

```{{image}} figures/overview.svg
:alt: Label quality, time and confidence beside those of other methods
:width: 100%
```

Every number in these pages is written by a script in `benchmarks/`, from rows that are committed beside it and linked
at the end of each page. What a label, a number of clusters or a confidence is worth depends on the data: each page says
what is gained *and* what is lost.

{numbers.table(lambda page, name: f"[{name}]({page}.md)")}

`make bench` measures what is missing (hours; rows that exist are not measured again). `make tables` writes all pages
and charts from the rows that are there, in a minute.

## What is claimed

{chr(10).join(f"{section}{chr(10)}" for section in sections)}
```{{toctree}}
:hidden:
:maxdepth: 1

{others}
```
"""
    (PAGES / "index.md").write_text(text)
    print(f"wrote {PAGES / 'index.md'}")


def main() -> None:
    numbers = Numbers()
    numbers.chart()
    write_index(numbers)
    site = urls()["Documentation"].rstrip("/")
    between(
        ROOT / "README.md", START, END, numbers.table(lambda page, name: f"[{name}]({site}/benchmarks/{page}.html)")
    )
    between(ROOT / "docs" / "index.md", START, END, numbers.table(lambda page, name: f"[{name}](benchmarks/{page}.md)"))


if __name__ == "__main__":
    main()
