"""Calibration: what a network's images say about each convolution that is to be replaced.

`levels` streams the images through the original and the student side by side, in the stages of a
schedule, and yields what it collected of each convolution: second moments, and how much each
direction of the response matters (the Fisher metric). Images and activations wait in spools.
`reestimate_norms` afterwards mends the batch norms that read what a stack gives.
"""

from tfdwd.calibration._fisher import fisher_metrics, loss_metric, with_identity
from tfdwd.calibration._levels import DEFAULT, Collected, Settings, in_own_batches, levels
from tfdwd.calibration._moments import Moments
from tfdwd.calibration._norms import NORM_IMAGES, reestimate_norms
from tfdwd.calibration._spool import Spool

__all__ = [
    "DEFAULT",
    "NORM_IMAGES",
    "Collected",
    "Moments",
    "Settings",
    "Spool",
    "fisher_metrics",
    "in_own_batches",
    "levels",
    "loss_metric",
    "reestimate_norms",
    "with_identity",
]
