import datetime

import keras
import numpy as np
import pytest

from tfdwd import benchmarking, lite, reporting
from tfdwd.benchmarking import BenchmarkReport, Timing, benchmark
from tfdwd.conversion import export
from tfdwd.errors import Error


def convolutions(count):
    layers = [keras.layers.Conv2D(32, 3, padding="same") for _ in range(count)]
    return keras.Sequential([keras.Input((32, 32, 32)), *layers])


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "one.tflite"
    export(convolutions(1), path)
    return path


def test_four_times_the_work_takes_longer(one_layer, capfd):
    report = benchmark({"four": convolutions(4), "one": one_layer}, rounds=5)
    four, one = report.timings
    assert (four.name, one.name) == ("four", "one")
    assert (four.speed_up, four.speed_up_low, four.speed_up_high) == (1, 1, 1)
    # About 4; a busy machine slows both.
    assert 1.5 < one.speed_up < 12
    assert one.speed_up_low <= one.speed_up <= one.speed_up_high
    assert 0 < one.median_ms < four.median_ms
    assert one.bytes == one_layer.stat().st_size
    assert report.rounds == 5 and report.threads == 1 and report.device
    assert report.runtime == lite.runtime_version()
    when = datetime.datetime.fromisoformat(report.date)
    assert abs(datetime.datetime.now(datetime.timezone.utc) - when) < datetime.timedelta(hours=1)
    assert capfd.readouterr().out == ""


def test_the_rounds_are_interleaved_and_ratios_are_taken_within_a_round(one_layer, monkeypatch):
    order = []

    def seconds(model, runs):
        order.append(names[id(model)])
        # The machine halves its speed with every round; "b" is always 4 times as fast as "a".
        round_number = (len(order) - 5) // 2
        return 2.0**round_number * (1.0 if names[id(model)] == "a" else 0.25)

    names = {}
    load = lite.Model.load

    def load_and_note(model, inputs):
        names[id(model)] = "ab"[len(names)]
        load(model, inputs)

    monkeypatch.setattr(lite.Model, "load", load_and_note)
    monkeypatch.setattr(benchmarking, "_seconds_per_run", seconds)
    report = benchmark({"a": one_layer, "b": one_layer}, rounds=3)
    # Two warm-ups and two calibrations come first.
    assert "".join(order) == "abab" + "ab" + "ba" + "ab"
    assert report.timings[1].speed_up == 4
    assert (report.timings[1].speed_up_low, report.timings[1].speed_up_high) == (4, 4)
    # a: 1, 2 and 4 s.
    assert report.timings[0].median_ms == pytest.approx(2000)
    assert report.timings[0].p10_ms == pytest.approx(1200)
    assert report.timings[0].p90_ms == pytest.approx(3600)


def test_a_sample_lasts_long_enough(one_layer):
    model = lite.Model(one_layer)
    runs = benchmarking._runs_per_sample(model)
    assert runs & (runs - 1) == 0
    # 20 ms when it was measured; a machine that gets faster at once is still well above 2.
    assert benchmarking._seconds_per_run(model, runs) * runs > 0.002


def test_the_interval_covers_the_truth_and_not_much_else():
    generator = np.random.default_rng(5)
    first = generator.normal(3.0, 0.1, 200)
    timing = benchmarking._timing("x", 1, np.ones(200), first)
    assert timing.speed_up_low < 3.0 < timing.speed_up_high
    # The standard error of a median is 1.25 sigma / sqrt(n): 0.009 here, the interval 4 of them.
    assert timing.speed_up_high - timing.speed_up_low == pytest.approx(0.035, rel=0.4)


@pytest.mark.parametrize(
    ("dtype", "quantization", "low", "high"),
    [
        ("float32", (0.0, 0), 0, 1),
        ("int32", (0.0, 0), 0, 1),
        ("bool", (0.0, 0), 0, 1),
        ("int8", (0.5, -28), -50, 77.5),
        ("uint8", (2.0, 0), 0, 510),
    ],
)
def test_random_inputs_fill_the_range_and_are_always_the_same(dtype, quantization, low, high):
    tensor = lite.Tensor("x", (50, 40), np.dtype(dtype), *quantization)

    def draw():
        return benchmarking._random(np.random.default_rng(0), tensor)

    values = draw()
    assert values.dtype == ("float32" if tensor.scale else dtype) and values.shape == (50, 40)
    assert values.min() >= low and values.max() <= high
    assert values.std() > 0.2 * (int(high) - int(low))
    np.testing.assert_array_equal(values, draw())


def test_two_inputs_are_timed(two_in_two_out):
    assert benchmark({"both": two_in_two_out}, rounds=1).timings[0].median_ms > 0


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, "expected at least one model"),
        ({"a": "none.tflite"}, {}, "no such file: none.tflite"),
        ({"a": "setup.cfg"}, {}, "no .tflite model"),
        ({"a": "x"}, {"threads": 0}, "threads of at least 1, got 0"),
        ({"a": "x"}, {"rounds": 0}, "rounds of at least 1, got 0"),
        ({"a": "x"}, {"warmup": 0}, "warmup of at least 1, got 0"),
    ],
)
def test_wrong_arguments(models, options, message, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    with pytest.raises(Error, match=message):
        benchmark(models, **options)


def test_the_report_prints_and_survives_json():
    report = BenchmarkReport(
        timings=(
            Timing("original", 2048, 2.0, 1.5, 2.5, 1.0, 1.0, 1.0),
            Timing("student", 1024, 0.5, 0.4, 0.6, 4.0, 3.5, 4.5),
        ),
        device="a CPU",
        threads=1,
        rounds=30,
        runtime="2.3.0",
        date="2026-01-02T03:04:05+00:00",
    )
    lines = str(report).splitlines()
    assert lines[0].split("  ")[0] == "model"
    assert lines[3].split() == ["student", "1.0", "0.500", "0.400..0.600", "4.00x", "3.50..4.50"]
    assert lines[4] == "a CPU, 1 thread, 30 rounds, LiteRT 2.3.0, 2026-01-02T03:04:05+00:00"
    assert reporting.from_json(BenchmarkReport, report.to_json()) == report


def test_a_timing_checks_itself():
    with pytest.raises(Error, match="timings of 'a' out of order"):
        Timing("a", 1, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0)
    with pytest.raises(Error, match="speed-up of 'a' outside of its interval"):
        Timing("a", 1, 1.0, 1.0, 1.0, 2.0, 1.0, 1.5)
