"""What is known of a network before a budget is: candidates with times and losses, and images."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfdwd import (
    benchmarking,
    blas,
    bridge,
    calibration,
    candidates,
    checks,
    choice,
    conversion,
    costs,
    decomposition,
    factorize,
    graph,
    rebuild,
    reporting,
    selection,
    times,
    workers,
)
from tfdwd.batches import calibration_batches, peek
from tfdwd.calibration import Spool, loss_metric, with_identity
from tfdwd.choice import Candidate, Taken
from tfdwd.errors import Error
from tfdwd.fitting import Starts
from tfdwd.likeness import Likeness, Reference
from tfdwd.plans import Option
from tfdwd.selection import Selected
from tfdwd.shapes import InputShape, images_at_once

# Images to compare students on: of the first so many one in eight, then every other one, and so
# many in all. A mean over 128 cannot tell ten students apart whose losses differ by a tenth; stacks
# that are fitted to half of the images are as good.
_FIRST, _HELD_BACK = 128, 512


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A network with all that is known of it before a budget is.

    Attributes:
      model, traced: the original.
      selected: its convolutions, with what may become of them.
      choices: the candidates of each, keeping it first, with times and predicted losses.
      reasons: why a convolution is kept whatever the budget is; empty if it may be replaced.
      times: where they come from.
      totals: of the original: its ms ("latency"), "macs", "params".
      images, metrics: to fit stacks, and the layers' Fisher metrics.
      starts: {id(layer): stacks fitted to the original's responses} of the large layers, where
        fitting anew takes seconds.
      reference: the original on images that were held back.
      seed: of the sampled positions.
      by_time: whether the times decide, so that too much noise is an error.
      timed, compared: what `ms` and `likeness` found before.
    """

    model: keras.Model
    traced: graph.Graph
    selected: Sequence[Selected]
    choices: choice.Choices
    reasons: Sequence[str]
    times: times.Times
    totals: Mapping[str, float]
    images: Spool
    metrics: Mapping[int, np.ndarray]
    starts: Mapping[int, Starts]
    reference: Reference
    seed: int
    by_time: bool
    timed: dict[Taken, float] = dataclasses.field(default_factory=dict)
    compared: dict[Taken, Likeness] = dataclasses.field(default_factory=dict)

    def chosen(self, taken: Taken) -> Iterator[tuple[Selected, Option | None]]:
        for one, own, index in zip(self.selected, self.choices, taken, strict=True):
            yield one, own[index].option

    def ms(self, taken: Taken) -> float:
        """The time of a student as a whole: measured where the times can, else by its layers."""
        if taken not in self.timed:
            self.timed[taken] = self._ms(taken)
        return self.timed[taken]

    def _ms(self, taken: Taken) -> float:
        before = self.totals["latency"]
        layers = {
            id(one.conv.layer): (one.conv.layer, option)
            for one, option in self.chosen(taken)
            if option is not None
        }
        ratio = self.times.student(layers) if layers else None
        if ratio is None:
            return before + choice.total(self.choices, taken, "latency")
        ratio = times.Ratio(*workers.of_first([np.array(dataclasses.astuple(ratio))])[0].tolist())
        if self.by_time and ratio.width > times.OPEN:
            raise Error(
                "the machine is too noisy to plan by time: the speed-up of a whole student was "
                f"measured to be between {ratio.low:.2f} and {ratio.high:.2f}; stop other work on "
                "it, or plan by macs="
            )
        return before / ratio.speed_up

    def likeness(self, taken: Taken) -> Likeness:
        """Decomposes a student and compares it with the original."""
        if taken in self.compared:
            return self.compared[taken]
        selected = [
            Selected(one.conv, (option,)) if option else Selected(one.conv, (), "kept")
            for one, option in self.chosen(taken)
        ]
        student, _ = decomposition.decomposed(
            self.model, self.traced, selected, self.images, seed=self.seed, metrics=self.metrics,
            starts=self.starts,
        )  # fmt: skip
        self.compared[taken] = self.reference.likeness(student)
        return self.compared[taken]


