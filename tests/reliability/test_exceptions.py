"""Whatever a callback raises, wherever it does: the learner is as before, and one is told where."""

from __future__ import annotations

import traceback

import interrupt_kit as kit
import pytest
import torch
from torch import nn

from treadle.callbacks import (
    ActivationStats,
    CheckpointCallback,
    EMACallback,
    Every,
    GradientAccumulation,
    MixedPrecision,
    MixUp,
)
from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.loop import (
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
    event,
)
from treadle.losses import CrossEntropyLossFlat

KINDS = [RuntimeError, StopIteration, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit]

# Where to raise which of these, for the event to come that follows it.
CANCELS = {
    "after_cancel_backward": ("before_backward", CancelBackwardException),
    "after_cancel_step": ("before_step", CancelStepException),
    "after_cancel_batch": ("after_pred", CancelBatchException),
    "after_cancel_train": ("before_train", CancelTrainException),
    "after_cancel_validate": ("before_validate", CancelValidException),
    "after_cancel_epoch": ("after_train", CancelEpochException),
    "after_cancel_fit": ("before_epoch", CancelFitException),
}

AT_ONCE = ("after_create", "before_fit", "after_cancel_fit")


def raising(error):
    def function(cb):
        raise error

    return function


class Raises(Callback):
    """Raises at an event: in the first batch of a pass not yet, nor before that."""

    state_names = ()

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(**{name: self.fire})
        self.name_of_event, self.error = name, error

    def fire(self, _: Callback) -> None:
        if self.name_of_event in AT_ONCE or self.iter > 0 or self.epoch > 0:
            raise self.error


@pytest.fixture
def learn(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr("treadle.callbacks.progress.make_display", kit.terminal)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 4))
    model[0].weight.requires_grad_(False)
    cbs = [MixUp(), EMACallback(0.8), GradientAccumulation(32), ActivationStats()]
    cbs += [MixedPrecision("bf16"), CheckpointCallback(Every(updates=1), tmp_path)]
    x = torch.randn(96, 8)
    batches = list(zip(x.split(16), x.argmax(1).remainder(4).split(16), strict=True))
    dls = DataLoaders(batches[:4], batches[4:], device="cpu")
    loss = CrossEntropyLossFlat()
    return Learner(dls, model, loss, lr=0.1, cbs=cbs, path=tmp_path)


@pytest.mark.parametrize("name", list(event))
def test_any_kind_in_any_event(name, learn):
    for kind in KINDS:
        before, frozen = kit.standing(learn), [p.requires_grad for p in learn.model.parameters()]
        thrown = kind("out of a callback")
        cbs = [Raises(name, thrown)]
        if name in CANCELS:
            moment, cancel = CANCELS[name]
            cbs.append(Callback(**{moment: raising(cancel)}))
        with pytest.raises(kind) as caught:
            if name == "after_create":
                learn.add_cb(cbs[0])
            else:
                learn.fit_one_cycle(2, cbs=cbs)
        assert thrown in (caught.value, caught.value.__cause__)  # which says more of memory
        assert "in fire" in "".join(traceback.format_exception(thrown))
        notes = [note for note in thrown.__notes__ if note.startswith("This came from")]
        assert notes == [f"This came from the callback Raises at the event {name}."]
        assert kit.standing(learn) == before
        assert frozen == [p.requires_grad for p in learn.model.parameters()]
    learn.fit(1)
    assert len(learn.validate()) == 1


@pytest.mark.parametrize("name", list(CANCELS))
def test_what_cancels_is_not_annotated(name, learn):
    moment, cancel = CANCELS[name]
    thrown = cancel()
    learn.fit(1, cbs=Callback(**{moment: raising(thrown)}))
    assert not hasattr(thrown, "__notes__")


def test_a_fault_of_the_model_names_no_callback(learn):
    class Wrong(nn.Linear):
        def forward(self, x):
            raise RuntimeError("in the model")

    learn.model[3] = Wrong(16, 4)
    with pytest.raises(RuntimeError, match="in the model") as caught:
        learn.fit(1)
    assert not hasattr(caught.value, "__notes__")
    assert not torch.is_autocast_enabled("cpu")
