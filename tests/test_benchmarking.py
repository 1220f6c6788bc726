import dataclasses
import datetime
import json
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest

from tfdwd import benchmarking, lite
from tfdwd.benchmarking import BenchmarkReport, Timing, benchmark
from tfdwd.conditions import Conditions
from tfdwd.conversion import export
from tfdwd.errors import Error

pytestmark = pytest.mark.usefixtures("long_samples")


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
    assert report.runtime == f"LiteRT {lite.runtime_version()}"
    when = datetime.datetime.fromisoformat(report.date)
    assert abs(datetime.datetime.now(datetime.timezone.utc) - when) < datetime.timedelta(hours=1)
    assert capfd.readouterr().out == ""


def test_the_rounds_are_interleaved_and_ratios_are_taken_within_a_round(one_layer, monkeypatch):
    order = []

    def seconds(model, runs, clock):
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
    model, clock = lite.Model(one_layer), benchmarking._clock(1)
    model.run([np.zeros(tensor.shape) for tensor in model.inputs])
    runs = benchmarking._runs_per_sample(model, clock)
    # A machine that gets faster at once is still well above a fifth.
    assert benchmarking._seconds_per_run(model, runs, clock) * runs > 0.2 * (
        benchmarking._SAMPLE_SECONDS
    )


def test_one_thread_is_timed_without_what_others_take(one_layer):
    def busy():
        while not done.is_set():
            pass

    model, done = lite.Model(one_layer), threading.Event()
    other = threading.Thread(target=busy)  # takes the interpreter's lock half of the time
    other.start()
    try:
        start, used = time.perf_counter(), benchmarking._clock(1)()
        for _ in range(20):
            model.invoke()
            time.sleep(0.005)
        used, passed = benchmarking._clock(1)() - used, time.perf_counter() - start
    finally:
        done.set()
        other.join()
    assert passed > 0.1 and 0 < used < 0.5 * passed
    assert benchmarking._clock(2) is time.perf_counter


def test_the_interval_covers_the_truth_and_not_much_else():
    generator = np.random.default_rng(5)
    first = generator.normal(3.0, 0.1, 200)
    timing = benchmarking.timing_of("x", 1, np.ones(200), first)
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


def test_a_model_of_open_sizes_is_timed_in_memory(monkeypatch):
    monkeypatch.setattr(benchmarking, "tempfile", None)  # no file is made
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    report = benchmark({"open": model}, rounds=1, input_shape=(9, 7, 3))
    assert report.timings[0].median_ms > 0
    content = benchmarking.content_of(model, (9, 7, 3))
    assert lite.Model(content).inputs[0].shape == (1, 9, 7, 3)
    with pytest.raises(Error, match=r"leaves sizes open, .* input_shape=\(224, 224, 3\)"):
        benchmark({"open": model}, rounds=1)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, "expected at least one model"),
        ({"a": "none.tflite"}, {}, "no such file: none.tflite"),
        ({"a": "setup.cfg"}, {}, "no .tflite model"),
        (["x"], {}, "models: expected .* a dict of name to model, got list"),
        ({1: "x"}, {}, "models: expected names that are text, got 1"),
        ({"a": "x" * 300}, {}, "cannot read x.*: File name too long"),
        (
            {"a": "x"},
            {"threads": 10**6},
            r"threads: expected a whole number of 1\.\.512, got 1000000",
        ),
        ({"a": "x"}, {"threads": "2"}, "threads: expected a whole number of .*, got '2'"),
        ({"a": "x"}, {"startup": "no"}, "startup: expected True or False, got 'no'"),
        ({"a": "x"}, {"threads": 0}, "threads: expected a whole number of .*, got 0"),
        ({"a": "x"}, {"rounds": 0}, "rounds: expected a whole number of .*, got 0"),
        ({"a": "x"}, {"warmup": 0}, "warmup: expected a whole number of .*, got 0"),
        ({"a": "x"}, {"accelerator": "tpu"}, "accelerator: expected one of cpu, gpu, npu, got"),
        (
            {"a": "x"},
            {"accelerator": "cpu", "xnnpack": False},
            "xnnpack=False: expected accelerator=None",
        ),
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
        runtime="LiteRT 2.3.0",
        date="2026-01-02T03:04:05+00:00",
    )
    lines = str(report).splitlines()
    assert lines[0].split("  ")[0] == "model"
    assert lines[3].split() == ["student", "1.0", "0.500", "0.400..0.600", "4.00x", "3.50..4.50"]
    assert lines[4] == "a CPU, 1 thread, 30 rounds, LiteRT 2.3.0, 2026-01-02T03:04:05+00:00"
    assert BenchmarkReport.from_json(report.to_json()) == report


def test_a_timing_checks_itself():
    with pytest.raises(Error, match="timings of 'a' out of order"):
        Timing("a", 1, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0)
    with pytest.raises(Error, match="speed-up of 'a' outside of its interval"):
        Timing("a", 1, 1.0, 1.0, 1.0, 2.0, 1.0, 1.5)


