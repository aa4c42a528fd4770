"""Optimizers as chains of small functions.

`steppers` has the rules, `Optimizer` runs a chain of them over groups of parameters, `recipes` are
the usual chains by their names; those that bring steppers of their own have a file each (`lion`,
`muon`, ...). `rules` gives some parameters other hyper-parameters or another chain, `interop` leads
to torch's optimizers and back, `wrapper` drives torch's own. `chain` checks a chain when it is
built, `engine` executes it.
"""

from __future__ import annotations

from treadle.optim.adadelta import Adadelta, adadelta_step
from treadle.optim.adan import Adan, adan_averages, adan_step, proximal_decay
from treadle.optim.interop import from_torch, to_torch
from treadle.optim.lion import Lion, lion_step
from treadle.optim.lookahead import Lookahead
from treadle.optim.muon import Muon, muon_step, newton_schulz
from treadle.optim.nadam import NAdam, nadam_step
from treadle.optim.optimizer import Optimizer
from treadle.optim.recipes import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Lamb,
    Larc,
    QHAdam,
    RAdam,
    RMSProp,
    adamw_steppers,
    ranger,
)
from treadle.optim.rules import Rule, param_rules, split_matrices
from treadle.optim.schedule_free import ScheduleFreeAdamW, schedule_free_step
from treadle.optim.soap import SOAP, soap_basis, soap_step
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
    nesterov_step,
    qhadam_step,
    radam_step,
    rms_prop_step,
    sgd_step,
    step_stat,
    weight_decay,
)
from treadle.optim.wrapper import OptimWrapper, make_opt, wrap

__all__ = [
    "SGD",
    "SOAP",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adan",
    "Lamb",
    "Larc",
    "Lion",
    "Lookahead",
    "Muon",
    "NAdam",
    "OptimWrapper",
    "Optimizer",
    "QHAdam",
    "RAdam",
    "RMSProp",
    "Rule",
    "ScheduleFreeAdamW",
    "adadelta_step",
    "adam_step",
    "adamw_steppers",
    "adan_averages",
    "adan_step",
    "average_grad",
    "average_sqr_grad",
    "debias",
    "from_torch",
    "l2_reg",
    "lamb_step",
    "larc_layer_lr",
    "larc_step",
    "lion_step",
    "make_opt",
    "momentum_step",
    "muon_step",
    "nadam_step",
    "nesterov_step",
    "newton_schulz",
    "param_rules",
    "proximal_decay",
    "qhadam_step",
    "radam_step",
    "ranger",
    "rms_prop_step",
    "schedule_free_step",
    "sgd_step",
    "soap_basis",
    "soap_step",
    "split_matrices",
    "step_stat",
    "to_torch",
    "weight_decay",
    "wrap",
]
