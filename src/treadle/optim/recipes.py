"""The usual optimizers, each a chain of steppers, with fastai's arguments and defaults.

`decouple_wd` chooses between the two meanings of `wd`: `weight_decay` shrinks the weights (AdamW),
`l2_reg` adds to the gradient (L2 regularization). What separates a recipe from its neighbour is
the line that ties the chain.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from treadle.errors import UsageError
from treadle.optim.lookahead import Lookahead
from treadle.optim.optimizer import Optimizer
from treadle.optim.steppers import (
    adam_step,
    average_grad,
    average_sqr_grad,
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

_MOMENTS = (partial(average_grad, dampening=True), average_sqr_grad, step_stat)

# The chain of AdamW, for a rule or a recipe that gives it to some of the parameters.
adamw_steppers = (weight_decay, *_MOMENTS, adam_step)


def SGD(
    params: Any,
    lr: Any,
    mom: float = 0.0,
    wd: float = 0.0,
    decouple_wd: bool = True,
    nesterov: bool = False,
) -> Optimizer:
    """Stochastic gradient descent, with momentum if `mom` is not 0. See `momentum_step`.

    `nesterov` takes the other momentum, that of `nesterov_step`; raises UsageError without `mom`.
    """
    decay = weight_decay if decouple_wd else l2_reg
    if nesterov and mom == 0:
        raise UsageError("nesterov=True was given without momentum; give mom, for example mom=0.9.")
    if mom == 0:
        return Optimizer(params, [decay, sgd_step], lr=lr, wd=wd)
    cbs = [decay, average_grad, nesterov_step if nesterov else momentum_step]
    return Optimizer(params, cbs, lr=lr, mom=mom, wd=wd)


def RMSProp(
    params: Any,
    lr: Any,
    mom: float = 0.0,
    sqr_mom: float = 0.99,
    eps: float = 1e-8,
    wd: float = 0.0,
    decouple_wd: bool = True,
) -> Optimizer:
    """Steps divided by the root of an average of squared gradients. See `rms_prop_step`.

    With `mom` it is the gradient that is averaged, before the division.
    """
    decay = weight_decay if decouple_wd else l2_reg
    if mom == 0:
        cbs = [decay, average_sqr_grad, rms_prop_step]
        return Optimizer(params, cbs, lr=lr, sqr_mom=sqr_mom, eps=eps, wd=wd)
    cbs = [decay, average_grad, average_sqr_grad, rms_prop_step]
    return Optimizer(params, cbs, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)


def Adagrad(
    params: Any, lr: Any, eps: float = 1e-10, wd: float = 0.0, decouple_wd: bool = True
) -> Optimizer:
    """Steps divided by the root of the sum of all squared gradients. Duchi et al., JMLR 12, 2011.

    It is `RMSProp` with an average that forgets nothing.
    """
    squares = partial(average_sqr_grad, sqr_mom=1.0, dampening=False)
    cbs = [weight_decay if decouple_wd else l2_reg, squares, rms_prop_step]
    return Optimizer(params, cbs, lr=lr, eps=eps, wd=wd)


def Adam(
    params: Any,
    lr: Any,
    mom: float = 0.9,
    sqr_mom: float = 0.99,
    eps: float = 1e-5,
    wd: float = 0.01,
    decouple_wd: bool = True,
) -> Optimizer:
    """Adam (arXiv 1412.6980); with decoupled decay, the default, AdamW. See `adam_step`."""
    cbs = [weight_decay if decouple_wd else l2_reg, *_MOMENTS, adam_step]
    return Optimizer(params, cbs, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)


def AdamW(
    params: Any,
    lr: Any = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """`Adam` with the spelling and the defaults of torch.optim.AdamW. arXiv 1711.05101."""
    return Adam(params, lr, mom=betas[0], sqr_mom=betas[1], eps=eps, wd=weight_decay)


def RAdam(
    params: Any,
    lr: Any,
    mom: float = 0.9,
    sqr_mom: float = 0.99,
    eps: float = 1e-5,
    wd: float = 0.0,
    beta: float = 0.0,
    decouple_wd: bool = True,
) -> Optimizer:
    """Adam that waits until its second moment can be trusted. See `radam_step`."""
    cbs = [weight_decay if decouple_wd else l2_reg, *_MOMENTS, radam_step]
    return Optimizer(params, cbs, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd, beta=beta)


def QHAdam(
    params: Any,
    lr: Any,
    mom: float = 0.999,
    sqr_mom: float = 0.999,
    nu_1: float = 0.7,
    nu_2: float = 1.0,
    eps: float = 1e-8,
    wd: float = 0.0,
    decouple_wd: bool = True,
) -> Optimizer:
    """Adam that mixes the averages with the gradient at hand. See `qhadam_step`."""
    cbs = [weight_decay if decouple_wd else l2_reg, *_MOMENTS, qhadam_step]
    hypers = {"mom": mom, "sqr_mom": sqr_mom, "nu_1": nu_1, "nu_2": nu_2, "eps": eps, "wd": wd}
    return Optimizer(params, cbs, lr=lr, **hypers)


def Larc(
    params: Any,
    lr: Any,
    mom: float = 0.9,
    clip: bool = True,
    trust_coeff: float = 0.02,
    eps: float = 1e-8,
    wd: float = 0.0,
    decouple_wd: bool = True,
) -> Optimizer:
    """SGD with its own lr for each parameter; without `clip` it is LARS. See `larc_layer_lr`."""
    decay = weight_decay if decouple_wd else l2_reg
    hypers = {"clip": clip, "trust_coeff": trust_coeff, "eps": eps, "wd": wd}
    if mom == 0:
        return Optimizer(params, [decay, larc_layer_lr, larc_step], lr=lr, **hypers)
    cbs = [decay, average_grad, larc_layer_lr, larc_step]
    return Optimizer(params, cbs, lr=lr, mom=mom, **hypers)


def Lamb(
    params: Any,
    lr: Any,
    mom: float = 0.9,
    sqr_mom: float = 0.99,
    eps: float = 1e-5,
    wd: float = 0.0,
    decouple_wd: bool = True,
) -> Optimizer:
    """Adam with a trust ratio for each parameter. See `lamb_step`."""
    cbs = [weight_decay if decouple_wd else l2_reg, *_MOMENTS, lamb_step]
    return Optimizer(params, cbs, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)


def ranger(
    params: Any,
    lr: Any,
    mom: float = 0.95,
    wd: float = 0.01,
    eps: float = 1e-6,
    k: int = 6,
    alpha: float = 0.5,
    **kwargs: Any,
) -> Lookahead:
    """`Lookahead` around `RAdam`; `kwargs` are RAdam's further arguments."""
    return Lookahead(RAdam(params, lr, mom=mom, wd=wd, eps=eps, **kwargs), k=k, alpha=alpha)
