"""The paper's experiments: their first steps, and that committed tables are those of their runs."""

import csv
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from tfdwd import models
from tfdwd.scripts import common

PAPER = Path(__file__).resolve().parent.parent / "benchmarks/paper"


@pytest.fixture
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script of the test's parameter, imported anew."""
    monkeypatch.syspath_prepend(str(PAPER))
    before = set(flags.FLAGS)
    yield importlib.import_module(request.param)
    del sys.modules[request.param]
    # The console commands, which other tests run in this process, would leave --epochs to these.
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def _rows(name: str) -> list[list[str]]:
    with open(PAPER / f"{name}.csv", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("module", ["headline"], indirect=True)
def test_the_headline_is_that_of_its_runs(module: Any) -> None:
    headers, *runs = _rows("headline_resnet8_runs")
    assert headers == module.RUN_HEADERS
    ways = dict.fromkeys(tuple(run[:4]) for run in runs)
    assert len(ways) == 19  # 7 students each, separable and regular thrice and twice
    assert sorted(tuple(run[:5]) for run in runs) == sorted(
        (*way, seed) for way in ways for seed in "012"
    )
    assert _rows("headline_resnet8") == [module.HEADERS, *module.summary(runs)]
    headers, *epochs = _rows("headline_resnet8_epochs")
    assert headers == module.EPOCH_HEADERS
    assert {tuple(row[:5]) for row in epochs} == {tuple(run[:5]) for run in runs}


@pytest.mark.parametrize("module", ["headline"], indirect=True)
def test_means_and_gains_over_the_seeds(module: Any) -> None:
    separable, joint = ["A", "separable", "labels", "8"], ["B", "joint", "labels", "9"]
    runs = [
        [*separable, "0", "6", "0.1", "0.70"], [*joint, "0", "5", "0.6", "0.73"],
        [*separable, "1", "6", "0.1", "0.72"], [*joint, "1", "5", "0.5", "0.73"],
    ]  # fmt: skip
    assert module.summary(runs) == [
        [*separable, "2", "6", "0.1000", "0.7100", "0.7000", "0.7200", "+0.00", "0.00"],
        [*joint, "2", "5", "0.5500", "0.7300", "0.7300", "0.7300", "+2.00", "1.41"],
    ]


@pytest.mark.parametrize("module", ["synthetic"], indirect=True)
def test_synthetic_layers(module: Any) -> None:
    rows = module.measure("correlated", 16, 16, (1, 2), 1)
    error = {(int(row[3]), row[4]): float(row[7]) for row in rows}
    for rank in (1, 2):
        # Each minimises over more than the one before it.
        assert error[rank, "joint"] < error[rank, "sequential"] < error[rank, "svd"]
    speed = {(int(row[3]), row[4]): float(row[6]) for row in rows}
    assert speed[1, "joint"] == round(16 * 9 * 16 / (16 * (9 + 16)), 2)
    headers, *committed = _rows("synthetic")
    assert headers == module.HEADERS
    shown = {tuple(row[:5]) for row in committed}
    assert len(committed) == len(shown) == 2 * 3 * len(module.RANKS) * 6


@pytest.mark.parametrize("module", ["imagenet"], indirect=True)
def test_the_first_steps_on_imagenet(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two units in each stage: the first, and one of those that follow."""
    short = functools.partial(models.ShuffleNetV2, repeats=(2, 2, 2))
    monkeypatch.setattr(models, "ShuffleNetV2", short)
    source = np.random.default_rng(0)
    records = tmp_path / "records"
    records.mkdir()
    for split, count in ("train", 16), ("validation", 8):
        for shard in range(2):
            name = str(records / f"{split}-{shard:05}-of-00002")
            with tf.io.TFRecordWriter(name) as writer:
                for number in range(shard, count, 2):
                    image = source.integers(0, 256, (80, 70, 3)).astype(np.uint8)
                    encoded = tf.io.encode_jpeg(image).numpy()
                    features = {
                        "image/encoded": tf.train.Feature(
                            bytes_list=tf.train.BytesList(value=[encoded])
                        ),
                        "image/class/label": tf.train.Feature(
                            int64_list=tf.train.Int64List(value=[number % 5 + 1])
                        ),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    writer.write(example.SerializeToString())
    command = [
        "imagenet", f"--records={records}", f"--folder={tmp_path}/runs", "--classes=5",
        "--width=0.5", "--pixels=64", "--batch_size=8", "--epochs=2", "--tuned=1",
        "--students=auto,auto_taught",
    ]  # fmt: skip
    (tmp_path / "runs").mkdir()
    assert common.status(module.main, module.FLAGS, module.__doc__, command) == 0
    with open(tmp_path / "runs/imagenet.csv", newline="") as file:
        headers, *rows = csv.reader(file)
    assert [row[0] for row in rows] == ["separable", "regular", "auto", "auto_taught"]
    assert len(headers) == len(rows[0])
    assert rows[2][1:4] == rows[3][1:4] and rows[2][4] != ""  # the same students, before
    cost = {row[0]: float(row[1]) for row in rows}
    assert 0.95 * cost["separable"] < cost["auto"] <= cost["separable"] < cost["regular"] / 2
    assert (tmp_path / "runs/auto/last.keras").exists()
