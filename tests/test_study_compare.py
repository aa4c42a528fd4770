"""Trainings side by side: the same start for all, what is kept, what is said of the differences."""

from __future__ import annotations

import json
import math
import random
import time
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import TensorDataset

from helpers import tiny_learner
from treadle.data import DataLoader, DataLoaders
from treadle.errors import DataError, UsageError
from treadle.learner import Learner
from treadle.loop.events import Callback
from treadle.losses import CrossEntropyLossFlat
from treadle.metrics import accuracy
from treadle.optim import SGD, Adam, Optimizer, average_grad, momentum_step, sgd_step
from treadle.run import write_json
from treadle.study import Comparison, compare
from treadle.study.clock import Clock
from treadle.study.comparison import Row, Run, Summary
from treadle.study.verdict import difference, t_quantile

ROWS = {
    "sgd": SGD,
    "adam": {"opt_func": Adam, "lr": 0.01},
    "constant": {"opt_func": partial(Optimizer, cbs=[sgd_step]), "fit": "fit"},
    "momentum": {
        "opt_func": partial(Optimizer, cbs=[average_grad, momentum_step], mom=0.9),
        "moms": (0.8, 0.7, 0.8),
    },
    "torch": torch.optim.AdamW,
}
BS, N = 16, 96


def samples() -> TensorDataset:
    x = torch.randn(N, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x[:, :4].argmax(1))


def our_loaders() -> DataLoaders:
    valid = DataLoader(samples(), BS, device="cpu", num_workers=0)
    return DataLoaders(DataLoader(samples(), BS, True, device="cpu", num_workers=0), valid)


def torch_loaders() -> DataLoaders:
    loaders = [TorchLoader(samples(), BS, shuffle=shuffle) for shuffle in (True, False)]
    return DataLoaders(*loaders, device="cpu")


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def learner(dls: DataLoaders | None = None, **kwargs) -> Learner:
    """Another net at each call, as torch's generator has it."""
    loss = CrossEntropyLossFlat()
    return Learner(dls or our_loaders(), net(), loss, metrics=accuracy, lr=0.1, **kwargs)


def quiet(make_learner, rows=ROWS, **kwargs) -> Comparison:
    return compare(make_learner, rows, **{"epochs": 2, "progress": False, **kwargs})


class Witness(Callback):
    """Notes the weights before the first batch of a fit, and all batches to train on."""

    reports = True  # so that the trial before the first run leaves it out
    run_valid = False
    order = -50

    def __init__(self, seen) -> None:
        self.seen = seen

    def before_fit(self):
        weights = torch.cat([p.detach().clone().flatten() for p in self.model.parameters()])
        self.notes = [weights]
        self.seen.append(self.notes)

    def before_batch(self):
        self.notes.append(self.x.clone())


SHARED = {"ours, new": None, "ours, shared": our_loaders(), "torch, shared": torch_loaders()}


@pytest.mark.parametrize("dls", SHARED)
def test_all_rows_start_from_the_same_weights_and_see_the_same_batches(dls):
    seen: list[list[torch.Tensor]] = []
    found = quiet(lambda: learner(SHARED[dls], cbs=Witness(seen)), seeds=2)
    assert len(seen) == 2 * len(ROWS)
    by_seed = seen[: len(ROWS)], seen[len(ROWS) :]
    for of_one_seed in by_seed:
        for notes in of_one_seed:
            assert len(notes) == 1 + 2 * N // BS
            assert all(torch.equal(a, b) for a, b in zip(notes, of_one_seed[0], strict=True))
    for one, other in zip(by_seed[0][0], by_seed[1][0], strict=True):
        assert not torch.equal(one, other)
    starts = [{row.runs[i].initial_weights for row in found.rows} for i in (0, 1)]
    assert [len(start) for start in starts] == [1, 1]
    assert starts[0] != starts[1]


