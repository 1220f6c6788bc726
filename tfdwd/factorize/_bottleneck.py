"""Pointwise, depthwise, pointwise: a CP decomposition in the metric of the inputs."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from tfdwd.errors import Error
from tfdwd.factorize._solvers import conjugate_gradients, least_squares, settled
from tfdwd.factorize._stacks import Bottleneck, columns_of
from tfdwd.factorize._targets import (
    TINY,
    Equations,
    Target,
    own_blocks,
    power_of_two,
    principal_responses,
    root,
)


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
    lower = root(target, metric)
    weighted = Target(target.gram, target.product @ lower, target.kernel @ lower)
    steps = bottleneck_steps(weighted, principal_start(weighted, width), rounds)
    last = settled(weighted, steps, 3)
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
    """The ``width`` strongest rank-one parts of the filters behind the principal responses."""
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


def _solve_expand(
    equations: Equations, reduce: np.ndarray, depthwise: np.ndarray, expand: np.ndarray
) -> np.ndarray:
    columns = columns_of(reduce, depthwise).reshape(len(equations.gram.matrix), -1)
    return least_squares(
        columns.T @ (equations.gram.matrix @ columns), columns.T @ equations.product, expand
    )


def _solve_reduce(
    equations: Equations, reduce: np.ndarray, depthwise: np.ndarray, expand: np.ndarray
) -> np.ndarray:
    (c, width), q = reduce.shape, len(depthwise)
    weights = expand @ expand.T
    unit = power_of_two(weights)
    relative = weights / unit
    wanted = np.einsum("cqr,qr->cr", (equations.product @ expand.T).reshape(c, q, width), depthwise)

    def apply(factor: np.ndarray, gram: np.ndarray) -> np.ndarray:
        columns = columns_of(factor, depthwise).reshape(c * q, width)
        filtered = gram @ columns.astype(gram.dtype)
        mixed = (filtered @ relative.astype(gram.dtype)).reshape(c, q, width)
        return np.float64(unit) * np.einsum("cqr,qr->cr", mixed, depthwise.astype(gram.dtype))

    # One (r, r) block per channel: couples the components, which overlap far more than channels.
    blocks = np.swapaxes(depthwise, 0, 1) @ own_blocks(equations, c) @ depthwise * weights
    return conjugate_gradients(apply, equations, wanted, reduce, _block_inverse(blocks))


def _solve_shared_depthwise(
    equations: Equations, reduce: np.ndarray, depthwise: np.ndarray, expand: np.ndarray
) -> np.ndarray:
    (c, width), q = reduce.shape, len(depthwise)
    size = q * width
    filtered = np.tensordot(equations.gram.matrix.reshape(c, q, c, q), reduce, axes=(2, 0))
    normal = reduce.T @ filtered.transpose(1, 2, 0, 3)  # (tap, tap, component, component)
    normal = (normal * (expand @ expand.T)).transpose(0, 2, 1, 3).reshape(size, size)
    wanted = np.einsum("cqr,cr->qr", (equations.product @ expand.T).reshape(c, q, width), reduce)
    solved = least_squares(normal, wanted.reshape(size, 1), depthwise.reshape(size, 1))
    return solved.reshape(q, width)


def _norms(columns: np.ndarray) -> np.ndarray:
    """Of each column; 1 for one of zeros."""
    norms = np.linalg.norm(columns, axis=0)
    return np.where(norms > TINY, norms, 1)


def _block_inverse(blocks: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Solves with each (r, r) block of (c, r, r) for the rows of a (c, r)."""
    scale = np.trace(blocks, axis1=1, axis2=2)[:, None, None] / blocks.shape[1]
    floor = np.where(scale > TINY, 1e-8 * scale, 1)
    inverse = np.linalg.inv(blocks + floor * np.eye(blocks.shape[1]))
    return lambda residual: (inverse @ residual[..., None])[..., 0]
