"""The engine: a step is recorded, its program is compiled if it is new, and launched on a table."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError
from treadle.optim.chain import Chain
from treadle.optim.engine.bucket import Bucket, Launch
from treadle.optim.engine.build import Kernel, NoCompiler, build
from treadle.optim.engine.codegen_c import c_source
from treadle.optim.engine.eager import run_eagerly
from treadle.optim.engine.plan import Plan, has_tensors
from treadle.optim.engine.program import Program
from treadle.optim.engine.record import record
from treadle.optim.engine.reference import run_chain
from treadle.optim.engine.tape import (
    Code,
    G,
    Kind,
    NotRecorded,
    NotThisTime,
    OnMatrices,
    Outs,
    ShapeAsked,
)
from treadle.optim.groups import Group, Hypers

ENGINES = ("c", "foreach", "reference")

State = MutableMapping[Tensor, dict[str, Any]]
Flags = Mapping[Tensor, Mapping[str, Any]]

_kernels: dict[str, Kernel | None] = {}  # by source; None: there is no compiler that takes it


class Engine:
    """Takes the steps of one optimizer.

    `kind` is "c" (the default: compiled loops on the CPU, torch's foreach operations elsewhere and
    where there is no compiler), "foreach" (no compiled loops), or "reference" (parameter by
    parameter). The environment variable TREADLE_ENGINE sets the default.

    What cannot be recorded runs on the reference engine, after one warning.
    """

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind or os.environ.get("TREADLE_ENGINE") or "c"
        if self.kind not in ENGINES:
            raise UsageError(
                f"the engine {self.kind} was asked for, perhaps by TREADLE_ENGINE, but there are"
                f" only {', '.join(ENGINES)}."
            )
        self.programs: dict[Any, Program] = {}
        self._plan: Plan | None = None
        # By id; the chains live as long as the optimizer, and with it the engine.
        self._refused: set[int] = set()
        self._by_shape: set[int] = set()

    def step(
        self,
        groups: Sequence[Group],
        chains: Sequence[Chain],
        views: Callable[[], Sequence[Hypers]],
        state: State,
        flags: Flags,
        ready: Callable[[Group], list[Tensor]],
    ) -> None:
        """Take one step of the parameters `ready(group)` of each group.

        `chains` and `views()`, the hyper-parameters, have one entry a group.
        """
        plan = self._plan
        if plan is None or not plan.holds(groups, chains, state, flags, ready):
            refused = set(map(id, chains)) if self.kind == "reference" else self._refused
            plan = Plan(groups, chains, views(), state, flags, ready, refused, self._by_shape)
        self._plan = None  # until all has gone well
        buckets = plan.buckets
        for i, bucket in enumerate(buckets):
            try:
                buckets[i] = self._run(bucket)
            except NotRecorded as refusal:
                self._step_otherwise(buckets[i:], refusal, state, flags)
                break
        else:
            self._plan = plan
        for chain, hypers, params in plan.loose:
            _refer(chain, hypers, params, state, flags)

    def _step_otherwise(
        self, buckets: list[Bucket], refusal: NotRecorded, state: State, flags: Flags
    ) -> None:
        """Take the step of `buckets`, the first of which could not be recorded."""
        first, *others = buckets
        if isinstance(refusal, ShapeAsked):
            self._by_shape.add(id(first.chain))
            others = [*first.split(), *others]
        else:
            _refer(first.chain, first.hypers, first.params, state, flags)
            # That has raised nothing, so it is the recorder that falls short.
            self._note(refusal, first)
        for i, bucket in enumerate(others):
            if id(bucket.chain) in self._refused:
                _refer(bucket.chain, bucket.hypers, bucket.params, state, flags)
                continue
            try:
                self._run(bucket)
            except NotRecorded as error:
                self._step_otherwise(others[i:], error, state, flags)
                return

    def _note(self, refusal: NotRecorded, bucket: Bucket) -> None:
        """Leave the chain of `bucket` to the reference engine from now on, if there is no hope."""
        if isinstance(refusal, NotThisTime) or has_tensors(bucket.hypers):
            return
        self._refused.add(id(bucket.chain))
        if not isinstance(refusal, OnMatrices):
            message = f"{refusal}; its parameters are stepped one by one, which is slower."
            warnings.warn(message, stacklevel=_depth_of_the_user())

    # ---- one bucket

    def _run(self, bucket: Bucket) -> Bucket:
        """Step the parameters of `bucket`; the bucket that takes its place."""
        code, outs, numbers, kept, new, returned = record(bucket.chain, bucket.known(), bucket.kind)
        if outs[1] != G and not bucket.separate_grads():
            raise NotThisTime("two parameters have one gradient, and a stepper writes to it")
        launch = bucket.launches.get((code, outs))
        if launch is None:
            kind = replace(bucket.kind, stats={**bucket.kind.stats, **new})
            program = self._program(code, outs, len(numbers), kind)
            if new or any(name not in bucket.numbers for name in kept):
                bucket = bucket.extended(new, kept, returned)
            launch = bucket.launches[code, outs] = self._launch(bucket, program)
        launch(numbers)
        bucket.keep(kept)
        return bucket

    def _program(self, code: Code, outs: Outs, numbers: int, kind: Kind) -> Program:
        key = code, outs, kind.dtype, kind.device.type, frozenset(kind.stats.items())
        program = self.programs.get(key)
        if program is None:
            program = self.programs[key] = Program(code, outs, numbers, kind)
        return program

    def _launch(self, bucket: Bucket, program: Program) -> Callable[[Sequence[float]], None]:
        if self.kind == "c" and bucket.kind.device.type == "cpu":
            kernel = _kernel(c_source(program))
            if kernel is not None:
                return Launch(bucket, program, kernel)

        def eager(numbers: Sequence[float]) -> None:
            with torch.no_grad():
                run_eagerly(program, bucket.streams, numbers)

        return eager


def _refer(
    chain: Chain, hypers: Hypers, params: Sequence[Tensor], state: State, flags: Flags
) -> None:
    with torch.no_grad():
        run_chain(chain, params, dict(hypers), state, flags)


def _kernel(source: str) -> Kernel | None:
    if source not in _kernels:
        try:
            _kernels[source] = build(source)
        except NoCompiler:
            _kernels[source] = None
    return _kernels[source]


def _depth_of_the_user() -> int:
    """How many calls above the caller the code is that is neither torch's nor the optimizer's."""
    ours = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame, depth = frame.f_back, depth + 1
    return depth
