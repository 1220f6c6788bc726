"""Arrays from .npy and .npz files that may be damaged, or made to do harm. Nothing is unpickled."""

import math
import os
import warnings
import zipfile
from typing import IO

import numpy as np

from tfdwd import files, memory
from tfdwd.errors import Error, one_line

_PLAIN = "biuf"  # kinds of dtypes: booleans, whole numbers, floats
_CHUNK = 2**24  # bytes
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load(path: str | os.PathLike[str], key: str | None = None) -> np.ndarray:
    """Loads an array of numbers.

    Args:
      path: a .npy file, or a .npz file.
      key: which array of a .npz file; may be None where it holds only one.

    Returns:
      The array, of one axis or more, of booleans, whole numbers or floats.

    Raises:
      tfdwd.Error: no such file, another kind of file, a damaged one, no such array in it, one that
        holds text, objects or a single number, or one larger than this machine's memory.

    Example:
      >>> np.save("/tmp/images.npy", np.zeros((2, 8, 8, 3)))
      >>> load("/tmp/images.npy").shape
      (2, 8, 8, 3)
    """
    files.check_input(path)
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"PK":  # as np.load tells them apart
                return _from_archive(file, name, key)
            if key is not None:
                raise Error(f"{name} holds one array without a name: expected no key, got {key}")
            file.seek(0)
            return _read(file, os.path.getsize(path), name)
    except Error:
        raise
    except MemoryError as error:
        raise Error(f"{name}: the array does not fit in memory; take fewer images") from error
    except Exception as error:  # whatever zipfile, zlib, struct and NumPy's parser make of damage
        raise Error(
            f"{name} is no .npy or .npz file, or a damaged one: {one_line(error)}"
        ) from error


def _from_archive(file: IO[bytes], name: str, key: str | None) -> np.ndarray:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if not members:
            raise Error(f"{name} holds no array")
        if key is None and len(members) == 1:
            [key] = members
        if key is None or key not in members:
            raise Error(
                f"{name} holds the arrays {', '.join(members)}: expected the key of one, got {key}"
            )
        info = members[key]
        if info.flag_bits & 1:
            raise Error(f"{name} is encrypted; save it with np.savez")
        with archive.open(info) as member:
            return _read(member, info.file_size, f"{name}: array {key!r}")


def _read(file: IO[bytes], size: int, name: str) -> np.ndarray:
    """Reads an array from a .npy file of so many bytes."""
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise Error(f"{name}: expected version 1 or 2 of NumPy's format, got {version[0]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        shape, fortran_order, dtype = _READERS[version](file)
    if dtype.kind not in _PLAIN:
        raise Error(f"{name}: expected numbers, got {dtype}")
    if not shape or min(shape) < 0:
        raise Error(f"{name}: expected an array of one axis or more, got the shape {shape}")
    expected, got = math.prod(shape) * dtype.itemsize, size - file.tell()
    if expected != got:
        raise Error(f"{name} is damaged: expected {expected} bytes for {dtype} {shape}, got {got}")
    if expected > memory.total():
        raise Error(
            f"{name}: {dtype} {shape} takes {expected / 2**30:.0f} GiB, more than this machine has"
        )
    content = np.empty(expected, np.uint8)
    position = 0
    while count := file.readinto(content[position : position + _CHUNK]):  # type: ignore[attr-defined]
        position += count
    if position != expected or file.read(1):  # at the end zipfile compares checksums
        raise Error(f"{name} is damaged: expected {expected} bytes, got {position}")
    array = content.view(dtype).reshape(shape, order="F" if fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