def test_a_run_is_the_training_one_would_have_done_by_hand():
    found = quiet(lambda: learner(torch_loaders()), {"sgd": ROWS["constant"]}, seeds=[5])
    torch.manual_seed(5)
    model, dls = net(), torch_loaders()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(5)
    losses = []
    for _ in range(2):
        model.train()
        for x, y in dls.train:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.item())
        list(dls.valid)  # torch's loader draws a seed for its workers, shuffled or not
    (run,) = found["sgd"].runs
    assert run.raw_losses == pytest.approx(losses, rel=1e-5)
    assert run.hypers["lr"] == [0.1] * len(losses)


def test_what_a_run_records():
    found = quiet(learner, seeds=1)
    assert found.metric_names == ["train_loss", "valid_loss", "accuracy"]
    assert found.monitor == "accuracy"
    for row in found.rows:
        (run,) = row.runs
        assert run.finished
        updates = 2 * N // BS
        assert len(run.losses) == len(run.raw_losses) == len(run.seconds) == updates
        assert all(len(column) == updates for column in run.hypers.values())
        assert run.seconds == sorted(run.seconds)
        assert 0 < run.seconds[-1] < run.total_seconds
        assert run.steps_per_second == pytest.approx(updates / run.seconds[-1], rel=0.5)
        assert [epoch["epoch"] for epoch in run.epochs] == [0, 1]
        assert run.value("accuracy") == run.epochs[-1]["accuracy"]
    assert found["momentum"].runs[0].hypers["mom"][0] == pytest.approx(0.8)
    assert found["momentum"].describe.startswith("average_grad -> momentum_step, ")
    assert "lr=0.1" in found["momentum"].describe
    assert found["momentum"].describe.endswith("fit_one_cycle(moms=(0.8, 0.7, 0.8))")
    assert found["constant"].describe == "sgd_step, lr=0.1; fit"
    assert found["torch"].describe.startswith("AdamW, ")


def test_validation_does_not_count_as_training():
    class SlowValidation(Callback):
        def before_validate(self):
            time.sleep(0.2)

    run = quiet(lambda: learner(cbs=SlowValidation), {"a": SGD}, seeds=1)["a"].runs[0]
    assert run.total_seconds > 0.4
    assert run.seconds[-1] < run.total_seconds - 0.39


def test_on_a_gpu_the_device_marks_the_time(monkeypatch):
    """With stand-ins for CUDA's events, which tell milliseconds."""

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = time.perf_counter()

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 1000 * (end.at - self.at)

    class OnGpu(Clock):
        def before_fit(self):
            super().before_fit()
            self._on_gpu = True

    monkeypatch.setattr(torch.cuda, "Event", Event)
    learn, clock = learner(), OnGpu()
    start = time.perf_counter()
    with learn.no_logging(), learn.added_cbs(clock):
        learn.fit(2)
    assert len(clock.seconds) == len(learn.recorder.losses)
    assert clock.seconds == sorted(clock.seconds)
    assert 0 < clock.seconds[-1] <= clock.trained < time.perf_counter() - start


def test_the_callers_random_numbers_are_left_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    quiet(learner, {"a": SGD}, seeds=1)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def breaks_at_step_3(p, lr, step=0, **kwargs):
    if step >= 3:
        raise RuntimeError("the third step is one too many")
    p.data.sub_(p.grad, alpha=lr)
    return {"step": step + 1}


