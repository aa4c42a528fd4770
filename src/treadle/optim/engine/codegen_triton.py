"""A program as Triton: for each stage of reductions a kernel over chunks of the parameters.

The kernels get their work as a table, as the C code does: the address of every tensor, and for
every chunk of `CHUNK` entries the parameter that it is of. One program of a kernel takes one chunk
through all operations. So the number of tensors costs no compile time, and one launch takes all of
them. Numbers are arguments, so a new learning rate compiles nothing.

The source is that of a module. Its `KERNELS` are to be launched in their order, each over the
chunks or over the tensors; all of them take the same `arguments`. Nothing depends on the order in
which the programs of one kernel run: what a reduction sums up is summed a chunk, and the chunks in
their order by a kernel of its own, which no atomic operation could promise. Tensors of no
dimensions are read by all chunks of their parameter, so a last kernel writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch

from treadle.optim.engine.ops import ELEMENTWISE, LOGIC, REDUCTIONS
from treadle.optim.engine.passes import Pass, finish, passes
from treadle.optim.engine.program import Id, Line, Program

CHUNK = 2048  # entries that a program takes; with these warps 4 a thread, of float32 one load
WARPS = 16

_TOTALS = 1024  # chunks whose sums are taken up at once
_STORED = {
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
    torch.bool: "tl.int1",
}
_WORK = {
    "address": "*i64",  # [stream][parameter]
    "owner": "*i32",  # of each chunk, its parameter
    "first": "*i64",  # of each parameter, its first chunk; tensors + 1
    "size": "*i64",  # of each parameter, the number of its entries
    "part": "*fp64",  # of reductions: [chunk][reduction]
    "total": "*fp64",  # [parameter][reduction]
    "tensors": "i64",
}
_EXACT = {
    "tl.float32": {"div": "tl.div_rn", "sqrt": "tl.sqrt_rn"},
    "tl.float64": {"div": "divide", "sqrt": "tl.sqrt"},
}
_HEADER = """\
import triton
import triton.language as tl
from triton.language.extra import libdevice
"""
_DIVIDE = '''\
@triton.jit
def divide(a, b):
    """In float64, where / rounds as IEEE 754 has it; in float32 that is tl.div_rn."""
    return a / b
'''
_LARGER = '''\
@triton.jit
def larger(a, b):
    """The larger one, or NaN if there is one."""
    return tl.where((a != a) | (a > b), a, b)
'''
# The bits and the rounding of `rounding.C_SOURCE`.
_STOCHASTIC = """\
@triton.jit
def mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def noise(seed, tensor, entry):
    bits = seed.to(tl.uint64)
    high = mix((bits >> 32).to(tl.uint32) ^ mix(tensor.to(tl.uint32)))
    return mix(entry ^ mix(bits.to(tl.uint32) ^ high))


@triton.jit
def stochastic_bfloat16(x, bits):
    kept = (x.to(tl.uint32, bitcast=True) + (bits >> 16)) & 0xFFFF0000
    return tl.where(x - x == 0, kept.to(tl.float32, bitcast=True), x)


