"""Data sets, loaders and iterables of others, as they are, in DataLoaders and through a fit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from treadle.data import DataLoader, DataLoaders
from treadle.data.adapt import adapt, as_dataset, is_dataset
from treadle.data.batches import Batches, as_tensors
from treadle.data.columns import Columns
from treadle.data.order import Balanced
from treadle.errors import DataError, UsageError
from treadle.learner import Learner
from treadle.losses import CrossEntropyLossFlat, MSELossFlat
from treadle.optim import SGD

N, BS = 12, 4
X = torch.arange(2.0 * N).reshape(N, 2) / 24
Y = X.sum(1, keepdim=True)


class Tuples(Dataset):
    """Samples (x, y)."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


class Dicts(Tuples):
    def __getitem__(self, index: int) -> Any:
        return {"id": f"row {index}", "x": X[index], "label": Y[index]}


class Arrays(Tuples):
    def __getitem__(self, index: int) -> Any:
        return X[index].double().numpy(), Y[index].numpy()


class Plain:
    """A data set that is not torch's."""

    __len__ = Tuples.__len__
    __getitem__ = Tuples.__getitem__


class Stream(IterableDataset):
    """Samples without a number of them."""

    def __init__(self, data: Any = None) -> None:
        self.data = data if data is not None else Tuples()

    def __iter__(self) -> Iterator[Any]:
        return (self.data[index] for index in range(len(self.data)))


def batches() -> Iterator[Any]:
    for k in range(0, N, BS):
        yield X[k : k + BS], Y[k : k + BS]


def array_batches() -> Iterator[Any]:
    return ((x.double().numpy(), y.numpy()) for x, y in batches())


def dict_batches() -> Iterator[Any]:
    return ({"x": x, "label": y, "id": ["a"] * len(x)} for x, y in batches())


