"""tfdwd.blas: the threads of NumPy's and SciPy's linear algebra."""

import numpy as np
import pytest
import scipy.linalg
import threadpoolctl

from tfdwd import blas


def threads():
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"}  # fmt: skip


@pytest.mark.parametrize("context", [blas.one_thread, lambda: blas.threads_for(100)])
def test_one_thread_inside_and_as_before_behind(context):
    scipy.linalg.cholesky(np.eye(2))  # loads SciPy's own
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with context():
            assert threads() == {1}
        assert threads() == {2}


def test_large_matrices_keep_all_threads():
    with threadpoolctl.threadpool_limits(2, user_api="blas"), blas.threads_for(5000):
        assert threads() == {2}
