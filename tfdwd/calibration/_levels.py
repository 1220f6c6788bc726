"""A sweep: images stream through the original and the student side by side.

It walks both networks from the inputs to the outputs. It stops at each *level* of
convolutions that have no unsolved convolution before them, collects their moments over all
images, lets its caller solve them, and carries the activations at this frontier on to the next.
Each layer of each network so runs once per image, however deep the network is; the frontier is kept
in memory while it is small and on disk when it is not.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdwd import blas, workers
from tfdwd.calibration._fisher import fisher_metrics
from tfdwd.calibration._moments import Moments
from tfdwd.calibration._rows import patches_at, response, rows_at
from tfdwd.calibration._schedule import Schedule, Site
from tfdwd.calibration._spool import Spool
from tfdwd.errors import Error
from tfdwd.execution import run_call
from tfdwd.factorize import Stack
from tfdwd.graph import Graph, infer_specs, own_batch, rows_per_image
from tfdwd.inference import names_for_tensorflow
from tfdwd.rebuild import Expansion, kernel_of
from tfdwd.reporting import progress


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was chosen once for all networks (benchmarks/ablation.py and int8.py measure it).

    Attributes:
      rows_per_unknown, min_rows: rows of moments of a layer: so many for each unknown (c * q) of
        its kernel, and at least so many. With fewer the student gets worse, with more the moments
        take longer than all else.
      rectifications: how often a layer before a ReLU is fitted again; the first time brings most
        of what there is to gain.
      fisher: whether "joint" weighs the response by the Fisher metric.
      residual: whether a layer that ends a residual branch mends what the shortcut lost.
      equalize: whether a stack's factors are scaled against each other for int8.
    """

    rows_per_unknown: int = 32
    min_rows: int = 16384
    rectifications: int = 2
    fisher: bool = True
    residual: bool = True
    equalize: bool = True

    def rows(self, unknowns: int) -> int:
        """Of a layer with so many unknowns."""
        return max(self.min_rows, self.rows_per_unknown * unknowns)


DEFAULT = Settings()


def levels(
    graph: Graph,
    batches: Iterable[Sequence[np.ndarray]],
    convs: Sequence[keras.layers.Conv2D],
    expansions: Mapping[int, Expansion],
    *,
    across_layers: bool = True,
    weigh: bool = False,
    metrics: Mapping[int, np.ndarray] | None = None,
    keep_rows: bool = False,
    seed: int = 0,
    settings: Settings = DEFAULT,
) -> Iterator[list["Collected"]]:
    """Collects each convolution's moments, level after level from the inputs to the outputs.

    Args:
      graph: the original network, `tfdwd.graph.trace`.
      batches: the images, this worker's part where there are several (`tfdwd.workers`); each item
        has one array per input, batch axis first. Read once.
      convs: the convolutions to replace.
      expansions: {id(convolution): what replaces it}. What the caller puts in for one level before
        it asks for the next is what the student of that next level runs; with ``across_layers``
        it must be there for all of the level.
      across_layers: x, what a convolution reads, comes from the student (whose earlier layers are
        replaced) if True, from the original otherwise; then there is one level, and y is the
        original's response alone.
      weigh: whether `Collected.fisher` is wanted: how much each direction of the response matters
        (`fisher_metrics`), found on the first images.
      metrics: what an earlier run has found of that, {id(convolution): (n, n)}.
      keep_rows: whether `Collected.rectified` is wanted.
      seed: of the random positions at which rows are taken, the same in both networks.
      settings: how much of everything.

    Yields:
      What was collected of the convolutions that have no unsolved one before them. x is what the
      student feeds the convolution, (c * q,) channel-major; y the original's response before the
      activation and, where the layer ends a residual branch, what the shortcut lost before it.
      It is let go of when the next level is asked for.

    Raises:
      tfdwd.Error: no images, or a response that is not finite (names the layer).
    """
    schedule = Schedule(graph, convs, across_layers)
    with contextlib.ExitStack() as spools:
        frontier = Spool(spools)
        sizes, shapes = _read(in_own_batches(batches, graph), graph, frontier)
        images = int(workers.add_up([np.array(sum(sizes))])[0])
        specs = _shaped_specs(graph, shapes)
        times = rows_per_image(graph, specs)
        if metrics is None:
            metrics = fisher_metrics(graph, frontier, images, convs, specs, seed) if weigh else {}
        collected = {
            id(conv): Collected(conv, metrics.get(id(conv)), Spool(spools) if keep_rows else None)
            for conv in convs
        }
        live: tuple[Sequence[int], Sequence[int]] = (graph.inputs, ())
        bar = spools.enter_context(progress(len(frontier) * schedule.stages, "calibrating"))
        for stage in range(schedule.stages):
            following, sites = schedule.live_after(stage), schedule.measured[stage]
            after = Spool(spools)
            operations = [*(call.operation for call in graph.calls), *expansions.values()]
            with names_for_tensorflow(operations):
                run = _compile(schedule, stage, expansions, specs, live, following, settings)
                for index, tensors in enumerate(frontier):
                    positions = []
                    for site in sites:
                        source = np.random.default_rng((seed, site.number, index))
                        size, each = specs[site.output].shape[1:3], times[site.output] or 1
                        counts = each * sizes[index], each * images
                        rows = settings.rows(site.unknowns)
                        positions.append(_positions(rows, size, counts, source))
                    results, kept = run(tensors, positions)
                    for site, xyz in zip(sites, results, strict=True):
                        collected[id(site.conv)].add(site, *map(_array, xyz))
                    after.append(list(map(_array, kept)))
                    bar.update()
            frontier.close()
            frontier, live = after, following
            level = [collected.pop(id(conv)) for conv in schedule.solvable[stage]]
            for one in level:
                one.share()
            yield level
            for one in level:
                one.close()


