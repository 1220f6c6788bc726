"""Solvers: from the second moments of a convolution to the factors of its stack.

Names and shapes. A convolution reads c channels through q = kh * kw taps and writes n channels;
its kernel is an array (c, q, n) here, "channel-major" where it is flattened to (c * q, n). With
x the (c * q,) inputs under one output position, y the (n,) response wanted there, and both
centred, the error of a kernel E is

    E|y - x E|^2 = E|y - x M|^2 + |A^(1/2) (M - E)|^2,     A = E[x x^T],   M = A^-1 E[x^T y]

The first term is what no kernel can mend. Everything here minimises the second, so every method
is one pure function of a `Target` (A, M) and a rank. NumPy and SciPy alone.

Source: He et al. 2019, "Depth-wise Decomposition for Accelerating Separable Convolutions in
Efficient Convolutional Neural Networks", arXiv 1910.09455, section 3, for `svd`, `gsvd` and
`sequential`; Zhang et al. 2015, arXiv 1505.06798, section 3.1, for `channel`. `joint` and
`bottleneck` are this project's.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import scipy.linalg

from tfdwd.errors import Error

# The depthwise step of `joint` and the first step of `bottleneck` have c * q * m and c * r
# unknowns; at c = 512 their normal matrices take up to 1.5 and 140 GB. Conjugate gradients never
# form them, and from the last round's answer this many steps end where an exact solve ends.
_CG_STEPS = 8
_ENOUGH = 2e-3  # a round that lowers the error by less than this part of it is the last
_REFIT_ROUNDS = 2
_JITTER = 1e-10  # relative to a diagonal of ones
_TINY = 1e-290  # what is not above it counts as zero: its parts may not be numbers any more


@dataclasses.dataclass(frozen=True, eq=False)
class Gram:
    """The inputs' second moments, factored once for any number of targets.

    Attributes:
      matrix: A, (c * q, c * q) float64, symmetric and positive definite: the covariance plus
        ``ridge`` on the diagonal.
      lower: its Cholesky factor; what is above the diagonal is not to be read.
      ridge: what was added.
    """

    matrix: np.ndarray
    lower: np.ndarray
    ridge: float

    @functools.cached_property
    def single(self) -> tuple[np.ndarray, float]:
        """A in float32, for iterations whose time is that of reading A, and what it is in units of.

        The unit is a power of two: float32 cannot hold the squares of all that it can hold.
        """
        unit = _power_of_two(self.matrix.diagonal())
        return (self.matrix / unit).astype(np.float32), unit

    @classmethod
    def identity(cls, size: int) -> "Gram":
        """White inputs: the error is then that of the kernel itself."""
        return cls(np.eye(size), np.eye(size), 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Equations:
    """The normal equations A M = ``product`` of the best regular kernel M, not solved.

    Attributes:
      gram: A.
      product: A M, (c * q, n) float64.
    """

    gram: Gram
    product: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Target(Equations):
    """What a stack shall imitate: the kernel M, and the metric A in which its error counts.

    Attributes:
      kernel: M, (c, q, n) float64.
    """

    kernel: np.ndarray

    def __post_init__(self) -> None:
        _check_finite("kernel", self.kernel)

    def error(self, kernel: np.ndarray, metric: np.ndarray | None = None) -> float:
        """|A^(1/2) (M - E)|^2 of a kernel E, (c, q, n), in units of the response's variance.

        With a metric, (n, n), the trace of metric (M - E)^T A (M - E).
        """
        gap = (self.kernel - kernel).reshape(self.product.shape)
        weighted = gap if metric is None else gap @ metric
        return float(np.vdot(weighted, self.gram.matrix @ gap))


@dataclasses.dataclass(frozen=True, eq=False)
class Separable:
    """Depthwise (c, q, m) then pointwise (c, m, n); rank m."""

    depthwise: np.ndarray
    pointwise: np.ndarray

    def kernel(self) -> np.ndarray:
        """The regular kernel that the stack equals, (c, q, n)."""
        return self.depthwise @ self.pointwise

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The stack's outputs (rows, n) for inputs (rows, c * q), in the dtype of x."""
        c, q, m = self.depthwise.shape
        between = np.einsum("xcq,cqm->xcm", x.reshape(-1, c, q), self.depthwise.astype(x.dtype))
        return between.reshape(-1, c * m) @ self.pointwise.reshape(c * m, -1).astype(x.dtype)

    def scaled(self, gain: np.ndarray) -> "Separable":
        """The stack with its outputs multiplied by ``gain``, (n,)."""
        return dataclasses.replace(self, pointwise=self.pointwise * gain)


