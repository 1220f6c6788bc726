"""Latency tables from other devices: micro-models out, logs in, a plan from them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import keras
import numpy as np
import pytest
from keras import layers

import tfdwd
from tfdwd import files, lite
from tfdwd.errors import Error

DATA = np.random.default_rng(0).normal(size=(64, 8, 8, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Two convolutions of one geometry and one of another, of few stacks each."""
    x = image = keras.Input((8, 8, 6), name="image")
    for name in ("first", "second"):
        x = layers.ReLU()(layers.Conv2D(6, 3, padding="same", name=name)(x))
    x = layers.Conv2D(3, (1, 2), name="third")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(x))
    return cases.randomised(keras.Model(image, x))


@pytest.fixture(scope="module")
def small() -> keras.Model:
    """One convolution of few stacks."""
    image = keras.Input((8, 8, 6), name="image")
    return cases.randomised(keras.Model(image, layers.Conv2D(3, (1, 2))(image)))


@pytest.fixture(scope="module")
def micro(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro")
    count = tfdwd.write_micro_models(model, folder)
    assert count == len(list(folder.glob("*.tflite"))) > 10
    return folder


def _log(micro: Path, milliseconds: dict[str, float], std: float = 0.0) -> str:
    """What benchmark_model would print; each file takes what its stack's name says."""
    names = {"network.tflite": "network"}
    manifest = json.loads((micro / "manifest.json").read_text())
    names |= {file: name for file, (_, name) in manifest["models"].items()}
    return "".join(
        f"STARTING!\nNum threads: [4]\nGraph: [/data/local/tmp/{file}]\n"
        f"count=100 first=9 curr=9 min=9 max=9 avg={1000 * milliseconds.get(name, 1.0)} std={std}\n"
        "Inference timings in us: Init: 9, First inference: 9, Warmup (avg): 9, Inference ...\n"
        for file, name in names.items()
    )


def test_each_geometry_is_written_once(micro: Path) -> None:
    models = json.loads((micro / "manifest.json").read_text())["models"]
    keys = [key for key, name in models.values() if name == "kept"]
    assert len(keys) == len(set(keys)) == 2
    assert keys[0].startswith("8x8x6 -> 6, taps (3, 3)")
    for file, (key, name) in models.items():
        shape = "x".join(map(str, lite.Model(micro / file).inputs[0].shape[1:]))
        assert key.startswith(f"{shape} -> ")
        kinds = [operator.name for operator in lite.operators(micro / file)]
        if name.startswith("separable"):
            assert kinds.count("DEPTHWISE_CONV_2D") == int(name.split()[1])
    assert lite.Model(micro / "network.tflite").inputs[0].name == "image"


def test_open_sizes_and_batches_are_those_of_the_network(tmp_path: Path) -> None:
    image = keras.Input((None, None, 6), name="image")
    x = layers.Conv2D(6, (1, 3), padding="same", strides=2, name="first")(image)
    model = keras.Model(image, layers.Conv2D(6, (1, 3), padding="same", name="second")(x))
    with pytest.raises(Error, match=r"'image' .* leaves sizes open"):
        tfdwd.write_micro_models(model, tmp_path / "none")
    assert not list(tmp_path.iterdir())
    tfdwd.write_micro_models(model, tmp_path / "open", input_shape=(10, 8, 6))
    models = json.loads((tmp_path / "open" / "manifest.json").read_text())["models"]
    assert [key.split(" ")[0] for key, name in models.values() if name == "kept"] == [
        "10x8x6",
        "5x4x6",
    ]
    table_of = {"network": 3.0, "kept": 2.0}
    (tmp_path / "log").write_text(_log(tmp_path / "open", table_of))
    table = tfdwd.read_latency_table(tmp_path / "open", [tmp_path / "log"], "phone")
    data = np.random.default_rng(0).normal(size=(16, 10, 8, 6)).astype(np.float32)
    plan = tfdwd.plan(model, data, max_error=1e9, threads=4, latency_table=table)
    assert [layer.replaced for layer in plan.layers] == [True, True]
    student = tfdwd.decompose(model, data, rank=plan)
    assert student.inputs[0].shape == (None, None, None, 6)
    for other in (data[:, :6], data[:3, :7, :5]):
        assert student(other).shape == model(other).shape
    with pytest.raises(Error, match="expected a latency table with 6x8x6"):
        tfdwd.plan(model, data[:, :6], max_error=1e9, threads=4, latency_table=table)


def test_a_plan_by_the_times_of_a_phone(model: keras.Model, micro: Path, tmp_path: Path) -> None:
    faster = {"kept": 2.0, "network": 6.0, "separable 2": 0.5}
    (tmp_path / "log.txt").write_text(_log(micro, faster))
    table = tfdwd.read_latency_table(micro, [tmp_path / "log.txt"], "some phone")
    assert (table.device, table.runtime, table.threads) == ("some phone", "benchmark_model", 4)
    assert tfdwd.LatencyTable.from_json(table.to_json()) == table
    plan = tfdwd.plan(model, DATA, latency="2ms", threads=4, latency_table=table)
    # 6 ms less twice 1.5 and, for the two taps that have no rank 2, less 1.
    assert [layer.rank for layer in plan.layers] == [2, 2, 1, 0]
    assert (plan.ms_before, plan.ms_after, plan.device) == (6.0, 2.0, "some phone")
    assert tfdwd.decompose(model, DATA, rank=plan).count_params() < model.count_params() * 1.1


def test_what_may_be_noise_is_not_taken_for_faster(
    model: keras.Model, micro: Path, tmp_path: Path
) -> None:
    # 2 ms against 1 ms with standard errors of 0.3 ms: a difference of 2.4 of them.
    # 2 ms against 1.5 ms: of 1.2.
    (tmp_path / "log.txt").write_text(_log(micro, {"kept": 2.0, "separable 1": 1.5}, 3000))
    table = tfdwd.read_latency_table(micro, [tmp_path / "log.txt"], "noisy")
    times = table.layers[next(iter(table.layers))]
    assert times["separable 1 surely"] < 1 < times["separable 2 surely"]


@pytest.mark.parametrize("tool", ["litert-benchmark", "tfdwd-benchmark"])
def test_real_tools(small: keras.Model, tmp_path: Path, tool: str) -> None:
    micro = tmp_path / "micro"
    tfdwd.write_micro_models(small, micro)
    command = Path(sys.executable).with_name(tool)
    log = tmp_path / "log"
    files = sorted(micro.glob("*.tflite"))
    assert len(files) > 2
    if tool == "litert-benchmark":
        with open(log, "w") as out:
            for file in files:
                run = [command, f"--model={file}", "--num_runs=3", "--warmup_runs=1"]
                subprocess.run(run, stdout=out, stderr=subprocess.STDOUT, check=True)
    else:
        flags = [f"--model={file}" for file in files]
        run = [command, *flags, "--rounds=2", f"--json={log}"]
        subprocess.run(run, capture_output=True, check=True)
    table = tfdwd.read_latency_table(micro, [log], "here")
    assert table.runtime == tool.removesuffix("-benchmark" if "tfdwd" in tool else "")
    assert table.network_ms > 0
    plan = tfdwd.plan(small, DATA, max_error=1e9, latency_table=table)
    assert plan.ms_before == table.network_ms


def _write(folder: Path, text: str) -> list[Path]:
    (folder / "log.txt").write_text(text)
    return [folder / "log.txt"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda log: "?", "log.txt: expected the output of benchmark_model"),
        (
            lambda log: log[: log.rindex("STARTING", 0, log.rindex("STARTING"))],
            r"no result for 2 of \d+ files, such as 0\d\d-[a-z]+-\d.tflite; run",
        ),
        (
            lambda log: log.replace("Num threads: [4]", "Num threads: [2]", 1),
            "one tool with one .* benchmark_model with 2 and benchmark_model with 4",
        ),
    ],
)
def test_wrong_logs(micro: Path, tmp_path: Path, changed: Any, message: str) -> None:
    logs = _write(tmp_path, changed(_log(micro, {})))
    with pytest.raises(Error, match=message):
        tfdwd.read_latency_table(micro, logs, "phone")


