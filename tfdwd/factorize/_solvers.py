"""What `joint` and `bottleneck` share: exact and iterative least squares, and when to stop."""

import concurrent.futures
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import scipy.linalg

from tfdwd.errors import Error
from tfdwd.factorize._targets import TINY

# The depthwise step of `joint` and the first step of `bottleneck` have c * q * m and c * r
# unknowns; at c = 512 their normal matrices take up to 1.5 and 140 GB. Conjugate gradients never
# form them, and from the last round's answer this many steps end where an exact solve ends.
_CG_STEPS = 8
_CLOSE = 0.1  # of the residual's first energy: the next round has another residual
_ENOUGH = 2e-3  # a round that lowers the error by less than this part of it is the last
MOMENTUM = 0.8  # a round goes on by this part of what its least squares changed
SINGLE_JITTER = 1e-8  # `JITTER` where normal matrices are made in float32
_Fit = TypeVar("_Fit")


def settled(whole: float, fits: Iterator[tuple[_Fit, float]]) -> _Fit:
    """The last of some fits, or the first that brings little more than the one before.

    Args:
      whole: the error of zeros.
      fits: each with how much of ``whole`` it explains.
    """
    last, before = next(fits)
    for last, explained in fits:  # noqa: B007
        if not explained - before > _ENOUGH * (whole - explained):
            break
        before = explained
    return last


def side_by_side(work: Callable[[int], _Fit], sizes: Sequence[int]) -> dict[int, _Fit]:
    """{size: work(size)}, the largest first, on all cores; the same whatever their number.

    NumPy leaves the interpreter to others while it works. Its own threads should be off.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        begun = {size: pool.submit(work, size) for size in sorted(set(sizes), reverse=True)}
    return {size: begun[size].result() for size in sizes}


def least_squares(
    normal: np.ndarray, wanted: np.ndarray, start: np.ndarray, jitter: float
) -> np.ndarray:
    """Solves normal @ x = wanted, staying with ``start`` where normal is singular.

    The proximal term (a little of |x - start|^2, in units of normal's diagonal) makes every
    step safe and, since it vanishes at ``start``, can not raise the error.
    """
    diagonal = np.diagonal(normal).copy()
    largest = diagonal.max()
    scale = 1 / np.sqrt(np.maximum(diagonal, largest * 1e-30 if largest > TINY else 1))
    scaled = normal * scale[:, None] * scale
    gap = wanted - normal @ start
    while True:
        scaled[np.diag_indices_from(scaled)] += jitter
        try:
            factor = scipy.linalg.cho_factor(scaled, lower=True, check_finite=False)
            break
        except np.linalg.LinAlgError as error:
            if jitter > len(normal):  # of a matrix with a diagonal of ones, that is enough
                raise Error(
                    "least squares: expected finite moments, got NaN or infinity"
                ) from error
            jitter *= 100
    step = scipy.linalg.cho_solve(factor, gap * scale[:, None], check_finite=False)
    return start + step * scale[:, None]


def conjugate_gradients(
    apply: Callable[[np.ndarray], np.ndarray],
    residual: np.ndarray,
    start: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    steps: int = _CG_STEPS,
) -> np.ndarray:
    """Some steps from ``start`` towards less ``residual``; each lowers the quadratic's value.

    The first residual is a difference of large numbers and needs all the precision there is; the
    products of the steps from there do not.

    Args:
      apply: the product of the matrix with a direction.
      residual: what is wanted less the product with ``start``.
      start: where to start.
      precondition: solves with a matrix that is near.
      steps: at most.
    """
    x, towards = start, precondition(residual)
    direction, size = towards, np.vdot(residual, towards)
    first = size
    for _ in range(steps):
        if not size > _CLOSE * first:
            break
        along = apply(direction)
        curvature = np.vdot(direction, along)
        if not curvature > 0:
            break
        x = x + size / curvature * direction
        residual = residual - size / curvature * along
        towards = precondition(residual)
        previous, size = size, np.vdot(residual, towards)
        direction = towards + size / previous * direction
    return x