def test_what_diverges_or_raises_is_a_result():
    rows = {
        "wild": {"opt_func": SGD, "lr": 1e12, "fit": "fit"},
        "breaks": partial(Optimizer, cbs=[breaks_at_step_3]),
        "sane": SGD,
    }
    found = quiet(learner, rows, seeds=2, epochs=3)
    assert [run.finished for run in found["sane"].runs] == [True, True]
    wild = found["wild"].runs[0]
    assert "diverged" in wild.error
    assert len(wild.epochs) == 1  # and it was ended there
    assert not math.isfinite(wild.losses[-1])
    breaks = found["breaks"].runs[0]
    line = breaks_at_step_3.__code__.co_firstlineno + 2
    assert "the third step is one too many" in breaks.error
    assert f"test_study_compare.py, line {line}" in breaks.error
    assert found["breaks"].summary("accuracy") is None
    assert [row.name for row in found.ranking()] == ["sane"]
    said = "\n".join(found.verdict())
    assert "breaks did not get to its end with seeds 0 and 1" in said
    # it differs from the row alone in nothing
    alone = quiet(learner, {"sane": SGD}, seeds=2, epochs=3)
    assert [r.raw_losses for r in alone["sane"].runs] == [r.raw_losses for r in found["sane"].runs]


# The rate finder


def test_each_finds_its_rate_and_is_put_back_before_it_trains():
    make = partial(learner, our_loaders())
    rows = {"sgd": {"opt_func": SGD, "fit": "fit"}}
    found = quiet(make, rows, seeds=2, each_finds_its_rate=True)
    for run in found["sgd"].runs:
        assert run.rate_found is not None
        assert set(run.hypers["lr"]) == {run.rate_found}
        row = {"opt_func": SGD, "fit": "fit", "lr": run.rate_found}
        again = quiet(make, {"sgd": row}, seeds=[run.seed])
        assert again["sgd"].runs[0].raw_losses == run.raw_losses


# The folder


