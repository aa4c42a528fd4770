"""What a report tells of a training beyond its losses, watched while it runs."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from treadle.interpret.pictures import thumbnail
from treadle.loop.events import Callback
from treadle.loop.nested import map_tensors
from treadle.run.record import BatchTimes, SeenSamples, SlowBatch

MAX_EPOCHS = 4  # of which samples are kept, beside the last
MAX_SLOWEST = 8


class ReportCallback(Callback):
    """Times each training batch, and keeps a few samples of some epochs as the model gets them.

    For `collect`, which finds it on the learner. Nothing here waits for the device: on a GPU a
    batch takes what the Python side took, unless something else waited in it. Samples are the first
    of an epoch, after all that callbacks do to a batch (MixUp too); they stay on the device until
    they are asked for.

    Args:
        samples: how many samples to keep of an epoch.

    >>> watch = ReportCallback(samples=4)
    """

    order = 90  # sees a batch when all others have changed it
    run_valid = False
    reports = True
    on_main = True  # which makes the report

    def __init__(self, samples: int = 8) -> None:
        self.samples = samples
        self._forget()

    def _forget(self) -> None:
        self._waits, self._works = array("d"), array("d")
        self._starts: list[int] = []  # how many batches there were when each epoch began
        self._kept: dict[int, tuple[Any, Any]] = {}
        self._stride = 1
        self._mark = 0.0

    def before_fit(self) -> None:
        self._forget()

    def before_train(self) -> None:
        self._starts.append(len(self._works))
        self._mark = time.perf_counter()

    def before_batch(self) -> None:
        now = time.perf_counter()
        self._waits.append(now - self._mark)
        self._mark = now
        if self.learn.iter == 0:
            self._keep()

    def after_batch(self) -> None:
        now = time.perf_counter()
        self._works.append(now - self._mark)
        self._mark = now

    def _keep(self) -> None:
        """Of many epochs every second is kept, then every fourth, ...; and the last."""
        learn = self.learn
        is_image = isinstance(learn.x, torch.Tensor) and learn.x.ndim == 4
        if not is_image or (learn.epoch % self._stride and learn.epoch != learn.n_epoch - 1):
            return
        first = map_tensors(lambda t: t[: self.samples].detach().clone(), (learn.x, learn.y))
        self._kept[learn.epoch] = first
        if len(self._kept) > MAX_EPOCHS and learn.epoch != learn.n_epoch - 1:
            self._stride *= 2
            self._kept = {e: kept for e, kept in self._kept.items() if e % self._stride == 0}

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, for the report to be that of a fit that was not interrupted."""
        return {
            "waits": list(self._waits),
            "works": list(self._works),
            "starts": self._starts,
            "kept": list(self._kept.items()),
            "stride": self._stride,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave."""
        self._waits, self._works = array("d", state["waits"]), array("d", state["works"])
        self._starts, self._stride = list(state["starts"]), state["stride"]
        self._kept = dict(state["kept"])
        self._mark = time.perf_counter()

    # What was watched, to be read

    @property
    def times(self) -> BatchTimes | None:
        """How long the batches of the last fit took; None if there were none."""
        n = len(self._works)
        if n == 0:
            return None
        waits = np.array(self._waits)[:n]  # the last batch may have been cut short
        seconds = waits + np.array(self._works)
        slowest = np.argsort(-seconds, kind="stable")[:MAX_SLOWEST].tolist()
        return BatchTimes(
            n=n,
            median=float(np.median(seconds)),
            total=float(seconds.sum()),
            waiting=float(waits.sum()),
            slowest=[self._slow(i, float(seconds[i]), float(waits[i])) for i in slowest],
        )

    def _slow(self, i: int, seconds: float, waiting: float) -> SlowBatch:
        epoch = bisect_right(self._starts, i) - 1
        return SlowBatch(epoch, i - self._starts[epoch], seconds, waiting)

    def seen(self, size: int = 128) -> list[SeenSamples]:
        """The kept samples as pictures of at most `size` pixels a side. Waits for the device.

        Empty where the loader cannot show what it gives: one that is not of this library.
        """
        from treadle.data import DataLoader, shown_images, shown_labels

        loader = self.learn.dls.train
        if not isinstance(loader, DataLoader):
            return []
        found = []
        for epoch, (x, y) in self._kept.items():
            if x.shape[1] not in (1, 3):
                continue
            images = [thumbnail(image, size) or b"" for image in shown_images(loader, x)]
            labels = shown_labels(loader.dataset, y) if isinstance(y, torch.Tensor) else []
            if len(labels) != len(images):  # targets that are no single label are not named
                labels = [""] * len(images)
            found.append(SeenSamples(epoch, labels, images))
        return found