class Again:
    """An iterable that can be read again, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return batches()


WORK_AS_THEY_ARE: dict[str, Callable[[], Any]] = {
    "a list of batches": lambda: list(batches()),
    "a list of numpy batches": lambda: list(array_batches()),
    "a list of dicts": lambda: list(dict_batches()),
    "a map-style data set": Tuples,
    "a data set of dicts": Dicts,
    "a data set of arrays": Arrays,
    "a data set of no library": Plain,
    "a loader of torch": lambda: TorchLoader(Tuples(), BS),
    "a loader of dicts": lambda: TorchLoader(Dicts(), BS),
    "a loader of a stream": lambda: adapt(TorchLoader(Stream(), BS), n_iter=3),
    "a stream of samples": lambda: adapt(Stream(), BS, n_iter=3),
    "a stream of dicts": lambda: adapt(Stream(Dicts()), BS, n_iter=3),
    "a generator function": lambda: adapt(batches, n_iter=3),
    "a function of numpy batches": lambda: adapt(array_batches, n_iter=3),
    "an iterable": lambda: adapt(Again(), n_iter=3),
    "an iterator, long enough": lambda: adapt((b for _ in range(6) for b in batches()), n_iter=3),
    "a loader of Treadle": lambda: DataLoader(Tuples(), BS, device="cpu"),
}


def learner(dls: DataLoaders, **kwargs: Any) -> Learner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
    return Learner(dls, model, MSELossFlat(), SGD, lr=0.1, **kwargs)


def losses(dls: DataLoaders, epochs: int = 2) -> list[float]:
    learn = learner(dls)
    with learn.no_logging():
        learn.fit(epochs)
    return learn.recorder.raw_losses


@pytest.mark.parametrize("kind", WORK_AS_THEY_ARE)
def test_two_epochs_of(kind: str) -> None:
    valid = WORK_AS_THEY_ARE[kind]()
    train = WORK_AS_THEY_ARE[kind]()
    if is_dataset(train):  # in order, so that there is something to compare with
        train = adapt(train, BS, device="cpu")
    dls = DataLoaders(train, valid, bs=BS, device="cpu")
    assert len(dls.train) == len(dls.valid) == 3
    torch.testing.assert_close(losses(dls), losses(DataLoaders([*batches()], device="cpu")))


def test_data_sets_are_shuffled_to_train_on_and_in_order_to_validate() -> None:
    dls = DataLoaders(Tuples(), Tuples(), bs=5, device="cpu")
    assert (len(dls.train), len(dls.valid), dls.train.n, dls.train.bs) == (2, 3, N, 5)
    x, y = dls.valid.one_batch()
    assert torch.equal(x, X[:5]) and torch.equal(y, Y[:5])
    orders = [torch.cat([y for _, y in dls.train]).flatten().tolist() for _ in range(2)]
    assert orders[0] != orders[1] and len(set(orders[0])) == 10
    assert not torch.equal(torch.tensor(orders[0]), Y.flatten()[:10])


def test_from_dsets() -> None:
    dls = DataLoaders.from_dsets(
        Dicts(), Tuples(), Tuples(), bs=5, seed=3, num_workers=0, device="cpu", path="here"
    )
    assert (len(dls), len(dls.train), len(dls[2]), dls.path) == (3, 2, 3, Path("here"))
    assert dls.train.seed == dls.valid.seed == 3
    whole = DataLoaders.from_dsets(Tuples(), bs=5, shuffle=False, drop_last=False, device="cpu")
    assert torch.equal(torch.cat([y for _, y in whole.train]), Y)
    doubled = DataLoaders.from_dsets(
        Tuples(), Tuples(), bs=N, shuffle=False, batch_tfms=lambda x: 2 * x, device="cpu"
    )
    for dl in doubled:
        assert torch.equal(dl.one_batch()[0], 2 * X)
    with pytest.raises(UsageError, match="got no data set"):
        DataLoaders.from_dsets()


# Lengths


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (batches, "The function batches"),
        (batches(), "The generator batches"),
        (Again(), "An Again"),
        (Stream(), "A Stream"),
        (TorchLoader(Stream(), BS), "A DataLoader"),
        (map(tuple, ()), "A map"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_a_length_a_fit_says_what_to_give(source: Any, name: str) -> None:
    dls = DataLoaders(source, device="cpu")
    with pytest.raises(UsageError, match=rf"{name} does not say how many .*n_iter=\.\.\."):
        losses(dls)
    with pytest.raises(TypeError):  # what list() and others go by
        len(dls.train)


def test_a_generator_is_read_once_and_says_so() -> None:
    dls = DataLoaders(adapt(batches(), n_iter=3), device="cpu")
    with pytest.raises(DataError, match=r"generator batches ended after 0 of n_iter=3.*function"):
        losses(dls, epochs=2)
    assert len(losses(DataLoaders(adapt(batches(), n_iter=3), device="cpu"), epochs=1)) == 3


def test_an_iterator_that_has_a_length_is_read_once_too() -> None:
    class Counted:
        def __init__(self) -> None:
            self.left = batches()

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return next(self.left)

    dls = DataLoaders(Counted(), device="cpu")
    with pytest.raises(DataError, match=r"A Counted ended after 0 batches\. An iterator is read"):
        losses(dls, epochs=2)


def test_fewer_batches_than_were_promised() -> None:
    with pytest.raises(DataError, match=r"function batches ended after 3 of n_iter=5 batches\.$"):
        losses(DataLoaders(adapt(batches, n_iter=5), device="cpu"))


def test_an_epoch_may_be_a_part_of_the_source() -> None:
    assert len(losses(DataLoaders(adapt(batches, n_iter=2), device="cpu"), epochs=3)) == 6
    one_after_another = adapt(batches(), n_iter=1, device="cpu")
    seen = [y for _ in range(3) for _, y in one_after_another]
    assert torch.equal(torch.cat(seen), Y)
    with pytest.raises(UsageError, match="n_iter=0"):
        adapt(batches, n_iter=0)


def test_a_stream_with_a_length() -> None:
    class Sized(Stream):
        def __len__(self) -> int:
            return N

    dl = adapt(Sized(), 5, device="cpu")
    assert len(dl) == 3 and [len(y) for _, y in dl] == [5, 5, 2]


def test_a_stream_learns_the_epoch() -> None:
    class Shuffled(Stream):
        def set_epoch(self, epoch: int) -> None:
            self.data = [Tuples()[(i + epoch) % N] for i in range(N)]

    dl = adapt(Shuffled(), N, n_iter=1, device="cpu")
    firsts = [x[0].tolist() for _ in range(3) for x, _ in dl]
    assert firsts == X[:3].tolist()


def test_a_look_at_a_batch_takes_none_away() -> None:
    dls = DataLoaders(adapt(batches(), n_iter=3), device="cpu")
    assert torch.equal(dls.one_batch()[0], X[:BS]) and torch.equal(dls.one_batch()[0], X[:BS])
    assert torch.equal(torch.cat([y for _, y in dls.train]), Y)
    with pytest.raises(DataError, match="There is no batch: A list_iterator has none"):
        adapt(iter([]), n_iter=1).one_batch()


# Columns


def test_columns_by_their_usual_names() -> None:
    assert Columns.of(None, None).parts({"pixel_values": 1, "labels": 2, "idx": 3}) == (1, 2)
    assert Columns.of(None, None).parts({"anything": 1, "y": 2}) == (1, 2)
    assert Columns.of(None, ()).parts({"x": 1, "y": 2}) == (1,)
    assert Columns.of(["b", "a"], "c").parts({"a": 1, "b": 2, "c": 3, "label": 4}) == (2, 1, 3)
    assert Columns.of(None, None).parts((1, 2)) == (1, 2)
    assert Columns.of(None, None).parts("word") == ("word",)


@pytest.mark.parametrize(
    ("names", "keys", "words"),
    [
        ((None, None), ["a", "b", "label"], "columns 'a', 'b' are inputs; give inputs="),
        ((None, None), ["image", "x", "label"], "columns 'image', 'x' are inputs"),
        ((None, None), ["x", "label", "target"], "'x', 'label', 'target' are targets"),
        ((None, None), ["x", "age"], "are targets; give targets="),
        (("pixels", None), ["pixel", "label"], "no column 'pixels'; did you mean pixel?"),
        (((), None), ["x"], "inputs=.. names no column"),
    ],
)
def test_columns_that_are_not_clear(names: Any, keys: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Columns.of(*names).parts(dict.fromkeys(keys, 0))


def test_named_columns_of_batches_and_samples() -> None:
    class Two(Tuples):
        def __getitem__(self, index: int) -> Any:
            return {"a": X[index], "b": 2 * X[index], "c": Y[index]}

    for source in (
        Two(),
        TorchLoader(Two(), BS),
        adapt(Stream(Two()), BS, inputs=["a", "b"], targets="c", n_iter=3),
    ):
        dls = DataLoaders(source, bs=BS, inputs=["a", "b"], targets="c", device="cpu")
        a, b, c = dls.one_batch()
        assert dls.n_inp == 2 and torch.equal(2 * a, b) and torch.equal(a.sum(1, keepdim=True), c)


def test_of_several_elements_the_last_is_the_target() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.scale * (a + b)

    data = TensorDataset(X, X, Y.expand(-1, 2))
    for source in (data, TorchLoader(data, BS)):
        learn = Learner(DataLoaders(source, bs=BS, device="cpu"), Add(), MSELossFlat())
        with learn.no_logging():
            learn.fit(1)
        assert len(learn.xb) == 2 and learn.recorder.losses


def test_samples_that_are_no_tuples() -> None:
    class Alone(Tuples):
        def __getitem__(self, index: int) -> Any:
            return X[index]

    (x,) = adapt(Alone(), BS, device="cpu").one_batch()
    assert torch.equal(x, X[:BS])
    (x,) = adapt(Stream(Alone()), BS, n_iter=1, device="cpu").one_batch()
    assert torch.equal(x, X[:BS])
    (x,) = adapt([X.numpy()] * 2, device="cpu").one_batch()
    assert torch.equal(x, X)


# Tensors


@given(
    st.sampled_from(
        "bool uint8 int8 int16 int32 int64 uint16 uint32 float16 float32 float64".split()
    ),
    st.lists(st.integers(0, 100), max_size=6),
)
def test_arrays_become_tensors_of_the_same_values(dtype: str, values: list[int]) -> None:
    array = np.array(values, dtype)
    tensor = as_tensors(array)
    assert np.array_equal(tensor.numpy(), array)
    kinds = {"float64": "float32", "float16": "float16", "bool": "bool", "uint8": "uint8"}
    default = "float32" if dtype.startswith("float") else "int64"
    assert str(tensor.dtype) == f"torch.{kinds.get(dtype, default)}"


def test_arrays_of_any_layout() -> None:
    array = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    readonly = array.copy()
    readonly.flags.writeable = False
    for view in (array[::-1], array.T, array[:, ::2], readonly, np.float32(3), np.float64(2)):
        assert np.array_equal(as_tensors(view).numpy(), view)
    shared = as_tensors(array)
    shared[0, 0] = 7
    assert array[0, 0] == 7  # nothing was copied


def test_what_is_nested_moves_and_what_is_no_number_stays() -> None:
    Pair = namedtuple("Pair", "left right")
    batch = (
        {"ids": np.arange(3), "more": [torch.zeros(2), ("word", None)]},
        Pair(torch.ones(1), np.array(["a", "b"])),
    )
    (loader,) = DataLoaders(adapt(lambda: iter([batch]), n_iter=1), device="meta")
    ((x, y),) = loader
    assert x["ids"].is_meta and x["ids"].dtype == torch.int64 and x["more"][0].is_meta
    assert x["more"][1] == ("word", None)
    assert isinstance(y, Pair) and y.left.is_meta and y.right.tolist() == ["a", "b"]


def test_images_of_a_stream() -> None:
    class Pictures(Tuples):
        def __getitem__(self, index: int) -> Any:
            mode = "RGB" if self.colour else "L"
            return Image.new(mode, (5, 4), (51, 0, 0) if self.colour else 51), index, 0.5

    for colour in (True, False):
        data = Pictures()
        data.colour = colour
        x, index, number = next(iter(adapt(Stream(data), 2, n_iter=1, device="cpu")))
        assert x.shape == (2, 3 if colour else 1, 4, 5) and x.dtype == torch.float32
        assert torch.allclose(x[:, 0], torch.tensor(0.2))
        assert index.tolist() == [0, 1] and number.dtype == torch.float32


# What is known of a data set


def test_classes_of_a_data_set_of_torchvision() -> None:
    class Like(Tuples):
        classes = ("cat", "dog")
        targets = (0, 1) * (N // 2)

        def __getitem__(self, index: int) -> Any:
            return X[index], self.targets[index]

    dls = DataLoaders(Like(), Like(), bs=BS, device="cpu")
    assert dls.vocab == ["cat", "dog"] and dls.c == 2
    assert isinstance(dls.loss_func, CrossEntropyLossFlat)
    balanced = DataLoader(as_dataset(Like()), BS, sampler=Balanced(), device="cpu")
    assert torch.cat([y for _, y in balanced]).sum() == N // 2
    learn = Learner(dls, nn.Linear(2, dls.c))
    with learn.no_logging():
        learn.fit(1)
    none = DataLoaders(Tuples(), device="cpu")
    assert not hasattr(none, "vocab") and not hasattr(none, "c") and none.loss_func is None


def test_what_was_given_is_at_hand() -> None:
    plain = TorchLoader(Tuples(), 3)
    dls = DataLoaders(plain, Tuples(), device="cpu")
    assert isinstance(dls.train, Batches) and dls.train.source is plain
    assert dls.train.batch_size == dls.train.bs == 3 and dls.train_ds is plain.dataset
    assert dls.valid_ds.source.__class__ is Tuples
    with pytest.raises(AttributeError):
        _ = dls.train.no_such_thing
    again = DataLoaders(dls.train, dls.valid)
    assert again.train is dls.train and again.valid is dls.valid
    listed = list(batches())
    assert adapt(listed) is listed and adapt([]) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (X, r"A Tensor gives no batches.*TensorDataset\(x, y\)"),
        (X.numpy(), "A ndarray gives no batches.*TensorDataset"),
        ("images/train", "A str gives no batches.*DataBlock"),
        (Tuples, r"The class Tuples gives no batches.*Make one: Tuples\(\.\.\.\)"),
        ({"train": Tuples(), "test": Tuples()}, r"DataLoaders\(d\['train'\], d\['test'\]\)"),
        (7, "An int gives no batches"),
        (type("Short", (Dataset,), {"__getitem__": lambda self, i: i})(), "without a length"),
    ],
    ids=lambda value: "",
)
def test_what_gives_no_batches(source: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DataLoaders(source, device="cpu")


def test_options_of_samples_are_not_for_batches() -> None:
    with pytest.raises(UsageError, match="item_tfms=, seed= would act on the samples"):
        adapt(batches, seed=1, item_tfms=None)
    with pytest.raises(UsageError, match="bs=0"):
        adapt(Stream(), 0)


# Hugging Face


def rows(n: int = 12) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "emu"]),
            "age": datasets.Value("float64"),
            "vector": datasets.Sequence(datasets.Value("float64"), length=2),
            "words": datasets.Value("string"),
        }
    )
    made = {
        "image": [Image.new("RGB", (6, 5), (20 * i, 0, 0)) for i in range(n)],
        "label": [i % 3 for i in range(n)],
        "age": [i / 10 for i in range(n)],
        "vector": [[i, -i] for i in range(n)],
        "words": ["some"] * n,
    }
    return datasets.Dataset.from_dict(made, features=features)


def test_rows_with_images_and_classes() -> None:
    dls = DataLoaders(rows(), rows(6), bs=4, device="cpu")
    x, y = dls.valid.one_batch()
    assert x.shape == (4, 3, 5, 6) and torch.allclose(x[:, 0, 0, 0], torch.arange(4) * 20 / 255)
    assert y.tolist() == [0, 1, 2, 0]
    assert dls.vocab == ["cat", "dog", "emu"] and dls.c == 3
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(90, dls.c)))
    with learn.no_logging():
        learn.fit(1)
    assert learn.recorder.values[0][1] > 0
    balanced = DataLoaders.from_dsets(rows(), bs=6, sampler=Balanced(), device="cpu")
    assert torch.bincount(torch.cat([y for _, y in balanced.train])).tolist() == [4, 4, 4]


def test_named_rows() -> None:
    dls = DataLoaders(rows(), bs=12, inputs="vector", targets="age", device="cpu")
    x, y = next(iter(dls.train))
    assert x.shape == (12, 2) and x.dtype == y.dtype == torch.float32
    assert torch.equal(x[:, 0], (10 * y).round()) and isinstance(dls.loss_func, MSELossFlat)
    with pytest.raises(UsageError, match="column 'words' holds text"):
        DataLoaders(rows(), inputs="words")
    with pytest.raises(UsageError, match="no column 'picture'"):
        DataLoaders(rows(), inputs="picture")


def test_rows_without_a_class() -> None:
    data = rows(4).map(lambda row, i: {"label": -1 if i == 2 else 0}, with_indices=True)
    with pytest.raises(DataError, match="Row 2 has no class in the column 'label': -1"):
        list(adapt(data, 4, device="cpu"))


def test_only_the_rows_of_a_batch_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    data = rows()
    feature = type(data.features["image"])
    decode = feature.decode_example
    monkeypatch.setattr(
        feature, "decode_example", lambda self, *a, **k: (read.append(1), decode(self, *a, **k))[1]
    )
    adapt(data, 3, device="cpu", num_workers=0).one_batch()
    assert len(read) == 3
    DataLoaders.from_dsets(data, bs=3, device="cpu", num_workers=0).one_batch()
    assert len(read) == 6


def test_rows_with_a_transform_of_their_own() -> None:
    def doubled(batch: Any) -> Any:
        return {"x": 2 * torch.tensor(batch["vector"]), "label": batch["label"]}

    data = rows().with_transform(doubled)
    x, y = adapt(data, 12, device="cpu").one_batch()
    assert torch.equal(x[:, 0], 2.0 * torch.arange(12)) and y.tolist() == [0, 1, 2] * 4


def test_a_stream_of_rows() -> None:
    stream = rows().to_iterable_dataset()
    dls = DataLoaders(adapt(stream, 4, n_iter=3), device="cpu")
    x, y = dls.one_batch()
    assert x.shape == (4, 3, 5, 6) and torch.allclose(x[:, 0, 0, 0], torch.arange(4) * 20 / 255)
    assert y.tolist() == [0, 1, 2, 0] and len(list(dls.train)) == 3


# Worker processes


def script(tmp_path: Path, what: str, **loader: Any) -> tuple[int, str, float]:
    """Status, output and seconds of a fit over torch's loader with two worker processes, where
    sample 77 does `what`."""
    file = tmp_path / "fit.py"
    file.write_text(
        textwrap.dedent(f"""
            import os, sys, time
            import torch
            from torch import nn
            from torch.utils.data import DataLoader, Dataset
            from treadle.data import DataLoaders
            from treadle.learner import Learner
            from treadle.losses import MSELossFlat

            class Data(Dataset):
                def __len__(self):
                    return 2000
                def __getitem__(self, index):
                    if index == 77:
                        {what}
                    return torch.ones(3), torch.ones(1)

            if __name__ == "__main__":
                train = DataLoader(Data(), 8, num_workers=2, **{loader!r})
                learn = Learner(DataLoaders(train, device="cpu"), nn.Linear(3, 1), MSELossFlat())
                start = time.perf_counter()
                try:
                    learn.fit(2)
                finally:
                    print("seconds", time.perf_counter() - start)
        """)
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, file], env=env, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    return done.returncode, done.stderr, float(done.stdout.split("seconds")[1])


@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
@pytest.mark.parametrize("persistent", [False, True])
def test_a_killed_worker_process_is_an_error_soon(tmp_path: Path, persistent: bool) -> None:
    kill = "os.kill(os.getpid(), 9)"
    code, said, seconds = script(tmp_path, kill, persistent_workers=persistent)
    assert code == 1 and seconds < 10
    assert "signal 9 (SIGKILL)" in said or "is killed by signal: Killed" in said


def test_what_a_worker_process_raises_comes_with_its_traceback(tmp_path: Path) -> None:
    code, said, seconds = script(tmp_path, 'raise KeyError("no such picture")')
    assert code == 1 and seconds < 10
    assert "KeyError: " in said and "no such picture" in said
    assert 'raise KeyError("no such picture")' in said and "in __getitem__" in said


def test_batches_of_worker_processes_come_in_order() -> None:
    start = time.perf_counter()
    context = "fork" if sys.platform == "linux" and sys.version_info < (3, 12) else "spawn"
    loader = TorchLoader(TensorDataset(X, Y), BS, num_workers=2, multiprocessing_context=context)
    dls = DataLoaders(loader, device="cpu")
    assert torch.equal(torch.cat([x for x, _ in dls.train]), X)
    for _ in dls.train:
        break
    assert time.perf_counter() - start < 60
