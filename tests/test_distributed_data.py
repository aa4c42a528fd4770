"""Data in several processes: together they read what one would, each sample once, in its order."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import DistributedSampler, IterableDataset, TensorDataset

from ranks import on_ranks, outcomes
from treadle.data import (
    Balanced,
    CategoryBlock,
    DataBlock,
    DataLoader,
    ImageBlock,
    Order,
    RandomSplitter,
    RegressionBlock,
    Resize,
    Shuffled,
    Weighted,
    adapt,
    aug_transforms,
)
from treadle.data.dealing import taken
from treadle.data.permutation import permutation, permuted
from treadle.data.sharing import processes_here
from treadle.data.workers import default_workers
from treadle.errors import UsageError
from treadle.text import LMLoader, TextDataLoaders
from treadle.world import World, world

SIZES = st.integers(1, 5)


def numbers(n: int) -> TensorDataset:
    x = torch.arange(n)
    return TensorDataset(x, x)


def loader(n: int, size: int = 1, rank: int = 0, **options: Any) -> DataLoader:
    """That of one of `size` processes."""
    made = DataLoader(numbers(n), **{"num_workers": 0, "seed": 3, "device": "cpu", **options})
    made.world = World(rank, size)
    return made


def shares(loaders: list[Any]) -> Iterator[list[tuple[list[int], int, bool]]]:
    """Of each batch what every process has: its samples, the total, and whether it was borrowed."""
    for batches in zip_longest(*loaders):
        assert all(batch is not None for batch in batches)  # all have as many
        yield [
            (y.tolist(), dl.total, dl.borrowed) for (_, y), dl in zip(batches, loaders, strict=True)
        ]


# Loaders of Treadle


@given(st.integers(1, 40), st.integers(1, 12), SIZES, st.booleans(), st.sampled_from("iswb"), SIZES)
@settings(max_examples=80, deadline=None)
def test_together_they_read_the_batches_of_one(
    n: int, global_bs: int, size: int, drop_last: bool, kind: str, start: int
) -> None:
    orders: dict[str, Any] = {
        "i": {},
        "s": {"shuffle": True},
        "w": {"sampler": Weighted(np.arange(n) + 1.0)},
        "b": {"sampler": Balanced(np.arange(n) % 3)},
    }
    options = {"global_bs": global_bs, "drop_last": drop_last, **orders[kind]}
    alone = loader(n, **options)
    several = [loader(n, size, rank, **options) for rank in range(size)]
    assume(start <= len(alone))
    for dl in (alone, *several):
        dl.load_state_dict({**dl.state_dict(), "batch": start})
    expected = [y.tolist() for _, y in alone]
    assert {len(dl) for dl in several} == {len(alone)}
    for whole, parts in zip(expected, shares(several), strict=True):
        own = [samples for samples, _, borrowed in parts if not borrowed]
        assert [*chain(*own)] == whole
        assert {total for _, total, _ in parts} == {len(whole)}
        assert max(map(len, own)) - min(map(len, own)) <= 1
        for dl, (samples, _, borrowed) in zip(several, parts, strict=True):
            assert samples == whole[:1] or not borrowed
            assert len(samples) <= dl.bs and dl.total_bs == global_bs
        assert len(own) == min(size, len(whole))


@given(st.integers(1, 60), st.integers(1, 5), SIZES)
@settings(max_examples=30, deadline=None)
def test_a_batch_size_is_that_of_each(n: int, bs: int, size: int) -> None:
    dl = loader(n, size, bs=bs)
    assert (dl.bs, dl.total_bs, len(dl)) == (bs, bs * size, -(-n // (bs * size)))
    dl.world = World()
    assert (dl.total_bs, len(list(dl))) == (bs, -(-n // bs))


class Pictures:
    def __init__(self, n: int, bad: tuple[int, ...] = ()) -> None:
        self.items, self.bad = [f"{i}.png" for i in range(n)], bad

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index in self.bad:
            raise OSError(f"{index} is damaged")
        pixels = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        return Image.fromarray(pixels), index


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_is_augmented_alike_wherever_it_is_read(workers: int) -> None:
    def pictures(size: int, rank: int) -> DataLoader:
        made = DataLoader(
            *(Pictures(13), 64, True),
            global_bs=6,
            item_tfms=Resize(10),
            batch_tfms=aug_transforms(size=8, min_scale=0.5),
            num_workers=workers,
            seed=3,
            device="cpu",
        )
        made.world = World(rank, size)
        return made

    whole = {int(i): image for x, y in pictures(1, 0) for image, i in zip(x, y, strict=True)}
    for rank in range(4):
        for x, y in pictures(4, rank):
            for image, i in zip(x, y, strict=True):
                assert torch.allclose(image, whole[int(i)], atol=1e-6)


@given(st.integers(5, 40), SIZES, SIZES, st.data())
@settings(max_examples=30, deadline=None)
def test_a_state_goes_from_one_number_of_processes_to_another(
    n: int, before: int, after: int, data: Any
) -> None:
    options = {"global_bs": data.draw(st.integers(1, n - 1)), "shuffle": True}
    first = [loader(n, before, rank, **options) for rank in range(before)]
    done = data.draw(st.integers(1, len(first[0]) - 1))
    running = [iter(dl) for dl in first]
    for it in running:
        for _ in range(done):
            next(it)
    states = [dl.state_dict() for dl in first]
    assert all(state == states[0] for state in states)
    second = [loader(n, after, rank, seed=9, **options) for rank in range(after)]
    for dl in second:
        dl.load_state_dict(states[0])
    left = [
        [*chain(*(part for part, _, borrowed in parts if not borrowed))] for parts in shares(second)
    ]
    assert left == [y.tolist() for _, y in loader(n, **options)][done:]


def test_a_state_of_other_batches_says_which_to_give() -> None:
    state = {**loader(40, global_bs=8).state_dict(), "batch": 2}
    loader(40, 4, bs=2).load_state_dict(state)
    with pytest.raises(UsageError, match=r"batches of 16 in 2 processes together.*global_bs=8\."):
        loader(40, 2, bs=8).load_state_dict(state)


def test_what_a_loader_makes_is_of_its_world() -> None:
    dl = loader(40, 2, 1, global_bs=6)
    of_it = dl.over(numbers(4))
    assert (of_it.world, of_it.global_bs, of_it.bs) == (dl.world, 6, 3)
    assert [y.tolist() for _, y in of_it] == [[2, 3]]
    assert dl.over(numbers(4), bs=5).total_bs == 10
    assert dl.one_batch()[1].tolist() == [3, 4, 5] and dl.batch_of([7], 0)[1].tolist() == [7]
    with pytest.raises(UsageError, match="global_bs=0"):
        loader(4, global_bs=0)


def test_the_processors_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = default_workers()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert processes_here() == 64 and 1 == default_workers() <= alone


def _without_bad(bad: tuple[int, ...]) -> tuple[list[Any], int]:
    dl = DataLoader(
        Pictures(11, bad), global_bs=4, num_workers=0, device="cpu", on_error="skip", cache=None
    )
    return [(y.tolist(), dl.indices.tolist(), dl.total, dl.borrowed) for _, y in dl], len(dl)


def test_skipped_samples_are_counted_and_nobody_waits() -> None:
    # 0 1 | 2 3   4 5 | 6 7   8 | 9 10
    bad = (1, 2, 3, 4, 5, 6, 7, 8)
    first, second = (batches for batches, _ in on_ranks(2, _without_bad, bad))
    assert first == [([0], [0], 1, False), ([9], [9], 2, True)]
    assert second == [([0], [0], 1, True), ([9, 10], [9, 10], 2, False)]
    assert _without_bad(bad)[0] == [([0], [0], 1, False), ([9, 10], [9, 10], 2, False)]


# What is random without a seed, and what must be alike


def _random_parts(n: int) -> list[Any]:
    torch.manual_seed(random.SystemRandom().randrange(2**32))
    split = RandomSplitter()(range(n))
    torch.rand(1)
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda i: None, get_y=lambda i: i % 3)
    dls = block.dataloaders(list(range(n)), bs=4, num_workers=0, device="cpu", cache=None)
    dls.check_alike()
    parts = dls.train_ds.items, dls.valid_ds.items
    return [split, *parts, dls.train.seed, dls.train.world.size]


def test_what_is_drawn_without_a_seed_is_alike() -> None:
    first, second = on_ranks(2, _random_parts, 40)
    assert first == second and first[-1] == 2
    assert _random_parts(40)[:4] != first[:4]


def _dls_of_names(change: str) -> None:
    mine = change if world().rank == 1 else ""
    names = [f"/data{world().rank}/{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(100)]
    if mine == "item":
        names[50], names[51] = names[51], names[50]
    if mine == "samples":
        names = names[:-1]
    block = DataBlock(
        (ImageBlock, CategoryBlock(["cat", "dog"][:: -1 if mine == "vocab" else 1])),
        splitter=lambda items: (range(90), range(90, len(items))),
        get_y=lambda name: name.split("/")[-2],
    )
    seed = 7 if mine == "seed" else 0
    dls = block.dataloaders(names, bs=5 if mine == "bs" else 4, seed=seed, device="cpu")
    if mine == "epoch":
        dls.train.epoch = dls.valid.epoch = 1
    if change == "list":
        dls.loaders.append([()] * (4 - (mine == "list")))
    if mine == "valid epoch":
        dls.valid.epoch = 1
    if mine == "loaders":
        dls.loaders.append(dls.valid)
    dls.check_alike()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("samples", "validation: samples 9, on rank 0 10"),
        ("item", "training: item 50 cat/51.png, on rank 0 dog/50.png"),
        ("seed", "training: seed 7, on rank 0 0"),
        ("bs", "training: batches 9, on rank 0 11"),
        ("vocab", "training: classes with the digest"),
        ("epoch", "training: epoch 1, on rank 0 0"),
        ("list", "2: batches 3, on rank 0 4"),
        ("loaders", "number of loaders 3, on rank 0 2"),
    ],
)
def test_data_that_differ_are_named_by_rank(change: str, words: str) -> None:
    for how, what in outcomes(2, _dls_of_names, change):
        assert how == "raised" and "Rank 1 has other data than rank 0" in what, what
        assert words in what, what


def test_the_same_data_are_alike_wherever_they_lie() -> None:
    for change in ("", "valid epoch"):  # which has an order of its own in no epoch
        assert on_ranks(2, _dls_of_names, change) == [None, None]


# Loaders and batches of others


class Rows(IterableDataset[Any]):
    """Samples without a number of them."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        return ((torch.tensor(i), torch.tensor(i)) for i in range(self.n))


