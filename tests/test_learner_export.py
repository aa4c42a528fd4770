"""An exported learner predicts the same bits, and its files carry no code."""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers import tiny_learner
from treadle import registry
from treadle.data import (
    CategoryBlock,
    ColReader,
    DataBlock,
    ImageBlock,
    IndexSplitter,
    MaskBlock,
    MultiCategoryBlock,
    Normalize,
    PointBlock,
    RegressionBlock,
    Resize,
    aug_transforms,
    imagenet_stats,
)
from treadle.errors import DataError, UsageError
from treadle.learner import Learner, load_learner
from treadle.losses import LabelSmoothingCrossEntropy
from treadle.registry import register
from treadle.vision import vision_learner

Label = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BY_NAME", dict(registry._BY_NAME))
    monkeypatch.setattr(registry, "_NAMES", dict(registry._NAMES))


@register(name="tests.SmallNet")
class SmallNet(nn.Module):
    """Two convolutions, and one number a class or one a class and pixel."""

    def __init__(self, n_in: int, n_out: int, dense: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(n_in, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, n_out, 1)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores if self.dense else scores.mean((2, 3))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """12 JPEG files of several sizes, with structure at every scale."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    files = []
    for i in range(12):
        small = rng.integers(0, 255, (7, 9, 3), np.uint8)
        image = Image.fromarray(small).resize((60 + 7 * i, 80 - 3 * i), Image.Resampling.BICUBIC)
        files.append(folder / f"{'ab'[i % 2]}{i}.jpg")
        image.save(files[-1], quality=90)
    return files


def loaders(files: list[Path], block: Any, get_y: Label, mode: str = "RGB", **given: Any) -> Any:
    stats = imagenet_stats if mode == "RGB" else ([0.45], [0.22])
    tfms = [*aug_transforms(size=32), Normalize.from_stats(*stats)]
    plan = {"item_tfms": Resize(48, method="pad"), "batch_tfms": tfms, **given}
    dblock = DataBlock(
        (ImageBlock(mode), block), get_y=get_y, splitter=IndexSplitter([9, 10, 11]), **plan
    )
    return dblock.dataloaders(files, bs=4, device="cpu", num_workers=0, seed=1)


def first_letter(path: Path) -> str:
    return path.name[0]


def taught(learn: Learner, path: Path) -> Learner:
    learn.path = path
    with learn.no_logging():
        learn.fit(1, 1e-3)
    return learn


def agree(learn: Learner, files: list[Path]) -> Learner:
    """The loaded learner, after its predictions were found to have the same bits."""
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        folder = learn.export("out")
        loaded = load_learner(folder)
        assert torch.equal(state, torch.get_rng_state())  # export and load draw nothing
    for item in (files[0], Image.open(files[3]), np.asarray(Image.open(files[5]))):
        label, decoded, preds = learn.predict(item)
        label2, decoded2, preds2 = loaded.predict(item)
        assert label == label2
        assert torch.equal(decoded, decoded2)
        assert preds.dtype == preds2.dtype
        assert torch.equal(preds, preds2)
    return loaded


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet34", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
)
def test_a_vision_learner_predicts_the_same_bits(
    arch: str, pictures: list[Path], tmp_path: Path
) -> None:
    dls = loaders(pictures, CategoryBlock, first_letter)
    learn = vision_learner(dls, arch, pretrained=False, lin_ftrs=(16,), ps=0.2)
    learn = taught(learn, tmp_path)
    loaded = agree(learn, pictures)
    assert loaded.dls.vocab == ["a", "b"]
    assert repr(loaded.model) == repr(learn.model)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_every_arch_of_ours_is_described(name: str) -> None:
    """As a function too; the larger ones are not built here."""
    import treadle.vision

    described = registry.described(getattr(treadle.vision, name))
    assert described == {"name": name}
    assert registry.restored(described) is getattr(treadle.vision, name)


def test_trained_weights_are_not_fetched_again(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.vision import models

    asked = []

    def build(name: str, weights: str | None = None) -> nn.Module:
        asked.append(weights)
        from torchvision.models import get_model

        return get_model(name, weights=None)

    monkeypatch.setattr(models, "build_arch", build)
    dls = loaders(pictures, CategoryBlock, first_letter)
    learn = vision_learner(dls, models.resnet18, pretrained=True, path=tmp_path)
    load_learner(learn.export())
    assert asked == ["DEFAULT", None, None]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_registered_module_of_the_user(mode: str, pictures: list[Path], tmp_path: Path) -> None:
    dls = loaders(pictures, CategoryBlock(add_na=True), first_letter, mode)
    model = SmallNet(3 if mode == "RGB" else 1, n_out=3)
    loss = LabelSmoothingCrossEntropy(0.2, weight=torch.tensor([0.5, 1.0, 1.1]))
    loaded = agree(taught(Learner(dls, model, loss), tmp_path), pictures)
    assert loaded.dls.vocab == ["#na#", "a", "b"]
    assert torch.equal(loaded.loss_func.weight, loss.weight)


def letters(path: Path) -> list[str]:
    return [path.stem[0], "even" if int(path.stem[1:]) % 4 < 2 else "odd"][: int(path.stem[1:]) % 3]


def size_of(path: Path) -> list[float]:
    with Image.open(path) as image:
        width, height = image.size
    return [width / 100, height / 100]


def middle(path: Path) -> list[tuple[float, float]]:
    with Image.open(path) as image:
        width, height = image.size
    return [(width / 2, height / 2), (1.0, 1.0)]


def mask(path: Path) -> Any:
    with Image.open(path) as image:
        return (np.asarray(image.convert("L")) > 127).astype(np.uint8)


@pytest.mark.parametrize(
    ("block", "get_y", "n_out"),
    [
        (MultiCategoryBlock, letters, None),
        (RegressionBlock, size_of, 2),
        (MaskBlock(["dark", "light"]), mask, 2),
    ],
)
def test_other_targets(
    block: Any, get_y: Label, n_out: int | None, pictures: list[Path], tmp_path: Path
) -> None:
    dls = loaders(pictures, block, get_y)
    model = SmallNet(3, n_out or dls.c, dense=get_y is mask)
    loaded = agree(taught(Learner(dls, model), tmp_path), pictures)
    assert loaded.dls.c == dls.c
    assert repr(loaded.dls.train_ds.blocks) == repr(dls.train_ds.blocks)


def test_points(pictures: list[Path], tmp_path: Path) -> None:
    dls = loaders(pictures, PointBlock, middle)
    learn = taught(Learner(dls, SmallNet(3, 4)), tmp_path)
    loaded = load_learner(learn.export())
    assert loaded.dls.c == dls.c == 4
    x = dls.valid.one_batch()[0]
    with torch.no_grad():
        assert torch.equal(loaded.model.eval()(x), learn.model.eval()(x))


def test_labels_that_are_registered_come_along(pictures: list[Path], tmp_path: Path) -> None:
    table = [{"file": str(path), "kind": path.name[0]} for path in pictures]
    dls = loaders(table, CategoryBlock, ColReader("kind"), get_x=ColReader("file"))
    learn = taught(Learner(dls, SmallNet(3, 2)), tmp_path)
    loaded = agree(learn, pictures)
    wanted = learn.validate(dl=learn.dls.test_dl(table, with_labels=True))
    assert loaded.validate(dl=loaded.dls.test_dl(table, with_labels=True)) == wanted


def test_labels_that_are_not_registered_are_missed_only_when_asked_for(
    pictures: list[Path], tmp_path: Path
) -> None:
    learn = Learner(loaders(pictures, CategoryBlock, first_letter), SmallNet(3, 2), path=tmp_path)
    loaded = load_learner(learn.export())
    with pytest.raises(UsageError, match="get_y is not in the export, because"):
        loaded.validate(dl=loaded.dls.test_dl(pictures, with_labels=True))


def test_precision_comes_along(pictures: list[Path], tmp_path: Path) -> None:
    learn = Learner(loaders(pictures, CategoryBlock, first_letter), SmallNet(3, 2), path=tmp_path)
    assert agree(learn.to_bf16(), pictures).precision.name == "bf16"


def test_tied_weights_and_buffers(tmp_path: Path) -> None:
    @register
    class Tied(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(n, n), nn.Linear(n, 4)
            self.c = nn.Linear(n, n)
            self.c.weight = self.a.weight
            self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.c(self.a(x)))
            return out

    model = Tied(8)
    model.seen += 7
    learn = tiny_learner(model=model, path=tmp_path)
    loaded = load_learner(learn.export())
    assert loaded.model.seen.tolist() == [7, 7, 7]
    assert loaded.model.a.weight is loaded.model.c.weight
    batches = list(learn.dls.valid)  # of batches that are not ours, only whole batches are known
    for mine, other in zip(learn.get_preds(dl=batches), loaded.get_preds(dl=batches), strict=True):
        assert torch.equal(mine, other)


# What cannot be exported


def test_a_model_built_by_hand_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the model holds a torch.*function of yours.*@treadle.r"):
        tiny_learner(path=tmp_path).export()
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_changed_is_told(tmp_path: Path, pictures: list[Path]) -> None:
    model = SmallNet(3, 2)
    learn = Learner(loaders(pictures, CategoryBlock, first_letter), model, path=tmp_path)
    model.body[2] = nn.GELU()
    with pytest.raises(UsageError, match=r"changed after tests.SmallNet made it"):
        learn.export()
    learn.model = SmallNet(3, 2).double()
    with pytest.raises(UsageError, match=r"changed after"):
        learn.export()


@pytest.mark.parametrize("place", ["item_tfms", "batch_tfms", "get_x", "loss"])
def test_a_part_that_is_not_registered_is_named(
    place: str, pictures: list[Path], tmp_path: Path
) -> None:
    def mine(x: Any) -> Any:
        return x

    given = {} if place == "loss" else {place: mine}
    dls = loaders(pictures, CategoryBlock, first_letter, **given)
    loss = nn.CrossEntropyLoss() if place == "loss" else None
    learn = Learner(dls, SmallNet(3, 2), loss, path=tmp_path)
    with pytest.raises(UsageError, match=rf"{place}.*@treadle.register"):
        learn.export()


def test_torchvision_transforms_by_a_function_of_the_user(
    pictures: list[Path], tmp_path: Path
) -> None:
    from torchvision.transforms import v2

    @register
    def usual(size: int) -> Any:
        return v2.Compose([v2.RandomResizedCrop(size), v2.ColorJitter(0.3)])

    given = {"item_tfms": [Resize(40), usual(32)], "batch_tfms": None}
    dls = loaders(pictures, CategoryBlock, first_letter, **given)
    agree(taught(Learner(dls, SmallNet(3, 2)), tmp_path), pictures)


def test_an_export_is_replaced_and_nothing_else_is(pictures: list[Path], tmp_path: Path) -> None:
    learn = Learner(loaders(pictures, CategoryBlock, first_letter), SmallNet(3, 2), path=tmp_path)
    learn.export("a")
    with torch.no_grad():
        learn.model.head.bias.fill_(3)
    learn.export("a")
    assert load_learner(tmp_path / "a").model.head.bias.tolist() == [3, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no export"):
        learn.export("b")
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"


# Files that are not as they were


@pytest.fixture
def export(tmp_path: Path) -> Path:
    @register
    def tiny(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))

    return tiny_learner(model=tiny(16), path=tmp_path).export()


def test_no_file_of_an_export_is_a_pickle_or_a_program(export: Path) -> None:
    files = sorted(export.iterdir())
    assert [f.name for f in files] == ["bundle.json", "manifest.json", "model.safetensors"]
    for file in files:
        with pytest.raises(ValueError):
            for _ in pickletools.genops(file.read_bytes()):
                pass


@pytest.mark.parametrize("name", ["bundle.json", "manifest.json", "model.safetensors"])
def test_damage_is_found(name: str, export: Path) -> None:
    file = export / name
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            load_learner(export)
        except DataError as error:
            assert str(export) in str(error)
        else:  # the versions in the manifest are for people, and may be anything
            assert name == "manifest.json"
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        if name != "manifest.json" or length < len(whole) - 1:  # a line's end may go
            with pytest.raises(DataError):
                load_learner(export)
    file.unlink()
    with pytest.raises(DataError, match=name):
        load_learner(export)
    other = export / "elsewhere"
    other.write_bytes(whole)
    file.symlink_to(other)
    with pytest.raises(DataError, match="link"):
        load_learner(export)


def resealed(export: Path, plan: Any) -> None:
    """Give the export another plan, with hashes that fit, as somebody who means harm would."""
    from treadle.learner.bundle import _manifest
    from treadle.run.durable import stored

    text = plan if isinstance(plan, bytes) else json.dumps(plan).encode()
    (export / "bundle.json").write_bytes(text)
    names = ("model.safetensors", "bundle.json")
    files = {name: stored((export / name).read_bytes()) for name in names}
    (export / "manifest.json").write_bytes(_manifest(files))


CANARY = "import pathlib; pathlib.Path('canary').touch()"


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", {"make": "os.system", "args": ["touch canary"], "kwargs": {}}),
        ("model", {"make": "eval", "args": [CANARY], "kwargs": {}}),
        ("model", {"make": "tiny", "args": [{"name": "os.system"}], "kwargs": {}}),
        ("model", {"make": "tiny", "args": ["__import__('os')"], "kwargs": {}}),
        ("model", {"make": "tiny", "args": [17], "kwargs": {}}),
        ("model", {"make": "tiny", "args": [10**15], "kwargs": {}}),
        ("model", {"make": "tiny", "args": [-1], "kwargs": {}}),
        ("model", {"name": "tiny"}),
        ("model", "tiny"),
        ("model", None),
        ("loss", {"name": "builtins.exec"}),
        ("loss", {"partial": {"name": "eval"}, "args": [CANARY], "kwargs": {}}),
        ("precision", "fp7"),
        ("precision", ["fp32"]),
        ("data", {"blocks": []}),
        ("data", [1]),
        ("data", {"blocks": [{"name": "os.system"}]}),
        ("tied", {"0.weight": "nowhere"}),
        ("tied", 3),
    ],
)
def test_a_hostile_plan_is_a_sentence_and_runs_nothing(
    part: str, value: Any, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = json.loads((export / "bundle.json").read_text())
    resealed(export, {**plan, part: value})
    with pytest.raises(DataError):
        load_learner(export)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"model": NaN}',
        b'{"model": 1, "model": 2, "tied": {}}',
        b'{"tied": {}, "model": ' + b"9" * 5000 + b"}",
        b'{"tied": {}}',
        b"!!python/object/apply:os.system ['touch canary']",
        b"cos\nsystem\n(S'touch canary'\ntR.",
    ],
)
def test_text_that_is_no_plan_is_a_sentence(text: bytes, export: Path) -> None:
    resealed(export, text)
    with pytest.raises(DataError):
        load_learner(export)


def test_another_schema_is_told(export: Path) -> None:
    file = export / "manifest.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(DataError, match="schema 2"):
        load_learner(export)
    with pytest.raises(DataError, match="there is no export at"):
        load_learner(export / "nowhere")


# For other programs


def test_a_program_has_the_same_numbers_for_any_batch_and_no_pickle(
    pictures: list[Path], tmp_path: Path
) -> None:
    dls = loaders(pictures, CategoryBlock, first_letter)
    learn = taught(Learner(dls, SmallNet(3, 2)), tmp_path)
    file = learn.export_program()
    program = torch.export.load(file).module()
    for n in (1, 2, 7):
        x = torch.rand(n, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(program(x), learn.model.eval()(x))
    with zipfile.ZipFile(file) as parts:
        for name in parts.namelist():
            assert not name.endswith(".pkl")
            assert not parts.read(name).startswith((b"PK\x03\x04", b"\x80\x02")), name


def test_a_loaded_learner_asks_for_an_example(pictures: list[Path], tmp_path: Path) -> None:
    dls = loaders(pictures, CategoryBlock, first_letter)
    loaded = load_learner(Learner(dls, SmallNet(3, 2), path=tmp_path).export())
    loaded.path = tmp_path
    with pytest.raises(UsageError, match="give example="):
        loaded.export_program()
    file = loaded.export_program(example=torch.rand(1, 3, 32, 32))
    assert torch.export.load(file).module()(torch.rand(3, 3, 32, 32)).shape == (3, 2)


def test_onnx_has_the_same_numbers_for_any_batch(pictures: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    dls = loaders(pictures, CategoryBlock, first_letter)
    learn = taught(vision_learner(dls, "resnet18", pretrained=False), tmp_path)
    file = learn.export_onnx()
    session = onnxruntime.InferenceSession(str(file))
    for n in (1, 2, 5):
        x = torch.rand(n, 3, 32, 32)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(out), learn.model.eval()(x), rtol=1e-4, atol=1e-4
            )
    assert learn.model.training is False
    assert [p.name for p in tmp_path.iterdir() if "onnx" in p.name] == ["model.onnx"]
