"""Which layers to replace, by which stacks: times and losses, predicted, then measured whole."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

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
from tfdwd.choice import Candidate, Taken
from tfdwd.errors import Error
from tfdwd.fisher import loss_metric, with_identity
from tfdwd.likeness import Likeness, Reference
from tfdwd.plans import LayerPlan, Option, Plan, Tried
from tfdwd.selection import Selected
from tfdwd.shapes import InputShape, images_at_once
from tfdwd.spool import Spool

_FIT_ROUNDS = 5  # of a bottleneck: enough to tell stacks apart
_TRIES = 4  # at a student of the time asked for
_NEAR = 0.95  # of that time is close enough
_TOLERANCE = 1.01  # for noise
_STUDENTS = 10  # that are decomposed and compared with the original, at most
_WORSE = 2.0  # times the best one's predicted loss: from there on a uniform student is not tried
_HELD_BACK = 128  # images to compare on, at most, and at most one in
_ONE_IN = 8


@dataclasses.dataclass(frozen=True)
class _Budget:
    """What may be spent: so much, or such a part of the original's."""

    kind: str
    amount: float
    is_part: bool
    text: str

    def limit(self, whole: float) -> float:
        return self.amount * whole if self.is_part else self.amount


@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
    """A network with all that is known of it before a budget is.

    Attributes:
      model, traced: the original.
      selected: its convolutions, with what may become of them.
      choices: the candidates of each, keeping it first, with times and predicted losses.
      reasons: why a convolution is kept whatever the budget is; empty if it may be replaced.
      times: where they come from.
      totals: of the original: its ms ("latency"), "macs", "params".
      images, metrics: to fit stacks, and the layers' Fisher metrics.
      reference: the original on images that were held back.
      seed: of the sampled positions.
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
    reference: Reference
    seed: int

    def chosen(self, taken: Taken) -> Iterator[tuple[Selected, Option | None]]:
        for one, own, index in zip(self.selected, self.choices, taken, strict=True):
            yield one, own[index].option

    def ms(self, taken: Taken) -> float:
        """The time of a student as a whole: measured where the times can, else by its layers."""
        before = self.totals["latency"]
        layers = {
            id(one.conv.layer): (one.conv.layer, option)
            for one, option in self.chosen(taken)
            if option is not None
        }
        ratio = self.times.student(layers) if layers else None
        if ratio is None:
            return before + choice.total(self.choices, taken, "latency")
        if ratio.width > times.OPEN:
            raise Error(
                "the machine is too noisy to plan by time: the speed-up of a whole student was "
                f"measured to be between {ratio.low:.2f} and {ratio.high:.2f}; stop other work on "
                "it, or plan by macs="
            )
        return _of_first_worker(before / ratio.speed_up)

    def likeness(self, taken: Taken) -> Likeness:
        """Decomposes a student and compares it with the original."""
        selected = [
            Selected(one.conv, (option,)) if option else Selected(one.conv, (), "kept")
            for one, option in self.chosen(taken)
        ]
        student, _ = decomposition.decomposed(
            self.model, self.traced, selected, self.images, seed=self.seed, metrics=self.metrics
        )
        return self.reference.likeness(student)


def plan(
    model: keras.Model,
    data: Any,
    *,
    latency: float | str | None = None,
    macs: float | None = None,
    params: float | None = None,
    max_error: float | None = None,
    quantize: str = "none",
    threads: int = 1,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    latency_table: times.Times | None = None,
    input_shape: InputShape | None = None,
    images: int | None = None,
    minutes: float = 2.0,
    seed: int = 0,
) -> Plan:
    """Chooses for each convolution whether and by what to replace it, within one budget.

    Each layer and each stack that could take its place is timed alone on this machine's LiteRT (or
    was on another device), in the precision and with the threads given; what was not measured to be
    faster is not taken. The loss that a stack brings is predicted from the second moments of the
    original's responses and the Fisher metric; of all combinations within the budget an integer
    program finds the one of least predicted loss, exactly.

    What the layers take and lose alone adds up only roughly, so the choice is between whole
    students: that of the integer program, the uniform ones of the same time, and those that the
    program finds after each measurement has corrected its predictions. Each is timed beside the
    original, really decomposed, and compared with the original on images that are held back from
    the fit. The one of least measured loss within the budget is taken.

    Args:
      model: a Functional or Sequential Keras 3 model (or a tf_keras one), whatever its outputs are.
        Sizes that it leaves open are those of the data.
      data: calibration images, as for `tfdwd.decompose`, all of one size.
      latency: budget for the time of a run: a part of the original's (0.5), or milliseconds
        ("1.5ms").
      macs, params: budget for the MACs or the parameters of the network: a part of the original's
        if at most 1, else a number.
      max_error: budget for the predicted loss, in nats for each image; then the fastest is taken,
        and measured alone.
      quantize: the precision that will be deployed, as for `tfdwd.export`.
      threads: that LiteRT will be given.
      include, exclude: as for `tfdwd.decompose`.
      cache: a .json file for measured times; ~/.cache/tfdwd/latency.json if None.
      latency_table: times from another device, as `tfdwd.read_latency_table` gives them (or any
        `tfdwd.times.Times`); then nothing is timed here.
      input_shape: the size that is expected of the data, as for `tfdwd.export`; only checked.
      images: how many of the first images of ``data`` to use, as for `tfdwd.decompose`.
      minutes: after this time no other student is decomposed and compared; one always is.
      seed: of the sampled positions.

    Returns:
      The plan.

    Raises:
      tfdwd.Error: not exactly one budget, one that cannot be met (the message says what can), a
        machine too noisy to time anything, or as `tfdwd.decompose`.

    Example:
      >>> student = tfdwd.decompose(model, images, rank=plan(model, images, latency=0.5))
    """
    budget = _budget({"latency": latency, "macs": macs, "params": params, "max_error": max_error})
    checks.number("minutes", minutes)
    with contextlib.ExitStack() as spools:
        problem = _prepared(
            model, data, spools, quantize=quantize, threads=threads, include=include,
            exclude=exclude, cache=cache, table=latency_table, input_shape=input_shape,
            images=images, seed=seed,
        )  # fmt: skip
        search = _Search(problem, budget, minutes)
        taken = search.found()
        return _plan(problem, budget, taken, search)


def _budget(budgets: Mapping[str, Any]) -> _Budget:
    given = [(kind, value) for kind, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise Error(
            f"plan: expected exactly one budget of {', '.join(budgets)}, got "
            f"{', '.join(kind for kind, _ in given) or 'none'}"
        )
    [(kind, value)] = given
    return _Budget(kind, *_amount(kind, value), f"{kind}={value}")


def _amount(kind: str, value: Any) -> tuple[float, bool]:
    """The budget as a number, and whether it is a part of the original's."""
    text = str(value)
    milliseconds = kind == "latency" and isinstance(value, str) and text.endswith("ms")
    try:
        number = float(text.removesuffix("ms") if milliseconds else text)
    except ValueError:
        number = float("nan")
    if not number > 0 or (isinstance(value, str) and kind != "latency"):
        raise Error(
            f"{kind}: expected a positive number"
            + (
                ", a part of the original's, or milliseconds as '1.5ms'"
                if kind == "latency"
                else ""
            )
            + f", got {value!r}"
        )
    if kind == "latency" and not milliseconds and number > 1:
        raise Error(
            f"latency: expected a part of the original's up to 1, or '{text}ms', got {text}"
        )
    return number, not milliseconds and kind != "max_error" and number <= 1


