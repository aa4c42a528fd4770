"""Checkpoints of several processes: one transaction, read by any number, and never a pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp
from safetensors.torch import load, load_file
from torch import nn

from ranks import on_ranks, outcomes
from treadle.callbacks import CheckpointCallback, EMACallback, Every, GradientAccumulation
from treadle.data import DataLoaders
from treadle.errors import DataError, RankError, TreadleError
from treadle.learner import Learner, load_learner
from treadle.loop import Callback
from treadle.loop.signals import Preempted
from treadle.losses import CrossEntropyLossFlat
from treadle.optim import Adam
from treadle.registry import register
from treadle.run import durable
from treadle.run.checkpoint import (
    checkpoints,
    read_checkpoint,
    read_newest,
    verify_checkpoint,
    write_checkpoint,
)
from treadle.run.checkpoint_writer import Writer
from treadle.run.durable import DiskFullError
from treadle.shards import is_sharded, whole
from treadle.world import world

sys.path.insert(0, str(Path(__file__).parent / "reliability"))
import watch
from checkpoint_kit import change

N = 40  # five batches of 8


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """Here processes end, not the machine: what is written need not reach the disk."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


class Stop(Exception):
    """What a test throws into a fit."""


class Seen(Callback):
    """The samples of each batch, in all processes together; ends the fit after some."""

    order = 20
    run_valid = False
    state_names = ("seen",)

    def __init__(self, most: int = 10**9) -> None:
        self.most, self.left = most, most

    def before_fit(self):
        self.seen = []

    def after_batch(self):
        self.seen.append(sorted(i for part in world().all(self.dl.indices.tolist()) for i in part))
        self.left -= 1
        if self.left < 0:
            raise Stop


@register(name="test.two_layers")
def two_layers(dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(dropout), nn.Linear(5, 2))


def learner(path, parallel, stop=10**9, dropout=0.0, cbs=()):
    torch.manual_seed(0)
    x = torch.randn(N, 6)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    dls = DataLoaders.from_dsets(
        data, data, global_bs=8, drop_last=False, num_workers=0, device="cpu", seed=3
    )
    loss, cbs = CrossEntropyLossFlat(), [Seen(stop), *cbs]
    return Learner(
        dls, two_layers(dropout), loss, Adam, 0.02, cbs=cbs, path=path, parallel=parallel
    )


def outcome(learn):
    """Every bit of what the fit left, whole, and the samples that it saw."""
    weights = {name: whole(t.detach()).clone() for name, t in learn.model.named_parameters()}
    stats = {
        f"{i}.{name}": whole(t).clone()
        for i, stat in learn.opt.state_dict()["state"].items()
        for name, t in stat.items()
        if isinstance(t, torch.Tensor)
    }
    return {**weights, **stats}, learn.seen.seen, list(learn.recorder.raw_losses)


def same(one, other, tolerance=0.0):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    for name, t in one[0].items():
        assert (t - other[0][name]).abs().max() <= tolerance, name
    assert one[2] == pytest.approx(other[2], rel=tolerance, abs=0.0)


def train(path, parallel, stop=None, dropout=0.0, cbs=(), every=3):
    learn = learner(path, parallel, 10**9 if stop is None else stop, dropout, [cb() for cb in cbs])
    with learn.no_logging():
        if stop is not None:
            with pytest.raises(Stop):
                learn.fit(3, checkpoint=Every(updates=every))
            return None
        learn.fit(3, checkpoint=Every(updates=every))
    return outcome(learn)


def resume(path, parallel, stop=None, dropout=0.0, cbs=()):
    learn = learner(path, parallel, 10**9 if stop is None else stop, dropout, [cb() for cb in cbs])
    learn.model[0].weight.data.zero_()
    with learn.no_logging():
        if stop is not None:
            with pytest.raises(Stop):
                learn.resume()
            return None
        learn.resume()
    return outcome(learn)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_any_number_of_processes_loads_it(tmp_path, parallel):
    trained = on_ranks(2, train, tmp_path, parallel)[0]
    assert len(checkpoints(tmp_path / "checkpoints")) == 2
    same(resume(tmp_path, None), trained)
    for n, other in ((4, "fsdp"), (2, "ddp")):
        for found in on_ranks(n, resume, tmp_path, other):
            same(found, trained)


def test_several_processes_load_that_of_one(tmp_path):
    trained = train(tmp_path, None)
    for found in on_ranks(2, resume, tmp_path, "fsdp"):
        same(found, trained)


