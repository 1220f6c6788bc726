"""Logs as the tools print them; that of litert-benchmark is made by the real tool."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tfdwd
from tfdwd import logs
from tfdwd.errors import Error

# The formats are those of tensorflow/lite/tools/benchmark, of TensorFlow 1.13 (without percentiles,
# "Average inference timings"), 2.4 and 2.20; the numbers are made up.
OLD = """STARTING!
Num threads: [4]
Graph: [/data/local/tmp/first one.tflite]
#threads used for CPU inference: [4]
Loaded model /data/local/tmp/first one.tflite
The input model file size (MB): 0.004448
Initialized session in 0.855ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=49 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=700

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, Inference (avg): 33209.4
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to ...
Peak memory footprint (MB): init=0 overall=12.5
"""  # noqa: E501
NEW = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [2]
INFO: Graph: [/data/local/tmp/second.tflite]
INFO: Loaded model /data/local/tmp/second.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: count=1 curr=1357602 p5=1357602 median=1357602 p95=1357602

INFO: count=100 first=1249964 curr=1240143 min=1238588 max=1e+07 avg=1.34e+06 std=99999 p5=1238355 median=1239807 p95=1241645

INFO: Inference timings in us: Init: 5579, First inference: 1357602, Warmup (avg): 1.3576e+06, Inference (avg): 1.34e+06
INFO: Memory footprint delta from the start of the tool (MB): init=6.36328 overall=2
"""  # noqa: E501


def test_benchmark_model() -> None:
    first, second = logs.read(OLD + NEW)
    assert dataclasses.replace(first, error_ms=round(first.error_ms, 9)) == logs.Run(
        "benchmark_model", "/data/local/tmp/first one.tflite", 33.2094, 0.1, 4, 0.855, 49.06, 12800
    )
    # The median and the percentiles: not the mean and the deviation, which one outlier spoilt.
    assert second == dataclasses.replace(
        second,
        model="/data/local/tmp/second.tflite",
        ms=1239.807,
        threads=2,
        load_ms=5.579,
        first_ms=1357.602,
        peak_kib=2048,
    )
    assert second.error_ms == pytest.approx(0.1)


def test_a_log_that_was_cut_at_its_start() -> None:
    [run] = logs.read(OLD[OLD.index("Graph") :])
    assert run.ms == 33.2094


def test_android_prefixes() -> None:
    prefixed = "\n".join(f"01-02 03:04:05.678  9  9 I tflite  : {line}" for line in NEW.split("\n"))
    assert logs.read(prefixed) == logs.read(NEW)


def test_litert_benchmark(tmp_path: Path, classifier: object) -> None:
    path = tmp_path / "network.tflite"
    tfdwd.export(classifier, path)
    command = [Path(sys.executable).with_name("litert-benchmark"), f"--model={path}"]
    done = subprocess.run(
        [*command, "--num_runs=9"], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    [run] = logs.read(done.stdout.decode())
    assert (run.tool, run.model, run.threads) == ("litert-benchmark", str(path), 1)
    assert f"Model initialization:  {run.load_ms:.2f} ms" in done.stdout.decode()
    assert run.ms >= 0.005 and run.error_ms >= 0.005  # it prints two places


def test_tfdwds_own(tmp_path: Path, classifier: object) -> None:
    report = tfdwd.benchmark({"a": classifier, "b": classifier}, rounds=4)
    runs = logs.read(report.to_json())
    assert [(run.tool, run.model, run.threads) for run in runs] == [("tfdwd", n, 1) for n in "ab"]
    np.testing.assert_allclose([r.ms for r in runs], [t.median_ms for t in report.timings])
    assert all(0 <= run.error_ms < run.ms for run in runs)


COUNTS = "INFO: count=50 first=2 curr=2 min=2 max=2 avg=1500 std=9"
SOME = (
    f"STARTING!\nNum threads: [1]\nGraph: [a.tflite]\n{COUNTS}\n"
    "Inference timings in us: Init: 9, First inference: 9, Warmup (avg): 9, Inference ...\n"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count=50", "count=0", "expected a count of runs of at least 1, got 0"),
        ("avg=1500", "avg=0", r"Run\.ms: expected float > 0\.0, got 0\.0"),
        ("avg=1500", "avg=1e999", r"Run\.ms: expected float <= .*, got inf"),
        (COUNTS, " curr=nan", r"Run\.ms: expected float > 0"),
        ("std=9", "p5=9 p95=1", r"Run\.error_ms: expected float >= 0\.0, got -"),
        ("threads: [1]", "threads: [0]", r"Run\.threads: expected int >= 1, got 0"),
        ("Init: 9", "Init: 1e999", r"Run\.load_ms: expected float <="),
    ],
)
def test_numbers_that_cannot_be(old: str, new: str, message: str) -> None:
    assert logs.read(SOME)[0].ms == 1.5
    assert old in SOME
    with pytest.raises(Error, match=rf"the log's result for a\.tflite makes no sense: {message}"):
        logs.read(SOME.replace(old, new))


def test_numbers_that_are_none_are_not_read() -> None:
    assert logs.read(SOME.replace("std=9", "std=1.2.3"))[0].error_ms < 0.001
    assert logs.read(SOME.replace("count=50", "count=-5"))[0].error_ms == 0.009


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the output of benchmark_model or litert-benchmark, or the JSON"),
        ("hello", "got 'hello'"),
        ("{}", "expected the JSON of a BenchmarkReport"),
        (
            OLD + NEW[: NEW.index("INFO: count")] + "\nERROR: Op builtin_code out of range: 147.\n",
            "no result for /data/local/tmp/second.tflite; .* words: ERROR: Op builtin_code out",
        ),
        ("Graph: [a.tflite]", "no result for a.tflite; the tool's last words: Graph"),
    ],
)
def test_what_is_no_result(text: str, message: str) -> None:
    with pytest.raises(Error, match=message):
        logs.read(text)