def batches_of(n: int, size: int = 4) -> list[Any]:
    x = torch.arange(n)
    return list(zip(x.split(size), x.split(size), strict=True))


def _seen(kind: str, passes: int = 1) -> list[Any]:
    torch.rand(world().rank)  # the model draws other numbers in each process
    sources: dict[str, Any] = {
        "list": lambda: adapt(batches_of(10), device="cpu"),
        "function": lambda: adapt(lambda: iter(batches_of(10)), device="cpu"),
        "counted": lambda: adapt(lambda: iter(batches_of(40)), n_iter=3, device="cpu"),
        "torch": lambda: adapt(TorchLoader(numbers(10), 4, shuffle=True), device="cpu"),
        "workers": lambda: adapt(
            TorchLoader(numbers(10), 4, shuffle=True, num_workers=1), device="cpu"
        ),
        "stream": lambda: adapt(Rows(10), 2, device="cpu"),
        "numpy": lambda: adapt(_drawn_by_numpy, device="cpu"),
        "data set": lambda: adapt(
            numbers(10), 2, train=True, drop_last=False, seed=1, device="cpu"
        ),
        "few": lambda: adapt(batches_of(5), device="cpu"),
    }
    dl = sources[kind]()
    seen = [[(y.tolist(), dl.total, dl.borrowed) for _, y in dl] for _ in range(passes)]
    return [seen, dl.bs, dl.total_bs]