def in_own_batches(
    batches: Iterable[Sequence[np.ndarray]], graph: Graph
) -> Iterator[Sequence[np.ndarray]]:
    """Cuts images into batches of the size that the network was made for, if it takes no other.

    The last one is filled up with images that it has already.
    """
    size = own_batch(graph)
    for arrays in batches:
        if size is None:
            yield arrays
            continue
        for first in range(0, len(arrays[0]), size):
            part = [array[first : first + size] for array in arrays]
            yield [np.resize(array, (size, *array.shape[1:])) for array in part]


def _read(
    batches: Iterable[Sequence[np.ndarray]], graph: Graph, frontier: Spool
) -> tuple[list[int], list[tuple[int | None, ...]]]:
    """Puts the images into a spool; returns the sizes of the batches, and the inputs' shapes."""
    sizes: list[int] = []
    shapes: list[tuple[int | None, ...]] | None = None
    for arrays in batches:
        tensors = [
            tf.cast(array, graph.specs[n].dtype).numpy()
            for array, n in zip(arrays, graph.inputs, strict=True)
        ]
        found = [(own_batch(graph), *tensor.shape[1:]) for tensor in tensors]
        if shapes is not None and found != shapes:
            raise Error(
                f"calibration data: expected images of one size, got {shapes[0][1:]} first and "
                f"{found[0][1:]} in batch {len(frontier)}; resize or crop them"
            )
        shapes = found
        frontier.append(tensors)
        sizes.append(len(tensors[0]))
    if shapes is None:
        raise Error("calibration data: expected at least one image, got an empty data set")
    return sizes, shapes


