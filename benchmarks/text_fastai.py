"""fastai's side of text.py; `side.py` makes it where fastai is installed."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.rnn import ModelResetter, RNNCallback, RNNRegularizer
from fastai.optimizer import Adam
from fastai.text.all import (
    AWD_LSTM,
    CrossEntropyLossFlat,
    DataLoaders,
    Learner,
    LMDataLoader,
    LMTensorText,
    get_language_model,
)

import text_work as work
from common import Turn


class NoValidation(Callback):
    """Leaves out what a fit always has."""

    order = -100

    def before_validate(self) -> None:
        raise CancelValidException


def loaders(size: str, most: int | None) -> DataLoaders:
    """One long document each, so that nothing is shuffled."""
    bs, seq_len = work.BATCHES[size]
    parts = [
        LMDataLoader(
            [(LMTensorText(torch.from_numpy(work.tokens(part, n))),)],
            bs=bs,
            seq_len=seq_len,
            num_workers=0,
        )
        for part, n in (("train", most), ("valid", None))
    ]
    return DataLoaders(*parts, device="cpu")


def network(size: str, seed: int) -> torch.nn.Module:
    """The model, with the weights that both sides begin with."""
    settings = work.config(size)
    settings = {**settings, "pad_token": 1, "bidir": False}
    model = get_language_model(AWD_LSTM, len(work.vocabulary()), config=settings)
    encoder, decoder = model[0], model[1]
    named = {"embedding": encoder.encoder.weight, "out bias": decoder.decoder.bias}
    for layer, rnn in enumerate(encoder.rnns):
        named[f"{layer} hidden"] = rnn.weight_hh_l0_raw
        named[f"{layer} input"] = rnn.module.weight_ih_l0
        named[f"{layer} bias hidden"] = rnn.module.bias_hh_l0
        named[f"{layer} bias input"] = rnn.module.bias_ih_l0
    work.draw_weights(named, seed)
    model.reset()  # the layers take over the new weights
    return model


def learner(size: str, seed: int, most: int | None, alpha: float, beta: float) -> Learner:
    """What `language_model_learner` makes, with these weights."""
    cbs = [NoValidation(), ModelResetter(), RNNCallback(), RNNRegularizer(alpha, beta)]
    opt_func = partial(Adam, mom=work.MOM, sqr_mom=work.SQR_MOM, eps=work.EPS)
    return Learner(
        loaders(size, most),
        network(size, seed),
        CrossEntropyLossFlat(),
        opt_func,
        cbs=cbs,
        wd=work.WD,
    )


def seeded(seed: int) -> None:
    """Dropout draws from torch's generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def speed(size: str, batches: int) -> Turn:
    """Tokens a second of training, over `batches` updates."""
    torch.set_num_threads(work.THREADS)
    bs, seq_len = work.BATCHES[size]
    learn = learner(size, 0, batches * bs * seq_len + 1, work.ALPHA, work.BETA)

    def turn() -> dict[str, float]:
        with learn.no_bar(), learn.no_logging():
            began = time.perf_counter()
            learn.fit(1, work.LR)
            took = time.perf_counter() - began
        return {"tokens/s": batches * bs * seq_len / took}

    return turn


def training(size: str, seed: int, most: int, epochs: int) -> Turn:
    """One training with the one-cycle policy; a turn gives the perplexities that it came to."""
    torch.set_num_threads(work.THREADS)

    def turn() -> dict[str, Any]:
        seeded(seed)
        learn = learner(size, seed, most, work.ALPHA, work.BETA)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs, work.LR, moms=(0.8, 0.7, 0.8))

        def logits_of(x: torch.Tensor) -> torch.Tensor:
            return learn.model(x)[0]

        return {
            "perplexity": work.perplexity(learn.model, logits_of, work.tokens("valid")),
            "updates": len(learn.recorder.losses),
        }

    return turn
