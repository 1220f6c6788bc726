"""Damaged files: each is read, or refused in one line."""

import dataclasses
import functools
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
import trials

import tfdwd
from tfdwd import benchmarking, data, files, lite

IMAGES = 40


@dataclasses.dataclass(frozen=True)
class Kind:
    """A file that tfdwd reads.

    Attributes:
      file: its name in the folder of samples.
      read: given the folder, reads it; returns the message of a clear error, or nothing.
      inside: how its inside is reached so that a damage comes past the outer check: "zip", "json"
        or nothing.
    """

    file: str
    read: Callable[[Path], str]
    inside: str = ""


# ---------------------------------------------------------------------- samples


def _sample_model() -> keras.Model:
    keras.utils.set_random_seed(3)
    layers = keras.layers
    x = image = keras.Input((6, 6, 4), name="image")
    x = layers.Conv2D(4, (1, 3), name="conv")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(image, layers.Dense(3, activation="softmax")(x), name="sample")


def _record(jpeg: bytes, label: int) -> bytes:
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def make_samples(folder: Path) -> None:
    """One whole file of each kind, and what is needed to read it."""
    folder.mkdir()
    model, source = _sample_model(), np.random.default_rng(0)
    model.save(folder / "model.keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("absl.logging.warning", lambda *_: None)  # Keras advises against .h5
        model.save(folder / "model.h5")
    images = source.normal(size=(IMAGES, 6, 6, 4)).astype(np.float32)
    np.save(folder / "images.npy", images)
    np.savez(folder / "images.npz", images=images, other=np.zeros(3))
    np.savez_compressed(folder / "labels.npz", labels=np.arange(IMAGES) % 3)
    tfdwd.export(model, folder / "model.tflite")
    tfdwd.write_micro_models(model, folder / "micro")
    shutil.copy(folder / "micro/manifest.json", folder / "manifest.json")
    files = sorted(path.name for path in folder.glob("micro/*.tflite"))
    log = "".join(
        f"STARTING!\nNum threads: [1]\nGraph: [/data/local/tmp/{file}]\n"
        "count=100 first=9 curr=9 min=9 max=9 avg=1500.5 std=3\n"
        "Inference timings in us: Init: 9, First inference: 9, Warmup (avg): 9, Inference ...\n"
        for file in files
    )
    (folder / "log.txt").write_text(log)
    timed = tfdwd.benchmark({Path(file).stem: folder / "micro" / file for file in files}, rounds=2)
    (folder / "benchmark.json").write_text(timed.to_json())
    table = tfdwd.read_latency_table(folder / "micro", [folder / "log.txt"], "phone")
    (folder / "table.json").write_text(table.to_json())
    found = tfdwd.plan(model, images, max_error=1e9, latency_table=table)
    (folder / "plan.json").write_text(found.to_json())
    _, report = tfdwd.decompose(model, return_report=True)
    (folder / "report.json").write_text(report.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        assert not _planned(folder)
    shutil.copy(folder / "tfdwd/latency.json", folder / "latency.json")
    pictures = folder / "pictures/train"
    with tf.io.TFRecordWriter(str(folder / "train-00000-of-00001")) as writer:
        for number in range(12):
            picture = source.integers(0, 255, (9, 9, 3)).astype(np.uint8)
            jpeg = tf.io.encode_jpeg(picture).numpy()
            writer.write(_record(jpeg, number % 3))
            (pictures / f"{number % 3}").mkdir(parents=True, exist_ok=True)
            (pictures / f"{number % 3}/{number}.jpg").write_bytes(jpeg)
    shutil.copy(pictures / "0/0.jpg", folder / "picture.jpg")
    (folder / "run").mkdir()
    assert not commands.line_of("train", *_training(folder))
    shutil.copy(folder / "run/state.npz", folder / "state.npz")


# ---------------------------------------------------------------------- readers


def _decomposing(*arguments: str) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        given = [argument.replace("{}", str(folder)) for argument in arguments]
        line = commands.line_of("decompose", f"--output={folder}/student.keras", *given)
        assert (folder / "student.keras").exists() == (not line), "half a result"
        return line

    return read


def _evaluating(*arguments: str) -> Callable[[Path], str]:
    return lambda folder: commands.line_of(
        "evaluate", *(argument.replace("{}", str(folder)) for argument in arguments)
    )


def _training(folder: Path) -> list[str]:
    return [
        f"--model={folder}/model.keras", f"--images={folder}/images.npy", "--epochs=1",
        f"--teacher={folder}/model.keras", f"--folder={folder}/run", f"--output={folder}/t.keras",
    ]  # fmt: skip


def _resuming(folder: Path) -> str:
    (folder / "run").mkdir(exist_ok=True)
    shutil.copy(folder / "state.npz", folder / "run/state.npz")
    return commands.line_of("train", *_training(folder), "--resume")


def _planning(folder: Path) -> str:
    return _planned(folder, f"--latency_table={folder}/table.json")


def _planning_from_cache(folder: Path) -> str:
    cache = Path(os.environ["XDG_CACHE_HOME"], "tfdwd/latency.json")
    cache.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "latency.json", cache)
    return _planned(folder)


def _planned(folder: Path, *arguments: str) -> str:
    return commands.line_of(
        "plan", f"--model={folder}/model.keras", f"--images={folder}/images.npy",
        "--max_error=1e9", f"--output={folder}/p.json", *arguments,
    )  # fmt: skip


def _reading_logs(file: str) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        shutil.copy(folder / "manifest.json", folder / "micro/manifest.json")
        return commands.line_of(
            "micro_models", f"--folder={folder}/micro", f"--log={folder}/{file}", "--device=phone",
            f"--output={folder}/table.out",
        )  # fmt: skip

    return read


def _from_json(kind: str, file: str) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        try:
            str(getattr(tfdwd, kind).from_json(files.read_text(folder / file)))
        except tfdwd.Error as error:
            return str(error)
        return ""

    return read


@functools.cache
def _small() -> keras.Model:
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential(layers)


def _data(make: Callable[[Path], data.Source]) -> Callable[[Path], str]:
    """Goes through all images: as many come as were counted, or an error does."""

    def read(folder: Path) -> str:
        try:
            source = make(folder)
            images = data.evaluation(source, 4, size=8, resize=8)
            count = tfdwd.evaluate(_small(), images).count
        except tfdwd.Error as error:
            return str(error)
        assert count == source.count, f"{count} images of {source.count}, and no error"
        return ""

    return read


def _pictures(folder: Path) -> data.Source:
    shutil.copy(folder / "picture.jpg", folder / "pictures/train/0/0.jpg")
    return data.image_folder(folder / "pictures/train")


def _lite(folder: Path) -> str:
    try:
        content = folder / "model.tflite"
        lite.operators(content)
        lite.Model(content).run([np.zeros((1, 6, 6, 4), np.float32)])
    except tfdwd.Error as error:
        return str(error)
    return ""


_MODEL, _LABELS = "--model={}/model.keras", "--labels={}/labels.npz"
_FILE, _IMAGES = "--model={}/model.tflite", "--images={}/images.npy"
_NPZ = ("--images={}/images.npz", "--images_key=images")
KINDS = {
    "npy": Kind("images.npy", _evaluating(_FILE, _IMAGES, _LABELS)),
    "npz": Kind("images.npz", _evaluating(_FILE, *_NPZ, _LABELS), "zip"),
    "labels": Kind("labels.npz", _evaluating(_FILE, _IMAGES, _LABELS), "zip"),
    "keras": Kind("model.keras", _decomposing(_MODEL), "zip"),
    "h5": Kind("model.h5", _decomposing("--model={}/model.h5")),
    "tflite": Kind("model.tflite", _lite),
    "plan": Kind("plan.json", _decomposing(_MODEL, "--plan={}/plan.json"), "json"),
    "table": Kind("table.json", _planning, "json"),
    "cache": Kind("latency.json", _planning_from_cache, "json"),
    "report": Kind("report.json", _from_json("DecompositionReport", "report.json"), "json"),
    "benchmark": Kind("benchmark.json", _from_json("BenchmarkReport", "benchmark.json"), "json"),
    "benchmark log": Kind("benchmark.json", _reading_logs("benchmark.json"), "json"),
    "manifest": Kind("manifest.json", _reading_logs("log.txt"), "json"),
    "log": Kind("log.txt", _reading_logs("log.txt")),
    "shard": Kind("train-00000-of-00001", _data(lambda folder: data.tfrecords(folder, "train"))),
    "picture": Kind("picture.jpg", _data(_pictures)),
    "state": Kind("state.npz", _resuming, "zip"),
}


# ---------------------------------------------------------------------- damage


def damaged(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """A damage of bytes, and its name."""
    size = len(content)
    start = chance.randrange(max(size, 1))
    stop = min(size, start + chance.choice([1, 4, 8, 64, 512]))
    field = chance.choice([b"\xff" * 4, b"\x7f" + b"\xff" * 7, b"\0" * 8, b"\x80" + b"\0" * 3])
    bits = bytearray(content)
    for _ in range(chance.choice([1, 1, 3, 20])):
        if size:
            bits[chance.randrange(size)] ^= 1 << chance.randrange(8)
    early = min(size, chance.randrange(64))
    return chance.choice(
        [
            ("bits flipped", bytes(bits)),
            ("cut", content[:start]),
            ("cut early", content[:early]),
            ("beginning lost", content[stop:]),
            ("bytes lost", content[:start] + content[stop:]),
            ("zeros", content[:start] + bytes(stop - start) + content[stop:]),
            ("swapped", content[stop:] + content[:stop]),
            ("doubled", content[:stop] + content[start:]),
            ("length", content[:start] + field + content[start + len(field) :]),
            ("early length", content[:early] + field + content[early + len(field) :]),
            ("garbage behind", content + chance.randbytes(50)),
            ("random", chance.randbytes(size)),
            ("empty", b""),
            ("text", b"this is a text\n" * 20),
        ]
    )


_VALUES: list[Any] = [
    None, True, "false", "x", "", -1, 0, 1, 2.0, 1.5, 10**18, -(10**30), 1e300, float("nan"),
    float("inf"), [], {}, [1], {"a": 1}, "\0\x1b[31m", "é" * 300,
]  # fmt: skip


def edited(text: str, chance: random.Random) -> tuple[str, str]:
    """A text of JSON in which one value, key or number of elements is another."""
    whole = {"": json.loads(text)}
    places: list[tuple[Any, Any]] = []

    def walk(at: Any) -> None:
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            places.append((at, key))
            if isinstance(at[key], (dict, list)):
                walk(at[key])

    walk(whole)
    at, key = chance.choice(places)
    how = chance.choice(["value", "value", "value", "gone", "added", "doubled", "deep"])
    shown = "" if key == "" else key
    if how == "value" or (how == "gone" and key == ""):
        at[key] = value = chance.choice(_VALUES)
        how = f"value {value!r:.40}"
    elif how == "gone":
        del at[key]
    elif how == "deep":
        mark = "<deep>"
        at[key] = mark
        deep = "[" * 3000 + "]" * 3000
        return f"{shown!r} deep", json.dumps(whole[""]).replace(json.dumps(mark), deep)
    elif isinstance(at[key], dict):
        at[key]["unknown"] = 1
    elif isinstance(at[key], list):
        at[key] *= 2
    else:
        at[key] = [at[key]]
    return f"{shown!r} {how}", json.dumps(whole[""])


def damaged_inside(path: Path, kind: str, chance: random.Random) -> str:
    """Damages what a file holds so that its outer form stays whole."""
    if kind == "json":
        how, text = edited(path.read_text(), chance)
        path.write_text(text)
        return how
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    name = chance.choice(sorted(members))
    if name.endswith(".json") and chance.random() < 0.7:
        how, text = edited(members[name].decode(), chance)
        members[name] = text.encode()
    elif chance.random() < 0.1:
        how = "gone"
        del members[name]
    else:
        how, members[name] = damaged(members[name], chance)
    with zipfile.ZipFile(path, "w") as new:
        for member, content in members.items():
            new.writestr(member, content)
    return f"{name}: {how}"


# ---------------------------------------------------------------------- trials


def damage_and_read(seed: int, count: int, folder: Path, journal: trials.Journal) -> None:
    """What a child does: each kind of file in turn, each time damaged otherwise."""
    samples = folder.parent / "samples"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    benchmarking._SAMPLE_SECONDS = 0.001  # no time is looked at
    for number in range(count):
        name = list(KINDS)[(seed + number) % len(KINDS)]
        kind, chance = KINDS[name], random.Random(seed * 10_000 + number)
        trial = folder / f"{number}"
        shutil.copytree(samples, trial)
        path = trial / kind.file
        if kind.inside and chance.random() < 0.6:
            how = damaged_inside(path, kind.inside, chance)
        else:
            how, content = damaged(path.read_bytes(), chance)
            path.write_bytes(content)
        journal(f"{name}, {how} ({seed}, {number})", lambda k=kind, t=trial: _tried(k, t))
        shutil.rmtree(trial)


def _tried(kind: Kind, folder: Path) -> str:
    line = kind.read(folder)
    assert len(line) < 1000 and line.isprintable(), line
    return f"error: {line}" if line else "read"


def test_every_kind_of_file_is_read_where_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make_samples(tmp_path / "samples")
    for name, kind in KINDS.items():
        assert kind.read(tmp_path / "samples") == "", name


def tried(seeds: range, count: int, folder: Path) -> list[trials.Trial]:
    make_samples(folder / "samples")
    return trials.in_children("test_fuzz:damage_and_read", seeds, count, folder)


def test_100_damaged_files(tmp_path: Path) -> None:
    trials.check(tried(range(1), 100, tmp_path))


@pytest.mark.nightly
def test_1500_damaged_files(tmp_path: Path) -> None:
    found = tried(range(100, 115), 100, tmp_path)
    print("\ndamaged files: " + trials.figures(found))
    trials.check(found)
