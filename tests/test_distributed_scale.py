"""The page on several processes says what its script computes, and the script what is so."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ranks import on_ranks
from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.loop.events import Callback

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text()


@pytest.fixture(scope="module")
def scale():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import scale

        yield scale
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def work(scale):
    import scale_work

    return scale_work


def test_the_tables_of_the_page_are_what_the_script_prints(scale):
    assert scale.filled(PAGE) == PAGE, "run `python benchmarks/scale.py docs/scale.md`"
    places = [found[2] for found in scale.PLACE.finditer(PAGE)]
    assert sorted(places) == sorted(scale.TABLES)


def test_so_are_the_numbers_in_its_sentences(scale):
    text = " ".join(PAGE.split())
    assert [fact for fact in scale.facts() if fact not in text] == []


def test_files_and_tests_that_the_page_names_are_there(scale):
    for target in re.findall(r"\]\((\.\./[^)#]+|[\w-]+\.md)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_distributed_*.py"))
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {name}(" in tests, name


def test_the_models_are_those_of_torchvision_and_of_the_papers(work):
    import torchvision

    with torch.device("meta"):
        resnet = torchvision.models.resnet50()
    params = list(resnet.parameters())
    model = work.MODELS[0]
    assert (model.params, model.tensors) == (sum(p.numel() for p in params), len(params))

    def llama(layers: int, width: int, keys: int, hidden: int, words: int = 32_000) -> int:
        layer = 2 * width**2 + 2 * width * keys + 3 * width * hidden + 2 * width
        return layers * layer + 2 * words * width + width

    assert work.MODELS[2].params == llama(32, 4096, 4096, 11_008)
    assert work.MODELS[3].params == llama(80, 8192, 1024, 28_672)


def test_blocks_are_those_that_fsdp_gathers(work):
    import torchvision

    from treadle.distributed.fsdp import _blocks

    with torch.device("meta"):
        resnet = torchvision.models.resnet50()
    blocks = _blocks(resnet)
    assert work.MODELS[0].blocks == len(blocks) + 1
    assert work.MODELS[0].largest == max(sum(p.numel() for p in b.parameters()) for b in blocks)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_a_ring_sends_what_the_formulas_say(work, n):
    """Counted: a reduce-scatter, or a gather, is n - 1 rounds of a message of an n-th."""
    model = work.MODELS[1]
    one = (n - 1) * 4 * model.params / n
    assert work.sent(model, work.DDP, n) == pytest.approx(2 * one)
    assert work.sent(model, work.FSDP, n) == pytest.approx(3 * one)
    assert work.sent(model, work.FSDP_BF16, n) == pytest.approx(2 * one / 2 + one)


def test_no_step_is_shorter_than_its_computation_or_its_sending(work):
    for model in work.MODELS:
        for mode in work.MODES:
            for n, (_, speed) in work.PLACES:
                step = work.step(model, mode, n, speed)
                least = max(model.compute, work.sending(model, mode, n, speed))
                assert least <= step * (1 + 1e-12) <= 2.001 * least


def test_the_interval_is_the_best(work):
    """Daly's: no other loses less."""
    cost, between = 3.0, 4e4
    best = work.interval(cost, between)
    losses = [work.lost(cost, best * f, between, 10.0) for f in (0.5, 0.9, 1.0, 1.1, 2.0)]
    assert min(losses) == losses[2]
    assert best == pytest.approx(math.sqrt(2 * cost * between))


def test_a_piece_of_a_tensor_takes_so_many_bytes_in_the_layout(work):
    from treadle.run.layout import Laid, Layout, Piece, to_bytes

    n, rows, width = 1024, 8192, 8192
    each = rows // n
    pieces = tuple(Piece(rank, (rank * each, 0), (each, width)) for rank in range(n))
    layout = Layout(
        {"model": {"layers.0.attention.wq.weight": Laid(torch.float32, (rows, width), pieces)}}
    )
    assert len(to_bytes(layout)) / n == pytest.approx(work.PIECE, rel=0.1)


def _exchanges(n_batches: int, hears: bool) -> tuple[int, int]:
    """How often hosts and GPUs exchange something in an epoch of so many batches, and in a
    validation of as many."""
    calls = 0

    def counted(work):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            return work(*args, **kwargs)

        return call

    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(4 * n_batches, 3), torch.randn(4 * n_batches))
    dls = DataLoaders.from_dsets(data, data, global_bs=4, num_workers=0, device="cpu")
    cbs = [Callback(after_pred=lambda cb: None)] if hears else []
    learn = Learner(dls, nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), nn.MSELoss(), cbs=cbs)
    with learn.no_logging(), pytest.MonkeyPatch.context() as patch:
        for name in "all_reduce broadcast all_gather all_gather_object barrier".split():
            patch.setattr(dist, name, counted(getattr(dist, name)))
        learn.fit(1)
        trained, calls = calls, 0
        learn.validate()
    return trained, calls


@pytest.mark.parametrize(("hears", "training", "validation"), [(False, 1, 0), (True, 2, 1)])
def test_a_batch_takes_one_exchange_and_one_more_for_each_event_that_a_user_hears(
    hears, training, validation
):
    (few, valid_few), (many, valid_many) = (on_ranks(2, _exchanges, n, hears)[0] for n in (10, 30))
    in_a_fit = many - few - (valid_many - valid_few)  # which validates as well
    assert in_a_fit == 20 * training and valid_many - valid_few == 20 * validation