# ---------------------------------------------------------------------- what is known before


def _prepared(
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
) -> _Problem:
    """Checks all that `plan` was given; finds each layer's candidates with times and losses."""
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
    network_ms = _of_first_worker(source.network())
    fitting, held = Spool(spools), Spool(spools)
    for part, rest in _held_back(stream):
        fitting.append(part)
        if len(rest[0]):
            held.append(rest)
    errors, metrics = _losses(traced, fitting, selected, seed)
    choices, reasons = _choices(traced, selected, errors, source, sizes[0][0])
    columns = zip(*(held if len(held) else fitting), strict=True)
    reference = Reference(model, [np.concatenate(c)[:_HELD_BACK] for c in columns])
    whole = costs.count(model, [size[1:] for size in sizes])
    totals = {"latency": network_ms, "macs": whole.macs, "params": whole.parameters}
    return _Problem(
        model, traced, selected, choices, reasons, source, totals, fitting, metrics, reference, seed
    )


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
    """Splits each batch: what stacks are fitted to, and one image in eight to compare on."""
    number, held = 0, 0
    for arrays in stream:
        aside = (np.arange(number, number + len(arrays[0])) % _ONE_IN) == _ONE_IN - 1
        aside &= held + np.cumsum(aside) <= _HELD_BACK
        if aside.all():  # of a batch of one image: it serves for both
            yield list(arrays), list(arrays)
        else:
            yield [array[~aside] for array in arrays], [array[aside] for array in arrays]
        number, held = number + len(aside), held + int(aside.sum())


