"""Fixtures that several test modules share, and the data sets that tests may use.

Keras is imported where it is used: the process that hands tests out to others needs none.
"""

from __future__ import annotations

import ast
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import keras

_ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps the garbage collector off all that is imported: it stays, and it is large."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def brief_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are not what most tests are about: a fifth of a sample will do."""
    from tfdwd import benchmarking

    monkeypatch.setattr(benchmarking, "_SAMPLE_SECONDS", 0.001)


@pytest.fixture
def long_samples(brief_samples: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are measured as for users."""
    from tfdwd import benchmarking

    monkeypatch.setattr(benchmarking, "_SAMPLE_SECONDS", 0.005)


@pytest.fixture(scope="session")
def said() -> list[str]:
    """All strings of the package, such as its errors; of f-strings the parts that are fixed."""
    return [
        "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for path in (_ROOT / "tfdwd").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant | ast.JoinedStr)
    ]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the data sets, from TFDWD_DATA or beside the repository."""
    folder = Path(os.environ.get("TFDWD_DATA", _ROOT / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set TFDWD_DATA")
    return folder


@pytest.fixture(scope="session")
def resnet8(data_dir: Path) -> keras.Model:
    """The trained ResNet-8 of MLPerf Tiny. Do not change it."""
    import keras

    return keras.models.load_model(data_dir / "mlperf_tiny_resnet8.h5", compile=False)


@pytest.fixture(scope="session")
def cifar(data_dir: Path) -> dict[str, np.ndarray]:
    """CIFAR-10 images for the ResNet-8: x_train, y_train, x_test, y_test."""
    with np.load(data_dir / "cifar10_subset.npz") as content:
        return dict(content)


@pytest.fixture(scope="session")
def classifier() -> keras.Model:
    """A small classifier of fixed random weights: (batch, 8, 8, 3) -> (batch, 7)."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(6, 3, activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(7, name="scores"),
        ],
        name="classifier",
    )


@pytest.fixture(scope="session")
def two_in_two_out() -> keras.Model:
    """Dict inputs and outputs, whose names sort otherwise than they were declared."""
    import keras

    keras.utils.set_random_seed(2)
    layers = keras.layers
    picture = keras.Input((6, 6, 2), name="picture")
    extra = keras.Input((3,), name="extra")
    both = layers.Concatenate()([layers.Flatten()(layers.Conv2D(2, 3)(picture)), extra])
    outputs = {"z": layers.Dense(4, name="first")(both), "a": layers.Dense(1, name="last")(both)}
    return keras.Model({"picture": picture, "extra": extra}, outputs, name="two_in_two_out")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Android demo's goldens.py writes now: golden/ and models/."""
    folder = tmp_path_factory.mktemp("written")
    command = [sys.executable, _ROOT / "android_demo/core/goldens.py"]
    command += [f"--golden={folder / 'golden'}", f"--models={folder / 'models'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def nothing_left_in() -> Iterator[Callable[[Path], None]]:
    """Registers folders that must be empty when the test ends."""
    folders: list[Path] = []
    yield folders.append
    for folder in folders:
        assert list(folder.iterdir()) == []
