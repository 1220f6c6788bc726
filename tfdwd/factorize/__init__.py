"""Solvers: from the second moments of a convolution to the factors of its stack.

Names and shapes. A convolution reads c channels through q = kh * kw taps and writes n channels;
its kernel is an array (c, q, n) here, "channel-major" where it is flattened to (c * q, n). With
x the (c * q,) inputs under one output position, y the (n,) response wanted there, and both
centred, the error of a kernel E is::

    E|y - x E|^2 = E|y - x M|^2 + |A^(1/2) (M - E)|^2,     A = E[x x^T],   M = A^-1 E[x^T y]

The first term is what no kernel can mend. Everything here minimises the second, so every method
is one pure function of a `Target` (A, M) and a rank. NumPy and SciPy alone.

Source: He et al. 2019, "Depth-wise Decomposition for Accelerating Separable Convolutions in
Efficient Convolutional Neural Networks", arXiv 1910.09455, section 3, for `svd`, `gsvd` and
`sequential`; Zhang et al. 2015, arXiv 1505.06798, section 3.1, for `channel`. `joint` and
`bottleneck` are this project's.
"""

import numpy as np

from tfdwd.factorize._bottleneck import bottleneck, bottleneck_steps, bottlenecks, refit_bottleneck
from tfdwd.factorize._channel import channel
from tfdwd.factorize._scaling import equalized, of_equal_size
from tfdwd.factorize._separable import (
    gsvd,
    joint,
    joint_steps,
    joints,
    refit_separable,
    sequential,
    svd,
)
from tfdwd.factorize._stacks import Bottleneck, Channel, Separable, Stack, variances
from tfdwd.factorize._targets import Equations, Gram, Target, equations, errors, gram, target

__all__ = [
    "Bottleneck",
    "Channel",
    "Equations",
    "Gram",
    "Separable",
    "Stack",
    "Target",
    "bottleneck",
    "bottleneck_steps",
    "bottlenecks",
    "channel",
    "equalized",
    "equations",
    "errors",
    "gram",
    "gsvd",
    "joint",
    "joint_steps",
    "joints",
    "of_equal_size",
    "refit",
    "sequential",
    "svd",
    "target",
    "variances",
]


def refit(
    equations: Equations,
    stack: Separable | Bottleneck,
    metric: np.ndarray | None = None,
    rounds: int = 2,
) -> Separable | Bottleneck:
    """Some more rounds of `joint` or `bottleneck`, for responses that changed a little.

    Args:
      equations: of the responses wanted now.
      stack: the answer to what was wanted before.
      metric: (n, n) positive definite weight of the response's error; the identity if None.
      rounds: so many.
    """
    if isinstance(stack, Separable):
        return refit_separable(equations, stack, metric, rounds)
    return refit_bottleneck(equations, stack, metric, rounds)