def _losses(
    traced: graph.Graph, images: Spool, selected: Sequence[Selected], seed: int
) -> tuple[dict[int, dict[Option, float]], dict[int, np.ndarray]]:
    """Predicted loss of each stack, {id(layer): {option: loss}}, and the layers' Fisher metrics."""
    options = {id(one.conv.layer): one.options for one in selected if one.options}
    layers = [one.conv.layer for one in selected if one.options]
    found: dict[int, dict[Option, float]] = {}
    metrics: dict[int, np.ndarray] = {}
    if not layers:
        return found, metrics
    for level in calibration.levels(
        traced, images, layers, {}, across_layers=False, weigh=True, seed=seed
    ):
        for collected in reporting.progress(level, "fitting stacks"):
            key = id(collected.conv)
            assert collected.fisher is not None  # weigh
            metrics[key] = collected.fisher
            found[key] = _losses_of(collected, options[key])
    return found, metrics


def _losses_of(collected: calibration.Collected, options: Sequence[Option]) -> dict[Option, float]:
    kernel, moments = rebuild.kernel_of(collected.conv), collected.moments
    assert collected.fisher is not None
    fisher = loss_metric(collected.fisher, moments.yy)
    with blas.threads(len(moments.sum_x)):
        target = factorize.target(factorize.gram(moments.xx), moments.xy, kernel)
    metric = with_identity(fisher)
    stacks: dict[Option, factorize.Stack] = {}
    with blas.threads(1):
        for option in options:
            if option.stack == "separable":
                stacks[option] = factorize.joint(target, option.size, metric)
            else:
                stacks[option] = factorize.bottleneck(target, option.size, metric, _FIT_ROUNDS)
    return {option: 0.5 * target.error(s.kernel(), fisher) for option, s in stacks.items()}


