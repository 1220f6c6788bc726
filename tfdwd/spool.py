"""A queue of arrays that overflows to disk."""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_IN_MEMORY = 256 * 2**20  # bytes of one spool that stay in memory


class Spool:
    """A queue of lists of arrays; what is beyond `_IN_MEMORY` bytes is kept on disk."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._file: Any = None
        self._batches: list[list[np.ndarray] | list[tuple[tuple[int, ...], np.dtype]]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._batches)

    def append(self, arrays: Sequence[np.ndarray]) -> None:
        self._bytes += sum(array.nbytes for array in arrays)
        if self._bytes <= _IN_MEMORY:
            self._batches.append(list(arrays))
            return
        if self._file is None:
            self._file = self._stack.enter_context(tempfile.TemporaryFile())
        self._batches.append([(array.shape, array.dtype) for array in arrays])
        for array in arrays:
            self._file.write(np.ascontiguousarray(array).data.cast("B"))

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
