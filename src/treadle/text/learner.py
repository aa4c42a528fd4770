"""Learners for text: language models and classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from treadle.callbacks.rnn import rnn_cbs
from treadle.errors import UsageError
from treadle.learner import Learner
from treadle.metrics import accuracy, perplexity
from treadle.registry import register
from treadle.text.awd_lstm import AWD_LSTM
from treadle.text.classifier import get_text_classifier, split_clas
from treadle.text.decoder import get_language_model, split_lm
from treadle.text.encoder_file import load_encoder, save_encoder
from treadle.text.generate import choose, generated
from treadle.text.scores import TokenCrossEntropy

__all__ = ["LMLearner", "TextLearner", "language_model_learner", "text_classifier_learner"]

Arch = Callable[..., nn.Module]

_BEGINNING = 20  # tokens of a text that a sample goes on with


@register
class TextLearner(Learner):
    """A learner with `rnn_cbs(alpha, beta)`, whose encoder is saved and loaded on its own.

    Further arguments are those of `Learner`. The momenta of one cycle are lower than for images.
    """

    def __init__(
        self,
        dls: Any,
        model: nn.Module,
        loss_func: Any = None,
        *,
        alpha: float = 2.0,
        beta: float = 1.0,
        moms: tuple[float, float, float] = (0.8, 0.7, 0.8),
        **kwargs: Any,
    ) -> None:
        super().__init__(dls, model, loss_func, moms=moms, **kwargs)
        self.add_cbs(rnn_cbs(alpha, beta))

    def save_encoder(self, file: str) -> Path:
        """Write the encoder and its vocabulary to `path/model_dir/file.safetensors`."""
        return save_encoder(self._encoder, _text_vocab(self.dls), self._weights_file(file))

    def load_encoder(self, file: str) -> Self:
        """Read an encoder that `save_encoder` wrote, of a learner with the same `arch` and
        `config`, and train only the last parameter group until `unfreeze` or `freeze_to`.

        Where the vocabularies differ, each token finds its own row of the embedding, and a new one
        begins with the mean of all.

        Raises:
            DataError: if the file is missing or damaged, or does not fit.
        """
        load_encoder(self._encoder, _text_vocab(self.dls), self._weights_file(file))
        self.freeze()
        return self

    @property
    def _encoder(self) -> nn.Module:
        first: Any = self.model[0]  # type: ignore[index]
        return getattr(first, "module", first)  # type: ignore[no-any-return]


@register
class LMLearner(TextLearner):
    """A learner of a language model, which goes on with a text."""

    def predict(  # type: ignore[override]
        self,
        text: str,
        n_words: int = 1,
        no_unk: bool = True,
        temperature: float = 1.0,
        min_p: float | None = None,
        decoder: Callable[[Sequence[str]], Sequence[str]] | None = None,
        seed: int | None = None,
    ) -> str:
        """`text` and `n_words` tokens that may come after it.

        Args:
            text: the beginning.
            n_words: how many tokens to draw.
            no_unk: do not draw the unknown token.
            temperature: below 1 for more likely words, above 1 for more surprising ones.
            min_p: do not draw tokens that are less probable.
            decoder: makes of the tokens words, which are joined by spaces; by default the text
                is made as its tokenizer does (`decode_spec_tokens` undoes `xxmaj` and the like).
            seed: what determines the draws; without it torch's generator does.

        Raises:
            UsageError: if `temperature` is not above 0, or `text` has no token.
        """
        numbers = _numbers(self.dls, text)
        if not numbers:
            raise UsageError("there is no word to go on from; give a text of one at least.")
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        unk = _unk(self.dls) if no_unk else None
        draw = partial(choose, temperature=temperature, min_p=min_p, never=unk, generator=generator)
        numbers += self._generated(numbers, n_words, draw)
        return _text(self.dls, numbers, decoder)

    def sample_texts(self, n: int = 3, n_words: int = 60) -> list[str]:
        """`n` beginnings of rows of the validation text, and what the model goes on with; the same
        ones each time. For a report."""
        texts = []
        for row, numbers in enumerate(self._beginnings(n)):
            draw = partial(
                choose,
                temperature=0.8,
                never=_unk(self.dls),
                generator=torch.Generator().manual_seed(row),
            )
            more = self._generated(numbers, n_words, draw)
            texts.append(_text(self.dls, numbers + more, None))
        return texts

    def _beginnings(self, n: int) -> list[list[int]]:
        valid = self.dls.valid
        batch = valid.one_batch() if hasattr(valid, "one_batch") else next(iter(valid), None)
        return [] if batch is None else batch[0][:n, :_BEGINNING].tolist()

    def _generated(self, numbers: list[int], n: int, draw: Callable[[Tensor], int]) -> list[int]:
        self._settle()
        training = self.model.training
        try:
            with torch.no_grad():
                return generated(self.precision.forward, self.model.eval(), numbers, n, draw)
        finally:
            self.model.train(training)


def language_model_learner(
    dls: Any,
    arch: Arch = AWD_LSTM,
    config: dict[str, Any] | None = None,
    drop_mult: float = 1.0,
    pretrained: bool = False,
    loss_func: Any = None,
    metrics: Any = (accuracy, perplexity),
    **kwargs: Any,
) -> LMLearner:
    """A learner that foretells the next token, with state carried from batch to batch.

    Args:
        dls: loaders of tokens (B, T) and the tokens that follow (B, T), in which row i of a batch
            goes on from row i of the batch before.
        arch, config, drop_mult: those of `get_language_model`.
        pretrained: there are no trained weights to begin with; `load_encoder` reads your own.
        loss_func: by default the cross entropy of a token.
        kwargs: those of `Learner`, and `alpha` and `beta` (see `RNNRegularizer`).

    Raises:
        UsageError: for a `config` that `arch` does not know, and for `pretrained=True`.
    """
    _check_pretrained(pretrained)
    config = _with_padding(dls, arch, config)
    model = get_language_model(arch, len(_text_vocab(dls)), config, drop_mult)
    loss_func = loss_func or TokenCrossEntropy()
    return LMLearner(dls, model, loss_func, splitter=split_lm, metrics=metrics, **kwargs)


def text_classifier_learner(
    dls: Any,
    arch: Arch = AWD_LSTM,
    seq_len: int = 72,
    config: dict[str, Any] | None = None,
    pretrained: bool = False,
    drop_mult: float = 0.5,
    n_out: int | None = None,
    lin_ftrs: Sequence[int] = (50,),
    ps: Sequence[float] | None = None,
    max_len: int | None = 72 * 20,
    metrics: Any = accuracy,
    **kwargs: Any,
) -> TextLearner:
    """A learner that classifies documents.

    Its parameter groups are the embedding, each layer and the head: `freeze_to(-1)`,
    `freeze_to(-2)`, ... unfreeze it by and by, as arXiv 1801.06146 does.

    Args:
        dls: loaders of tokens (B, T), padded at the end, with lengths (B,), and classes (B,).
        arch, seq_len, config, drop_mult, lin_ftrs, ps, max_len: those of `get_text_classifier`.
        pretrained: there are no trained weights to begin with; `load_encoder` reads those of a
            language model of yours.
        n_out: numbers to predict; by default the number of classes, `dls.c`.
        kwargs: those of `Learner`, and `alpha` and `beta` (see `RNNRegularizer`).

    Raises:
        UsageError: for a `config` that `arch` does not know, for `pretrained=True`, and if the
            number of outputs is unknown.
    """
    _check_pretrained(pretrained)
    n_out = n_out or getattr(dls, "c", None)
    if not n_out:
        raise UsageError("the data do not say how many classes there are; give n_out=.")
    config = _with_padding(dls, arch, config)
    pad_idx = getattr(dls.train, "pad_id", 1)
    model = get_text_classifier(
        arch,
        len(_text_vocab(dls)),
        n_out,
        seq_len,
        config,
        drop_mult,
        lin_ftrs,
        ps,
        pad_idx,
        max_len,
    )
    return TextLearner(dls, model, splitter=split_clas, metrics=metrics, **kwargs)


def _check_pretrained(pretrained: bool) -> None:
    if pretrained:
        raise UsageError(
            "there are no trained weights for text to download. Train a language model on your "
            "texts, learn.save_encoder(name), and load_encoder(name) in the next learner."
        )


def _with_padding(dls: Any, arch: Any, config: dict[str, Any] | None) -> dict[str, Any] | None:
    """`config` with the token that the text is padded with: where that is none, all are trained."""
    if not hasattr(dls, "text_block") or "pad_token" not in getattr(arch, "lm_config", {}):
        return config
    return {"pad_token": dls.text_block.pad_id, **(config or {})}


def _text_vocab(dls: Any) -> list[str]:
    """The tokens; loaders that have classes too hold them as [tokens, classes]."""
    vocab = list(getattr(dls, "vocab", None) or ())
    if vocab and not isinstance(vocab[0], str):
        vocab = list(vocab[0])
    if not vocab:
        raise UsageError(
            "the loaders have no vocab, the list of the tokens; make them by TextDataLoaders, or "
            "set dls.vocab."
        )
    return vocab


def _numbers(dls: Any, text: str) -> list[int]:
    """The tokens of `text`. Loaders that know no tokenizer hold words with spaces between them."""
    if hasattr(dls, "numericalize"):
        return list(dls.numericalize(text))
    vocab, unk = _text_vocab(dls), _unk(dls)
    place = {word: i for i, word in enumerate(vocab)}
    unknown = [word for word in text.split() if word not in place]
    if unknown and unk is None:
        raise UsageError(f"the vocabulary has no {unknown[0]!r}, and no xxunk in its place.")
    return [place.get(word, unk or 0) for word in text.split()]


def _text(
    dls: Any, numbers: Sequence[int], decoder: Callable[[Sequence[str]], Sequence[str]] | None
) -> str:
    if decoder is None and hasattr(dls, "detokenize"):
        return str(dls.detokenize(numbers))
    vocab = _text_vocab(dls)
    words = [vocab[i] for i in numbers if vocab[i] not in ("xxbos", "xxpad")]
    return " ".join(words if decoder is None else decoder(words))


def _unk(dls: Any) -> int | None:
    """The number of the token for what is unknown."""
    if hasattr(dls, "text_block"):
        unk: int = dls.text_block.numericalize.unk_id
        return unk
    vocab = _text_vocab(dls)
    return vocab.index("xxunk") if "xxunk" in vocab else None
