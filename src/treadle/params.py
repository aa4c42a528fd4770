"""Which parameters of a model an optimizer is given, and which of them are special."""

from __future__ import annotations

from torch import nn

NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def trainable_params(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of `model` that require a gradient: the splitter that makes one group."""
    return [p for p in model.parameters() if p.requires_grad]


def norm_params(model: nn.Module, with_bias: bool = False) -> list[nn.Parameter]:
    """The parameters of the normalisation layers; with `with_bias` every other bias too.

    >>> [tuple(p.shape) for p in norm_params(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))]
    [(3,), (3,)]
    """
    found: list[nn.Parameter] = []
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if isinstance(module, NORMS) or (with_bias and name.startswith("bias")):
                found.append(p)
    return found
