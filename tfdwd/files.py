"""Files: checked before work starts, written whole or not at all, read with one clear error."""

import contextlib
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tfdwd import checks
from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras

PathLike = str | os.PathLike[str]


def check_input(path: PathLike) -> None:
    """Checks that a file can be read.

    Raises:
      tfdwd.Error: there is no such file, it is a folder or a pipe, or it may not be read.
    """
    path = checks.path("path", path)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise Error(f"no such file: {os.fspath(path)}") from error
        raise Error(f"cannot read {os.fspath(path)}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise Error(f"expected a file, got the folder {os.fspath(path)}")
    if not stat.S_ISREG(mode):
        raise Error(f"expected a regular file, got the pipe or device {os.fspath(path)}")
    if not os.access(path, os.R_OK):
        raise Error(f"cannot read {os.fspath(path)}: Permission denied")


def check_output(path: PathLike, suffix: str | None = None) -> None:
    """Checks that a file can be written, before the work that is to end in it.

    Args:
      path: the file; one that is there will be replaced, a link followed.
      suffix: how the name must end, unless it is that of a pipe or device.

    Raises:
      tfdwd.Error: another ending, the folder does not exist or may not be written to, a folder of
        that name, or a file that is write-protected.

    Example:
      >>> check_output("/tmp/table.txt")
    """
    path = checks.path("path", path)
    name, target = os.fspath(path), Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise Error(f"cannot write {name}: it is a folder; name a file")
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise Error(f"cannot write {name}: it is write-protected")
        if _is_regular_or_new(path):
            if suffix is not None and Path(path).suffix != suffix:
                raise Error(f"expected a path that ends in {suffix}, got {name}")
            if not target.parent.is_dir():
                raise Error(f"cannot write {name}: its folder does not exist; create it first")
            # Only trying tells of rights, read-only disks and names that are too long.
            temporary = _beside(target, os.getpid())
            temporary.touch()
            temporary.unlink()
    except OSError as error:
        raise Error(f"cannot write {name}: {error.strerror or error}") from error


def read_text(path: PathLike) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Raises:
      tfdwd.Error: as `check_input`, or the file holds no text.
    """
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Error(f"{os.fspath(path)} holds no text in UTF-8") from error


def read_bytes(path: PathLike) -> bytes:
    """Reads a file.

    Raises:
      tfdwd.Error: as `check_input`, or the disk fails.
    """
    check_input(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Error(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error


def write_whole(path: PathLike, content: bytes | str) -> None:
    """Writes a file whole or not at all: readers see the old file or the new one.

    A link is followed and stays. A file that is replaced keeps its mode. What is no regular file,
    such as /dev/stdout or a pipe, is written to.

    Args:
      path: the file, in a folder that exists; replaced if it is there.
      content: text is written as UTF-8.

    Raises:
      tfdwd.Error: as `check_output`, or the disk is full; what was there stays.

    Example:
      >>> write_whole("/tmp/table.txt", "layer  MACs")
    """
    with _put_in_place(path) as temporary:
        # A file's name may hold bytes that are no text, and names get into tables.
        whole = content.encode(errors="backslashreplace") if isinstance(content, str) else content
        temporary.write_bytes(whole)


def save_model(model: "keras.Model", path: PathLike) -> None:
    """Saves a Keras model as a .keras file, whole or not at all, as `write_whole` does.

    Args:
      model: any Keras 3 model.
      path: the file, ending in .keras, in a folder that exists; replaced if it is there.

    Raises:
      tfdwd.Error: another ending, or as `write_whole`.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
      >>> save_model(model, "/tmp/model.keras")
    """
    with _put_in_place(path, ".keras") as temporary:
        model.save(temporary)


@contextlib.contextmanager
def _put_in_place(path: PathLike, suffix: str | None = None) -> Iterator[Path]:
    """Gives a path to write to; at the end that becomes `path`, after any failure it is gone."""
    check_output(path, suffix)
    try:
        if not _is_regular_or_new(path) or _stream_to(path) is not None:
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / f"whole{suffix or ''}"
                yield temporary
                with _opened(path) as out:
                    out.write(temporary.read_bytes())
            return
        target = Path(os.path.realpath(path))
        _remove_leftovers(target)
        temporary = _beside(target, os.getpid())
        try:
            yield temporary
            if target.exists():
                _copy_mode(target, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise Error(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


def _beside(target: Path, pid: int) -> Path:
    # Keras looks at the ending.
    return target.with_name(f".{target.stem}-{pid}.part{target.suffix}")


def _remove_leftovers(target: Path) -> None:
    """Removes what processes that were killed had written of the same file."""
    pattern = re.compile(rf"\.{re.escape(target.stem)}-(\d+)\.part{re.escape(target.suffix)}")
    for name in os.listdir(target.parent):
        if (found := pattern.fullmatch(name)) and not _lives(int(found[1])):
            (target.parent / name).unlink(missing_ok=True)


def _copy_mode(source: Path, target: Path) -> None:
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (source, target)]
    if modes[0] != modes[1]:  # file systems without modes refuse to set one
        target.chmod(modes[0])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _is_regular_or_new(path: PathLike) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True


def _stream_to(path: PathLike) -> int | None:
    """The descriptor of standard output or error if it writes to the same file."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if os.path.samestat(os.stat(path), os.fstat(stream.fileno())):
                return stream.fileno()
    return None


def _opened(path: PathLike) -> BinaryIO:
    stream = _stream_to(path)
    if stream is None:
        return open(path, "wb")
    # What was printed before comes first, and what is printed later does not overwrite this.
    sys.stdout.flush()
    return os.fdopen(os.dup(stream), "wb")