def test_missing_files(micro: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"no such file: .*none"):
        tfdwd.read_latency_table(micro, [tmp_path / "none"], "phone")
    with pytest.raises(Error, match="expected a folder that tfdwd's micro-models were written to"):
        tfdwd.read_latency_table(tmp_path, _write(tmp_path, ""), "phone")


def test_the_wrong_table(model: keras.Model, micro: Path, tmp_path: Path) -> None:
    table = tfdwd.read_latency_table(micro, _write(tmp_path, _log(micro, {})), "phone")
    with pytest.raises(Error, match="measured with quantize='none', threads=4; pass these, got"):
        tfdwd.plan(model, DATA, latency=0.5, latency_table=table)
    image = keras.Input((8, 8, 6))
    other = keras.Model(image, layers.Conv2D(9, 3, name="conv")(image))
    with pytest.raises(Error, match="layer 'conv': expected a latency table with 8x8x6 -> 9, taps"):
        tfdwd.plan(other, DATA, latency=0.5, threads=4, latency_table=table)


def test_a_folder_that_holds_something_is_not_written_to(
    model: keras.Model, tmp_path: Path
) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(Error, match="expected a new or an empty folder"):
        tfdwd.write_micro_models(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_folder_that_cannot_be_made_is_a_clear_error(model: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Error, match=r"folder: cannot make .*file/micro: Not a directory"):
        tfdwd.write_micro_models(model, tmp_path / "file" / "micro")


def test_what_an_interrupted_run_left_is_cleared(
    small: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "micro"
    written = []

    def stops_at_the_third(path: Path, content: bytes) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        path.write_bytes(content)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_whole", stops_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            tfdwd.write_micro_models(small, folder)
    assert not folder.exists()
    # A kill leaves its files; the next run starts anew. A finished folder is kept.
    folder.mkdir()
    for name in ("network.tflite", "007-separable-2.tflite", ".008-kept-4711.part.tflite"):
        (folder / name).write_bytes(b"cut off")
    tfdwd.write_micro_models(small, folder)
    assert not (folder / "007-separable-2.tflite").exists()
    with pytest.raises(Error, match="got one that holds something"):
        tfdwd.write_micro_models(small, folder)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (None, "folder: expected a path, .* got None"),
        ("file/folder", "folder: cannot make .*: Not a directory"),
        ("x" * 300, "folder: cannot make .*: File name too long"),
        ("file", "expected a new or an empty folder, got a file"),
    ],
)
def test_folders_that_cannot_be_made(
    model: keras.Model, tmp_path: Path, folder: str | None, message: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Error, match=message):
        tfdwd.write_micro_models(model, folder and tmp_path / folder)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folders_made_on_the_way_go_with_what_failed(model: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(Error, match="at least 32 real images"):
        tfdwd.write_micro_models(model, tmp_path / "a" / "b" / "c", quantize="int8")
    assert not list(tmp_path.iterdir())


def test_int8_needs_images(small: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(Error, match="at least 32 real images"):
        tfdwd.write_micro_models(small, tmp_path / "new", quantize="int8")
    assert not list((tmp_path / "new").glob("*"))
    tfdwd.write_micro_models(small, tmp_path / "int8", quantize="int8", data=DATA)
    assert lite.Model(tmp_path / "int8" / "000-kept.tflite").inputs[0].dtype == np.int8
