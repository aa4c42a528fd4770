"""Fits: the optimizer, the policies that move its hyper-parameters, and what they look like."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from treadle.callbacks.checkpoint import CheckpointCallback, Every
from treadle.callbacks.scheduler import ParamScheduler
from treadle.distributed.faults import faults_told
from treadle.errors import UsageError
from treadle.interrupts import undivided
from treadle.learner.plan import planned_hypers
from treadle.learner.resuming import Resuming, resumable
from treadle.loop.listeners import Callbacks, as_list
from treadle.loop.memory import memory_told
from treadle.optim import make_opt
from treadle.params import norm_params
from treadle.schedule import SchedCos, Schedule, combine_scheds, combined_cos
from treadle.study import Found, find, lr_find, valley

Rate = float | slice | Sequence[float] | None


class Fitting(Resuming):
    """The part of a `Learner` that trains."""

    lr: float
    splitter: Callable[[nn.Module], Any]
    wd: float | None
    wd_bn_bias: bool
    train_bn: bool
    moms: tuple[float, float, float]
    _made_for: tuple[Any, set[Tensor]] = None, set()  # an optimizer, and the parameters it knew of

    # The optimizer

    @property
    def opt_func(self) -> Callable[..., Any]:
        """What makes the optimizer. A new one takes effect at the next fit, with fresh state."""
        return self._opt_func

    @opt_func.setter
    def opt_func(self, opt_func: Callable[..., Any]) -> None:
        self._opt_func = opt_func
        self.opt = None

    @undivided
    def create_opt(self) -> None:
        """Make the optimizer anew; norms and biases do not decay unless `wd_bn_bias`."""
        self.parallel.spread(self)
        self.opt = make_opt(self.opt_func, self.splitter(self.model), lr=self.lr)
        self._made_for = self.opt, set(self.model.parameters())
        self._name_params()
        owned = {p for group in self.opt.param_groups for p in group["params"]}
        if not self.wd_bn_bias and "do_wd" in self.opt.hyper_names:
            self.opt.set_flags(owned & {*norm_params(self.model, with_bias=True)}, do_wd=False)
        if self.train_bn:
            self.opt.set_flags(owned & {*norm_params(self.model)}, force_train=True)

    def _name_params(self) -> None:
        """Tell the optimizer the names that its state is saved under, if all are the model's."""
        names = {p: name for name, p in self.model.named_parameters()}
        groups = self.opt.param_groups
        if all(p in names for group in groups for p in group["params"]):
            for group in groups:
                group["param_names"] = [names[p] for p in group["params"]]

    def _have_opt(self) -> Any:
        """The optimizer; a new one if there is none, or if the model has parameters that it did
        not have when this one was made, which would else not be trained, without a word."""
        opt, known = self._made_for
        new = [name for name, p in self.model.named_parameters() if p not in known]
        if self.opt is not None and self.opt is opt and new:  # one that the user made knows best
            warnings.warn(
                f"the model has parameters that it did not have when its optimizer was made "
                f"({', '.join(new[:3])}{', ...' * (len(new) > 3)}); the optimizer is made anew, "
                "with fresh state.",
                UserWarning,
                stacklevel=3,
            )
            self.opt = None
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

    @resumable
    def fit(
        self,
        n_epoch: int,
        lr: Rate = None,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        checkpoint: Every | None = None,
    ) -> None:
        """Train for `n_epoch` epochs at the rate `lr`, validating after each.

        `lr` may be a `slice`, spread over the parameter groups. With `checkpoint=Every(...)`, which
        all verbs that train take alike, `resume` can go on with it when it was interrupted; see
        `CheckpointCallback`.

        Raises:
            UsageError: if the training loader is empty, or no stepper of the optimizer uses what
                is asked for (`wd`).
        """
        if len(self.dls.train) == 0:
            raise UsageError(
                "the training loader has no batches; give more items, or a smaller batch size."
            )
        if self._passed_over():
            return
        cbs = as_list(cbs) + [CheckpointCallback(every) for every in [checkpoint] if every]
        with (
            self.added_cbs([*cbs, *self._resumptions()]),
            self._open_scope(),
            faults_told(self),
            memory_told(self),
        ):
            if reset_opt:
                self.opt = None
            self._have_opt().set_hypers(lr=self.lr if lr is None else lr)
            wd = self.wd if wd is None else wd
            if wd is not None:
                self.opt.set_hypers(wd=wd)
            self.n_epoch = n_epoch
            self.first_epoch, self.first_iter = 0, 0
            self.updates, self.planned_updates = 0, max(n_epoch * len(self.dls.train), 1)
            self._settle()
            self._do_fit()

    @resumable
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
        checkpoint: Every | None = None,
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
        self.fit(
            n_epoch, lr_max, wd, [ParamScheduler(scheds), *as_list(cbs)], checkpoint=checkpoint
        )

    @resumable
    def fit_flat_cos(
        self,
        n_epoch: int,
        lr: Rate = None,
        div_final: float = 1e5,
        pct_start: float = 0.75,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        checkpoint: Every | None = None,
    ) -> None:
        """Train at a flat `lr` for the share `pct_start` of all updates, then let it fall along a
        half cosine to `lr / div_final`."""
        lrs = self._group_lrs(lr, reset_opt)
        scheds = {"lr": [combined_cos(pct_start, lr, lr, lr / div_final) for lr in lrs]}
        self.fit(n_epoch, lr, wd, [ParamScheduler(scheds), *as_list(cbs)], False, checkpoint)

    @resumable
    def fit_sgdr(
        self,
        n_cycles: int,
        cycle_len: int,
        lr_max: Rate = None,
        cycle_mult: int = 2,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        checkpoint: Every | None = None,
    ) -> None:
        """Train in `n_cycles` cycles, each a half cosine from `lr_max` to 0 and a restart
        (arXiv 1608.03983). The first lasts `cycle_len` epochs, each later one `cycle_mult` times
        the one before."""
        lengths = [cycle_len * cycle_mult**i for i in range(n_cycles)]
        n_epoch = sum(lengths)
        pcts = [length / n_epoch for length in lengths]
        lrs = self._group_lrs(lr_max, reset_opt)
        scheds = {"lr": [combine_scheds(pcts, [SchedCos(lr, 0.0)] * n_cycles) for lr in lrs]}
        self.fit(
            n_epoch, lr_max, wd, [ParamScheduler(scheds), *as_list(cbs)], checkpoint=checkpoint
        )

    @resumable
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

    def plot_plan(self, fit: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        """Draw the hyper-parameters that `fit(*args, **kwargs)` would set, update by update. Of
        this learner's methods or of yours that call them; nothing is trained or changed.

        `learn.plot_plan(learn.fit_one_cycle, 5, 1e-3)`
        """
        from treadle.plots import plot_sched, show

        return show(plot_sched(planned_hypers(self, fit, *args, **kwargs)))

    def lr_find(
        self,
        start_lr: Rate = 1e-7,
        end_lr: float = 10,
        num_it: int = 100,
        stop_div: bool = True,
        show_plot: bool = True,
        suggest_funcs: Any = valley,
        sweeps: int = 1,
        strict: bool = False,
    ) -> Any:
        """Suggest a learning rate, and the range of those that serve, by trial sweeps; the learner
        stays bit-for-bit as it was. See `treadle.study.lr_find`."""
        return lr_find(
            self, start_lr, end_lr, num_it, stop_div, show_plot, suggest_funcs, sweeps, strict
        )

    def find(
        self,
        name: str,
        values: Iterable[float] | None = None,
        num_it: int = 100,
        sweeps: int = 1,
        lr: Rate = None,
        show_plot: bool = True,
        strict: bool = False,
    ) -> Found:
        """Suggest a value of the hyper-parameter `name` ("mom", "wd", ...) by short trainings, one
        with each of `values`; the learner stays bit-for-bit as it was. See `treadle.study.find`."""
        return find(self, name, values, num_it, sweeps, lr, show_plot, strict)

    # What a fit needs

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
