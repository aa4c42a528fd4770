"""Asking the model: how good it is, what it answers, and a look at that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import Tensor

from treadle.callbacks.gather import GatherPredsCallback, concat
from treadle.callbacks.recorder import Recorder
from treadle.distributed.faults import faults_told
from treadle.errors import UsageError
from treadle.interrupts import scoped, undivided
from treadle.loop.listeners import Callbacks, as_list
from treadle.loop.memory import memory_told
from treadle.loop.training import TrainingLoop, assigned
from treadle.world import World


class Asking(TrainingLoop):
    """The part of a `Learner` that validates and predicts."""

    @undivided
    def validate(self, ds_idx: int = 1, dl: Any = None, cbs: Callbacks = None) -> list[Any]:
        """The loss and the metrics on a loader: `dls[ds_idx]`, or `dl`."""
        recorder: Recorder = getattr(self, "recorder", None) or Recorder()
        with self.added_cbs([recorder, *as_list(cbs)]):
            self._run_validation(ds_idx, dl)
            return recorder.validation_values()

    def _run_validation(self, ds_idx: int, dl: Any) -> None:
        dl = self.dls[ds_idx] if dl is None else dl
        reads_all = getattr(dl, "world", World()).size == 1
        parallel = self.parallel.alone() if reads_all else self.parallel
        with (
            assigned(self, "parallel", parallel),
            self._open_scope(),
            faults_told(self),
            memory_told(self),
        ):
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
        self.ask([gather, *as_list(cbs)], ds_idx, dl, with_loss)
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

    @undivided
    def ask(self, cbs: Callbacks, ds_idx: int = 1, dl: Any = None, with_loss: bool = False) -> None:
        """Run the model over a loader (`dls[ds_idx]`, or `dl`) for what `cbs` make of its batches.

        It is a validation that nothing is reported of. `with_loss` has the loss not reduced: the
        `loss` that callbacks see has a number for each sample, or for each output.
        """
        reports = [cb for cb in self.cbs if cb.reports]
        unreduced = self.loss_not_reduced() if with_loss else nullcontext()
        with self.removed_cbs(reports), self.added_cbs(cbs), unreduced:
            self._run_validation(ds_idx, dl)

    def predict(self, item: Any) -> tuple[Any, Tensor, Tensor]:
        """The answer for one item (a path or an image): the decoded label, its index or value, and
        the probabilities of all classes."""
        dl = self.dls.test_dl([item])
        dl.world = World()  # whoever asks gets the answer, and needs nobody else for it
        preds, _, decoded = self.get_preds(dl=dl, with_decoded=True)
        decode = getattr(self.dls, "decode_target", None)
        label = decode(decoded[0]) if decode is not None else decoded[0]
        return label.tolist() if isinstance(label, Tensor) else label, decoded[0], preds[0]

    def show_results(self, ds_idx: int = 1, dl: Any = None, max_n: int = 9) -> Any:
        """A figure of images of a loader, with their labels and what the model says of them."""
        dl = dl if dl is not None else self.dls[ds_idx]
        batch = dl.one_batch()
        answers = self.get_preds(dl=[batch], with_decoded=True)[-1]
        return self.dls.show_results(dl, batch, answers, max_n)

    @scoped
    def loss_not_reduced(self) -> Iterator[None]:
        """With a loss that gives one number a sample instead of their mean."""
        loss_func: Any = self.loss_func
        if hasattr(loss_func, "reduction"):
            with assigned(loss_func, "reduction", "none"):
                yield
            return
        if not _takes_reduction(loss_func):
            raise UsageError(
                f"the loss {getattr(loss_func, '__name__', type(loss_func).__name__)} cannot give "
                'a number for each sample; let it take reduction=, with "none" among its values, '
                "as torch's losses do."
            )
        with assigned(self, "loss_func", partial(loss_func, reduction="none")):
            yield


def _takes_reduction(loss_func: Any) -> bool:
    try:
        inspect.signature(getattr(loss_func, "forward", loss_func)).bind_partial(reduction="none")
    except TypeError:
        return False
    except ValueError:  # a function of C, which does not tell
        return True
    return True


def _identity(out: Any) -> Any:
    return out
