"""A text classifier: an encoder that reads documents window by window, and a head over all of it
(arXiv 1801.06146, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from treadle.errors import UsageError
from treadle.registry import register
from treadle.text.decoder import SequentialRNN, settings
from treadle.text.state import nothing

__all__ = [
    "PoolingLinearClassifier",
    "SentenceEncoder",
    "get_text_classifier",
    "masked_concat_pool",
    "split_clas",
]

Answer = tuple[Tensor, list[Tensor], list[Tensor]]


class SentenceEncoder(nn.Module):
    """Reads whole documents by an encoder of windows.

    Takes tokens (B, T), padded at the end, and lengths (B,); without lengths, what `pad_idx` ends a
    row with counts as padding. Gives the features (B, T, F), zero where nothing was read, and which
    of them count, bool (B, T). What a document gives does not depend on its padding or on the
    others of the batch.

    Args:
        bptt: tokens of a window.
        module: the encoder, with a state that goes on from window to window.
        pad_idx: the token that documents are padded with.
        max_len: the features of how many tokens count, the last ones of a document; the tokens
            before them are read, but nothing is learnt from them. None for all.
    """

    def __init__(
        self, bptt: int, module: nn.Module, pad_idx: int = 1, max_len: int | None = None
    ) -> None:
        super().__init__()
        self.bptt, self.module, self.pad_idx, self.max_len = bptt, module, pad_idx, max_len

    def reset(self) -> None:
        """Forget the hidden state."""
        getattr(self.module, "reset", nothing)()

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if lengths is None:
            lengths = _length(tokens != self.pad_idx)
        lengths = lengths.to(tokens.device).clamp(1, tokens.shape[1])
        # The longest first: those that a window still reads are the first rows, with their state.
        order = lengths.argsort(descending=True, stable=True)
        features = self._read(tokens[order], lengths[order])[order.argsort()]
        place = torch.arange(tokens.shape[1], device=tokens.device)
        counts = place < lengths[:, None]
        if self.max_len is not None:
            counts &= place >= lengths[:, None] - self.max_len
        return features.masked_fill(~counts[:, :, None], 0.0), counts

    def _read(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        self.reset()
        ends = lengths.tolist()  # waits for the device
        windows: list[Tensor] = []
        for start in range(0, tokens.shape[1], self.bptt):
            window = tokens[:, start : start + self.bptt]
            rows = sum(end > start for end in ends)
            if not rows:
                windows.append(windows[0].new_zeros(*window.shape, windows[0].shape[2]))
                continue
            unread = (
                self.max_len is not None and start + self.bptt <= min(ends[:rows]) - self.max_len
            )
            with torch.set_grad_enabled(torch.is_grad_enabled() and not unread):
                out = self.module(window[:rows])
            missing = len(window) - rows
            windows.append(torch.cat([out, out.new_zeros(missing, *out.shape[1:])]))
        self.reset()
        return torch.cat(windows, dim=1)


def _length(real: Tensor) -> Tensor:
    """The number of tokens up to the last that is real, (B,)."""
    place = torch.arange(1, real.shape[1] + 1, device=real.device)
    return (place * real).amax(1)


def masked_concat_pool(features: Tensor, counts: Tensor) -> Tensor:
    """The last of the features that count, their maximum, and their mean, side by side: (B, T, F)
    and bool (B, T) to (B, 3 F).

    >>> features = torch.tensor([[[1.0], [3.0], [2.0], [9.0]]])
    >>> masked_concat_pool(features, torch.tensor([[True, True, True, False]]))
    tensor([[2., 3., 2.]])
    """
    mask = counts[:, :, None]
    last = features[torch.arange(len(features)), _length(counts) - 1]
    largest = features.masked_fill(~mask, -torch.inf).amax(1)
    mean = features.masked_fill(~mask, 0.0).sum(1) / counts.sum(1, keepdim=True)
    return torch.cat([last, largest, mean], dim=1)


class PoolingLinearClassifier(nn.Module):
    """Pools what `SentenceEncoder` gives, then blocks of batch norm, dropout and a linear layer,
    with ReLU between them. Gives (scores (B, C), [features], [features]), as `LinearDecoder` does.

    Args:
        dims: widths: three times the encoder's, those of the hidden layers, the number of classes.
        ps: dropout before each layer.

    Raises:
        UsageError: if there are not as many dropouts as layers.
    """

    def __init__(self, dims: Sequence[int], ps: Sequence[float]) -> None:
        super().__init__()
        if len(ps) != len(dims) - 1:
            raise UsageError(
                f"the head has {len(dims) - 1} layers and got {len(ps)} dropouts; give one for "
                "each layer of lin_ftrs in ps=."
            )
        layers: list[nn.Module] = []
        for (n_in, n), p in zip(pairwise(dims), ps, strict=True):
            layers += [nn.BatchNorm1d(n_in), nn.Dropout(p), nn.Linear(n_in, n), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, read: tuple[Tensor, Tensor]) -> Answer:
        features, counts = read
        return self.layers(masked_concat_pool(features, counts)), [features], [features]


class TextClassifier(SequentialRNN):
    """A `SentenceEncoder` and a head, for tokens (B, T) and lengths (B,)."""

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Answer:
        encoder, head = self
        answer: Answer = head(encoder(tokens, lengths))
        return answer


@register
def get_text_classifier(
    arch: Callable[..., nn.Module],
    vocab_sz: int,
    n_class: int,
    seq_len: int = 72,
    config: dict[str, Any] | None = None,
    drop_mult: float = 1.0,
    lin_ftrs: Sequence[int] = (50,),
    ps: Sequence[float] | None = None,
    pad_idx: int = 1,
    max_len: int | None = 72 * 20,
) -> TextClassifier:
    """`arch` in a `SentenceEncoder`, and a `PoolingLinearClassifier` with `n_class` outputs.

    Args:
        arch, vocab_sz, config, drop_mult: those of `get_language_model`, for `arch.clas_config`.
        n_class: numbers to predict.
        seq_len: tokens of a window.
        lin_ftrs: widths of the hidden layers of the head.
        ps: dropout before each but the first of the head's layers; before that it is `output_p`.
        pad_idx, max_len: those of `SentenceEncoder`.

    Raises:
        UsageError: if `config` has a name that `arch` does not know, or `ps` and `lin_ftrs` are
            not of one length.
    """
    config = settings(arch, "clas_config", config, drop_mult)
    output_p = config.pop("output_p")
    encoder: Any = arch(vocab_sz, **config)
    ps = [0.1] * len(lin_ftrs) if ps is None else ps
    head = PoolingLinearClassifier([3 * encoder.width, *lin_ftrs, n_class], [output_p, *ps])
    return TextClassifier(SentenceEncoder(seq_len, encoder, pad_idx, max_len), head)


def split_clas(model: Any) -> list[list[nn.Parameter]]:
    """Parameter groups of a text classifier: the embedding, each layer, the head."""
    return [list(part.parameters()) for part in (*model[0].module.groups(), model[1])]
