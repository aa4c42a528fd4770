"""Learners for images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from treadle.errors import UsageError
from treadle.learner import Learner
from treadle.vision.models import Arch, body_head_split, create_vision_model


def vision_learner(
    dls: Any,
    arch: Arch | str,
    n_out: int | None = None,
    pretrained: bool = True,
    cut: int | None = None,
    init: Callable[[Tensor], Any] = nn.init.kaiming_normal_,
    custom_head: nn.Module | None = None,
    splitter: Callable[[Any], Any] = body_head_split,
    lin_ftrs: tuple[int, ...] = (512,),
    ps: float = 0.5,
    **kwargs: Any,
) -> Learner:
    """A learner for images: the body of `arch` under a new head with one output a class.

    Args:
        dls: loaders of images (B, 3, H, W).
        arch: `resnet34` and its family, a torchvision model's name, or a function
            `arch(weights=...)` that builds a model.
        n_out: numbers to predict; by default the number of classes, `dls.c`.
        pretrained: start from weights trained on ImageNet (downloaded once) and train only the
            head until `unfreeze`; `fine_tune` does both in turn.
        cut, init, custom_head, lin_ftrs, ps: see `treadle.vision.models`.
        kwargs: those of `Learner`.

    Raises:
        UsageError: if `arch` is unknown, or the number of outputs is.
        DownloadError: if trained weights cannot be had.
    """
    n_out = n_out or getattr(dls, "c", None)
    if not n_out:
        raise UsageError("the data do not say how many classes there are; give n_out=.")
    model = create_vision_model(
        arch, n_out, pretrained, cut, init, custom_head, lin_ftrs=lin_ftrs, ps=ps
    )
    learn = Learner(dls, model, splitter=splitter, **kwargs)
    if pretrained:
        learn.freeze()
    return learn


cnn_learner = vision_learner  # the book's name