@dataclasses.dataclass(frozen=True, eq=False)
class Bottleneck:
    """Pointwise (c, r), depthwise (q, r), pointwise (r, n); width r."""

    reduce: np.ndarray
    depthwise: np.ndarray
    expand: np.ndarray

    def kernel(self) -> np.ndarray:
        """The regular kernel that the stack equals, (c, q, n)."""
        return _columns(self.reduce, self.depthwise) @ self.expand

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The stack's outputs (rows, n) for inputs (rows, c * q), in the dtype of x."""
        columns = _columns(self.reduce, self.depthwise).reshape(x.shape[1], -1)
        return (x @ columns.astype(x.dtype)) @ self.expand.astype(x.dtype)

    def scaled(self, gain: np.ndarray) -> "Bottleneck":
        """The stack with its outputs multiplied by ``gain``, (n,)."""
        return dataclasses.replace(self, expand=self.expand * gain)


@dataclasses.dataclass(frozen=True, eq=False)
class Channel:
    """A regular convolution to d channels, (c, q, d), then pointwise (d, n)."""

    filters: np.ndarray
    expand: np.ndarray

    def kernel(self) -> np.ndarray:
        """The regular kernel that the stack equals, (c, q, n)."""
        return self.filters @ self.expand

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The stack's outputs (rows, n) for inputs (rows, c * q), in the dtype of x."""
        filters = self.filters.reshape(x.shape[1], -1)
        return (x @ filters.astype(x.dtype)) @ self.expand.astype(x.dtype)

    def scaled(self, gain: np.ndarray) -> "Channel":
        """The stack with its outputs multiplied by ``gain``, (n,)."""
        return dataclasses.replace(self, expand=self.expand * gain)


Stack = Separable | Bottleneck | Channel
StackT = TypeVar("StackT", Separable, Bottleneck)


def variances(stack: Stack, xx: np.ndarray) -> np.ndarray:
    """Variances (n,) of a stack's outputs for inputs of covariance xx, (c * q, c * q).

    The first factors are contracted with xx before the last one joins: with the dense kernel it
    would cost as much as a Cholesky factorisation of xx.
    """
    if isinstance(stack, Separable):
        c, _, m = stack.depthwise.shape
        filtered = _between_columns(xx, stack.depthwise)
        expand = stack.pointwise.reshape(c * m, -1)
    else:
        if isinstance(stack, Bottleneck):
            columns = _columns(stack.reduce, stack.depthwise).reshape(len(xx), -1)
        else:
            columns = stack.filters.reshape(len(xx), -1)
        filtered, expand = columns.T @ (xx @ columns), stack.expand
    return np.sum(expand * (filtered @ expand), axis=0)


def gram(xx: np.ndarray, ridge: float = 1e-4) -> Gram:
    """Factors the covariance of the inputs.

    Args:
      xx: (c * q, c * q), symmetric; may be singular.
      ridge: added to the diagonal, relative to the diagonal's mean; raised where rounding left
        xx too indefinite for it.

    Raises:
      tfdwd.Error: NaN or infinity.
    """
    _check_finite("covariance of the inputs", xx)
    largest = float(np.max(np.abs(xx)))
    scale = float(np.mean(np.diagonal(xx)))
    if scale <= 0:  # inputs that are constant, but for rounding
        scale = largest
    absolute = ridge * scale if scale > _TINY else ridge
    # From the sum of the absolute values in a row on, no symmetric matrix is indefinite.
    enough = 10 * len(xx) * largest + absolute
    while True:
        matrix = np.array(xx, np.float64)
        matrix[np.diag_indices_from(matrix)] += absolute
        try:
            lower, _ = scipy.linalg.cho_factor(
                matrix.copy().T, lower=True, overwrite_a=True, check_finite=False
            )
            return Gram(matrix, lower, absolute)
        except np.linalg.LinAlgError as error:
            if absolute > enough:
                raise Error("covariance of the inputs: expected a symmetric matrix") from error
            absolute = 10 * absolute or _JITTER * largest or 1.0