def prepared(
    model: keras.Model,
    data: Any,
    spools: contextlib.ExitStack,
    *,
    quantize: str,
    threads: int,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    cache: str | os.PathLike[str] | None,
    table: times.Times | None,
    input_shape: InputShape | None,
    images: int | None,
    seed: int,
    by_time: bool,
) -> Problem:
    """Checks all that `tfdwd.plan` was given; finds each layer's candidates, times and losses.

    Args:
      spools: keeps the images until it ends.
      table: times from elsewhere, or None.
      by_time: whether the budget is one of time.
      model, data, quantize, threads, include, exclude, cache, input_shape, images, seed: as for
        `tfdwd.plan`.

    Raises:
      tfdwd.Error: as `tfdwd.plan`.
    """
    _check(model, quantize, threads, cache, table, seed)
    model = bridge.to_keras3(model)
    rebuild.rebuild(model, {})  # refuses what cannot be copied before there is work to lose
    conversion.check_convertible(model)
    read = calibration_batches(data, model, images_at_once(model), images)
    few, stream = peek((arrays for arrays, _ in read), conversion.RANGE_IMAGES)
    sizes = conversion.file_shapes(model, input_shape, few)
    traced = graph.at_sizes(graph.trace(model), [size[1:] for size in sizes])
    selected = selection.searched(candidates.find_convolutions(traced), include, exclude)
    source: times.Times
    if table is None:
        conversion.check_enough(few, quantize)
        source = times.TimesHere(model, sizes, few, quantize=quantize, threads=threads, cache=cache)
    else:
        source = table
    network_ms = of_first_worker(source.network())
    fitting, held = Spool(spools), Spool(spools)
    for part, rest in _held_back(stream):
        fitting.append(part)
        if len(rest[0]):
            held.append(rest)
    errors, metrics, starts = _losses(traced, fitting, selected, seed)
    choices, reasons = _choices(traced, selected, errors, source, sizes[0][0], by_time)
    columns = zip(*(held if len(held) else fitting), strict=True)
    reference = Reference(model, [np.concatenate(c)[:_HELD_BACK] for c in columns])
    whole = costs.count(model, [size[1:] for size in sizes])
    totals = {"latency": network_ms, "macs": whole.macs, "params": whole.parameters}
    return Problem(
        model=model, traced=traced, selected=selected, choices=choices, reasons=reasons,
        times=source, totals=totals, images=fitting, metrics=metrics, starts=starts,
        reference=reference, seed=seed, by_time=by_time,
    )  # fmt: skip


def _check(
    model: Any,
    quantize: str,
    threads: int,
    cache: str | os.PathLike[str] | None,
    table: times.Times | None,
    seed: int,
) -> None:
    conversion.check_quantize(quantize)
    benchmarking.check({"model": model}, threads)
    checks.whole("seed", seed, 0)
    if cache is not None:
        checks.path("cache", cache)
    if table is not None and not isinstance(table, times.Times):
        raise Error(
            "latency_table: expected what tfdwd.read_latency_table gives, got "
            f"{type(table).__name__}; read a file with tfdwd.LatencyTable.from_json"
        )
    if table is not None and (table.quantize, table.threads) != (quantize, threads):
        raise Error(
            f"latency_table: measured with quantize={table.quantize!r}, threads={table.threads}; "
            f"pass these, got quantize={quantize!r}, threads={threads}"
        )
    conversion.check_backend()


