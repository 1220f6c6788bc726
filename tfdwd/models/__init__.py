"""Networks to decompose and to compare with."""

from tfdwd.models.shufflenet_v2 import ShuffleNetV2

__all__ = ["ShuffleNetV2"]
