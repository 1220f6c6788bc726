"""Plans: exact choices, measured times, predicted loss. Times are made up but where said."""

import dataclasses
import json

import keras
import numpy as np
import odd_networks
import pytest
from cases import randomised
from keras import layers

import tfdwd
from tfdwd import calibration, candidates, fitting, graph, plans, problem, reporting, times
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


class MadeUp:
    """A layer takes 1 ms for a million MACs, a stack ``factor`` times as long for its own.

    A whole student saves ``gain`` times what its layers save alone.
    """

    device, runtime, quantize, threads = "paper", "pencil", "none", 1

    def __init__(self, separable=0.5, bottleneck=0.5, gain=1.0):
        self.factors = {"separable": separable, "bottleneck": bottleneck}
        self.gain = gain
        self.students = 0

    def network(self):
        return 1.0

    def layer(self, layer, shape, options):
        ms = 144 * np.prod(layer.kernel.shape) / 1e6
        ratios = {o: ms / (self.factors[o.stack] * o.macs / 1e6) for o in options}
        return ms, {o: times.Ratio(ratio, ratio, ratio) for o, ratio in ratios.items()}

    def student(self, chosen):
        self.students += 1
        saved = sum(
            ms - ms / ratios[option].speed_up
            for layer, option in chosen.values()
            for ms, ratios in [self.layer(layer, None, [option])]
        )
        speed_up = 1 / max(1 - self.gain * saved, 0.02)
        return times.Ratio(speed_up, speed_up, speed_up)


def planned(model, data=DATA, made_up=None, **options):
    return tfdwd.plan(model, data, latency_table=made_up or MadeUp(), **options)


def test_a_plan_with_real_times_is_carried_out(model, tmp_path):
    cache = tmp_path / "times" / "latency.json"
    plan = tfdwd.plan(model, DATA, macs=0.6, cache=cache)  # which no noise can refuse
    assert [layer.name for layer in plan.layers] == ["first", "second", "pointwise"]
    assert plan.layers[2].reason == "1x1 already"
    assert plan.ms_after > 0 and len(plan.tried) >= 1  # timed as wholes
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
    assert str(plan).splitlines()[-1].startswith("macs=0.6: ")


def test_times_are_measured_once(model, tmp_path, monkeypatch):
    cache = tmp_path / "latency.json"
    tfdwd.plan(model, DATA, macs=0.5, cache=cache)
    known = json.loads(cache.read_text())
    assert len(known) == 2 and all("LiteRT" in key and "| none | 1 |" in key for key in known)
    monkeypatch.setattr(times, "layer_files", None)  # nothing more to make
    tfdwd.plan(model, DATA, macs=0.7, cache=cache)
    assert json.loads(cache.read_text()) == known


@pytest.mark.parametrize("gone", ["separable 1", "separable 2 at most"])
def test_a_time_that_is_gone_from_the_cache_is_measured_again(model, tmp_path, gone):
    cache = tmp_path / "latency.json"
    tfdwd.plan(model, DATA, macs=0.5, cache=cache, minutes=0)
    known = json.loads(cache.read_text())
    fields = [set(own) for own in known.values()]
    for own in known.values():
        own.pop(gone, None)
    cache.write_text(json.dumps(known))
    tfdwd.plan(model, DATA, macs=0.5, cache=cache, minutes=0)
    assert [set(own) for own in json.loads(cache.read_text()).values()] == fields


def test_the_least_loss_within_the_budget_is_taken(model):
    # Without the time to measure another student the integer program's is taken.
    plans = [planned(model, macs=part, minutes=0) for part in (0.5, 0.3, 0.2)]
    before = tfdwd.costs.count(model).macs
    for plan, part in zip(plans, (0.5, 0.3, 0.2), strict=True):
        saved = sum(layer.macs_before - layer.macs_after for layer in plan.layers)
        assert before - saved <= part * before
    assert plans[0].error < plans[1].error < plans[2].error
    absolute = planned(model, macs=0.3 * before, minutes=0)
    assert [layer.width for layer in absolute.layers] == [layer.width for layer in plans[1].layers]