def _held_back(
    stream: Iterable[Sequence[np.ndarray]],
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Splits each batch: what stacks are fitted to, and what to compare on."""
    number, held = 0, 0
    for arrays in stream:
        numbers = np.arange(number, number + len(arrays[0]))
        aside = np.where(numbers < _FIRST, numbers % 8 == 7, numbers % 2 == 1)
        aside &= held + np.cumsum(aside) <= _HELD_BACK
        if aside.all():  # of a batch of one image: it serves for both
            yield list(arrays), list(arrays)
        else:
            yield [array[~aside] for array in arrays], [array[aside] for array in arrays]
        number, held = number + len(aside), held + int(aside.sum())


def _losses(
    traced: graph.Graph, images: Spool, selected: Sequence[Selected], seed: int
) -> tuple[
    dict[int, dict[Option, float]],
    dict[int, np.ndarray],
    dict[int, Starts],
]:
    """By id(layer): each stack's predicted loss, the Fisher metrics, `Problem.starts`."""
    options = {id(one.conv.layer): one.options for one in selected if one.options}
    layers = [one.conv.layer for one in selected if one.options]
    found: dict[int, dict[Option, float]] = {}
    metrics: dict[int, np.ndarray] = {}
    starts: dict[int, Starts] = {}
    if not layers:
        return found, metrics, starts
    for level in calibration.levels(
        traced, images, layers, {}, across_layers=False, weigh=True, seed=seed
    ):
        for collected in reporting.progress(level, "fitting stacks"):
            key = id(collected.conv)
            assert collected.fisher is not None  # weigh
            metrics[key] = collected.fisher
            found[key], stacks = _fitted(collected, options[key])
            if len(collected.moments.sum_x) > candidates.LARGE:
                starts[key] = stacks
    return found, metrics, starts


def _fitted(
    collected: calibration.Collected, options: Sequence[Option]
) -> tuple[dict[Option, float], Starts]:
    """Each stack's predicted loss, and the stack."""
    kernel, moments = rebuild.kernel_of(collected.conv), collected.moments
    assert collected.fisher is not None
    fisher = loss_metric(collected.fisher, moments.yy)
    with blas.threads_for(len(moments.sum_x)):
        target = factorize.target(factorize.gram(moments.xx), moments.xy, kernel)
    metric = with_identity(fisher)
    sizes = {
        kind: [option.size for option in options if option.stack == kind]
        for kind in ("separable", "bottleneck")
    }
    with blas.one_thread():
        fits: Mapping[str, Mapping[int, Any]] = {
            "separable": factorize.joints(target, sizes["separable"], metric),
            "bottleneck": factorize.bottlenecks(target, sizes["bottleneck"], metric),
        }
        stacks = {option: fits[option.stack][option.size] for option in options}
        return factorize.errors(target, stacks, 0.5 * fisher), stacks


def _choices(
    traced: graph.Graph,
    selected: Sequence[Selected],
    errors: Mapping[int, Mapping[Option, float]],
    source: times.Times,
    batch: int,
    by_time: bool,
) -> tuple[list[list[Candidate]], list[str]]:
    """Of each convolution what may become of it, keeping it first; and why nothing else, if so."""
    open_ = [one for one in selected if one.options]
    measured = []
    for one in reporting.progress(open_, "timing layers"):
        shapes = times.shapes_read(traced, one.conv.layer, batch)
        kept, ratios = times.all_calls(source, one.conv.layer, shapes, one.options)
        figures = [kept, *(x for r in ratios.values() for x in dataclasses.astuple(r))]
        kept, *parts = workers.of_first([np.array(figures)])[0].tolist()
        triples = np.reshape(parts, (-1, 3)).tolist()
        ratios = {o: times.Ratio(*t) for o, t in zip(ratios, triples, strict=True)}
        measured.append((kept, one.conv.macs, ratios))
    told = iter(zip(measured, times.told_apart(measured, by_time), strict=True))
    choices, reasons = [], []
    for one in selected:
        conv = one.conv
        kept_, reason = Candidate(None, conv.macs, conv.parameters, 0.0, None), one.reason
        own = [kept_]
        if one.options:
            (ms, _, _), ratios = next(told)
            own = [dataclasses.replace(kept_, ms=ms)]
            own += [
                Candidate(
                    option, option.macs, candidates.parameters(conv, option),
                    errors[id(conv.layer)][option], ms / ratio.speed_up,
                )
                for option, ratio in ratios.items()
                if ratio.low > 1
            ]  # fmt: skip
            if len(own) == 1:
                fastest = max(ratios.values(), key=lambda ratio: ratio.speed_up)
                reason = (
                    f"no stack was measured to be faster: the fastest takes "
                    f"{1 / fastest.speed_up:.2f} of its {ms:.4f} ms (95 % interval "
                    f"{1 / fastest.high:.2f} to {1 / fastest.low:.2f})"
                )
        choices.append(own)
        reasons.append(reason)
    return choices, reasons


def of_first_worker(number: float) -> float:
    """The same on all workers, so that all go the same way."""
    return float(workers.of_first([np.array(float(number))])[0])
