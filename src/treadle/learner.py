"""The learner: data, model, loss and optimizer tied to the loop, and the verbs a person calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from treadle.callbacks.gather import GatherPredsCallback, concat
from treadle.callbacks.progress import ProgressCallback
from treadle.callbacks.recorder import Recorder
from treadle.callbacks.scheduler import ParamScheduler
from treadle.callbacks.table import Table, no_table
from treadle.callbacks.train_eval import TrainEvalCallback
from treadle.errors import UsageError
from treadle.loop.events import CancelFitException
from treadle.loop.precision import Precision
from treadle.loop.training import Callbacks, TrainingLoop, as_list, assigned
from treadle.metrics import Metric
from treadle.optim import Adam, make_opt
from treadle.params import norm_params, trainable_params
from treadle.run.weights import load_weights, save_weights
from treadle.schedule import SchedCos, Schedule, combine_scheds, combined_cos
from treadle.study import lr_find, valley

Rate = float | slice | Sequence[float] | None


class Learner(TrainingLoop):
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

    Raises:
        UsageError: if there is no loss.
    """

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
        self.precision = Precision(precision)
        self.logger: Callable[[Sequence[Any]], None] = Table(print)
        metrics = list(metrics) if isinstance(metrics, Sequence) else [metrics]
        if default_cbs:
            self.add_cbs([TrainEvalCallback(), Recorder(metrics), ProgressCallback()])
        self.add_cbs(cbs)

    recorder: Recorder

    # The optimizer

    @property
    def opt_func(self) -> Callable[..., Any]:
        """What makes the optimizer. A new one takes effect at the next fit, with fresh state."""
        return self._opt_func

    @opt_func.setter
    def opt_func(self, opt_func: Callable[..., Any]) -> None:
        self._opt_func = opt_func
        self.opt = None

    def create_opt(self) -> None:
        """Make the optimizer anew; norms and biases do not decay unless `wd_bn_bias`."""
        self.opt = make_opt(self.opt_func, self.splitter(self.model), lr=self.lr)
        owned = {p for group in self.opt.param_groups for p in group["params"]}
        if not self.wd_bn_bias and "do_wd" in self.opt.hyper_names:
            self.opt.set_flags(owned & {*norm_params(self.model, with_bias=True)}, do_wd=False)
        if self.train_bn:
            self.opt.set_flags(owned & {*norm_params(self.model)}, force_train=True)

    def _have_opt(self) -> Any:
        if self.opt is None:
            self.create_opt()
        return self.opt

    def freeze_to(self, n: int) -> None:
        """Train only the parameter groups from `n` on."""
        self._have_opt().freeze_to(n)

    def freeze(self) -> None:
        """Train only the last parameter group."""
        self._have_opt().freeze()

    def unfreeze(self) -> None:
        """Train all parameter groups."""
        self._have_opt().unfreeze()

    # Training

    def fit(
        self,
        n_epoch: int,
        lr: Rate = None,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
    ) -> None:
        """Train for `n_epoch` epochs at the rate `lr`, validating after each.

        `lr` may be a `slice`, spread over the parameter groups.

        Raises:
            UsageError: if the training loader is empty, or no stepper of the optimizer uses what
                is asked for (`wd`).
        """
        if len(self.dls.train) == 0:
            raise UsageError(
                "the training loader has no batches; give more items, or a smaller batch size."
            )
        with self.added_cbs(cbs), self._open_scope():
            if reset_opt:
                self.opt = None
            self._have_opt().set_hypers(lr=self.lr if lr is None else lr)
            wd = self.wd if wd is None else wd
            if wd is not None:
                self.opt.set_hypers(wd=wd)
            self.opt.zero_grad()  # what an interrupted fit left behind must not count
            self.n_epoch = n_epoch
            self.updates, self.planned_updates = 0, max(n_epoch * len(self.dls.train), 1)
            self._settle()
            self._with_events(self._do_fit, "fit", CancelFitException)

    def fit_one_cycle(
        self,
        n_epoch: int,
        lr_max: Rate = None,
        div: float = 25.0,
        div_final: float = 1e5,
        pct_start: float = 0.25,
        wd: float | None = None,
        moms: tuple[float, float, float] | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
    ) -> None:
        """Train with the one-cycle policy (arXiv 1708.07120): the rate rises from `lr_max / div` to
        `lr_max` in the share `pct_start` of all updates and falls to `lr_max / div_final`, both
        along half cosines, while the momentum does the opposite through `moms`."""
        scheds: dict[str, Schedule | Sequence[Schedule]] = {
            "lr": [
                combined_cos(pct_start, lr / div, lr, lr / div_final)
                for lr in self._group_lrs(lr_max, reset_opt)
            ]
        }
        if self._has_momentum(moms):
            scheds["mom"] = combined_cos(pct_start, *(self.moms if moms is None else moms))
        self.fit(n_epoch, lr=lr_max, wd=wd, cbs=[ParamScheduler(scheds), *as_list(cbs)])

    def fit_flat_cos(
        self,
        n_epoch: int,
        lr: Rate = None,
        div_final: float = 1e5,
        pct_start: float = 0.75,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
    ) -> None:
        """Train at a flat `lr` for the share `pct_start` of all updates, then let it fall along a
        half cosine to `lr / div_final`."""
        lrs = self._group_lrs(lr, reset_opt)
        scheds = {"lr": [combined_cos(pct_start, lr, lr, lr / div_final) for lr in lrs]}
        self.fit(n_epoch, lr=lr, wd=wd, cbs=[ParamScheduler(scheds), *as_list(cbs)])

    def fit_sgdr(
        self,
        n_cycles: int,
        cycle_len: int,
        lr_max: Rate = None,
        cycle_mult: int = 2,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
    ) -> None:
        """Train in `n_cycles` cycles, each a half cosine from `lr_max` to 0 and a restart
        (arXiv 1608.03983). The first lasts `cycle_len` epochs, each later one `cycle_mult` times
        the one before."""
        lengths = [cycle_len * cycle_mult**i for i in range(n_cycles)]
        n_epoch = sum(lengths)
        pcts = [length / n_epoch for length in lengths]
        lrs = self._group_lrs(lr_max, reset_opt)
        scheds = {"lr": [combine_scheds(pcts, [SchedCos(lr, 0.0)] * n_cycles) for lr in lrs]}
        self.fit(n_epoch, lr=lr_max, wd=wd, cbs=[ParamScheduler(scheds), *as_list(cbs)])

    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        freeze_epochs: int = 1,
        lr_mult: float = 100,
        pct_start: float = 0.3,
        div: float = 5.0,
        **kwargs: Any,
    ) -> None:
        """Train the last group alone for `freeze_epochs`, then all groups for `epochs`, the first
        ones at a rate `lr_mult` times lower than the last. Keywords are those of `fit_one_cycle`.
        """
        self.freeze()
        self.fit_one_cycle(freeze_epochs, slice(base_lr), pct_start=0.99, **kwargs)
        self.unfreeze()
        lrs = slice(base_lr / 2 / lr_mult, base_lr / 2)
        self.fit_one_cycle(epochs, lrs, pct_start=pct_start, div=div, **kwargs)

    def _group_lrs(self, lr: Rate, reset_opt: bool) -> list[float]:
        """The rate of each parameter group when `lr` (or the learner's own) is set."""
        if reset_opt:
            self.opt = None
        self._have_opt().set_hyper("lr", self.lr if lr is None else lr)
        return [hypers["lr"] for hypers in self.opt.hypers]

    def _has_momentum(self, moms: Sequence[float] | None) -> bool:
        if "mom" in self.opt.hyper_names:
            return True
        if moms is not None and any(moms):
            raise UsageError(
                f"moms={tuple(moms)} was given, but no stepper of this optimizer uses mom; leave "
                "moms out, or choose an optimizer with momentum."
            )
        return False

    def lr_find(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10,
        num_it: int = 100,
        stop_div: bool = True,
        show_plot: bool = True,
        suggest_funcs: Any = valley,
    ) -> Any:
        """Suggest a learning rate by a trial sweep; the learner stays bit-for-bit as it was.
        See `treadle.study.lr_find`."""
        return lr_find(self, start_lr, end_lr, num_it, stop_div, show_plot, suggest_funcs)

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

    # Asking the model

    def validate(self, ds_idx: int = 1, dl: Any = None, cbs: Callbacks = None) -> list[Any]:
        """The loss and the metrics on a loader: `dls[ds_idx]`, or `dl`."""
        recorder: Recorder = getattr(self, "recorder", None) or Recorder()
        with self.added_cbs([recorder, *as_list(cbs)]):
            self._run_validation(ds_idx, dl)
            return recorder.validation_values()

    def _run_validation(self, ds_idx: int, dl: Any) -> None:
        with self._open_scope():
            self._settle()
            self._do_epoch_validate(ds_idx, dl)

    def get_preds(
        self,
        ds_idx: int = 1,
        dl: Any = None,
        with_input: bool = False,
        with_decoded: bool = False,
        with_loss: bool = False,
        act: Callable[[Tensor], Tensor] | None = None,
        cbs: Callbacks = None,
    ) -> tuple[Any, ...]:
        """What the model says of a loader (`dls[ds_idx]`, or `dl`), on the CPU.

        Returns:
            (inputs if `with_input`,) predictions, targets (, decoded if `with_decoded`)
            (, one loss a sample if `with_loss`). Predictions went through `act`, by default the
            activation of the loss (probabilities for cross entropy).
        """
        gather = GatherPredsCallback(with_input, with_loss)
        reports = [cb for cb in self.cbs if cb.reports]
        unreduced = self.loss_not_reduced() if with_loss else nullcontext()
        with self.removed_cbs(reports), self.added_cbs([gather, *as_list(cbs)]), unreduced:
            self._run_validation(ds_idx, dl)
        raw = concat(gather.preds)
        own: Callable[[Any], Any] = getattr(self.loss_func, "activation", _identity)
        result = [(act or own)(raw), concat(gather.targets)]
        if with_input:
            result.insert(0, concat(gather.inputs))
        if with_decoded:
            result.append(getattr(self.loss_func, "decodes", _identity)(raw))
        if with_loss:
            result.append(concat(gather.losses))
        return tuple(result)

    def predict(self, item: Any) -> tuple[Any, Tensor, Tensor]:
        """The answer for one item (a path or an image): the decoded label, its index or value, and
        the probabilities of all classes."""
        dl = self.dls.test_dl([item])
        preds, _, decoded = self.get_preds(dl=dl, with_decoded=True)
        vocab = getattr(self.dls, "vocab", None)
        label = vocab[int(decoded[0])] if vocab is not None else decoded[0].tolist()
        return label, decoded[0], preds[0]

    def show_results(self, ds_idx: int = 1, dl: Any = None, max_n: int = 9) -> Any:
        """A figure of images of a loader, with their labels and what the model says of them."""
        dl = dl if dl is not None else self.dls[ds_idx]
        batch = dl.one_batch()
        answers = self.get_preds(dl=[batch], with_decoded=True)[-1]
        return self.dls.show_results(dl, batch, answers, max_n)

    @contextmanager
    def loss_not_reduced(self) -> Iterator[None]:
        """With a loss that gives one number a sample instead of their mean."""
        loss_func: Any = self.loss_func
        if hasattr(loss_func, "reduction"):
            with assigned(loss_func, "reduction", "none"):
                yield
        else:
            with assigned(self, "loss_func", partial(loss_func, reduction="none")):
                yield

    # Files and talk

    def save(self, file: str) -> Path:
        """Write the model's weights to `path/model_dir/file.safetensors`."""
        return save_weights(self.model, self._weights_file(file))

    def load(self, file: str, strict: bool = True) -> Self:
        """Read weights that `save` wrote."""
        load_weights(self.model, self._weights_file(file), strict=strict)
        return self

    def _weights_file(self, file: str) -> Path:
        return self.path / self.model_dir / f"{str(file).removesuffix('.safetensors')}.safetensors"

    @contextmanager
    def no_logging(self) -> Iterator[Self]:
        """Without the table and without the bar."""
        with assigned(self, "logger", no_table), self.no_bar():
            yield self

    @contextmanager
    def no_bar(self) -> Iterator[Self]:
        """Without the progress bar; the table is printed as plain lines."""
        with self.removed_cbs(ProgressCallback):
            yield self

    no_mbar = no_bar  # bar and table are one display here


def _identity(out: Any) -> Any:
    return out