def _check_finite(what: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise Error(f"{what}: expected finite numbers, got NaN or infinity")


def _power_of_two(array: np.ndarray) -> float:
    """A power of two near the largest absolute value; dividing by it rounds nothing."""
    largest = float(np.max(np.abs(array), initial=0.0))
    return 2.0 ** int(np.frexp(largest)[1]) if largest > _TINY else 1.0


def equalized(stack: Stack, xx: np.ndarray, mean: np.ndarray) -> Stack:
    """The same kernel, its factors scaled against each other for the least noise in int8.

    The channels of an int8 tensor share one scale, as do the weights of one output of a pointwise
    convolution. Making the ranges of an inner tensor equal takes rounding noise from the tensor and
    brings some into the weights behind it; of a few steps in between the best is taken. Depthwise
    weights have a scale for each channel, so in front of them there is nothing to lose. The signs
    are chosen such that all means are positive, which makes the most of the zero point.

    Args:
      stack: the factors.
      xx: covariance of the inputs, (c * q, c * q).
      mean: of the inputs, (c * q,).

    Source: the trade-off is that of cross-layer equalisation, Nagel et al. 2019, arXiv 1906.04721,
    section 4.1; taking it from the moments is this project's.
    """
    if isinstance(stack, Separable):
        c, q, m = stack.depthwise.shape
        blocks = xx.reshape(c, q, c, q)[np.arange(c), :, np.arange(c), :]
        variance = np.sum(stack.depthwise * (blocks @ stack.depthwise), axis=1)
        means = np.einsum("cq,cqm->cm", mean.reshape(c, q), stack.depthwise)
        expand = stack.pointwise.reshape(c * m, -1)
        scale = _int8_scale(means.ravel(), variance.ravel(), expand).reshape(c, m)
        return Separable(stack.depthwise * scale[:, None, :], stack.pointwise / scale[..., None])
    if isinstance(stack, Channel):
        columns = stack.filters.reshape(len(xx), -1)
        scale = _int8_scale(mean @ columns, np.sum(columns * (xx @ columns), axis=0), stack.expand)
        return Channel(stack.filters * scale, stack.expand / scale[:, None])
    c, q = len(stack.reduce), len(stack.depthwise)
    tap = q // 2  # the first pointwise sees every position; the middle tap is as good as any
    one_tap, reduce = xx.reshape(c, q, c, q)[:, tap, :, tap], stack.reduce
    means = mean.reshape(c, q)[:, tap] @ reduce
    reach = _reach(means, np.sum(reduce * (one_tap @ reduce), axis=0))
    first = np.where(means < 0, -1, 1) * _in_range(1 / reach)
    columns = _columns(reduce, stack.depthwise).reshape(len(xx), -1)
    variance = np.sum(columns * (xx @ columns), axis=0)
    second = _int8_scale(mean @ columns, variance, stack.expand)
    return Bottleneck(
        reduce * first, stack.depthwise * (second / first), stack.expand / second[:, None]
    )


def _int8_scale(mean: np.ndarray, variance: np.ndarray, expand: np.ndarray) -> np.ndarray:
    """Factors (r,) of an inner tensor's channels; ``expand`` (r, n) is divided by them."""
    reach, size = _reach(mean, variance), np.abs(expand).max(axis=1)
    size = np.where(size > _TINY, size, size.max() if size.max() > _TINY else 1.0)
    power = variance + mean**2

    def noise(scale: np.ndarray) -> float:
        weights = expand / scale[:, None]
        of_tensor = (2 * np.max(reach * scale) / 255) ** 2 * np.sum(weights**2)
        of_weights = np.sum((np.abs(weights).max(axis=0) / 127) ** 2) * np.sum(power * scale**2)
        return float(of_tensor + of_weights)

    scales = [reach**-share * size ** (1 - share) for share in (0, 0.25, 0.5, 0.75, 1)]
    return np.where(mean < 0, -1, 1) * _in_range(min(scales, key=noise))


def _in_range(scale: np.ndarray) -> np.ndarray:
    """Keeps weights that are multiplied and divided by such factors inside float32."""
    return np.clip(scale, 2.0**-40, 2.0**40)


def _reach(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """How far from zero most values of each channel lie."""
    reach = np.abs(mean) + 4 * np.sqrt(np.maximum(variance, 0))
    largest = reach.max()
    if not largest > _TINY:
        return np.ones_like(reach)
    return np.where(reach > largest * _TINY, reach, largest)  # a channel that never fires


def equations(inputs: Gram, xy: np.ndarray, kernel: np.ndarray) -> Equations:
    """The normal equations that `target` solves; the same arguments."""
    _check_finite("covariance of the inputs with the response", xy)
    return Equations(inputs, xy + inputs.ridge * kernel.reshape(xy.shape))


def target(inputs: Gram, xy: np.ndarray, kernel: np.ndarray) -> Target:
    """Finds the best regular kernel for the given moments.

    Where the inputs do not determine the kernel (a channel that never fires, fewer rows than
    unknowns), the answer stays with the kernel given: M minimises the response's error plus
    the inputs' ridge times |M - kernel|^2.

    Args:
      inputs: from `gram`.
      xy: (c * q, n) covariance of the inputs with the response wanted.
      kernel: (c, q, n), the kernel to stay near.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(1000, 4 * 9))
      >>> w = np.ones((4, 9, 5))
      >>> t = target(gram(x.T @ x), x.T @ x @ w.reshape(36, 5), w)
      >>> bool(np.allclose(t.kernel, w))
      True
    """
    product = equations(inputs, xy, kernel).product
    solved = scipy.linalg.cho_solve((inputs.lower, True), product, check_finite=False)
    return Target(inputs, product, solved.reshape(kernel.shape))


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
    _check_finite("kernel", kernel)
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
    if _error(target, swept) > _error(target, apart):
        swept = _sweep(target, apart.kernel(), rank)
    if _error(target, swept) > 0:
        swept = _sweep(target, np.zeros_like(target.kernel), rank)
    return swept


def joint(target: Target, rank: int, metric: np.ndarray | None = None) -> Separable:
    """All channels at once: least squares for the pointwise and the depthwise part in turn.

    Starts from `sequential`; no step raises the error. Up to five rounds.

    Args:
      target: what to imitate.
      rank: 1..min(q, n).
      metric: (n, n) positive definite weight of the response's error; the identity if None.
    """
    lower = _root(target, metric)
    weighted = Target(target.gram, target.product @ lower, target.kernel @ lower)
    steps = joint_steps(weighted, sequential(weighted, rank), 5)
    last = _settled(weighted, steps, 2)
    return _balanced(Separable(last.depthwise, last.pointwise @ np.linalg.inv(lower)))


def joint_steps(equations: Equations, start: Separable, rounds: int) -> Iterator[Separable]:
    """Yields the stack after each least squares of `joint`."""
    depthwise, pointwise = start.depthwise, start.pointwise
    for _ in range(rounds):
        depthwise, pointwise = _unit_columns(equations, depthwise, pointwise)
        pointwise = _solve_pointwise(equations, depthwise, pointwise)
        yield Separable(depthwise, pointwise)
        depthwise = _solve_depthwise(equations, depthwise, pointwise)
        yield Separable(depthwise, pointwise)
    yield Separable(depthwise, _solve_pointwise(equations, depthwise, pointwise))


def bottleneck(
    target: Target, width: int, metric: np.ndarray | None = None, rounds: int = 25
) -> Bottleneck:
    """Pointwise to ``width`` channels, depthwise, pointwise: three least squares in turn.

    A CP decomposition of the kernel in the metric A, from the SVDs of the filters whose responses
    are the principal components of the response. No step raises the error.

    Args:
      target: what to imitate.
      width: 1 or more; exact from n * min(c, q) on.
      metric: (n, n) positive definite weight of the response's error; the identity if None.
      rounds: triples of least squares, at most.
    """
    if width < 1:
        raise Error(f"width of a bottleneck: expected 1 or more, got {width}")
    lower = _root(target, metric)
    weighted = Target(target.gram, target.product @ lower, target.kernel @ lower)
    steps = bottleneck_steps(weighted, _principal_start(weighted, width), rounds)
    last = _settled(weighted, steps, 3)
    return dataclasses.replace(last, expand=last.expand @ np.linalg.inv(lower))


def bottleneck_steps(equations: Equations, start: Bottleneck, rounds: int) -> Iterator[Bottleneck]:
    """Yields the stack after each least squares of `bottleneck`."""
    reduce, depthwise, expand = start.reduce, start.depthwise, start.expand
    for _ in range(rounds):
        expand = _solve_expand(equations, reduce, depthwise, expand)
        yield Bottleneck(reduce, depthwise, expand)
        reduce = _solve_reduce(equations, reduce, depthwise, expand)
        yield Bottleneck(reduce, depthwise, expand)
        depthwise = _solve_shared_depthwise(equations, reduce, depthwise, expand)
        yield Bottleneck(reduce, depthwise, expand)
        # A component's three factors are free up to two scales.
        for_reduce, for_depthwise = _norms(reduce), _norms(depthwise)
        reduce, depthwise = reduce / for_reduce, depthwise / for_depthwise
        expand = expand * (for_reduce * for_depthwise)[:, None]
    yield Bottleneck(reduce, depthwise, _solve_expand(equations, reduce, depthwise, expand))


def refit(
    equations: Equations, stack: Separable | Bottleneck, metric: np.ndarray | None = None
) -> Separable | Bottleneck:
    """Some more rounds of `joint` or `bottleneck`, for responses that changed a little.

    Args:
      equations: of the responses wanted now.
      stack: the answer to what was wanted before.
      metric: (n, n) positive definite weight of the response's error; the identity if None.
    """
    lower = _root(equations, metric)
    weighted, back = Equations(equations.gram, equations.product @ lower), np.linalg.inv(lower)
    if isinstance(stack, Separable):
        start = Separable(stack.depthwise, stack.pointwise @ lower)
        *_, last = joint_steps(weighted, start, _REFIT_ROUNDS)
        return _balanced(Separable(last.depthwise, last.pointwise @ back))
    first = dataclasses.replace(stack, expand=stack.expand @ lower)
    *_, narrow = bottleneck_steps(weighted, first, _REFIT_ROUNDS)
    return dataclasses.replace(narrow, expand=narrow.expand @ back)


def _settled(target: Target, steps: Iterator[StackT], per_round: int) -> StackT:
    """The last of some steps, or the first that ends a round in which little was gained."""
    left = np.inf
    for number, stack in enumerate(steps):
        if number % per_round == 0:  # the last factor is the best for its others
            before, left = left, _error_after_least_squares(target, stack)
            if not before - left > _ENOUGH * left:
                break
    return stack


def channel(target: Target, filters: int) -> Channel:
    """A k x k convolution to ``filters`` channels and a 1x1: principal components of the response.

    Args:
      target: what to imitate.
      filters: 1..n.

    Source: Zhang et al. 2015, arXiv 1505.06798, section 3.1 (linear case).
    """
    n = target.kernel.shape[2]
    if not 1 <= filters <= n:
        raise Error(f"filters of a channel decomposition: expected 1..{n}, got {filters}")
    basis = _principal_responses(target)[1][:, :filters]
    return Channel(target.kernel @ basis, basis.T)


# ---------------------------------------------------------------------- one channel at a time


def _check_rank(rank: int, q: int, n: int) -> None:
    if not 1 <= rank <= min(q, n):
        raise Error(f"rank: expected 1..{min(q, n)} for {q} taps and {n} outputs, got {rank}")


def _cholesky_per_channel(target: Target) -> np.ndarray:
    """Lower factors of the diagonal blocks of A, (c, q, q)."""
    return np.linalg.cholesky(_own_blocks(target, len(target.kernel)))


def _own_blocks(equations: Equations, channels: int) -> np.ndarray:
    c, q = channels, len(equations.product) // channels
    own = np.arange(c)
    return equations.gram.matrix.reshape(c, q, c, q)[own, :, own, :]


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
    is_zero = (left <= _TINY) | (right <= _TINY)
    scale = np.sqrt(np.where(is_zero, 1, right) / np.where(is_zero, 1, left))
    return Separable(stack.depthwise * scale[..., None, :], stack.pointwise / scale[..., None])


def _sweep(target: Target, start: np.ndarray, rank: int, block: int = 16) -> Separable:
    """One pass of best rank-m updates, each channel given all others; ``start`` is (c, q, n)."""
    c, q, n = start.shape
    factors = _cholesky_per_channel(target)
    inverses = np.linalg.inv(_own_blocks(target, len(target.kernel)))
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


# ---------------------------------------------------------------------- all channels at once


def _root(equations: Equations, metric: np.ndarray | None) -> np.ndarray:
    """L of metric = L L^T, (n, n): the error of E in the metric is that of E L against M L."""
    n = equations.product.shape[1]
    if metric is None:
        return np.eye(n)
    if metric.shape != (n, n):
        raise Error(f"metric: expected shape {(n, n)}, got {metric.shape}")
    _check_finite("metric", metric)
    try:
        return np.linalg.cholesky(metric)
    except np.linalg.LinAlgError as error:
        raise Error("metric: expected a positive definite matrix, got one that is not") from error


def _times_columns(gram: np.ndarray, depthwise: np.ndarray) -> np.ndarray:
    """(A Z)^T, (c * m, c * q): Z is block diagonal with the (q, m) blocks of ``depthwise``."""
    c, q, m = depthwise.shape
    blocks = gram.reshape(c, q, c * q)
    return (np.swapaxes(depthwise, 1, 2) @ blocks).reshape(c * m, c * q)


def _between_columns(gram: np.ndarray, depthwise: np.ndarray) -> np.ndarray:
    """Z^T A Z, (c * m, c * m)."""
    c, q, m = depthwise.shape
    filtered = _times_columns(gram, depthwise).reshape(c * m, c, q)
    return np.swapaxes(np.swapaxes(filtered, 0, 1) @ depthwise, 0, 1).reshape(c * m, c * m)


def _unit_columns(
    equations: Equations, depthwise: np.ndarray, pointwise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same product, each depthwise filter with a response of variance one."""
    filtered = _own_blocks(equations, len(depthwise)) @ depthwise
    variance = np.einsum("cqm,cqm->cm", depthwise, filtered)
    scale = np.sqrt(np.where(variance > _TINY, variance, 1))
    return depthwise / scale[:, None, :], pointwise * scale[..., None]


def _solve_pointwise(
    equations: Equations, depthwise: np.ndarray, pointwise: np.ndarray
) -> np.ndarray:
    """The best pointwise part for the depthwise part given, (c, m, n)."""
    c, q, m = depthwise.shape
    normal = _between_columns(equations.gram.matrix, depthwise)
    wanted = np.swapaxes(depthwise, 1, 2) @ equations.product.reshape(c, q, -1)
    solved = _least_squares(normal, wanted.reshape(c * m, -1), pointwise.reshape(c * m, -1))
    return solved.reshape(pointwise.shape)


def _solve_depthwise(
    equations: Equations, depthwise: np.ndarray, pointwise: np.ndarray
) -> np.ndarray:
    """The best depthwise part for the pointwise part given, (c, q, m)."""
    c, q, m = depthwise.shape
    n = pointwise.shape[2]
    rows = pointwise.reshape(c * m, n)
    weights = rows @ rows.T
    unit = _power_of_two(weights)
    relative = weights.reshape(c, m, c * m) / unit
    wanted = equations.product.reshape(c, q, n) @ np.swapaxes(pointwise, 1, 2)

    def apply(factor: np.ndarray, gram: np.ndarray) -> np.ndarray:
        filtered = _times_columns(gram, factor.astype(gram.dtype)).reshape(c * m, c, q)
        across = np.swapaxes(relative.astype(gram.dtype), 1, 2)
        return np.float64(unit) * (filtered.transpose(1, 2, 0) @ across)

    own = np.arange(c)
    inverse = np.linalg.inv(_own_blocks(equations, len(depthwise)))
    own_weights = weights.reshape(c, m, c, m)[own, :, own, :]
    floor = _JITTER * (np.trace(own_weights, axis1=1, axis2=2).max() or 1.0)
    inverse_weights = np.linalg.inv(own_weights + floor * np.eye(m))
    return _conjugate_gradients(
        apply, equations, wanted, depthwise, lambda residual: inverse @ residual @ inverse_weights
    )


def _error(target: Target, stack: Separable) -> float:
    """`Target.error` less that of zeros, without products of A with dense kernels."""
    kernel = stack.kernel().reshape(target.product.shape)
    return float(variances(stack, target.gram.matrix).sum() - 2 * np.vdot(kernel, target.product))


def _error_after_least_squares(target: Target, stack: Stack) -> float:
    """`Target.error` of a stack whose last factor is the best for its others, at little cost.

    There the gap M - E is at right angles to E in the metric A.
    """
    gap = (target.kernel - stack.kernel()).reshape(target.product.shape)
    return float(np.vdot(gap, target.product))


def _least_squares(normal: np.ndarray, wanted: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Solves normal @ x = wanted, staying with ``start`` where normal is singular.

    The proximal term (a little of |x - start|^2, in units of normal's diagonal) makes every
    step safe and, since it vanishes at ``start``, can not raise the error.
    """
    diagonal = np.diagonal(normal).copy()
    largest = diagonal.max()
    scale = 1 / np.sqrt(np.maximum(diagonal, largest * 1e-30 if largest > _TINY else 1))
    scaled = normal * scale[:, None] * scale
    jitter = _JITTER
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


def _conjugate_gradients(
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
        length = _power_of_two(direction)
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


# ---------------------------------------------------------------------- bottleneck


def _columns(reduce: np.ndarray, depthwise: np.ndarray) -> np.ndarray:
    """Rank-one filters reduce[:, r] x depthwise[:, r], (c, q, r)."""
    return reduce[:, None, :] * depthwise[None]


def _principal_responses(target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Variances (n,), falling, and directions (n, n) of the response's principal components."""
    n = target.kernel.shape[2]
    covariance = target.kernel.reshape(-1, n).T @ target.product
    variances, directions = np.linalg.eigh((covariance + covariance.T) / 2)
    return variances[::-1], directions[:, ::-1]


def _principal_start(target: Target, width: int) -> Bottleneck:
    """The ``width`` strongest rank-one parts of the filters behind the principal responses."""
    c, q, _ = target.kernel.shape
    variances, directions = _principal_responses(target)
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


def _solve_expand(
    equations: Equations, reduce: np.ndarray, depthwise: np.ndarray, expand: np.ndarray
) -> np.ndarray:
    columns = _columns(reduce, depthwise).reshape(len(equations.gram.matrix), -1)
    return _least_squares(
        columns.T @ (equations.gram.matrix @ columns), columns.T @ equations.product, expand
    )


def _solve_reduce(
    equations: Equations, reduce: np.ndarray, depthwise: np.ndarray, expand: np.ndarray
) -> np.ndarray:
    (c, width), q = reduce.shape, len(depthwise)
    weights = expand @ expand.T
    unit = _power_of_two(weights)
    relative = weights / unit
    wanted = np.einsum("cqr,qr->cr", (equations.product @ expand.T).reshape(c, q, width), depthwise)

    def apply(factor: np.ndarray, gram: np.ndarray) -> np.ndarray:
        columns = _columns(factor, depthwise).reshape(c * q, width)
        filtered = gram @ columns.astype(gram.dtype)
        mixed = (filtered @ relative.astype(gram.dtype)).reshape(c, q, width)
        return np.float64(unit) * np.einsum("cqr,qr->cr", mixed, depthwise.astype(gram.dtype))

    # One (r, r) block per channel: couples the components, which overlap far more than channels.
    blocks = np.swapaxes(depthwise, 0, 1) @ _own_blocks(equations, c) @ depthwise * weights
    return _conjugate_gradients(apply, equations, wanted, reduce, _block_inverse(blocks))


def _solve_shared_depthwise(
    equations: Equations, reduce: np.ndarray, depthwise: np.ndarray, expand: np.ndarray
) -> np.ndarray:
    (c, width), q = reduce.shape, len(depthwise)
    size = q * width
    filtered = np.tensordot(equations.gram.matrix.reshape(c, q, c, q), reduce, axes=(2, 0))
    normal = reduce.T @ filtered.transpose(1, 2, 0, 3)  # (tap, tap, component, component)
    normal = (normal * (expand @ expand.T)).transpose(0, 2, 1, 3).reshape(size, size)
    wanted = np.einsum("cqr,cr->qr", (equations.product @ expand.T).reshape(c, q, width), reduce)
    solved = _least_squares(normal, wanted.reshape(size, 1), depthwise.reshape(size, 1))
    return solved.reshape(q, width)


def _norms(columns: np.ndarray) -> np.ndarray:
    """Of each column; 1 for one of zeros."""
    norms = np.linalg.norm(columns, axis=0)
    return np.where(norms > _TINY, norms, 1)


def _block_inverse(blocks: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Solves with each (r, r) block of (c, r, r) for the rows of a (c, r)."""
    scale = np.trace(blocks, axis1=1, axis2=2)[:, None, None] / blocks.shape[1]
    floor = np.where(scale > _TINY, 1e-8 * scale, 1)
    inverse = np.linalg.inv(blocks + floor * np.eye(blocks.shape[1]))
    return lambda residual: (inverse @ residual[..., None])[..., 0]
