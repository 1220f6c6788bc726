"""Fine-tuning of any network, with or without a teacher and labels.

`finetuning` is the way in and the loop; `options` what can be chosen; `epochs` the data; `losses`
how an output is compared; `features` outputs of layers; `learner` one step; `checkpoints` what is
kept in a folder.
"""

from tfdwd.training.finetuning import finetune

__all__ = ["finetune"]