def _drawn_by_numpy() -> Iterator[Any]:
    order = np.random.permutation(10)
    yield from ((order[k : k + 4], order[k : k + 4]) for k in range(0, 10, 4))


@pytest.mark.parametrize(
    "kind", ["list", "function", "counted", "torch", "workers", "stream", "numpy", "data set"]
)
def test_batches_of_others_are_dealt_out(kind: str) -> None:
    found = on_ranks(2, _seen, kind, 2)
    for one, two in zip(*(passes for passes, _, _ in found), strict=True):
        whole = [a + b for (a, _, _), (b, _, _) in zip(one, two, strict=True)]
        assert [len(batch) for batch in whole] == [total for _, total, _ in one]
        assert sorted(chain(*whole)) == list(range(sum(map(len, whole))))
        if kind in ("list", "function", "counted"):
            assert whole == [y.tolist() for _, y in batches_of(12 if kind == "counted" else 10)]
        assert sum(map(len, whole)) == (12 if kind == "counted" else 10)
        assert all(len(a) == len(b) for (a, _, _), (b, _, _) in zip(one, two, strict=True))
    (first, again), bs, total_bs = found[0]
    if kind in ("torch", "workers", "numpy", "data set"):
        assert first != again  # each pass draws anew
    if kind in ("torch", "workers", "stream", "data set"):
        assert (bs, total_bs) == (2, 4)


