"""Every string this package writes into or reads from an AnnData object.

``{key}`` is the ``key_added`` of :meth:`write_back`, by default the name of the model in lower case.
"""

from __future__ import annotations

from typing import NamedTuple


class ResultKeys(NamedTuple):
    """Names under which the results of one model are stored in an AnnData object."""

    key: str

    @property
    def labels(self) -> str:
        """``obs``: categorical cluster labels."""
        return self.key

    @property
    def confidence(self) -> str:
        """``obs``: probability that an independent repeat gives the same cluster."""
        return f"{self.key}_confidence"

    @property
    def novelty(self) -> str:
        """``obs``: share of the cells of the fit that fit their cluster better (cells that were not of the fit)."""
        return f"{self.key}_novelty"

    @property
    def embedding(self) -> str:
        """``obsm``: latent embedding."""
        return f"X_{self.key}"

    @property
    def probabilities(self) -> str:
        """``obsm``: assignment probabilities, cells x clusters."""
        return f"{self.key}_probabilities"

    def facet(self, j: int) -> ResultKeys:
        """Names of one facet of several clusterings of the same cells: all of the above with its own stem."""
        return ResultKeys(f"{self.key}_facet{j}")

    @property
    def loadings(self) -> str:
        """``varm``: decoded log-fold changes of each cluster, genes x clusters."""
        return f"{self.key}_loadings"

    @property
    def node(self) -> str:
        """``obs``: node of the map, ``"r{row}c{column}"``."""
        return f"{self.key}_node"

    @property
    def row(self) -> str:
        """``obs``: row of the node."""
        return f"{self.key}_row"

    @property
    def column(self) -> str:
        """``obs``: column of the node."""
        return f"{self.key}_column"

    @property
    def distance(self) -> str:
        """``obs``: distance of the cell to its node (quantisation error)."""
        return f"{self.key}_distance"

    @property
    def map(self) -> str:
        """``obsm``: place on the map, column (x) and row (y) between the nodes."""
        return f"X_{self.key}_map"

    @property
    def profiles(self) -> str:
        """``varm``: expected share of each gene at each node."""
        return f"{self.key}_profiles"

    @property
    def gates(self) -> str:
        """``layers``: gate of each gene in each cell, CSR (IDC)."""
        return f"{self.key}_gates"

    @property
    def n_genes(self) -> str:
        """``obs``: number of genes whose gate is open in a cell (IDC)."""
        return f"{self.key}_n_genes"

    @property
    def global_gates(self) -> str:
        """``varm``: gate of each gene for each cluster, genes x clusters (IDC)."""
        return f"{self.key}_global_gates"

    @property
    def uns(self) -> str:
        """``uns``: parameters, versions and scalars of the fit."""
        return self.key


# One entry of the minibatch, added by our data loader to what scvi-tools loads: the row of each cell in the data.
CELL_INDEX = "cell_index"
