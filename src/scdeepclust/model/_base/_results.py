from __future__ import annotations

from typing import Any

from scvi.model.base import BaseModelClass

from scdeepclust._compat import package_versions


def fit_parameters(model: BaseModelClass) -> dict[str, Any]:
    """Parameters and scalars of the fit of any of our models, in types that h5ad can hold."""
    setup = {name: value for name, value in model.registry_["setup_args"].items() if value is not None}
    init = model.init_params_["non_kwargs"]
    if not isinstance(init.get("init"), str):
        init = init | {"init": "given labels"}
    return {
        "model": type(model).__name__,
        "setup": setup,
        "params": {name: _storable(value) for name, value in init.items() if value is not None},
        "phases": {name: sum(n for other, n in model.phases_ if other == name) for name, _ in model.phases_},
        "seed": -1 if model._seed is None else model._seed,
        "versions": package_versions(),
        "final": {name: float(frame.iloc[-1, 0]) for name, frame in (model.history_ or {}).items() if len(frame)},
    }


def _storable(value: Any) -> Any:
    """A value as h5ad can hold it."""
    return value if isinstance(value, str | int | float | bool) else str(value)
