"""What both sides of text.py train: WikiText-2's tokens, the sizes, the weights at the start."""

from __future__ import annotations

import math
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "wikitext-2.tgz"
UNKNOWN, PADDING = "<unk>", "xxpad"  # both libraries look for the padding at 1
END = "<eos>"
THREADS = 2
LR, WD, MOM, SQR_MOM, EPS = 5e-3, 0.01, 0.9, 0.99, 1e-5
ALPHA, BETA = 2.0, 1.0
ROWS = 20

# The networks of the defaults, cut so that two cores do a batch in about a second, or in a tenth.
DROPOUTS = {"hidden_p": 0.15, "input_p": 0.25, "embed_p": 0.02, "weight_p": 0.2, "output_p": 0.1}
SIZES = {
    "medium": {"emb_sz": 200, "n_hid": 400, "n_layers": 3},
    "small": {"emb_sz": 64, "n_hid": 128, "n_layers": 2},
}
BATCHES = {"medium": (32, 70), "small": (20, 35)}
"""Rows and tokens in a row."""


def config(size: str) -> dict[str, float | int | bool]:
    """The arguments that both libraries call alike."""
    return {**SIZES[size], **DROPOUTS, "tie_weights": True, "out_bias": True}


@cache
def words(part: str) -> list[str]:
    """The tokens of a part of the archive as they stand, each line ended by `END`."""
    with tarfile.open(ARCHIVE) as archive:
        file = archive.extractfile(f"wikitext-2/{part}.txt")
        assert file is not None
        lines = file.read().decode("utf-8").splitlines()
    return [word for line in lines for word in (*line.split(), END)]


@cache
def vocabulary() -> list[str]:
    """The official vocabulary, the 33,278 of the training part, by frequency, and a padding."""
    counts = Counter(words("train"))
    assert len(counts) == 33_278
    del counts[UNKNOWN]
    return [UNKNOWN, PADDING, *sorted(counts, key=lambda word: (-counts[word], word))]


@cache
def tokens(part: str, most: int | None = None) -> NDArray[np.int64]:
    """The numbers of the first `most` tokens of a part."""
    number = {word: at for at, word in enumerate(vocabulary())}
    return np.array([number[word] for word in words(part)[:most]], np.int64)


def draw_weights(named: Mapping[str, nn.Parameter], seed: int) -> None:
    """The same weights for both sides: `named` has the same keys and shapes on each."""
    drawn = np.random.default_rng(seed)
    with torch.no_grad():
        for name in sorted(named):
            p = named[name]
            bound = 0.1 if name == "embedding" else 1 / math.sqrt(p.shape[0] / 4)
            bound = 0.0 if name == "out bias" else bound
            values = drawn.uniform(-bound, bound, tuple(p.shape)).astype(np.float32)
            p.copy_(torch.from_numpy(values))


def perplexity(
    model: nn.Module, logits_of: Callable[[Tensor], Tensor], ids: NDArray[np.int64]
) -> float:
    """exp of the mean loss of the tokens after the first, in `ROWS` rows, state carried.

    Both sides are judged by this, whatever their own metrics average.
    """
    length = (len(ids) - 1) // ROWS
    x = torch.from_numpy(ids[: length * ROWS]).view(ROWS, length)
    y = torch.from_numpy(ids[1 : length * ROWS + 1]).view(ROWS, length)
    model.eval()
    model.reset()  # type: ignore[operator]
    total = 0.0
    with torch.no_grad():
        for at in range(0, length, 70):
            scores = logits_of(x[:, at : at + 70]).flatten(0, 1)
            goal = y[:, at : at + 70].flatten()
            total += float(nn.functional.cross_entropy(scores, goal, reduction="sum"))
    model.reset()  # type: ignore[operator]
    return math.exp(total / (length * ROWS))