WITH = (lambda: EMACallback(0.8), lambda: GradientAccumulation(14))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_as_many_processes_go_on_with_the_same_bits(tmp_path, parallel):
    """Also with dropout, of which each process draws its own."""
    how = (0.3, WITH)
    without = on_ranks(2, train, tmp_path / "whole", parallel, None, *how)
    on_ranks(2, train, tmp_path, parallel, 7, *how, 1)
    resumed = on_ranks(2, resume, tmp_path, parallel, None, *how)
    for found, wanted in zip(resumed, without, strict=True):
        same(found, wanted)


def test_two_four_and_one_see_the_same_samples(tmp_path):
    with_average = WITH[:1]
    alone = train(tmp_path / "alone", None, None, 0.0, with_average)
    on_ranks(2, train, tmp_path, "fsdp", 3, 0.0, with_average, 1)
    on_ranks(4, resume, tmp_path, "ddp", 4, 0.0, with_average)
    on_ranks(2, resume, tmp_path, "fsdp", 3, 0.0, with_average)
    same(resume(tmp_path, None, None, 0.0, with_average), alone, 1e-5)


# What goes wrong


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of the checkpoints of a fit that was left in its second epoch."""
    path = tmp_path_factory.mktemp("written")
    on_ranks(2, train, path, "fsdp", 7)
    return path / "checkpoints"


def left_behind(path, written):
    """A copy in `path` of the two newest checkpoints of a fit that was left."""
    for checkpoint in checkpoints(written)[-2:]:  # a fit that fails may leave one more
        shutil.copytree(checkpoint, path / checkpoint.name)
    return checkpoints(path)


def taken(folder):
    """Which checkpoint this process would go on from, and what it says of others."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = read_newest(folder)
    words = [str(one.message) for one in told]
    return found and found.path.name, [said for said in words if "passed over" in said]


@pytest.mark.parametrize("file", ["optimizer.1.safetensors", "state.1.json", "layout.json"])
def test_all_pass_over_what_one_finds_damaged(tmp_path, written, file):
    older, newest = left_behind(tmp_path, written)
    data = bytearray((newest / file).read_bytes())
    data[-2] ^= 1
    (newest / file).write_bytes(data)
    (first, told), (second, nothing) = on_ranks(2, taken, tmp_path)
    assert first == second == older.name
    assert [file in said for said in told] == [True]
    assert nothing == []
    for path in (older, newest):
        (path / "manifest.json").unlink()
    assert [name for name, _ in on_ranks(2, taken, tmp_path)] == [None, None]


def test_one_that_is_not_seen_by_all_is_passed_over(tmp_path, written):
    older, newest = left_behind(tmp_path, written)

    def see(folder):
        if not world().is_main:
            newest.rename(folder / "moved")
        world().barrier()  # rank 0 looked before: what it lists is not there for the others
        return taken(folder)[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("treadle.run.checkpoint.checkpoints", lambda folder: [older, newest])
        assert on_ranks(2, see, tmp_path) == [older.name] * 2


def fails(rank, at, error):
    """A save of step 2 that meets `error` in one process, and what was raised."""

    def save(folder):
        tensors = {"model": {"w": torch.arange(4.0), "own": torch.tensor(world().rank)}}
        write_checkpoint(folder, 1, tensors, {"state": world().rank})

        def failpoint(name):
            if world().rank == rank and name == at:
                raise error

        durable.failpoint = failpoint
        with pytest.raises(DataError) as seen:
            write_checkpoint(folder, 2, tensors, {"state": world().rank})
        durable.failpoint = lambda name: None
        world().barrier()  # what rank 0 had begun is gone
        left = sorted(p.name for p in folder.iterdir())
        world().barrier()
        write_checkpoint(folder, 3, tensors, {"state": world().rank}, keep_last=9)
        return type(seen.value), str(seen.value), left

    return save


FULL, BROKEN = OSError(errno.ENOSPC, "No space left"), OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("rank", "at", "error", "kind"),
    [
        (1, "save: model.1.safetensors begun", FULL, DiskFullError),
        (1, "save: state.1.json on the disk", BROKEN, DataError),
        (0, "save: folder held", BROKEN, DataError),
        (0, "save: manifest.json begun", FULL, DiskFullError),
        (0, "save: folder on the disk", BROKEN, DataError),
    ],
)
def test_what_one_cannot_write_none_has_written(tmp_path, rank, at, error, kind):
    (one, other) = on_ranks(2, fails(rank, at, error), tmp_path)
    assert one == other
    assert one[0] is kind
    assert "step-000002" in one[1]
    assert f"rank {rank}" in one[1]
    assert one[2] == ["step-000001"]
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001", "step-000003"]


