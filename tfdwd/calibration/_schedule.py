"""Which layer runs when, so that each runs once in the original and once in the student."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfdwd.graph import Call, Graph
from tfdwd.rebuild import kernel_of


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A use of a convolution at which moments are taken.

    Attributes:
      number: tells the sites apart; seeds the positions.
      conv: the convolution.
      input, output: tensor numbers.
      shortcut: tensors that are added to the layer's output, if it ends a residual branch.
      gain, offset: (n,), what the batch norms behind the layer multiply with and add.
      flat: (low, high), if an activation follows that is constant below and above; None if not.
      unknowns: c * q.
    """

    number: int
    conv: keras.layers.Conv2D
    input: int
    output: int
    shortcut: tuple[int, ...]
    gain: np.ndarray
    offset: np.ndarray
    flat: tuple[float, float] | None
    unknowns: int


class Schedule:
    """Which call runs in which stage, in the original and in the student.

    A convolution's *level* is the number of replaced convolutions on the longest path before it.
    All of one level are measured in one stage and solved after it, so the student's tensors
    behind them exist from the next stage on. The original runs no further ahead, which bounds the
    frontier. A shared layer is solved when all its calls have been measured; a call whose input
    depends on the layer itself, or on one first called later, can have no student input by then
    and is left out of the moments.

    Attributes:
      stages: how many there are.
      replaced: for each call of the graph, whether it is one of a convolution to replace.
      measured: for each stage its sites.
      solvable: for each stage the convolutions whose moments are complete after it.
      original_at, student_at: for each call of the graph in which stage it runs in either network;
        None where nothing reads it or, in the student, where both networks still agree.
    """

    def __init__(self, graph: Graph, convs: Sequence[keras.layers.Conv2D], across_layers: bool):
        self.graph = graph
        wanted = {id(conv) for conv in convs}
        place: dict[int, int] = {}  # id(conv): order of its first call
        before_calls: dict[int, list[frozenset[int]]] = {}  # place: what is before each such call
        upstream: dict[int, frozenset[int]] = {n: frozenset() for n in graph.inputs}
        measurable = []
        self.replaced = [id(call.operation) in wanted for call in graph.calls]
        for call, replaced in zip(graph.calls, self.replaced, strict=True):
            before = frozenset[int]().union(*(upstream[n] for n in call.inputs))
            after, first = before, False
            if replaced:
                own = place.setdefault(id(call.operation), len(place))
                first = all(other < own for other in before)
                if first:
                    before_calls.setdefault(own, []).append(before)
                if across_layers:
                    after = before | {own}
            measurable.append(first)
            upstream.update(dict.fromkeys(call.outputs, after))

        level: dict[int, int] = {}
        for own, befores in sorted(before_calls.items()):
            level[own] = max((level[other] + 1 for b in befores for other in b), default=0)
        stage = {
            n: max((level[own] + 1 for own in before), default=0) for n, before in upstream.items()
        }
        diverged = {n for n, before in upstream.items() if before}
        original_at = [max(stage[n] for n in call.inputs) for call in graph.calls]
        student_at = [
            stage[call.outputs[0]] if call.outputs[0] in diverged else None for call in graph.calls
        ]
        self.stages = max(level.values(), default=-1) + 1
        self.solvable: list[list[keras.layers.Conv2D]] = [[] for _ in range(self.stages)]
        for conv in convs:
            self.solvable[level[place[id(conv)]]].append(conv)
        self.measured: list[list[Site]] = [[] for _ in range(self.stages)]
        readers = _readers(graph)
        for number, call in enumerate(graph.calls):
            if measurable[number]:
                site = _site(number, call, graph, readers)
                if any(stage[n] > original_at[number] for n in site.shortcut):  # not yet there
                    site = dataclasses.replace(site, shortcut=(), flat=None)
                self.measured[original_at[number]].append(site)

        # Backwards from what is measured: the last stage in which each tensor is read.
        self._last_use: tuple[dict[int, int], dict[int, int]] = ({}, {})

        def use(tensor: int, at: int, by_student: bool) -> None:
            uses = self._last_use[by_student and tensor in diverged]
            uses[tensor] = max(at, uses.get(tensor, 0))

        for at, sites in enumerate(self.measured):
            for site in sites:
                use(site.output, at, False)
                use(site.input, at, True)
                for tensor in site.shortcut:
                    use(tensor, at, False)
                    use(tensor, at, True)
        self.original_at: list[int | None] = [None] * len(graph.calls)
        self.student_at: list[int | None] = [None] * len(graph.calls)
        for number, call in reversed(list(enumerate(graph.calls))):
            later = student_at[number]
            if later is not None and any(n in self._last_use[1] for n in call.outputs):
                self.student_at[number] = later
                for tensor in call.inputs:
                    use(tensor, later, True)
            if any(n in self._last_use[0] for n in call.outputs):
                self.original_at[number] = original_at[number]
                for tensor in call.inputs:
                    use(tensor, original_at[number], False)

    def live_after(self, stage: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tensors of the original and of the student that exist by ``stage`` and are read later."""
        made: tuple[set[int], set[int]] = (set(self.graph.inputs), set())
        for call, *stages in zip(self.graph.calls, self.original_at, self.student_at, strict=True):
            for tensors, at in zip(made, stages, strict=True):
                if at is not None and at <= stage:
                    tensors.update(call.outputs)
        original, student = (
            tuple(sorted(n for n in tensors if last.get(n, -1) > stage))
            for tensors, last in zip(made, self._last_use, strict=True)
        )
        return original, student


def _readers(graph: Graph) -> dict[int, list[Call]]:
    readers: dict[int, list[Call]] = {}
    for call in graph.calls:
        for n in call.inputs:
            readers.setdefault(n, []).append(call)
    return readers


def _site(number: int, call: Call, graph: Graph, readers: dict[int, list[Call]]) -> Site:
    """A convolution's call with what follows it: batch norms, an addition, an activation."""
    conv, tensor = call.operation, call.outputs[0]
    c, q, n = kernel_of(conv).shape
    gain, offset = np.ones(n), np.zeros(n)
    shortcut: tuple[int, ...] = ()
    flat = _flat_parts(conv.activation)
    while conv.activation is keras.activations.linear:
        if tensor in graph.outputs or len(readers.get(tensor, [])) != 1:
            break
        (reader,) = readers[tensor]
        operation = reader.operation
        if _normalizes_channels(operation) and not shortcut:
            factor, addend = _affine(operation)
            gain, offset = gain * factor, offset * factor + addend
        elif type(operation).__name__ == "Add" and not shortcut:  # the layer, or that behind a + b
            shapes = {graph.specs[other].shape for other in reader.inputs}
            if len(reader.inputs) < 2 or len(shapes) > 1 or reader.inputs.count(tensor) > 1:
                break  # a constant, a broadcast, or the tensor with itself
            shortcut = tuple(other for other in reader.inputs if other != tensor)
        else:
            flat = _flat_parts(operation)
            break
        tensor = reader.outputs[0]
    return Site(
        number=number,
        conv=conv,
        input=call.inputs[0],
        output=call.outputs[0],
        shortcut=shortcut,
        gain=gain,
        offset=offset,
        flat=flat,
        unknowns=c * q,
    )


def _normalizes_channels(operation: Any) -> bool:
    return isinstance(operation, keras.layers.BatchNormalization) and operation.axis in (-1, 3)


def _affine(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the addend, (n,) each, of a batch norm at inference."""
    mean, variance = (
        keras.ops.convert_to_numpy(v).astype(np.float64)
        for v in (norm.moving_mean, norm.moving_variance)
    )
    factor = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        factor = factor * keras.ops.convert_to_numpy(norm.gamma)
    addend = -mean * factor
    if norm.center:
        addend = addend + keras.ops.convert_to_numpy(norm.beta)
    return factor, addend


def _flat_parts(activation: Any) -> tuple[float, float] | None:
    """Below and above which values an activation (a function or a layer) is constant."""
    if isinstance(activation, keras.layers.Activation):
        activation = activation.activation
    if isinstance(activation, keras.layers.ReLU):
        if activation.negative_slope or activation.threshold:
            return None
        return 0.0, np.inf if activation.max_value is None else float(activation.max_value)
    if activation is keras.activations.relu:
        return 0.0, np.inf
    if activation is keras.activations.relu6:
        return 0.0, 6.0
    return None
