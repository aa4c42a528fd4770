"""The training loop: one page, and every line of it can be heard, changed or skipped.

Each phase may be left by its exception (`CancelBatchException` in a batch, ...): what remains of
the phase is skipped, `after_cancel_...` fires, and the phase's own `after_...` follows in any case.
`Learner.show_training_loop` prints the loop with those who listen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from treadle.errors import UsageError
from treadle.interrupts import interruptible, scoped, undivided
from treadle.loop.events import (
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
)
from treadle.loop.listeners import Listeners
from treadle.loop.modes import modes_put_back
from treadle.loop.nested import map_tensors
from treadle.loop.parallel import Parallel
from treadle.loop.precision import Precision
from treadle.loop.window import Window
from treadle.world import World

_ALONE = World()


class TrainingLoop(Listeners):
    """Model, data, loss and optimizer, and the loop over them.

    Attributes that callbacks may read and change: `model`, `dls`, `loss_func`, `opt`, `opt_func`,
    `cbs`, `dl` (the loader being read), `xb`, `yb` (tuples of the batch's inputs and targets), `x`,
    `y` (the same, out of the tuple if it holds one), `pred`, `loss` (what is reported and, when
    assigned, differentiated), `loss_grad` (what is differentiated), `n_epoch`, `n_iter`, `epoch`,
    `iter`, `training`; `updates` (optimizer steps applied in this fit, without those that turned
    out to be skipped), `planned_updates`, `first_epoch` and `first_iter` (where a fit that was
    interrupted goes on), `precision`, `parallel`, `window` (None: a step for each batch) and
    `scope` (a `contextlib.ExitStack` that unwinds when the fit ends, however it ends).

    Of a batch that is cancelled nothing is left: no prediction, no loss, no gradient.
    """

    def __init__(self, dls: Any, model: nn.Module, loss_func: Callable[..., Tensor]) -> None:
        self.dls, self.model, self.loss_func = dls, model, loss_func
        self.opt: Any = None
        self.precision = Precision()
        self.parallel = Parallel()
        self.window: Window | None = None
        self.dl: Any = None
        self.xb: tuple[Any, ...] = ()
        self.yb: tuple[Any, ...] = ()
        self.pred: Any = None
        self.loss = None
        self.training = False
        self.n_epoch, self.n_iter, self.epoch, self.iter = 1, 1, 0, 0
        self.first_epoch, self.first_iter = 0, 0
        self.updates, self.planned_updates = 0, 1
        self.scope = ExitStack()
        self._gradient_is_in = False  # the current batch's, in the parameters' gradients
        self._hypers: tuple[list[Any], list[Any]] = [], []
        super().__init__()
        self._look_at_data()

    # The loop

    def _do_fit(self) -> None:
        try:
            self("before_fit")
            for epoch in range(self.first_epoch, self.n_epoch):
                self.epoch = epoch
                self._do_epoch()
        except CancelFitException:
            self("after_cancel_fit")
        self("after_fit")

    def _do_epoch(self) -> None:
        try:
            self("before_epoch")
            self._do_epoch_train()
            if len(self.dls) > 1:
                self._do_epoch_validate()
        except CancelEpochException:
            self("after_cancel_epoch")
        self("after_epoch")

    def _do_epoch_train(self) -> None:
        self.dl, self.training = self.dls.train, True
        self._forget_gradients()  # an interrupted or cancelled pass may have left some
        try:
            self("before_train")
            self.all_batches()
            self._finish_window()
        except CancelTrainException:
            self("after_cancel_train")
        self("after_train")

    def _do_epoch_validate(self, ds_idx: int = 1, dl: Any = None) -> None:
        self.dl, self.training = dl if dl is not None else self.dls[ds_idx], False
        with torch.no_grad():
            try:
                self("before_validate")
                self.all_batches()
            except CancelValidException:
                self("after_cancel_validate")
            self("after_validate")

    @interruptible
    def all_batches(self) -> None:
        """One pass over `self.dl`."""
        self.n_iter = len(self.dl)
        self._look_at_data()
        first, self.first_iter = self.first_iter, 0
        with _reading(self.dl) as batches:
            for i, b in self.parallel.batches(self, batches, first):
                self.one_batch(i, b)

    def one_batch(self, i: int, b: Any) -> None:
        """Batch number `i` of this pass, `b` as the loader gave it."""
        self.iter = i
        self._split(b)
        try:
            self("before_batch")
            self._do_one_batch()
        except CancelBatchException:
            self("after_cancel_batch")
            self._forget_batch()
        self("after_batch")

    def _do_one_batch(self) -> None:
        self.pred = self.precision.forward(self.parallel.model(self), *self.xb)
        self("after_pred")
        loss = self.loss_func(self.pred, *self.yb) if self.yb else None
        self.loss = self.parallel.joint(self, loss)
        self("after_loss")
        if self.training:
            self._check_targets()
            self._do_backward()
            if self.window is None or self.window.is_due(last=self.iter + 1 == self.n_iter):
                self._do_step()

    def _do_backward(self) -> None:
        try:
            self("before_backward")
            self._gradient_is_in = True
            loss = self._loss_grad
            if self.window is not None:
                loss = self.window.add(self.loss, loss, self.parallel.samples(self))
            self.parallel.backward(self, loss)
        except CancelBackwardException:
            self("after_cancel_backward")
        self("after_backward")

    @undivided  # weights and state of the optimizer belong together
    def _do_step(self) -> None:
        self.parallel.before_step(self)
        if self.window is not None:
            self.window.close(self.opt)
        if self._listeners["before_step"]:
            self.precision.unscale(self.opt)  # who looks at the gradients sees true ones
        try:
            self("before_step")
            self.updates += self.precision.step(self.opt)
        except CancelStepException:
            self("after_cancel_step")
        self("after_step")
        self.opt.zero_grad()

    # What the loop stands on

    def _look_at_data(self) -> None:
        """What is the same for all batches is asked once a pass."""
        self._n_inp = getattr(self.dls, "n_inp", None)
        self._moving = self.device is not None  # until a batch is there already

    def _split(self, b: Any) -> None:
        parts = tuple(b) if isinstance(b, (tuple, list)) else (b,)
        if self._moving:
            there = map_tensors(lambda t: t.to(self.device), parts)
            self._moving = any(new is not old for new, old in zip(there, parts, strict=True))
            parts = there
        n_inp = self._n_inp or max(len(parts) - 1, 1)
        self.xb, self.yb = parts[:n_inp], parts[n_inp:]
        self._gradient_is_in = False

    def _check_targets(self) -> None:
        if not self.yb:
            raise UsageError(
                "The batch has no target, so nothing can be learnt from it. Let the loader give "
                "(x, y), or (x, x) where the input is its own target; where batches are dicts, "
                "name the targets: DataLoaders(..., targets=...)."
            )

    def _forget_gradients(self) -> None:
        self.opt.zero_grad()
        if self.window is not None:
            self.window.clear()

    def _forget_batch(self) -> None:
        self.pred = self.loss = None
        if self._gradient_is_in:
            self._forget_gradients()

    def _finish_window(self) -> None:
        """Step with what is gathered, where the last batch did not: it was cancelled, or the
        loader ended before its length said."""
        if self.window is not None and self.window.is_due(last=True):
            self.loss = self.window.loss
            with suppress(CancelBatchException):
                self._do_step()

    @property
    def device(self) -> torch.device | None:
        """Where the model and its batches are; None leaves both where they are."""
        device: torch.device | None = getattr(self.dls, "device", None)
        return device

    def _settle(self) -> None:
        """Model and precision on the device, listeners in order: before anything runs."""
        if self.device is not None:
            self.model.to(self.device)
            self.precision.to(self.device)
        self._sort_listeners()
        self.parallel.settle(self)

    @scoped
    def _open_scope(self) -> Iterator[None]:
        """A fresh `scope` for one fit or validation; whatever was entered in it is left again."""
        outer, training = self.scope, self.training
        device_type = "cpu" if self.device is None else self.device.type
        with modes_put_back(self.model, device_type):
            try:
                with ExitStack() as self.scope, self.parallel.scope(self):
                    yield
            except BaseException:
                self.training = training
                raise
            finally:
                self.scope = outer

    @property
    def readers(self) -> World:
        """The processes that share the batches of `dl`: this one alone where each reads all."""
        readers: World = getattr(self.dl, "world", _ALONE)
        return readers

    @property
    def loss(self) -> Any:
        """The batch's loss, 0-d, as reported. Assigning it changes what is differentiated too;
        to change only the latter, assign `loss_grad`. Either may be changed in place."""
        if not self._gradient_is_in:
            self._part_losses()
        return self._loss

    @loss.setter
    def loss(self, value: Any) -> None:
        self._loss = self._loss_grad = value

    @property
    def loss_grad(self) -> Any:
        """What is differentiated."""
        if not self._gradient_is_in:
            self._part_losses()
        return self._loss_grad

    @loss_grad.setter
    def loss_grad(self, value: Any) -> None:
        self._loss_grad = value

    def _part_losses(self) -> None:
        """Who asks before the backward pass may change one in place, which must neither change the
        other nor what the loss function has kept; so copies are made, but only then."""
        if self.training and self._loss is self._loss_grad is not None:
            self._loss, self._loss_grad = self._loss.clone(), self._loss.clone()

    @property
    def x(self) -> Any:
        """The input, or the tuple of inputs if there are several."""
        return self.xb[0] if len(self.xb) == 1 else self.xb

    @x.setter
    def x(self, value: Any) -> None:
        self.xb = value if isinstance(value, tuple) else (value,)

    @property
    def y(self) -> Any:
        """The target, or the tuple of targets if there are several or none."""
        return self.yb[0] if len(self.yb) == 1 else self.yb

    @y.setter
    def y(self, value: Any) -> None:
        self.yb = value if isinstance(value, tuple) else (value,)

    @property
    def pct_train(self) -> float:
        """The progress of this fit in [0, 1]: updates done over updates planned."""
        return min(self.updates / self.planned_updates, 1.0)

    @property
    def hypers(self) -> list[Any]:
        """`opt.hypers`, a live view for each parameter group; the same list as long as the groups
        are the same."""
        groups, views = self._hypers
        if groups is not self.opt.param_groups or len(groups) != len(views):
            self._hypers = self.opt.param_groups, self.opt.hypers
        return self._hypers[1]


@scoped
def _reading(dl: Any) -> Iterator[Iterator[Any]]:
    """The batches of a pass. If it ends early, the loader learns of it at once, and not when the
    last traceback that holds on to its iterator is gone."""
    batches = iter(dl)
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):
            batches.close()


@scoped
def assigned(obj: Any, name: str, value: Any) -> Iterator[None]:
    """With `obj.name` being `value`."""
    before = getattr(obj, name)
    try:
        setattr(obj, name, value)
        yield
    finally:
        setattr(obj, name, before)
