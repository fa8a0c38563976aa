"""The formulas of :mod:`scdeepclust.nn._sparse_nb` as compiled loops, for ``float32`` on a CPU.

PyTorch reads and writes the whole [cells, genes] matrix in each of some forty operations. Here one cell is dealt with
from beginning to end while its few rows of numbers stay in the nearest cache: two to three times as fast. What the
formulas mean and why they are written as they are is told there; what is told here is how they become fast.

A loop is fast when the compiler turns it into vector instructions. It does so when the loop is short, touches few
arrays that it knows to be contiguous (a row taken by its number is, one from unpacking is not), calls nothing it cannot
see into (hence the exponential and the logarithm below) and may divide by zero in silence (``error_model="numpy"``).
Constants are ``float32`` by name, because a bare ``1.0`` would make everything ``float64``.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ._counts import Counts

_OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True}
_compiled = njit(**_OPTIONS)


def _cached(function: Callable) -> Callable:
    """Compiled once and for all (it takes some seconds): kept on disk, unless there is nowhere to write."""
    try:
        return njit(**_OPTIONS, cache=True)(function)
    except RuntimeError:
        return _compiled(function)


# ---- exponential and logarithm ---------------------------------------------------------------------------------------
# exp(x) = 2^k exp(r) with |r| <= log(2) / 2, and 2^k is made by writing k into the exponent bits of a number. Likewise
# x = 2^k m with m between sqrt(1/2) and sqrt(2), and log(m) = 2 artanh((m - 1) / (m + 1)). Both series are the textbook
# ones, up to the term that no longer shows: 1e-7 relative in float32, 1e-15 in float64.

_ZERO, _HALF, _ONE, _TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
_LOG2_E = math.log2(math.e)
_LN2_HIGH = 0.693359375  # a few bits only, so that its products with k are exact
_LN2_LOW = math.log(2) - _LN2_HIGH
_LOG2_E_32, _LN2_32, _LN2_HIGH_32, _LN2_LOW_32 = (
    np.float32(value) for value in (_LOG2_E, math.log(2), _LN2_HIGH, _LN2_LOW)
)
_EXP_MIN, _EXP_MAX = np.float32(-87), np.float32(88)
_E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / math.factorial(n)) for n in range(2, 8))
_D2, _D3, _D4, _D5, _D6, _D7, _D8, _D9, _D10, _D11, _D12 = (1 / math.factorial(n) for n in range(2, 13))
_A3, _A5, _A7, _A9 = (np.float32(2 / n) for n in (3, 5, 7, 9))
_B3, _B5, _B7, _B9, _B11, _B13, _B15, _B17 = (2 / n for n in range(3, 18, 2))
_SQRT_HALF_BITS_32, _SQRT_HALF_BITS_64 = np.int32(0x3F3504F3), np.int64(0x3FE6A09E667F3BCD)


@_compiled
def _exp_parts(x):
    """``exp(r) - 1`` and ``2^k`` of ``x = k log(2) + r``."""
    x = min(max(x, _EXP_MIN), _EXP_MAX)
    k = np.floor(x * _LOG2_E_32 + _HALF)
    r = (x - k * _LN2_HIGH_32) - k * _LN2_LOW_32
    tail = ((((((_E7 * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r + _ONE) * r
    return tail, np.int32((np.int32(k) + 127) << 23).view(np.float32)


@_compiled
def _exp(x):
    tail, power = _exp_parts(x)
    return tail * power + power


@_compiled
def _expm1(x):
    tail, power = _exp_parts(x)
    return tail * power + (power - _ONE)


@_compiled
def _log(x):
    bits = np.float32(x).view(np.int32)
    k = np.int32((bits - _SQRT_HALF_BITS_32) >> 23)
    m = np.int32(bits - (k << 23)).view(np.float32)
    z = (m - _ONE) / (m + _ONE)
    w = z * z
    return np.float32(k) * _LN2_32 + (z * w * (((_A9 * w + _A7) * w + _A5) * w + _A3) + _TWO * z)


@_compiled
def _log1p(x):
    u = _ONE + x
    return _log(u) + (x - (u - _ONE)) / u  # the second term makes good what the sum 1 + x has lost


@_compiled
def _exp64(x):
    x = min(max(x, -700.0), 700.0)
    k = np.floor(x * _LOG2_E + 0.5)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    tail = ((((_D12 * r + _D11) * r + _D10) * r + _D9) * r + _D8) * r + _D7
    tail = (((((tail * r + _D6) * r + _D5) * r + _D4) * r + _D3) * r + _D2) * r + 1.0
    return (tail * r + 1.0) * np.int64((np.int64(k) + 1023) << 52).view(np.float64)


@_compiled
def _log64(x):
    bits = np.float64(x).view(np.int64)
    k = (bits - _SQRT_HALF_BITS_64) >> 52
    m = np.int64(bits - (k << 52)).view(np.float64)
    z = (m - 1.0) / (m + 1.0)
    w = z * z
    tail = ((((_B17 * w + _B15) * w + _B13) * w + _B11) * w + _B9) * w + _B7
    return k * _LN2_HIGH + (z * w * ((tail * w + _B5) * w + _B3) + k * _LN2_LOW + 2.0 * z)


@njit(**_OPTIONS | {"fastmath": {"contract", "reassoc", "nsz"}})  # in any order, or it would be one by one
def _sum(row):
    total = _ZERO
    for g in range(row.shape[0]):
        total += row[g]
    return total


# ---- the zeros of one cell, float32 ----------------------------------------------------------------------------------

_SERIES_MAX, _TWELFTH = np.float32(0.1), np.float32(1 / 12)
_MIN_DROPOUT_LOGIT = np.float32(-80)


@_compiled
def _softmax(scores, top, share):
    for g in range(scores.shape[0]):
        share[g] = _exp(scores[g] - top)
    total = _sum(share)
    scale = _ONE / total
    for g in range(scores.shape[0]):
        share[g] *= scale
    return total


@_compiled
def _zeros(share, library, theta, t, s, value, d_mean, d_theta):
    """NB terms of a cell as if all its counts were zero; ``t`` and ``s`` are room to work in."""
    for g in range(share.shape[0]):
        t[g] = _log1p(share[g] * library / theta[g])
    for g in range(share.shape[0]):
        ratio = share[g] * library / theta[g]
        s[g] = ratio / (_ONE + ratio)
    for g in range(share.shape[0]):
        value[g] = -theta[g] * t[g]
    for g in range(share.shape[0]):
        d_mean[g] = -theta[g] * s[g]
    for g in range(share.shape[0]):
        series, plain = s[g] * t[g] * (_HALF + _TWELFTH * t[g]), t[g] - s[g]
        d_theta[g] = -theta[g] * (series if t[g] < _SERIES_MAX else plain)


@_compiled
def _inflate(c, from_nb, from_dropout, y, value, d_mean, d_theta, d_dropout):
    """Turn NB terms of zeros into those of the ZINB; ``from_nb``, ``from_dropout`` and ``y`` are room to work in."""
    for g in range(c.shape[0]):
        logit = value[g] - max(c[g], _MIN_DROPOUT_LOGIT)
        z = _exp(-abs(logit))
        larger = _ONE / (_ONE + z)
        from_nb[g] = larger if logit > _ZERO else z * larger
        from_dropout[g] = z * larger if logit > _ZERO else larger
    for g in range(c.shape[0]):
        d_mean[g] *= from_nb[g]
    for g in range(c.shape[0]):
        d_theta[g] *= from_nb[g]
    for g in range(c.shape[0]):
        logit = max(c[g], _MIN_DROPOUT_LOGIT)
        z = _exp(-abs(logit))
        larger = _ONE / (_ONE + z)
        y[g] = (z * larger if logit > _ZERO else larger) * _expm1(value[g])
        value[g] = (larger if logit > _ZERO else z * larger) / from_dropout[g]  # 1 + y, exact where y nears -1
    for g in range(c.shape[0]):
        likely = y[g] > -_HALF
        u = _ONE + y[g] if likely else value[g]
        lost = (y[g] - (u - _ONE)) / u if likely else _ZERO
        value[g] = _log(u) + lost
    for g in range(c.shape[0]):
        d_dropout[g] = -y[g] * from_dropout[g]


# ---- the non-zeros of one cell, float64 ------------------------------------------------------------------------------


@_compiled
def _log_gamma(y, out):
    """Stirling's series at y + 4, brought back by Gamma(y + 4) = y (y + 1) (y + 2) (y + 3) Gamma(y)."""
    for k in range(y.shape[0]):
        z = y[k] + 4.0
        i = 1.0 / z
        w = i * i
        out[k] = i * (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w / 1680))) - z + 0.5 * math.log(2 * math.pi)
    for k in range(y.shape[0]):
        out[k] += (y[k] + 3.5) * _log64(y[k] + 4.0)
    for k in range(y.shape[0]):
        t = y[k] * (y[k] + 3.0)  # and (y + 1) (y + 2) is two more
        out[k] -= _log64(t * (t + 2.0))


