"""Depthwise then pointwise: one channel at a time (He et al. 2019), or all at once."""

from collections.abc import Iterator, Sequence

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
from tfdwd.factorize._stacks import Separable, between_columns, times_columns
from tfdwd.factorize._targets import (
    JITTER,
    TINY,
    Equations,
    Gram,
    Target,
    check_finite,
    explained,
    own_blocks,
    power_of_two,
    root,
    weighted_by,
)

_FEW_ROUNDS = 4  # tell ranks apart
_Fit = tuple[Separable, float]  # and how much of the error of zeros it explains


def svd(kernel: np.ndarray, rank: int) -> Separable:
    """Truncated SVD of each channel's (q, n) kernel; needs no data. The paper's first form.

    Args:
      kernel: (c, q, n).
      rank: 1..min(q, n).

    Example:
      >>> w = np.random.default_rng(0).normal(size=(4, 9, 8))
      >>> bool(np.allclose(svd(w, 8).kernel(), w))
      True
    """
    c, q, n = kernel.shape
    _check_rank(rank, q, n)
    check_finite("kernel", kernel)
    identity = np.broadcast_to(np.eye(q), (c, q, q))
    return _best_per_channel(identity, np.asarray(kernel, np.float64), rank)


def gsvd(target: Target, rank: int) -> Separable:
    """Each channel on its own, in the metric of its own inputs: a generalised SVD.

    Args:
      target: what to imitate.
      rank: 1..min(q, n).

    Source: He et al., arXiv 1910.09455, section 3.2.
    """
    _check_rank(rank, *target.kernel.shape[1:])
    return _best_per_channel(_cholesky_per_channel(target), target.kernel, rank)


def sequential(target: Target, rank: int) -> Separable:
    """Channel by channel; each also mends the error that the channels before it left.

    The greedy sweep of the paper can end above `gsvd` when its later channels cannot mend what
    the earlier ones left. Then a sweep that starts from `gsvd` is returned: it never rises. Where
    `gsvd` itself is worse than nothing (channels that all but cancel), one that starts there is.

    Args:
      target: what to imitate.
      rank: 1..min(q, n).

    Source: He et al., arXiv 1910.09455, section 3.3.
    """
    apart = gsvd(target, rank)
    swept = _sweep(target, target.kernel, rank)
    if explained(target, swept) < explained(target, apart):
        swept = _sweep(target, apart.kernel(), rank)
    if explained(target, swept) < 0:
        swept = _sweep(target, np.zeros_like(target.kernel), rank)
    return swept


def joint(target: Target, rank: int, metric: np.ndarray | None = None) -> Separable:
    """All channels at once: least squares for the pointwise and the depthwise part in turn.

    Starts from `sequential`, or from `gsvd` where that is better once its pointwise part is the
    best for all channels; no round raises the error. Up to five rounds.

    Args:
      target: what to imitate.
      rank: 1..min(q, n).
      metric: (n, n) positive definite weight of the response's error; the identity if None.
    """
    lower, weighted = weighted_by(target, metric)
    whole = float(np.vdot(weighted.kernel, weighted.product))
    starts = [
        _fit(weighted, start.depthwise, start.pointwise)
        for start in (sequential(weighted, rank), gsvd(weighted, rank))
    ]
    last = settled(whole, _fits(weighted, max(starts, key=lambda fit: fit[1]), 5))
    return _balanced(Separable(last.depthwise, last.pointwise @ np.linalg.inv(lower)))


def joints(
    target: Target, ranks: Sequence[int], metric: np.ndarray | None = None
) -> dict[int, Separable]:
    """`joint` for each of some ranks, from `gsvd` and in float32: enough to tell them apart.

    Args:
      target: what to imitate.
      ranks: each 1..min(q, n).
      metric: as for `joint`.

    Returns:
      {rank: stack}.

    Example:
      >>> w = np.random.default_rng(0).normal(size=(4, 9, 8))
      >>> white = Target(Gram.identity(36), w.reshape(36, 8), w)
      >>> [white.error(stack.kernel()) > 1 for stack in joints(white, [2, 8]).values()]
      [True, False]
    """
    lower, weighted = weighted_by(target, metric)
    single, of_gram = weighted.gram.single
    of_kernel = power_of_two(weighted.product) / of_gram
    equations = Equations(
        Gram(single, np.empty(0), 0.0),
        (weighted.product / of_gram / of_kernel).astype(np.float32),
    )
    whole = float(np.vdot(weighted.kernel, weighted.product)) / of_gram / of_kernel / of_kernel
    back = np.linalg.inv(lower)

    def fit(rank: int) -> Separable:
        apart = gsvd(weighted, rank)
        depthwise, pointwise = _unit_columns(weighted, apart.depthwise, apart.pointwise)
        unit = np.sqrt(of_gram)
        start = _fit(equations, depthwise * unit, pointwise / unit / of_kernel)
        last = settled(whole, _fits(equations, start, _FEW_ROUNDS))
        pointwise = last.pointwise.astype(np.float64) @ back * of_kernel
        stack = _balanced(Separable(last.depthwise.astype(np.float64), pointwise))
        if explained(target, stack, metric) < 0:  # moments of few rows may be beyond float32
            return joint(target, rank, metric)
        return stack

    return side_by_side(fit, ranks)


