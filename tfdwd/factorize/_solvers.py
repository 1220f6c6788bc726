"""What `joint` and `bottleneck` share: exact and iterative least squares, and when to stop."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import scipy.linalg

from tfdwd.errors import Error
from tfdwd.factorize._stacks import Bottleneck, Separable, Stack
from tfdwd.factorize._targets import (
    JITTER,
    TINY,
    Target,
)

# The depthwise step of `joint` and the first step of `bottleneck` have c * q * m and c * r
# unknowns; at c = 512 their normal matrices take up to 1.5 and 140 GB. Conjugate gradients never
# form them, and from the last round's answer this many steps end where an exact solve ends.
_CG_STEPS = 8
ENOUGH = 2e-3  # a round that lowers the error by less than this part of it is the last
StackT = TypeVar("StackT", Separable, Bottleneck)


def settled(target: Target, steps: Iterator[StackT], per_round: int) -> StackT:
    """The last of some steps, or the first that ends a round in which little was gained."""
    left = np.inf
    for number, stack in enumerate(steps):
        if number % per_round == 0:  # the last factor is the best for its others
            before, left = left, error_after_least_squares(target, stack)
            if not before - left > ENOUGH * left:
                break
    return stack


def error_after_least_squares(target: Target, stack: Stack) -> float:
    """`Target.error` of a stack whose last factor is the best for its others, at little cost.

    There the gap M - E is at right angles to E in the metric A.
    """
    gap = (target.kernel - stack.kernel()).reshape(target.product.shape)
    return float(np.vdot(gap, target.product))


def least_squares(
    normal: np.ndarray, wanted: np.ndarray, start: np.ndarray, jitter: float = JITTER
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
    close: float,
) -> np.ndarray:
    """Some steps from ``start`` towards less ``residual``; each lowers the quadratic's value.

    The first residual is a difference of large numbers and needs all the precision there is; the
    products of the steps from there do not.

    Args:
      apply: the product of the matrix with a direction.
      residual: what is wanted less the product with ``start``.
      start: where to start.
      precondition: solves with a matrix that is near.
      close: part of the residual's first energy at which to stop.
    """
    x, towards = start, precondition(residual)
    direction, size = towards, np.vdot(residual, towards)
    first = size
    for _ in range(_CG_STEPS):
        if not size > close * first:
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
