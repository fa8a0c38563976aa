from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData


def report(
    source: AnnData | str | Path,
    out: str | Path,
    *,
    key: str | None = None,
    batch_key: str | None = None,
    label_key: str | None = None,
    title: str | None = None,
) -> Path:
    """Write one HTML page about a clustering that opens without a network.

    It says in words which clusters to trust, and shows what was done, the cells coloured by cluster, confidence, batch
    and known type, the genes of each cluster, batches and types in each, a check of the batches
    (:func:`scdeepclust.tl.check_batches`), what only this model can show, cells that a reference does not know, the
    least certain cells, and how to do it again; every table can be saved as csv. From the folder of a comparison it
    also says which method to take, and shows the clusters of its most typical run.

    Parameters
    ----------
    source
        Data after ``model.write_back(adata)``, an h5ad file with them, or the folder of
        :func:`scdeepclust.tl.compare`. Data are only read. Without a UMAP in ``obsm`` one is computed, of at most
        20,000 cells.
    out
        The file.
    key
        Key of the results; by default the only one there is. For a comparison: the run to show.
    batch_key, label_key
        Columns of ``obs`` with the batch and with known labels; by default those that the model was set up with.
    title
        Heading of the page.

    Returns
    -------
    The path of the file.

    Raises
    ------
    ValueError
        If there are no results, or a column is missing.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> sdc.model.GMVAE.setup_anndata(adata)
    >>> model = sdc.model.GMVAE(adata, n_clusters=3)
    >>> model.train(pretrain_epochs=2, max_epochs=1, enable_progress_bar=False)
    >>> model.write_back()
    >>> adata.obsm["X_umap"] = adata.obsm["X_gmvae"][:, :2]  # or scanpy.tl.umap
    >>> sdc.tl.report(adata, "report.html", label_key="cell_type").stat().st_size > 10_000
    True
    """
    from scdeepclust.pl._report import write_page

    out = Path(out)
    if not out.absolute().parent.is_dir():
        raise ValueError(f"`out`: there is no folder {out.parent}.")
    facts, name = _facts(source, key, batch_key, label_key)
    write_page(facts, out, title or name)
    return out


def _facts(source: AnnData | str | Path, key: str | None, batch_key: str | None, label_key: str | None):
    """Facts, and a heading."""
    from scdeepclust.tl._comparison import read_comparison
    from scdeepclust.tl._report_facts import facts_of, facts_of_comparison

    if not isinstance(source, str | Path):
        facts = facts_of(source, key, batch_key, label_key)
        return facts, f"Clusters of {facts.about.get('model', facts.key)}"
    path = Path(source)
    if path.is_dir():
        comparison = read_comparison(path)
        if batch_key is not None or label_key is not None:
            raise ValueError("`batch_key` and `label_key` of a comparison are those that it was made with.")
        if key is not None and key not in comparison.files:
            raise ValueError(f"`key`: there is no run {key!r}; found {', '.join(comparison.files)}.")
        return facts_of_comparison(comparison, key), f"Comparison of clusterings: {path.resolve().name}"
    if not path.is_file():
        raise ValueError(f"`source`: there is no file or folder {path}.")
    import anndata

    facts = facts_of(anndata.read_h5ad(path), key, batch_key, label_key)
    return facts, f"{path.stem}: clusters of {facts.about.get('model', facts.key)}"
