"""Train on images with a box of another image in them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Dirichlet

from treadle.errors import UsageError
from treadle.loop.events import Callback
from treadle.loop.nested import map_tensors


class CutMix(Callback):
    """Pastes the same box of other images of the batch into each image, and mixes the losses of
    both targets by the areas (arXiv 1905.04899).

    The box has the share `1 - lam` of height times width and the proportions of the image, `lam`
    drawn from Beta(alpha, alpha), and a random centre; what lies beyond the border is cut off, and
    `lam` becomes the share of the image that is left in fact. One box serves a batch.

    Takes batches with one input (batch, ..., height, width) and any targets that stand for a whole
    image. The loss may be any: its values for both targets are mixed. Validation is as without it.

    Random numbers are drawn on the batch's device, from torch's generator there.

    Args:
        alpha: the greater, the more often the box takes about half of the image; above 0.

    Raises:
        UsageError: if `alpha` is not above 0; at a batch, if the input is not one tensor as above.

    >>> cut = CutMix(alpha=1.0)
    """

    order = -1  # mixes the loss before others add to it
    run_valid = False

    def __init__(self, alpha: float = 1.0) -> None:
        if not alpha > 0:
            raise UsageError(f"CutMix(alpha={alpha}) draws from Beta(alpha, alpha); give above 0.")
        self.alpha = alpha

    def before_batch(self) -> None:
        x = self.x
        if not isinstance(x, Tensor) or x.ndim < 3:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise UsageError(
                f"CutMix pastes into one input of shape (batch, ..., height, width), and got "
                f"{got}; write a callback that pastes where it makes sense in these data."
            )
        height, width = x.shape[-2:]
        # Of two shares that add up to 1, as Dirichlet gives, each is drawn from Beta. To check its
        # arguments would wait for the device, as would a slice between bounds that were drawn.
        alphas = torch.full((2,), self.alpha, device=x.device)
        side = Dirichlet(alphas, validate_args=False).sample()[0].sqrt()
        box = _interval(height, side)[:, None] & _interval(width, side)
        others = torch.rand(len(x), device=x.device).argsort()
        self.lam = 1 - box.float().mean()
        self.learn.x = torch.where(box, x[others], x)
        self.other_yb = map_tensors(lambda y: y[others], self.yb)

    def after_loss(self) -> None:
        other = self.loss_func(self.pred, *self.other_yb)
        self.learn.loss = torch.lerp(other, self.loss_grad, self.lam.to(other.dtype))


def _interval(size: int, share: Tensor) -> Tensor:
    """Which of `size` positions lie in an interval of that share of them about a random centre."""
    centre = torch.rand((), device=share.device) * size
    positions = torch.arange(size, device=share.device) + 0.5
    return (positions - centre).abs() < share * size / 2
