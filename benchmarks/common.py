"""What the benchmarks share: the networks and images they start from, and their CSV files.

Data: Krizhevsky 2009, "Learning multiple layers of features from tiny images"; the ResNet-8 of
MLPerf Tiny. Both are in the folder TFDWD_DATA, ../shared/data beside this repository by default.
Xiao et al. 2017, "Fashion-MNIST", arXiv 1708.07747 (MIT licence): what the demo needs of it is in
benchmarks/demo, the whole is Debian's package dataset-fashion-mnist.
"""

import csv
import gzip
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
DATA = pathlib.Path(os.environ.get("TFDWD_DATA", HERE.parent.parent / "shared/data"))
FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
Examples = tuple[np.ndarray, np.ndarray]  # images (count, height, width, channels) uint8, labels


def cifar10() -> tuple[Examples, Examples]:
    """Lossless images of CIFAR-10: 5,085 that networks were trained on, and 1,017 to test."""
    return _examples(DATA / "cifar10_subset.npz")


def fashion() -> tuple[Examples, Examples]:
    """Fashion-MNIST as the demo has it: images to calibrate on, and 4,000 to test."""
    return _examples(HERE / "demo" / "fashion_mnist.npz")


def whole_fashion(folder: pathlib.Path = FASHION) -> tuple[Examples, Examples]:
    """Fashion-MNIST: 60,000 images (28, 28, 1) to train on, and 10,000 to test."""

    def read(name: str) -> np.ndarray:  # bytes: 4 magic ones (the last is the rank), shape, data
        raw = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
        shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)

    train, test = (
        (read(f"{part}-images-idx3")[..., None], read(f"{part}-labels-idx1"))
        for part in ("train", "t10k")
    )
    return train, test


def _examples(path: pathlib.Path) -> tuple[Examples, Examples]:
    with np.load(path) as content:
        train, test = ((content[f"x_{p}"], content[f"y_{p}"].ravel()) for p in ("train", "test"))
    return train, test


def resnet8() -> keras.Model:
    """The ResNet-8 of MLPerf Tiny, trained on CIFAR-10."""
    return keras.models.load_model(DATA / "mlperf_tiny_resnet8.h5", compile=False)


def shufflenet() -> keras.Model:
    """The demo's ShuffleNet V2 with regular convolutions, trained on Fashion-MNIST."""
    return keras.models.load_model(HERE / "demo" / "fashion_shufflenet.keras", compile=False)


def decomposed(
    model: keras.Model,
    images: np.ndarray,
    batch_size: int | None = None,
    *,
    rank: int = 1,
    stack: str = "separable",
    include: str | None = None,
    method: str = "joint",
    **options: Any,
) -> keras.Model:
    """As `tfdwd.decompose` does it, with the further ``options`` of `decomposition.decomposed`."""
    from tfdwd import candidates, decomposition, graph, selection  # not where JAX only trains
    from tfdwd.shapes import images_at_once

    traced = graph.trace(model)
    convs = candidates.find_convolutions(traced)
    selected = selection.uniform(convs, rank, stack=stack, method=method, include=include)
    size = batch_size or images_at_once(model)
    batches = ([images[first : first + size]] for first in range(0, len(images), size))
    return decomposition.decomposed(model, traced, selected, batches, method=method, **options)[0]


def write_rows(path: pathlib.Path, headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file anew."""
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([headers, *rows])


def add_rows(
    path: pathlib.Path, headers: Sequence[str], new: Iterable[Sequence[str]]
) -> list[Sequence[str]]:
    """Adds rows to a CSV file as they come, and prints each; returns all that it holds then."""
    rows: list[Sequence[str]] = [*read_rows(path)]
    for row in new:
        print(*row, sep=", ", flush=True)
        rows.append(row)
        write_rows(path, headers, rows)
    return rows


def read_rows(path: pathlib.Path) -> list[list[str]]:
    """The rows of a CSV file without its headers; none if there is no file yet."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.reader(file))[1:]
