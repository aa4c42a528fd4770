"""AWD-LSTM: a stack of LSTMs with all of their connections regularized (arXiv 1708.02182)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from treadle.registry import register
from treadle.text.dropout import EmbeddingDropout, RNNDropout, WeightDropLSTM
from treadle.text.state import detached, zeros_or_carried

__all__ = ["AWD_LSTM", "awd_lstm_clas_config", "awd_lstm_lm_config"]

_SIZES: dict[str, Any] = {"emb_sz": 400, "n_hid": 1152, "n_layers": 3, "pad_token": 1}
awd_lstm_lm_config: dict[str, Any] = {
    **_SIZES,
    **{"output_p": 0.1, "hidden_p": 0.15, "input_p": 0.25, "embed_p": 0.02, "weight_p": 0.2},
    **{"tie_weights": True, "out_bias": True},
}
awd_lstm_clas_config: dict[str, Any] = {
    **_SIZES,
    **{"output_p": 0.4, "hidden_p": 0.3, "input_p": 0.4, "embed_p": 0.05, "weight_p": 0.5},
}


@register
class AWD_LSTM(nn.Module):
    """Tokens (B, T) to features (B, T, emb_sz); the state goes on from call to call.

    Args:
        vocab_sz: how many tokens there are.
        emb_sz: features of an embedding, and of the output.
        n_hid: features between the layers.
        n_layers: how many LSTMs.
        pad_token: the token whose embedding is not trained; None if there is none.
        hidden_p: dropout between layers, one mask for all times.
        input_p: dropout of the embeddings, one mask for all times.
        embed_p: dropout of whole words.
        weight_p: dropout of the hidden-to-hidden weights.

    >>> import torch
    >>> model = AWD_LSTM(vocab_sz=10, emb_sz=4, n_hid=6, n_layers=2).eval()
    >>> text = torch.tensor([[2, 5, 3, 9]])
    >>> whole = model(text)
    >>> model.reset()
    >>> parts = torch.cat([model(text[:, :2]), model(text[:, 2:])], dim=1)
    >>> torch.allclose(parts, whole, atol=1e-6)
    True
    """

    lm_config: ClassVar[dict[str, Any]] = awd_lstm_lm_config
    clas_config: ClassVar[dict[str, Any]] = awd_lstm_clas_config
    hidden: list[tuple[Tensor, ...]]
    rnns: Any  # a ModuleList says nothing of what is in it

    def __init__(
        self,
        vocab_sz: int,
        emb_sz: int = 400,
        n_hid: int = 1152,
        n_layers: int = 3,
        pad_token: int | None = 1,
        hidden_p: float = 0.2,
        input_p: float = 0.6,
        embed_p: float = 0.1,
        weight_p: float = 0.5,
    ) -> None:
        super().__init__()
        self.width = emb_sz
        self.encoder = nn.Embedding(vocab_sz, emb_sz, padding_idx=pad_token)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        self.encoder_dp = EmbeddingDropout(self.encoder, embed_p)
        self.input_dp = RNNDropout(input_p)
        widths = [emb_sz, *[n_hid] * (n_layers - 1), emb_sz]
        self.rnns = nn.ModuleList(WeightDropLSTM(i, o, weight_p) for i, o in pairwise(widths))
        self.hidden_dps = nn.ModuleList(RNNDropout(hidden_p) for _ in range(n_layers - 1))
        self.reset()

    def reset(self) -> None:
        """Forget the hidden state."""
        self.hidden = []

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.input_dp(self.encoder_dp(tokens))
        before: list[Any] = self.hidden or [(None, None)] * len(self.rnns)
        self.hidden = []
        for layer, (rnn, (h, c)) in enumerate(zip(self.rnns, before, strict=True)):
            if layer:
                x = self.hidden_dps[layer - 1](x)
            state = tuple(zeros_or_carried(part, x, 1, rnn.hidden_size) for part in (h, c))
            x, state = rnn(x, state)
            self.hidden.append(detached(state))
        return x

    def groups(self) -> list[nn.Module]:
        """The parts in the order in which they are unfrozen, the first last."""
        return [self.encoder, *self.rnns]
