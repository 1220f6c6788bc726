"""Processes that are started import nothing from the current folder."""

import sys
from pathlib import Path

import pytest

import tfdwd
from tfdwd import children


def test_nothing_is_imported_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "tqdm", "msgspec", "json", "tfdwd", "ai_edge_litert"):
        (tmp_path / f"{name}.py").write_text("open('touched', 'w')")
    monkeypatch.chdir(tmp_path)
    for entry in ("", str(tmp_path)):  # as in a notebook; as of python -m
        monkeypatch.setattr(sys, "path", [entry, *sys.path])
        done = children.run("tfdwd.benchmarking", "device", [])
        assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "touched").exists()


def test_the_same_tfdwd_is_imported_and_arguments_arrive() -> None:
    done = children.run("tfdwd.lite", "print", ["a b", "'"])
    assert "has no attribute 'print'" in done.stderr and done.returncode == 1
    assert children.run("builtins", "print", ["a b", "'"]).stdout == "a b '\n"
    found = children.run("importlib", "import_module", ["tfdwd"])
    assert found.returncode == 0
    code = "import tfdwd; print(tfdwd.__file__)"
    assert children.run("builtins", "exec", [code]).stdout.strip() == tfdwd.__file__
