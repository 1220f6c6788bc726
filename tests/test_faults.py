"""Kills, full and read-only disks, and two at once: what is left, and whether the next run goes on.

Each command has an old output in place when something happens to it. Afterwards that file is whole,
the old one or the new one; nothing else lies beside it once the next run has succeeded.
"""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import keras
import numpy as np
import pytest

import tfdwd

STARTING = 5  # seconds until a process has imported TensorFlow, about


@dataclasses.dataclass(frozen=True)
class Command:
    """A script that writes.

    Attributes:
      script: its name.
      arguments: given the folder of inputs and the one of outputs.
      outputs: the files of the folder of outputs.
      state: files that it may leave there for the next run, beside the outputs.
    """

    script: str
    arguments: Callable[[Path, Path], list[str]]
    outputs: tuple[str, ...]
    state: tuple[str, ...] = ()


COMMANDS = {
    "decompose": Command(
        "decompose",
        lambda inputs, out: [
            f"--model={inputs}/model.keras", f"--images={inputs}/images.npy",
            f"--output={out}/student.keras", f"--report={out}/report.json",
        ],
        ("student.keras", "report.json"),
    ),
    "train": Command(
        "train",
        lambda inputs, out: [
            f"--model={inputs}/model.keras", f"--teacher={inputs}/model.keras",
            f"--images={inputs}/images.npy", "--epochs=6", "--batch_size=8", "--warmup=0",
            "--held_back=0",  # or the start, which is the teacher, would be the best
            f"--folder={out}", "--resume", f"--output={out}/tuned.keras",
        ],
        ("tuned.keras",),
        ("state.npz", "last.keras"),
    ),
    "plan": Command(
        "plan",
        lambda inputs, out: [
            f"--model={inputs}/model.keras", f"--images={inputs}/images.npy", "--max_error=1e9",
            f"--output={out}/plan.json",
        ],
        ("plan.json",),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    keras.utils.set_random_seed(4)
    layers = keras.layers
    x = image = keras.Input((8, 8, 4), name="image")
    for name in ("first", "second"):
        # Of one geometry and few stacks: a plan times little.
        x = layers.Conv2D(4, (1, 3), padding="same", activation="relu", name=name)(x)
    x = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    keras.Model(image, x).save(folder / "model.keras")
    images = np.random.default_rng(0).normal(size=(48, 8, 8, 4)).astype(np.float32)
    np.save(folder / "images.npy", images)
    return folder


def start(command: Command, inputs: Path, out: Path) -> subprocess.Popen[str]:
    return commands.start(
        command.script, *command.arguments(inputs, out), cwd=out, XDG_CACHE_HOME=f"{out}-cache"
    )


def run(command: Command, inputs: Path, out: Path) -> None:
    """Runs a command in this process, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", f"{out}-cache")
        assert commands.line_of(command.script, *command.arguments(inputs, out)) == ""


def is_whole(path: Path) -> bool:
    """Whether an output can be read, as the kind of file that it is."""
    if path.suffix == ".keras":
        keras.models.load_model(path, compile=False)
    elif path.name == "plan.json":
        tfdwd.Plan.from_json(path.read_text())
    else:
        json.loads(path.read_text())
    return True


def left_in(folder: Path, command: Command) -> list[str]:
    """What is neither output nor state."""
    known = {*command.outputs, *command.state}
    return sorted(path.name for path in folder.iterdir() if path.name not in known)


def weights_of(folder: Path) -> list[np.ndarray]:
    return keras.models.load_model(folder / "tuned.keras", compile=False).get_weights()


def kill_at(process: subprocess.Popen[str], folder: Path, moment: float, on_change: bool) -> bool:
    """Kills a process some seconds after it started, or after it first touched a folder.

    Returns:
      Whether it was still running.
    """
    before = {path.name for path in folder.iterdir()}
    while on_change and process.poll() is None:
        if {path.name for path in folder.iterdir()} != before:
            break
        time.sleep(0.005)
    time.sleep(moment)
    running = process.poll() is None
    process.kill()
    process.communicate()
    return running


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each command a folder of what it writes when nothing happens; NAME.seconds, how long."""
    folders = {name: tmp_path_factory.mktemp(name) for name in COMMANDS}
    for name, command in COMMANDS.items():
        began = time.monotonic()
        run(command, inputs, folders[name])
        seconds = STARTING + time.monotonic() - began
        (folders[name].parent / f"{name}.seconds").write_text(str(seconds))
    return folders


def killed_and_run_again(
    name: str, inputs: Path, undisturbed: Path, out: Path, chance: random.Random
) -> str:
    """Kills a command, looks at what is left, and runs it again; says what happened."""
    command = COMMANDS[name]
    seconds = float((undisturbed.parent / f"{name}.seconds").read_text())
    for output in command.outputs:
        (out / output).write_bytes((undisturbed / output).read_bytes())
    on_change = chance.random() < 0.5
    moment = chance.uniform(0, 0.2) if on_change else chance.uniform(0, seconds)
    running = kill_at(start(command, inputs, out), out, moment, on_change)
    assert all(is_whole(out / output) for output in command.outputs)
    left = left_in(out, command)
    if name == "plan" and (cache := Path(f"{out}-cache/tfdwd/latency.json")).exists():
        json.loads(cache.read_text())
    run(command, inputs, out)
    assert all(is_whole(out / output) for output in command.outputs)
    assert left_in(out, command) == []
    if name == "train":
        for found, expected in zip(weights_of(out), weights_of(undisturbed), strict=True):
            np.testing.assert_array_equal(found, expected)
    when = f"{moment:.2f} s after its " + ("first write" if on_change else "start")
    return f"{name} {'killed' if running else 'over'} {when}: {len(left)} left, cleared by the next"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_leaves_whole_files_and_the_next_run_goes_on(
    name: str, inputs: Path, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    killed_and_run_again(name, inputs, undisturbed[name], out, random.Random(name))


@pytest.mark.nightly
def test_30_kills(inputs: Path, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    lines = []
    for number in range(30):
        name = list(COMMANDS)[number % len(COMMANDS)]
        out = tmp_path / f"{number}"
        out.mkdir()
        chance = random.Random(number)
        lines.append(killed_and_run_again(name, inputs, undisturbed[name], out, chance))
    print(f"\nkills: {len(lines)} tried, all outputs whole\n  " + "\n  ".join(lines))


# ---------------------------------------------------------------------- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk in memory; its options may be changed by calling again."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("way", ["full", "read-only"])
def test_a_disk_that_takes_nothing_keeps_the_old_files(
    name: str,
    way: str,
    inputs: Path,
    disk: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command, out = COMMANDS[name], disk("size=64k")
    for output in command.outputs:
        (out / output).write_text("old")
    if way == "full":
        with (
            (out / "filler").open("wb", buffering=0) as filler,
            pytest.raises(OSError, match="space"),
        ):
            while True:
                filler.write(b"0" * 4096)
    else:
        disk("remount,ro")
    before = sorted(path.name for path in out.iterdir())
    line = commands.line_of(command.script, *command.arguments(inputs, out))
    assert line, "it succeeded"
    assert sorted(path.name for path in out.iterdir()) == before
    assert {(out / output).read_text() for output in command.outputs} == {"old"}


def test_a_cache_that_cannot_be_written_costs_no_plan(
    inputs: Path, disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk("size=64k,ro")))
    command = COMMANDS["plan"]
    assert commands.line_of(command.script, *command.arguments(inputs, tmp_path)) == ""
    assert is_whole(tmp_path / "plan.json")


# ---------------------------------------------------------------------- two at once


RUN_ALL = """
import json, sys, commands
for script, *arguments in json.loads(sys.argv[1]):
    assert commands.line_of(script, *arguments) == ""
"""


def test_two_at_once_leave_one_whole_output(inputs: Path, tmp_path: Path) -> None:
    """Two processes, each of which runs the same commands."""
    out = tmp_path / "out"
    out.mkdir()
    together = [COMMANDS["decompose"], COMMANDS["plan"]]
    runs = [[command.script, *command.arguments(inputs, out)] for command in together]
    environment = {
        **os.environ, "XDG_CACHE_HOME": f"{out}-cache",
        "PYTHONPATH": os.pathsep.join([str(commands.ROOT), str(commands.ROOT / "tests")]),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN_ALL, json.dumps(runs)],
            stderr=subprocess.PIPE, text=True, cwd=out, env=environment,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    known = sorted(name for command in together for name in command.outputs)
    assert sorted(path.name for path in out.iterdir()) == known
    assert all(is_whole(out / name) for name in known)
