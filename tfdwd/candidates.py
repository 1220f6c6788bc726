"""The convolutions of a network, and the stacks that could take their places."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfdwd import checks, costs, graph
from tfdwd.errors import Error
from tfdwd.nodes import is_convolution
from tfdwd.plans import Option

# What a plan tries: these ranks, and bottlenecks of these parts of the convolution's MACs, beside
# those of the MACs of these ranks. Widths differ by a part of each other at least; by more where
# fitting them takes seconds, from so many taps of all channels on.
RANKS = range(1, 5)
_BOTTLENECK_MACS = (0.06, 0.09, 0.13, 0.18, 0.25, 0.35, 0.5)
_APART, _APART_IF_LARGE, LARGE = 0.06, 0.25, 1024
_UNKNOWNS = 3000  # taps times width of the widest bottleneck: its fit takes their cube
# A convolution that reads fewer channels than this is kept unless it is asked for by name: the
# SIMD kernels of depthwise convolutions idle there, and what the first layer loses all others miss.
MIN_CHANNELS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Conv:
    """A layer that convolves, with the sizes at which it is called.

    Attributes:
      layer: the layer.
      path: its name after those of the models and layers around it, "backbone/conv1".
      inputs, outputs: positions that it reads and writes for one image, all calls together; 0 if
        that is not known.
      obstacle: why it cannot be replaced at all; empty if it can.
    """

    layer: keras.layers.Layer
    path: str
    inputs: int
    outputs: int
    obstacle: str

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Input channels c, taps q, outputs n of a regular convolution."""
        height, width, c, n = self.layer.kernel.shape
        return c, height * width, n

    @property
    def parameters(self) -> int:
        weights = getattr(self.layer, "weights", ())  # an operation has none
        return sum(int(np.prod(weight.shape)) for weight in weights)

    @property
    def macs(self) -> int:
        if not self.outputs:  # then it may not even be built
            return 0
        return costs.layer_macs(self.layer, self.inputs, self.outputs) or 0


def find_convolutions(traced: graph.Graph) -> list[Conv]:
    """The layers of a network that convolve, in the order of their first calls.

    Those inside a layer that could not be opened stand where that layer is called, each with its
    obstacle.
    """
    found: dict[int, Conv] = {}
    rows = graph.rows_per_image(traced)
    hidden = list(traced.hidden)

    def add_hidden(place: int) -> None:
        while hidden and hidden[0].place <= place:
            one = hidden.pop(0)
            obstacle = why_not(one.layer) or one.reason
            found.setdefault(id(one.layer), Conv(one.layer, one.path, 0, 0, obstacle))

    for place, call in enumerate(traced.calls):
        add_hidden(place)
        if not is_convolution(call.operation):
            continue
        inputs, outputs = (
            costs.positions(traced.specs[n].shape, call.operation)
            for n in (call.inputs[0], call.outputs[0])
        )
        times = rows[call.inputs[0]]
        if inputs is None or outputs is None or times is None:  # sizes left open: per position
            strides = getattr(call.operation, "strides", (1, 1))
            inputs, outputs, times = int(np.prod(strides)), 1, 1
        known = found.get(id(call.operation))
        if known is None:
            known = Conv(call.operation, call.path, 0, 0, why_not(call.operation))
        found[id(call.operation)] = dataclasses.replace(
            known, inputs=known.inputs + times * inputs, outputs=known.outputs + times * outputs
        )
    add_hidden(len(traced.calls))
    return list(found.values())


def why_not(layer: Any) -> str:
    """Why a convolution cannot be replaced, whatever is around it; empty if it can."""
    if not isinstance(layer, keras.layers.Layer):
        return "an operation with a kernel of its own, not a layer; use keras.layers.Conv2D"
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    for kind, reason in (
        ("BaseDepthwiseConv", "already depthwise"),
        ("BaseSeparableConv", "already separable"),
        ("BaseConvTranspose", "a transposed convolution"),
    ):
        if kind in kinds:
            return reason
    if type(layer) is not keras.layers.Conv2D:
        return f"a {type(layer).__name__}, not a plain Conv2D"
    if layer.data_format != "channels_last":
        return "channels first, which LiteRT does not run"
    if layer.groups > 1:
        return f"grouped ({layer.groups} groups)"
    if tuple(layer.kernel_size) == (1, 1):
        return "1x1 already"
    return ""


def why_not_unasked(conv: Conv) -> str:
    """Why a convolution that could be replaced is kept unless it is named; empty if it is not."""
    channels = conv.sizes[0]
    if channels < MIN_CHANNELS:
        return f"reads {channels} channels only; include= replaces it"
    return ""


def matching(convs: Sequence[Conv], option: str, patterns: Any) -> set[str]:
    """Paths of the convolutions that match any of the patterns; each pattern must match one.

    A pattern that is the name or the path of a convolution stands for that one alone: names may
    hold brackets.
    """
    matched = set()
    for pattern in checks.patterns(option, patterns):
        hits = {conv.path for conv in convs if pattern in (conv.name, conv.path)} or {
            conv.path
            for conv in convs
            if fnmatch.fnmatchcase(conv.name, pattern) or fnmatch.fnmatchcase(conv.path, pattern)
        }
        if not hits:
            names = ", ".join(conv.path for conv in convs) or "none"
            raise Error(
                f"{option}: expected names or patterns of convolutions, but {pattern!r} matches "
                f"none; the model's convolutions are: {names}"
            )
        matched |= hits
    return matched


def separable(conv: Conv, rank: int) -> Option:
    """The separable stack of a rank."""
    c, q, n = conv.sizes
    return Option("separable", rank, costs.separable_macs(c, q, n, rank, conv.outputs))


def bottleneck(conv: Conv, macs: int) -> Option | None:
    """The widest bottleneck stack of at most so many MACs; None if not even one channel fits."""
    c, q, n = conv.sizes
    each = costs.bottleneck_macs(c, q, n, 1, conv.outputs, conv.inputs)
    return Option("bottleneck", macs // each, macs // each * each) if macs >= each else None


def channel(conv: Conv, macs: int) -> Option:
    """The channel decomposition of at most so many MACs, of one filter at least."""
    c, q, n = conv.sizes
    each = costs.channel_macs(c, q, n, 1, conv.outputs)
    filters = min(n, max(1, macs // each))
    return Option("channel", filters, filters * each)


def parameters(conv: Conv, option: Option) -> int:
    """Of a separable stack or a bottleneck, with its bias, which is fitted in any case."""
    c, q, n = conv.sizes
    each = c * (q + n) if option.stack == "separable" else c + q + n
    return option.size * each + n


def options(conv: Conv) -> list[Option]:
    """The stacks that a plan tries for a convolution: all are of fewer MACs."""
    c, q, n = conv.sizes
    apart = _APART if c * q <= LARGE else _APART_IF_LARGE
    found = [separable(conv, rank) for rank in RANKS if rank <= min(q, n)]
    macs = [option.macs for option in found]
    macs += [int(part * conv.macs) for part in _BOTTLENECK_MACS]
    for most in macs:
        narrow = bottleneck(conv, most)
        if narrow is not None and q * narrow.size <= _UNKNOWNS and _is_new(narrow, found, apart):
            found.append(narrow)
    return [option for option in found if option.macs < conv.macs]


def _is_new(narrow: Option, found: Sequence[Option], apart: float) -> bool:
    """Whether no bottleneck is of about the same width."""
    sizes = [option.size for option in found if option.stack == "bottleneck"]
    return all(abs(narrow.size - size) > apart * size for size in sizes)