def test_a_process_without_a_part_is_lent_a_sample() -> None:
    one, two, three = ((passes[0]) for passes, _, _ in on_ranks(3, _seen, "few"))
    assert one == [([0], 4, False), ([4], 1, True)]
    assert two == [([1], 4, False), ([4], 1, True)]
    assert three == [([2, 3], 4, False), ([4], 1, False)]


def _unlike(kind: str) -> None:
    rank = world().rank
    mine = {
        "shorter": lambda: iter(batches_of(12)[: 3 - rank]),
        "others": lambda: iter(batches_of(12)[rank:]),
        "words": lambda: iter([("a", "b")]),
    }
    for _ in adapt(mine[kind], device="cpu", n_iter=3 if kind == "others" else None):
        pass


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shorter", "function <lambda> ends elsewhere in rank 1 than in rank 0"),
        ("others", "gives other batches to rank 1 than in rank 0"),
        ("words", "gave a batch without a tensor"),
    ],
)
def test_batches_that_cannot_be_dealt_out_are_an_error_in_all(kind: str, words: str) -> None:
    for how, what in outcomes(2, _unlike, kind):
        assert how == "raised" and words in what, what
        assert kind == "words" or "adapt(source, sharded=True)" in what


def _of_its_own(kind: str) -> Any:
    rank = world().rank
    sources: dict[str, Any] = {
        "function": lambda: adapt(lambda: iter(batches_of(10)[rank:]), sharded=True, device="cpu"),
        "list": lambda: adapt(batches_of(10)[: 3 - rank], sharded=True, device="cpu"),
        "nothing": lambda: adapt(batches_of(10)[: 3 - 3 * rank], sharded=True, device="cpu"),
        "sampler": lambda: adapt(
            TorchLoader(
                numbers(10), 2, sampler=DistributedSampler(numbers(10), 2, rank, shuffle=False)
            ),
            device="cpu",
        ),
    }
    dl = sources[kind]()
    length = len(dl) if kind != "function" else None
    seen = [(y.tolist(), dl.total, dl.borrowed) for _, y in dl]
    return seen, length, dl.bs, dl.total_bs


