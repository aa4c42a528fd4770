"""The learner: data, model, loss and optimizer tied to the loop, and the verbs a person calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from treadle.callbacks.progress import ProgressCallback
from treadle.callbacks.recorder import Recorder
from treadle.callbacks.table import Table, no_table
from treadle.callbacks.train_eval import TrainEvalCallback
from treadle.distributed import as_parallel
from treadle.distributed.launch import processes_for
from treadle.errors import UsageError
from treadle.interrupts import scoped
from treadle.learner.asking import Asking
from treadle.learner.exporting import Exporting, rebuilt
from treadle.learner.fitting import Fitting
from treadle.loop.listeners import Callbacks
from treadle.loop.parallel import Parallel
from treadle.loop.precision import Precision
from treadle.loop.training import assigned
from treadle.metrics import Metric
from treadle.optim import Adam
from treadle.params import trainable_params
from treadle.run.weights import load_weights, save_weights


class Learner(Fitting, Asking, Exporting):
    """Trains `model` on `dls`.

    Args:
        dls: `DataLoaders`; any two iterables of batches will do as `DataLoaders(train, valid)`.
        model: a plain `nn.Module`.
        loss_func: `loss(pred, *targets) -> 0-d tensor`; by default what `dls.loss_func` says.
        opt_func: makes the optimizer, `opt_func(groups, lr=lr)`; torch's own classes serve too.
        lr: the default learning rate.
        splitter: `model -> parameters`, or a list of lists for several groups, first layers first.
        cbs: callbacks for the learner's whole life; `fit(cbs=...)` adds some for one fit.
        metrics: a function `f(pred, *targets)`, a `Metric`, or a list of these.
        path, model_dir: where `save` and `load` look for weights.
        wd: weight decay; None leaves the optimizer's own.
        wd_bn_bias: whether norms and biases decay too.
        train_bn: whether norm layers train even in frozen groups.
        moms: momenta of one cycle: at the start, in the middle, at the end.
        default_cbs: whether to add `TrainEvalCallback`, `Recorder` and `ProgressCallback`.
        precision: "fp32", "bf16" or "fp16".
        parallel: how several processes share the work: "ddp" (by itself where torchrun started
            them), "fsdp", or one of `treadle.distributed` with its options, such as
            `DDP(sync_bn=True)`.

    Raises:
        UsageError: if there is no loss, or `precision` or `parallel` is unknown.
    """

    recorder: Recorder

    def __init__(
        self,
        dls: Any,
        model: nn.Module,
        loss_func: Callable[..., Tensor] | None = None,
        opt_func: Callable[..., Any] = Adam,
        lr: float = 1e-3,
        splitter: Callable[[nn.Module], Any] = trainable_params,
        cbs: Callbacks = None,
        metrics: Metric | Callable[..., Tensor] | Sequence[Metric | Callable[..., Tensor]] = (),
        path: str | Path | None = None,
        model_dir: str | Path = "models",
        wd: float | None = None,
        wd_bn_bias: bool = False,
        train_bn: bool = True,
        moms: tuple[float, float, float] = (0.95, 0.85, 0.95),
        default_cbs: bool = True,
        precision: str = "fp32",
        parallel: str | Parallel | None = None,
    ) -> None:
        loss_func = loss_func if loss_func is not None else getattr(dls, "loss_func", None)
        if loss_func is None:
            raise UsageError(
                "Learner got no loss_func and the data suggest none; give loss_func=, for example "
                "CrossEntropyLossFlat() for classes or MSELossFlat() for numbers."
            )
        super().__init__(dls, model, loss_func)
        self.opt_func, self.lr, self.splitter = opt_func, lr, splitter
        self.path = Path(path if path is not None else getattr(dls, "path", "."))
        self.model_dir = Path(model_dir)
        self.wd, self.wd_bn_bias, self.train_bn, self.moms = wd, wd_bn_bias, train_bn, moms
        self.precision, self.parallel = Precision(precision), as_parallel(parallel)
        self._asked_parallel = parallel
        is_main = self.parallel.world.is_main
        self.logger: Callable[[Sequence[Any]], None] = Table(print) if is_main else no_table
        metrics = list(metrics) if isinstance(metrics, Sequence) else [metrics]
        if default_cbs:
            self.add_cbs([TrainEvalCallback(), Recorder(metrics), ProgressCallback()])
        self.add_cbs(cbs)

    # Precision

    def to_fp16(self) -> Self:
        """Compute in mixed float16 from now on, on a CPU in mixed bfloat16."""
        return self._to("fp16")

    def to_bf16(self) -> Self:
        """Compute in mixed bfloat16 from now on."""
        return self._to("bf16")

    def to_fp32(self) -> Self:
        """Compute in the model's own precision from now on."""
        return self._to("fp32")

    def _to(self, name: str) -> Self:
        if self.precision.name != name:
            self.precision = Precision(name)
        return self

    # Processes

    @scoped
    def distributed(self, n: int) -> Iterator[Self]:
        """With `n` processes for each fit in the block, from a notebook or a script of one process:
        `fit`, `fit_one_cycle`, `fine_tune` and their like start them, forked from this one, and
        when a fit ends the learner is as if it had been here. All else runs here.

            with learn.distributed(4):
                learn.fit_one_cycle(5, 1e-3)

        `bs` of the loaders is a process's, `global_bs` that of all. What a callback is to bring
        back it declares as for a checkpoint (`state_names`). A fit that fails or is interrupted
        leaves the learner as it was before; `checkpoint=` is for that.

        In a process of `n` that torchrun has started nothing is started.

        Raises:
            UsageError: if `n` is below 1, torchrun has started another number, or this process
                cannot be forked: it uses a GPU, or the system does not fork.
        """
        with assigned(self, "processes", processes_for(n, self._asked_parallel)):
            yield self

    # Files

    def save(self, file: str) -> Path:
        """Write the model's weights to `path/model_dir/file.safetensors`."""
        return save_weights(self.model, self._weights_file(file), self.parallel.world)

    def load(self, file: str, strict: bool = True) -> Self:
        """Read weights that `save` wrote."""
        load_weights(self.model, self._weights_file(file), strict, self.parallel.world)
        return self

    def _weights_file(self, file: str) -> Path:
        return self.path / self.model_dir / f"{str(file).removesuffix('.safetensors')}.safetensors"

    # Talk

    @scoped
    def no_logging(self) -> Iterator[Self]:
        """Without the table and without the bar."""
        with assigned(self, "logger", no_table), self.no_bar():
            yield self

    @scoped
    def no_bar(self) -> Iterator[Self]:
        """Without the progress bar; the table is printed as plain lines."""
        with self.removed_cbs(ProgressCallback):
            yield self

    no_mbar = no_bar  # bar and table are one display here


def load_learner(path: str | Path, device: torch.device | str = "cpu") -> Learner:
    """The learner that `learn.export` wrote, ready to `predict`; nothing in the files is run.

    What the model and the other parts are made of has to be registered: import the file that
    defines them first.

    Raises:
        DataError: if a file is missing or damaged, or names what is not registered (with the line
            to add).
    """
    cls, arguments = rebuilt(path, device)
    learner: Learner = (cls or Learner)(**arguments)
    return learner
