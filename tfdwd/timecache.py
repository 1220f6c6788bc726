"""Measured times, kept in a file between plans. What is wrong with it costs a warning, no plan."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from tfdwd import files, records
from tfdwd.errors import Error
from tfdwd.records import PositiveAmount

# Of one layer, {"kept": ms, "separable 1": ms, "separable 1 surely": lowest likely speed-up, ...}.
# What was measured here has "separable 1 kept", too: what the layer took in the same run, side by
# side; and "separable 1 at most", the highest likely speed-up.
LayerTimes = dict[str, PositiveAmount]


class TimeCache:
    """LayerTimes by key, in memory and in a .json file that several processes may share.

    A file that is damaged, or holds something else, is neither used nor touched. Where the file
    cannot be read or written, times are kept in memory only.

    Args:
      path: the file; ~/.cache/tfdwd/latency.json, or in $XDG_CACHE_HOME, if None.

    Example:
      >>> cache = TimeCache("/tmp/times.json")
      >>> cache.keep("conv", {"kept": 2.0, "separable 1": 1.0})
      >>> TimeCache("/tmp/times.json").times("conv")["kept"]
      2.0
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path: Path | None = None
        self._seen: dict[str, LayerTimes] = {}
        with self._warning("cannot be used"):
            self._path = _default() if path is None else Path(path)
            self._seen = self._read()

    def times(self, key: str) -> LayerTimes:
        """What is known of a key: a copy."""
        return dict(self._seen.get(key, {}))

    def keep(self, key: str, times: LayerTimes) -> None:
        """Adds times, in the file to those that others have written meanwhile."""
        self._seen[key] = {**self._seen.get(key, {}), **times}
        if self._path is None:
            return
        with self._warning("cannot be written"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._path.parent):
                there = self._read()
                there[key] = {**there.get(key, {}), **self._seen[key]}
                files.write_whole(self._path, records.dumps(there))

    def _read(self) -> dict[str, LayerTimes]:
        assert self._path is not None
        try:
            mode = self._path.stat().st_mode
        except FileNotFoundError:
            return {}
        if not stat.S_ISREG(mode):
            raise Error("it is no regular file")
        text = files.read_text(self._path)
        found: dict[str, LayerTimes] = records.converted(
            dict[str, LayerTimes], records.loads(text), ""
        )
        check_complete(found)
        return found

    @contextlib.contextmanager
    def _warning(self, what: str) -> Iterator[None]:
        """Warns of what fails inside; from then on there is no file."""
        try:
            yield
        except (Error, OSError) as error:
            logging.warning(
                "the cache of measured times %s %s: %s; times are measured again and not kept; "
                "delete it or name another file with cache= (--cache)",
                self._path or "",
                what,
                error,
            )
            self._path = None


def check_complete(layers: dict[str, LayerTimes], path: str = "") -> None:
    """Checks that each layer has its own time, and each stack the lowest likely speed-up.

    Raises:
      tfdwd.Error: something is missing; the message has its path.
    """
    ends = (" surely", " kept", " at most")
    for key, times in layers.items():
        stacks = [name for name in times if name != "kept" and not name.endswith(ends)]
        for name in ["kept", *(f"{stack} surely" for stack in stacks)]:
            if name not in times:
                raise Error(f"{path}[{key!r}][{name!r}]: this number is missing")


def _default() -> Path:
    """As the XDG Base Directory Specification has it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # else it must be ignored
        return Path(given, "tfdwd", "latency.json")
    try:
        return Path.home() / ".cache" / "tfdwd" / "latency.json"
    except RuntimeError as error:
        raise Error("there is no home directory and no XDG_CACHE_HOME") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out that want the same; the system ends it where a process dies."""
    import fcntl  # on Unix only, as this is

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
