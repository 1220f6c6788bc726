"""Second moments of convolutions, streamed through the original and the student side by side.

A *sweep* walks both networks from the inputs to the outputs. It stops at each level of
convolutions that have no unsolved convolution before them, collects their moments over all
images, has them solved, and carries the activations at this frontier on to the next level. Each
layer of each network so runs once per image, however deep the network is; the frontier is kept
in memory while it is small and on disk when it is not.
"""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdwd.errors import Error
from tfdwd.execution import response, run_call
from tfdwd.factorize import Stack
from tfdwd.fisher import fisher_metrics
from tfdwd.graph import Call, Graph, infer_specs
from tfdwd.rebuild import Expansion, expand, kernel_of
from tfdwd.reporting import progress

# Rows of moments per layer: at least MIN_ROWS, and so many per unknown (c * q) of its kernel. With
# fewer the student gets worse, with more the moments take longer than all else
# (benchmarks/ablation.py).
ROWS_PER_UNKNOWN = 32
MIN_ROWS = 16384
_IN_MEMORY = 160 * 2**20  # bytes of one spool that stay in memory


@dataclasses.dataclass(eq=False)
class Moments:
    """Sums from which means and covariances of (x, y) rows follow; they add up.

    Attributes:
      shift_x, shift_y: subtracted from all rows, so that large means cost no precision.
      count: number of rows.
      sum_x, sum_y: (d,), (n,) sums of shifted rows.
      sum_xx, sum_xy, sum_yy: (d, d), (d, n), (n, n) sums of products of shifted rows. All float64.
    """

    shift_x: np.ndarray
    shift_y: np.ndarray
    count: int
    sum_x: np.ndarray
    sum_y: np.ndarray
    sum_xx: np.ndarray
    sum_xy: np.ndarray
    sum_yy: np.ndarray

    @classmethod
    def empty(cls, shift_x: np.ndarray, shift_y: np.ndarray) -> "Moments":
        """No rows yet; the shifts (d,) and (n,) are best near the means."""
        d, n = len(shift_x), len(shift_y)
        zeros = (np.zeros(shape) for shape in (d, n, (d, d), (d, n), (n, n)))
        return cls(shift_x.astype(np.float64), shift_y.astype(np.float64), 0, *zeros)

    def add_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """Adds rows x (rows, d) and y (rows, n), float32."""
        x, y = x - self.shift_x.astype(x.dtype), y - self.shift_y.astype(y.dtype)
        self.count += len(x)
        self.sum_x += x.sum(axis=0, dtype=np.float64)
        self.sum_y += y.sum(axis=0, dtype=np.float64)
        self.sum_xx += x.T @ x  # numpy calls the symmetric product, half the work
        self.sum_xy += x.T @ y
        self.sum_yy += y.T @ y

    def change_responses(self, x: np.ndarray, y: np.ndarray, change: np.ndarray) -> None:
        """Replaces y by y + change for rows (x, y) that were added before."""
        total = change.sum(axis=0, dtype=np.float64)
        cross = change.T @ (y - self.shift_y.astype(y.dtype))
        self.sum_y += total
        # Without a shifted copy of x: it is large, and unlike in a covariance nothing cancels here.
        self.sum_xy += x.T @ change - np.outer(self.shift_x, total)
        self.sum_yy += cross + cross.T + change.T @ change

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows, whichever machines they were collected on."""
        dx, dy = other.shift_x - self.shift_x, other.shift_y - self.shift_y
        moved_x, moved_y = other.sum_x + other.count * dx, other.sum_y + other.count * dy
        return Moments(
            self.shift_x,
            self.shift_y,
            self.count + other.count,
            self.sum_x + moved_x,
            self.sum_y + moved_y,
            self.sum_xx + other.sum_xx + np.outer(dx, other.sum_x) + np.outer(moved_x, dx),
            self.sum_xy + other.sum_xy + np.outer(dx, other.sum_y) + np.outer(moved_x, dy),
            self.sum_yy + other.sum_yy + np.outer(dy, other.sum_y) + np.outer(moved_y, dy),
        )

    @property
    def mean_x(self) -> np.ndarray:
        return self.shift_x + self.sum_x / self.count

    @property
    def mean_y(self) -> np.ndarray:
        return self.shift_y + self.sum_y / self.count

    @property
    def xx(self) -> np.ndarray:
        """Covariance of x, (d, d)."""
        mean = self.sum_x / self.count
        return self.sum_xx / self.count - np.outer(mean, mean)

    @property
    def xy(self) -> np.ndarray:
        """Covariance of x with y, (d, n)."""
        return self.sum_xy / self.count - np.outer(self.sum_x, self.sum_y) / self.count**2

    @property
    def yy(self) -> np.ndarray:
        """Covariance of y, (n, n)."""
        mean = self.sum_y / self.count
        return self.sum_yy / self.count - np.outer(mean, mean)


def sweep(
    graph: Graph,
    batches: Iterable[Sequence[np.ndarray]],
    convs: Sequence[keras.layers.Conv2D],
    solve: Callable[[keras.layers.Conv2D, "Collected"], tuple[Stack, np.ndarray | None]],
    *,
    across_layers: bool = True,
    weigh: bool = False,
    seed: int = 0,
) -> dict[int, Expansion]:
    """Collects each convolution's moments and has it solved, from the inputs to the outputs.

    Args:
      graph: the original network, `tfdwd.graph.trace`.
      batches: the images; each item has one array per input, batch axis first. Read once.
      convs: the convolutions to replace.
      solve: makes a convolution's stack and bias (n,) from what was collected of it. x is what
        the student feeds the convolution, (c * q,) channel-major; y the original's response
        before the activation and, where the layer ends a residual branch, what the shortcut lost
        before it.
      across_layers: x comes from the student (whose earlier layers are replaced) if True, from
        the original otherwise; then y is the original's response alone.
      weigh: whether to give ``solve`` also how much each direction of the response matters
        (`tfdwd.fisher`), found on the first images.
      seed: of the random positions at which rows are taken, the same in both networks.

    Returns:
      {id(convolution): expansion}.

    Raises:
      tfdwd.Error: no images, or a response that is not finite (names the layer).
    """
    schedule = _Schedule(graph, convs, across_layers)
    solved: dict[int, Expansion] = {}
    with contextlib.ExitStack() as spools:
        frontier, images, shapes = _Spool(spools), 0, None
        for arrays in batches:
            tensors = [
                tf.cast(array, graph.specs[n].dtype).numpy()
                for array, n in zip(arrays, graph.inputs, strict=True)
            ]
            shapes = [(None, *tensor.shape[1:]) for tensor in tensors]
            frontier.append(tensors)
            images += len(tensors[0])
        if shapes is None:
            raise Error("calibration data: expected at least one image, got an empty data set")
        specs = _shaped_specs(graph, shapes)
        metrics = fisher_metrics(graph, frontier, convs, seed) if weigh else {}
        collected = {
            id(conv): Collected(conv, _Spool(spools), metrics.get(id(conv))) for conv in convs
        }
        live: tuple[Sequence[int], Sequence[int]] = (graph.inputs, ())
        bar = spools.enter_context(progress(len(frontier) * schedule.stages, "calibrating"))
        for stage in range(schedule.stages):
            following, sites = schedule.live_after(stage), schedule.measured[stage]
            run = _compile(schedule, stage, solved, specs, live, following)
            after = _Spool(spools)
            for index, tensors in enumerate(frontier):
                positions = [
                    _positions(site, specs[site.output].shape[1:3], len(tensors[0]), images,
                               np.random.default_rng((seed, site.number, index)))
                    for site in sites
                ]  # fmt: skip
                results, kept = run(tensors, positions)
                for site, xyz in zip(sites, results, strict=True):
                    collected[id(site.conv)].add(site, *(tensor.numpy() for tensor in xyz))
                after.append([tensor.numpy() for tensor in kept])
                bar.update()
            frontier.close()
            frontier, live = after, following
            for conv in schedule.solvable[stage]:
                rows = collected.pop(id(conv))
                solved[id(conv)] = expand(conv, *solve(conv, rows))
                rows.close()
    return solved


class Collected:
    """What a sweep collected of one convolution: moments, and the rows where a ReLU follows.

    Attributes:
      moments: of (x, y).
      metric: (n, n) weight of the response's error, or None.
    """

    def __init__(self, conv: keras.layers.Conv2D, rows: "_Spool", metric: np.ndarray | None = None):
        c, q, n = kernel_of(conv).shape
        self.moments = Moments.empty(np.zeros(c * q), np.zeros(n))
        self.metric = metric
        self._name = conv.name
        self._rows = rows
        self._sites: list[_Site] = []

    @property
    def can_rectify(self) -> bool:
        """Whether an activation with a flat part follows."""
        return bool(self._sites)

    def add(self, site: "_Site", x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Adds rows: inputs (rows, d), responses (rows, n), what the activation gets (rows, n)."""
        with np.errstate(over="ignore", invalid="ignore"):  # found below, with the layer's name
            if not self.moments.count:
                self.moments = Moments.empty(x.mean(axis=0), y.mean(axis=0))
            self.moments.add_rows(x, y)
        for what, squares in ("input", self.moments.sum_xx), ("response", self.moments.sum_yy):
            if not np.isfinite(np.diagonal(squares)).all():
                raise Error(
                    f"layer {self._name!r}: expected finite numbers, but on the calibration data "
                    f"its {what} has NaN, infinity or squares beyond float32; check the weights "
                    "before it and the scale of the images"
                )
        if site.flat is not None:
            self._rows.append([x, y, z])
            self._sites.append(site)

    def rectified(self, stack: Stack, bias: np.ndarray | None) -> Moments:
        """Moments of (x, what the stack is to give), after a first answer.

        Where the original's response falls in a flat part of the activation behind the layer (for
        a ReLU: below zero), the student's may fall anywhere in it. So there the first answer's
        own response, cut off at the edge of the flat part, is as good, and is wanted instead.

        Args:
          stack, bias: the first answer; the bias is (n,) or None.

        Source: this project's; the freedom that the ReLU leaves is used for the channel
        decomposition in Zhang et al. 2015, arXiv 1505.06798, section 3.2.
        """
        kernel = stack.kernel().reshape(len(self.moments.sum_x), -1).astype(np.float32)
        moments = dataclasses.replace(
            self.moments,
            sum_y=self.moments.sum_y.copy(),
            sum_xy=self.moments.sum_xy.copy(),
            sum_yy=self.moments.sum_yy.copy(),
        )
        addend = 0 if bias is None else bias.astype(np.float32)
        for site, (x, y, z) in zip(self._sites, self._rows, strict=True):
            change = _free_change(site, y, z, x @ kernel + addend)
            moments.change_responses(x, y, change)
        return moments

    def close(self) -> None:
        """Lets go of the rows."""
        self._rows.close()


