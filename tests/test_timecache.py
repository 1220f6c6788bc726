"""The cache of measured times: whatever is wrong with it costs a warning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import logging

from tfdwd import files
from tfdwd.errors import Error
from tfdwd.timecache import TimeCache

TIMES = {"kept": 2.0, "separable 1": 1.0, "separable 1 surely": 1.5}


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: found.append(text % args))
    return found


def test_times_are_kept_for_others(tmp_path: Path, warnings: list[str]) -> None:
    path = tmp_path / "new" / "latency.json"
    cache = TimeCache(path)
    assert cache.times("a") == {}
    cache.keep("a", TIMES)
    assert TimeCache(path).times("a") == cache.times("a") == TIMES
    assert warnings == []


def test_two_planners_at_once_lose_nothing(tmp_path: Path, warnings: list[str]) -> None:
    path = tmp_path / "latency.json"
    one, two = TimeCache(path), TimeCache(path)
    one.keep("a", TIMES)
    two.keep("b", TIMES)
    two.keep("a", {"kept": 3.0})
    assert json.loads(path.read_text()) == {"a": {**TIMES, "kept": 3.0}, "b": TIMES}
    code = (
        "import sys; from tfdwd.timecache import TimeCache; cache = TimeCache(sys.argv[1])\n"
        "for number in range(20): cache.keep(f'{sys.argv[2]} {number}', {'kept': 1.0})"
    )
    command = [sys.executable, "-c", code, path]
    for process in [subprocess.Popen([*command, name]) for name in ("first", "second", "third")]:
        assert process.wait(60) == 0
    assert len(json.loads(path.read_text())) == 2 + 60
    assert warnings == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\0", "no text in UTF-8"),
        (b"[]", "expected object, got array"),
        (b"[" * 10**5, "nested too deeply"),
        (b'{"a": 3}', r"\['a'\]: expected object, got int"),
        (b'{"a": {"kept": "1"}}', r"\['a'\]\['kept'\]: expected float, got str"),
        (b'{"a": {"kept": 1e999}}', "finite"),
        (b'{"a": {"kept": 0}}', r"expected float > 0"),
        (b'{"a": {"separable 1": 1}}', r"\['a'\]\['kept'\]: this number is missing"),
        (b'{"a": {"kept": 1, "s 1": 1}}', r"\['a'\]\['s 1 surely'\]: this number is missing"),
        (b'{"layers": [], "budget": "latency=0.5"}', "expected object, got array"),
    ],
)
def test_what_is_no_cache_is_neither_used_nor_touched(
    tmp_path: Path, warnings: list[str], content: bytes, message: str
) -> None:
    path = tmp_path / "latency.json"
    path.write_bytes(content)
    cache = TimeCache(path)
    cache.keep("b", TIMES)
    assert cache.times("b") == TIMES
    assert path.read_bytes() == content
    [warning] = warnings
    with pytest.raises(Error, match=rf"latency.json cannot be used: .*{message}.*; delete it or"):
        raise Error(warning)


def test_a_folder_or_pipe_in_its_place(tmp_path: Path, warnings: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        cache = TimeCache(path)
        cache.keep("a", TIMES)
        assert cache.times("a") == TIMES
    assert len(warnings) == 2 and all("no regular file" in warning for warning in warnings)


def test_a_full_disk_or_a_file_where_the_folder_should_be(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    blocked = TimeCache(tmp_path / "file" / "latency.json")
    blocked.keep("a", TIMES)
    assert blocked.times("a") == TIMES

    def full(*_: object) -> None:
        raise Error("cannot write: No space left on device")

    cache = TimeCache(tmp_path / "latency.json")
    cache.keep("a", TIMES)
    monkeypatch.setattr(files, "write_whole", full)
    cache.keep("b", TIMES)
    cache.keep("c", TIMES)
    assert cache.times("c") == TIMES
    assert len(warnings) == 2  # once for each cache
    assert "cannot be written: cannot write: No space left" in warnings[1]
    assert TimeCache(tmp_path / "latency.json").times("a") == TIMES


def test_where_it_is(tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):  # as if it were not set
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        TimeCache().keep("a", TIMES)
        (tmp_path / ".cache/tfdwd/latency.json").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    TimeCache().keep("a", TIMES)
    assert (tmp_path / "xdg/tfdwd/latency.json").is_file()
    assert warnings == []

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    cache = TimeCache()
    cache.keep("a", TIMES)
    assert cache.times("a") == TIMES
    assert len(warnings) == 1 and "no home directory" in warnings[0]
    assert list((tmp_path / "work").iterdir()) == []
