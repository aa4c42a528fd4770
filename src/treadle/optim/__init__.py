"""Optimizers as chains of small functions.

`steppers` has the rules, `Optimizer` runs a chain of them over groups of parameters, `recipes` are
the usual chains by their names. `chain` checks a chain when it is built, `engine` executes it.
"""

from __future__ import annotations

from treadle.optim.lookahead import Lookahead
from treadle.optim.optimizer import Optimizer
from treadle.optim.recipes import SGD, Adam, AdamW, Lamb, Larc, QHAdam, RAdam, RMSProp, ranger
from treadle.optim.steppers import (
    adam_step,
    average_grad,
    average_sqr_grad,
    debias,
    l2_reg,
    lamb_step,
    larc_layer_lr,
    larc_step,
    momentum_step,
    qhadam_step,
    radam_step,
    rms_prop_step,
    sgd_step,
    step_stat,
    weight_decay,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Lamb",
    "Larc",
    "Lookahead",
    "Optimizer",
    "QHAdam",
    "RAdam",
    "RMSProp",
    "adam_step",
    "average_grad",
    "average_sqr_grad",
    "debias",
    "l2_reg",
    "lamb_step",
    "larc_layer_lr",
    "larc_step",
    "momentum_step",
    "qhadam_step",
    "radam_step",
    "ranger",
    "rms_prop_step",
    "sgd_step",
    "step_stat",
    "weight_decay",
]
