"""The training loop: one page, and every line of it can be heard, changed or skipped.

Each phase may be left by its exception (`CancelBatchException` in a batch, ...): what remains of
the phase is skipped, `after_cancel_...` fires, and the phase's own `after_...` follows in any case.
`OUTLINE` is the loop in words; `Learner.show_training_loop` prints it with those who listen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from treadle.errors import CallbackError
from treadle.loop.events import (
    INNER_EVENTS,
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
    event,
    sort_callbacks,
)
from treadle.loop.nested import map_tensors
from treadle.loop.precision import Precision

OUTLINE = """
fit
    before_fit
    for each epoch
        before_epoch
        train
            before_train
            for each batch
                before_batch
                pred = model(*xb)
                after_pred
                loss = loss_func(pred, *yb)
                after_loss
                before_backward
                loss.backward()
                after_cancel_backward
                after_backward
                before_step
                opt.step()
                after_cancel_step
                after_step
                opt.zero_grad()
                after_cancel_batch
                after_batch
            after_cancel_train
            after_train
        validate, the same without backward and step
            before_validate
            after_cancel_validate
            after_validate
        after_cancel_epoch
        after_epoch
    after_cancel_fit
    after_fit
"""

Callbacks = Callback | type[Callback] | Sequence[Callback | type[Callback]] | None


class TrainingLoop:
    """Model, data, loss and optimizer, the loop over them, and those who listen.

    Attributes that callbacks may read and change: `model`, `dls`, `loss_func`, `opt`, `opt_func`,
    `cbs`, `dl` (the loader being read), `xb`, `yb` (tuples of the batch's inputs and targets), `x`,
    `y` (the same, out of the tuple if it holds one), `pred`, `loss` (what is reported and, when
    assigned, differentiated), `loss_grad` (what is differentiated), `n_epoch`, `n_iter`, `epoch`,
    `iter`, `training`; `updates` (optimizer steps done in this fit) and `scope` (an
    `contextlib.ExitStack` that unwinds when the fit ends, however it ends).
    """

    def __init__(self, dls: Any, model: nn.Module, loss_func: Callable[..., Tensor]) -> None:
        self.dls, self.model, self.loss_func = dls, model, loss_func
        self.opt: Any = None
        self.precision = Precision()
        self.cbs: list[Callback] = []
        self.dl: Any = None
        self.xb: tuple[Any, ...] = ()
        self.yb: tuple[Any, ...] = ()
        self.pred: Any = None
        self.loss_grad: Any = None
        self._loss: Any = None
        self.training = False
        self.n_epoch, self.n_iter, self.epoch, self.iter = 1, 1, 0, 0
        self.updates, self.planned_updates = 0, 1
        self.scope = ExitStack()
        self._sort_listeners()

    # The loop

    def _do_fit(self) -> None:
        for epoch in range(self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)

    def _do_epoch(self) -> None:
        self.dl, self.training = self.dls.train, True
        self._with_events(self.all_batches, "train", CancelTrainException)
        if len(self.dls) > 1:
            self._do_epoch_validate()

    def _do_epoch_validate(self, ds_idx: int = 1, dl: Any = None) -> None:
        self.dl, self.training = dl if dl is not None else self.dls[ds_idx], False
        with torch.no_grad():
            self._with_events(self.all_batches, "validate", CancelValidException)

    def all_batches(self) -> None:
        """One pass over `self.dl`."""
        self.n_iter = len(self.dl)
        for i, b in enumerate(self.dl):
            self.one_batch(i, b)

    def one_batch(self, i: int, b: Any) -> None:
        """Batch number `i` of this pass, `b` as the loader gave it."""
        self.iter = i
        self._split(b)
        self._with_events(self._do_one_batch, "batch", CancelBatchException)

    def _do_one_batch(self) -> None:
        with self.precision.autocast():
            self.pred = self.model(*self.xb)
        self.pred = self.precision.to_float(self.pred)
        self("after_pred")
        if self.yb:
            self.loss_grad = self.loss_func(self.pred, *self.yb)
            self._loss = self.loss_grad.clone()
        self("after_loss")
        if self.training and self.yb:
            self._do_grad_opt()

    def _do_grad_opt(self) -> None:
        self._with_events(self._backward, "backward", CancelBackwardException)
        self._with_events(self._step, "step", CancelStepException)
        self.opt.zero_grad()

    def _backward(self) -> None:
        self.precision.backward(self.loss_grad)

    def _step(self) -> None:
        self.precision.step(self.opt)
        self.updates += 1

    def _with_events(self, f: Callable[[], None], phase: str, cancel: type[Exception]) -> None:
        try:
            self(f"before_{phase}")
            f()
        except cancel:
            self(f"after_cancel_{phase}")
        self(f"after_{phase}")

    def __call__(self, name: str) -> None:
        """Fire the event `name`: every callback that hears it, in order."""
        for cb, heard in self._listeners[name]:
            if cb.run and (
                name not in INNER_EVENTS or (cb.run_train if self.training else cb.run_valid)
            ):
                try:
                    heard()
                except Exception as error:
                    error.add_note(f"This came from the callback {cb} at the event {name}.")
                    raise

    # What the loop stands on

    def _split(self, b: Any) -> None:
        device = self.device
        if device is not None:
            b = map_tensors(lambda t: t if t.device == device else t.to(device), b)
        b = b if isinstance(b, (tuple, list)) else (b,)
        n_inp = getattr(self.dls, "n_inp", None) or max(len(b) - 1, 1)
        self.xb, self.yb = tuple(b[:n_inp]), tuple(b[n_inp:])
        self.pred = self.loss_grad = self._loss = None

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

    @contextmanager
    def _open_scope(self) -> Iterator[None]:
        """A fresh `scope` for one fit or validation; whatever was entered in it is left again."""
        outer = self.scope
        try:
            with ExitStack() as self.scope:
                yield
        finally:
            self.scope = outer

    @property
    def loss(self) -> Any:
        """The batch's loss, 0-d, as reported. Assigning it changes what is differentiated too;
        to change only the latter, assign `loss_grad`."""
        return self._loss

    @loss.setter
    def loss(self, value: Any) -> None:
        self._loss = self.loss_grad = value

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

    # Who listens

    def add_cb(self, cb: Callback | type[Callback]) -> Self:
        """Add a callback, or the class of one. It takes the place of an earlier one of its name,
        so running a notebook cell again does not make it run twice."""
        made = cb() if isinstance(cb, type) else cb
        if not isinstance(made, Callback):
            raise CallbackError(f"add_cb got {cb!r}; expected a Callback or a subclass of it.")
        earlier = self._of_name(made)
        if earlier is not None:
            self.remove_cb(earlier)
        made.learn = self
        setattr(self, made.name, made)
        self.cbs.append(made)
        self._sort_listeners()
        if made.run and made.hears(event.after_create):
            made.after_create()
        return self

    def add_cbs(self, cbs: Callbacks) -> Self:
        """Add several callbacks."""
        made = [cb() if isinstance(cb, type) else cb for cb in as_list(cbs)]
        names = [cb.name for cb in made if type(cb) is not Callback]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise CallbackError(
                f"two callbacks named {', '.join(sorted(twice))} were given at once and only one "
                "can be learn.NAME; give one another `name` by a subclass."
            )
        for cb in made:
            self.add_cb(cb)
        return self

    def remove_cb(self, cb: Callback | type[Callback]) -> Self:
        """Remove a callback, or all of a class."""
        gone = [o for o in self.cbs if (isinstance(o, cb) if isinstance(cb, type) else o is cb)]
        for o in gone:
            self.cbs.remove(o)
            if self.__dict__.get(o.name) is o:
                delattr(self, o.name)
        self._sort_listeners()
        return self

    def remove_cbs(self, cbs: Callbacks) -> Self:
        """Remove several callbacks."""
        for cb in as_list(cbs):
            self.remove_cb(cb)
        return self

    @contextmanager
    def added_cbs(self, cbs: Callbacks) -> Iterator[Self]:
        """With these callbacks, for as long as the `with` block lasts."""
        with self._callbacks_put_back():
            yield self.add_cbs(cbs)

    @contextmanager
    def removed_cbs(self, cbs: Callbacks) -> Iterator[Self]:
        """Without these callbacks, for as long as the `with` block lasts."""
        with self._callbacks_put_back():
            yield self.remove_cbs(cbs)

    @contextmanager
    def _callbacks_put_back(self) -> Iterator[None]:
        before = list(self.cbs)
        try:
            yield
        finally:
            for cb in [cb for cb in self.cbs if cb not in before]:
                self.remove_cb(cb)
            self.cbs = before
            for cb in before:
                setattr(self, cb.name, cb)
            self._sort_listeners()

    def _of_name(self, cb: Callback) -> Callback | None:
        """The callback whose place `cb` takes. Those made of bare functions have no name of their
        own and stand side by side."""
        if type(cb) is Callback:
            return cb if cb in self.cbs else None
        return next((o for o in self.cbs if o.name == cb.name), None)

    def ordered_cbs(self, name: str) -> list[Callback]:
        """Those who hear the event `name`, in the order in which they run."""
        return [cb for cb, _ in self._listeners[name]]

    def show_training_loop(self) -> None:
        """Print the loop, and at each event who hears it, in order."""
        for line in OUTLINE.strip("\n").splitlines():
            heard = self._listeners.get(line.strip())
            if heard is None:
                print(line)
            elif heard:
                print(f"{line:<40}{self.ordered_cbs(line.strip())}")

    def _sort_listeners(self) -> None:
        ordered = sort_callbacks(self.cbs)
        # An event that nobody hears costs one look into this table.
        self._listeners: dict[str, list[tuple[Callback, Callable[[], object]]]] = {
            name: [(cb, getattr(cb, name)) for cb in ordered if cb.hears(name)] for name in event
        }


@contextmanager
def assigned(obj: Any, name: str, value: Any) -> Iterator[None]:
    """With `obj.name` being `value`."""
    before = getattr(obj, name)
    setattr(obj, name, value)
    try:
        yield
    finally:
        setattr(obj, name, before)


def as_list(cbs: Callbacks) -> list[Callback | type[Callback]]:
    """None, one or several callbacks as a list."""
    if cbs is None:
        return []
    return list(cbs) if isinstance(cbs, Iterable) else [cbs]
