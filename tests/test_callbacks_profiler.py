"""A trace of a few steps, read back."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress

import pytest
import torch

from helpers import tiny_learner
from treadle.callbacks import ProfilerCallback
from treadle.errors import DataError, UsageError
from treadle.loop import Callback, CancelFitException

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.11


def names_in(path):
    content = path.read_bytes()
    trace = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    return [event.get("name", "") for event in trace["traceEvents"]]


def steps_in(path):
    return [name for name in names_in(path) if name.startswith("ProfilerStep#")]


def test_the_trace_holds_the_steps_asked_for(tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=ProfilerCallback(n_steps=2, skip=3))
    learn.fit(2)
    file = tmp_path / "trace.json"
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    assert steps_in(file) == ["ProfilerStep#4", "ProfilerStep#5"]
    names = names_in(file)
    assert names.count("aten::linear") == 4  # two layers, two steps
    assert any("Optimizer.step" in name for name in names)
    assert any("aten::linear" in row.key for row in learn.profiler.profile.key_averages())


def test_a_compressed_file_in_a_new_folder_and_options(tmp_path):
    trace = ProfilerCallback(1, skip=0, fname="deep/trace.json.gz", record_shapes=True)
    tiny_learner(path=tmp_path).fit(1, cbs=trace)
    file = tmp_path / "deep" / "trace.json.gz"
    assert steps_in(file) == ["ProfilerStep#1"]
    with gzip.open(file) as opened:
        assert b"Input Dims" in opened.read()


def test_training_is_the_same_and_each_fit_is_traced(tmp_path):
    plain = tiny_learner()
    learn = tiny_learner(path=tmp_path, cbs=ProfilerCallback(2, skip=1))
    for one in (plain, learn):
        one.fit(1)
    (tmp_path / "trace.json").unlink()
    for one in (plain, learn):
        one.fit(1)
    assert steps_in(tmp_path / "trace.json") == ["ProfilerStep#2", "ProfilerStep#3"]
    assert all(map(torch.equal, plain.model.parameters(), learn.model.parameters()))


@pytest.mark.parametrize("error", [CancelFitException, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("batch", [0, 3, 5, 7])
def test_the_profiler_is_off_however_the_fit_ends(error, batch, tmp_path):
    def fail(cb):
        if cb.iter == batch:
            raise error

    learn = tiny_learner(path=tmp_path, cbs=[ProfilerCallback(2, skip=3)])
    with suppress(error):
        learn.fit(1, cbs=Callback(after_backward=fail))
    assert not torch._C._autograd._profiler_enabled()
    learn.fit(1)
    assert len(steps_in(tmp_path / "trace.json")) == 2


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    learn = tiny_learner(path=tmp_path, cbs=ProfilerCallback(1, skip=0, fname="file/trace.json"))
    with pytest.raises(DataError, match="file"):
        learn.fit(1)
    assert not torch._C._autograd._profiler_enabled()


def test_too_few_batches_are_refused():
    with pytest.raises(UsageError, match=r"needs 9 training batches .* this fit has 8"):
        tiny_learner(cbs=ProfilerCallback()).fit(1)
    with pytest.raises(UsageError, match="traces nothing"):
        ProfilerCallback(0)


def test_sweeps_and_predictions_are_not_traced(tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=ProfilerCallback())
    learn.lr_find(num_it=20, show_plot=False)
    learn.get_preds()
    learn.validate()
    assert not list(tmp_path.iterdir())
