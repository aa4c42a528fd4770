"""The engine: a step is recorded, its program is compiled if it is new, and launched on a table."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError
from treadle.native import Kernel, NoCompiler, build
from treadle.optim.chain import Chain
from treadle.optim.engine.batched import run_batched
from treadle.optim.engine.bucket import Bucket, Launch
from treadle.optim.engine.codegen_c import WIDE, c_source
from treadle.optim.engine.eager import run_eagerly
from treadle.optim.engine.gathered import run_gathered
from treadle.optim.engine.guard import THE_NORM, UNGUARDED, Guard, Verdict
from treadle.optim.engine.loose import run_guarded
from treadle.optim.engine.plan import Plan, has_tensors
from treadle.optim.engine.program import Program
from treadle.optim.engine.proof import prove
from treadle.optim.engine.record import Recording, record
from treadle.optim.engine.reference import run_chain
from treadle.optim.engine.spread import Joined, Spread
from treadle.optim.engine.tape import (
    SCALE,
    Code,
    G,
    Kind,
    NotRecorded,
    NotThisTime,
    OnMatrices,
    Outs,
    P,
    ShapeAsked,
)
from treadle.optim.engine.triton_launch import NoTriton, TritonLaunch
from treadle.optim.groups import Group, Hypers
from treadle.shards import alike, cut, is_sharded, local, whole
from treadle.sums import norms_over_parts

ENGINES = ("c", "foreach", "reference")

State = MutableMapping[Tensor, dict[str, Any]]
Flags = Mapping[Tensor, Mapping[str, Any]]

_LARGE = 1 << 21  # entries that no cache of a core holds
_kernels: dict[Any, Kernel | None] = {}  # by source and flags; None: no compiler takes it


class Engine:
    """Takes the steps of one optimizer.

    `kind` is "c" (the default: compiled loops, in C on the CPU and in Triton on a GPU, and torch's
    foreach operations where there is no compiler), "foreach" (no compiled loops), or "reference"
    (parameter by parameter). The environment variable TREADLE_ENGINE sets the default.

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
        self.skipped = 0  # steps that were left out, as far as `settle` knows
        self.scale: Tensor | None = None  # of the gradients in this step
        self._guard = UNGUARDED
        self._verdict: Verdict | None = None
        self._undo: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._plan: Plan | None = None
        # By id; the chains live as long as the optimizer, and with it the engine.
        self._refused: set[int] = set()
        self._proven: set[Any] = set()
        self._on_matrices: set[int] = set()
        self._by_shape: set[int] = set()

    def step(
        self,
        groups: Sequence[Group],
        chains: Sequence[Chain],
        views: Callable[[], Sequence[Hypers]],
        state: State,
        flags: Flags,
        ready: Callable[[Group], list[Tensor]],
        guard: Guard = UNGUARDED,
    ) -> None:
        """Take one step of the parameters `ready(group)` of each group.

        `chains` and `views()`, the hyper-parameters, have one entry a group.
        """
        self.settle()
        plan = self._plan
        if plan is None or not plan.holds(groups, chains, state, flags, ready):
            refused = set(map(id, chains)) if self.kind == "reference" else self._refused
            plan = Plan(groups, chains, views(), state, flags, ready, refused, self._by_shape)
        self._plan = None  # until all has gone well
        self._guard = guard
        self.scale = self._scale(plan) if guard.scales else None
        if guard.masks and self.scale is not None:
            self._verdict = Verdict(self.scale)
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
            self._refer(chain, hypers, params, state, flags)
        if self.scale is not None and not self.scale.is_cuda:
            self.settle()

    def settle(self) -> None:
        """Put back the numbers of a step that was left out; on a GPU, wait until that is known.

        What is on the device was left as it was by the step itself. Counts and the like are kept
        by the host, which learns of it later.
        """
        if self._verdict is not None and not self._verdict.taken:
            self.skipped += 1
            for stats, numbers in self._undo:
                stats.update(numbers)
        self._verdict, self._undo = None, []

    def _scale(self, plan: Plan) -> Tensor | None:
        """The scale of the gradients, handed to all buckets; None if there are no gradients."""
        norm = None
        if self._guard.measures:
            norms = [self._norm(bucket) for bucket in plan.buckets]
            norms += [_norm_of(p) for _, _, params in plan.loose for p in params]
            if not norms:
                return None
            if plan.is_spread:
                of = [bucket.params[0] for bucket in plan.buckets]
                of += [p for _, _, params in plan.loose for p in params]
                norms = norms_over_parts(norms, of)
            norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
        scale = self._guard.scale(norm)
        for bucket in plan.buckets:
            bucket.scale.copy_(scale)
        return scale

    def _norm(self, bucket: Bucket) -> Tensor:
        """The norm of all gradients of `bucket`."""
        launch = bucket.launches.get(THE_NORM)
        if launch is None:
            outs: Outs = (P, G, *bucket.kind.names, SCALE, len(THE_NORM) - 1)
            program = self._program(THE_NORM, outs, 0, bucket.kind)
            launch = bucket.launches[THE_NORM] = self._launch(bucket, program, joins=False)
        launch(())
        total: Tensor = torch.linalg.vector_norm(bucket.norms)
        return total

    def _step_otherwise(
        self, buckets: list[Bucket], refusal: NotRecorded, state: State, flags: Flags
    ) -> None:
        """Take the step of `buckets`, the first of which could not be recorded."""
        first, *others = buckets
        if isinstance(refusal, ShapeAsked):
            self._by_shape.add(id(first.chain))
            others = [*first.split(), *others]
        else:
            self._refer(first.chain, first.hypers, first.params, state, flags)
            # That has raised nothing, so it is the recorder that falls short.
            self._note(refusal, first)
        for i, bucket in enumerate(others):
            if id(bucket.chain) in self._refused:
                self._refer(bucket.chain, bucket.hypers, bucket.params, state, flags)
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
        if isinstance(refusal, OnMatrices):
            self._on_matrices.add(id(bucket.chain))
            return
        message = f"{refusal}; its parameters are stepped one by one, which is slower."
        warnings.warn(message, stacklevel=_depth_of_the_user())

    # ---- one bucket

    def _run(self, bucket: Bucket) -> Bucket:
        """Step the parameters of `bucket`; the bucket that takes its place."""
        guard = self._guard
        made = record(bucket.chain, bucket.known(), bucket.kind)
        if made.outs[1] != G and not guard.scales and not bucket.separate_grads():
            raise NotThisTime("two parameters have one gradient, and a stepper writes to it")
        form = made.code, made.outs, guard.form
        launch = bucket.launches.get(form)
        if launch is None:
            makes = self._makes(bucket, made)
            if makes and guard.masks and self._left_out():
                return bucket  # else a step that is left out would leave new stats behind
            try:
                program = self._new_program(bucket, made)
            except NotRecorded:
                record(bucket.chain, bucket.known(), bucket.kind, checked=True)  # says where
                raise
            if makes:
                new = made.new | guard.new_stats(bucket.kind)
                order = dict.fromkeys([*made.returned, *new])
                bucket = bucket.extended(new, made.numbers, list(order))
            launch = bucket.launches[form] = self._launch(bucket, program)
        before = {name: bucket.stats[0][name] for name in bucket.numbers}
        if guard.masks:
            self._undo += [(stats, before) for stats in bucket.stats]
        bucket.keep(made.numbers)  # before the kernel has put all else out of the caches
        try:
            launch([*made.scalars, *guard.seeds(bucket.kind.dtype, bucket.place)])
        except BaseException:
            bucket.keep(before)
            raise
        return bucket

    def _makes(self, bucket: Bucket, made: Recording) -> bool:
        """Whether a step leaves stats that there were not before."""
        tensors = made.new or self._guard.new_stats(bucket.kind)
        return bool(tensors) or any(name not in bucket.numbers for name in made.numbers)

    def _new_program(self, bucket: Bucket, made: Recording) -> Program:
        """The program of what was recorded, compared with the chain if it has not been."""
        guard, kind = self._guard, bucket.kind
        proven = id(bucket.chain), made.code, made.outs, kind.dtype
        if proven not in self._proven:
            prove(bucket.chain, bucket.known(), made, kind)
            self._proven.add(proven)
        new = {**made.new, **guard.new_stats(kind)}
        recorded = sorted({**kind.stats, **made.new})
        kind = replace(kind, stats={**kind.stats, **new})
        numbers = len(made.scalars) + guard.randomizes(kind.dtype)
        return self._program(*guard.guarded(made.code, made.outs, recorded, kind), numbers, kind)

    def _left_out(self) -> bool:
        """Whether this step is left out. It waits for the device."""
        return self.scale is not None and bool(self.scale.isnan())

    def _refer(
        self, chain: Chain, hypers: Hypers, params: Sequence[Tensor], state: State, flags: Flags
    ) -> None:
        """Step `params` without a program."""
        run: Callable[..., Any] = run_batched if id(chain) in self._on_matrices else run_chain
        if self._guard.form != UNGUARDED.form:
            scale = self.scale if self._guard.scales else None
            run = partial(run_guarded, run, guard=self._guard, scale=scale)
        common = dict(hypers), state, flags
        spread = [p for p in params if is_sharded(p)]
        plain = [p for p in params if not is_sharded(p)]
        with torch.no_grad():
            if plain:
                self._undo += run(chain, plain, *common) or []
            if spread:
                self._undo += run_gathered(run, chain, spread, *common)

    def _program(self, code: Code, outs: Outs, numbers: int, kind: Kind) -> Program:
        key = code, outs, kind.dtype, kind.device.type, frozenset(kind.stats.items())
        program = self.programs.get(key)
        if program is None:
            program = self.programs[key] = Program(code, outs, numbers, kind)
        return program

    def _launch(
        self, bucket: Bucket, program: Program, joins: bool = True
    ) -> Callable[[Sequence[float]], None]:
        """What runs `program`; with `joins`, its reductions are over the parts of all processes."""
        if joins and program.reduces and isinstance(bucket, Spread) and bucket.is_split:
            return Joined(bucket, program, self._program, partial(self._launch, joins=False))
        if self.kind == "c" and bucket.kind.device.type == "cpu":
            large = bucket.layout.total > _LARGE
            kernel = _kernel(c_source(program), *(WIDE if large else ()))
            if kernel is not None:
                return Launch(bucket, program, kernel)
        if self.kind == "c" and bucket.kind.device.type == "cuda":
            with suppress(NoTriton):
                return TritonLaunch(bucket, program)

        def eager(numbers: Sequence[float]) -> None:
            with torch.no_grad():
                run_eagerly(program, bucket.streams, numbers)

        return eager


def _norm_of(p: Tensor) -> Tensor:
    """The norm of the part of its gradient that is here."""
    grad = p.grad
    assert grad is not None
    if is_sharded(grad) and not alike(grad, p):
        grad = cut(whole(grad), p)
    norm: Tensor = torch.linalg.vector_norm(local(grad), dtype=torch.float64)
    return norm


def _kernel(source: str, *flags: str) -> Kernel | None:
    key = source, flags
    if key not in _kernels:
        try:
            _kernels[key] = build(source, *flags)
        except NoCompiler:  # it may only not know the flags
            _kernels[key] = _kernel(source) if flags else None
    return _kernels[key]


def _depth_of_the_user() -> int:
    """How many calls above the caller the code is that is neither torch's nor the optimizer's."""
    ours = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame, depth = frame.f_back, depth + 1
    return depth