def test_loading_and_the_first_run_are_measured_in_a_new_process(one_layer):
    report = benchmark({"one": one_layer}, rounds=2, startup=True)
    [timing] = report.timings
    assert timing.load_ms > 0 and timing.first_ms > 0
    # The model alone: 36 KiB of weights, but far from an interpreter's tens of MiB.
    assert timing.peak_kib is None or 36 < timing.peak_kib < 32 * 1024
    assert "load ms  first ms  peak MiB" in str(report)
    assert BenchmarkReport.from_json(report.to_json()) == report


def test_a_process_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Error, match="the process that measures a model's start failed"):
        benchmarking._startup(b"", 1, True, None)


def test_without_xnnpack_it_is_slower_and_the_report_says_so(one_layer):
    slow, fast = (benchmark({"one": one_layer}, rounds=5, xnnpack=x) for x in (False, True))
    assert slow.timings[0].median_ms > fast.timings[0].median_ms
    assert " without XNNPACK, " in str(slow) and "XNNPACK" not in str(fast)


def test_compiled_model_on_the_cpu(one_layer, two_in_two_out, capfd):
    models = {"four": convolutions(4), "one": one_layer, "two": two_in_two_out}
    report = benchmark(models, rounds=3, accelerator="cpu", startup=True)
    assert report.accelerator == "cpu"
    assert [timing.fully_accelerated for timing in report.timings] == [True, True, True]
    assert 1.5 < report.timings[1].speed_up < 12
    assert report.timings[1].load_ms > 0 and report.timings[1].first_ms > 0
    printed = capfd.readouterr()
    assert printed.out == "" and "accelerator_registry" not in printed.err
    assert "peak MiB  fully accelerated" in str(report)
    assert f"LiteRT {lite.runtime_version()} CompiledModel on cpu, " in str(report)
    assert BenchmarkReport.from_json(report.to_json()) == report
    header, line, *_ = report.to_csv().splitlines()
    found = dict(zip(header.split(","), line.split(","), strict=True))
    assert (found["accelerator"], found["fully_accelerated"]) == ("cpu", "True")


def test_one_thread_of_compiled_model_is_timed_by_the_wall(one_layer, monkeypatch):
    def asked(threads):
        raise AssertionError("CompiledModel may run in threads of its own")

    monkeypatch.setattr(benchmarking, "_clock", asked)
    assert benchmark({"one": one_layer}, rounds=1, accelerator="cpu").timings[0].median_ms > 0


@pytest.mark.parametrize("accelerator", ["gpu", "npu"])
def test_no_accelerator_is_one_line_before_anything_is_timed(accelerator, one_layer, monkeypatch):
    monkeypatch.setattr(benchmarking, "_seconds_per_run", None)
    try:
        lite.CompiledModel(one_layer, 1, accelerator)
    except Error as error:
        reason = str(error)
    else:
        pytest.skip(f"there is an {accelerator} here")
    assert "\n" not in reason
    with pytest.raises(Error, match=rf"accelerator='{accelerator}': expected one that LiteRT "):
        benchmark({"one": one_layer}, rounds=1, accelerator=accelerator)


def test_every_sample_is_kept_and_all_is_computed_again_from_them(one_layer):
    report = benchmark({"a": one_layer, "b": one_layer}, rounds=7)
    first, second = report.timings
    assert len(first.samples_ms) == len(second.samples_ms) == 7
    assert second.median_ms == pytest.approx(np.median(second.samples_ms), rel=1e-12)
    assert second.p90_ms == pytest.approx(np.percentile(second.samples_ms, 90), rel=1e-12)
    ratios = np.divide(first.samples_ms, second.samples_ms)
    assert second.speed_up == pytest.approx(np.median(ratios), rel=1e-12)
    assert BenchmarkReport.from_json(report.to_json()) == report
    assert "samples_ms" not in report.to_csv()


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("median_ms", 1.001, "expected median_ms=2.0, computed again from samples_ms, got 2.00"),
        ("p10_ms", 0.9, "expected p10_ms=1.2"),
        ("p90_ms", 1.1, "expected p90_ms=3.6"),
        ("speed_up_low", 0.9, "expected speed_up_low=1.0"),
        ("speed_up_high", 1.1, "expected speed_up_high=1.0"),
        ("samples_ms", 2, "expected 3 samples_ms, one for each round, .* got 6 and 6"),
    ],
)
def test_a_report_that_is_not_its_samples_is_refused(field, change, message):
    timing = benchmarking.timing_of("a", 1, *2 * [np.array([0.001, 0.002, 0.004])])
    report = BenchmarkReport((timing,), "a CPU", 1, 3, "LiteRT 2.3.0", "2026-01-02")
    content = json.loads(report.to_json())
    content["timings"][0][field] *= change
    with pytest.raises(Error, match=f"timings of 'a': {message}"):
        BenchmarkReport.from_json(json.dumps(content))


