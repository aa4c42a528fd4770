"""Programs as Triton: their text, compiled for GPUs that need not be here, and run on the CPU.

Triton compiles for a GPU without one. Run are the kernels by Triton's interpreter, in a process of
its own (this file as a script), because the interpreter is chosen when Triton is imported. What
only a GPU shows is for `benchmarks/gpu_check.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import traceback
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from treadle.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Adan,
    Lamb,
    Larc,
    Lion,
    NAdam,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    ScheduleFreeAdamW,
    ranger,
    sgd_step,
)
from treadle.optim.engine import Engine, codegen_triton, fused
from treadle.optim.engine.codegen_triton import CHUNK, WARPS, arguments, triton_source
from treadle.optim.engine.eager import run_eagerly
from treadle.optim.engine.ops import ELEMENTWISE, LOGIC, REDUCTIONS
from treadle.optim.engine.program import Program
from treadle.optim.engine.tape import G, Kind, P, Type
from treadle.optim.engine.triton_launch import NoTriton, TritonLaunch, load

RECIPES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda ps: SGD(ps, lr=0.1, wd=0.1),
    "SGD momentum": lambda ps: SGD(ps, lr=0.1, mom=0.9, wd=0.1),
    "SGD Nesterov": lambda ps: SGD(ps, lr=0.1, mom=0.9, wd=0.1, decouple_wd=False, nesterov=True),
    "RMSProp": lambda ps: RMSProp(ps, lr=0.1, mom=0.9, eps=1e-3),
    "Adagrad": lambda ps: Adagrad(ps, lr=0.1, eps=1e-3),
    "Adadelta": lambda ps: Adadelta(ps, eps=1e-3),
    "Adam": lambda ps: Adam(ps, lr=0.1, eps=1e-3, wd=0.1, decouple_wd=False),
    "AdamW": lambda ps: AdamW(ps, lr=0.1, eps=1e-3),
    "NAdam": lambda ps: NAdam(ps, lr=0.1, eps=1e-3),
    "RAdam": lambda ps: RAdam(ps, lr=0.1, eps=1e-3),
    "RAdam softplus": lambda ps: RAdam(ps, lr=0.1, beta=20.0),
    "QHAdam": lambda ps: QHAdam(ps, lr=0.1, mom=0.8, eps=1e-3),
    "Adan": lambda ps: Adan(ps, lr=0.1, eps=1e-3, wd=0.1),
    "Lion": lambda ps: Lion(ps, lr=0.1, wd=0.1),
    "schedule-free": lambda ps: ScheduleFreeAdamW(ps, lr=0.1, eps=1e-3, wd=0.1),
    "Larc": lambda ps: Larc(ps, lr=0.1, wd=0.1),
    "Lamb": lambda ps: Lamb(ps, lr=0.1, wd=0.1, eps=1e-3),
    "ranger": lambda ps: ranger(ps, lr=0.1, k=2, eps=1e-3),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
STEPS = 3


def program_of(code: Any, dtype: torch.dtype, numbers: int = 0, **outs: Any) -> Program:
    """A program from its code; `outs` are the stats that it writes, full unless named `small_`."""
    types = {name: Type(dtype, not name.startswith("small_")) for name in outs}
    kind = Kind(dtype, torch.device("cpu"), None, types)
    return Program(tuple(code), (P, G, *(outs[name] for name in kind.names)), numbers, kind)


def programs(make: Callable[[Any], Optimizer], dtype: torch.dtype) -> list[Program]:
    """Those that some steps of an optimizer take."""
    params = [nn.Parameter(torch.ones(2, 3, dtype=dtype)) for _ in range(2)]
    opt = make(params)
    opt._engine = Engine("foreach")
    for _ in range(STEPS):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        grow_old(opt)
    return list(opt._engine.programs.values())


def grow_old(opt: Optimizer) -> None:
    """From the second step on, parameters are of an age at which RAdam takes its other branch."""
    for stats in opt.state.values():
        if "step" in stats:
            stats["step"] += 20


def operations(dtype: torch.dtype) -> tuple[Program, list[float]]:
    """A program that takes each operation of the table once, and its numbers."""
    operands = {
        "axpy": (P, G, None),
        "lerp": (P, G, None),
        "addcmul": (P, G, P, None),
        "addcdiv": (P, G, P, None),
        "softplus": (P, None, None),
    }
    code: list[Any] = [("gt", P, G), ("lt", P, None)]
    places = {}
    for name, op in {**ELEMENTWISE, **LOGIC}.items():
        logical = (0, 1)[: op.arity] if name in LOGIC else None
        code.append((name, *(logical or operands.get(name) or (P, G)[: op.arity])))
        if op.gives_bool:
            code.append(("where", len(code) - 1, P, G))
        places[f"o_{name}"] = len(code) - 1
    count = sum(x is None for entry in code for x in entry)
    return program_of(code, dtype, count, **places), [0.75, *[0.6] * (count - 1)]


def reductions(dtype: torch.dtype) -> Program:
    """A program that takes each reduction of the table, and what is left of p without its mean."""
    code: list[Any] = [("mul", P, G)]
    code += [(name, 0) for name in REDUCTIONS]
    outs = {f"small_{name}": 1 + i for i, name in enumerate(REDUCTIONS)}
    code.append(("sub", P, outs["small_mean"]))
    code.append(("norm2", len(code) - 1))  # in a second pass
    return program_of(code, dtype, 0, o=len(code) - 2, small_left=len(code) - 1, **outs)


def rounding(dtype: torch.dtype) -> Program:
    """A program that rounds p·g stochastically, and to the nearest with what that takes away."""
    cast = f"cast:{dtype}"
    code = [("mul", P, G), ("stochastic", 0, None), (cast, 0), ("sub", 0, 2)]
    return program_of(code, dtype, 1, a=1, b=2, c=3)


# ---- the text


def body(source: str, name: str) -> list[str]:
    """The lines of the function `name`."""
    return re.search(rf"def {name}\(.*?\n\n", source, re.S)[0].splitlines()[1:-1]


def test_the_text_of_adam():
    (program,) = programs(RECIPES["AdamW"], torch.bfloat16)
    source = triton_source(program)
    lines = [line.strip() for line in body(source, "entries_0")]
    reads = [line for line in lines if "tl.load" in line]
    writes = [line for line in lines if "tl.store" in line]
    assert reads == [
        f"{x} = tl.load(at_{x}, keep).to(tl.float32)" for x in ("p", "g", "s_grad_avg", "s_sqr_avg")
    ]
    assert [re.sub(r"v\d+", "v", line) for line in writes] == [
        f"tl.store(at_{x}, v.to(tl.bfloat16), keep)" for x in ("p", "s_grad_avg", "s_sqr_avg")
    ]
    computed = [line for line in lines if re.match(r"v\d+ = ", line)]
    assert computed[:3] == [
        "v0 = p * n0",
        "v1 = s_grad_avg * n1",
        "v2 = tl.fma(g, n2, v1)",
    ]
    assert 'KERNELS = [(pass_0, "chunks")]' in source
    assert not re.search(r"\d\.\d|1e-", source), "a number has become part of the code"


def test_a_norm_takes_a_second_pass():
    (program,) = programs(RECIPES["Lamb"], torch.float32)
    order = '[(pass_0, "chunks"), (totals_0, "tensors"), (pass_1, "chunks")]'
    source = triton_source(program)
    assert f"KERNELS = {order}" in source
    assert not any("at_p, " in line and "store" in line for line in body(source, "entries_0"))
    assert sum("tl.store(part" in line for line in body(source, "entries_0")) == 2


def test_numbers_keep_float64_only_where_it_is_computed_in():
    (single,), (double,) = (programs(RECIPES["AdamW"], d) for d in (torch.float32, torch.float64))
    assert {t for x, t in arguments(single).items() if re.match(r"n\d", x)} == {"fp32"}
    assert {t for x, t in arguments(double).items() if re.match(r"n\d", x)} == {"fp64"}


def test_stats_may_have_any_name():
    program = program_of([("add", P, "a b"), ("add", P, "a_20_b")], torch.float32, **NAMES)
    compile(triton_source(program), "kernel", "exec")


NAMES = {"a b": 0, "a_20_b": 1, "at_p": 0, "é": 1, "class": 0, "n0": 1}


# ---- compiled for a GPU


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Compiles a program for the GPUs of compute capability `arch`: the PTX of each kernel."""
    triton = pytest.importorskip("triton", reason="compiling for a GPU needs Triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def build(program: Program, arch: int) -> dict[str, str]:
        options = {"num_warps": WARPS, "enable_fp_fusion": False}
        target = GPUTarget("cuda", arch, 32)
        found = {}
        for kernel, _ in load(triton_source(program)).KERNELS:
            source = ASTSource(kernel, arguments(program))
            made = triton.compile(source, target=target, options=options)
            assert made.asm["cubin"]
            found[kernel.__name__] = made.asm["ptx"]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield build


@pytest.fixture
def small_chunks(monkeypatch):
    """One entry a thread, so that long programs do not take long to compile."""
    monkeypatch.setattr(codegen_triton, "CHUNK", 32 * WARPS)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_operation_compiles(dtype, arch, built, small_chunks):
    program, _ = operations(dtype)
    assert {line.name for line in program.lines} >= {*ELEMENTWISE, *LOGIC}
    ptx = built(program, arch)["pass_0"]
    # The rough division and root of float32 are nowhere.
    assert not re.findall(r"(?:div\.(?:full|approx)|sqrt\.approx|rsqrt)[.\w]*", ptx)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_compiles(name, arch, built):
    found = programs(RECIPES[name], torch.float32)
    assert len(found) >= (2 if "RAdam" in name else 1)
    for program in found:
        source = triton_source(program)
        for kernel, ptx in built(program, arch).items():
            assert f".target sm_{arch}" in ptx
            if kernel.startswith("pass"):
                # Whole chunks go 16 bytes at a time, with one instruction a thread and stream.
                lines = "\n".join(body(source, kernel.replace("pass", "entries")))
                for instruction, call in (("ld", "tl.load(at"), ("st", "tl.store(at")):
                    assert ptx.count(f"{instruction}.global.v4.b32") == lines.count(call)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_compile(dtype, built):
    for program in (reductions(dtype), *programs(RECIPES["Lamb"], dtype)):
        built(program, 90)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_to_the_nearest(dtype, built):
    ptx = built(rounding(dtype), 90)["pass_0"]
    assert f"cvt.rn.{'bf16' if dtype is torch.bfloat16 else 'f16'}" in ptx


def test_nothing_is_contracted_that_is_not_asked_for(built):
    program = program_of([("mul", P, None), ("add", 0, G)], torch.float32, 1, o=1)
    assert "fma" not in built(program, 90)["pass_0"]
    program = program_of([("axpy", P, G, None)], torch.float32, 1, o=0)
    assert "fma.rn.f32" in built(program, 90)["pass_0"]


# ---- where Triton cannot be had


def bucket_for(program: Program, streams: list[list[torch.Tensor]]) -> Any:
    """What a launch needs of a bucket."""
    table = array("Q", [t.data_ptr() for stream in streams for t in stream])
    return SimpleNamespace(kind=program.kind, params=streams[0], parts=streams[0], table=table)


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    program = program_of([("neg", P)], torch.float32, without=0)
    for _ in range(2):
        with pytest.raises(NoTriton, match="not installed"):
            TritonLaunch(bucket_for(program, [[torch.ones(3)]]), program)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that it compiles for")
def test_without_a_gpu_it_says_so():
    pytest.importorskip("triton", reason="what it says is Triton's")
    program = program_of([("abs", P)], torch.float32, o=0)
    for _ in range(2):
        with pytest.raises(NoTriton, match="does not compile it: "):
            TritonLaunch(bucket_for(program, [[torch.ones(3)]]), program)


# ---- run by the interpreter

# In between a launch computes as the reference does, so what may differ is what torch vectorises
# otherwise: an ulp or two of a result that may be the small difference of two large ones. What is
# kept in 16 bits is that, rounded once.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SHAPES = [(), (7,), (40, 60), (0, 2)]  # less than a chunk, and a whole one and more


def check_recipe(name: str, dtype: torch.dtype) -> None:
    """Some steps of a recipe, with the reference engine beside it.

    Where 16 bits are held a launch computes in float32, so there the reference has parameters of
    float32, and before each step takes over what the other one holds.
    """
    torch.manual_seed(0)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    start = [torch.randn(shape).to(dtype) for shape in SHAPES]
    start.append(torch.randn(CHUNK + 3).to(dtype)[1:])  # at no multiple of 16 bytes
    a = RECIPES[name]([nn.Parameter(t.to(wide, copy=True)) for t in start])
    b = RECIPES[name]([nn.Parameter(t) for t in start])
    a._engine, b._engine = Engine("reference"), Engine("c")
    pairs = list(zip(a.param_lists[0], b.param_lists[0], strict=True))
    for _ in range(STEPS):
        for p, q in pairs:
            q.grad = torch.randn(q.shape).to(dtype)
            p.grad = q.grad.to(wide, copy=True)
            p.data.copy_(q.data)
            for key, value in b.state[q].items():
                if isinstance(value, torch.Tensor):
                    a.state[p][key].copy_(value)
        a.step()
        b.step()
        grow_old(a)
        grow_old(b)
        for p, q in pairs:
            expected = {"p": p.data, "g": p.grad, **a.state[p]}
            for key, value in {"p": q.data, "g": q.grad, **b.state[q]}.items():
                if isinstance(value, torch.Tensor):
                    same(value, expected[key], dtype)
                else:
                    assert value == expected[key]


def same(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, ulps: float = 1) -> None:
    tol = ulps * TOLERANCE[dtype]
    torch.testing.assert_close(
        found.to(expected.dtype), expected, rtol=tol, atol=tol, equal_nan=True
    )


def streams_for(program: Program, params: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors for all streams of a program: gradients at random, zeros for the rest."""
    streams = [params, [torch.randn(p.shape).to(p.dtype) for p in params]]
    for name in program.streams[2:]:
        t = program.types[name]
        streams.append([torch.zeros(p.shape if t.full else (), dtype=t.dtype) for p in params])
    return streams


def check(program: Program, params: list[torch.Tensor], numbers: Any = (), ulps: float = 1) -> None:
    """A launch against the same program run by torch."""
    ours = streams_for(program, params)
    theirs = [[t.clone() for t in stream] for stream in ours]
    TritonLaunch(bucket_for(program, ours), program)(list(numbers))
    run_eagerly(program, theirs, numbers)
    for mine, other in zip(ours, theirs, strict=True):
        for x, y in zip(mine, other, strict=True):
            same(x, y, program.kind.dtype, ulps)


def draw(dtype: torch.dtype, *sizes: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(size).to(dtype) for size in sizes]


def check_operations(dtype: torch.dtype) -> None:
    program, numbers = operations(dtype)
    inf = float("inf")
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, inf, -inf, float("nan"), 1e-30, -3e4, 0.5])
    check(program, [*draw(dtype, 100), special.to(dtype)], numbers)


def check_reductions(dtype: torch.dtype) -> None:
    # Sums are taken in float64 here, and by torch in the parameter's type.
    check(reductions(dtype), draw(dtype, 1, 100, 2 * CHUNK + 5), ulps=10)


def check_nan() -> None:
    """It comes through every reduction, from the first chunk and from the last."""
    program = reductions(torch.float32)
    params = draw(torch.float32, CHUNK + 5, CHUNK + 5, 9)
    params[0][0] = params[1][CHUNK + 4] = float("nan")
    ours = streams_for(program, params)
    TritonLaunch(bucket_for(program, ours), program)([])
    for name in REDUCTIONS:
        found = ours[program.streams.index(f"small_{name}")]
        assert [x.isnan().item() for x in found] == [True, True, False], name


def check_rounding(dtype: torch.dtype) -> None:
    """The same bits are drawn as elsewhere."""
    check(rounding(dtype), draw(dtype, 5, CHUNK + 1), [2.0**52 + 12345], ulps=0)


def check_float64_numbers() -> None:
    """A number that float32 cannot hold arrives whole."""
    p = torch.tensor([1.0], dtype=torch.float64)
    program = program_of([("mul", P, None)], torch.float64, 1, o=0)
    streams = streams_for(program, [p])
    TritonLaunch(bucket_for(program, streams), program)([1 / 3])
    assert streams[program.streams.index("o")][0].item() == 1 / 3


def check_small_stats() -> None:
    """A tensor of no dimensions is written behind all chunks, which read what it was."""

    def centred(p, lr, centre=None):
        centre = p.grad.data.mean() if centre is None else centre
        p.data.sub_(lr * (p.grad.data - centre))
        return {"centre": 0.9 * centre + 0.1 * p.grad.data.mean()}

    params = [nn.Parameter(torch.zeros(n)) for n in (3 * CHUNK, 5)] + [nn.Parameter(torch.ones(()))]
    opt = Optimizer(params, centred, lr=1.0)
    opt._engine = Engine("c")
    expected = [torch.zeros(3 * CHUNK), torch.zeros(5), torch.ones(())]
    centres = [None] * 3
    for _ in range(3):
        for i, p in enumerate(params):
            g = p.grad = torch.randn(p.shape)
            old = g.mean() if centres[i] is None else centres[i]
            expected[i] = expected[i] - (g - old)
            centres[i] = 0.9 * old + 0.1 * g.mean()
        opt.step()
        for i, p in enumerate(params):
            same(p.data, expected[i], torch.float32)
            same(opt.state[p]["centre"], centres[i], torch.float32)


def check_nothing_beyond_the_end() -> None:
    """Entries beside a parameter, of the same memory, are left alone."""
    memory = torch.zeros(CHUNK + 20)
    p = nn.Parameter(memory[3 : CHUNK + 10])
    opt = Optimizer([p], sgd_step, lr=1.0)
    opt._engine = Engine("c")
    p.grad = torch.ones_like(p)
    opt.step()
    assert memory[3 : CHUNK + 10].eq(-1).all()
    assert memory.sum() == -(CHUNK + 7)


CHECKS: dict[str, Callable[[], None]] = {
    **{
        f"{name} in {str(dtype)[6:]}": lambda n=name, d=dtype: check_recipe(n, d)
        for name in RECIPES
        for dtype in DTYPES
    },
    "operations in float32": lambda: check_operations(torch.float32),
    "operations in float64": lambda: check_operations(torch.float64),
    "reductions in float32": lambda: check_reductions(torch.float32),
    "reductions in float64": lambda: check_reductions(torch.float64),
    "rounding to bfloat16": lambda: check_rounding(torch.bfloat16),
    "rounding to float16": lambda: check_rounding(torch.float16),
    "NaN": check_nan,
    "numbers of float64": check_float64_numbers,
    "stats of no dimensions": check_small_stats,
    "the end of a parameter": check_nothing_beyond_the_end,
}


@pytest.fixture(scope="module")
def interpreted():
    """What each of the checks has found to be wrong, from a process that interprets Triton."""
    pytest.importorskip("triton", reason="its interpreter runs the kernels")
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=env, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CHECKS)
def test_interpreted(name, interpreted):
    assert interpreted[name] == ""


def stand_in(name: str) -> Callable[..., Any]:
    """A function of libdevice, which the interpreter does not have, by torch."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    call = getattr(torch, {"rint": "round"}.get(name, name))

    def function(*given: Any) -> Any:
        result = call(*(torch.from_numpy(x.handle.data.copy()) for x in given))
        return tl.tensor(TensorHandle(result.numpy(), given[0].dtype), given[0].type)

    return function


def mend(interpreter: Any) -> None:
    """Have the interpreter round to bfloat16 as a GPU does; of itself it cuts off."""
    import triton.language as tl

    convert = interpreter._convert_float

    def rounding_convert(data: Any, given: Any, wanted: Any, mode: Any) -> Any:
        if (given, wanted) != (tl.float32, tl.bfloat16):
            return convert(data, given, wanted, mode)
        return torch.from_numpy(data.copy()).bfloat16().view(torch.uint16).numpy()

    interpreter._convert_float = rounding_convert


def main() -> None:
    from triton.language.extra import libdevice
    from triton.runtime import interpreter

    mend(interpreter)
    table = " ".join(op.triton for op in ELEMENTWISE.values())
    for name in set(re.findall(r"libdevice\.(\w+)", table)):
        setattr(libdevice, name, stand_in(name))
    codegen_triton._TOTALS = 2  # so that three chunks are more than are summed up at once
    fused.Engine._launch = lambda self, bucket, program: (  # type: ignore[method-assign]
        TritonLaunch(bucket, program) if self.kind == "c" else None
    )
    found = {}
    for name, check_it in CHECKS.items():
        try:
            check_it()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