def joint_steps(equations: Equations, start: Separable, rounds: int) -> Iterator[Separable]:
    """Yields the stack with the best pointwise part for that of ``start``, then of each round.

    Args:
      equations: of the responses wanted.
      start: the factors to start from.
      rounds: so many.
    """
    for stack, _ in _fits(equations, _fit(equations, start.depthwise, start.pointwise), rounds):
        yield stack


def refit_separable(
    equations: Equations, stack: Separable, metric: np.ndarray | None, rounds: int
) -> Separable:
    """Some more rounds of `joint`."""
    lower = root(equations, metric)
    weighted = Equations(equations.gram, equations.product @ lower)
    start = Separable(stack.depthwise, stack.pointwise @ lower)
    *_, last = joint_steps(weighted, start, rounds)
    return _balanced(Separable(last.depthwise, last.pointwise @ np.linalg.inv(lower)))


def _check_rank(rank: int, q: int, n: int) -> None:
    if not 1 <= rank <= min(q, n):
        raise Error(f"rank: expected 1..{min(q, n)} for {q} taps and {n} outputs, got {rank}")


def _cholesky_per_channel(target: Target) -> np.ndarray:
    """Lower factors of the diagonal blocks of A, (c, q, q)."""
    return np.linalg.cholesky(own_blocks(target, len(target.kernel)))


def _best_per_channel(factor: np.ndarray, kernel: np.ndarray, rank: int) -> Separable:
    """Best rank-m answer of each (q, n) kernel in the metric L L^T; works on stacks of channels.

    The left singular vectors of H = L^T M come from the small H H^T; all of them together are a
    basis of the q taps, so the full rank is exact whatever the rounding.
    """
    transposed = np.swapaxes(factor, -1, -2)
    weighted = transposed @ kernel
    basis = np.linalg.eigh(weighted @ np.swapaxes(weighted, -1, -2))[1][..., ::-1][..., :rank]
    return _balanced(
        Separable(np.linalg.solve(transposed, basis), np.swapaxes(basis, -1, -2) @ weighted)
    )


def _balanced(stack: Separable) -> Separable:
    """The same product with both factors of each (channel, multiplier) of equal norm."""
    left = np.linalg.norm(stack.depthwise, axis=-2)
    right = np.linalg.norm(stack.pointwise, axis=-1)
    is_zero = (left <= TINY) | (right <= TINY)
    scale = np.sqrt(np.where(is_zero, 1, right) / np.where(is_zero, 1, left))
    return Separable(stack.depthwise * scale[..., None, :], stack.pointwise / scale[..., None])


def _sweep(target: Target, start: np.ndarray, rank: int, block: int = 16) -> Separable:
    """One pass of best rank-m updates, each channel given all others; ``start`` is (c, q, n)."""
    c, q, n = start.shape
    factors = _cholesky_per_channel(target)
    inverses = np.linalg.inv(own_blocks(target, len(target.kernel)))
    gap = (target.kernel - start).reshape(c * q, n)  # M - E, with E the current kernel
    depthwise, pointwise = np.empty((c, q, rank)), np.empty((c, rank, n))
    for first in range(0, c, block):
        rows = slice(first * q, min(first + block, c) * q)
        response = target.gram.matrix[rows] @ gap  # for a block at once: one large product
        for i in range(first, min(first + block, c)):
            own = slice(i * q, (i + 1) * q)
            local = slice((i - first) * q, (i - first + 1) * q)
            current = target.kernel[i] - gap[own]
            wanted = current + inverses[i] @ response[local]
            best = _best_per_channel(factors[i], wanted, rank)
            depthwise[i], pointwise[i] = best.depthwise, best.pointwise
            update = target.kernel[i] - best.kernel() - gap[own]
            gap[own] += update
            response += target.gram.matrix[rows, own] @ update
    return Separable(depthwise, pointwise)