def test_samples_that_no_ratio_can_be_taken_of():
    timing = benchmarking.timing_of("a", 1, np.ones(2), np.ones(2))
    with pytest.raises(Error, match=r"expected float|expected p10_ms"):
        wild = dataclasses.replace(timing, samples_ms=(1e308, 1e-320))
        BenchmarkReport((timing, wild), "a CPU", 1, 2, "LiteRT 2.3.0", "2026-01-02")


def test_the_samples_of_the_first_model_are_needed_too():
    timing = benchmarking.timing_of("b", 1, np.ones(3), np.ones(3))
    first = dataclasses.replace(timing, name="a", samples_ms=())
    with pytest.raises(Error, match=r"timings of 'b': expected 3 samples_ms, .* got 3 and 0"):
        BenchmarkReport((first, timing), "a CPU", 1, 3, "LiteRT 2.3.0", "2026-01-02")


def report_of(*timings):
    return BenchmarkReport(timings, "a CPU", 1, 30, "LiteRT 2.3.0", "2026-01-02")


def test_what_the_machine_was_like_is_in_the_report(one_layer, tmp_path, monkeypatch):
    # A made-up /sys, whose clock is held down the whole time.
    for name, content in {
        "devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand",
        "class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "class/thermal/cooling_device0/cur_state": "1",
    }.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(f"{content}\n")
    monkeypatch.setattr(benchmarking, "_ROOT", tmp_path)
    report = benchmark({"a": one_layer, "b": one_layer}, rounds=2)
    assert report.conditions == Conditions(samples=4, governors=("ondemand",), throttled=4)
    lines = str(report).splitlines()
    assert "governor ondemand, throttled in 4 of 4 samples" in lines
    assert "throttled: the clock was held down for heat; cool it and measure again" in lines
    assert BenchmarkReport.from_json(report.to_json()) == report
    header, line, _ = report.to_csv().splitlines()
    found = dict(zip(header.split(","), line.split(","), strict=True))
    assert (found["governors"], found["throttled"], found["mhz_low"]) == ("ondemand", "4", "")


def test_reports_without_conditions_are_as_they_always_were():
    report = report_of(Timing("original", 2048, 2.0, 1.9, 2.1, 1.0, 1.0, 1.0))
    assert list(json.loads(report.to_json())) == [
        "timings", "device", "threads", "rounds", "runtime", "date", "xnnpack",
    ]  # fmt: skip
    assert BenchmarkReport.from_json(report.to_json()) == report
    older = '{"timings": [], "device": "x", "threads": 1, "rounds": 1, "runtime": "", "date": ""}'
    assert BenchmarkReport.from_json(older).conditions is None
    content = json.loads(report.to_json())
    del content["timings"][0]["samples_ms"]  # as before samples were kept
    assert BenchmarkReport.from_json(json.dumps(content)) == report


def test_noise_is_named():
    first = Timing("original", 2048, 2.0, 1.9, 2.1, 1.0, 1.0, 1.0)
    same = Timing("same", 1024, 2.0, 1.9, 2.1, 1.01, 0.97, 1.04)
    wild = Timing("wild", 1024, 1.0, 0.5, 2.1, 2.0, 1.8, 2.2)
    calm = str(report_of(first)).splitlines()
    assert calm[-1].startswith("a CPU, 1 thread")
    lines = str(report_of(first, same, wild)).splitlines()
    assert lines[-2] == "same: faster or slower cannot be told from the noise"
    assert lines[-1].startswith("a noisy machine: p90 is over 1.25 times p10 for wild; ")


def test_csv_has_a_line_for_each_model():
    first = Timing("original", 2048, 2.0, 1.9, 2.1, 1.0, 1.0, 1.0, 5.0, 3.0)
    header, line = report_of(first).to_csv().splitlines()
    found = dict(zip(header.split(","), line.split(","), strict=True))
    assert found["name"] == "original" and found["load_ms"] == "5.0" and found["peak_kib"] == ""
    assert (
        found["device"] == "a CPU"
        and found["runtime"] == "LiteRT 2.3.0"
        and found["xnnpack"] == "True"
    )


@pytest.mark.slow
def test_a_board_needs_no_tensorflow(one_layer, tmp_path, pytestconfig):
    """The README's board installation, in an environment of its own; needs a package index."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "board"], check=True)
    pip = [tmp_path / "board" / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "numpy", "ai-edge-litert", "absl-py", "msgspec"], check=True)
    subprocess.run([*pip, "--no-deps", pytestconfig.rootpath], check=True)
    packages = subprocess.run([*pip[:3], "list"], capture_output=True, text=True, check=True).stdout
    assert "tensorflow" not in packages and "keras" not in packages and "scipy" not in packages
    command = [tmp_path / "board" / "bin" / "tfdwd-benchmark", f"--model={one_layer}", "--rounds=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].startswith("one ")
