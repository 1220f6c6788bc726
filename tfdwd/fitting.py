"""One convolution and what was collected of it -> the best of the stacks that may replace it."""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfdwd import blas, factorize, rebuild
from tfdwd.calibration import DEFAULT, Collected, Moments, Settings, with_identity
from tfdwd.errors import Error
from tfdwd.plans import Option

_NEAR_ROUNDS = 4  # from a stack that is near
Starts = Mapping[Option, factorize.Separable | factorize.Bottleneck]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What replaces a convolution, and how well.

    Attributes:
      option: which of the stacks it is.
      stack: its factors.
      bias: (n,), or None.
      error: part of the response's variance that it misses; None without data.
      irreducible: part that every kernel misses; None without data.
      metric: how the channels of the response were weighed: "fisher", "identity", or "".
    """

    option: Option
    stack: factorize.Stack
    bias: np.ndarray | None
    error: float | None = None
    irreducible: float | None = None
    metric: str = ""

    @property
    def parameters(self) -> int:
        factors = dataclasses.astuple(self.stack)
        return sum(factor.size for factor in factors) + (0 if self.bias is None else len(self.bias))


def without_data(conv: keras.layers.Conv2D, options: Sequence[Option]) -> Fitted:
    """Approximates the kernel itself.

    Raises:
      tfdwd.Error: weights that are not finite.
    """
    kernel = rebuild.kernel_of(conv)
    if not np.isfinite(kernel).all():
        raise Error(f"layer {conv.name!r}: expected finite weights, got NaN or infinity")
    flat = kernel.reshape(-1, kernel.shape[2])
    white = factorize.Target(factorize.Gram.identity(len(flat)), flat, kernel)
    option, stack = _best(options, white, "svd", None, {})
    return Fitted(option, stack, _bias_of(conv))


def fit(
    collected: Collected,
    options: Sequence[Option],
    *,
    method: str = "joint",
    recalibrate: bool = True,
    settings: Settings = DEFAULT,
    starts: Starts | None = None,
) -> Fitted:
    """Fits the responses; "joint", where a ReLU follows, again with the freedom that it leaves.

    Args:
      collected: of the convolution.
      options: the stacks; the one of least error is taken.
      method, recalibrate: as for `tfdwd.decompose`.
      settings: of the sweep that collected it.
      starts: of some options stacks that are near, from which some rounds of "joint" are enough.
    """
    conv, plain = collected.conv, collected.moments
    kernel = rebuild.kernel_of(conv)
    with blas.threads_for(len(plain.sum_x)):
        inputs = factorize.gram(plain.xx)
        target = factorize.target(inputs, plain.xy, kernel)
    best = target.kernel.reshape(plain.xy.shape)
    irreducible = _missed(best, np.sum(best * (target.product - inputs.ridge * best)), plain)

    def with_bias(
        stack: factorize.Stack, wanted: Moments, equations: factorize.Equations
    ) -> tuple[factorize.Stack, np.ndarray | None]:
        if not recalibrate:
            return stack, _bias_of(conv)
        return _recalibrated(stack, wanted, equations)

    said = ""
    if method == "svd":
        of_kernel = without_data(conv, options)
        option, (stack, bias) = of_kernel.option, with_bias(of_kernel.stack, plain, target)
    else:
        metric = None
        if collected.fisher is not None:
            metric = with_identity(collected.fisher)
            said = "fisher" if np.trace(collected.fisher) > 0 else "identity"
        option, stack = _best(options, target, method, metric, starts or {})
        stack, bias = with_bias(stack, plain, target)
        for _ in range(settings.rectifications * collected.can_rectify):
            assert not isinstance(stack, factorize.Channel)  # rows are kept for "joint" alone
            wanted = collected.rectified(stack, bias)
            equations = factorize.equations(inputs, wanted.xy, kernel)
            with blas.threads_for(len(best), blas.VERY_LARGE):
                stack = factorize.refit(equations, stack, metric)
            stack, bias = with_bias(stack, wanted, equations)
    variance = float(factorize.variances(stack, inputs.matrix).sum())
    error = _missed(stack.kernel().reshape(best.shape), variance, plain)
    if settings.equalize:
        stack = factorize.equalized(stack, inputs.matrix, plain.mean_x)
    return Fitted(option, stack, bias, error=error, irreducible=irreducible, metric=said)


def _best(
    options: Sequence[Option],
    target: factorize.Target,
    method: str,
    metric: np.ndarray | None,
    starts: Starts,
) -> tuple[Option, factorize.Stack]:
    """The stack of least error among the options."""
    with blas.threads_for(len(target.product), blas.VERY_LARGE):
        answers = [
            (
                option,
                factorize.refit(target, starts[option], metric, _NEAR_ROUNDS)
                if option in starts
                else _factorized(option, target, method, metric),
            )
            for option in options
        ]
    if len(answers) > 1:
        answers.sort(key=lambda answer: target.error(answer[1].kernel(), metric))
    return answers[0]


def _factorized(
    option: Option, target: factorize.Target, method: str, metric: np.ndarray | None
) -> factorize.Stack:
    if option.stack == "bottleneck":
        return factorize.bottleneck(target, option.size, metric)
    if option.stack == "channel":
        return factorize.channel(target, option.size)
    if method == "sequential":
        return factorize.sequential(target, option.size)
    if method == "joint":
        return factorize.joint(target, option.size, metric)
    return factorize.gsvd(target, option.size)  # "svd" too: its metric is the identity


def _bias_of(conv: keras.layers.Conv2D) -> np.ndarray | None:
    return None if conv.bias is None else keras.ops.convert_to_numpy(conv.bias)


def _missed(kernel: np.ndarray, variance: float, moments: Moments) -> float:
    """Part of the response's variance that a kernel (c * q, n) misses; its own is ``variance``."""
    total = float(np.trace(moments.yy))
    if total <= 1e-12 * float(np.sum(moments.mean_y**2)):  # constant, as far as float32 can tell
        return 0.0
    return float(total - 2 * np.vdot(kernel, moments.xy) + variance) / total


def _recalibrated(
    stack: factorize.Stack, wanted: Moments, equations: factorize.Equations
) -> tuple[factorize.Stack, np.ndarray]:
    """The stack with each output's gain and bias fitted to the wanted responses.

    This is the re-estimation of the batch norm behind the layer, folded into the stack; the gain
    is the one of least error, so it is 1 where the last factor came from least squares.
    """
    kernel = stack.kernel().reshape(wanted.xy.shape)
    variances = factorize.variances(stack, equations.gram.matrix)
    gain = np.sum(kernel * equations.product, axis=0) / np.where(variances > 0, variances, 1)
    gain = np.where(gain > 0, gain, 1)
    return stack.scaled(gain), wanted.mean_y - gain * (wanted.mean_x @ kernel)