def _fits(equations: Equations, fit: _Fit, rounds: int) -> Iterator[_Fit]:
    """Yields a fit, then what each round made of it.

    Least squares in turn creep along valleys. A round that goes further than they lead often gains
    more; where it does not, it goes only so far.
    """
    yield fit
    for number in range(rounds):
        stack, reached = fit
        depthwise = _solve_depthwise(equations, stack.depthwise, stack.pointwise)
        further = depthwise + MOMENTUM * (depthwise - stack.depthwise)
        fit = _fit(equations, further if number else depthwise, stack.pointwise)
        if number and fit[1] < reached:
            fit = _fit(equations, depthwise, stack.pointwise)
        yield fit


def _fit(equations: Equations, depthwise: np.ndarray, pointwise: np.ndarray) -> _Fit:
    """The best pointwise part for a depthwise part, and how much the two explain."""
    dtype = equations.product.dtype
    depthwise, pointwise = _unit_columns(
        equations, depthwise.astype(dtype), pointwise.astype(dtype)
    )
    stack = Separable(depthwise, _solve_pointwise(equations, depthwise, pointwise))
    return stack, float(np.vdot(stack.kernel().reshape(equations.product.shape), equations.product))


def _unit_columns(
    equations: Equations, depthwise: np.ndarray, pointwise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same product, each depthwise filter with a response of variance one."""
    filtered = own_blocks(equations, len(depthwise)) @ depthwise
    variance = np.einsum("cqm,cqm->cm", depthwise, filtered)
    scale = np.sqrt(np.where(variance > TINY, variance, 1))
    return depthwise / scale[:, None, :], pointwise * scale[..., None]


def _solve_pointwise(
    equations: Equations, depthwise: np.ndarray, pointwise: np.ndarray
) -> np.ndarray:
    """The best pointwise part for the depthwise part given, (c, m, n)."""
    c, q, m = depthwise.shape
    normal = between_columns(equations.gram.matrix, depthwise)
    wanted = np.swapaxes(depthwise, 1, 2) @ equations.product.reshape(c, q, -1)
    jitter = SINGLE_JITTER if normal.dtype == np.float32 else JITTER
    solved = least_squares(normal, wanted.reshape(c * m, -1), pointwise.reshape(c * m, -1), jitter)
    return solved.reshape(pointwise.shape)


def _solve_depthwise(
    equations: Equations, depthwise: np.ndarray, pointwise: np.ndarray
) -> np.ndarray:
    """The best depthwise part for the pointwise part given, (c, q, m)."""
    c, q, m = depthwise.shape
    n = pointwise.shape[2]
    rows = pointwise.reshape(c * m, n)
    weights = rows @ rows.T
    unit = power_of_two(weights)
    relative = weights.reshape(c, m, c * m) / unit
    wanted = equations.product.reshape(c, q, n) @ np.swapaxes(pointwise, 1, 2)

    def apply(factor: np.ndarray, gram: np.ndarray) -> np.ndarray:
        filtered = times_columns(gram, factor.astype(gram.dtype)).reshape(c * m, c, q)
        across = np.swapaxes(relative.astype(gram.dtype), 1, 2)
        return np.float64(unit) * (filtered.transpose(1, 2, 0) @ across)

    def apply_single(direction: np.ndarray) -> np.ndarray:
        single, of_gram = equations.gram.single
        length = power_of_two(direction)
        return (of_gram * length) * apply(direction / length, single)

    own = np.arange(c)
    inverse = np.linalg.inv(own_blocks(equations, len(depthwise)))
    own_weights = weights.reshape(c, m, c, m)[own, :, own, :]
    floor = JITTER * (np.trace(own_weights, axis1=1, axis2=2).max() or 1.0)
    inverse_weights = np.linalg.inv(own_weights + floor * np.eye(m))
    return conjugate_gradients(
        apply_single,
        wanted - apply(depthwise, equations.gram.matrix),
        depthwise,
        lambda residual: inverse @ residual @ inverse_weights,
    )