def _choices(
    traced: graph.Graph,
    selected: Sequence[Selected],
    errors: Mapping[int, Mapping[Option, float]],
    source: times.Times,
    batch: int,
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
    told = iter(zip(measured, times.told_apart(measured), strict=True))
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


def _of_first_worker(number: float) -> float:
    """The same on all workers, so that all go the same way."""
    return float(workers.of_first([np.array(float(number))])[0])


# ---------------------------------------------------------------------- choice


class _Search:
    """Tries whole students of one budget.

    Attributes:
      tried: (name, choice, likeness) of each student that was decomposed.
    """

    def __init__(self, problem: _Problem, budget: _Budget, minutes: float) -> None:
        self.problem, self.budget = problem, budget
        self.tried: list[tuple[str, Taken, Likeness]] = []
        self._ms: dict[Taken, float] = {}
        self._before = problem.totals["latency"]
        self._limit = budget.limit(problem.totals.get(budget.kind, 1.0))
        self._gain = 1.0  # what a student saves over what its layers save alone
        self._end = time.monotonic() + 60 * minutes

    def found(self) -> Taken:
        """The choice of least measured loss within the budget.

        Raises:
          tfdwd.Error: there is none within it.
        """
        first = self._near(self._program())
        if first is None:
            raise Error(self._unmet())
        self._measure("integer program", first)
        if self.budget.kind == "max_error" or not any(first):
            return first
        for name, taken in self._uniform():
            if self._is_over():
                break
            self._measure(name, taken)
        while len(self.tried) < _STUDENTS and not self._is_over():
            again = self._near(self._program(self._losses()))
            if again is None or again in [taken for _, taken, _ in self.tried]:
                break
            self._measure("integer program, corrected", again)
        return min(self.tried, key=lambda one: one[2].loss)[1]

    def ms(self, taken: Taken) -> float:
        """Of the whole student; timed once."""
        if taken not in self._ms:
            self._ms[taken] = self.problem.ms(taken)
        return self._ms[taken]

    def predicted(self, taken: Taken) -> float:
        """The predicted loss of a choice."""
        return choice.total(self.problem.choices, taken, "max_error")

    def _measure(self, name: str, taken: Taken) -> None:
        found = self.problem.likeness(taken)
        self.tried.append((name, taken, found))
        logging.info(
            "%s: %.4f ms, loss %.4f predicted, %.4f measured, agreement %.4f",
            name, self.ms(taken), self.predicted(taken), found.loss, found.agreement,
        )  # fmt: skip

    def _is_over(self) -> bool:
        return bool(_of_first_worker(time.monotonic() > self._end))

    def _program(
        self, losses: Sequence[np.ndarray] | None = None
    ) -> Callable[[float], Taken | None]:
        kind = self.budget.kind
        start = self.problem.totals.get(kind, 0.0)
        return lambda aim: choice.best(self.problem.choices, kind, aim - start, losses)

    def _uniform(self) -> list[tuple[str, Taken]]:
        """Uniform students within the budget, each as large as it may be; the likeliest first."""
        choices, kind = self.problem.choices, self.budget.kind
        start = self.problem.totals[kind]
        ladders: dict[str, list[tuple[float, str, Taken]]] = {}
        for how, rank, taken in choice.uniform(choices, list(map(_limits, self.problem.selected))):
            size = start + choice.total(choices, taken, kind)
            ladders.setdefault(how, []).append((size, f"uniform {how} {rank}", taken))
        found: dict[Taken, str] = {}
        for ladder in ladders.values():
            names = {taken: name for _, name, taken in ladder}

            def largest(aim: float, ladder: Any = ladder) -> Taken | None:
                return max(((s, t) for s, _, t in ladder if s <= aim), default=(0.0, None))[1]

            near = self._near(largest)
            if near is not None and near != self.tried[0][1]:
                found.setdefault(near, names[near])
        limit = _WORSE * self.predicted(self.tried[0][1])
        likely = sorted((self.predicted(taken), name, taken) for taken, name in found.items())
        return [(name, taken) for loss, name, taken in likely if loss <= limit]

    def _losses(self) -> list[np.ndarray]:
        """The candidates' predicted losses, corrected by what was measured."""
        losses = choice.added(self.problem.choices, "max_error")
        predicted = np.array(
            [[own[i] for own, i in zip(losses, taken, strict=True)] for _, taken, _ in self.tried]
        )
        measured = np.array([max(found.loss, 1e-12) for _, _, found in self.tried])
        factors = choice.corrections(np.maximum(predicted, 1e-15), measured)
        return [own * factor for own, factor in zip(losses, factors, strict=True)]

    def _near(self, propose: Callable[[float], Taken | None]) -> Taken | None:
        """The largest choice within the budget that some rule proposes.

        What the layers save alone is not what the student saves. For a budget of time students are
        made and timed until one takes what it may: each counts on the layers to save as much less,
        or more, than alone as those of the one before did.

        Args:
          propose: from a size (of the budget's kind, the layers alone) to a choice of at most it.
        """
        if self.budget.kind != "latency":
            return propose(self._limit)
        within: list[tuple[float, Taken]] = []
        seen: set[Taken] = set()
        for _ in range(_TRIES):
            aim = self._before - (self._before - self._limit) / self._gain
            taken = propose(max(aim, self._least()))
            if taken is None or taken in seen:
                break
            seen.add(taken)
            ms = self.ms(taken)
            logging.info("aimed at %.4f ms for %.4f ms, got %.4f ms", aim, self._limit, ms)
            if ms <= self._limit * _TOLERANCE:
                within.append((ms, taken))
                if ms >= _NEAR * self._limit:
                    break
            alone = -choice.total(self.problem.choices, taken, "latency")
            if alone <= 0:
                break
            self._gain = max((self._before - ms) / alone, 1e-3)
        return max(within)[1] if within else None

    def _least(self) -> float:
        """The least that the layers alone may take, and a little, for rounding."""
        saved = [own.min() for own in choice.added(self.problem.choices, "latency")]
        return self._before + float(sum(saved)) + 1e-9 * self._limit

    def _unmet(self) -> str:
        kind, whole = self.budget.kind, self.problem.totals.get(self.budget.kind, 0.0)
        least = whole + float(sum(own.min() for own in choice.added(self.problem.choices, kind)))
        if kind == "latency" and self._ms:
            least = min(self._ms.values())
        unit = " ms" if kind == "latency" else ""
        part = f", {least / whole:.3f} of the original's" if whole else ""
        return (
            f"{self.budget.text}: expected a budget that can be met; the least is "
            f"{least:.6g}{unit}{part}, with every layer replaced by the smallest stack that was "
            "measured to be faster"
        )


def _limits(one: Selected) -> dict[int, int]:
    """{rank: MACs of the separable stack of that rank} of a convolution that may be replaced."""
    if not one.options:
        return {}
    return {rank: candidates.separable(one.conv, rank).macs for rank in candidates.RANKS}


def _plan(problem: _Problem, budget: _Budget, taken: Taken, search: _Search) -> Plan:
    layers = []
    for one, own, index, why in zip(
        problem.selected, problem.choices, taken, problem.reasons, strict=True
    ):
        conv, kept, chosen, reason = one.conv, own[0], own[index], why
        option = chosen.option
        if option is None and not reason:
            best = min(own[1:], key=lambda c: c.ms or 0.0)
            reason = f"within the budget; {best.ms:.4f} ms for a loss of {best.error:.4f}"
        layers.append(
            LayerPlan(
                name=conv.path,
                replaced=option is not None,
                reason="" if option else reason,
                stack=option.stack if option else "",
                rank=option.size if option and option.stack == "separable" else 0,
                width=option.size if option and option.stack == "bottleneck" else 0,
                macs_before=kept.macs,
                macs_after=chosen.macs,
                parameters_before=kept.parameters,
                parameters_after=chosen.parameters,
                error=chosen.error,
                ms_before=kept.ms,
                ms_after=chosen.ms,
            )
        )
        logging.info("%s", layers[-1])
    tried = tuple(
        Tried(name, search.ms(one), search.predicted(one), found.loss, found.agreement)
        for name, one, found in search.tried
    )
    place = [one for _, one, _ in search.tried].index(taken)
    return Plan(
        layers=tuple(layers),
        budget=budget.text,
        ms_before=problem.totals["latency"],
        ms_after=search.ms(taken),
        error=sum(layer.error for layer in layers),
        quantize=problem.times.quantize,
        threads=problem.times.threads,
        device=problem.times.device,
        runtime=problem.times.runtime,
        loss=tried[place].loss,
        agreement=tried[place].agreement,
        tried=tried,
    )
