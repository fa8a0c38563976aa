"""One fit of each model to real counts, with its results written into the data: what `figures.py` draws.

They are kept in a cache, so that a drawing can be changed without fitting again.
"""

from __future__ import annotations

from _methods import DATA, fit_model, load  # first: it sets the number of threads

# isort: split
import anndata
from _report import HERE
from anndata import AnnData

CACHE = HERE / ".cache" / "figures"
SEED = 0

# By name: the model and the data. The four of the overview are fits to the same cells.
FITS = {
    "scdeepcluster": ("SCDeepCluster", "pbmc3k_full"),
    "gmvae": ("GMVAE", "ifnb_2800"),
    "idc": ("IDC", "pbmc3k_full"),
    "mfcvae": ("MFCVAE", "kang_muscat"),
    "somvae": ("SOMVAE", "paul15"),
    "overview_gmvae": ("GMVAE", "kang_muscat"),
    "overview_idc": ("IDC", "kang_muscat"),
    "overview_somvae": ("SOMVAE", "kang_muscat"),
}


def fitted(name: str, again: bool = False) -> AnnData:
    """The data of a fit, with counts, known types, results and a UMAP of the latent embedding."""
    path = CACHE / f"{name}.h5ad"
    if again or not path.exists():
        adata = _fit(*FITS[name])
        CACHE.mkdir(parents=True, exist_ok=True)
        adata.write_h5ad(path)
        print(f"fitted {name}", flush=True)
    return anndata.read_h5ad(path)


def _fit(model_name: str, data: str) -> AnnData:
    import scanpy as sc

    adata = load(data)
    if adata is None:
        raise SystemExit(f"the figures need {data}.h5ad in SCDEEPCLUST_DATA")
    if data == "kang_muscat":
        adata.obs["stim"] = anndata.read_h5ad(DATA / f"{data}.h5ad", backed="r").obs["stim"].to_numpy()
    if model_name == "MFCVAE":  # the batches are donors with and without interferon: it has to find that by itself
        del adata.obs["batch"]
    model, _ = fit_model(model_name, adata, adata.obs["cell_type"].nunique(), SEED)
    model.write_back()
    adata = model.adata
    sc.pp.neighbors(adata, use_rep=f"X_{model_name.lower()}", transformer="sklearn", random_state=SEED)
    sc.tl.umap(adata, random_state=SEED)
    return adata


if __name__ == "__main__":
    for name in FITS:
        fitted(name)