@_compiled
def _digamma(y, out):
    """The derivative of the above."""
    for k in range(y.shape[0]):
        i = 1.0 / (y[k] + 4.0)
        w = i * i
        t = y[k] * (y[k] + 3.0)
        steps = (2.0 * y[k] + 3.0) * (2.0 * t + 2.0) / (t * (t + 2.0))
        out[k] = -0.5 * i - w * (1 / 12 - w * (1 / 120 - w * (1 / 252 - w / 240))) - steps
    for k in range(y.shape[0]):
        out[k] += _log64(y[k] + 4.0)


@_compiled
def _gamma_terms(x, theta, y, term, log_gammas, digammas):
    """``log Gamma(x + theta) - log Gamma(theta) - log x!`` and ``theta (psi(x + theta) - psi(theta))``."""
    for k in range(x.shape[0]):
        y[k] = x[k] + theta[k]
    _log_gamma(y, log_gammas)
    _digamma(y, digammas)
    _log_gamma(theta, term)
    for k in range(x.shape[0]):
        log_gammas[k] -= term[k]
    _digamma(theta, term)
    for k in range(x.shape[0]):
        digammas[k] = theta[k] * (digammas[k] - term[k])
    for k in range(x.shape[0]):
        y[k] = x[k] + 1.0
    _log_gamma(y, term)
    for k in range(x.shape[0]):
        log_gammas[k] -= term[k]


