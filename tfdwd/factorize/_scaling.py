"""Factors scaled against each other: for the least noise in int8, and for training."""

import dataclasses

import numpy as np

from tfdwd.factorize._stacks import Bottleneck, Channel, Separable, Stack, columns_of
from tfdwd.factorize._targets import TINY


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
    columns = columns_of(reduce, stack.depthwise).reshape(len(xx), -1)
    variance = np.sum(columns * (xx @ columns), axis=0)
    second = _int8_scale(mean @ columns, variance, stack.expand)
    return Bottleneck(
        reduce * first, stack.depthwise * (second / first), stack.expand / second[:, None]
    )


def of_equal_size(stack: Stack) -> Stack:
    """The same kernel, its factors scaled by powers of two to weights of about the same size.

    Adam moves each weight by about the learning rate: of two factors whose weights are around 0.05
    and 1.5 it would move one thirty times as far as the other, for its size. What the stack gives
    stays the same to the last bit, in int8 too.

    Source: this project's; benchmarks/recipe.py measures what it brings.
    """
    factors = [getattr(stack, field.name) for field in dataclasses.fields(stack)]
    sizes = np.array([np.sqrt(np.mean(np.square(factor))) for factor in factors])
    if not sizes.min() > TINY:
        return stack
    logs = np.log2(sizes)
    powers = np.clip(np.round(logs.mean() - logs), -40, 40)  # stays inside float32
    powers[-1] = -powers[:-1].sum()
    return type(stack)(*(np.ldexp(f, int(p)) for f, p in zip(factors, powers, strict=True)))


def _int8_scale(mean: np.ndarray, variance: np.ndarray, expand: np.ndarray) -> np.ndarray:
    """Factors (r,) of an inner tensor's channels; ``expand`` (r, n) is divided by them."""
    reach, size = _reach(mean, variance), np.abs(expand).max(axis=1)
    size = np.where(size > TINY, size, size.max() if size.max() > TINY else 1.0)
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
    if not largest > TINY:
        return np.ones_like(reach)
    return np.where(reach > largest * TINY, reach, largest)  # a channel that never fires
