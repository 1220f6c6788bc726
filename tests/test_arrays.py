"""Arrays from files that were damaged, or made to do harm."""

import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tfdwd import arrays, memory
from tfdwd.errors import Error

IMAGES = np.random.default_rng(0).random((4, 5, 5, 3)).astype(np.float32)


def _npy(array: object) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def _npz(compressed: bool = False, **named: np.ndarray) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **named)
    return out.getvalue()


def _zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


def _header(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        IMAGES,
        np.asfortranarray(IMAGES),
        IMAGES.astype(">f8"),
        np.arange(5, dtype=np.uint8),
        np.zeros((3, 0)),
        IMAGES > 0.5,
        np.float16(IMAGES),
    ],
    ids=["float32", "fortran", "big-endian", "uint8", "empty", "bool", "float16"],
)
def test_arrays_come_back(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (_npy(array), _npz(x=array), _npz(True, x=array)):
        path.write_bytes(content)
        found = arrays.load(path)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype.newbyteorder("=") and found.flags.writeable
    path.write_bytes(_npz(x=array, y=np.arange(3)))
    np.testing.assert_array_equal(arrays.load(path, "y"), [0, 1, 2])


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled",)


ENCRYPTED = bytearray(_npz(x=IMAGES))
# Bit 0 of the flags, in the entry itself and in the directory.
ENCRYPTED[6] |= 1
ENCRYPTED[ENCRYPTED.rindex(b"PK\1\2") + 8] |= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no .npy or .npz file"),
        (b"some text", "no .npy or .npz file"),
        (b"PK", "no .npy or .npz file"),
        (b"PK\5\6" + bytes(18), "holds no array"),
        (pickle.dumps(IMAGES), "no .npy or .npz file"),
        (pickle.dumps(_Evil()), "no .npy or .npz file"),
        (_npy(np.array([_Evil()], object)), "expected numbers, got object"),
        (_npz(x=np.array(["cat"])), "array 'x': expected numbers, got <U3"),
        (_npy(np.zeros(3, [("a", int)])), "expected numbers, got .*'a'"),
        (_npy(np.array(["2020"], "M8[Y]")), "expected numbers, got datetime64"),
        (_npy(IMAGES + 1j), "expected numbers, got complex64"),
        (_npy(3.0), r"one axis or more, got the shape \(\)"),
        (_zipped("x.txt", b"words"), "no .npy or .npz file, or a damaged one"),
        (_npy(IMAGES)[:-1], r"damaged: expected 1200 bytes for float32 \(4, 5, 5, 3\), got 1199"),
        (_npy(IMAGES) + b"\0", "damaged: expected 1200 bytes for .*, got 1201"),
        (_npz(x=IMAGES)[:-9], "no .npy or .npz file, or a damaged one"),
        (_header((10**15,)) + b"1234", "damaged: expected 4000000000000000 bytes"),
        (_zipped("x.npy", _header((10**30,)) + b"1234"), "damaged: expected 4"),
        (_header((-1,)) + b"1234", r"one axis or more, got the shape \(-1,\)"),
        (_header((0, 10**30)), "damaged one"),
        (b"\x93NUMPY\7\0" + _npy(IMAGES)[8:], "expected version 1 or 2 .*, got 7"),
        (bytes(ENCRYPTED), "is encrypted"),
    ],
)
def test_what_is_no_array_of_numbers(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(Error, match=f"^x.npz.*{message}"):
        arrays.load("x.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]  # nothing was unpickled


def test_a_flipped_bit_in_an_archive_is_found(tmp_path: Path) -> None:
    content = bytearray(_npz(x=IMAGES))
    content[content.index(IMAGES.tobytes()) + 500] ^= 16
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(Error, match="Bad CRC-32"):
        arrays.load(tmp_path / "x.npz")


def test_an_array_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "total", lambda: 1000.0)
    (tmp_path / "x.npz").write_bytes(_npz(True, x=np.zeros((4, 5, 5, 3))))
    with pytest.raises(Error, match=r"\(4, 5, 5, 3\) takes 0 GiB, more than this machine has"):
        arrays.load(tmp_path / "x.npz")


def test_the_key(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(_npz(x=IMAGES, y=IMAGES))
    for key in (None, "z"):
        with pytest.raises(Error, match=f"the arrays x, y: expected the key of one, got {key}"):
            arrays.load(path, key)
    path.write_bytes(_npy(IMAGES))
    with pytest.raises(Error, match="one array without a name: expected no key, got x"):
        arrays.load(path, "x")


def test_whatever_is_damaged_is_an_array_or_an_error(tmp_path: Path) -> None:
    source = random.Random(0)
    whole = [_npz(x=IMAGES), _npz(True, x=IMAGES, y=IMAGES), _npy(IMAGES), _npz(x=np.array(["a"]))]
    errors = 0
    for _ in range(300):
        content = bytearray(source.choice(whole))
        for _ in range(source.choice([1, 1, 4])):
            place = source.randrange(min(len(content), source.choice([150, 10**6])))
            kind = source.random()
            if kind < 0.2:
                del content[place + 1 :]
            elif kind < 0.7:
                content[place] ^= 1 << source.randrange(8)
            else:
                content[place:place] = source.randbytes(4)
        (tmp_path / "x").write_bytes(content)
        try:
            assert arrays.load(tmp_path / "x", source.choice([None, "x"])).dtype.kind in "biuf"
        except Error as error:
            errors += 1
            assert str(error).startswith(str(tmp_path))
    assert errors > 200
