"""A small transformer decoder (arXiv 1706.03762), normalized before each part: the same learner
trains it, and what is particular to recurrent models does nothing."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from treadle.errors import UsageError
from treadle.registry import register

__all__ = ["CausalTransformer"]

_CONFIG: dict[str, Any] = {"emb_sz": 128, "n_layers": 3, "n_heads": 4, "pad_token": 1}


@register
class CausalTransformer(nn.Module):
    """Tokens (B, T) to features (B, T, emb_sz), of which each depends on its own token and on those
    before it in the window. Nothing is carried from window to window.

    Args:
        vocab_sz: how many tokens there are.
        emb_sz: features, a multiple of `2 * n_heads`.
        n_layers: blocks of attention and two linear layers.
        n_heads: heads of attention.
        pad_token: the token whose embedding is not trained; None if there is none.
        hidden_p: dropout after each part of a block, and after the embedding.

    Raises:
        UsageError: if the features do not divide by the heads.

    >>> CausalTransformer(vocab_sz=30, emb_sz=8)(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 8])
    """

    lm_config: ClassVar[dict[str, Any]] = {
        **_CONFIG,
        **{"hidden_p": 0.1, "output_p": 0.1, "tie_weights": True, "out_bias": True},
    }
    clas_config: ClassVar[dict[str, Any]] = {**_CONFIG, "hidden_p": 0.1, "output_p": 0.4}

    def __init__(
        self,
        vocab_sz: int,
        emb_sz: int = 128,
        n_layers: int = 3,
        n_heads: int = 4,
        pad_token: int | None = 1,
        hidden_p: float = 0.1,
    ) -> None:
        super().__init__()
        if emb_sz % (2 * n_heads):
            raise UsageError(
                f"emb_sz={emb_sz} does not divide into {n_heads} heads of an even number of "
                f"features; give a multiple of {2 * n_heads}."
            )
        self.width = emb_sz
        self.encoder = nn.Embedding(vocab_sz, emb_sz, padding_idx=pad_token)
        nn.init.normal_(self.encoder.weight, std=emb_sz**-0.5)
        self.drop = nn.Dropout(hidden_p)
        self.blocks = nn.ModuleList(_Block(emb_sz, n_heads, hidden_p) for _ in range(n_layers))
        self.norm = nn.LayerNorm(emb_sz)

    def reset(self) -> None:
        """Nothing: there is no state to forget."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(tokens) * math.sqrt(self.width)
        x = self.drop(x + _positions(tokens.shape[1], self.width).to(x))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def groups(self) -> list[nn.Module]:
        """The parts in the order in which they are unfrozen, the first last."""
        *first, last = self.blocks
        return [self.encoder, *first, nn.ModuleList([last, self.norm])]


class _Block(nn.Module):
    def __init__(self, width: int, n_heads: int, p: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wider, self.narrower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self._attention(self.norm1(x)))
        return x + self.drop(self.narrower(F.gelu(self.wider(self.norm2(x)))))  # type: ignore[no-any-return]

    def _attention(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(2, (3, self.n_heads, -1))  # (B, T, 3, heads, features)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _positions(length: int, width: int) -> Tensor:
    """Sines and cosines of the place in the window, (T, width), as in section 3.5 of the paper."""
    places = torch.arange(length, dtype=torch.float64)[:, None]
    waves = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.cat([(places * waves).sin(), (places * waves).cos()], dim=1)
