"""Files: what can be written is known before, and what is written is whole."""

import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import keras
import pytest

from tfdwd import files
from tfdwd.errors import Error


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("content", "expected"), [("é\n", "é\n".encode()), (b"\0\1", b"\0\1")])
def test_write_whole_writes_and_replaces(
    tmp_path: Path, content: str | bytes, expected: bytes
) -> None:
    path = tmp_path / "file.bin"
    path.write_text("what was there before, and longer")
    files.write_whole(path, content)
    assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_usual_mode_and_a_replaced_one_its_own(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        files.write_whole(tmp_path / "new", "")
        (tmp_path / "old").touch()
        for mode in (0o600, 0o664, 0o755):
            (tmp_path / "old").chmod(mode)
            files.write_whole(tmp_path / "old", "")
            assert _mode(tmp_path / "old") == mode
    finally:
        os.umask(umask)
    assert _mode(tmp_path / "new") == 0o644


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("data/real.txt")
    (tmp_path / "chain.txt").symlink_to("link.txt")
    (tmp_path / "dangling.txt").symlink_to("data/new.txt")
    for name, target in (("chain.txt", "real.txt"), ("dangling.txt", "new.txt")):
        files.write_whole(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "data" / target).read_text() == name
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["new.txt", "real.txt"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(Error, match=r"cannot write .*loop: Too many levels"):
        files.check_output(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to("none/file")
    with pytest.raises(Error, match="its folder does not exist"):
        files.check_output(tmp_path / "nowhere")


def test_what_is_no_regular_file_is_written_to(tmp_path: Path, classifier: keras.Model) -> None:
    files.write_whole("/dev/null", "gone")
    files.save_model(classifier, "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    files.write_whole(tmp_path / "pipe", "through")
    reader.join(10)
    assert got == ["through"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


@pytest.mark.parametrize("through", ["pipe", "file"])
def test_standard_output_gets_everything_in_order(tmp_path: Path, through: str) -> None:
    code = (
        "from tfdwd import files; print('before'); files.write_whole('/dev/stdout', 'whole\\n'); "
        "print('after')"
    )
    command = [sys.executable, "-c", code]
    if through == "pipe":
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        with open(tmp_path / "out", "w") as out:
            subprocess.run(command, stdout=out, check=True)
        text = (tmp_path / "out").read_text()
    assert text == "before\nwhole\nafter\n"


def test_a_full_disk_is_one_error_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: keras.Model
) -> None:
    with pytest.raises(Error, match=r"cannot write /dev/full: No space left on device"):
        files.write_whole("/dev/full", "new")
    path = tmp_path / "file.keras"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for write in (lambda: files.write_whole(path, ""), lambda: files.save_model(classifier, path)):
        with pytest.raises(Error, match=r"cannot write .*file.keras: No space left on device"):
            write()
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_while_a_model_is_saved(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(2000)])  # 800 kB
    path = tmp_path / "model.keras"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(Error, match=r"cannot write .*model.keras: File too large"):
            files.save_model(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = os.getppid()
    (tmp_path / f".out-{dead.pid}.part.json").write_text("half")
    others = [f".out-{living}.part.json", f".other-{dead.pid}.part.json", ".out-x.part.json"]
    others += [f".out-{dead.pid}.part.keras", f".out-{dead.pid}.json"]
    for name in others:
        (tmp_path / name).touch()
    files.write_whole(tmp_path / "out.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "out.json"])


def test_what_is_wrong_with_an_output_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, message in (
        (tmp_path / "none" / "file", "its folder does not exist"),
        (tmp_path, "it is a folder"),
        (tmp_path / ("x" * 250), "File name too long"),
        ("/proc/version", "cannot write /proc/version"),
    ):
        with pytest.raises(Error, match=message):
            files.check_output(path)
        with pytest.raises(Error, match=message):
            files.write_whole(path, "")
    with pytest.raises(Error, match=r"ends in \.keras, got .*model\.h5"):
        files.check_output(tmp_path / "model.h5", ".keras")
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to anything
    with pytest.raises(Error, match="it is write-protected"):
        files.check_output(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_wrong_with_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "none", "no such file: .*none"),
        (tmp_path, "expected a file, got the folder"),
        (tmp_path / "pipe", "expected a regular file, got the pipe or device"),
        (tmp_path / ("x" * 300), "cannot read .*: File name too long"),
    ):
        with pytest.raises(Error, match=message):
            files.check_input(path)
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf\xc3\xa9")
    assert files.read_text(tmp_path / "text") == "é"
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(Error, match="text holds no text in UTF-8"):
        files.read_text(tmp_path / "text")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(Error, match="Permission denied"):
        files.read_text(tmp_path / "text")


def test_names_that_are_no_text_do_not_stop_a_table(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "table.csv", os.fsdecode(b"\xff.tflite"))
    assert (tmp_path / "table.csv").read_bytes() == b"\\udcff.tflite"


def test_save_model_writes_what_keras_loads(tmp_path: Path, classifier: keras.Model) -> None:
    path = tmp_path / "model.keras"
    files.save_model(classifier, path)
    assert list(tmp_path.iterdir()) == [path]
    loaded = keras.models.load_model(path)
    for found, expected in zip(loaded.get_weights(), classifier.get_weights(), strict=True):
        assert (found == expected).all()


def test_save_model_leaves_nothing_where_keras_fails(
    tmp_path: Path, classifier: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_half_way(path: Path, *_: object, **__: object) -> None:
        path.write_text("half a model")
        raise RuntimeError("cannot go on")

    monkeypatch.setattr(classifier, "save", fails_half_way)
    with pytest.raises(RuntimeError, match="cannot go on"):
        files.save_model(classifier, tmp_path / "model.keras")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Error, match=r"ends in \.keras, got .*model\.h5"):
        files.save_model(classifier, tmp_path / "model.h5")
