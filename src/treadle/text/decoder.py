"""From features to scores of each token, and the language model of encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from treadle.errors import UsageError, nearest
from treadle.registry import register
from treadle.text.dropout import RNNDropout
from treadle.text.scores import scores
from treadle.text.state import nothing

__all__ = ["LinearDecoder", "SequentialRNN", "get_language_model", "settings", "split_lm"]


class LinearDecoder(nn.Module):
    """Features (B, T, n_hid) to (scores (B, T, n_out), [features], [features after dropout]): the
    three parts that `RNNCallback` takes apart. The lists are of layers, and hold the last.

    Args:
        n_out: how many tokens there are.
        n_hid: features.
        output_p: dropout of the features, one mask for all times.
        tie_encoder: the embedding whose weights are the decoder's too (arXiv 1608.05859).
        bias: whether each token has a bias.
    """

    def __init__(
        self,
        n_out: int,
        n_hid: int,
        output_p: float = 0.1,
        tie_encoder: nn.Embedding | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.decoder = nn.Linear(n_hid, n_out, bias=bias)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        if bias:
            nn.init.zeros_(self.decoder.bias)
        if tie_encoder is not None:
            self.decoder.weight = tie_encoder.weight
        self.output_dp = RNNDropout(output_p)

    def forward(self, raw: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        out = self.output_dp(raw)
        return scores(out, self.decoder.weight, self.decoder.bias), [raw], [out]


class SequentialRNN(nn.Sequential):
    """Parts one after another; `reset` makes those forget their state that have one."""

    def reset(self) -> None:
        """Forget the hidden state."""
        for part in self.children():
            getattr(part, "reset", nothing)()


@register
def get_language_model(
    arch: Callable[..., nn.Module],
    vocab_sz: int,
    config: dict[str, Any] | None = None,
    drop_mult: float = 1.0,
) -> SequentialRNN:
    """`arch` and a `LinearDecoder`: tokens (B, T) to what that gives.

    Args:
        arch: `AWD_LSTM`, `PlainRNN`, `CausalTransformer`, or a class like these: with `encoder`
            (its embedding), `width` (its features), `reset()`, `groups()`, and the numbers that it
            is made with unless others are given, `lm_config` and `clas_config`.
        vocab_sz: how many tokens there are.
        config: numbers in the place of those of `arch.lm_config`.
        drop_mult: what all dropout probabilities are multiplied by.

    Raises:
        UsageError: if `config` has a name that `arch` does not know.
    """
    config = settings(arch, "lm_config", config, drop_mult)
    output_p, tied, bias = (config.pop(name) for name in ("output_p", "tie_weights", "out_bias"))
    encoder: Any = arch(vocab_sz, **config)
    embedding = encoder.encoder if tied else None
    return SequentialRNN(encoder, LinearDecoder(vocab_sz, encoder.width, output_p, embedding, bias))


def settings(
    arch: Any, kind: str, given: dict[str, Any] | None, drop_mult: float
) -> dict[str, Any]:
    """The numbers to make a model with: those of `arch`, but for those that are given, and dropout
    probabilities (`..._p`) times `drop_mult`.

    Raises:
        UsageError: for a name that `arch` does not know, with the nearest, and for an `arch` that
            has no such numbers.
    """
    own = getattr(arch, kind, None)
    if own is None:
        raise UsageError(
            f"arch={getattr(arch, '__name__', arch)!r} has no {kind}; give AWD_LSTM, PlainRNN, "
            "CausalTransformer, or a class of yours made as these are."
        )
    for name in given or {}:
        if name not in own:
            raise UsageError(
                f"config has {name!r}, which {arch.__name__} lacks; {nearest(name, own)}"
            )
    merged = {**own, **(given or {})}
    return {k: v * drop_mult if k.endswith("_p") else v for k, v in merged.items()}


def split_lm(model: Any) -> list[list[nn.Parameter]]:
    """Parameter groups of a language model: each layer, and last the embedding with the decoder,
    which learn the words of a new vocabulary."""
    embedding, *layers = model[0].groups()
    head = nn.ModuleList([embedding, model[1]])
    return [list(part.parameters()) for part in (*layers, head)]
