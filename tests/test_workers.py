"""Several processes as one, on this machine's loopback, and several devices of one process."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from keras import layers

import tfdwd
from tfdwd import candidates, graph, times, workers
from tfdwd.calibration import Moments
from tfdwd.errors import Error
from tfdwd.scripts import common

# Sums over workers are added in another order than in one process. Each of at most 30 steps moves
# weights of about 1 by that rounding, 1e-7, and a network this small does not amplify it tenfold.
TOLERANCE = 30 * 1e-7 * 10
TWO_DEVICES = (  # what a script begins with
    "import tensorflow as tf\n"
    "parts = [tf.config.LogicalDeviceConfiguration()] * 2\n"
    "[cpu] = tf.config.list_physical_devices('CPU')\n"
    "tf.config.set_logical_device_configuration(cpu, parts)\n"
)
SECONDS = 240  # for a process on a busy machine; TensorFlow looks after lost peers every 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a network and images with labels, and one for checkpoints."""
    keras.utils.set_random_seed(0)
    x = image = keras.Input((8, 8, 4), name="image")
    for name in ("one", "two"):
        # No bias below a batch norm: its gradient is rounding alone, and Adam makes it large.
        x = layers.Conv2D(8, 3, padding="same", name=name, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(4, activation="softmax", name="scores")(x))
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).normal(size=(96, 8, 8, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=images, y=images.mean((1, 2)).argmax(1))
    (tmp_path / "run").mkdir()
    return tmp_path


def _alone(arguments: Sequence[str]) -> None:
    """Runs the same script in this process: one worker."""
    name = arguments[1].rpartition(".")[2]
    assert commands.line_of(name, *arguments[2:]) == ""


def _finish(started: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What they printed; they must end well."""
    ended = [process.communicate(timeout=SECONDS) for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in ended]


def _train(folder: Path, output: str, *more: str) -> list[str]:
    return [
        "-m", "tfdwd.scripts.train", f"--model={folder}/model.keras", f"--images={folder}/data.npz",
        "--images_key=x", f"--labels={folder}/data.npz", "--labels_key=y", "--optimizer=sgd",
        f"--output={folder}/{output}.keras", "--learning_rate=0.1", "--seed=3", *more,
    ]  # fmt: skip


def _weights(folder: Path, name: str) -> list[np.ndarray]:
    return keras.models.load_model(folder / f"{name}.keras", compile=False).get_weights()


def _apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def test_two_workers_train_as_one_with_the_whole_batch_and_go_on_when_one_was_killed(
    folder: Path,
) -> None:
    _alone(_train(folder, "alone", "--epochs=10", "--batch_size=32"))
    options = ["--epochs=10", "--batch_size=16", "--strategy=multiworker"]
    first, second = _finish(commands.start_workers(2, _train(folder, "both", *options)))
    assert len(first.splitlines()) == 12 and not second  # one prints and writes
    alone = _weights(folder, "alone")
    assert _apart(alone, _weights(folder, "both")) < TOLERANCE
    assert _apart(alone, _weights(folder, "model")) > 100 * TOLERANCE

    options += [f"--folder={folder}/run", "--resume"]
    first, second = commands.start_workers(2, _train(folder, "resumed", *options))
    end = time.monotonic() + SECONDS
    while not (folder / "run/state.npz").exists() and time.monotonic() < end:
        time.sleep(0.01)
    second.kill()
    second.communicate()
    _, errors = first.communicate(timeout=SECONDS)
    assert first.returncode == 1
    told = [line for line in errors.splitlines() if line.startswith("train: ")]
    assert len(told) == 1 and "worker 0 of 2 lost the connection" in told[0]
    assert "Traceback" not in errors
    assert not (folder / "resumed.keras").exists()
    with np.load(folder / "run/state.npz") as state:
        assert 1 <= int(state["epoch"]) < 10
    _finish(commands.start_workers(2, _train(folder, "resumed", *options)))
    # The same operations in the same order, but for sums whose order the network decides.
    assert _apart(_weights(folder, "both"), _weights(folder, "resumed")) < TOLERANCE


def test_workers_keep_the_same_best_weights_of_data_that_streams(folder: Path) -> None:
    """Each has images of its own class: what is best for one is the worst for the other."""
    script = folder / "streamed.py"
    script.write_text(
        "import hashlib, sys\n"
        "import keras, numpy as np, tfdwd\n"
        "tfdwd.workers.join()\n"
        "own = tfdwd.workers.index()\n"
        f"images = np.load('{folder}/data.npz')['x'][own::2]\n"
        "data = [(images[k : k + 16], np.full(16, own)) for k in (0, 16, 32)]\n"
        "for validation in (0.1, data):\n"
        f"    model = keras.models.load_model('{folder}/model.keras')\n"
        "    told = tfdwd.finetune(model, data, epochs=8, learning_rate=0.3, warmup=0.0,\n"
        "        validation=validation)\n"
        "    weights = b''.join(array.tobytes() for array in model.get_weights())\n"
        "    print(hashlib.sha256(weights).hexdigest(), told.after, told.history)\n"
    )
    first, second = _finish(commands.start_workers(2, [str(script)]))
    assert first == second and len(first.splitlines()) == 2


def test_workers_take_as_large_steps_in_float16_as_one_process(folder: Path) -> None:
    script = folder / "half.py"
    script.write_text(
        "import sys\n"
        "import keras, numpy as np, tfdwd\n"
        "if len(sys.argv) > 1:\n"
        "    tfdwd.workers.join()\n"
        f"data = np.load('{folder}/data.npz')\n"
        f"start = keras.models.load_model('{folder}/model.keras').get_weights()\n"
        "keras.config.set_dtype_policy('mixed_float16')\n"
        "model = keras.models.clone_model(\n"
        f"    keras.models.load_model('{folder}/model.keras'),\n"
        "    clone_function=lambda layer: type(layer).from_config(\n"
        "        {k: v for k, v in layer.get_config().items() if k != 'dtype'}))\n"
        "model.set_weights(start)\n"
        "tfdwd.finetune(model, (data['x'], data['y']), epochs=5,\n"
        "    batch_size=96 // len(sys.argv), optimizer='sgd', learning_rate=0.1,\n"
        "    weight_decay=0.0, validation=None)\n"
        "print(float(sum(np.abs(a - b).sum() for a, b in zip(start, model.get_weights()))))\n"
    )
    [alone] = _finish(commands.start_workers(1, [str(script)]))
    first, second = _finish(commands.start_workers(2, [str(script), "together"]))
    assert first == second
    assert float(first) == pytest.approx(float(alone), rel=0.3)


def test_calibration_shares_out_over_workers(folder: Path) -> None:
    def decompose(output: str, *more: str) -> list[str]:
        return [
            "-m", "tfdwd.scripts.decompose", f"--model={folder}/model.keras",
            f"--images={folder}/data.npz", "--images_key=x", f"--output={folder}/{output}.keras",
            "--method=sequential", *more,
        ]  # fmt: skip

    _alone(decompose("alone"))
    _finish(commands.start_workers(2, decompose("both", "--strategy=multiworker")))
    # What the order of float32 sums alone does to the weights: the same images turned around.
    with np.load(folder / "data.npz") as content:
        np.savez(folder / "turned.npz", x=content["x"][::-1])
    _alone(decompose("turned", f"--images={folder}/turned.npz"))
    alone = _weights(folder, "alone")
    rounding = _apart(alone, _weights(folder, "turned"))
    assert 0 < rounding < 1e-4
    assert _apart(alone, _weights(folder, "both")) < 10 * rounding
    first, second = commands.start_workers(
        2, decompose("joint", "--strategy=multiworker", "--method=joint")
    )
    assert "joint" in _finish([first, second])[0]


def _table(model: keras.Model) -> tfdwd.LatencyTable:
    """Times in proportion to the MACs: 1 ms for a million."""
    traced = graph.trace(model)
    layers: dict[str, dict[str, float]] = {}
    for conv in candidates.find_convolutions(traced):
        [shape] = times.shapes_read(traced, conv.layer, 1)
        known = layers[times.geometry(conv.layer, shape)] = {"kept": conv.macs / 1e6}
        for option in candidates.options(conv):
            name = times.name_of(option)
            known |= {name: option.macs / 1e6, f"{name} surely": conv.macs / option.macs}
    return tfdwd.LatencyTable("paper", "pencil", "none", 1, 1.0, layers)


def test_two_workers_plan_as_one(folder: Path) -> None:
    model = keras.models.load_model(folder / "model.keras", compile=False)
    table = _table(model)
    (folder / "table.json").write_text(table.to_json())
    script = folder / "plan.py"
    script.write_text(
        "import pathlib, keras, numpy as np, tfdwd\n"
        "tfdwd.workers.join()\n"
        f"model = keras.models.load_model('{folder}/model.keras')\n"
        f"images = np.load('{folder}/data.npz')['x'][48 * tfdwd.workers.index() :][:48]\n"
        f"text = pathlib.Path('{folder}/table.json').read_text()\n"
        "table = tfdwd.LatencyTable.from_json(text)\n"
        "plan = tfdwd.plan(model, images, macs=0.5, latency_table=table, minutes=10)\n"
        "print(plan.to_json())\n"
    )
    first, second = _finish(commands.start_workers(2, [str(script)]))
    assert first == second
    both = tfdwd.Plan.from_json(first)
    with np.load(folder / "data.npz") as content:
        alone = tfdwd.plan(model, content["x"], macs=0.5, latency_table=table, minutes=10)
    # Moments are of the same rows and the same images are held back, but the Fisher metrics are of
    # other images, 22 and 21: predicted losses were 7 % apart, measured ones 15 %.
    uniform, wanted = (
        {one.name: one for one in plan.tried if one.name.startswith("uniform")}
        for plan in (both, alone)
    )
    # Which ones are tried depends on predicted losses, but for one or two at the edge.
    assert len(uniform.keys() & wanted.keys()) >= 2 >= len(uniform.keys() ^ wanted.keys())
    for name in uniform.keys() & wanted.keys():
        one = uniform[name]
        assert one.ms == wanted[name].ms
        assert one.error == pytest.approx(wanted[name].error, rel=0.2)
        assert one.loss == pytest.approx(wanted[name].loss, rel=0.4)
    assert both.loss == pytest.approx(alone.loss, rel=0.4)
    assert [layer.macs_before for layer in both.layers] == [64 * 9 * 4 * 8, 64 * 9 * 8 * 8]
    assert sum(x.macs_after for x in both.layers) <= 0.5 * sum(x.macs_before for x in both.layers)


def test_workers_wait_for_each_other(tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text(
        "import pathlib, time\n"
        "from tfdwd import workers\n"
        "workers.join()\n"
        f"written = pathlib.Path('{tmp_path}/written')\n"
        "if not workers.index():\n"
        "    time.sleep(2)\n"
        "    written.touch()\n"
        "workers.wait()\n"
        "print(written.exists())\n"
    )
    assert _finish(commands.start_workers(2, [str(script)])) == ["True\n", "True\n"]


def test_two_devices_of_one_process_train_as_one(folder: Path) -> None:
    script = folder / "mirrored.py"
    script.write_text(
        TWO_DEVICES + "import keras, numpy as np, tfdwd\n"
        f"data = np.load('{folder}/data.npz')\n"
        "for name, devices in ('alone', 1), ('mirrored', 2):\n"
        "    devices = [f'CPU:{index}' for index in range(devices)]\n"
        "    with tf.distribute.MirroredStrategy(devices).scope():\n"
        f"        model = keras.models.load_model('{folder}/model.keras')\n"
        "        history = tfdwd.finetune(model, (data['x'], data['y']), epochs=5, batch_size=32,\n"
        "            optimizer='sgd', learning_rate=0.1, seed=3, freeze_batch_norm=True,\n"
        "            validation=(data['x'], data['y']))\n"
        "        few = [(data['x'][:n], data['y'][:n]) for n in (32, 1)]\n"  # fewer than devices
        "        tfdwd.finetune(model, few, epochs=1, optimizer='sgd', seed=3,\n"
        "            freeze_batch_norm=True)\n"
        f"    model.save('{folder}/' + name + '.keras')\n"
        "    print(history.history['loss'] + history.history['val_top1'])\n"
    )
    [printed] = _finish(commands.start_workers(1, [str(script)]))
    alone, mirrored = (json.loads(line) for line in printed.splitlines())
    np.testing.assert_allclose(mirrored, alone, rtol=1e-5)
    assert _apart(_weights(folder, "alone"), _weights(folder, "mirrored")) < TOLERANCE


def test_mixed_precision_of_two_devices_ends_with_the_policies_of_before(folder: Path) -> None:
    """Replicas are traced in turns, at each sum over both such as a synchronized batch norm's."""
    script = folder / "half_mirrored.py"
    script.write_text(
        TWO_DEVICES + "import keras, numpy as np, tfdwd\n"
        f"data = np.load('{folder}/data.npz')\n"
        "seen = []\n"
        "call = keras.layers.BatchNormalization.call\n"
        "def noting(self, inputs, training=None, mask=None):\n"
        "    if training:\n"
        "        seen.append((self.name, self.compute_dtype))\n"
        "    return call(self, inputs, training=training, mask=mask)\n"
        "keras.layers.BatchNormalization.call = noting\n"
        "with tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1']).scope():\n"
        f"    model = keras.models.load_model('{folder}/model.keras')\n"
        "    for layer in model.layers:\n"
        "        if isinstance(layer, keras.layers.BatchNormalization):\n"
        "            layer.synchronized = True\n"
        "    tfdwd.finetune(model, (data['x'], data['y']), epochs=1, batch_size=32,\n"
        "        mixed_precision=True, validation=None)\n"
        "print(len(seen) >= 4, {half for _, half in seen})\n"  # two layers, two replicas
        "print({layer.dtype_policy.name for layer in model.layers})\n"
    )
    [printed] = _finish(commands.start_workers(1, [str(script)]))
    assert printed == "True {'bfloat16'}\n{'float32'}\n"


def test_moments_of_workers_with_other_shifts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As two workers would, but in turns: the sum of both is handed to the first."""
    source = np.random.default_rng(1)
    rows = [(source.normal(5, 1, (40, 3)), source.normal(-2, 1, (40, 2))) for _ in range(2)]
    parts = []
    for x, y in rows:
        parts.append(Moments.empty(x.mean(0), y.mean(0)))
        parts[-1].add_rows(x, y)
    both = parts[0] + parts[1]
    x, y = (np.concatenate(arrays) for arrays in zip(*rows, strict=True))
    np.testing.assert_allclose(both.xy, np.cov(x.T, y.T, bias=True)[:3, 3:], atol=1e-12)
    assert parts[0].over_workers() is parts[0]  # alone


def _config(addresses: Any, index: Any = 0) -> str:
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


@pytest.mark.parametrize(
    "config",
    ["", "{}", '{"cluster": {"worker": ["a:1"]}}', "[1]", _config("abc"), _config(["abc"]),
     _config([1]), _config(["a:1"], 0.0), _config(["a:1"], 1)],
)  # fmt: skip
def test_a_wrong_tf_config_is_told(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(Error, match="TF_CONFIG: expected JSON such as"):
        workers.join()
    assert (workers.index(), workers.count()) == (0, 1)


@pytest.mark.parametrize("config", ['{"cluster"', '{"cluster": {"worker": 3}}'])
def test_a_wrong_tf_config_beside_mirrored_is_told(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_flags = flags.FlagValues()
    scope = common.define_strategy(own_flags, ["none", "mirrored"])
    own_flags(["train", "--strategy=mirrored"])
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(Error, match="--strategy=mirrored: TensorFlow cannot read TF_CONFIG"):
        scope()


def test_a_tf_config_that_tensorflow_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise tf.errors.UnknownError(None, None, "Could not start gRPC server")

    monkeypatch.setenv("TF_CONFIG", _config(["localhost:99999"]))
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", refused)
    with pytest.raises(Error, match=r"^TF_CONFIG: cannot join localhost:99999: Could not start"):
        workers.join()