@_compiled
def _nonzeros(x, theta, log_gammas, digammas, log_ratio, ratio, t, value, d_mean, d_theta):
    """NB terms of the non-zeros of a cell; ``ratio`` and ``t`` are room to work in."""
    for k in range(x.shape[0]):
        ratio[k] = _exp64(log_ratio[k])
    for k in range(x.shape[0]):
        t[k] = _log64(1.0 + ratio[k])
    for k in range(x.shape[0]):
        value[k] = x[k] * (log_ratio[k] - t[k]) - theta[k] * t[k] + log_gammas[k]
    for k in range(x.shape[0]):
        d_mean[k] = (x[k] - theta[k] * ratio[k]) / (1.0 + ratio[k])
    for k in range(x.shape[0]):
        d_theta[k] = digammas[k] - d_mean[k] - theta[k] * t[k]


@_compiled
def _drawn(c, value, d_dropout):
    """What zero inflation adds to a non-zero: log(1 - pi), and its derivative -pi."""
    for k in range(c.shape[0]):
        value[k] -= max(c[k], 0.0) + _log64(1.0 + _exp64(-abs(c[k])))
    for k in range(c.shape[0]):
        d_dropout[k] = -1.0 / (1.0 + _exp64(-c[k]))


@_compiled
def _gather(row, col, out):
    for k in range(col.shape[0]):
        out[k] = row[col[k]]


@_compiled
def _scatter(values, col, row):
    for k in range(col.shape[0]):
        row[col[k]] = values[k]


# ---- all cells -------------------------------------------------------------------------------------------------------


