"""Export: a trained learner as files that carry no code, and its model for other programs."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from treadle.data import DataLoader, DataLoaders
from treadle.data.dataloaders import loader_types
from treadle.data.datasets import Dataset
from treadle.errors import DataError, UsageError
from treadle.learner.bundle import read_bundle, write_bundle
from treadle.loop.precision import Precision
from treadle.loop.training import TrainingLoop
from treadle.registry import described, register, restored
from treadle.run.weights import whole_state
from treadle.shards import is_sharded

__all__ = ["Exporting", "plan_of", "rebuilt"]

Inputs = Tensor | tuple[Tensor, ...]


class Exporting(TrainingLoop):
    """The part of a `Learner` that writes what others read."""

    path: Path
    precision: Precision

    def export(self, path: str | Path = "export") -> Path:
        """Write a folder from which `load_learner` makes a learner that predicts the same bits.

        It holds the weights, how the model, the loss, the blocks (with their vocabulary) and the
        transforms are made, and no code: everything is named as it is registered (see `register`).
        Optimizer, metrics, callbacks and the data themselves are not in it. A relative `path` lies
        in the learner's own. An export that is there already is replaced.

        Raises:
            UsageError: for a part that is not registered, with the line to add, and for a model
                that was changed after it was made.
            DataError: if the folder cannot be written.
        """
        folder = self.path / path
        plan = plan_of(self)
        _check_remade(self.model, plan["model"])
        weights = whole_state(self.model, self.parallel.world)
        self.parallel.world.on_main(lambda: write_bundle(folder, plan, weights))
        return folder

    def export_program(self, path: str | Path = "model.pt2", example: Inputs | None = None) -> Path:
        """Write the model, in evaluation mode and on the CPU, for `torch.export.load`.

        The batch size stays free. `example` is an input, or a tuple of them, of at least two
        samples; by default a batch of the validation data. Normalisation and other transforms are
        not part of the model. The example is left out of the file: it is the one part of it that
        torch would pickle.

        Raises:
            UsageError: if there are no data to take an example from.
        """
        traced, file = self._traced(example), self.path / path

        def write() -> Path:
            model, inputs, shapes = traced
            program = torch.export.export(model, inputs, dynamic_shapes=shapes)
            program.example_inputs = None
            torch.export.save(program, _place(file))
            return file

        return self.parallel.world.on_main(write)

    def export_onnx(self, path: str | Path = "model.onnx", example: Inputs | None = None) -> Path:
        """Write the model, in evaluation mode, as ONNX; the batch size stays free.

        Needs the packages onnx and onnxscript. `example` is that of `export_program`.

        Raises:
            UsageError: if the packages are missing, or there are no data for an example.
        """
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"export_onnx needs onnx and onnxscript ({error}); install them: "
                "`pip install treadle[onnx]`."
            ) from error
        traced, file = self._traced(example), self.path / path

        def write() -> Path:
            model, inputs, shapes = traced
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporter's own parts
                torch.onnx.export(
                    model,
                    inputs,
                    _place(file),
                    dynamo=True,
                    dynamic_shapes=shapes,
                    external_data=False,
                    verbose=False,
                )
            return file

        return self.parallel.world.on_main(write)

    def _traced(self, example: Inputs | None) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
        """What the exporters take: the model, inputs, and which of their axes are free."""
        inputs = self._example() if example is None else example
        inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        inputs = tuple(x.detach().cpu() for x in inputs)
        if len(inputs[0]) < 2:  # a one would be taken for the only batch size there is
            inputs = tuple(torch.cat([x, x]) for x in inputs)
        batch = torch.export.Dim("batch")
        return self._copy().cpu().eval(), inputs, tuple({0: batch} for _ in inputs)

    def _copy(self) -> nn.Module:
        """The model once more; where it is spread over processes, whole in that of rank 0."""
        if not any(is_sharded(p) for p in self.model.parameters()):
            return copy.deepcopy(self.model)
        description = described(self.model, "the model")
        _check_remade(self.model, description)
        weights = whole_state(self.model, self.parallel.world)
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = restored(description, "the model")
        if self.parallel.world.is_main:
            model.load_state_dict(weights)
        return model

    def _example(self) -> tuple[Tensor, ...]:
        batch = next(iter(self.dls.valid), None) if len(self.dls.valid) else None
        if batch is None:
            raise UsageError(
                "the learner has no data to take an example from, as one that was loaded; give "
                "example=, an input of the model, of shape (2, channels, height, width) for images."
            )
        n_inp = getattr(self.dls, "n_inp", None) or max(len(batch) - 1, 1)
        return tuple(batch[:n_inp])


def _place(file: Path) -> Path:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{file.parent} cannot be made: {error.strerror}.") from error
    return file


# What an export says of a learner


def plan_of(learn: Any) -> dict[str, Any]:
    """How the learner's parts are made, as JSON. Raises UsageError for what is not registered."""
    return {
        "learner": _class_name(type(learn)),
        "model": described(learn.model, "the model"),
        "loss": described(learn.loss_func, "the loss"),
        "precision": learn.precision.name,
        "data": _data_plan(learn.dls),
    }


