"""Losses that know what their outputs mean.

Beside the number to minimise, a loss here has `activation` (raw outputs to probabilities or
values) and `decodes` (raw outputs to the answer), so that `get_preds`, `predict` and the report
need not be told. Any other callable `loss(pred, *targets)` is welcome as a loss too.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from treadle.errors import UsageError
from treadle.registry import register


@register
class CrossEntropyLossFlat(nn.CrossEntropyLoss):
    """Cross entropy over the classes on `axis`, every other axis flattened into the batch.

    Takes raw scores of shape (N, ..., C) and class indices of shape (N, ...), dtype int64.
    Keywords are those of `torch.nn.CrossEntropyLoss`.

    >>> import torch
    >>> loss = CrossEntropyLossFlat()
    >>> float(loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1])))
    0.6931471824645996
    """

    def __init__(self, axis: int = -1, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.axis = axis

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if not isinstance(input, Tensor):
            raise UsageError(
                f"cross entropy got a {type(input).__name__} of several parts; expected the "
                "scores alone. For a model that gives (scores, raw outputs, outputs) add "
                "RNNCallback(), or cbs=rnn_cbs(alpha, beta), which takes them apart."
            )
        scores = input.movedim(self.axis, -1)
        return super().forward(scores.reshape(-1, scores.shape[-1]), target.reshape(-1))

    def activation(self, out: Tensor) -> Tensor:
        """Probabilities, same shape as `out`."""
        return F.softmax(out, dim=self.axis)

    def decodes(self, out: Tensor) -> Tensor:
        """The most probable class, int64, without the class axis."""
        return out.argmax(dim=self.axis)


@register
class LabelSmoothingCrossEntropy(CrossEntropyLossFlat):
    """Cross entropy against targets of which `eps` is spread evenly over all classes
    (arXiv 1512.00567, section 7)."""

    def __init__(self, eps: float = 0.1, axis: int = -1, **kwargs: object) -> None:
        super().__init__(axis=axis, label_smoothing=eps, **kwargs)


@register
class BCEWithLogitsLossFlat(nn.BCEWithLogitsLoss):
    """Binary cross entropy of several classes, any number of which may be there at once.

    Takes raw scores (N, ..., C) and as many targets in [0, 1], of any dtype. `thresh` is the
    probability above which a class counts as there. Keywords are those of
    `torch.nn.BCEWithLogitsLoss`.

    >>> import torch
    >>> loss = BCEWithLogitsLossFlat()
    >>> float(loss(torch.zeros(1, 2), torch.tensor([[0, 1]])))
    0.6931471824645996
    >>> loss.decodes(torch.tensor([[-1.0, 2.0]])).tolist()
    [[False, True]]
    """

    def __init__(self, thresh: float = 0.5, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.thresh = thresh

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target.reshape(input.shape).to(input.dtype))

    def activation(self, out: Tensor) -> Tensor:
        """Probabilities, same shape as `out`, each class on its own."""
        return out.sigmoid()

    def decodes(self, out: Tensor) -> Tensor:
        """Whether each class is there, bool, same shape as `out`."""
        return out.sigmoid() > self.thresh


@register
class MSELossFlat(nn.MSELoss):
    """Mean squared error of two tensors with the same number of elements, flattened."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.reshape(-1), target.reshape(-1).to(input.dtype))

    def activation(self, out: Tensor) -> Tensor:
        """The values themselves."""
        return out

    def decodes(self, out: Tensor) -> Tensor:
        """The values themselves."""
        return out
