"""Learners with everything on, interrupted by a real SIGINT at random moments."""

from __future__ import annotations

import io
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resume_cases import block_loaders, digest, two_groups
from torch import nn

from treadle.callbacks import (
    ActivationStats,
    CheckpointCallback,
    CutMix,
    EMACallback,
    Every,
    GradientAccumulation,
    MixedPrecision,
    MixUp,
    SaveModelCallback,
)
from treadle.callbacks.progress import TerminalDisplay
from treadle.learner import Learner
from treadle.loop import Callback
from treadle.losses import CrossEntropyLossFlat
from treadle.metrics import accuracy


def terminal() -> TerminalDisplay:
    """A bar on a terminal that nobody sees."""
    from rich.console import Console

    return TerminalDisplay(Console(file=io.StringIO(), force_terminal=True))


def learner(path: Path, workers: int, mixed: str) -> Learner:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(400, 4),
    )
    mix = {"mixup": MixUp, "cutmix": CutMix}[mixed]
    cbs = [mix(), EMACallback(0.8), GradientAccumulation(20), ActivationStats()]
    cbs += [MixedPrecision("bf16"), SaveModelCallback()]
    loss = CrossEntropyLossFlat()
    dls = block_loaders(workers, None)
    return Learner(
        dls, model, loss, lr=0.01, splitter=two_groups, cbs=cbs, metrics=accuracy, path=path
    )


VERBS: dict[str, Callable[[Learner], Any]] = {
    "fit_one_cycle": lambda learn: learn.fit_one_cycle(2, cbs=CheckpointCallback(Every(updates=1))),
    "fine_tune": lambda learn: learn.fine_tune(1, checkpoint=Every(updates=2)),
    "lr_find": lambda learn: learn.lr_find(num_it=8, show_plot=False),
    "validate": lambda learn: learn.validate(),
    "get_preds": lambda learn: learn.get_preds(with_loss=True, with_input=True),
    "no_logging": lambda learn: quietly(learn),
}


def quietly(learn: Learner) -> None:
    """Blocks that a user writes."""
    for _ in range(200):
        with learn.no_logging(), learn.added_cbs(Callback()), learn.loss_not_reduced():
            pass


def standing(learn: Learner) -> dict[str, Any]:
    """All that a verb changes for a while, as it is now."""
    loss: Any = learn.loss_func
    modules = list(learn.model.modules())
    return {
        "loss": (loss, loss.reduction),
        "modes": [m.training for m in modules],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "callbacks": list(learn.cbs),
        "callbacks by name": sorted(k for k, v in vars(learn).items() if isinstance(v, Callback)),
        "listeners": {name: [cb for cb, *_ in heard] for name, heard in learn._listeners.items()},
        "precision": learn.precision,
        "logger": learn.logger,
        "window": learn.window,
        "scope": learn.scope,
        "call": (learn.call, learn._resumption, learn.first_epoch, learn.first_iter),
        "training": learn.training,
        "display": learn.progress.display,
        "grad mode": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "autocast nesting": autocast_nesting(),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "threads": [t.name for t in threading.enumerate() if t.name.startswith("treadle")],
    }


def autocast_nesting() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def weights(learn: Learner) -> str:
    """Every bit that a verb without a trace leaves alone."""
    opt = None if learn.opt is None else learn.opt.state_dict()
    frozen = [p.requires_grad for p in learn.model.parameters()]
    loaders = [dl.state_dict() for dl in learn.dls]
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    return digest([learn.model.state_dict(), opt, frozen, loaders, drawn])


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """A SIGINT for this thread after so many seconds; none if the block ends before."""
    over, main = threading.Event(), threading.get_ident()

    def press() -> None:
        if not over.wait(seconds):
            signal.pthread_kill(main, signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        yield
    finally:
        over.set()
        presser.join()


def interrupted(verb: Callable[[Learner], Any], learn: Learner, seconds: float) -> bool:
    """Whether the verb was interrupted, and not done before."""
    try:
        with interrupt_after(seconds):
            verb(learn)
        return False
    except KeyboardInterrupt:
        return True


def check_usable(learn: Learner, path: Path) -> None:
    """What one does next."""
    values = learn.validate()
    assert len(values) == 2
    assert all(map(math.isfinite, values))
    recorder = learn.recorder
    columns = [len(column) for hypers in recorder.hypers for column in hypers.values()]
    assert set(columns) <= {len(recorder.raw_losses)}
    assert len(recorder.rows) == len(recorder.values) == len(recorder.iters)
    learn.fit(1)
    assert len(recorder.rows) == 1
    saved = learn.save("after")
    assert saved.is_file()
    learn.load("after")


def seconds_of(verb: Callable[[Learner], Any], learn: Learner) -> float:
    began = time.perf_counter()
    verb(learn)
    return time.perf_counter() - began
