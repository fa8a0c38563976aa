"""Torch keeps its own number of threads, whatever the libraries that share its OpenMP pool did to it.

numba sets the number of threads of the whole process when it first runs in parallel, as gene selections of scanpy make
it do. Small training steps are then several times slower, because many threads spin at barriers.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def _told_to_torch() -> int | None:
    """What :func:`torch.set_num_threads` was last given: it tells MKL too, which OpenMP does not; None without MKL."""
    found = re.search(r"mkl_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    return int(found[1]) if found else None


def _left_by_numba() -> bool:
    """Whether torch has the number of threads that numba gave to the process."""
    numba, pool = sys.modules.get("numba"), sys.modules.get("numba.np.ufunc.parallel")
    launched = getattr(pool, "_is_initialized", pool is not None)
    if numba is None or not launched:
        return False
    number = numba.config.NUMBA_NUM_THREADS
    return torch.get_num_threads() in (number, min(number, _told_to_torch() or number))  # MKL has a core for each


def _threads_at_import() -> int:
    if not _left_by_numba():
        return torch.get_num_threads()
    asked = re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", ""))
    return int(asked[0]) if asked else _told_to_torch() or torch.get_num_threads()


class _Own:
    """The number of threads that is torch's own, and whether it is given up for a while."""

    number = _threads_at_import()
    paused = False


torch.set_num_threads(_Own.number)  # from here on MKL tells what the user sets from what others do


def keep_threads() -> None:
    """Give torch the number of threads that it had at import, or that the user has set on it since."""
    found = torch.get_num_threads()
    if found == _Own.number or _Own.paused:
        return
    told = _told_to_torch()
    if told is not None:
        _Own.number = told
    elif not _left_by_numba():
        _Own.number = found
    torch.set_num_threads(_Own.number)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let scikit-learn and its kind use one thread, and give torch its number of threads back afterwards.

    These problems are too small to gain from more, and the result then does not depend on the machine.
    """
    from threadpoolctl import threadpool_limits

    keep_threads()
    n_threads, paused, _Own.paused = torch.get_num_threads(), _Own.paused, True
    try:
        with threadpool_limits(1):
            yield
    finally:
        _Own.paused = paused
        torch.set_num_threads(n_threads)