@_cached
def _cells(
    first, last, crow, col, counts, scores, tops, log_library, log_theta, c, values, d_scores, d_library, d_theta, d_c
):
    """Cells ``first`` to ``last`` in all samples; ``log_theta`` is (1 or M, 1 or B, G), ``c`` the logits or None."""
    n_samples, _, n_genes = scores.shape
    room = np.empty((6, n_genes), np.float32)
    theta, value, d_mean = room[0], room[1], room[2]
    wide = np.empty((12, n_genes), np.float64)
    held = (-1, -1)  # whose theta is at hand
    for b in range(first, last):
        here = col[crow[b] : crow[b + 1]]
        n = len(here)
        x, r, theta_x, log_gammas, digammas = wide[0, :n], wide[1, :n], wide[2, :n], wide[3, :n], wide[4, :n]
        log_ratio, value_x, mean_x, slope_x = wide[5, :n], wide[6, :n], wide[7, :n], wide[8, :n]
        spare, spare_2, c_x = wide[9, :n], wide[10, :n], wide[11, :n]
        x[:] = counts[crow[b] : crow[b + 1]]
        for m in range(n_samples):
            source = (m % log_theta.shape[0], b % log_theta.shape[1])
            if source != held:
                for g in range(n_genes):
                    theta[g] = _exp(log_theta[source][g])
            if source != held or m == 0:
                _gather(log_theta[source], here, r)
                for k in range(n):
                    theta_x[k] = _exp64(r[k])
                _gamma_terms(x, theta_x, spare, spare_2, log_gammas, digammas)
            held = source

            share = d_scores[m, b]  # until it becomes the gradient
            total = _softmax(scores[m, b], tops[m, b], share)
            library = np.float32(math.exp(log_library[m, b]))
            _zeros(share, library, theta, room[3], room[4], value, d_mean, d_theta[m, b])
            if c is not None:
                _inflate(c[m, b], room[3], room[4], room[5], value, d_mean, d_theta[m, b], d_c[m, b])

            shift = np.float64(log_library[m, b]) - np.float64(tops[m, b]) - math.log(total)
            _gather(scores[m, b], here, log_ratio)
            for k in range(n):
                log_ratio[k] += shift - r[k]
            _nonzeros(x, theta_x, log_gammas, digammas, log_ratio, spare, spare_2, value_x, mean_x, slope_x)
            if c is not None:
                _gather(c[m, b], here, c_x)
                _drawn(c_x, value_x, spare)
                _scatter(spare, here, d_c[m, b])
            _scatter(value_x, here, value)
            _scatter(mean_x, here, d_mean)
            _scatter(slope_x, here, d_theta[m, b])

            values[m, b] = _sum(value)
            d_library[m, b] = _sum(d_mean)
            for g in range(n_genes):
                share[g] = d_mean[g] - share[g] * d_library[m, b]


@functools.cache
def _threads(n: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of them, and asks with a number of its own."""
    return ThreadPoolExecutor(n)


def negative_binomial(
    scores: Tensor, log_library: Tensor, log_theta: Tensor, dropout_logits: Tensor | None, counts: Counts
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Log-likelihood of each cell, and its derivatives by the scores, the log-library, log theta and the logits.

    Everything is ``float32`` on a CPU: scores and dropout logits (M, B, G), ``log_library`` (M, B), ``log_theta`` (G,),
    (B, G) or (M, B, G). The derivative by log theta is not summed: it has the shape of the scores.
    """
    log_theta = log_theta.reshape((1,) * (3 - log_theta.dim()) + log_theta.shape)
    given = scores, scores.amax(-1), log_library, log_theta, dropout_logits
    made = [torch.empty_like(like) for like in (log_library, scores, log_library, scores)]
    d_dropout = None if dropout_logits is None else torch.empty_like(scores)
    crow = np.searchsorted(counts.row.numpy(), np.arange(counts.n_cells + 1))
    arrays: list[Any] = [crow, counts.col.numpy(), counts.value.float().numpy()]
    arrays += [None if t is None else t.detach().contiguous().numpy() for t in (*given, *made, d_dropout)]

    n = max(1, min(torch.get_num_threads(), counts.n_cells))
    bounds = np.linspace(0, counts.n_cells, n + 1).astype(np.int64).tolist()
    if n == 1:
        _cells(*bounds, *arrays)
    else:
        tasks = zip(bounds[:-1], bounds[1:], strict=True)
        list(_threads(n, os.getpid()).map(lambda task: _cells(*task, *arrays), tasks))
    values, d_scores, d_library, d_theta = made
    return values, d_scores, d_library, d_theta, d_dropout
