"""The demo's logic in Java against Python: golden vectors, LiteRT's answers, and the report.

One run of Maven does all tests in android_demo/core; what it measured and wrote is read here.
"""

import dataclasses
import shutil
import subprocess
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path

import ai_edge_litert
import numpy as np
import pytest

import tfdwd
from tfdwd import benchmarking

pytestmark = pytest.mark.android

CORE = Path(__file__).resolve().parent.parent / "android_demo/core"
GOLDEN = CORE / "src/test/resources/golden"
LIBRARY = Path(ai_edge_litert.__file__).parent / "libLiteRt.so"
PHASES = ("preprocessing", "inference", "postprocessing")


def _properties(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


@pytest.fixture(scope="module")
def output(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the reports that the Java tests left, all of which ran and passed."""
    folder = tmp_path_factory.mktemp("java")
    reports = CORE / "target/surefire-reports"
    shutil.rmtree(reports, ignore_errors=True)
    options = {"litert": LIBRARY, "models": written / "models", "output": folder}
    command = ["mvn", "--quiet", "--batch-mode", "test"]
    command += [f"-Dtfdwd.{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, cwd=CORE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    suites = [xml.etree.ElementTree.parse(path).getroot() for path in reports.glob("TEST-*.xml")]
    classes = {path.stem for path in CORE.glob("src/test/java/**/*Test.java")}
    assert {suite.attrib["name"].rpartition(".")[2] for suite in suites} == classes
    assert sum(int(suite.attrib["skipped"]) for suite in suites) == 0
    yield folder


def test_golden_vectors_are_what_python_computes(written: Path) -> None:
    names = sorted(path.name for path in GOLDEN.iterdir())
    assert names == sorted(path.name for path in (written / "golden").iterdir())
    for name in names:
        committed, now = GOLDEN / name, written / "golden" / name
        if name.endswith(".json"):
            assert committed.read_text() == now.read_text(), name
            continue
        expected, found = _properties(committed), _properties(now)
        if "resized" in expected:
            # TensorFlow's order of addition is the machine's; goldens.py argues the bound.
            pair = [np.frombuffer(bytes.fromhex(part.pop("resized")), ">f4")
                    for part in (expected, found)]  # fmt: skip
            np.testing.assert_allclose(*pair, rtol=0, atol=2 * 16 * 2**-17)
        assert expected == found, f"{name}: run android_demo/core/goldens.py"


@pytest.mark.parametrize("rounds", [1, 2, 5, 30, 60])
def test_python_reads_reports_that_java_wrote(output: Path, rounds: int) -> None:
    stem = f"rounds_{rounds}"
    numbers = _properties(GOLDEN / f"{stem}.properties")
    shape = (len(PHASES), int(numbers["models"]), rounds)
    seconds = np.frombuffer(bytes.fromhex(numbers["seconds"]), ">f8").astype(float).reshape(shape)
    for phase, of_phase in zip(PHASES, seconds, strict=True):
        text = (output / f"{stem}.{phase}.json").read_text()
        report = tfdwd.BenchmarkReport.from_json(text)
        timings = [
            benchmarking.timing_of(f"model {index}", 1000 + index, of_model, of_phase[0])
            for index, of_model in enumerate(of_phase)
        ]
        # Equal to the last digit: the same sums in the same order, and the same random numbers.
        assert report.timings == tuple(timings)
        golden = (GOLDEN / f"{stem}.{phase}.json").read_text()
        assert report == tfdwd.BenchmarkReport.from_json(golden)
        assert report.device == 'Grüße "8\\9" \N{GRINNING FACE}'


def test_python_reads_what_java_measured_on_litert(output: Path, written: Path) -> None:
    report = tfdwd.BenchmarkReport.from_json((output / "measured.json").read_text())
    names = ["original_none", "student_none"]
    assert [timing.name for timing in report.timings] == names
    sizes = [(written / f"models/{name}.tflite").stat().st_size for name in names]
    assert [timing.bytes for timing in report.timings] == sizes
    assert report.rounds == 3 and report.date.endswith("+00:00")
    assert dataclasses.replace(report.timings[0], speed_up=1.0) == report.timings[0]
    assert "student_none" in str(report)


def test_classes_are_java_8_without_lambdas(output: Path) -> None:
    """Of what the phone runs: a lambda becomes an instruction that old dexers cannot take."""
    classes = list((CORE / "target/classes").rglob("*.class"))
    assert len(classes) > 15
    command = ["javap", "-v", "-p", *map(str, classes)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert code.count("major version: 52") == len(classes)
    assert "invokedynamic" not in code