def goes_on(folder):
    full = world().rank == 1
    with Writer(folder, on_full="go_on") as writer, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if full:
            durable.failpoint = lambda name: (_ for _ in ()).throw(FULL)
        writer.submit(1, {}, {"state": world().rank})
        writer.wait()
        durable.failpoint = lambda name: None
        writer.submit(2, {}, {"state": world().rank})
    return writer.skipped, writer.last.name, [str(one.message) for one in told]


def test_training_goes_on_where_one_disk_is_full(tmp_path):
    (*one, told), (*other, nothing) = on_ranks(2, goes_on, tmp_path)
    assert one == other == [1, "step-000002"]
    assert "goes on without a checkpoint" in told[0]
    assert not nothing


def test_a_folder_that_is_not_shared(tmp_path):
    def save():
        with pytest.raises(DataError, match="give one that all machines share"):
            write_checkpoint(tmp_path / str(world().rank), 1, {}, {"state": world().rank})

    on_ranks(2, save)
    assert not list(tmp_path.glob("*/*"))


def killed_while_saving(folder):
    tensors = {"model": {"w": torch.tensor(world().rank)}}
    write_checkpoint(folder, 1, tensors, {})
    if world().rank == 1:
        durable.failpoint = lambda name: os._exit(9) if name.startswith("save: model.1") else None
    with pytest.raises(RankError, match="step 2 was not written"):
        write_checkpoint(folder, 2, tensors, {})
    return [path.name for path in checkpoints(folder)]


def test_a_process_that_dies_while_all_save(tmp_path):
    (_, left), (died, code) = outcomes(2, killed_while_saving, tmp_path)
    assert (died, code) == ("died", 9)
    assert left == ["step-000001"]
    assert [path.name for path in tmp_path.iterdir()] == left


# Who is asked, and when


class Signalled(Callback):
    """A signal to one of the processes."""

    def after_batch(self):
        if world().rank == 1 and (self.epoch, self.iter, self.training) == (1, 1, True):
            os.kill(os.getpid(), signal.SIGTERM)


def asked(path, parallel, cbs, **how):
    learn = learner(path, parallel, cbs=[*(cb() for cb in cbs), CheckpointCallback(**how)])
    with learn.no_logging(), pytest.raises(Preempted) as left:
        learn.fit(3)
    return left.value.code, left.value.checkpoint.name, len(learn.seen.seen)


def test_what_one_is_asked_all_obey(tmp_path):
    without = on_ranks(2, train, tmp_path / "whole", "ddp")
    found = on_ranks(2, asked, tmp_path, "ddp", [Signalled])
    assert found == [(143, "step-000008", 8)] * 2
    for found, wanted in zip(on_ranks(2, resume, tmp_path, "ddp"), without, strict=True):
        same(found, wanted)


def test_in_a_window_the_end_of_it_is_waited_for(tmp_path):
    """Four batches a step: the signal of the seventh is known after the eighth."""
    cbs = [Signalled, lambda: GradientAccumulation(32)]
    assert on_ranks(2, asked, tmp_path, "ddp", cbs) == [(143, "step-000003", 9)] * 2


def clocks(path):
    """How many checkpoints were written where only one process finds that it is time."""
    learn = learner(path, "ddp")
    mine = CheckpointCallback(Every(minutes=1e-9 if world().is_main else 1e9))
    numbers = []
    mine._packed = lambda *args: numbers.append(args[0]) or type(mine)._packed(mine, *args)
    with learn.no_logging():
        learn.fit(1, cbs=mine)
    return numbers


def test_the_clock_of_rank_0_counts(tmp_path):
    """The start of training, then after each batch but the first, the validation, and the end."""
    assert on_ranks(2, clocks, tmp_path) == [[0, 2, 3, 4, 5, "all", None]] * 2


# What is on the disk


