"""Image models: the architectures of torchvision, cut into a body and given a new head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from treadle.errors import DownloadError, UsageError, nearest
from treadle.registry import register, remember

Arch = Callable[..., nn.Module]


@register
def resnet18(**kwargs: Any) -> nn.Module:
    """torchvision's ResNet-18 (arXiv 1512.03385)."""
    return build_arch("resnet18", **kwargs)


@register
def resnet34(**kwargs: Any) -> nn.Module:
    """torchvision's ResNet-34 (arXiv 1512.03385)."""
    return build_arch("resnet34", **kwargs)


@register
def resnet50(**kwargs: Any) -> nn.Module:
    """torchvision's ResNet-50 (arXiv 1512.03385)."""
    return build_arch("resnet50", **kwargs)


@register
def resnet101(**kwargs: Any) -> nn.Module:
    """torchvision's ResNet-101 (arXiv 1512.03385)."""
    return build_arch("resnet101", **kwargs)


@register
def resnet152(**kwargs: Any) -> nn.Module:
    """torchvision's ResNet-152 (arXiv 1512.03385)."""
    return build_arch("resnet152", **kwargs)


def arch_names() -> list[str]:
    """The names of torchvision's classification models, any of which may be an `arch`."""
    from torchvision import models

    return list(models.list_models(models))


def build_arch(name: str, **kwargs: Any) -> nn.Module:
    """The torchvision model `name`; keywords are its own (`weights="DEFAULT"` for trained ones).

    Raises:
        UsageError: if there is no such model, with the nearest name.
        DownloadError: if trained weights were asked for and could not be had.
    """
    from torchvision import models

    if name not in arch_names():
        raise UsageError(f"arch={name!r} is unknown; {nearest(name, arch_names())}")
    try:
        return models.get_model(name, **kwargs)  # type: ignore[no-any-return]
    except OSError as error:
        raise DownloadError(
            f"the trained weights of {name} could not be downloaded ({error}); train from scratch "
            "with pretrained=False, or put them into torch's hub folder."
        ) from error


class AdaptiveConcatPool2d(nn.Module):
    """Average and maximum over all positions, side by side: (B, C, H, W) to (B, 2 C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.amax((2, 3), keepdim=True), x.mean((2, 3), keepdim=True)], dim=1)


def create_body(arch: Arch | str, pretrained: bool = False, cut: int | None = None) -> nn.Module:
    """The convolutional part of `arch`: its children before `cut`, by default before the last
    pooling at the top level.

    Raises:
        UsageError: if the model has no pooling to cut at.
    """
    kwargs = {"weights": "DEFAULT" if pretrained else None}
    model = build_arch(arch, **kwargs) if isinstance(arch, str) else arch(**kwargs)
    children = list(model.children())
    if cut is None:
        pools = (i for i in reversed(range(len(children))) if _pools(children[i]))
        cut = next(pools, None)
    if cut is None:
        raise UsageError(
            f"{type(model).__name__} has no pooling layer at its top level, so where its body ends "
            "is unknown; give cut=, the number of children that make up the body."
        )
    return nn.Sequential(*children[:cut])


def _pools(module: nn.Module) -> bool:
    return any("Pool" in type(m).__name__ for m in module.modules())


def create_head(
    n_features: int, n_out: int, lin_ftrs: Sequence[int] = (512,), ps: float = 0.5
) -> nn.Sequential:
    """Pooling, then blocks of batch norm, dropout and a linear layer, with ReLU between them.

    Args:
        n_features: channels of the body's output.
        n_out: numbers to predict for an image.
        lin_ftrs: widths of the hidden layers.
        ps: dropout before the last layer; half of it before the others.
    """
    widths = [2 * n_features, *lin_ftrs, n_out]
    layers: list[nn.Module] = [AdaptiveConcatPool2d(), nn.Flatten()]
    for i, (n_in, n) in enumerate(pairwise(widths)):
        last = i == len(lin_ftrs)
        layers += [nn.BatchNorm1d(n_in), nn.Dropout(ps if last else ps / 2)]
        layers.append(nn.Linear(n_in, n, bias=False))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def init_weights(module: nn.Module, init: Callable[[Tensor], Any]) -> None:
    """Apply `init` to the matrices and kernels of all layers but norms; set their biases to 0."""
    for m in module.modules():
        weight, bias = getattr(m, "weight", None), getattr(m, "bias", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1:
            init(weight)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)


@register
def create_vision_model(
    arch: Arch | str,
    n_out: int,
    pretrained: bool = False,
    cut: int | None = None,
    init: Callable[[Tensor], Any] = nn.init.kaiming_normal_,
    custom_head: nn.Module | None = None,
    **head: Any,
) -> nn.Sequential:
    """The body of `arch` and a new head for `n_out` numbers: `model[0]` and `model[1]`.

    Keywords beyond these go to `create_head`.
    """
    body = create_body(arch, pretrained, cut)
    new_head = custom_head or create_head(n_features(body), n_out, **head)
    init_weights(new_head, init)
    model = nn.Sequential(body, new_head)
    # an export names the model by what makes it without its trained weights: it has its own
    plan = {"cut": cut, "custom_head": custom_head, **head}
    return remember(model, create_vision_model, arch, n_out, **plan)


def n_features(body: nn.Module) -> int:
    """The channels that a body gives for a picture, found by asking it on a small one."""
    mode = body.training
    with torch.no_grad():
        channels = int(body.eval()(torch.zeros(1, 3, 64, 64)).shape[1])
    body.train(mode)
    return channels


def body_head_split(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Two parameter groups: the body, and the head."""
    return [list(part.parameters()) for part in (model[0], model[1])]
