"""Which layers to replace, by which stacks: chosen by measured time and by predicted loss."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import scipy.optimize
from absl import logging

from tfdwd import (
    benchmarking,
    blas,
    bridge,
    calibration,
    candidates,
    checks,
    conversion,
    costs,
    factorize,
    graph,
    rebuild,
    reporting,
)
from tfdwd.batches import calibration_batches, peek
from tfdwd.candidates import Conv, Option
from tfdwd.errors import Error
from tfdwd.fisher import loss_metric, with_identity
from tfdwd.latency import (
    LatencyTable,
    Source,
    measured_here,
    random_stack,
    shapes_read,
    timed,
)
from tfdwd.plans import LayerPlan, Plan
from tfdwd.shapes import InputShape, images_at_once

_NETWORK_ROUNDS = 20
_TRIES = 4  # at a student of the time asked for
_NEAR = 0.97  # of that time is close enough
_TOLERANCE = 1.01  # for noise


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """One thing that may become of a convolution; option None keeps it."""

    option: Option | None
    macs: int
    parameters: int
    error: float
    ms: float | None


@dataclasses.dataclass(frozen=True)
class _Network:
    """Time of the whole network, and where and with what it was measured."""

    ms: float
    device: str
    runtime: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Original:
    """The network as it is deployed, and what a student needs to be deployed the same way.

    Attributes:
      model, content: of Keras, and as a .tflite file.
      sizes: of the inputs, with the batch.
      images: from which ranges are taken.
      quantize, threads: as for `plan`.
    """

    model: keras.Model
    content: bytes
    sizes: Sequence[tuple[int, ...]]
    images: Sequence[np.ndarray]
    quantize: str
    threads: int


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
    latency_table: LatencyTable | None = None,
    input_shape: InputShape | None = None,
    images: int | None = None,
    seed: int = 0,
) -> Plan:
    """Chooses for each convolution whether and by what to replace it, within one budget.

    Each layer and each stack that could take its place is timed alone on this machine's LiteRT (or
    was on another device), in the precision and with the threads given; what was not measured to be
    faster is not taken. The loss that a stack brings is predicted from the second moments of the
    original's responses and the Fisher metric. Of all combinations within the budget the one of
    least predicted loss is taken, exactly, by an integer program.

    Args:
      model: a Functional or Sequential Keras 3 model (or a tf_keras one), whatever its outputs are.
        Sizes that it leaves open are those of the data.
      data: calibration images, as for `tfdwd.decompose`, all of one size.
      latency: budget for the time of a run: a part of the original's (0.5), or milliseconds
        ("1.5ms").
      macs, params: budget for the MACs or the parameters of the network: a part of the original's
        if at most 1, else a number.
      max_error: budget for the predicted loss, in nats for each image; then the fastest is taken.
      quantize: the precision that will be deployed, as for `tfdwd.export`.
      threads: that LiteRT will be given.
      include, exclude: as for `tfdwd.decompose`.
      cache: a .json file for measured times; ~/.cache/tfdwd/latency.json if None.
      latency_table: times from another device, as `tfdwd.read_latency_table` gives them; then
        nothing is timed here.
      input_shape: the size that is expected of the data, as for `tfdwd.export`; only checked.
      images: how many of the first images of ``data`` to use, as for `tfdwd.decompose`.
      seed: of the sampled positions.

    Returns:
      The plan.

    Raises:
      tfdwd.Error: not exactly one budget, one that cannot be met (the message says what can), or
        as `tfdwd.decompose`.

    Example:
      >>> student = tfdwd.decompose(model, images, rank=plan(model, images, latency=0.5))
    """
    budgets = {"latency": latency, "macs": macs, "params": params, "max_error": max_error}
    given = [(kind, value) for kind, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise Error(
            f"plan: expected exactly one budget of {', '.join(budgets)}, got "
            f"{', '.join(kind for kind, _ in given) or 'none'}"
        )
    [(kind, value)] = given
    amount, is_part = _amount(kind, value)
    conversion.check_quantize(quantize)
    benchmarking.check({"model": model}, threads)
    checks.whole("seed", seed, 0)
    if cache is not None:
        checks.path("cache", cache)
    table = latency_table
    if table is not None and not isinstance(table, LatencyTable):
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
    model = bridge.to_keras3(model)
    rebuild.rebuild(model, {})  # refuses what cannot be copied before there is work to lose
    conversion.check_convertible(model)
    read = calibration_batches(data, model, images_at_once(model), images)
    few, stream = peek((arrays for arrays, _ in read), conversion.RANGE_IMAGES)
    sizes = conversion.file_shapes(model, input_shape, few)
    traced = graph.at_sizes(graph.trace(model), [size[1:] for size in sizes])
    convs = candidates.find_convolutions(traced)
    reasons = _reasons(convs, include, exclude)
    options = {id(conv.layer): candidates.options(conv) for conv in convs if not reasons[conv.path]}
    original = None
    if table is None:
        conversion.check_enough(few, quantize)
        content = conversion.checked(model, sizes, quantize, few)
        original = _Original(model, content, sizes, few, quantize, threads)
        network, source = _timed_here(original), measured_here(quantize, threads, cache)
    else:
        network, source = _Network(table.network_ms, table.device, table.runtime), table.times
    replaceable = [conv for conv in convs if id(conv.layer) in options]
    errors = _errors(traced, stream, replaceable, options, seed) if replaceable else {}
    whole = costs.count(model, [size[1:] for size in sizes])
    totals = {
        "latency": network.ms,
        "macs": whole.macs,
        "params": whole.parameters,
        "max_error": 1.0,
    }
    choices = []
    for conv in reporting.progress(convs, "timing layers"):
        own = options.get(id(conv.layer), [])
        shapes = shapes_read(traced, conv.layer, sizes[0][0]) if own else []
        choice, reason = _choice(conv, own, errors, shapes, source)
        choices.append(choice)
        reasons[conv.path] = reasons[conv.path] or reason
    limit = amount * totals[kind] if is_part else amount

    def whole_ms(taken: Sequence[int]) -> float:
        """The student of such choices, as a whole."""
        pairs = [(own[0], own[index]) for own, index in zip(choices, taken, strict=True)]
        chosen = {
            id(conv.layer): (conv.layer, candidate.option)
            for conv, (_, candidate) in zip(convs, pairs, strict=True)
            if candidate.option is not None
        }
        if original is None or not chosen:
            return network.ms + sum(_saved(*pair) for pair in pairs)
        return network.ms / _speed_up(original, chosen)

    taken, ms = _met(choices, kind, limit, totals, f"{kind}={value}", whole_ms)
    return _plan(convs, choices, taken, reasons, f"{kind}={value}", network, ms, quantize, threads)


def _timed_here(original: _Original) -> _Network:
    report = benchmarking.benchmark(
        {"model": original.content}, threads=original.threads, rounds=_NETWORK_ROUNDS
    )
    if report.timings[0].noisy:
        logging.warning(
            "the machine was noisy while the network was timed; plan again on a quiet one"
        )
    return _Network(report.timings[0].p10_ms, report.device, report.runtime)


def _choice(
    conv: Conv,
    options: Sequence[Option],
    errors: Mapping[int, Mapping[Option, float]],
    shapes: Sequence[tuple[int, ...]],
    source: Source,
) -> tuple[list[_Candidate], str]:
    """What may become of a convolution, keeping it first; and why nothing else, if so."""
    kept = _Candidate(None, conv.macs, conv.parameters, 0.0, None)
    if not options:
        return [kept], ""
    kept_ms, measured = timed(source, conv.layer, shapes, options)
    kept = dataclasses.replace(kept, ms=kept_ms)
    loss = errors[id(conv.layer)]
    faster = [
        _Candidate(option, option.macs, _parameters(conv, option), loss[option], ms)
        for option, (ms, is_faster) in measured.items()
        if is_faster
    ]
    if faster:
        return [kept, *faster], ""
    best = min(ms for ms, _ in measured.values())
    return [kept], f"no stack was measured to be faster: {kept_ms:.4f} ms, the best {best:.4f} ms"


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


def _reasons(convs: Sequence[Conv], include: Any, exclude: Any) -> dict[str, str]:
    """Why each convolution is kept whatever the times are; empty where it may be replaced."""
    included = candidates.matching(convs, "include", include)
    excluded = candidates.matching(convs, "exclude", exclude)
    reasons = {}
    for conv in convs:
        reason = conv.obstacle
        if not reason and conv.path in excluded:
            reason = "excluded"
        if not reason and include is not None and conv.path not in included:
            reason = "not included"
        if not reason and include is None:
            reason = candidates.why_not_unasked(conv)
        if not reason and not candidates.options(conv):
            reason = "no stack has fewer MACs"
        reasons[conv.path] = reason
    return reasons


def _parameters(conv: Conv, option: Option) -> int:
    c, q, n = conv.sizes
    bias = n  # fitted, whether the convolution has one or not
    if option.stack == "separable":
        return option.size * c * (q + n) + bias
    return option.size * (c + q + n) + bias


# ---------------------------------------------------------------------- predicted loss


def _errors(
    traced: graph.Graph,
    images: Iterable[Sequence[np.ndarray]],
    convs: Sequence[Conv],
    options: Mapping[int, Sequence[Option]],
    seed: int,
) -> dict[int, dict[Option, float]]:
    """Predicted loss in nats of each stack, {id(layer): {option: loss}}, each layer on its own."""
    found: dict[int, dict[Option, float]] = {}

    def solve(
        layer: keras.layers.Conv2D, collected: calibration.Collected
    ) -> tuple[factorize.Stack, np.ndarray | None]:
        kernel, moments = rebuild.kernel_of(layer), collected.moments
        assert collected.fisher is not None
        fisher = loss_metric(collected.fisher, moments.yy)
        with blas.threads_for(len(moments.sum_x)):
            target = factorize.target(factorize.gram(moments.xx), moments.xy, kernel)
        metric = with_identity(fisher)
        own = options[id(layer)]
        sizes = {
            kind: [o.size for o in own if o.stack == kind] for kind in ("separable", "bottleneck")
        }
        with blas.one_thread():
            fits: dict[str, Mapping[int, factorize.Stack]] = {
                "separable": factorize.joints(target, sizes["separable"], metric),
                "bottleneck": factorize.bottlenecks(target, sizes["bottleneck"], metric),
            }
            stacks = {option: fits[option.stack][option.size] for option in own}
            found[id(layer)] = factorize.errors(target, stacks, 0.5 * fisher)
        return factorize.svd(kernel, 1), None

    layers = [conv.layer for conv in convs]
    calibration.sweep(traced, images, layers, solve, across_layers=False, weigh=True, seed=seed)
    return found


# ---------------------------------------------------------------------- choice


def _speed_up(
    original: _Original, chosen: Mapping[int, tuple[keras.layers.Layer, Option]]
) -> float:
    """That of a student with random weights over the original, side by side."""
    stacks = {number: random_stack(layer, option) for number, (layer, option) in chosen.items()}
    student = conversion.convert(
        rebuild.rebuild(original.model, stacks),
        original.sizes,
        original.quantize,
        images=original.images,
    )
    report = benchmarking.benchmark(
        {"original": original.content, "student": student},
        threads=original.threads,
        rounds=_NETWORK_ROUNDS,
    )
    return report.timings[1].speed_up


def _saved(kept: _Candidate, chosen: _Candidate) -> float:
    """Milliseconds that a layer alone takes less, as a negative number."""
    if chosen.option is None:
        return 0.0
    assert kept.ms is not None and chosen.ms is not None
    return chosen.ms - kept.ms


def _met(
    choices: Sequence[Sequence[_Candidate]],
    kind: str,
    limit: float,
    totals: Mapping[str, float],
    budget: str,
    whole_ms: Callable[[Sequence[int]], float],
) -> tuple[list[int], float]:
    """The choice, and the time of the student as a whole.

    What the layers save alone is not what the student saves. For a budget of time students are
    made and timed until one takes what it may: each counts on the layers to save as much less, or
    more, than alone as those of the one before did. Of those within the budget the one of least
    predicted loss is taken.
    """
    if kind != "latency":
        taken = _choose(choices, kind, limit, totals, budget)
        return taken, whole_ms(taken)
    least = totals["latency"] + sum(
        min(0.0, *(_saved(own[0], one) for one in own)) for own in choices
    )
    aim = limit
    tried: list[tuple[float, list[int], float]] = []
    for _ in range(_TRIES):
        taken = _choose(choices, kind, max(aim, least + 1e-9 * limit), totals, budget)
        if tried and taken == tried[-1][1]:
            break
        error = sum(own[index].error for own, index in zip(choices, taken, strict=True))
        tried.append((error, taken, whole_ms(taken)))
        ms = tried[-1][2]
        logging.info("aimed at %.4f ms for %.4f ms, got %.4f ms", aim, limit, ms)
        if _NEAR * limit <= ms <= limit:
            break
        alone = -sum(_saved(own[0], own[index]) for own, index in zip(choices, taken, strict=True))
        saved = totals["latency"] - ms
        aim = totals["latency"] - (totals["latency"] - limit) * alone / saved if saved > 0 else 0.0
    within = [one for one in tried if one[2] <= limit * _TOLERANCE]
    if not within:
        fastest = min(ms for _, _, ms in tried)
        raise Error(
            f"{budget}: expected a budget that can be met; the least is {fastest:.6g} ms, "
            f"{fastest / totals['latency']:.3f} of the original's, with every layer replaced by "
            "the smallest stack that was measured to be faster"
        )
    _, taken, ms = min(within, key=lambda one: one[0])
    return taken, ms


def _choose(
    choices: Sequence[Sequence[_Candidate]],
    kind: str,
    limit: float,
    totals: Mapping[str, float],
    budget: str,
) -> list[int]:
    """Which candidate of each convolution to take: an integer program, solved exactly."""

    def amounts(of: str) -> np.ndarray:
        """What each candidate adds to what keeping everything costs."""
        value: Callable[[_Candidate, _Candidate], float] = {
            "latency": lambda c, kept: _saved(kept, c),
            "macs": lambda c, kept: c.macs - kept.macs,
            "params": lambda c, kept: c.parameters - kept.parameters,
            "max_error": lambda c, kept: c.error,
        }[of]
        return np.array([value(c, own[0]) for own in choices for c in own], float)

    start = 0.0 if kind == "max_error" else totals[kind]
    weights, goal = amounts(kind), amounts("latency" if kind == "max_error" else "max_error")
    first = np.cumsum([0, *map(len, choices)])
    least = start + sum(weights[a:b].min() for a, b in itertools.pairwise(first))
    if least > limit:
        part = "" if kind == "max_error" else f", {least / totals[kind]:.3f} of the original's"
        raise Error(
            f"{budget}: expected a budget that can be met; the least is {least:.6g}{part}, with "
            "every layer replaced by the smallest stack that was measured to be faster"
        )
    if not choices:
        return []
    one_each = np.zeros((len(choices), len(weights)))
    for row, (a, b) in enumerate(itertools.pairwise(first)):
        one_each[row, a:b] = 1
    scale = np.abs(goal).max() or 1.0
    solution = scipy.optimize.milp(
        goal / scale + 1e-9 * weights / (np.abs(weights).max() or 1.0),  # of equals the smaller
        integrality=np.ones(len(weights)),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(one_each, 1, 1),
            scipy.optimize.LinearConstraint(weights[None], ub=limit - start),
        ],
        options={"mip_rel_gap": 0},
    )
    if solution.x is None:
        raise Error(f"{budget}: the integer program was not solved: {solution.message}")
    return [int(np.argmax(solution.x[a:b])) for a, b in itertools.pairwise(first)]


def _plan(
    convs: Sequence[Conv],
    choices: Sequence[Sequence[_Candidate]],
    taken: Sequence[int],
    reasons: Mapping[str, str],
    budget: str,
    network: _Network,
    ms: float,
    quantize: str,
    threads: int,
) -> Plan:
    layers = []
    for conv, own, index in zip(convs, choices, taken, strict=True):
        kept, chosen = own[0], own[index]
        option, reason = chosen.option, reasons[conv.path]
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
    return Plan(
        layers=tuple(layers),
        budget=budget,
        ms_before=network.ms,
        ms_after=ms,
        error=sum(layer.error for layer in layers),
        quantize=quantize,
        threads=threads,
        device=network.device,
        runtime=network.runtime,
    )
