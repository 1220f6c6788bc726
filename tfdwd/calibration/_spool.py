"""A queue of arrays that overflows to disk."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfdwd import memory
from tfdwd.errors import Error

_IN_MEMORY = 2**30  # bytes of one spool that stay in memory, at most; disks write 0.1 GB/s
_PART = 1 / 16  # of all memory, at most
_LEFT = 2**30  # bytes of the disk that are left to others;
_LEFT_PART = 0.05  # on a small disk this part of it


class Spool:
    """A queue of lists of arrays; beyond a GiB, or a sixteenth of all memory, on disk."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._file: Any = None
        self._batches: list[list[np.ndarray] | list[tuple[tuple[int, ...], np.dtype]]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._batches)

    def append(self, arrays: Sequence[np.ndarray]) -> None:
        """Adds a list of arrays.

        Raises:
          tfdwd.Error: it does not fit on the disk for temporary files, or would all but fill it.
        """
        size = sum(array.nbytes for array in arrays)
        self._bytes += size
        if self._bytes <= min(_IN_MEMORY, _PART * memory.total()):
            self._batches.append(list(arrays))
            return
        try:
            self._write(arrays, size)
        except OSError as error:
            raise Error(
                f"calibration: expected room for {self._bytes / 2**30:.1f} GiB of temporary files "
                f"in {tempfile.tempdir}, got {error}; use fewer images (images=), or name a "
                "larger disk in the environment variable TMPDIR"
            ) from error

    def _write(self, arrays: Sequence[np.ndarray], size: int) -> None:
        disk = shutil.disk_usage(tempfile.gettempdir())
        if disk.free - size < min(_LEFT, _LEFT_PART * disk.total):
            raise OSError(f"{disk.free / 2**30:.1f} GiB free")
        if self._file is None:
            self._file = self._stack.enter_context(tempfile.TemporaryFile())
        for array in arrays:
            self._file.write(np.ascontiguousarray(array).data.cast("B"))
        self._file.flush()  # so that a full disk shows here
        self._batches.append([(array.shape, array.dtype) for array in arrays])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        if self._file is not None:
            self._file.seek(0)
        for batch in self._batches:
            yield [item if isinstance(item, np.ndarray) else self._read(*item) for item in batch]

    def _read(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        content = self._file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(content, dtype).reshape(shape)

    def close(self) -> None:
        """Lets go of memory and file."""
        self._batches.clear()
        if self._file is not None:
            self._file.close()
