"""Fine-tuning of any network, with or without a teacher and labels.

`finetuning` is the way in, `options` the numbers that can be chosen, `epochs` the data, `task` what
is learnt: an `objective` of `losses` of the outputs and of `features`. `loop` runs the epochs,
`learner` one step, and `checkpoints` keeps the results in a folder.
"""

from tfdwd.training.finetuning import finetune

__all__ = ["finetune"]
