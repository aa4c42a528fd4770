"""A program as C: one loop over the entries of a parameter, one pass for each stage of reductions.

The function `run` gets its work as a table: the address of every tensor, and chunks (parameter,
first entry, number of entries) that the threads take in any order. So the number of tensors costs
no compile time and hardly any run time, and the result does not depend on the number of threads:
what a reduction sums up is summed a chunk, and the chunks in their order.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch

from treadle.optim.engine.ops import ELEMENTWISE, LOGIC, REDUCTIONS
from treadle.optim.engine.passes import Pass, finish, passes
from treadle.optim.engine.program import Id, Line, Program
from treadle.optim.engine.rounding import C_SOURCE
from treadle.optim.engine.tape import Type

_STORED = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.bool: "int",
}
_X86 = platform.machine() in ("x86_64", "AMD64")
WIDE = ("-funroll-loops", *["-mprefer-vector-width=512"] * _X86)
"""What to compile with, beside what all kernels are, where a step waits for the memory: in long
strides there is more of it on its way to the processor. Within the caches they are slower."""

_BLOCK = 512  # entries that a reduction joins before it goes on in double

_HEADER = """\
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __FMA__
#define FMA_float(a, b, c) __builtin_fmaf(a, b, c)
#define FMA_double(a, b, c) __builtin_fma(a, b, c)
#elif defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
#define FMA_float(a, b, c) __builtin_fmaf(a, b, c)
#define FMA_double(a, b, c) __builtin_fma(a, b, c)
#else
#define FMA_float(a, b, c) ((a) * (b) + (c))
#define FMA_double(a, b, c) ((a) * (b) + (c))
#endif

#ifdef _OPENMP
int omp_get_thread_num(void);
#else
#define omp_get_thread_num() 0
#endif

typedef struct {
    int64_t threads, items, tensors;
    const int64_t *item;      /* items + 1 places in `chunk` */
    const int64_t *chunk;     /* parameter, first entry, number of entries */
    const int64_t *first;     /* of each parameter, the place of its first chunk; tensors + 1 */
    void *const *address;     /* [stream][parameter] */
    double *part, *total;     /* of reductions: [chunk][reduction], [parameter][reduction] */
    double number[];
} Work;

/* Each thread begins with a share of its own, the same in every step, since its caches may still
   have what they can hold of it; then it helps the others with theirs. Every other pass goes back,
   to begin with what the one before has left in the caches. */
