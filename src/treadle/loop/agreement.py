"""What any process of a run asks of all, learnt by all at the same batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from treadle.world import World


class Agreement:
    """A few numbers, of which all processes get the largest that any of them gave.

    Nobody waits: what is asked after one batch is answered after the next. A process that is alone
    agrees with itself at once.

    >>> agreement = Agreement(World())
    >>> agreement.ask(1, 0)
    >>> agreement.answer(2, 0)
    (2, 0)
    """

    def __init__(self, among: World) -> None:
        self.among = among
        self._asked: torch.Tensor | None = None
        self._under_way: Any = None

    def ask(self, *numbers: int) -> None:
        """Tell the others. All processes do so at the same time."""
        if self.among.size > 1:
            self._asked = torch.tensor(numbers)
            self._under_way = dist.all_reduce(
                self._asked, dist.ReduceOp.MAX, group=self.among.hosts, async_op=True
            )

    def answer(self, *numbers: int) -> tuple[int, ...]:
        """What came of the last question; zeros before the first. Alone: `numbers`."""
        if self.among.size == 1:
            return numbers
        if self._asked is None:
            return (0,) * len(numbers)
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None
        return tuple(self._asked.tolist())

    def now(self, *numbers: int) -> tuple[int, ...]:
        """Ask, and wait for the answer."""
        self.ask(*numbers)
        return self.answer(*numbers)
