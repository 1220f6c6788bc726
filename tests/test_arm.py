"""Results on ARM, under qemu: the parity table's comparison, and tfdwd on a bare board.

What runs under qemu needs a package index and Debian's packages, once: `build/arm64` keeps them.
"""

import csv
import importlib
import os
import runpy
import subprocess

import keras
import numpy as np
import pytest

import tfdwd


@pytest.fixture(scope="module")
def arm(pytestconfig):
    """The scripts of benchmarks/arm: emulator and parity."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pytestconfig.rootpath / "benchmarks" / "arm")
        return {name: importlib.import_module(name) for name in ("emulator", "parity")}


@pytest.fixture(scope="module")
def pythons(arm):
    return arm["emulator"].prepare()


@pytest.fixture(scope="module")
def files(arm, tmp_path_factory):
    """The demo's original network in every precision, without its softmax."""
    parity = arm["parity"]
    model = keras.models.load_model(parity.DEMO / "fashion_shufflenet.keras", compile=False)
    folder = tmp_path_factory.mktemp("arm")
    found = {}
    for quantize, precision in parity.PRECISIONS.items():
        found[precision] = folder / f"{precision}.tflite"
        parity.export(model, found[precision], quantize, "logits")
    return found


def test_int8_is_compared_in_steps(arm):
    here = np.array([[-128, 127, 3]], np.int8)
    assert arm["parity"].compare(here, here) == (0, 0.0)
    # From end to end is 255 steps: the difference must not wrap around.
    assert arm["parity"].compare(here, np.array([[127, 127, 1]], np.int8)) == (2, 255.0)


def test_float_is_compared_with_the_largest_output(arm):
    here = np.array([[1.0, -4.0, 0.5]], np.float32)
    there = np.array([[1.0, -4.0, 0.75]], np.float32)
    assert arm["parity"].compare(here, there) == (1, 0.25 / 4)


def test_what_cannot_be_compared(arm):
    with pytest.raises(ValueError, match=r"float32 \(1, 2\) against int8 \(1, 2\)"):
        arm["parity"].compare(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int8))


@pytest.mark.parametrize(
    ("precision", "output", "largest", "nudged", "expected"),
    [
        ("int8", "logits", 0.0, 0.0, True),
        ("int8", "logits", 1.0, 5.0, False),
        ("int8", "probabilities", 1.0, 0.0, True),
        ("int8", "probabilities", 2.0, 5.0, False),
        ("float32", "logits", 1e-5, 0.0, True),
        ("float32", "probabilities", 1.1e-5, 1.0, False),
        ("dynamic", "logits", 0.02, 0.01, True),
        ("dynamic", "probabilities", 0.021, 0.01, False),
    ],
)
def test_limits(arm, precision, output, largest, nudged, expected):
    assert arm["parity"].expected(precision, output, largest, nudged) == expected