class Collected:
    """What a sweep collected of one convolution: moments, and the rows where a ReLU follows.

    Attributes:
      conv: the convolution.
      moments: of (x, y), this worker's until they are shared.
      fisher: `fisher_metrics` of the response, (n, n), or None.
    """

    def __init__(
        self, conv: keras.layers.Conv2D, fisher: np.ndarray | None, rows: Spool | None
    ) -> None:
        c, q, n = kernel_of(conv).shape
        self.conv = conv
        self.moments = Moments.empty(np.zeros(c * q), np.zeros(n))
        self._own = self.moments
        self.fisher = fisher
        self._rows = rows
        self._sites: list[Site] = []

    @property
    def can_rectify(self) -> bool:
        """Whether an activation with a flat part follows, and the rows were kept."""
        return bool(self._sites)

    def add(self, site: Site, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Adds rows: inputs (rows, d), responses (rows, n), what the activation gets (rows, n)."""
        # Overflow is found below, with the layer's name.
        with np.errstate(over="ignore", invalid="ignore"), blas.threads_for(x.shape[1]):
            if not self.moments.count:
                self.moments = Moments.empty(x.mean(axis=0), y.mean(axis=0))
            self.moments.add_rows(x, y)
        for what, squares in ("input", self.moments.sum_xx), ("response", self.moments.sum_yy):
            if not np.isfinite(np.diagonal(squares)).all():
                raise Error(
                    f"layer {self.conv.name!r}: expected finite numbers, but on the calibration "
                    f"data its {what} has NaN, infinity or squares beyond float32; check the "
                    "weights before it and the scale of the images"
                )
        if site.flat is not None and self._rows is not None:
            self._rows.append([x, y, z])
            self._sites.append(site)

    def share(self) -> None:
        """Adds up the moments of all workers; each keeps the rows of its own."""
        self._own = self.moments
        self.moments = self._own.over_workers()

    def rectified(self, stack: Stack, bias: np.ndarray | None) -> Moments:
        """Moments of (x, what the stack is to give), after a first answer.

        Where the original's response falls in a flat part of the activation behind the layer (for
        a ReLU: below zero), the student's may fall anywhere in it. So there the first answer's
        own response, cut off at the edge of the flat part, becomes the target instead.

        Args:
          stack, bias: the first answer; the bias is (n,) or None.

        Source: this project's; the freedom that the ReLU leaves is used for the channel
        decomposition in Zhang et al. 2015, arXiv 1505.06798, section 3.2.
        """
        assert self._rows is not None  # can_rectify
        addend = 0 if bias is None else bias.astype(np.float32)
        with blas.threads_for(len(self.moments.sum_x)):
            return self._own.with_responses_changed(
                (x, y, _free_change(site, y, z, stack.apply(x) + addend))
                for site, (x, y, z) in zip(self._sites, self._rows, strict=True)
            ).over_workers()

    def close(self) -> None:
        """Lets go of the rows."""
        if self._rows is not None:
            self._rows.close()


def _free_change(
    site: Site, response: np.ndarray, before: np.ndarray, fitted: np.ndarray
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


# ---------------------------------------------------------------------- one stage


def _compile(
    schedule: Schedule,
    stage: int,
    solved: Mapping[int, Expansion],
    specs: dict[int, keras.KerasTensor],
    live: tuple[Sequence[int], Sequence[int]],
    following: tuple[Sequence[int], Sequence[int]],
    settings: Settings,
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
            size = specs[site.output].shape[1:3]
            x = student[site.input] if site.input in student else original[site.input]
            y = rows_at(responses[site.output], at)
            z = y * site.gain.astype(np.float32) + site.offset.astype(np.float32)
            for n in site.shortcut:
                z += rows_at(original[n], at)
                if n in student and settings.residual:
                    y += (rows_at(original[n], at) - rows_at(student[n], at)) * _inverse(site.gain)
            rows.append((patches_at(site.conv, x, at, size), y, z))
        return rows, [original[n] for n in following[0]] + [student[n] for n in following[1]]

    signature = [tf.TensorSpec(specs[n].shape, specs[n].dtype) for n in (*live[0], *live[1])]
    positions = [tf.TensorSpec((None,), tf.int32) for _ in sites]
    compiled = tf.function(run, [signature, positions], autograph=False)
    # Made concrete: else TensorFlow warns of functions of one name that are traced again and again.
    return compiled.get_concrete_function()


def _array(tensor: tf.Tensor) -> np.ndarray:
    """The tensor's own memory, which `tensor.numpy()` would copy."""
    return np.from_dlpack(tensor) if tensor.dtype == tf.float32 else tensor.numpy()


def _inverse(gain: np.ndarray) -> np.ndarray:
    """1 / gain, fading to nothing where the batch norm all but shuts a channel off.

    Without that a channel that does not matter would ask for an enormous response.
    """
    floor = 1e-2 * np.mean(gain**2) + 1e-30
    return (gain / (gain**2 + floor)).astype(np.float32)


def _positions(
    rows: int, size: tuple[int, int], counts: tuple[int, int], source: np.random.Generator
) -> np.ndarray:
    """Random output positions of a batch, as many of each image: int32, into batch * h * w.

    All of them where about as many are needed as there are.

    Args:
      rows: that are wanted of all batches.
      size: height and width of the outputs.
      counts: images (time steps, where there are such) of the batch, and of all batches.
      source: of random numbers.
    """
    area, (batch, images) = size[0] * size[1], counts
    each = math.ceil(rows / images)
    if 2 * each >= area:
        return np.arange(batch * area, dtype=np.int32)
    within = source.integers(area, size=(batch, each), dtype=np.int32)
    return (within + area * np.arange(batch, dtype=np.int32)[:, None]).ravel()


def _shaped_specs(
    graph: Graph, shapes: list[tuple[int | None, ...]]
) -> dict[int, keras.KerasTensor]:
    """Symbolic tensors of the graph for inputs of these shapes."""
    if all(graph.specs[n].shape == s for n, s in zip(graph.inputs, shapes, strict=True)):
        return graph.specs
    return infer_specs(graph, shapes)
