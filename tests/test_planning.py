"""Plans: exact choices, measured times, predicted loss. Times are made up but where said."""

import dataclasses
import itertools
import json

import keras
import numpy as np
import odd_networks
import pytest
from cases import randomised
from keras import layers

import tfdwd
from tfdwd import benchmarking, candidates, conversion, graph, latency, planning, plans
from tfdwd.candidates import Option
from tfdwd.errors import Error

DATA = np.random.default_rng(0).normal(size=(64, 12, 12, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    x = image = keras.Input((12, 12, 8), name="image")
    for name in ("first", "second"):
        x = layers.Conv2D(16, 3, padding="same", name=name)(x)
        x = layers.ReLU()(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return randomised(keras.Model(image, layers.Dense(5, activation="softmax")(x)))


@pytest.fixture
def made_up_times(monkeypatch):
    """A layer takes 1 ms for a million MACs, a stack ``factor`` times as long for its own."""
    factors = {"separable": 0.5, "bottleneck": 0.5}

    def kept(layer):
        return 144 * np.prod(layer.kernel.shape) / 1e6

    def timed(source, layer, shapes, options):
        times = {o: factors[o.stack] * o.macs / 1e6 for o in options}
        return kept(layer), {o: (ms, ms < kept(layer)) for o, ms in times.items()}

    def speed_up(original, chosen):
        saved = [kept(layer) - factors[o.stack] * o.macs / 1e6 for layer, o in chosen.values()]
        return 1 / (1 - sum(saved))

    monkeypatch.setattr(planning, "timed", timed)
    monkeypatch.setattr(planning, "_speed_up", speed_up)
    measured = benchmarking.benchmark

    def whole(models, **options):
        report = measured(models, **options)
        timing = dataclasses.replace(report.timings[0], median_ms=1, p10_ms=1, p90_ms=1)
        return dataclasses.replace(report, timings=(timing,))

    monkeypatch.setattr(benchmarking, "benchmark", whole)
    return factors


def test_a_plan_with_real_times_is_carried_out(model, tmp_path, long_samples):
    cache = tmp_path / "times" / "latency.json"
    plan = tfdwd.plan(model, DATA, latency=0.99, cache=cache)
    assert [layer.name for layer in plan.layers] == ["first", "second", "pointwise"]
    assert plan.layers[2].reason == "1x1 already"
    # Its student was timed as a whole, and the budget is kept but for noise.
    assert 0 < plan.ms_after <= 0.99 * 1.01 * plan.ms_before
    assert all(x.ms_after < x.ms_before for x in plan.layers if x.replaced)
    assert plan.error == pytest.approx(sum(layer.error for layer in plan.layers))
    student, report = tfdwd.decompose(model, DATA, rank=plan, return_report=True)
    for planned, made in zip(plan.layers, report.layers, strict=True):
        for field in ("name", "replaced", "reason", "stack", "rank", "width", "macs_after"):
            assert getattr(planned, field) == getattr(made, field)
        if planned.replaced:
            assert planned.parameters_after == made.parameters_after
    assert student.count_params() == report.parameters_after
    assert tfdwd.Plan.from_json(plan.to_json()) == plan
    assert str(plan).splitlines()[-1].startswith("latency=0.99: ")


def test_times_are_measured_once(model, tmp_path, monkeypatch):
    cache = tmp_path / "latency.json"
    tfdwd.plan(model, DATA, macs=0.5, cache=cache)
    known = json.loads(cache.read_text())
    assert len(known) == 2 and all("LiteRT" in key and "| none | 1 |" in key for key in known)
    monkeypatch.setattr(latency, "_files", None)  # nothing more to make
    tfdwd.plan(model, DATA, macs=0.7, cache=cache)
    assert json.loads(cache.read_text()) == known


def test_the_least_loss_within_the_budget_is_taken(model, made_up_times):
    plans = [tfdwd.plan(model, DATA, macs=part) for part in (0.5, 0.3, 0.2)]
    before = tfdwd.costs.count(model).macs
    for plan, part in zip(plans, (0.5, 0.3, 0.2), strict=True):
        saved = sum(layer.macs_before - layer.macs_after for layer in plan.layers)
        assert before - saved <= part * before
    assert plans[0].error < plans[1].error < plans[2].error
    absolute = tfdwd.plan(model, DATA, macs=0.3 * before)
    assert [layer.width for layer in absolute.layers] == [layer.width for layer in plans[1].layers]


def test_each_kind_of_budget_is_kept(model, made_up_times):
    parameters = tfdwd.costs.count(model).parameters
    plan = tfdwd.plan(model, DATA, params=0.5)
    student = tfdwd.decompose(model, DATA, rank=plan)
    assert student.count_params() <= 0.5 * parameters
    fast = tfdwd.plan(model, DATA, max_error=1.0)
    slow = tfdwd.plan(model, DATA, max_error=fast.error / 10)
    assert 0 < slow.error <= fast.error / 10 <= 0.1
    assert fast.ms_after < slow.ms_after
    assert tfdwd.plan(model, DATA, latency="0.9ms").ms_after <= 0.9


def test_what_is_not_faster_is_kept_and_the_reason_gives_the_figures(model, made_up_times):
    made_up_times.update(separable=100, bottleneck=200)
    plan = tfdwd.plan(model, DATA, max_error=1e9)
    assert not any(layer.replaced for layer in plan.layers)
    assert plan.ms_after == plan.ms_before
    # 144 positions of 72 * 16 MACs, and 144 * 2 * (8 + 9 + 16) of the narrowest bottleneck (0.06 of
    # the MACs) at 200 times the price; rank 1 has 144 * 8 * (9 + 16) at 100 times.
    assert plan.layers[0].reason == (
        "no stack was measured to be faster: 0.1659 ms, the best 1.9008 ms"
    )


def test_excluded_layers_are_kept(model, made_up_times):
    plan = tfdwd.plan(model, DATA, max_error=1e9, exclude="first")
    assert [layer.reason for layer in plan.layers] == ["excluded", "", "1x1 already"]
    plan = tfdwd.plan(model, DATA, max_error=1e9, include="first")
    assert [layer.reason for layer in plan.layers] == ["", "not included", "1x1 already"]


@pytest.mark.parametrize("kind", ["latency", "macs", "params", "max_error"])
def test_the_choice_is_that_of_trying_all(kind):
    source = np.random.default_rng(0)
    for _ in range(20):
        choices = []
        for _ in range(4):
            kept = planning._Candidate(None, 100, 100, 0.0, 1.0)
            draws = source.uniform(size=(3, 4))
            choices.append(
                [kept]
                + [
                    planning._Candidate(
                        Option("separable", i + 1, 0), int(99 * a), int(99 * b), c, d
                    )
                    for i, (a, b, c, d) in enumerate(draws)
                ]
            )
        totals = {"latency": 5.0, "macs": 500, "params": 500, "max_error": 1.0}
        limit = {"latency": 3.2, "macs": 320, "params": 330, "max_error": 1.2}[kind]

        def costs_of(taken, choices=choices, totals=totals):
            own = [c[i] for c, i in zip(choices, taken, strict=True)]
            return {
                "latency": totals["latency"] + sum(c.ms - 1.0 for c in own),
                "macs": totals["macs"] + sum(c.macs - 100 for c in own),
                "params": totals["params"] + sum(c.parameters - 100 for c in own),
                "max_error": sum(c.error for c in own),
            }

        goal = "latency" if kind == "max_error" else "max_error"
        allowed = [
            found
            for taken in itertools.product(range(4), repeat=4)
            if (found := costs_of(taken))[kind] <= limit + 1e-9
        ]
        taken = planning._choose(choices, kind, limit, totals, "")
        assert costs_of(taken)[kind] <= limit + 1e-6
        assert costs_of(taken)[goal] == pytest.approx(min(f[goal] for f in allowed), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one budget of latency, macs, params, max_error, got none"),
        ({"macs": 1, "latency": 1}, "exactly one budget .*, got latency, macs"),
        ({"latency": 0}, "latency: expected a positive number, a part .*, got 0"),
        ({"latency": 3}, "latency: expected a part of the original's up to 1, or '3ms', got 3"),
        ({"latency": "fast"}, "latency: expected a positive number, .* got 'fast'"),
        ({"macs": "3"}, "macs: expected a positive number, got '3'"),
        ({"macs": 0.5, "quantize": "int4"}, "quantize: expected one of none, .* got 'int4'"),
        ({"macs": 0.5, "include": "none"}, "include: .* 'none' matches none"),
        ({"macs": 0.01}, r"macs=0\.01: .* the least is [0-9.e+]+, 0\.\d+ of the original's, with"),
        ({"latency": "0.1ms"}, "latency=0.1ms: expected a budget that can be met; the least is"),
    ],
    ids=str,
)
def test_wrong_budgets(model, made_up_times, options, message):
    with pytest.raises(Error, match=message):
        tfdwd.plan(model, DATA, **options)


KEPT = plans.LayerPlan("x", False, "excluded", "", 0, 0, 9, 9, 9, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reason": ""}, "a kept layer has a reason and no stack"),
        ({"replaced": True}, "a replaced layer has no reason and a stack"),
        ({"replaced": True, "reason": "", "stack": "deep"}, "got 'deep'"),
        ({"replaced": True, "reason": "", "stack": "separable"}, "rank from 1 and the width 0"),
        (
            {"replaced": True, "reason": "", "stack": "bottleneck", "width": 2, "rank": 1},
            "a width from 1 and the rank 0; got 1 and 2",
        ),
    ],
    ids=str,
)
def test_a_layers_plan_checks_itself(changes, message):
    with pytest.raises(Error, match=message):
        dataclasses.replace(KEPT, **changes)


def test_a_plan_edited_by_hand_is_checked(model, made_up_times):
    plan = tfdwd.plan(model, DATA, max_error=1e9)

    def edited(number, **changes):
        new = list(plan.layers)
        new[number] = dataclasses.replace(new[number], **changes)
        return dataclasses.replace(plan, layers=tuple(new))

    wider = edited(0, stack="bottleneck", rank=0, width=5)
    _, report = tfdwd.decompose(model, DATA, rank=wider, return_report=True)
    assert report.layers[0].stack == "bottleneck" and report.layers[0].width == 5
    stack = {"replaced": True, "reason": "", "stack": "separable", "width": 0}
    narrow = {"replaced": True, "reason": "", "stack": "bottleneck", "rank": 0}
    for wrong, options, message in (
        (edited(0, **stack, rank=10), {}, r"rank of 'first': expected 1\.\.9, got 10"),
        # Exact from 16 outputs times 8 channels on; its factors would take 264 GB.
        (edited(0, **narrow, width=10**9), {}, r"'first': expected 1\.\.128, .* got 1000000000"),
        (edited(2, **stack, rank=1), {}, "'pointwise' cannot be replaced: it is 1x1 already"),
        (edited(0, name="other"), {}, r"a plan of this model, .* got one of \['other'"),
        (plan, {"stack": "auto"}, "no stack, include or exclude beside it"),
        (plan, {"method": "gsvd"}, "expected method 'joint' or 'svd', got 'gsvd'"),
    ):
        with pytest.raises(Error, match=message):
            tfdwd.decompose(model, DATA, rank=wrong, **options)


ODD = (
    "segmenter", "two views", "one open axis", "video", "words", "gates", "labels", "energy",
    "detector", "batch of one", "batch of four", "reshaped batch", "odd names",
    "same names", "without convolutions",
)  # fmt: skip


def test_an_odd_network_is_planned_with_real_times(tmp_path):
    _plan_and_decompose("nested open", tmp_path / "times.json")


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_are_planned(name, made_up_times, tmp_path):
    _plan_and_decompose(name, tmp_path / "times.json")


def _plan_and_decompose(name, cache):
    """Every convolution has a record, and the plan can be carried out."""
    model = odd_networks.network(name)
    data = odd_networks.images_of(name, model, 20)
    data = data if len(data) > 1 else data[0]
    plan = tfdwd.plan(model, data, max_error=1e9, cache=cache)
    convs = candidates.find_convolutions(graph.trace(model))
    assert [layer.name for layer in plan.layers] == [conv.path for conv in convs]
    assert plan.ms_before > 0 and plan.ms_after > 0
    for layer, conv in zip(plan.layers, convs, strict=True):
        assert not (layer.replaced and conv.sizes[0] < 4)
    student = tfdwd.decompose(model, data, rank=plan)
    assert [x.shape for x in student.inputs] == [x.shape for x in model.inputs]


def test_data_is_streamed(model, made_up_times, monkeypatch):
    """The images that ranges are taken from are read first, the others for calibration."""
    read, seen = [], []

    def stream():
        for number in range(10):
            read.append(number)
            yield DATA

    convert = conversion.checked

    def noting(*arguments):
        seen.append((len(read), len(arguments[-1][0])))
        return convert(*arguments)

    monkeypatch.setattr(conversion, "checked", noting)
    tfdwd.plan(model, stream(), max_error=1e9)
    assert seen == [(4, 256)] and len(read) == 10


def test_few_channels_are_kept_unless_named(made_up_times):
    x = image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", name="first", activation="relu")(x)
    x = layers.Conv2D(16, 3, padding="same", name="second")(x)
    model = randomised(keras.Model(image, layers.GlobalAveragePooling2D()(x)))
    plan = tfdwd.plan(model, DATA[..., :3], max_error=1e9)
    assert [layer.reason for layer in plan.layers] == [
        "reads 3 channels only; include= replaces it",
        "",
    ]
    # As for decompose.
    _, report = tfdwd.decompose(model, DATA[..., :3], return_report=True)
    assert [layer.reason for layer in report.layers] == [layer.reason for layer in plan.layers]
    plan = tfdwd.plan(model, DATA[..., :3], max_error=1e9, include=["first", "second"])
    assert [layer.replaced for layer in plan.layers] == [True, True]


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
def test_a_student_is_made_until_it_takes_what_it_may(factor):
    """As a whole it saves less, or more, than its layers alone."""
    kept = planning._Candidate(None, 100, 100, 0.0, 1.0)
    source = np.random.default_rng(3)
    choices = [
        [kept]
        + [
            planning._Candidate(Option("separable", i + 1, 0), 1, 1, (1 - ms) ** 2 * size, ms)
            for i, ms in enumerate(source.uniform(0.1, 0.9, 6))
        ]
        for size in source.uniform(0.5, 2, 8)
    ]

    def whole_ms(taken):
        return 10 - factor * sum(1 - own[i].ms for own, i in zip(choices, taken, strict=True))

    totals = {"latency": 10.0}
    taken, ms = planning._met(choices, "latency", 6.0, totals, "latency=0.6", whole_ms)
    assert 0.9 * 6 < ms <= 6.06
    assert ms == whole_ms(taken)
    with pytest.raises(Error, match=r"latency=0.01: .* the least is [0-9.]+ ms, 0\.\d+ of the"):
        planning._met(choices, "latency", 0.1, totals, "latency=0.01", whole_ms)
    # Another budget is met as it is, and the student only timed.
    taken, ms = planning._met(choices, "max_error", 0.5, {**totals, "max_error": 1.0}, "", whole_ms)
    assert ms == whole_ms(taken) < 10


def test_too_few_images_for_int8(model):
    with pytest.raises(Error, match=r"at least 32 real images .*, got 8"):
        tfdwd.plan(model, DATA[:8], macs=0.5, quantize="int8")