def _class_name(cls: type) -> Any:
    """Of a learner of a kind of its own, which may answer in another way; None for others."""
    try:
        return described(cls)
    except UsageError:
        return None


def _data_plan(dls: Any) -> dict[str, Any] | None:
    loader = dls.loaders[-1] if isinstance(dls, DataLoaders) else None
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, Dataset):
        return None  # batches of somebody else's making: nothing is known of single items
    dataset = dls.train_ds
    return {
        "blocks": [described(block, "the data block") for block in dataset.blocks],
        "getters": [_getter(dataset, place) for place in range(len(dataset.getters))],
        "n_inp": dataset.n_inp,
        "item_tfms": [described(t, "item_tfms") for t in loader.item_tfms],
        "batch_tfms": [described(t, "batch_tfms") for t in loader.batch_tfms],
        "bs": loader.bs,
    }


def _getter(dataset: Dataset, place: int) -> Any:
    name = dataset.getter_name(place)
    try:
        return described(dataset.getters[place], name)
    except UsageError:
        if place < dataset.n_inp:
            raise
    return described(NotExported(name))  # predictions have no need of labels


@register(name="treadle.NotExported")
class NotExported:
    """In the place of a function for labels that was not registered when a learner was exported."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, item: Any) -> Any:
        """Raises UsageError."""
        raise UsageError(
            f"{self.name} is not in the export, because it was not registered: put "
            "`@treadle.register` on the line before its definition and export again, or ask "
            "without labels."
        )


def _check_remade(model: nn.Module, description: Any) -> None:
    """Raise UsageError unless what the description makes is the model but for its numbers."""
    with torch.random.fork_rng(devices=[]):
        made = restored(description, "the model")
    if repr(made) != _shown(model) or _shapes(made) != _shapes(model):
        raise UsageError(
            f"the model was changed after {description['make']} made it, so that would make "
            "another one; register a function that makes it as it is now, or give what changed as "
            "arguments."
        )


def _shown(model: nn.Module) -> str:
    """Its structure. Torch gives modules that are spread over processes a class of its own."""
    is_spread = any(is_sharded(p) for p in model.parameters())
    return re.sub(r"\bFSDP(?=\w+\()", "", repr(model)) if is_spread else repr(model)


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {
        name: (t.shape, t.dtype) if isinstance(t, Tensor) else None
        for name, t in model.state_dict().items()
    }


# And back


def _rebuilt_data(plan: Any, device: torch.device | str, where: str) -> DataLoaders:
    """Loaders without items, whose `test_dl` treats new ones as the exported learner did."""
    if plan is None:
        return DataLoaders([], [], device=device)
    blocks, getters = (restored(plan[key], where) for key in ("blocks", "getters"))
    dataset = Dataset([], tuple(getters), tuple(blocks), plan["n_inp"])
    loader_type, loaders_type = loader_types(blocks)
    loader = loader_type(
        dataset,
        plan["bs"],
        item_tfms=restored(plan["item_tfms"], where),
        batch_tfms=restored(plan["batch_tfms"], where),
        num_workers=0,
        seed=0,
        device=device,
        cache=None,
    )
    return loaders_type(loader, loader)


def rebuilt(path: str | Path, device: torch.device | str) -> tuple[Any, dict[str, Any]]:
    """The class of the learner in an export, None if it is a plain one, and its arguments."""
    plan, weights = read_bundle(Path(path))
    where = f"{path}/bundle.json"
    try:
        with torch.random.fork_rng(devices=[]):
            model = restored(plan["model"], where)
        if not isinstance(model, nn.Module):
            raise DataError(f"{where}: what stands for the model is a {type(model).__name__}.")
        model.load_state_dict(weights)
        cls = restored(plan.get("learner"), where)
        if cls is not None and not (isinstance(cls, type) and issubclass(cls, Exporting)):
            raise DataError(f"{where}: what stands for the learner is {cls!r}.")
        return cls, {
            "dls": _rebuilt_data(plan["data"], device, where),
            "model": model.to(device),
            "loss_func": restored(plan["loss"], where),
            "precision": Precision(str(plan["precision"])).name,
        }
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise DataError(
            f"{where} does not make a learner ({type(error).__name__}: {said}); export it again."
        ) from error
