"""Chooses what becomes of a network: budget -> candidates -> whole students, measured -> plan."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import checks, choice, problem, times
from tfdwd.choice import Taken
from tfdwd.errors import Error
from tfdwd.likeness import Likeness
from tfdwd.plans import LayerPlan, Plan, Tradeoff, Tried
from tfdwd.search import Budget, Search, budget_of
from tfdwd.shapes import InputShape


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
    the fit. The one of least measured loss within the budget is taken. (Layers of more than 1,024
    inputs times taps are refitted for this from what fitted the original alone; `decompose` fits
    them anew, and comes out a little better or worse.)

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
      minutes: after this time no other student is timed, decomposed and compared; one always is.
      seed: of the sampled positions.

    Returns:
      The plan.

    Raises:
      tfdwd.Error: not exactly one budget, one that cannot be met (the message says what can), a
        machine too noisy to time anything, or as `tfdwd.decompose`.

    Example:
      >>> student = tfdwd.decompose(model, images, rank=plan(model, images, latency=0.5))
    """
    budget = budget_of({"latency": latency, "macs": macs, "params": params, "max_error": max_error})
    checks.number("minutes", minutes)
    with contextlib.ExitStack() as spools:
        known = problem.prepared(
            model, data, spools, quantize=quantize, threads=threads, include=include,
            exclude=exclude, cache=cache, table=latency_table, input_shape=input_shape,
            images=images, seed=seed, by_time=budget.kind == "latency",
        )  # fmt: skip
        return _planned(known, budget, minutes)


def tradeoff(
    model: keras.Model,
    data: Any,
    *,
    points: int = 8,
    quantize: str = "none",
    threads: int = 1,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    latency_table: times.Times | None = None,
    input_shape: InputShape | None = None,
    images: int | None = None,
    minutes: float = 1.0,
    seed: int = 0,
) -> Tradeoff:
    """Plans for several times, from 0.9 of the original's to the least, each measured.

    What layers take and lose is found once for all of them.

    Args:
      points: how many plans.
      minutes: for each plan, as for `plan`.
      model, data, quantize, threads, include, exclude: as for `plan`.
      cache, latency_table, input_shape, images, seed: as for `plan`.

    Returns:
      The plans. It prints as a table, `tfdwd.reporting.plot` draws it.

    Raises:
      tfdwd.Error: nothing can be made faster, or as `plan`.

    Example:
      >>> curve = tradeoff(model, images)
      >>> student = tfdwd.decompose(model, images, rank=curve.plan(latency=0.4))
    """
    checks.whole("points", points, 1)
    checks.number("minutes", minutes)
    with contextlib.ExitStack() as spools:
        known = problem.prepared(
            model, data, spools, quantize=quantize, threads=threads, include=include,
            exclude=exclude, cache=cache, table=latency_table, input_shape=input_shape,
            images=images, seed=seed, by_time=True,
        )  # fmt: skip
        fastest = choice.best(known.choices, "max_error", np.inf)
        if not fastest or not any(fastest):
            raise Error("expected a network of which something can be made faster; see tfdwd.plan")
        least = known.ms(fastest) / known.totals["latency"]
        parts = np.linspace(0.9, least, points) if least < 0.9 else [least]
        plans = [
            _planned(known, budget_of({"latency": round(float(part), 4)}), minutes)
            for part in (*parts[:-1], parts[-1] + 1e-4)
        ]
    return Tradeoff(tuple(plans))


def _planned(known: problem.Problem, budget: Budget, minutes: float) -> Plan:
    search = Search(known, budget, minutes)
    return _record(known, budget, search.found(), search.tried)


def _record(
    known: problem.Problem,
    budget: Budget,
    taken: Taken,
    compared: Sequence[tuple[str, Taken, Likeness]],
) -> Plan:
    layers = []
    for one, own, index, why in zip(
        known.selected, known.choices, taken, known.reasons, strict=True
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
        Tried(
            name,
            known.ms(one),
            choice.total(known.choices, one, "max_error"),
            found.loss,
            found.agreement,
        )
        for name, one, found in compared
    )
    place = [one for _, one, _ in compared].index(taken)
    return Plan(
        layers=tuple(layers),
        budget=budget.text,
        ms_before=known.totals["latency"],
        ms_after=known.ms(taken),
        error=sum(layer.error for layer in layers),
        quantize=known.times.quantize,
        threads=known.times.threads,
        device=known.times.device,
        runtime=known.times.runtime,
        loss=tried[place].loss,
        agreement=tried[place].agreement,
        tried=tried,
    )
