"""The three kinds of stacks, what they compute, and the variances of their outputs."""

import dataclasses

import numpy as np


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
        return columns_of(self.reduce, self.depthwise) @ self.expand

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The stack's outputs (rows, n) for inputs (rows, c * q), in the dtype of x."""
        columns = columns_of(self.reduce, self.depthwise).reshape(x.shape[1], -1)
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


def variances(stack: Stack, xx: np.ndarray) -> np.ndarray:
    """Variances (n,) of a stack's outputs for inputs of covariance xx, (c * q, c * q)."""
    filtered, expand = between(stack, xx)
    return np.sum(expand * (filtered @ expand), axis=0)


def between(stack: Stack, xx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance (r, r) of what a stack's last factor reads, and that factor, (r, n).

    With the dense kernel it would cost as much as a Cholesky factorisation of xx.
    """
    if isinstance(stack, Separable):
        c, _, m = stack.depthwise.shape
        return between_columns(xx, stack.depthwise), stack.pointwise.reshape(c * m, -1)
    if isinstance(stack, Bottleneck):
        columns = columns_of(stack.reduce, stack.depthwise).reshape(len(xx), -1)
    else:
        columns = stack.filters.reshape(len(xx), -1)
    return columns.T @ (xx @ columns), stack.expand


def columns_of(reduce: np.ndarray, depthwise: np.ndarray) -> np.ndarray:
    """Rank-one filters reduce[:, r] x depthwise[:, r], (c, q, r)."""
    return reduce[:, None, :] * depthwise[None]


def times_columns(gram: np.ndarray, depthwise: np.ndarray) -> np.ndarray:
    """(A Z)^T, (c * m, c * q): Z is block diagonal with the (q, m) blocks of ``depthwise``."""
    c, q, m = depthwise.shape
    blocks = gram.reshape(c, q, c * q)
    return (np.swapaxes(depthwise, 1, 2) @ blocks).reshape(c * m, c * q)


def between_columns(gram: np.ndarray, depthwise: np.ndarray) -> np.ndarray:
    """Z^T A Z, (c * m, c * m)."""
    c, q, m = depthwise.shape
    filtered = times_columns(gram, depthwise).reshape(c * m, c, q)
    return np.swapaxes(np.swapaxes(filtered, 0, 1) @ depthwise, 0, 1).reshape(c * m, c * m)