def test_each_kind_of_budget_is_kept(model):
    parameters = tfdwd.costs.count(model).parameters
    plan = planned(model, params=0.5)
    student = tfdwd.decompose(model, DATA, rank=plan)
    assert student.count_params() <= 0.5 * parameters
    fast = planned(model, max_error=1.0)
    slow = planned(model, max_error=fast.error / 10)
    assert 0 < slow.error <= fast.error / 10 <= 0.1
    assert fast.ms_after < slow.ms_after
    assert planned(model, latency="0.9ms").ms_after <= 0.9


def test_what_is_not_faster_is_kept_and_the_reason_gives_the_figures(model):
    plan = planned(model, made_up=MadeUp(separable=100, bottleneck=200), max_error=1e9)
    assert not any(layer.replaced for layer in plan.layers)
    assert plan.ms_after == plan.ms_before
    # 72 * 16 MACs for each position; the narrowest bottleneck has 2 * (8 + 9 + 16) at 200 times the
    # price.
    assert plan.layers[0].reason == (
        f"no stack was measured to be faster: the fastest takes {200 * 2 * 33 / (72 * 16):.2f} of "
        "its 0.1659 ms (95 % interval 11.46 to 11.46)"
    )


def test_excluded_layers_are_kept(model):
    plan = planned(model, max_error=1e9, exclude="first")
    assert [layer.reason for layer in plan.layers] == ["excluded", "", "1x1 already"]
    plan = planned(model, max_error=1e9, include="first")
    assert [layer.reason for layer in plan.layers] == ["", "not included", "1x1 already"]


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
def test_wrong_budgets(model, options, message):
    with pytest.raises(Error, match=message):
        planned(model, **options)


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


def test_a_plan_edited_by_hand_is_checked(model):
    plan = planned(model, max_error=1e9)

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
    _plan_and_decompose("nested open", cache=tmp_path / "times.json")


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_are_planned(name):
    _plan_and_decompose(name, latency_table=MadeUp())


def _plan_and_decompose(name, **options):
    """Every convolution has a record, and the plan can be carried out."""
    model = odd_networks.network(name)
    data = odd_networks.images_of(name, model, 20)
    data = data if len(data) > 1 else data[0]
    plan = tfdwd.plan(model, data, max_error=1e9, **options)
    convs = candidates.find_convolutions(graph.trace(model))
    assert [layer.name for layer in plan.layers] == [conv.path for conv in convs]
    assert plan.ms_before > 0 and plan.ms_after > 0
    for layer, conv in zip(plan.layers, convs, strict=True):
        assert not (layer.replaced and conv.sizes[0] < 4)
    student = tfdwd.decompose(model, data, rank=plan)
    assert [x.shape for x in student.inputs] == [x.shape for x in model.inputs]


def test_data_is_streamed_and_read_once(model):
    read = []

    def stream():
        for number in range(10):
            read.append(number)
            yield DATA[:20]

    plan = planned(model, stream(), macs=0.5)
    assert read == list(range(10))
    assert plan == planned(model, np.concatenate([DATA[:20]] * 10), macs=0.5)


def test_few_channels_are_kept_unless_named():
    x = image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", name="first", activation="relu")(x)
    x = layers.Conv2D(16, 3, padding="same", name="second")(x)
    model = randomised(keras.Model(image, layers.GlobalAveragePooling2D()(x)))
    plan = planned(model, DATA[..., :3], max_error=1e9)
    assert [layer.reason for layer in plan.layers] == [
        "reads 3 channels only; include= replaces it",
        "",
    ]
    # As for decompose.
    _, report = tfdwd.decompose(model, DATA[..., :3], return_report=True)
    assert [layer.reason for layer in report.layers] == [layer.reason for layer in plan.layers]
    plan = planned(model, DATA[..., :3], max_error=1e9, include=["first", "second"])
    assert [layer.replaced for layer in plan.layers] == [True, True]


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.3])
def test_a_student_is_made_until_it_takes_what_it_may(gain):
    """As a whole it saves less, or more, than its layers alone."""
    made_up = MadeUp(gain=gain)
    model = deep()
    plan = planned(model, made_up=made_up, latency=0.6, minutes=0)
    assert 0.9 * 0.6 < plan.ms_after <= 0.612
    alone = sum(x.ms_before - x.ms_after for x in plan.layers if x.replaced)
    assert 1 - plan.ms_after == pytest.approx(gain * alone, rel=0.2)
    assert made_up.students <= 4  # nobody has time for more
    with pytest.raises(Error, match=r"latency=0.01: .* the least is [0-9.]+ ms, 0\.\d+ of the"):
        planned(model, made_up=made_up, latency=0.01)
    assert planned(model, made_up=made_up, max_error=0.5).ms_after < 1


