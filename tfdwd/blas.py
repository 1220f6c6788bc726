"""How many threads NumPy's and SciPy's linear algebra takes."""

import contextlib
import functools
from collections.abc import Iterator

import threadpoolctl

_LARGE = 1024  # unknowns from which on two threads beat one


@contextlib.contextmanager
def threads(unknowns: int) -> Iterator[None]:
    """One thread for small matrices, all that there are for large ones.

    NumPy and SciPy each bring an OpenBLAS whose threads keep spinning after they are done; on
    small matrices they, and TensorFlow's threads, spend more time in each other's way than they
    save.
    """
    with _controller().limit(limits=None if unknowns >= _LARGE else 1, user_api="blas"):
        yield


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()
