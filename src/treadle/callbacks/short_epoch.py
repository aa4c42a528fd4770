"""Epochs of which only a part is run, to see soon whether all of it works."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from treadle.errors import UsageError
from treadle.loop.events import Callback


class ShortEpochCallback(Callback):
    """Trains on the first batches of each epoch only: the share `pct` of them, at least one.

    Schedules run their whole course over the batches that are left. Outside a fit nothing is cut
    short, nor are predictions and rate sweeps.

    Args:
        pct: the share of the batches to run, above 0 and at most 1.
        short_valid: whether the validations of the fit are cut short in the same way.

    Raises:
        UsageError: if `pct` is out of its range.

    >>> glimpse = ShortEpochCallback(pct=0.1)
    """

    order = -30  # before others ask how many batches and updates there are
    reports = True  # no part of what it is a glimpse of

    def __init__(self, pct: float = 0.01, short_valid: bool = True) -> None:
        if not 0 < pct <= 1:
            raise UsageError(
                f"ShortEpochCallback(pct={pct}): the share of the batches to run is above 0 and at "
                "most 1."
            )
        self.pct, self.short_valid, self.fit_scope = pct, short_valid, None

    def before_fit(self) -> None:
        self.fit_scope = self.scope
        n = len(self.dls.train)
        self.learn.planned_updates = math.ceil(self.planned_updates * self._share_of(n) / n)

    def before_train(self) -> None:
        self._cut()

    def before_validate(self) -> None:
        if self.short_valid and self.scope is self.fit_scope:
            self._cut()

    def _cut(self) -> None:
        self.learn.dl = _First(self.dl, self._share_of(len(self.dl)))

    def _share_of(self, n: int) -> int:
        return math.ceil(self.pct * n)


class _First:
    """The first `n` batches of a loader, and in all else the loader."""

    def __init__(self, dl: Any, n: int) -> None:
        self._dl, self._n = dl, n

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Any]:
        return islice(self._dl, self._n - self._begun())

    def _begun(self) -> int:
        """The batches before the one that comes next, where an epoch is resumed."""
        state = self._dl.state_dict() if hasattr(self._dl, "state_dict") else {}
        return int(state.get("batch", 0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dl, name)