def test_the_committed_table_keeps_what_is_promised(arm):
    emulator, parity = arm["emulator"], arm["parity"]
    with open(parity.HERE / "parity.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 3  # networks, outputs, precisions
    for row in rows:
        for processor in emulator.PROCESSORS:
            largest = float(row[f"{processor.name} largest"])
            assert (largest > 0) == (int(row[f"{processor.name} differ"]) > 0)
            assert parity.expected(
                row["precision"], row["output"], largest, float(row["nudged"])
            ), row


def test_the_page_shows_the_committed_table(pytestconfig):
    text = (pytestconfig.rootpath / "docs/robots.md").read_text()
    tables = runpy.run_path(str(pytestconfig.rootpath / "benchmarks/tables.py"))
    assert "parity.csv: network" in text and tables["with_tables"](text) == text


@pytest.mark.slow
def test_logits_are_those_of_the_same_network(arm, files):
    parity = arm["parity"]
    images = parity._images("x_test", 3).astype(np.float32)
    model = keras.models.load_model(parity.DEMO / "fashion_shufflenet.keras", compile=False)
    logits = parity.outputs.outputs(files["float32"], images)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    # As tfdwd.export promises of a float32 file, at probabilities up to 1.
    expected = model.predict_on_batch(images)
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cortex-a53", "cortex-a76", "armv9"])
def test_results_on_arm_are_those_on_x86(arm, pythons, files, name):
    parity = arm["parity"]
    images = parity._images("x_test", 8)
    found = parity.on_arm(pythons[name], list(files.values()), images)
    for precision, file in files.items():
        here = parity.outputs.outputs(file, images)
        assert len(np.unique(here)) > 20  # of 80: not all saturated
        differ, largest = parity.compare(here, found[file.stem])
        if precision == "float32":
            # Other kernels ran, so this was not x86 once more.
            assert differ > 0
        # The largest "nudged" of logits in parity.csv, which has more images and networks.
        assert parity.expected(precision, "logits", largest, 0.0053), (precision, differ, largest)


@pytest.mark.slow
def test_int8_softmax_on_arm_differs_by_one_step_where_a_probability_is_midway(
    arm, pythons, tmp_path
):
    """The reason for the one step that the table allows: LiteRT's softmax is another on AArch64."""
    parity, source = arm["parity"], np.random.default_rng(0)
    given = keras.Input((10,))
    scores = source.uniform(-6, 6, (4000, 10)).astype(np.float32)
    file = tmp_path / "softmax.tflite"
    model = keras.Model(given, keras.layers.Softmax()(given))
    tfdwd.export(model, file, quantize="int8", data=scores[:256])
    scores *= source.uniform(0, 1, (4000, 1)).astype(np.float32)  # flat ones and steep ones
    [details] = tfdwd.lite.Model(file).inputs
    held = details.real(details.quantized(scores)).astype(np.float64)
    odds = np.exp(held - held.max(axis=1, keepdims=True))
    exact = np.clip(256 * odds / odds.sum(axis=1, keepdims=True) - 128, -128, 127)
    here = parity.outputs.outputs(file, scores)
    there = parity.on_arm(pythons["cortex-a53"], [file], scores)["softmax"]
    assert np.abs(here - exact).max() <= 0.5 + 1e-4
    # Eleven halves of 1/65535, in steps of 1/256.
    assert 0.5 + 1e-4 < np.abs(there - exact).max() <= 0.5 + 11 / 2 / 65535 * 256
    differ, largest = parity.compare(here, there)
    assert 0 < differ < 400 and largest == 1  # of 40,000


@pytest.mark.slow
def test_another_network_is_noticed_on_arm(arm, pythons, files, tmp_path):
    """The comparison can fail: one bias is one step of the output higher."""
    parity = arm["parity"]
    model = keras.models.load_model(parity.DEMO / "fashion_shufflenet.keras", compile=False)
    kernel, bias = model.layers[-1].get_weights()
    images = parity._images("x_test", 2)
    [output] = tfdwd.lite.Model(files["int8"]).outputs
    bias[3] += output.scale
    model.layers[-1].set_weights([kernel, bias])
    parity.export(model, tmp_path / "int8.tflite", "int8", "logits")
    found = parity.on_arm(pythons["cortex-a53"], [tmp_path / "int8.tflite"], images)
    here = parity.outputs.outputs(files["int8"], images)
    assert parity.compare(here[:, 3], found["int8"][:, 3])[1] >= 1


@pytest.mark.slow
def test_the_benchmark_runs_on_an_arm_board(pythons, files, tmp_path, pytestconfig):
    """Only that it runs, processes of its own included: qemu's times mean nothing."""
    command = [pythons["cortex-a76"], "-m", "tfdwd.scripts.benchmark", "--rounds=1"]
    command += [f"--model={precision}={file}" for precision, file in files.items()]
    done = subprocess.run(
        [*command, f"--json={tmp_path}/board.json"],
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = tfdwd.BenchmarkReport.from_json((tmp_path / "board.json").read_text())
    assert [timing.name for timing in report.timings] == list(files)
    assert all(timing.load_ms for timing in report.timings)
    assert report.device == "aarch64"