def test_a_source_may_give_each_process_its_own() -> None:
    (one, n, bs, total_bs), (two, m, _, _) = on_ranks(2, _of_its_own, "sampler")
    assert [y for y, _, _ in one] == [[0, 2], [4, 6], [8]]
    assert [y for y, _, _ in two] == [[1, 3], [5, 7], [9]]
    assert [(t, b) for _, t, b in one + two] == [(4, False), (4, False), (2, False)] * 2
    assert (n, m, bs, total_bs) == (3, 3, 2, 4)
    for kind in ("function", "list"):
        (one, n, _, _), (two, m, _, _) = on_ranks(2, _of_its_own, kind)
        assert [(t, b) for _, t, b in one] == [(8, False), (8, False), (2, False)] or (
            kind == "function"
        )
        assert len(one) == len(two) == 3 and n == m and n in (3, None)
        assert [b for _, _, b in two] == [False, False, True]
        assert two[2][0] == [8 if kind == "function" else 4]
    for how, what in outcomes(2, _of_its_own, "nothing"):
        assert how == "raised" and "gives rank 1 no batch at all" in what
    with pytest.raises(UsageError, match="sharded=True is for batches"):
        adapt(numbers(3), sharded=True)


def test_parts_of_what_is_nested() -> None:
    batch = {"ids": torch.arange(6).view(3, 2), "names": ["a", "b", "c"], "scale": torch.ones(2)}
    part = taken((batch, np.arange(3), 7), 3, np.array([1, 2]))
    assert part[0]["ids"].tolist() == [[2, 3], [4, 5]] and part[0]["names"] == ["b", "c"]
    assert part[0]["scale"].shape == (2,) and part[1].tolist() == [1, 2] and part[2] == 7


# Text