class Interrupted:
    """Makes learners, until it has made so many that the user presses Ctrl-C in the next fit."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> Learner:
        self.left -= 1
        return learner(cbs=Callback(before_validate=self._press) if self.left < 0 else None)

    def _press(self, learn):
        raise KeyboardInterrupt


def curves(found: Comparison) -> list[list[float]]:
    return [list(run.raw_losses) for row in found.rows for run in row.runs]


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "study"
    whole = quiet(learner, seeds=2)
    make = Interrupted(after=9)
    with pytest.raises(KeyboardInterrupt):
        quiet(make, seeds=2, folder=folder)
    done = {path.name: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    assert 0 < len(done) < 10
    partly = Comparison.from_dict(json.loads((folder / "comparison.json").read_text()))
    assert partly.missing == 10 - len(done)
    assert f"{partly.missing} of 10 runs are still to be done." in partly.verdict()
    found = quiet(learner, seeds=2, folder=folder)
    assert found.missing == 0
    assert curves(found) == curves(whole)
    for name, changed in done.items():
        assert (folder / "runs" / name).stat().st_mtime_ns == changed


def test_what_is_done_is_not_done_again_and_more_may_be_added(tmp_path):
    made = []

    def make():
        made.append(1)
        return learner()

    quiet(make, {"a": SGD}, seeds=2, folder=tmp_path)
    made.clear()
    quiet(make, {"a": SGD}, seeds=2, folder=tmp_path)
    assert len(made) == 1  # to see what the rows are
    more = quiet(make, {"a": SGD, "b": Adam}, seeds=3, folder=tmp_path)
    assert (more.missing, len(list((tmp_path / "runs").iterdir()))) == (0, 6)
    assert curves(more) == curves(quiet(learner, {"a": SGD, "b": Adam}, seeds=3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 3}, "epochs is 2, not 3"),
        ({"settings": {"data": "other"}}, "data is 'mine', not 'other'"),
        ({"rows": {"a": partial(SGD, wd=0.1)}}, "a is 'weight_decay -> sgd_step, lr=0.1, wd=0;"),
    ],
)
def test_another_comparison_in_the_folder_is_refused(change, words, tmp_path):
    asked = {"rows": {"a": SGD}, "seeds": 1, "folder": tmp_path, "settings": {"data": "mine"}}
    quiet(learner, **asked)
    before = (tmp_path / "comparison.json").read_text()
    with pytest.raises(UsageError, match="give another folder") as refused:
        quiet(learner, **{**asked, **change})
    assert words in str(refused.value)
    assert (tmp_path / "comparison.json").read_text() == before


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"something else than a comparison \(thesis.txt\)"):
        quiet(learner, {"a": SGD}, seeds=1, folder=tmp_path)
    (tmp_path / "config.json").write_text('{"command": "train"}')
    with pytest.raises(UsageError, match="something else"):
        quiet(learner, {"a": SGD}, seeds=1, folder=tmp_path)


def test_a_spoilt_file_is_named(tmp_path):
    quiet(learner, {"a": SGD}, seeds=1, folder=tmp_path)
    (tmp_path / "runs" / "a-0.json").write_text('{"seed": 0, "los')
    with pytest.raises(DataError, match=r"a-0.json cannot be read .* delete it"):
        quiet(learner, {"a": SGD}, seeds=1, folder=tmp_path)


def test_what_raised_is_tried_again(tmp_path):
    makers = iter([learner, learner, partial(learner, cbs=Callback(after_loss=_no_disk))])
    first = quiet(lambda: next(makers)(), {"a": SGD}, seeds=1, folder=tmp_path)
    assert first["a"].runs[0].error.startswith("OSError: all gone")
    assert quiet(learner, {"a": SGD}, seeds=1, folder=tmp_path)["a"].runs[0].finished


def _no_disk(learn):
    raise OSError("all gone")


# What cannot be meant


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({}, "give a dict"),
        ({"a": 3}, "row 'a' is 3"),
        ({"a": {"opt_func": 3}}, "opt_func of the row 'a' is 3"),
        ({"a": {"fit": "fit_one_circle"}}, "did you mean fit_one_cycle"),
        (
            {"a": {"mons": (0, 0, 0)}},
            "'mons', which fit_one_cycle does not take; did you mean moms",
        ),
        ({"a": partial(Optimizer, cbs=[momentum_step])}, "the row 'a' cannot be built"),
        ({"a": lambda params, lr: 1 / 0}, "ZeroDivisionError"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused_before_anything_is_trained(rows, words):
    seen: list[list[torch.Tensor]] = []
    with pytest.raises(UsageError) as refused:
        quiet(lambda: learner(cbs=Witness(seen)), rows)
    assert words in str(refused.value)
    assert not seen


@pytest.mark.parametrize("asked", [{"seeds": 0}, {"seeds": [1, 1]}, {"epochs": 0}])
def test_numbers_that_cannot_be_meant(asked):
    with pytest.raises(UsageError, match=r"seeds=|epochs="):
        quiet(learner, **asked)


def test_a_learner_that_does_not_start_alike_is_refused():
    model = net()
    loss = CrossEntropyLossFlat()
    with pytest.raises(UsageError, match="'adam' starts from other weights than 'sgd'"):
        quiet(lambda: Learner(our_loaders(), model, loss, metrics=accuracy))


# What is said of it


def study_of(values: dict[str, list[float]], column: str = "accuracy") -> Comparison:
    rows = [
        Row(name, "x", [Run(s, epochs=[{column: v}], raw_losses=[v]) for s, v in enumerate(vs)])
        for name, vs in values.items()
    ]
    return Comparison("t", {}, [column], rows, list(range(max(map(len, values.values())))))


def test_the_quantiles_of_student():
    stats = pytest.importorskip("scipy.stats")
    for df in (*range(1, 40), 100, 1000):
        assert t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=12))
def test_rows_are_told_apart_as_by_a_paired_t_test(pairs):
    stats = pytest.importorskip("scipy.stats")
    a, b = (dict(enumerate(side)) for side in zip(*pairs, strict=True))
    found, turned = difference(a, b), difference(b, a)
    assert (found.mean, found.low, found.high) == (-turned.mean, -turned.high, -turned.low)
    gaps = [x - y for x, y in pairs]
    if np.ptp(gaps) > 1e-6:  # a t-test divides by the spread
        p = stats.ttest_1samp(gaps, 0).pvalue
        assert found.told_apart == (p < 0.05) or abs(p - 0.05) < 1e-6


def test_the_pairing_tells_apart_what_the_spread_would_hide():
    """Both rows vary much from seed to seed, but together."""
    found = study_of({"a": [0.5, 0.7, 0.9], "b": [0.49, 0.688, 0.889]})
    assert found.difference("a", "b").told_apart
    assert found.verdict()[1].startswith("Beyond the spread: it is better than b (by 0.0110, ")


def test_the_verdict():
    found = study_of(
        {"a": [0.90, 0.91, 0.92], "same": [0.90, 0.91, 0.92], "b": [0.92, 0.90, 0.90],
         "c": [0.50, 0.52, 0.51]}
    )  # fmt: skip
    assert found.verdict() == [
        "a has the best accuracy: 0.9100 ± 0.0100 (3 seeds).",
        "The same values, seed by seed: same.",
        "Within the spread: with 3 seeds it cannot be told apart from b (by 0.0033, 95 % interval "
        "-0.0484 to 0.0550).",
        "Beyond the spread: it is better than c (by 0.4000, 95 % interval 0.3752 to 0.4248).",
    ]
    losses = study_of({"a": [0.3, 0.4], "b": [0.2, 0.1]}, "valid_loss")
    assert losses.verdict()[0].startswith("b has the best valid loss: 0.1500")
    assert losses.verdict()[1].startswith("Within the spread: with 2 seeds")
    assert "one seed" in study_of({"a": [0.3], "b": [0.2]}).verdict()[1]
    assert study_of({"a": [math.nan], "b": []}).verdict()[0] == "No run has finished."
    same = quiet(lambda: tiny_learner(metrics=accuracy), {"a": SGD, "b": Adam}, seeds=2)
    assert "very same losses" in same.verdict()[1]


def test_the_record_survives_json(tmp_path):
    rows = {"wild <b>": {"opt_func": SGD, "lr": 1e12, "fit": "fit"}, "sane": SGD}
    found = quiet(learner, rows, seeds=2, folder=tmp_path / "s", settings={"data": "mine"})
    file = write_json(tmp_path / "found.json", found.to_dict())
    again = Comparison.from_dict(json.loads(file.read_text()))
    assert repr(again) == repr(found)
    assert math.isnan(again["wild <b>"].runs[0].losses[-1])
    assert again.settings == found.settings
    with pytest.raises(DataError, match="not the record of a comparison"):
        Comparison.from_dict({"title": "x"})


def test_the_table_as_text_and_as_html():
    found = quiet(learner, {"a <b>": SGD, "wild": {"opt_func": SGD, "lr": 1e12, "fit": "fit"}})
    lines = repr(found).splitlines()
    assert lines[1].split() == "train loss valid loss accuracy time, s steps/s".split()
    assert lines[2].startswith("a <b>       ")
    assert lines[2].count("±") == 5
    assert lines[3].split() == ["wild", "(0/3)", *"–––––"]
    assert "a &lt;b&gt;" in found._repr_html_()
    accuracies = [run.epochs[-1]["accuracy"] for run in found["a <b>"].runs]
    assert found.table()[0]["accuracy"] == Summary.of(accuracies)


def test_the_figure():
    found = quiet(learner, seeds=2)
    figure = found.plot()
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["updates", "seconds of training", "epoch", "updates"]
    assert [len(axes.lines) for axes in figure.axes] == [10, 10, 10, 5]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(ROWS)
    line = figure.axes[0].lines[0]
    assert list(line.get_ydata()) == found["sgd"].runs[0].losses[len(line.get_ydata()) * -1 :]


def test_the_progress_of_the_whole_is_told(capsys):
    quiet(learner, {"sgd": SGD, "adam": Adam}, seeds=2, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["row", "seed", "train_loss", "valid_loss", "accuracy", "time"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["sgd", "0"], ["adam", "0"], ["sgd", "1"], ["adam", "1"],
    ]  # fmt: skip
