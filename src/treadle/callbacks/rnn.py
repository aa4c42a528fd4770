"""What recurrent language models need: a fresh state, their raw outputs, and a price on those.

The regularization is that of arXiv 1708.02182, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from treadle.errors import CallbackError
from treadle.loop.events import Callback
from treadle.loop.nested import map_tensors


class ModelResetter(Callback):
    """Calls `model.reset()` before each training pass and each validation, and after the fit, so
    that no hidden state leads from one text into another.

    A checkpoint in the middle of an epoch holds the hidden state: whatever tensors the model's
    modules keep beside their parameters and buffers, alone or in lists and tuples.
    """

    def before_train(self) -> None:
        self._reset()

    def before_validate(self) -> None:
        self._reset()

    def after_fit(self) -> None:
        self._reset()

    def _reset(self) -> None:
        if not hasattr(self.model, "reset"):
            raise CallbackError(
                f"ModelResetter calls model.reset(), which {type(self.model).__name__} lacks; "
                "write one that forgets the hidden state, or leave ModelResetter out."
            )
        self.model.reset()

    def state_dict(self) -> dict[str, Any]:
        return {"carried": {at: getattr(m, name) for at, m, name in _carried(self.model)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for at, value in state["carried"].items():
            module, _, name = at.rpartition(".")
            setattr(self.model.get_submodule(module), name, value)


def _carried(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The attributes that hold such tensors: path, module and name of each."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            found: list[Tensor] = []
            map_tensors(found.append, value)
            if found and name[0] != "_" and not any(isinstance(t, nn.Parameter) for t in found):
                yield f"{path}.{name}" if path else name, module, name


class RNNCallback(Callback):
    """Takes apart what the model returns: (decoded, raw outputs, outputs after dropout).

    The first becomes `learn.pred`; the others are `learn.rnn.raw_out` and `learn.rnn.out`, both
    (batch, time, features). Where a part is a list with one entry a layer, the last layer counts.
    """

    def after_pred(self) -> None:
        parts = self.pred
        if not isinstance(parts, (tuple, list)) or len(parts) != 3:
            got = f"{len(parts)} parts" if isinstance(parts, (tuple, list)) else "one part"
            raise CallbackError(
                f"RNNCallback takes apart what the model returns, and got {got} instead of three; "
                "return (decoded, raw_outputs, outputs), or leave RNNCallback out."
            )
        self.learn.pred, self.raw_out, self.out = map(_last_layer, parts)


def _last_layer(part: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return part[-1] if isinstance(part, (list, tuple)) else part


class RNNRegularizer(Callback):
    """Adds to the loss that is differentiated, not to the one that is reported:

    - `alpha` times the mean square of the outputs after dropout (activation regularization), and
    - `beta` times the mean square of the differences of raw outputs at successive times
      (temporal activation regularization).

    Raises:
        CallbackError: when a fit starts, if there is no `RNNCallback` on the learner.
    """

    order = RNNCallback.order + 1
    run_valid = False

    def __init__(self, alpha: float = 0.0, beta: float = 0.0) -> None:
        self.alpha, self.beta = alpha, beta

    def before_fit(self) -> None:
        if getattr(self.learn, "rnn", None) is None:
            raise CallbackError(
                "RNNRegularizer needs the outputs that RNNCallback takes apart; add RNNCallback() "
                "too, or give the learner cbs=rnn_cbs(alpha, beta)."
            )

    def after_loss(self) -> None:
        out, raw = self.rnn.out, self.rnn.raw_out
        if self.alpha:
            self.learn.loss_grad = self.loss_grad + self.alpha * out.square().mean()
        if self.beta and raw.shape[1] > 1:
            steps = raw[:, 1:] - raw[:, :-1]
            self.learn.loss_grad = self.loss_grad + self.beta * steps.square().mean()


def rnn_cbs(alpha: float = 0.0, beta: float = 0.0) -> list[Callback]:
    """The callbacks of a recurrent language model, with the regularizer if it has a weight.

    >>> rnn_cbs(alpha=2, beta=1)
    [ModelResetter, RNNCallback, RNNRegularizer]
    """
    cbs: list[Callback] = [ModelResetter(), RNNCallback()]
    return [*cbs, RNNRegularizer(alpha, beta)] if alpha or beta else cbs