@given(st.integers(2, 200), st.integers(1, 9), SIZES, st.integers(1, 7), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_rows_of_a_stream_are_dealt_out(
    n: int, global_bs: int, size: int, seq_len: int, start: int
) -> None:
    assume(n > global_bs)
    docs = np.split(np.arange(n), [n // 3, n // 2])

    def stream(size: int, rank: int) -> LMLoader:
        made = LMLoader(docs, 64, seq_len, True, 5, global_bs=global_bs, device="cpu")
        made.world = World(rank, size)
        return made

    alone, several = stream(1, 0), [stream(size, rank) for rank in range(size)]
    state = {**alone.state_dict(), "batch": min(start, len(alone) - 1)}
    for dl in (alone, *several):
        dl.load_state_dict(state)
        assert dl.state_dict() == state and len(dl) == len(alone)
    for (x, y), *parts in zip(alone, *several, strict=True):
        own = [part for part, dl in zip(parts, several, strict=True) if not dl.borrowed]
        assert torch.equal(torch.cat([u for u, _ in own]), x)
        assert torch.equal(torch.cat([v for _, v in own]), y)
        assert {dl.total for dl in several} == {len(x)} == {global_bs}
        read = [dl.indices for dl in several if not dl.borrowed]
        assert np.array_equal(np.concatenate(read), alone.indices)


def test_documents_of_about_one_length_are_dealt_out() -> None:
    texts = [" ".join(["a"] * (1 + i * 7 % 30)) for i in range(60)]
    options: dict[str, Any] = {"seed": 2, "valid_pct": 0.4, "device": "cpu", "drop_last": False}
    numbers = [float(i) for i in range(60)]
    options["y_block"] = RegressionBlock
    alone = TextDataLoaders.from_lists(texts, numbers, global_bs=8, **options)
    several = [TextDataLoaders.from_lists(texts, numbers, global_bs=8, **options) for _ in "ab"]
    for part in (0, 1):
        loaders = [dls[part] for dls in several]
        for rank, dl in enumerate(loaders):
            dl.world = World(rank, 2)
        for whole, *parts in zip(alone[part], *loaders, strict=True):
            assert torch.equal(torch.cat([lengths for _, lengths, _ in parts]), whole[1])
            assert torch.equal(torch.cat([y for _, _, y in parts]), whole[2])
            for x, lengths, _ in parts:
                assert x.shape == (len(lengths), lengths.max())
    here = TextDataLoaders.from_lists(texts, numbers, bs=8, **options).train
    assert here.sampler.bs == here.total_bs == 8


# A place in the order of very many samples


class Many:
    """A thousand million samples, or more: each is its own index."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(1), index


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_seek_among_a_thousand_million_samples_takes_no_time(shuffle: bool) -> None:
    n = 10**9

    def third(size: int, rank: int) -> DataLoader:
        made = DataLoader(
            *(Many(n), 64, shuffle), global_bs=256, num_workers=0, seed=1, device="cpu"
        )
        made.world = World(rank, size)
        made.load_state_dict({**made.state_dict(), "epoch": 3, "batch": 2_345_678})
        return made

    tracemalloc.start()
    began = time.perf_counter()
    batches = iter(third(1, 0))
    first, second = (next(batches)[1] for _ in range(2))
    took = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 1 and peak < 10_000_000  # an order of all would be 8 GB
    parts = [next(iter(third(8, rank)))[1] for rank in range(8)]
    assert torch.equal(torch.cat(parts), first)
    assert len({*first.tolist(), *second.tolist()}) == 512
    if not shuffle:
        assert first[0] == 2_345_678 * 256
    else:
        assert stats.kstest(first.numpy() / n, "uniform").pvalue > 1e-4


@given(st.integers(1, 3_000), st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_computed_orders_have_every_sample_once(n: int, seed: int, epoch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("treadle.data.permutation._SORTED", 0)
        order = permutation(seed, epoch, n)
        assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(n))
        at = permuted(seed, epoch, n)
        places = np.random.default_rng(0).integers(0, n, (3, 5))
        assert np.array_equal(at(places), order[places])


def test_computed_orders_are_whole_where_they_are_used() -> None:
    n = (1 << 20) + 7
    order = permutation(5, 2, n)
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(permuted(5, 2, n)(np.arange(n - 9, n)), order[-9:])
    assert not np.array_equal(order, permutation(5, 3, n))


def test_computed_orders_are_as_good_as_drawn() -> None:
    """Place and sample are independent over seeds; neighbours, and neighbours of neighbours, in one
    order; and the lengths of its rises are those of a random one."""
    n = (1 << 20) + 12_345
    places = np.array([0, 1, 2, 1_000, n // 2, n - 1])
    drawn = np.stack([permuted(seed, seed % 7, n)(places) for seed in range(4_000)])
    for column in drawn.T:
        counts = np.bincount(column * 40 // n, minlength=40)
        assert stats.chisquare(counts).pvalue > 1e-5
    pairs = np.histogram2d(drawn[:, 0], drawn[:, 1], bins=8, range=[(0, n)] * 2)[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-5
    order = permutation(11, 0, n)
    for lag in (1, 2, 1_024, 1_025, 4_096):
        table = np.histogram2d(order[:-lag], order[lag:], bins=20, range=[(0, n)] * 2)[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-5, lag
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 5 / np.sqrt(n)
        steps = (order[lag:] - order[:-lag]) % 1_024  # what is regular shows in the differences
        assert stats.chisquare(np.bincount(steps, minlength=1_024)).pvalue > 1e-5, lag
    rises = np.diff(np.flatnonzero(np.diff(order) < 0))
    shares = np.bincount(rises, minlength=9)[1:6] / len(rises)
    # a run of k rises and then a fall: Knuth, The Art of Computer Programming 2, 3.3.2 G
    factorial = np.cumprod(np.arange(1.0, 9.0))
    expected = [2 * (k * k + k - 1) / factorial[k + 1] for k in range(1, 6)]
    assert np.allclose(shares, expected, atol=0.003)


def test_an_order_of_ones_own_is_looked_up_in_what_it_says() -> None:
    class Backwards(Order):
        repeats = False

        def order(self, seed: int, epoch: int, n: int) -> Any:
            return np.arange(n)[::-1]

    assert Backwards().lookup(0, 0, 5)(np.array([[0, 4]])).tolist() == [[4, 0]]
    dl = loader(5, global_bs=2, sampler=Backwards())
    assert [y.tolist() for _, y in dl] == [[4, 3], [2, 1], [0]]
    assert Shuffled().lookup(3, 0, 4)(np.arange(4)).tolist() == [0, 3, 2, 1]
