"""How many threads NumPy's and SciPy's linear algebra takes.

NumPy and SciPy each bring an OpenBLAS whose threads keep spinning after they are done; on small
matrices they, and TensorFlow's threads, spend more time in each other's way than they save.
"""

import contextlib
import functools
from typing import Any

import threadpoolctl

LARGE, VERY_LARGE = 1024, 4096  # unknowns from which on two threads beat one; in iterations


def one_thread() -> contextlib.AbstractContextManager[Any]:
    """A context with one thread: for small matrices, and where other threads call."""
    return _controller().limit(limits=1, user_api="blas")


def threads_for(unknowns: int, many: int = LARGE) -> contextlib.AbstractContextManager[Any]:
    """A context with one thread for a matrix of few unknowns, all that there are for ``many``."""
    return one_thread() if unknowns < many else contextlib.nullcontext()


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()
