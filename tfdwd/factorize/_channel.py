"""A narrower convolution then pointwise: the baseline of Zhang et al. 2015."""

from tfdwd.errors import Error
from tfdwd.factorize._stacks import Channel
from tfdwd.factorize._targets import Target, principal_responses


def channel(target: Target, filters: int) -> Channel:
    """A k x k convolution to ``filters`` channels and a 1x1: principal components of the response.

    Args:
      target: what to imitate.
      filters: 1..n.

    Source: Zhang et al. 2015, arXiv 1505.06798, section 3.1 (linear case).
    """
    n = target.kernel.shape[2]
    if not 1 <= filters <= n:
        raise Error(f"filters of a channel decomposition: expected 1..{n}, got {filters}")
    basis = principal_responses(target)[1][:, :filters]
    return Channel(target.kernel @ basis, basis.T)
