"""The dropouts of AWD-LSTM: masks that are drawn once for a sequence, a word or a matrix
(arXiv 1708.02182, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EmbeddingDropout", "RNNDropout", "WeightDropLSTM", "dropout_mask"]


def dropout_mask(x: Tensor, size: tuple[int, ...], p: float) -> Tensor:
    """A mask of `size`, of the type and on the device of `x`: 0 with probability `p`, otherwise
    1 / (1 - p)."""
    return F.dropout(torch.ones(size, dtype=x.dtype, device=x.device), p)


class RNNDropout(nn.Module):
    """Dropout of features for a whole sequence: (B, T, F) with one mask (B, 1, F) for all times.

    >>> out = RNNDropout(0.5)(torch.ones(4, 7, 8))
    >>> bool((out == out[:, :1]).all())
    True
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * dropout_mask(x, (x.shape[0], 1, x.shape[2]), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class EmbeddingDropout(nn.Module):
    """An embedding in which whole words are dropped, wherever in the batch they stand.

    Takes tokens (B, T), gives (B, T, F).
    """

    def __init__(self, emb: nn.Embedding, embed_p: float) -> None:
        super().__init__()
        self.emb, self.embed_p = emb, embed_p

    def forward(self, words: Tensor) -> Tensor:
        embedded: Tensor = self.emb(words)
        if not self.training or self.embed_p == 0:
            return embedded
        # A mask for each word of the vocabulary; only those that are there are multiplied.
        mask = dropout_mask(embedded, (self.emb.num_embeddings, 1), self.embed_p)
        return embedded * mask[words]

    def extra_repr(self) -> str:
        return f"embed_p={self.embed_p}"


class WeightDropLSTM(nn.LSTM):
    """An LSTM whose hidden-to-hidden weights are dropped out while it trains: entries of the
    matrix, one mask for all times of a call. The gradient reaches the weights as they are stored.

    `weight_p` is the probability; the other arguments are those of `nn.LSTM`. Input and output are
    (B, T, F).
    """

    def __init__(self, input_size: int, hidden_size: int, weight_p: float = 0.5) -> None:
        super().__init__(input_size, hidden_size, batch_first=True)
        self.weight_p = weight_p

    def flatten_parameters(self) -> None:
        """Nothing: what runs is a new matrix each time, which cannot lie beside the others."""

    def forward(  # type: ignore[override]
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        ((w_ih, w_hh, b_ih, b_hh),) = self.all_weights
        weights = [w_ih, F.dropout(w_hh, self.weight_p, self.training), b_ih, b_hh]
        out, h, c = torch.lstm(x, state, weights, True, 1, 0.0, self.training, False, True)
        return out, (h, c)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_p={self.weight_p}"
