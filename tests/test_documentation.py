"""The code in README.md and docs/ runs, page by page, and the pages build.

Small networks and few images stand in for the reader's: the ResNet-8 of the pages is one of three
convolutions here. What takes as long as it is given is given seconds: plans, and fine-tuning of as
many epochs as the images ask for.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from commands import line_of, start_workers
from PIL import Image

import tfdwd
from tfdwd.training import finetuning

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Programs that are not this project's, or need what is not here.
_OTHERS = ("pip install", "make ", "cd ", "python ", "apt-get", "adb ", "--adb")
_MINUTES = 0.03


def _blocks(page, language):
    """(number of the first line, text) of each block of code."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start(2)) + 1, found[2])
        for found in _BLOCK.finditer(text)
        if found[1] == language
    ]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """What the pages take for granted: names, and a folder of files."""
    folder = tmp_path_factory.mktemp("reader")
    source = np.random.default_rng(0)
    images = source.uniform(size=(1000, 12, 12, 16)).astype("float32")
    labels = source.integers(4, size=1000)
    images += labels[:, None, None, None] / 4  # something to learn
    model = keras.Sequential([keras.Input((12, 12, 16), name="pixels")])
    for name in "first", "middle", "last":
        model.add(keras.layers.Conv2D(48, 3, padding="same", activation="relu", name=name))
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(4, activation="softmax"))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images, labels, verbose=0)
    model.save(folder / "resnet8.keras")
    np.savez(folder / "train.npz", x_train=images)
    np.savez(folder / "test.npz", x_test=images[:40], y_test=labels[:40])
    for name in "cat", "dog":
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(4):
            picture = Image.fromarray(source.integers(256, size=(80, 90, 3)).astype("uint8"))
            picture.save(folder / "photos" / name / f"{number}.jpg")
    names = {
        "model": model, "images": images, "labels": labels,
        "test_images": images[:40], "test_labels": labels[:40],
    }  # fmt: skip
    return folder, names


@pytest.fixture
def in_folder(reader, monkeypatch):
    """The reader's names, in the reader's folder."""
    folder, names = reader
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(finetuning, "_EPOCHS", 0)
    for verb in tfdwd.plan, tfdwd.tradeoff, tfdwd.compress:
        monkeypatch.setitem(verb.__kwdefaults__, "minutes", _MINUTES)
    return names


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if _blocks(p, "python") and p.stem != "machines"],
    ids=lambda p: p.name,
)
def test_code_runs_as_it_stands(page, in_folder):
    space = dict(in_folder)
    for line, text in _blocks(page, "python"):
        exec(compile("\n" * (line - 1) + text, page, "exec"), space)


def test_the_script_for_several_machines_runs_as_two_workers(in_folder):
    [(_, text)] = _blocks(ROOT / "docs/machines.md", "python")
    Path("train.py").write_text(text)
    for worker in start_workers(2, ["train.py"]):
        _, err = worker.communicate(timeout=300)
        assert worker.returncode == 0, err


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "sh")], ids=lambda p: p.name)
def test_commands_run_as_they_stand(page, in_folder):
    for name in "model", "student":
        tfdwd.export(in_folder["model"], f"{name}.tflite")
    for _, text in _blocks(page, "sh"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if "--adb" in words:  # what a phone would have written
                micro = next(word for word in words if word.startswith("--model="))
                assert not line_of("benchmark", micro, "--json=phone.json")
            elif not any(other in line for other in _OTHERS):
                script, *flags = words
                assert script.startswith("tfdwd-"), line
                name = script[6:].replace("-", "_")
                if "minutes" in importlib.import_module(f"tfdwd.scripts.{name}").FLAGS:
                    flags.append(f"--minutes={_MINUTES}")
                assert not line_of(name, *flags), line


def test_errors_that_the_page_names_are_those_of_the_code(said):
    told = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert len(told) > 9
    for words in told:
        assert any(words in text for text in said), words


def test_the_reference_has_exactly_what_is_public():
    text = (ROOT / "docs/reference.md").read_text()
    assert sorted(re.findall(r"auto\w+:: tfdwd\.(\w+)", text)) == tfdwd.__all__


def test_the_pages_build_without_a_warning(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", tmp_path],
        capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "tfdwd.finetune" in (tmp_path / "reference.html").read_text()
