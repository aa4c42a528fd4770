"""The model compiled in place: the same training, the same names, and a note on recompiling."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from helpers import copied_params, same_params, tiny_dls, tiny_learner
from treadle.callbacks import CompileCallback
from treadle.data import DataLoaders
from treadle.errors import UsageError
from treadle.loop import Callback, CancelFitException


@pytest.fixture(autouse=True)
def _compile_anew():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model):
    return model._compiled_call_impl is not None


def ragged_dls():
    """The last training batch has another size."""
    batches = list(tiny_dls().train)
    x, y = batches[-1]
    return DataLoaders([*batches[:-1], (x[:5], y[:5])], tiny_dls().valid, device="cpu")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_trains_as_without(backend, tmp_path):
    plain = tiny_learner(path=tmp_path)
    learn = tiny_learner(path=tmp_path, cbs=CompileCallback(backend=backend))
    model, names = learn.model, list(learn.model.state_dict())
    plain.fit(2)
    learn.fit(2)
    assert learn.model is model
    assert compiled(model)
    assert list(model.state_dict()) == names
    for p, other in zip(plain.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, other)
    assert learn.validate()[0] == pytest.approx(plain.validate()[0])
    learn.save("compiled")
    plain.load("compiled")
    assert same_params(plain.model, copied_params(model))


def test_the_note_says_what_was_compiled_again(capsys):
    learn = tiny_learner(dls=ragged_dls(), cbs=CompileCallback(backend="eager"))
    learn.fit(2)
    note = learn.compile.note
    assert note.startswith("Compiled 3 graphs in the first epoch, 2 of them anew: ")
    assert "size mismatch at index 0. expected 16, actual 5" in note
    assert "; GLOBAL_STATE changed: grad_mode." in note
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(note) == 1
    assert [line.split()[0] for line in lines] == ["epoch", "0", "Compiled", "1"]


def test_nothing_is_said_where_nothing_was_compiled_or_the_learner_is_silent(capsys):
    learn = tiny_learner(cbs=CompileCallback(backend="eager"))
    with learn.no_logging():
        learn.fit(1)
    assert learn.compile.note.startswith("Compiled 3 graphs")
    assert capsys.readouterr().out == ""
    learn.fit(1)
    assert learn.compile.note == ""
    assert "Compiled" not in capsys.readouterr().out


def test_one_graph_and_no_second():
    learn = tiny_learner(
        dls=DataLoaders(tiny_dls().train, device="cpu"), cbs=CompileCallback(backend="eager")
    )
    learn.fit(1)
    assert learn.compile.note == "Compiled 1 graph in the first epoch."


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("error", [None, CancelFitException, KeyboardInterrupt, RuntimeError])
def test_it_is_undone_if_asked_however_the_fit_ends(undo, error):
    seen = []

    def fail(cb):
        seen.append(compiled(cb.model))
        if error is not None:
            raise error

    learn = tiny_learner(cbs=CompileCallback(undo=undo, backend="eager"))
    with suppress(error or ()):
        learn.fit(1, cbs=Callback(before_step=fail))
    assert all(seen)
    assert compiled(learn.model) is not undo


def test_what_the_user_compiled_comes_back():
    learn = tiny_learner(cbs=CompileCallback(undo=True, backend="eager"))
    learn.model.compile(backend="aot_eager")
    before = learn.model._compiled_call_impl
    learn.fit(1)
    assert learn.model._compiled_call_impl is before


def test_options_are_those_of_torch():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x):
            torch._dynamo.graph_break()
            return self.layer(x)

    tiny_learner(model=Breaks(), cbs=CompileCallback(backend="eager")).fit(1)
    torch.compiler.reset()
    learn = tiny_learner(model=Breaks(), cbs=CompileCallback(backend="eager", fullgraph=True))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        learn.fit(1)


def test_an_unknown_backend_is_refused():
    with pytest.raises(UsageError, match=r"backend='inducter'\): did you mean inductor"):
        tiny_learner(cbs=CompileCallback(backend="inducter")).fit(1)


def test_a_backend_may_be_a_function():
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    tiny_learner(cbs=CompileCallback(backend=backend)).fit(1)
    assert len(seen) == 3
