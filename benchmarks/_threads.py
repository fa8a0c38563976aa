"""One thread for everything: CPU seconds of different methods compare only there.

Import this module before numpy, torch and whatever else starts thread pools when it is imported.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"


def one_thread() -> None:
    """Tell torch again before each fit: libraries used in between may have put the thread count back."""
    import torch

    torch.set_num_threads(1)
