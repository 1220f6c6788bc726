"""What a stack shall imitate: targets, made from second moments."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
import scipy.linalg

from tfdwd.errors import Error
from tfdwd.factorize._stacks import Stack, between

TINY = 1e-290  # what is not above it counts as zero: its parts may not be numbers any more
JITTER = 1e-10  # relative to a diagonal of ones
Key = TypeVar("Key", bound=Hashable)


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
        if self.matrix.dtype == np.float32:
            return self.matrix, 1.0
        unit = power_of_two(self.matrix.diagonal())
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
        check_finite("kernel", self.kernel)

    def error(self, kernel: np.ndarray, metric: np.ndarray | None = None) -> float:
        """`|A^(1/2) (M - E)|^2` of a kernel E, (c, q, n), in units of the response's variance.

        With a metric, (n, n), the trace of metric (M - E)^T A (M - E).
        """
        gap = (self.kernel - kernel).reshape(self.product.shape)
        weighted = gap if metric is None else gap @ metric
        return float(np.vdot(weighted, self.gram.matrix @ gap))


def gram(xx: np.ndarray, ridge: float = 1e-4) -> Gram:
    """Factors the covariance of the inputs.

    Args:
      xx: (c * q, c * q), symmetric; may be singular.
      ridge: added to the diagonal, relative to the diagonal's mean; raised where rounding left
        xx too indefinite for it.

    Raises:
      tfdwd.Error: NaN or infinity.
    """
    check_finite("covariance of the inputs", xx)
    largest = float(np.max(np.abs(xx)))
    scale = float(np.mean(np.diagonal(xx)))
    if scale <= 0:  # inputs that are constant, but for rounding
        scale = largest
    absolute = ridge * scale if scale > TINY else ridge
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
            absolute = 10 * absolute or JITTER * largest or 1.0


def equations(inputs: Gram, xy: np.ndarray, kernel: np.ndarray) -> Equations:
    """The normal equations that `target` solves; the same arguments."""
    check_finite("covariance of the inputs with the response", xy)
    return Equations(inputs, xy + inputs.ridge * kernel.reshape(xy.shape))


def target(inputs: Gram, xy: np.ndarray, kernel: np.ndarray) -> Target:
    """Finds the best regular kernel for the given moments.

    Where the inputs do not determine the kernel (a channel that never fires, fewer rows than
    unknowns), the answer stays with the kernel given: M minimises the response's error plus
    the inputs' ridge times `|M - kernel|^2`.

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


def check_finite(what: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise Error(f"{what}: expected finite numbers, got NaN or infinity")


def power_of_two(array: np.ndarray) -> float:
    """A power of two near the largest absolute value; dividing by it rounds nothing."""
    largest = float(np.max(np.abs(array), initial=0.0))
    return 2.0 ** int(np.frexp(largest)[1]) if largest > TINY else 1.0


def own_blocks(equations: Equations, channels: int) -> np.ndarray:
    """The diagonal blocks of A, (c, q, q): each channel with itself."""
    c, q = channels, len(equations.product) // channels
    own = np.arange(c)
    return equations.gram.matrix.reshape(c, q, c, q)[own, :, own, :]


def root(equations: Equations, metric: np.ndarray | None) -> np.ndarray:
    """L of metric = L L^T, (n, n): the error of E in the metric is that of E L against M L."""
    n = equations.product.shape[1]
    if metric is None:
        return np.eye(n)
    if metric.shape != (n, n):
        raise Error(f"metric: expected shape {(n, n)}, got {metric.shape}")
    check_finite("metric", metric)
    try:
        return np.linalg.cholesky(metric)
    except np.linalg.LinAlgError as error:
        raise Error("metric: expected a positive definite matrix, got one that is not") from error


def weighted_by(target: Target, metric: np.ndarray | None) -> tuple[np.ndarray, Target]:
    """`root` of a metric, and the target times it: there the error counts alike in all directions.

    Args:
      target: what to imitate.
      metric: (n, n) positive definite; the identity if None.
    """
    lower = root(target, metric)
    return lower, Target(target.gram, target.product @ lower, target.kernel @ lower)


def principal_responses(target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Variances (n,), falling, and directions (n, n) of the response's principal components."""
    n = target.kernel.shape[2]
    covariance = target.kernel.reshape(-1, n).T @ target.product
    variances, directions = np.linalg.eigh((covariance + covariance.T) / 2)
    return variances[::-1], directions[:, ::-1]


def explained(target: Target, stack: Stack, metric: np.ndarray | None = None) -> float:
    """What a stack takes off the error of zeros, without products of A with dense kernels."""
    wanted = target.product if metric is None else target.product @ metric
    filtered, expand = between(stack, target.gram.matrix)
    weighted = expand if metric is None else expand @ metric
    kernel = stack.kernel().reshape(wanted.shape)
    return float(2 * np.vdot(kernel, wanted) - np.vdot(weighted, filtered @ expand))


def errors(
    target: Target, stacks: Mapping[Key, Stack], metric: np.ndarray | None = None
) -> dict[Key, float]:
    """`Target.error` of many stacks, each at a fraction of the cost.

    Args:
      target: what the stacks imitate.
      stacks: by any keys.
      metric: (n, n), of any kind; the identity if None.
    """
    whole = target.error(np.zeros_like(target.kernel), metric)
    return {
        key: max(0.0, whole - explained(target, stack, metric)) for key, stack in stacks.items()
    }