def _free_change(
    site: "_Site", response: np.ndarray, before: np.ndarray, fitted: np.ndarray
) -> np.ndarray:
    """By how much the wanted responses may move towards the fitted ones at no loss, (rows, n).

    ``before`` is what the original's activation gets; the student's gets ``moved``. Where both
    are in the same flat part of the activation, the two agree already.
    """
    assert site.flat is not None  # rows are kept for no other site
    low, high = site.flat
    moved = before + site.gain.astype(np.float32) * (fitted - response)
    wanted = np.where(before <= low, np.minimum(moved, low), before)
    wanted = np.where(before >= high, np.maximum(moved, high), wanted)
    return (wanted - before) * _inverse(site.gain)


# ---------------------------------------------------------------------- what runs when


@dataclasses.dataclass(frozen=True, eq=False)
class _Site:
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


class _Schedule:
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
        self.measured: list[list[_Site]] = [[] for _ in range(self.stages)]
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


def _site(number: int, call: Call, graph: Graph, readers: dict[int, list[Call]]) -> _Site:
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
    return _Site(number, conv, call.inputs[0], call.outputs[0], shortcut, gain, offset, flat, c * q)


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


# ---------------------------------------------------------------------- one stage


def _compile(
    schedule: _Schedule,
    stage: int,
    solved: dict[int, Expansion],
    specs: dict[int, keras.KerasTensor],
    live: tuple[Sequence[int], Sequence[int]],
    following: tuple[Sequence[int], Sequence[int]],
) -> Callable[..., Any]:
    """One compiled function for all of a stage: frontier -> rows of its sites, next frontier.

    `model.predict` for each layer would trace and dispatch anew for each.
    """
    graph, sites = schedule.graph, schedule.measured[stage]
    split = len(live[0])

    def run(tensors: Sequence[Any], positions: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        original = dict(zip(live[0], tensors[:split], strict=True))
        student = dict(zip(live[1], tensors[split:], strict=True))
        responses = {}
        for number, call in enumerate(graph.calls):
            if schedule.student_at[number] == stage:
                operation = solved.get(id(call.operation), call.operation)
                student.update(run_call(call, operation, {**original, **student}))
            if schedule.original_at[number] == stage:
                if not schedule.replaced[number]:
                    original.update(run_call(call, call.operation, original))
                    continue
                conv, (output,) = call.operation, call.outputs
                responses[output] = response(conv, original[call.inputs[0]])
                original[output] = tf.cast(conv.activation(responses[output]), specs[output].dtype)
        rows = []  # after all else, since a shortcut may be computed after the branch it belongs to
        for site, at in zip(sites, positions, strict=True):
            x = student[site.input] if site.input in student else original[site.input]
            y = _at(responses[site.output], at)
            z = y * site.gain.astype(np.float32) + site.offset.astype(np.float32)
            for n in site.shortcut:
                z += _at(original[n], at)
                if n in student:
                    y += (_at(original[n], at) - _at(student[n], at)) * _inverse(site.gain)
            rows.append((_patches(site.conv, x, at), y, z))
        return rows, [original[n] for n in following[0]] + [student[n] for n in following[1]]

    signature = [tf.TensorSpec(specs[n].shape, specs[n].dtype) for n in (*live[0], *live[1])]
    return tf.function(
        run,
        input_signature=[signature, [tf.TensorSpec((None, None, 2), tf.int32) for _ in sites]],
        autograph=False,
    )


def _at(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Rows (batch * positions, n), float32, of (batch, h, w, n)."""
    return tf.reshape(
        tf.gather_nd(tf.cast(x, tf.float32), positions, batch_dims=1), (-1, x.shape[-1])
    )


def _inverse(gain: np.ndarray) -> np.ndarray:
    """1 / gain, fading to nothing where the batch norm all but shuts a channel off.

    Without that a channel that does not matter would ask for an enormous response.
    """
    floor = 1e-2 * np.mean(gain**2) + 1e-30
    return (gain / (gain**2 + floor)).astype(np.float32)


def _patches(conv: keras.layers.Conv2D, x: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """im2col at some output positions only.

    Args:
      conv: gives taps, strides, padding and dilation.
      x: (batch, h, w, c).
      at: (batch, positions, 2) int32, rows and columns of outputs.

    Returns:
      (batch * positions, c * q) float32, channel-major.
    """
    x = tf.cast(x, tf.float32)
    if conv.padding == "same":
        pads = []
        for size, taps, stride, dilation in zip(
            x.shape[1:3], conv.kernel_size, conv.strides, conv.dilation_rate, strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
            pads.append((total // 2, total - total // 2))
        x = tf.pad(x, [(0, 0), *pads, (0, 0)])
    taps = np.indices(conv.kernel_size).reshape(2, -1).T * conv.dilation_rate
    where = at[:, :, None, :] * np.array(conv.strides, np.int32) + taps.astype(np.int32)
    patches = tf.gather_nd(x, where, batch_dims=1)  # (batch, positions, q, c)
    channels, q = x.shape[3], len(taps)
    return tf.reshape(tf.transpose(patches, (0, 1, 3, 2)), (-1, channels * q))


def _positions(
    site: _Site, size: tuple[int, int], batch: int, images: int, source: np.random.Generator
) -> np.ndarray:
    """Random output positions for each image of a batch, (batch, positions, 2) int32.

    All of them where about as many are needed as there are.
    """
    height, width = size
    rows = max(MIN_ROWS, ROWS_PER_UNKNOWN * site.unknowns)
    each = math.ceil(rows / images)
    flat: np.ndarray
    if 2 * each >= height * width:
        flat = np.broadcast_to(np.arange(height * width), (batch, height * width))
    else:
        flat = source.integers(height * width, size=(batch, each))
    rows_and_columns = [flat // width, flat % width]
    return np.moveaxis(np.array(rows_and_columns, np.int32), 0, -1)


def _shaped_specs(
    graph: Graph, shapes: list[tuple[int | None, ...]]
) -> dict[int, keras.KerasTensor]:
    """Symbolic tensors of the graph for inputs of these shapes."""
    if all(graph.specs[n].shape[1:] == s[1:] for n, s in zip(graph.inputs, shapes, strict=True)):
        return graph.specs
    return infer_specs(graph, shapes)


class _Spool:
    """A queue of lists of arrays; what is beyond `_IN_MEMORY` bytes is kept on disk."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._file: Any = None
        self._batches: list[list[np.ndarray] | list[tuple[tuple[int, ...], np.dtype]]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._batches)

    def append(self, arrays: Sequence[np.ndarray]) -> None:
        self._bytes += sum(array.nbytes for array in arrays)
        if self._bytes <= _IN_MEMORY:
            self._batches.append(list(arrays))
            return
        if self._file is None:
            self._file = self._stack.enter_context(tempfile.TemporaryFile())
        self._batches.append([(array.shape, array.dtype) for array in arrays])
        for array in arrays:
            self._file.write(np.ascontiguousarray(array).data.cast("B"))

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        if self._file is not None:
            self._file.seek(0)
        for batch in self._batches:
            yield [item if isinstance(item, np.ndarray) else self._read(*item) for item in batch]

    def _read(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        content = self._file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(content, dtype).reshape(shape)

    def close(self) -> None:
        """Lets go of memory and file."""
        self._batches.clear()
        if self._file is not None:
            self._file.close()
