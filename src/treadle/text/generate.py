"""Text from a language model, token by token."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from treadle.errors import UsageError
from treadle.text.state import nothing

__all__ = ["choose", "decode_spec_tokens", "generated"]

_WINDOW = 512  # tokens that a model without a state is shown


def generated(
    forward: Any, model: nn.Module, tokens: Sequence[int], n: int, draw: Any
) -> list[int]:
    """`n` tokens that go on from `tokens`, each chosen by `draw(scores (V,))`.

    A model whose encoder keeps its state in `hidden` reads each token once; another is shown all
    that there is, up to a window, for each new token.
    """
    device = next(model.parameters()).device
    text, unread = list(tokens), list(tokens)
    reset = getattr(model, "reset", nothing)
    reset()
    for _ in range(n):
        answer = forward(model, torch.tensor([unread], device=device))
        scores = answer[0] if isinstance(answer, (tuple, list)) else answer
        token = draw(scores[0, -1].float())
        text.append(token)
        unread = [token]
        if not _carries(model):
            unread = text[-_WINDOW:]
            reset()
    reset()
    return text[len(tokens) :]


def _carries(model: nn.Module) -> bool:
    return any(bool(getattr(part, "hidden", None)) for part in model.children())


def choose(
    scores: Tensor,
    temperature: float = 1.0,
    min_p: float | None = None,
    never: int | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """A token, drawn by the probabilities that `scores` (V,) stand for.

    Args:
        temperature: what the scores are divided by; below 1 the likely become more likely.
        min_p: tokens that are less probable, before the temperature, are not drawn, unless all are.
        never: a token that is not drawn.
        generator: what draws; by default torch's own.

    Raises:
        UsageError: if `temperature` is not above 0.

    >>> choose(torch.tensor([0.0, 9.0, 99.0]), temperature=0.1, never=2)
    1
    """
    if not temperature > 0:
        raise UsageError(
            f"temperature={temperature} was given; give a number above 0, a small one for the "
            "most probable words."
        )
    logs = scores.detach().cpu().log_softmax(0)
    if never is not None:
        logs[never] = -torch.inf
    if min_p is not None:
        likely = logs.exp() >= min_p
        if likely.any():
            logs[~likely] = -torch.inf
        else:
            warnings.warn(f"no token has a probability of {min_p} or more.", stacklevel=2)
    chances = (logs / temperature).softmax(0)
    return int(torch.multinomial(chances, 1, generator=generator))


def decode_spec_tokens(tokens: Sequence[str]) -> list[str]:
    """Tokens with what `xxmaj`, `xxup`, `xxrep` and `xxwrep` stand for in their places.

    >>> decode_spec_tokens(["xxmaj", "so", "xxup", "big", "xxrep", "3", "!", "xxwrep", "2", "no"])
    ['So', 'BIG', '!!!', 'no', 'no']
    """
    return list(_decoded(iter(tokens)))


def _decoded(tokens: Iterator[str]) -> Iterator[str]:
    for token in tokens:
        if token not in _RULES:
            yield token
            continue
        if token in ("xxrep", "xxwrep"):
            count, repeated = next(tokens, ""), next(tokens, "")
            times = int(count) if count.isdecimal() and len(count) < 4 else 1
            yield from [repeated * times] if token == "xxrep" else [repeated] * times  # noqa: S105
        elif word := next(tokens, ""):
            yield word.upper() if token == "xxup" else word[:1].upper() + word[1:]  # noqa: S105


_RULES = {"xxmaj", "xxup", "xxrep", "xxwrep"}