def test_nothing_of_it_is_a_pickle(tmp_path, written):
    *_, newest = left_behind(tmp_path, written)
    files = sorted(newest.iterdir())
    assert {"layout.json", "manifest.json", "model.0.safetensors", "model.1.safetensors"} <= {
        path.name for path in files
    }
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        else:
            assert path.suffix == ".safetensors"
            load(path.read_bytes())  # which takes no byte that is not a tensor's
    read_checkpoint(newest)  # imports what it needs
    with watch.over(newest) as offences:
        read_checkpoint(newest)
        verify_checkpoint(newest)
    assert not offences


def change_layout(path, how):
    """A layout that lies, sealed as the writer would."""
    plain = json.loads((path / "layout.json").read_bytes())
    how(plain)
    data = json.dumps(plain).encode()
    (path / "layout.json").write_bytes(data)
    stored = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(path, lambda manifest: manifest.update(layout=stored))


def entry(plain):
    return plain["tensors"]["model"]["0.weight"]


LIES = {
    "a dtype of fancy": lambda plain: entry(plain).__setitem__(0, "PICKLE"),
    "another dtype": lambda plain: entry(plain).__setitem__(0, "I32"),
    "a piece too few": lambda plain: entry(plain)[2].pop(),
    "a piece twice": lambda plain: entry(plain)[2].append(entry(plain)[2][0]),
    "of no process": lambda plain: entry(plain)[2][0].__setitem__(0, 7),
    "outside of its tensor": lambda plain: entry(plain)[2][1].__setitem__(1, [9, 0]),
    "a huge tensor": lambda plain: plain["tensors"]["model"].update(
        big=["F32", [1 << 40], [[0, [0], [1 << 40]]]]
    ),
    "a size below zero": lambda plain: entry(plain).__setitem__(1, [-5, 6]),
    "a tensor that is nowhere": lambda plain: plain["tensors"]["model"].update(
        none=["F32", [1], [[0, [0], [1]]]]
    ),
    "tied to nothing": lambda plain: plain["tied"].update({"0": {"model": {"a": "b"}}}),
    "ties of no text": lambda plain: plain["tied"].update({"0": {"model": {"a": 1}}}),
    "not a layout": lambda plain: plain.pop("own"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_layout_that_lies_is_refused(tmp_path, written, lie):
    *_, path = left_behind(tmp_path, written)
    read_checkpoint(path)
    change_layout(path, LIES[lie])
    with watch.over(path) as offences, pytest.raises(DataError, match=r"layout\.json"):
        read_checkpoint(path)
    assert not offences


@pytest.mark.parametrize("name", ["model.2", "model", "../model.0", "model.00", "manifest.0"])
def test_a_manifest_names_only_files_of_its_processes(tmp_path, written, name):
    *_, path = left_behind(tmp_path, written)
    change(path, lambda plain: plain["tensors"].update({name: plain["tensors"].pop("model.0")}))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_checkpoint(path)


# Weights and exports


def saves(path):
    learn = learner(path, "fsdp")
    with learn.no_logging():
        learn.fit(1)
        before = outcome(learn)[0]
        learn.lr_find(num_it=5, show_plot=False)  # which puts all back
    assert is_sharded(learn.model[0].weight)
    saved = learn.save("trained")
    learn.export("export")
    kept = outcome(learn)[0]
    same((before, [], []), (kept, [], []))
    for p in learn.model.parameters():
        p.data.zero_()
    learn.load("trained")
    return saved, kept, outcome(learn)[0]


def test_weights_and_exports_are_whole(tmp_path):
    for saved, kept, loaded in on_ranks(2, saves, tmp_path):
        same((kept, [], []), (loaded, [], []))
        file = load_file(saved)
        assert all(torch.equal(t, kept[name]) for name, t in file.items())
        assert len(file) == 4
    exported = load_learner(tmp_path / "export").model
    assert all(torch.equal(t, kept[name]) for name, t in exported.state_dict().items())


def cannot_save(path):
    learn = learner(path, "fsdp")
    learn.create_opt()
    for verb, argument in ((learn.save, "a"), (learn.export, "models"), (learn.load, "b")):
        with pytest.raises(TreadleError) as seen:
            verb(argument)
        yield type(seen.value).__name__, str(seen.value)


def test_what_rank_0_cannot_save_all_raise(tmp_path):
    (tmp_path / "models").write_text("a file")
    one, other = on_ranks(2, lambda: list(cannot_save(tmp_path)))
    assert one == other
    assert [name for name, _ in one] == ["DataError", "UsageError", "DataError"]