@triton.jit
def stochastic_float16(x, bits):
    power = (x.to(tl.uint32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    apart = tl.where(power < 0.00006103515625, 0.00006103515625, power) * 0.0009765625
    above = tl.floor(tl.div_rn(x, apart) + (bits >> 8).to(tl.float32) * 0.000000059604644775390625)
    return tl.where(x - x == 0, above * apart, x)
"""


def triton_source(program: Program) -> str:
    """The source of the module for `program`."""
    return "\n\n".join([_HEADER, *_Writer(program).blocks()])


def arguments(program: Program) -> dict[str, str]:
    """The arguments of every kernel, each with Triton's name for its type.

    A number is of type float64 where something is computed with it in float64. Where nothing is,
    it is rounded to float32 once, by the launch.
    """
    wide = {
        x
        for line in program.lines
        if torch.float64 in (line.computed, line.type.dtype) or line.name == "stochastic"
        for x in line.operands
    }
    numbers = {f"n{k}": "fp64" if f"${k}" in wide else "fp32" for k in range(program.numbers)}
    return {**_WORK, **numbers}


class _Writer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.types = program.types
        self.reductions = [line for line in program.lines if line.name in REDUCTIONS]
        self.arguments = arguments(program)
        self.numbers = [f"${k}" for k in range(program.numbers)]

    def blocks(self) -> Iterator[str]:
        """The functions, and the order of the kernels."""
        if any(line.computed is torch.float64 for line in self.program.lines):
            yield _DIVIDE
        if any(REDUCTIONS[line.name].join == "max" for line in self.reductions):
            yield _LARGER
        if any(line.name == "stochastic" for line in self.program.lines):
            yield _STOCHASTIC
        order = []
        for stage, done in enumerate(passes(self.program)):
            yield _text(self._entries(stage, done))
            yield _text(self._kernel(f"pass_{stage}", self._chunk(stage, done)))
            order.append(f'(pass_{stage}, "chunks")')
            if done.goal:
                yield _text(self._kernel(f"totals_{stage}", self._totals(done.goal)))
                order.append(f'(totals_{stage}, "tensors")')
        if last := finish(self.program):
            yield _text(self._kernel("finish", self._finish(last)))
            order.append('(finish, "tensors")')
        yield f"KERNELS = [{', '.join(order)}]\n"

    def _kernel(self, name: str, body: Iterator[str]) -> Iterator[str]:
        # Types are given and no value is special, so each kernel is compiled once.
        yield f"@triton.jit(do_not_specialize={[*_WORK]})"
        yield f"def {name}("
        yield from (f"    {x}: {t!r}," for x, t in self.arguments.items())
        yield "):"
        yield from body

    # ---- a pass over the entries

    def _chunk(self, stage: int, done: Pass) -> Iterator[str]:
        """The kernel of a pass: what is the same for all entries of a chunk, and the entries.

        Where a chunk is whole and lies on multiples of 16 bytes, Triton loads and stores 16 bytes
        at a time. The others go the same way entry by entry: the ends of parameters, and all of a
        parameter that begins in the middle of something.
        """
        yield "    c = tl.program_id(0)"
        yield "    i = tl.load(owner + c)"
        # An int64, as the first chunk is: entries are counted beyond 2^31.
        yield f"    start = (c - tl.load(first + i)) * {CHUNK}"
        yield "    n = tl.load(size + i) - start"
        full = [f"at_{_name(s)}" for s in done.streams if self.types[s].full]
        for s in done.streams:
            if self.types[s].full:
                shift = f"{self.types[s].dtype.itemsize} * start"
                yield f"    at_{_name(s)} = {self._address(s)} + {shift}"
        yield from self._once(done.lines, [s for s in done.read if not self.types[s].full])
        given = self._given(done)
        aligned = f" & (({' | '.join(full)}) % 16 == 0)" if full else ""
        yield f"    if (n >= {CHUNK}){aligned}:"
        yield f"        entries_{stage}({', '.join([*full, *given, 'None'])})"
        yield "    else:"
        keep = f"tl.arange(0, {CHUNK}) < n"
        yield f"        entries_{stage}({', '.join([*full, *given, keep])})"

    def _given(self, done: Pass) -> list[str]:
        """What the entries of a chunk need beside the addresses."""
        full = [line for line in done.lines if line.type.full]
        used = {x for line in full for x in line.operands}
        used.update(done.outs.values(), (line.operands[0] for line in done.goal))
        small = [x for x, t in self.types.items() if not t.full]
        work = ["part", "c"] if done.goal else []
        if any(line.name == "stochastic" for line in full):
            work += ["i", "start"]
        return [*(_name(x) for x in (*self.numbers, *small) if x in used), *work]

    def _entries(self, stage: int, done: Pass) -> Iterator[str]:
        """The function that takes the entries of a chunk through the pass; `keep` masks them."""
        full = [s for s in done.streams if self.types[s].full]
        names = [*(f"at_{_name(s)}" for s in full), *self._given(done), "keep"]
        yield "@triton.jit"
        yield f"def entries_{stage}({', '.join(names)}):"
        yield f"    j = tl.arange(0, {CHUNK})"
        for s in full:
            yield f"    at_{_name(s)} = {self._pointer(s, f'at_{_name(s)}')} + j"
        yield from ["    if keep is None:"] if full else []
        for s in full:
            yield f"        at_{_name(s)} = tl.multiple_of(at_{_name(s)}, 16)"
        for s in full:
            if s in done.read:
                yield f"    {self._load(s, ', keep')}"
        for line in done.lines:
            if line.type.full:
                yield f"    {self._line(line)}"
        for line in done.goal:
            yield from self._part(line)
        for s, out in done.outs.items():
            yield f"    {self._store(s, out, ', keep')}"

    def _part(self, line: Line) -> Iterator[str]:
        """What an entry adds to a reduction, and the sum over the chunk."""
        how, k = REDUCTIONS[line.name], self.reductions.index(line)
        yield f"    x = {_name(line.operands[0])}.to(tl.float64)"
        if how.term != "x":
            yield f"    x = {_spelled(how.term)}"
        yield "    if keep is not None:"
        yield f"        x = tl.where(keep, x, {_spelled(how.first)})"
        yield f"    tl.store(part + {len(self.reductions)} * c + {k}, {_joined(how.join, 'x')})"

    def _once(self, lines: Sequence[Line], small: Sequence[Id]) -> Iterator[str]:
        """Numbers, tensors of no dimensions, and their lines."""
        used = {x for line in lines for x in line.operands}
        for name, x in ((_name(x), x) for x in self.numbers if x in used):
            # Of the type as declared, also where a launch hands on what Python has.
            yield f"    {name} = tl.full([], {name}, {self._held(x)})"
        for s in small:
            yield f"    at_{_name(s)} = {self._pointer(s, self._address(s))}"
            yield f"    {self._load(s, '')}"
        for line in lines:
            if not line.type.full:
                yield f"    {self._line(line)}"

    # ---- what is done a parameter

    def _totals(self, goal: Sequence[Line]) -> Iterator[str]:
        """The kernel that sums up the chunks of a parameter."""
        width = len(self.reductions)
        yield "    i = tl.program_id(0)"
        yield "    end = tl.load(first + i + 1)"
        if any("n" in REDUCTIONS[line.name].last.split() for line in goal):
            yield "    n = tl.load(size + i).to(tl.float64)"
        places = [self.reductions.index(line) for line in goal]
        hows = [REDUCTIONS[line.name] for line in goal]
        for k, how in zip(places, hows, strict=True):
            yield f"    x{k} = tl.full([{_TOTALS}], {_spelled(how.first)}, tl.float64)"
        yield "    start = tl.load(first + i)"
        yield "    while start < end:"
        yield f"        c = start + tl.arange(0, {_TOTALS})"
        yield f"        start += {_TOTALS}"
        for k, how in zip(places, hows, strict=True):
            y = f"tl.load(part + {width} * c + {k}, c < end, {_spelled(how.first)})"
            yield f"        x{k} = " + (f"x{k} + {y}" if how.join == "+" else f"larger(x{k}, {y})")
        for k, how in zip(places, hows, strict=True):
            yield f"    t = {_joined(how.join, f'x{k}')}"
            yield f"    tl.store(total + {width} * i + {k}, {_spelled(how.last)})"

    def _finish(self, done: Pass) -> Iterator[str]:
        """The kernel that writes a parameter's tensors of no dimensions."""
        yield "    i = tl.program_id(0)"
        yield from self._once(done.lines, done.read)
        for s, out in done.outs.items():
            if s not in done.read:
                yield f"    at_{_name(s)} = {self._pointer(s, self._address(s))}"
            yield f"    {self._store(s, out, '')}"

    # ---- memory

    def _address(self, s: Id) -> str:
        return f"tl.load(address + {self.program.streams.index(s)} * tensors + i)"

    def _pointer(self, s: Id, address: str) -> str:
        return f"{address}.to(tl.pointer_type({_STORED[self.types[s].dtype]}))"

    def _load(self, s: Id, keep: str) -> str:
        wider = "" if self.types[s].dtype.itemsize > 2 else ".to(tl.float32)"
        return f"{_name(s)} = tl.load(at_{_name(s)}{keep}){wider}"

    def _store(self, s: Id, out: Id, keep: str) -> str:
        dtype = self.types[s].dtype
        value = _name(out) if dtype.itemsize > 2 else f"{_name(out)}.to({_STORED[dtype]})"
        return f"tl.store(at_{_name(s)}, {value}{keep})"

    # ---- one line

    def _line(self, line: Line) -> str:
        return f"{_name(line.id)} = {self._expression(line)}"

    def _expression(self, line: Line) -> str:
        result, computed = _held(line.type.dtype), _held(line.computed)
        if line.name in REDUCTIONS:
            place = f"{len(self.reductions)} * i + {self.reductions.index(line)}"
            return f"tl.load(total + {place}).to({result})"
        if line.name == "zeros":
            return self._filled(line, "0.0")
        if line.name in ("to_", "same"):
            x = line.operands[1]
            same = self._is_full(x) == line.type.full
            return self._as(x, result) if same else self._filled(line, _name(x))
        if line.name == "stochastic":
            x, seed = map(_name, line.operands)
            entry = "(start + j).to(tl.uint32)" if line.type.full else "0"
            rounded = f"stochastic_{str(line.type.dtype).removeprefix('torch.')}"
            return f"{rounded}({x}, noise({seed}, i, {entry}))"
        if line.name == "cast":
            x, stored = line.operands[0], _STORED[line.type.dtype]
            # By way of float32, as torch does it where float64 becomes a 16-bit number.
            wide = self._as(x, "tl.float32") if stored != result else _name(x)
            return f"{wide}.to({stored})" + (f".to({result})" if stored != result else "")
        if line.name == "where":
            a, b = (self._as(x, computed) for x in line.operands[1:])
            text = f"tl.where({_name(line.operands[0])}, {a}, {b})"
            return text if computed == result else f"{text}.to({result})"
        op = ELEMENTWISE.get(line.name) or LOGIC[line.name]
        operands = [self._as(x, computed) for x in line.operands]
        text = op.triton.format(*operands, T=computed, **_EXACT.get(computed, {}))
        return text if op.gives_bool or computed == result else f"({text}).to({result})"

    def _filled(self, line: Line, value: str) -> str:
        shape = [CHUNK] if line.type.full else []
        return f"tl.full({shape}, {value}, {_held(line.type.dtype)})"

    def _is_full(self, x: Id) -> bool:
        return not str(x).startswith("$") and self.types[x].full

    def _held(self, x: Id) -> str:
        """The type that a value is held in while it is computed with."""
        if isinstance(x, str) and x.startswith("$"):
            return {"fp32": "tl.float32", "fp64": "tl.float64"}[self.arguments[_name(x)]]
        return _held(self.types[x].dtype)

    def _as(self, x: Id, held: str) -> str:
        return _name(x) if self._held(x) == held else f"{_name(x)}.to({held})"


def _text(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def _held(dtype: torch.dtype) -> str:
    return "tl.float32" if dtype in (torch.bfloat16, torch.float16) else _STORED[dtype]


def _spelled(text: str) -> str:
    """The C of a reduction, which is done in float64, as Triton."""
    words = {"fabs": "tl.abs", "sqrt": "tl.sqrt", "INFINITY": 'float("inf")', "0": "0.0"}
    return re.sub(r"\w+", lambda word: words.get(word[0], word[0]), text)


def _joined(join: str, block: str) -> str:
    return f"tl.sum({block})" if join == "+" else f"tl.reduce({block}, 0, larger)"


def _name(x: Id) -> str:
    """The name of a value; stats may have names that Python does not know."""
    if isinstance(x, int):
        return {-1: "p", -2: "g"}.get(x, f"v{x}")
    if x.startswith("$"):
        return f"n{x[1:]}"
    if x.isidentifier() and x.isascii():
        return f"s_{x}"
    return "t_" + "".join(ch if ch.isascii() and ch.isalnum() else f"_{ord(ch):x}_" for ch in x)