# Made by hand, in the formats of TensorFlow 2.8 (tabs, with [start]) and of 2.17 (spaces, without),
# whose XNNPACK rows can stand for several calls.
HEAD = "[first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]"
OPERATORS = f"""Graph: [a.tflite]
Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t          [start]\t  {HEAD}
\t         AllocateTensors\t  0.000\t 1.356\t 1.356\t100.000%\t100.000%\t 0.000\t 1\tAllocateTensors/0

Number of nodes executed: 1
Timings (microseconds): count=1 curr=1356

Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t          [start]\t  {HEAD}
\t                 CONV_2D\t  0.066\t 0.080\t 0.060\t 20.000%\t 20.000%\t 0.000\t 1\t[net/conv/Relu, b]:0
INFO: something that another part of the program says
\tConvolution (NHWC, QC8) GEMM\t  0.1\t 0.428\t 0.02\t 80.0%\t 100.0%\t 0.0\t 12\tDelegate/Convolution (NHWC, QC8) GEMM:2

============================== Top by Computation Time ==============================
\t             [node type]\t          [start]\t  {HEAD}
\tConvolution (NHWC, QC8) GEMM\t  0.1\t 0.428\t 0.02\t 80.0%\t 100.0%\t 0.0\t 12\tDelegate/Convolution (NHWC, QC8) GEMM:2

Number of nodes executed: 2
============================== Summary by node type ==============================
\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]
\t                 CONV_2D\t        1\t     0.060\t    20.000%\t    20.000%\t     0.000\t        1

Timings (microseconds): count=50 first=310 curr=299 min=290 max=310 avg=3.001e+02 std=9
Memory (bytes): count=0
Delegate internal:
============================== Run Order ==============================
\t             [node type]\t          [start]\t  {HEAD}
\t                    part\t  0.066\t 0.080\t 0.060\t 20.000%\t 20.000%\t 0.000\t 1\tDelegate/part:0

Number of nodes executed: 1
Timings (microseconds): count=50 curr=60
"""  # noqa: E501


def test_operators() -> None:
    model, ms, (own, delegated) = logs.read_operators(OPERATORS)
    assert model == "a.tflite" and ms == pytest.approx(0.3001)
    assert own == logs.OperatorTime("CONV_2D", "[net/conv/Relu, b]:0", 0.08, 0.06, 1)
    kind = "Convolution (NHWC, QC8) GEMM"
    assert delegated == logs.OperatorTime(kind, f"Delegate/{kind}:2", 0.428, 0.02, 12)
    assert delegated.ms == pytest.approx(0.24)


def test_operators_without_the_column_of_the_start() -> None:
    text = OPERATORS.replace("[start]\t", "").replace("0.066\t", "").replace("0.1\t", "")
    assert "[start]" not in text
    assert logs.read_operators(text) == logs.read_operators(OPERATORS)


@pytest.mark.parametrize("prefix", ["01-02 03:04:05.678  9  9 I tflite  : ", "I/tflite ( 123): "])
def test_operators_in_androids_log(prefix: str) -> None:
    prefixed = "".join(f"{prefix}{line}\n" for line in OPERATORS.split("\n"))
    assert logs.read_operators(prefixed) == logs.read_operators(OPERATORS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("= Run Order =", "=", "expected the log of one run .* got no tables of operators"),
        ("Delegate internal:", "Operator-wise Profiling Info for", "got 2 tables of operators"),
        (
            "executed: 2",
            "executed: 3",
            "a table of 3 operators and their sum, got 2 operators: the",
        ),
        ("Timings (", "Sums (", "got 2 operators and no sum: the log is cut"),
        ("[times called]\t[Name]", "[called]\t[Name]", "GEMM:2|conv/Relu.* makes no sense: 'times"),
        ("\t 12\t", "\t 1.5\t", "operator Delegate/.*:2 makes no sense: invalid literal for int"),
        ("\t 12\t", "\t 12000000000\t", "Delegate/.*:2 makes no sense: calls: expected fewer"),
        ("\t 0.02\t", "\t 1e308\t", "Delegate/.*:2 makes no sense: calls: expected fewer"),
        ("\t 0.02\t", "\t nan\t", "operator Delegate/.*:2 makes no sense: .*average_ms"),
        ("\t 0.02\t", "\t -1\t", "operator Delegate/.*:2 makes no sense: .*average_ms"),
    ],
)
def test_operators_that_cannot_be(old: str, new: str, message: str) -> None:
    assert old in OPERATORS
    with pytest.raises(Error, match=message):
        logs.read_operators(OPERATORS.replace(old, new))


def test_operators_of_a_log_that_is_cut() -> None:
    whole = OPERATORS[: OPERATORS.index("Memory")]
    assert len(logs.read_operators(whole)[2]) == 2
    with pytest.raises(Error, match="got 2 operators and no sum: the log is cut"):
        logs.read_operators(whole[: whole.rindex("Timings")])
    with pytest.raises(Error, match="table of all operators and their sum, got 1 operators"):
        logs.read_operators(whole[: whole.index("INFO: something")])
