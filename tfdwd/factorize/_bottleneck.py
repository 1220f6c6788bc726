"""Pointwise, depthwise, pointwise: a CP decomposition in the metric of the inputs."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfdwd.errors import Error
from tfdwd.factorize._solvers import (
    MOMENTUM,
    SINGLE_JITTER,
    conjugate_gradients,
    least_squares,
    settled,
    side_by_side,
)
from tfdwd.factorize._stacks import Bottleneck, columns_of
from tfdwd.factorize._targets import (
    JITTER,
    TINY,
    Equations,
    Target,
    explained,
    power_of_two,
    principal_responses,
    root,
    weighted_by,
)

# Rounds that tell widths apart, at least; up to all of them for layers of few unknowns. After
# 5 the error of a wide bottleneck is still a third above where it ends, of a narrow one a tenth.
_ROUNDS, _FEW_ROUNDS, _FEW_UNKNOWNS = 30, 8, 512
# Products with A are nearly all of the time. With as many of them, two in each first step and more
# rounds come further than more in each step.
_STEPS = 2
_LAST_ROUNDS = 2
_DAMPING = 1e-2  # of the factors of a preconditioner, relative to their diagonals


def bottleneck(
    target: Target, width: int, metric: np.ndarray | None = None, rounds: int = _ROUNDS
) -> Bottleneck:
    """Pointwise to ``width`` channels, depthwise, pointwise: three least squares in turn.

    A CP decomposition of the kernel in the metric A, from the SVDs of the filters whose responses
    are the principal components of the response. No round raises the error; the last two are in
    float64.

    Args:
      target: what to imitate.
      width: 1 or more; exact from n * min(c, q) on.
      metric: (n, n) positive definite weight of the response's error; the identity if None.
      rounds: triples of least squares, at most.
    """
    lower, weighted = weighted_by(target, metric)
    problem = _Problem.of(weighted, len(target.kernel), np.float64)
    whole = problem.in_own_units(np.vdot(weighted.kernel, weighted.product))
    quick = _quick(weighted, [width], rounds)[width]
    *_, last = _fits(problem, quick, _LAST_ROUNDS)
    slow = _fits(problem, principal_start(weighted, width), rounds)
    first = next(slow)
    if not first.explained <= last.explained <= whole * (1 + 1e-9):
        # Moments of few rows or many scales are beyond float32.
        fits = ((fit, fit.explained) for fit in itertools.chain([first], slow))
        last = settled(whole, fits)
    stack = problem.stack(last)
    return dataclasses.replace(stack, expand=stack.expand @ np.linalg.inv(lower))


def bottlenecks(
    target: Target, widths: Sequence[int], metric: np.ndarray | None = None
) -> dict[int, Bottleneck]:
    """`bottleneck` for each of some widths, in float32 and few rounds where those take seconds.

    Args:
      target: what to imitate.
      widths: each 1 or more.
      metric: as for `bottleneck`.

    Returns:
      {width: stack}.

    Example:
      >>> w = np.random.default_rng(0).normal(size=(4, 9, 8))
      >>> white = Target(Gram.identity(36), w.reshape(36, 8), w)
      >>> [white.error(stack.kernel()) > 1 for stack in bottlenecks(white, [3, 32]).values()]
      [True, False]
    """
    rounds = _ROUNDS * _FEW_UNKNOWNS // max(len(target.product), _FEW_UNKNOWNS)
    lower, weighted = weighted_by(target, metric)
    back = np.linalg.inv(lower)
    found = {}
    for width, quick in _quick(weighted, widths, max(rounds, _FEW_ROUNDS)).items():
        found[width] = dataclasses.replace(quick, expand=quick.expand @ back)
        if explained(target, found[width], metric) < 0:  # beyond float32, see `bottleneck`
            found[width] = bottleneck(target, width, metric)
    return found


def bottleneck_steps(equations: Equations, start: Bottleneck, rounds: int) -> Iterator[Bottleneck]:
    """Yields the stack with the best last factor for the others of ``start``, then of each round.

    Args:
      equations: of the responses wanted.
      start: the factors to start from.
      rounds: so many.
    """
    problem = _Problem.of(equations, len(start.reduce), np.float64)
    for fit in _fits(problem, start, rounds):
        yield problem.stack(fit)


def refit_bottleneck(
    equations: Equations, stack: Bottleneck, metric: np.ndarray | None, rounds: int
) -> Bottleneck:
    """Some more rounds of `bottleneck`."""
    lower = root(equations, metric)
    weighted = Equations(equations.gram, equations.product @ lower)
    start = dataclasses.replace(stack, expand=stack.expand @ lower)
    *_, last = bottleneck_steps(weighted, start, rounds)
    return dataclasses.replace(last, expand=last.expand @ np.linalg.inv(lower))


def principal_start(target: Target, width: int) -> Bottleneck:
    """The ``width`` strongest rank-one parts of the filters behind the principal responses.

    They stand in falling order: a narrower start is the first part of a wider one.
    """
    c, q, _ = target.kernel.shape
    variances, directions = principal_responses(target)
    filters = np.moveaxis(target.kernel @ directions, 2, 0)  # (n, c, q)
    left, sizes, right = np.linalg.svd(filters, full_matrices=False)
    share = sizes**2 / (np.sum(sizes**2, axis=1, keepdims=True) + 1e-300)
    strength = (np.maximum(variances, 0)[:, None] * share).ravel()
    chosen = np.argsort(-strength, kind="stable")[:width]
    component, part = np.divmod(chosen, sizes.shape[1])
    start = Bottleneck(
        left[component, :, part].T,
        right[component, part, :].T,
        sizes[component, part][:, None] * directions[:, component].T,
    )
    spare = width - len(chosen)  # more components than the kernel has: they start at nothing
    return Bottleneck(
        np.pad(start.reduce, ((0, 0), (0, spare)), constant_values=1 / np.sqrt(c)),
        np.pad(start.depthwise, ((0, 0), (0, spare)), constant_values=1 / np.sqrt(q)),
        np.pad(start.expand, ((0, spare), (0, 0))),
    )


def _quick(target: Target, widths: Sequence[int], rounds: int) -> dict[int, Bottleneck]:
    """A bottleneck of each width, fitted in float32 in at most so many rounds."""
    for width in widths:
        if width < 1:
            raise Error(f"width of a bottleneck: expected 1 or more, got {width}")
    if not widths:
        return {}
    problem = _Problem.of(target, len(target.kernel), np.float32)
    whole = problem.in_own_units(np.vdot(target.kernel, target.product))
    widest = principal_start(target, max(widths))

    def fit(width: int) -> Bottleneck:
        start = Bottleneck(
            widest.reduce[:, :width], widest.depthwise[:, :width], widest.expand[:width]
        )
        fits = ((one, one.explained) for one in _fits(problem, start, rounds))
        return problem.stack(settled(whole, fits))

    return side_by_side(fit, widths)


# ---------------------------------------------------------------------- rounds


@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
    """The normal equations in units near one, and the Kronecker product that is nearest to A.

    Attributes:
      units: of A, and of the kernel.
      by_tap: A, (c * q, q, c): the input's tap before its channel.
      single: the same in float32.
      product: A M, (c * q, n).
      channels, taps: (c, c) and (q, q) factors of the Kronecker product.
      inverses: of these two, damped.
    """

    units: tuple[float, float]
    by_tap: np.ndarray
    single: np.ndarray
    product: np.ndarray
    channels: np.ndarray
    taps: np.ndarray
    inverses: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, equations: Equations, channels: int, dtype: Any) -> "_Problem":
        """The problem for factors of some dtype."""
        matrix, product = equations.gram.matrix, equations.product
        unit = power_of_two(matrix.diagonal())
        of_kernel = power_of_two(product) / unit
        by_tap = np.empty((len(matrix), len(matrix) // channels, channels), dtype)
        np.divide(np.swapaxes(matrix.reshape(len(matrix), channels, -1), 1, 2), unit, out=by_tap)
        single = by_tap.astype(np.float32, copy=False)
        across, within = _nearest_kronecker(single)
        return cls(
            units=(unit, of_kernel),
            by_tap=by_tap,
            single=single,
            product=(product / unit / of_kernel).astype(dtype),
            channels=across.astype(dtype),
            taps=within.astype(dtype),
            inverses=(
                _damped_inverse(across, _DAMPING).astype(dtype),
                _damped_inverse(within, _DAMPING).astype(dtype),
            ),
        )

    def in_own_units(self, error: float) -> float:
        """An error, or what of it is explained."""
        unit, of_kernel = self.units
        return float(error) / unit / of_kernel / of_kernel

    def stack(self, fit: "_Fit") -> Bottleneck:
        """The factors of a fit in the units of the equations, float64."""
        reduce, depthwise = fit.reduce.astype(np.float64), fit.depthwise.astype(np.float64)
        return Bottleneck(reduce, depthwise, fit.expand * self.units[1])

    def times(self, reduce: np.ndarray, depthwise: np.ndarray) -> np.ndarray:
        """A times rank-one filters in float32, (c * q, r)."""
        columns = (depthwise[:, None, :] * reduce).astype(np.float32)
        return self.single.reshape(len(self.single), -1) @ columns.reshape(len(self.single), -1)

    def times_each_tap(self, reduce: np.ndarray) -> np.ndarray:
        """A times ``reduce`` at one tap alone, for each, (q, c * q, r)."""
        return np.stack([self.by_tap[:, tap] @ reduce for tap in range(self.by_tap.shape[1])])


@dataclasses.dataclass(frozen=True, eq=False)
class _Fit:
    """The three factors, A times the filters of the first two, and how much they explain."""

    reduce: np.ndarray
    depthwise: np.ndarray
    expand: np.ndarray
    filtered: np.ndarray
    explained: float


def _fits(problem: _Problem, start: Bottleneck, rounds: int) -> Iterator[_Fit]:
    """Yields the start with the best last factor, then what each round made of it.

    Alternating least squares creep along valleys. A round that goes further than they lead often
    gains more; where it does not, it is done again without.
    """
    dtype = problem.by_tap.dtype
    reduce, depthwise = start.reduce.astype(dtype), start.depthwise.astype(dtype)
    filtered = _summed(problem.times_each_tap(reduce), depthwise)
    fit = _expanded(problem, reduce, depthwise, filtered, start.expand / problem.units[1])
    yield fit
    for number in range(rounds):
        ahead = _round(problem, fit, MOMENTUM if number else 0.0)
        if ahead.explained < fit.explained and number:
            ahead = _round(problem, fit, 0.0)
        fit = ahead
        yield fit


def _round(problem: _Problem, fit: _Fit, momentum: float) -> _Fit:
    scale = power_of_two(fit.expand)
    relative = fit.expand / scale
    weights = (relative @ relative.T).astype(fit.filtered.dtype)
    wanted = problem.product @ (relative.T / scale).astype(fit.filtered.dtype)
    reduce = _solve_reduce(problem, fit, weights, wanted)
    reduce = reduce + momentum * (reduce - fit.reduce)
    each_tap = problem.times_each_tap(reduce)
    depthwise = _solve_depthwise(problem, reduce, fit.depthwise, each_tap, weights, wanted)
    depthwise = depthwise + momentum * (depthwise - fit.depthwise)
    # A component's three factors are free up to two scales.
    norms = _norms(reduce), _norms(depthwise)
    filtered = _summed(each_tap, depthwise / norms[1]) / norms[0]
    expand = fit.expand * (norms[0] * norms[1])[:, None]
    return _expanded(problem, reduce / norms[0], depthwise / norms[1], filtered, expand)


def _expanded(
    problem: _Problem,
    reduce: np.ndarray,
    depthwise: np.ndarray,
    filtered: np.ndarray,
    expand: np.ndarray,
) -> _Fit:
    """The fit with the best last factor, near ``expand`` where that is not determined."""
    columns = columns_of(reduce, depthwise).reshape(filtered.shape)
    normal = (columns.T @ filtered).astype(np.float64)
    normal = (normal + normal.T) / 2
    wanted = (columns.T @ problem.product).astype(np.float64)
    jitter = SINGLE_JITTER if filtered.dtype == np.float32 else JITTER
    expand = least_squares(normal, wanted, expand, jitter)
    explained = float(np.vdot(expand, 2 * wanted - normal @ expand))
    return _Fit(reduce, depthwise, expand, filtered, explained)


def _solve_reduce(
    problem: _Problem, fit: _Fit, weights: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    (c, width), q = fit.reduce.shape, len(fit.depthwise)
    taps, single = fit.depthwise.astype(np.float32), weights.astype(np.float32)

    def onto(response: np.ndarray, depthwise: np.ndarray) -> np.ndarray:
        return np.einsum("cqr,qr->cr", response.reshape(c, q, width), depthwise)

    def apply(direction: np.ndarray) -> np.ndarray:
        length = power_of_two(direction)
        return length * onto(problem.times(direction / length, taps) @ single, taps)

    coupled = (fit.depthwise.T @ problem.taps @ fit.depthwise) * weights
    inverse = _damped_inverse(coupled, 1e-6).astype(weights.dtype)
    return conjugate_gradients(
        apply,
        onto(wanted - fit.filtered @ weights, fit.depthwise),
        fit.reduce,
        lambda residual: problem.inverses[0] @ residual @ inverse,
        _STEPS,
    )


def _solve_depthwise(
    problem: _Problem,
    reduce: np.ndarray,
    depthwise: np.ndarray,
    each_tap: np.ndarray,
    weights: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    (c, width), q = reduce.shape, len(depthwise)

    def onto(response: np.ndarray) -> np.ndarray:
        return np.einsum("cqr,cr->qr", response.reshape(c, q, width), reduce)

    coupled = (reduce.T @ problem.channels @ reduce) * weights
    inverse = _damped_inverse(coupled, 1e-6).astype(weights.dtype)
    return conjugate_gradients(
        lambda direction: onto(_summed(each_tap, direction) @ weights),
        onto(wanted - _summed(each_tap, depthwise) @ weights),
        depthwise,
        lambda residual: problem.inverses[1] @ residual @ inverse,
    )


def _summed(each_tap: np.ndarray, depthwise: np.ndarray) -> np.ndarray:
    """What `_Problem.times_each_tap` gave, weighted by taps, (c * q, r)."""
    total = each_tap[0] * depthwise[0]
    for filtered, taps in zip(each_tap[1:], depthwise[1:], strict=True):
        total += filtered * taps
    return total


def _nearest_kronecker(by_tap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric (c, c) and (q, q), float64, whose Kronecker product is near A.

    Source: Van Loan and Pitsianis 1993, "Approximation with Kronecker Products": their power
    iteration, from white taps.
    """
    _, q, c = by_tap.shape
    blocks = by_tap.reshape(c, q * q, c)  # channel, both taps, channel
    within = np.eye(q).ravel()
    for _ in range(2):
        across = (within.astype(by_tap.dtype) @ blocks).astype(np.float64)
        across /= np.linalg.norm(across)
        within = np.sum(blocks @ across[..., None].astype(by_tap.dtype), axis=(0, 2), dtype=float)
    taps = within.reshape(q, q)
    return (across + across.T) / 2, (taps + taps.T) / 2


def _damped_inverse(matrix: np.ndarray, part: float) -> np.ndarray:
    """Inverse of a positive semidefinite matrix whose diagonal is raised by some part, float64."""
    diagonal = np.diagonal(matrix).astype(np.float64)
    largest = diagonal.max()
    floor = 1e-12 * largest if largest > TINY else 1.0
    return np.linalg.inv(matrix + np.diag(part * diagonal + floor))


def _norms(columns: np.ndarray) -> np.ndarray:
    """Of each column; 1 for one of zeros."""
    norms = np.linalg.norm(columns, axis=0)
    return np.where(norms > TINY, norms, 1).astype(columns.dtype)