def deep():
    x = image = keras.Input((12, 12, 8), name="image")
    for index in range(5):
        x = layers.Conv2D(8 + 2 * index, 3, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return randomised(keras.Model(image, layers.Dense(5, activation="softmax")(x)))


def test_the_student_of_least_measured_loss_is_taken():
    """Whatever was predicted; and uniform students of the time are among those measured."""
    plan = planned(deep(), latency=0.6, minutes=10)
    assert plan.loss == min(one.loss for one in plan.tried)
    names = [one.name for one in plan.tried]
    assert names[0] == "integer program" and any(name.startswith("uniform") for name in names)
    assert all(one.ms <= 0.612 for one in plan.tried) and len(names) >= 3
    table = str(plan)
    assert all(name in table for name in names) and "measured loss" in table
    alone = planned(deep(), latency=0.6, minutes=0)
    assert [one.name for one in alone.tried] == ["integer program"]


def test_the_measured_loss_is_that_of_the_decomposed_student():
    """Found again by decomposing by hand on the images that were not held back."""
    model, images = deep(), np.random.default_rng(1).normal(size=(64, 12, 12, 8))
    plan = planned(model, images, latency=0.6)
    held_back = np.arange(64) % 8 == 7
    student = tfdwd.decompose(model, images[~held_back], rank=plan)
    wanted, found = (np.asarray(x(images[held_back]), float) for x in (model, student))
    assert plan.loss == pytest.approx(np.mean(np.sum(wanted * np.log(wanted / found), 1)), rel=1e-3)
    assert plan.agreement == np.mean(wanted.argmax(1) == found.argmax(1))


def test_a_tradeoff_has_plans_from_slow_to_fast():
    model, made_up = deep(), MadeUp()
    found = tfdwd.tradeoff(model, DATA, points=3, latency_table=made_up, minutes=0)
    slow, middle, fast = found.plans
    assert 0.9 >= slow.ms_after > middle.ms_after > fast.ms_after
    part = float(fast.budget.removeprefix("latency="))
    assert fast == planned(model, latency=part, minutes=0)
    assert all(layer.replaced for layer in fast.layers)
    assert found.plan(1.0).loss == min(plan.loss for plan in found.plans)
    assert found.plan(fast.ms_after + 1e-6) == fast
    with pytest.raises(Error, match=r"latency=0\.01: expected at least 0\.\d+, the fastest plan's"):
        found.plan(0.01)
    assert tfdwd.Tradeoff.from_json(found.to_json()) == found
    assert len(str(found).splitlines()) == 2 + 3 + 1
    [axes] = reporting.plot(found).axes
    line, original = axes.lines
    assert len(line.get_xdata()) == 3 and original.get_xydata().tolist() == [[1.0, 1.0]]
    with pytest.raises(Error, match="of which something can be made faster"):
        tfdwd.tradeoff(model, DATA, latency_table=MadeUp(separable=100, bottleneck=200))


def test_a_noisy_machine_is_refused_or_told(model):
    class Noisy(MadeUp):
        def layer(self, layer, shape, options):
            ms, ratios = super().layer(layer, shape, options)
            few = {o: times.Ratio(r.speed_up, 0.5, 20.0) for o, r in list(ratios.items())[:wrong]}
            return ms, {**ratios, **few}

        def student(self, chosen):
            found = super().student(chosen)
            return times.Ratio(found.speed_up, found.speed_up / whole, found.speed_up)

    wrong, whole = 100, 1.0
    with pytest.raises(Error, match=r"too noisy to plan by time: \d+ of \d+ stacks .* by macs="):
        planned(model, made_up=Noisy(), latency=0.6)
    wrong, whole = 2, 2.0
    with pytest.raises(Error, match=r"too noisy .* whole student was measured to be between"):
        planned(model, made_up=Noisy(), latency=0.6)
    # Where times do not decide they need not be known.
    assert planned(model, made_up=Noisy(), macs=0.5).loss is not None
    # Two stacks that nobody could time: their MACs tell as much here.
    wrong, whole = 2, 1.0
    assert planned(model, made_up=Noisy(), latency=0.6) == planned(model, latency=0.6)


def test_json_of_an_earlier_plan_is_read(model):
    plan = json.loads(planned(model, macs=0.5).to_json())
    for field in ("loss", "agreement", "tried"):
        del plan[field]
    old = tfdwd.Plan.from_json(json.dumps(plan))
    assert old.loss is None and old.tried == () and "measured" not in str(old)


def test_first_images_serve_for_both_where_they_are_few(model):
    assert planned(model, DATA[:3], macs=0.5).loss is not None
    assert planned(model, (DATA[i : i + 1] for i in range(9)), macs=0.5).loss is not None


def test_too_few_images_for_int8(model):
    with pytest.raises(Error, match=r"at least 32 real images .*, got 8"):
        tfdwd.plan(model, DATA[:8], macs=0.5, quantize="int8")


def test_half_of_many_images_are_held_back():
    numbers = [np.arange(first, first + 100)[:, None] for first in range(0, 2000, 100)]
    fitted, held = (
        np.concatenate([part[0][:, 0] for part in parts])
        for parts in zip(*problem._held_back([[n] for n in numbers]), strict=True)
    )
    assert sorted([*fitted, *held]) == list(range(2000))
    np.testing.assert_array_equal(held[:16], np.arange(7, 128, 8))
    np.testing.assert_array_equal(held[16:], np.arange(129, 129 + 2 * 496, 2))


def test_the_mean_of_openings_is_known_better_than_each():
    openings = [times.Ratio(2.0, 1.9, 2.1), times.Ratio(2.02, 1.92, 2.12)]
    found = times._mean(openings)
    assert 2.0 < found.speed_up < 2.02 and found.width == pytest.approx(1.07, abs=0.01)
    many = times._mean(4 * openings)
    assert many.speed_up == pytest.approx(found.speed_up) and many.width < 1.01
    apart = times._mean([times.Ratio(1.0, 1.0, 1.0), times.Ratio(1.2, 1.2, 1.2)])
    assert apart.low < 1.0 and apart.high > 1.2  # openings that differ are not known so well


def test_openings_beside_other_work_do_not_count():
    """What shares a core with the networks slows them by a third, and a small one by more."""
    alone = [(1.0 + 0.01 * n, times.Ratio(3.0, 2.9, 3.1)) for n in range(4)]
    beside = [(1.3, times.Ratio(2.7, 2.6, 2.8))] * 8
    found, counted = times.quick([*beside, *alone], 1.0, 4)
    assert counted == 4 and found == [ratio for _, ratio in alone]
    found, counted = times.quick(beside, 1.0, 4)
    assert counted == 0 and found == [ratio for _, ratio in beside[:4]]
    assert times.quick(beside, np.inf, 4)[1] == 8  # all alike, and nothing known from before


def test_a_fit_that_starts_near_ends_as_good(model):
    """Whether a layer is large only tells whether its fit starts from the original's."""
    conv = model.get_layer("second")
    [collected] = next(
        calibration.levels(graph.trace(model), [[DATA]], [conv], {}, across_layers=False)
    )
    option = plans.Option("bottleneck", 6, 0)
    anew = fitting.fit(collected, [option], settings=calibration.Settings(rectifications=0))
    again = fitting.fit(
        collected, [option], settings=calibration.Settings(rectifications=0),
        starts={option: anew.stack},
    )  # fmt: skip
    assert 0 < again.error <= anew.error * (1 + 1e-6)