static inline __attribute__((always_inline)) void
all_chunks(const Work *work, void pass(const Work *, int64_t), const int back)
{
    const int64_t shares = work->threads;
    struct { int64_t next; char apart[120]; } share[shares]; /* apart: in cache lines of its own */
    for (int64_t s = 0; s < shares; s++)
        share[s].next = s * work->items / shares;
    #pragma omp parallel num_threads(shares) if (shares > 1)
    for (int64_t turn = 0, s = omp_get_thread_num(); turn < shares; turn++, s++) {
        s %= shares;
        const int64_t start = s * work->items / shares, stop = (s + 1) * work->items / shares;
        for (int64_t k;;) {
            #pragma omp atomic capture
            k = share[s].next++;
            if (k >= stop)
                break;
            const int64_t item = back ? start + (stop - 1 - k) : k;
            for (int64_t c = work->item[item]; c < work->item[item + 1]; c++)
                pass(work, c);
        }
    }
}
"""
_BF16 = """
typedef uint16_t bf16;
static inline float from_bf16(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
static inline bf16 to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x != x ? 0x7fc0 : (bf16)rounded;
}
"""
_F16 = """
typedef _Float16 f16;
static inline float from_f16(f16 x) { return (float)x; }
static inline f16 to_f16(float x) { return (f16)x; }
"""


def c_source(program: Program) -> str:
    """The C source of `program`."""
    return "\n".join([_HEADER, *_small_types(program), *_Writer(program).functions()])


def _small_types(program: Program) -> Iterator[str]:
    dtypes = {t.dtype for t in program.types.values()}
    if torch.bfloat16 in dtypes:
        yield _BF16
    if torch.float16 in dtypes:
        yield _F16
    if any(line.name == "stochastic" for line in program.lines):
        yield C_SOURCE


def _c_type(dtype: torch.dtype) -> str:
    """What a value of `dtype` is held in while it is computed with."""
    held = _STORED[dtype]
    return "float" if held in ("bf16", "f16") else held


class _Writer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.reductions = [line for line in program.lines if line.name in REDUCTIONS]
        self.passes, self.finish = passes(program), finish(program)

    def functions(self) -> Iterator[str]:
        for k, one in enumerate(self.passes):
            yield from self._pass(k, one)
            yield ""
        if self.finish is not None:
            yield from self._finish(self.finish)
            yield ""
        yield from self._run()

    # ---- one pass

    def _pass(self, k: int, one: Pass) -> Iterator[str]:
        """The function that takes a chunk through pass number `k`."""
        types = self.program.types
        full = [s for s in one.read if types[s].full]
        yield f"static void pass_{k}(const Work *work, int64_t c)"
        yield "{"
        yield "    const int64_t i = work->chunk[3 * c], from = work->chunk[3 * c + 1];"
        yield "    const int64_t n = work->chunk[3 * c + 2];"
        yield "    (void)i; (void)from; (void)n;"
        yield from self._once(one, [line for line in one.lines if not line.type.full])
        body = [self._load(s, "j") for s in full]
        body += [self._line(x) for x in one.lines if x.type.full and x.name not in REDUCTIONS]
        body += [self._store(s, out, "j") for s, out in one.outs.items()]
        yield from self._reduced(one.goal, body) if one.goal else self._looped("0", "n", body)
        yield "}"

    def _looped(self, start: str, stop: str, body: list[str], joins: str = "") -> Iterator[str]:
        """The loop over entries."""
        yield f"    #pragma omp simd{joins}"
        yield f"    for (int64_t j = {start}; j < {stop}; j++) {{"
        for line in body:
            yield f"        {line}"
        yield "    }"

    def _reduced(self, goal: list[Line], body: list[str]) -> Iterator[str]:
        """The loop of a pass that ends in reductions.

        A few hundred entries are joined in the type that they have, which the processor does many
        at a time, and those results in double.
        """
        joins = ""
        for k, line in enumerate(goal):
            how, c = REDUCTIONS[line.name], _c_type(self._of(line).dtype)
            body = [*body, *self._accumulate(k, line, c)]
            joins += f" reduction({how.join}:b{k})" + f" reduction(+:nans{k})" * (how.join == "max")
            yield f"    double r{k} = {how.first};"
        yield "    for (int64_t start = 0, stop; start < n; start = stop) {"
        yield f"    stop = n - start < {_BLOCK} ? n : start + {_BLOCK};"
        for k, line in enumerate(goal):
            how, c = REDUCTIONS[line.name], _c_type(self._of(line).dtype)
            yield f"    {c} b{k} = {how.first};" + f" int nans{k} = 0;" * (how.join == "max")
        yield from self._looped("start", "stop", body, joins)
        for k, line in enumerate(goal):
            if REDUCTIONS[line.name].join == "+":
                yield f"    r{k} += b{k};"
            else:  # comparisons lose a NaN
                yield f"    r{k} = nans{k} ? NAN : b{k} > r{k} ? b{k} : r{k};"
        yield "    }"
        for k, line in enumerate(goal):
            place = f"{len(self.reductions)} * c + {self.reductions.index(line)}"
            yield f"    work->part[{place}] = r{k};"

    def _of(self, line: Line) -> Type:
        """The type of what `line` reduces."""
        (operand,) = line.operands
        return self.program.types[operand]

    def _once(self, one: Pass, lines: list[Line]) -> Iterator[str]:
        """What is the same for all entries: addresses, numbers, tensors of no dimensions, lines."""
        for s in one.streams:
            yield f"    {self._pointer(s)}"
        numbers = {x for line in one.lines for x in line.operands if str(x).startswith("$")}
        for i in sorted(map(str, numbers)):
            yield f"    const double n{i[1:]} = work->number[{i[1:]}];"
        for s in one.read:
            if not self.program.types[s].full:
                yield f"    {self._load(s, '0')}"
        for line in lines:
            yield f"    {self._line(line)}"

    def _finish(self, one: Pass) -> Iterator[str]:
        """The function that writes a parameter's tensors of no dimensions."""
        yield "static void finish(const Work *work, int64_t i)"
        yield "{"
        yield "    const int64_t from = 0;"
        yield "    (void)from;"
        yield from self._once(one, one.lines)
        for s, out in one.outs.items():
            yield f"    {self._store(s, out, '0')}"
        yield "}"

    def _pointer(self, s: Id) -> str:
        t = self.program.types[s]
        c, place = _STORED[t.dtype], self.program.streams.index(s)
        shift = " + from" if t.full else ""
        return (
            f"{c} *restrict const {_name(s)}_at = ({c} *)work->address[{place} * work->tensors + i]"
            f"{shift};"
        )

    def _load(self, s: Id, at: str) -> str:
        c = _STORED[self.program.types[s].dtype]
        where = f"{_name(s)}_at[{at}]"
        value = f"from_{c}({where})" if c in ("bf16", "f16") else where
        return f"const {_c_type(self.program.types[s].dtype)} {_name(s)} = {value};"

    def _store(self, s: Id, out: Id, at: str) -> str:
        c = _STORED[self.program.types[s].dtype]
        value = f"to_{c}({_name(out)})" if c in ("bf16", "f16") else _name(out)
        return f"{_name(s)}_at[{at}] = {value};"

    def _accumulate(self, k: int, line: Line, c: str) -> Iterator[str]:
        how = REDUCTIONS[line.name]
        x = f"const {c} x = {_name(line.operands[0])}; const {c} y = {how.term};"
        if how.join == "+":
            yield f"{{ {x} b{k} += y; }}"
        else:
            yield f"{{ {x} b{k} = y > b{k} ? y : b{k}; nans{k} += y != y; }}"

    # ---- one line

    def _line(self, line: Line) -> str:
        c = _c_type(line.type.dtype)
        return f"const {c} {_name(line.id)} = {self._expression(line)};"

    def _expression(self, line: Line) -> str:
        if line.name in REDUCTIONS:
            n, k = len(self.reductions), self.reductions.index(line)
            return f"({_c_type(line.type.dtype)})work->total[{n} * i + {k}]"
        result, computed = _c_type(line.type.dtype), _c_type(line.computed)
        if line.name == "zeros":
            return "0"
        if line.name in ("to_", "same"):
            return f"({result}){_name(line.operands[1])}"
        if line.name == "cast":
            return self._rounded(line)
        if line.name == "stochastic":
            x, seed = map(_name, line.operands)
            stored = _STORED[line.type.dtype]
            return f"stochastic_{stored}({x}, key_of({seed}, i), from + j)"
        if line.name == "where":
            c, *ab = line.operands
            a, b = (f"({computed}){_name(x)}" for x in ab)
            return f"({result})({_name(c)} ? {a} : {b})"
        if line.name in LOGIC:
            return LOGIC[line.name].c.format(*map(_name, line.operands))
        op = ELEMENTWISE[line.name]
        operands = [
            _name(x) if self._held(x) == computed else f"(({computed}){_name(x)})"
            for x in line.operands
        ]
        text = op.c.replace("FMA(", f"FMA_{computed}(").replace("(T)", f"({computed})")
        text = text.replace("0.5f", "0.5f" if computed == "float" else "0.5")
        text = text.format(*operands, f="f" if computed == "float" else "")
        return text if computed == result else f"({result})({text})"

    def _held(self, x: Id) -> str:
        if isinstance(x, str) and x.startswith("$"):
            return "double"
        return _c_type(self.program.types[x].dtype)

    def _rounded(self, line: Line) -> str:
        stored, x = _STORED[line.type.dtype], _name(line.operands[0])
        if stored in ("bf16", "f16"):
            return f"from_{stored}(to_{stored}((float){x}))"
        return f"({stored}){x}"

    # ---- all passes

    def _run(self) -> Iterator[str]:
        yield "void run(const Work *work)"
        yield "{"
        for number, one in enumerate(self.passes):
            yield f"    all_chunks(work, pass_{number}, {number % 2});"
            yield from self._totals(one.goal)
        if self.finish is not None:
            yield "    for (int64_t i = 0; i < work->tensors; i++)"
            yield "        finish(work, i);"
        yield "}"

    def _totals(self, lines: list[Line]) -> Iterator[str]:
        if not lines:
            return
        width = len(self.reductions)
        yield "    for (int64_t i = 0; i < work->tensors; i++) {"
        yield "        const int64_t from = work->first[i], to = work->first[i + 1];"
        for line in lines:
            how, k = REDUCTIONS[line.name], self.reductions.index(line)
            join = "t += x;" if how.join == "+" else "t = t != t || x < t ? t : x;"
            yield "        {"
            yield f"            double t = {how.first};"
            yield "            for (int64_t c = from; c < to; c++) {"
            yield f"                const double x = work->part[{width} * c + {k}];"
            yield f"                {join}"
            yield "            }"
            if "n" in how.last.split():
                yield "            const int64_t *last = work->chunk + 3 * (to - 1);"
                yield "            const double n = last[1] + last[2];"
            yield f"            work->total[{width} * i + {k}] = {how.last};"
            yield "        }"
        yield "    }"


def _name(x: Id) -> str:
    """The C name of a value; stats may have names that C does not know."""
    if isinstance(x, int):
        return {-1: "p", -2: "g"}.get(x, f"v{x}")
    if x.startswith("$"):
        return f"n{x[1:]}"
    return "s_" + "".join(ch if ch.isascii() and ch.isalnum() else f"_{ord(ch):x}_" for ch in x)
