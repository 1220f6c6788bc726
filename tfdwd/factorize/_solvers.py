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
    Equations,
    Target,
    power_of_two,
)

# The depthwise step of `joint` and the first step of `bottleneck` have c * q * m and c * r
# unknowns; at c = 512 their normal matrices take up to 1.5 and 140 GB. Conjugate gradients never
# form them, and from the last round's answer this many steps end where an exact solve ends.
_CG_STEPS = 8
_ENOUGH = 2e-3  # a round that lowers the error by less than this part of it is the last
StackT = TypeVar("StackT", Separable, Bottleneck)


def settled(target: Target, steps: Iterator[StackT], per_round: int) -> StackT:
    """The last of some steps, or the first that ends a round in which little was gained."""
    left = np.inf
    for number, stack in enumerate(steps):
        if number % per_round == 0:  # the last factor is the best for its others
            before, left = left, error_after_least_squares(target, stack)
            if not before - left > _ENOUGH * left:
                break
    return stack


def error_after_least_squares(target: Target, stack: Stack) -> float:
    """`Target.error` of a stack whose last factor is the best for its others, at little cost.

    There the gap M - E is at right angles to E in the metric A.
    """
    gap = (target.kernel - stack.kernel()).reshape(target.product.shape)
    return float(np.vdot(gap, target.product))


def least_squares(normal: np.ndarray, wanted: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Solves normal @ x = wanted, staying with ``start`` where normal is singular.

    The proximal term (a little of |x - start|^2, in units of normal's diagonal) makes every
    step safe and, since it vanishes at ``start``, can not raise the error.
    """
    diagonal = np.diagonal(normal).copy()
    largest = diagonal.max()
    scale = 1 / np.sqrt(np.maximum(diagonal, largest * 1e-30 if largest > TINY else 1))
    scaled = normal * scale[:, None] * scale
    jitter = JITTER
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
    apply: Callable[[np.ndarray, np.ndarray], np.ndarray],
    equations: Equations,
    wanted: np.ndarray,
    start: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Some steps from ``start`` towards apply(x, A) = wanted; each lowers the quadratic's value.

    The first residual is a difference of large numbers and needs A in float64; the steps from
    there do not.
    """
    x, residual = start, wanted - apply(start, equations.gram.matrix)
    towards = precondition(residual)
    direction, size = towards, np.vdot(residual, towards)
    first = size
    single, unit = equations.gram.single
    for _ in range(_CG_STEPS):
        if not size > 1e-5 * first:
            break
        length = power_of_two(direction)
        along = (unit * length) * apply(direction / length, single)
        curvature = np.vdot(direction, along)
        if not curvature > 0:
            break
        x = x + size / curvature * direction
        residual = residual - size / curvature * along
        towards = precondition(residual)
        previous, size = size, np.vdot(residual, towards)
        direction = towards + size / previous * direction
    return x
