"""Compares two results of the same layers: by how much they differ, if by more than rounding."""

from typing import Any

import keras
import numpy as np

# Rounding of one layer, relative to the largest value of its output.
_HALF = {"float16": 1e-2, "bfloat16": 1e-1}
_FULL = 3e-5


def difference(found: Any, expected: Any) -> float:
    """Largest difference of two structures of tensors.

    Returns:
      For each image relative to the largest value in it, and of all images the largest; infinite
      where shapes or the positions of NaN and infinity differ.
    """
    found, expected = keras.tree.flatten(found), keras.tree.flatten(expected)
    if len(found) != len(expected):
        return np.inf
    return max((_difference(*pair) for pair in zip(found, expected, strict=True)), default=0.0)


def _difference(found: Any, expected: Any) -> float:
    a, b = as_array(found), as_array(expected)
    if a.shape != b.shape:
        return np.inf
    if a.dtype == object or not a.size:  # text, or nothing
        return 0.0 if np.array_equal(a, b) else np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return np.inf
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    if not b.ndim:
        a, b = a[None], b[None]
    each = tuple(range(1, b.ndim))
    scale = np.abs(b).max(each, keepdims=True)
    return float((np.abs(a - b) / np.where(scale, scale, 1)).max())


def as_array(tensor: Any) -> np.ndarray:
    """A tensor of any backend as an array; NumPy alone takes no scalar in bfloat16.

    Example:
      >>> as_array(keras.ops.cast(1.5, "bfloat16")).shape
      ()
    """
    return np.asarray(tensor.numpy() if hasattr(tensor, "numpy") else tensor)


def equal(found: Any, expected: Any) -> bool:
    """Whether two results of one layer differ by rounding at most; see `difference`."""
    dtypes = {
        keras.backend.standardize_dtype(tensor.dtype) for tensor in keras.tree.flatten(expected)
    }
    tolerance = max([_HALF.get(dtype, _FULL) for dtype in dtypes], default=_FULL)
    return difference(found, expected) <= tolerance
