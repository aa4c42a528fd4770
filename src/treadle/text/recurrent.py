"""A plain recurrent encoder: an embedding and an LSTM or a GRU whose state goes on from batch to
batch."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from treadle.errors import UsageError
from treadle.registry import register
from treadle.text.state import detached, zeros_or_carried

__all__ = ["PlainRNN"]

_KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
_CONFIG: dict[str, Any] = {"n_hid": 64, "n_layers": 2, "kind": "LSTM", "pad_token": 1}


@register
class PlainRNN(nn.Module):
    """Tokens (B, T) to features (B, T, n_hid), by `nn.LSTM` or `nn.GRU` with nothing added.

    Args:
        vocab_sz: how many tokens there are.
        n_hid: features of an embedding and of each layer.
        n_layers: how many layers.
        kind: "LSTM" or "GRU".
        pad_token: the token whose embedding is not trained; None if there is none.

    Raises:
        UsageError: if `kind` is neither.

    >>> import torch
    >>> PlainRNN(vocab_sz=30, n_hid=8, kind="GRU")(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 8])
    """

    lm_config: ClassVar[dict[str, Any]] = {
        **_CONFIG,
        **{"output_p": 0.0, "tie_weights": True, "out_bias": True},
    }
    clas_config: ClassVar[dict[str, Any]] = {**_CONFIG, "output_p": 0.0}
    hidden: tuple[Tensor, ...] | None

    def __init__(
        self,
        vocab_sz: int,
        n_hid: int = 64,
        n_layers: int = 2,
        kind: str = "LSTM",
        pad_token: int | None = 1,
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise UsageError(f'kind={kind!r} is unknown; give "LSTM" or "GRU".')
        self.width, self.n_states = n_hid, 2 if kind == "LSTM" else 1
        self.encoder = nn.Embedding(vocab_sz, n_hid, padding_idx=pad_token)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        self.rnn = _KINDS[kind](n_hid, n_hid, n_layers, batch_first=True)
        self.reset()

    def reset(self) -> None:
        """Forget the hidden state."""
        self.hidden = None

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(tokens)
        n, width = self.rnn.num_layers, self.width
        before = self.hidden or (None,) * self.n_states
        state = tuple(zeros_or_carried(part, x, n, width) for part in before)
        out: Tensor
        out, new = self.rnn(x, state if len(state) > 1 else state[0])
        self.hidden = detached(new if len(state) > 1 else (new,))
        return out

    def groups(self) -> list[nn.Module]:
        """The parts in the order in which they are unfrozen, the first last."""
        return [self.encoder, self.rnn]
