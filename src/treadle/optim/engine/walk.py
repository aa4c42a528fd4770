"""The look at every parameter that a step begins with, in C.

What the step relies on belongs to others: autograd replaces gradients, users replace stats, freeze
parameters, move models. To ask Python for it costs more than a small model's step, so a compiled
function asks: of the interpreter by its C interface, of torch by the one that it keeps stable for
compiled models (torch/csrc/inductor/aoti_torch/c/shim.h), which tells an address without a new
object; and what that leaves out, by methods of C++: whether a tensor trains, and its gradient.
Where one of them cannot be had, or answers a question whose answer is known in another way,
`bucket` asks itself.
"""

from __future__ import annotations

import ctypes
import functools
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from treadle.native import NoCompiler, build

_SOURCE = r"""
#include <stddef.h>
#include <stdint.h>

/* As in Python.h, which not every machine with a compiler has. */
typedef struct Object {
    ptrdiff_t references;
    struct Object *type;
} Object;
ptrdiff_t PyList_Size(Object *);
Object *PyList_GetItem(Object *, ptrdiff_t);
Object *PyDict_GetItemWithError(Object *, Object *);
ptrdiff_t PyDict_Size(Object *);
int PyDict_Next(Object *, ptrdiff_t *, Object **, Object **);
int PyObject_SetItem(Object *, Object *, Object *);
void PyErr_Clear(void);

/* A tensor of C++, `at::Tensor`, is one pointer to what it holds, a `c10::TensorImpl`. */
typedef _Bool Trains(void *held);
typedef void **Grad(void *held);
typedef int Ask(void *tensor, void *answer); /* not 0: it cannot tell */

typedef struct {
    int64_t params, tensors, numbers, width;
    Object **param, **stats, **name; /* name: first of the stats that are tensors, then numbers */
    Object **number;                 /* those of the first parameter */
    Object *tensor_type;
    uint64_t *address;               /* [parameters, gradients, stats by name][parameter] */
    const int64_t *kind;             /* what the first four of `ask` answer */
    const int64_t *form;             /* of each parameter: dimensions, sizes, strides */
    int64_t inside;                  /* how far into an object of Python's its tensor lies */
    int64_t hints;
    const char **hint;               /* [parameter][hint]: see `expect` */
    const uint8_t *trains;           /* what `requires_grad` was */
    Trains *requires_grad;
    Grad *grad;
    int64_t object;                  /* the word of what is held that leads back to Python */
    Ask *ask[8];
} Walk;
enum { DTYPE, LAYOUT, DEVICE_TYPE, DEVICE_INDEX, DIM, SIZES, STRIDES, DATA_PTR };
enum { HINTS_OF_TENSOR = 6 };

static void *tensor_of(const Walk *w, Object *object)
{
    return (char *)object + w->inside;
}

/* What was looked at, most likely at the same places in the next step, is fetched early then, since
   the kernel fills the caches with numbers meanwhile. It is only fetched, never read, so it does no
   harm where torch or Python keep other parts in these words, or have let go of them. */
static const char **expect(const char **hint, const void *it, int lines, int word, int words)
{
    for (int line = 0; line < lines; line++)
        *hint++ = (const char *)it + 64 * line;
    while (words--)
        *hint++ = ((const char *const *)it)[word++];
    return hint;
}

static const char **expect_held(const char **hint, void *held)
{
    return expect(hint, held, 3, 2, 2); /* the storage, and what autograd keeps */
}

static const char **expect_tensor(const Walk *w, const char **hint, Object *object)
{
    *hint++ = (const char *)object;
    return expect_held(hint, *(void **)tensor_of(w, object));
}

static int is_at(const Walk *w, Object *object, uint64_t address)
{
    uint64_t found;
    return w->ask[DATA_PTR](tensor_of(w, object), &found) == 0 && found == address;
}

static int same_kind(const Walk *w, void *tensor, int asked)
{
    for (int k = DTYPE; k <= asked; k++) {
        int32_t found;
        if (w->ask[k](tensor, &found) != 0 || found != w->kind[k])
            return 0;
    }
    return 1;
}

static int same_form(const Walk *w, void *tensor, const int64_t *form)
{
    int64_t dim;
    const int64_t *size, *stride, *sizes = form + 1, *strides = sizes + form[0];
    if (w->ask[DIM](tensor, &dim) != 0 || dim != form[0]
        || w->ask[SIZES](tensor, &size) != 0 || w->ask[STRIDES](tensor, &stride) != 0)
        return 0;
    for (int64_t d = 0; d < dim; d++)
        if (size[d] != sizes[d] || (size[d] > 1 && stride[d] != strides[d]))
            return 0;
    return 1;
}

/* Whether the gradient fits; if so its address goes into the table. What autograd has made is plain
   and has no object of Python's until somebody asks for one. */
static int fresh_grad(const Walk *w, int64_t i, const int64_t *form, const char **hint)
{
    void **grad = w->grad(*(void **)tensor_of(w, w->param[i]));
    const Object *object = ((Object **)*grad)[w->object];
    *hint++ = (const char *)object;
    expect_held(hint, *grad);
    return (!object || object->type == w->tensor_type) && same_kind(w, grad, DEVICE_INDEX)
        && same_form(w, grad, form)
        && w->ask[DATA_PTR](grad, &w->address[w->params + i]) == 0;
}

static int fresh_stats(const Walk *w, int64_t i, const char **hint)
{
    if (PyDict_Size(w->stats[i]) != w->width)
        return 0;
    for (int64_t k = 0; k < w->tensors; k++) {
        Object *stat = PyDict_GetItemWithError(w->stats[i], w->name[k]);
        if (!stat || stat->type != w->tensor_type
            || !is_at(w, stat, w->address[(2 + k) * w->params + i]))
            return 0;
        hint = expect_tensor(w, hint, stat);
    }
    /* Numbers are one object for all parameters, as `Bucket.keep` leaves them. */
    for (int64_t k = 0; k < w->numbers; k++) {
        Object *number = PyDict_GetItemWithError(w->stats[i], w->name[w->tensors + k]);
        if (i == 0)
            w->number[k] = number;
        if (!number || number != w->number[k])
            return 0;
    }
    return 1;
}

/* Whether all is as it was but for values and gradients; not so, too, if this cannot tell. */
_Bool run(const Walk *w)
{
    const int64_t *form = w->form;
    for (int64_t i = 0; i < w->params; i++, form += 1 + 2 * form[0]) {
        const char **hint = w->hint + i * w->hints;
        const char **soon = i + 6 < w->params ? hint + 6 * w->hints : hint;
        for (int64_t k = 0; k < w->hints; k++)
            __builtin_prefetch(soon[k]);
        void *tensor = tensor_of(w, w->param[i]);
        int same = w->requires_grad(*(void **)tensor) == w->trains[i]
            && is_at(w, w->param[i], w->address[i]) && same_kind(w, tensor, DTYPE);
        hint = expect(expect_tensor(w, hint, w->param[i]), w->stats[i], 1, 4, 1);
        if (!same || !fresh_grad(w, i, form, hint) || !fresh_stats(w, i, hint + HINTS_OF_TENSOR)) {
            PyErr_Clear();
            return 0;
        }
    }
    return 1;
}

_Bool same_objects(Object *now, Object *then)
{
    const ptrdiff_t n = PyList_Size(then);
    if (PyList_Size(now) != n)
        return 0;
    for (ptrdiff_t i = 0; i < n; i++)
        if (PyList_GetItem(now, i) != PyList_GetItem(then, i))
            return 0;
    return 1;
}

_Bool same_values(Object *now, Object *then)
{
    Object *key, *value;
    ptrdiff_t place = 0, i = 0;
    if (PyDict_Size(now) != PyList_Size(then))
        return 0;
    while (PyDict_Next(now, &place, &key, &value))
        if (PyList_GetItem(then, i++) != value)
            return 0;
    return 1;
}

void set_in_all(Object *dicts, Object *key, Object *value)
{
    for (ptrdiff_t i = 0; i < PyList_Size(dicts); i++)
        if (PyObject_SetItem(PyList_GetItem(dicts, i), key, value) != 0)
            return;
}
"""

_QUESTIONS = (
    "dtype",
    "layout",
    "device_type",
    "device_index",
    "dim",
    "sizes",
    "strides",
    "data_ptr",
)
_KIND = 4  # of them have the same answer for all parameters of a bucket
_HINTS = 2, 6  # of a dictionary, of a tensor
_INSIDE = object.__basicsize__  # of a tensor, as in torch/csrc/autograd/python_variable.h
_REQUIRES_GRAD = "_ZNK3c1010TensorImpl13requires_gradEv"  # c10::TensorImpl::requires_grad() const
_GRAD = "_ZNK3c1010TensorImpl4gradEv"  # c10::TensorImpl::grad() const
_WORDS = 12  # of a TensorImpl, among them the one that leads back to the object of Python's


class _Torch(NamedTuple):
    """What torch is asked."""

    requires_grad: Any
    grad: Any
    object: int
    ask: list[Any]


@functools.cache
def _torch() -> _Torch | None:
    """None if something is missing or not as it is known to be."""
    plain = torch.empty(1, device="cpu")
    param = torch.nn.Parameter(plain.clone())
    known = plain, param
    if any(_held(id(t) + _INSIDE) != t._cdata for t in known):
        return None
    theirs = ctypes.PyDLL(torch._C.__file__)  # finds what is in the libraries under it, too
    try:
        ask = [getattr(theirs, f"aoti_torch_get_{name}") for name in _QUESTIONS]
        requires_grad, grad = getattr(theirs, _REQUIRES_GRAD), getattr(theirs, _GRAD)
    except AttributeError:
        return None
    requires_grad.argtypes, requires_grad.restype = [ctypes.c_void_p], ctypes.c_bool
    grad.argtypes, grad.restype = [ctypes.c_void_p], ctypes.c_void_p
    if any(requires_grad(t._cdata) != t.requires_grad for t in known):
        return None
    words = range(0, 8 * _WORDS, 8)
    place = [at for at in words if all(_held(t._cdata + at) == id(t) for t in known)]
    none = _held(grad(plain._cdata))  # what stands for no gradient; Python never sees it
    if len(place) != 1 or none is None or _held(none + place[0]) is not None:
        return None
    param.grad = plain
    if _held(grad(param._cdata)) != plain._cdata:
        return None
    return _Torch(requires_grad, grad, place[0] // 8, ask)


@functools.cache
def _compiled() -> ctypes.PyDLL | None:
    """Our functions, for Python with a GIL; None without a compiler."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    try:
        ours = build(_SOURCE).with_gil
    except NoCompiler:
        return None
    ours.run.argtypes, ours.run.restype = [ctypes.c_void_p], ctypes.c_bool
    two = [ctypes.py_object, ctypes.py_object]
    ours.same_objects.argtypes, ours.same_objects.restype = two, ctypes.c_bool
    ours.same_values.argtypes, ours.same_values.restype = two, ctypes.c_bool
    ours.set_in_all.argtypes, ours.set_in_all.restype = [*two, ctypes.py_object], None
    return ours


def _held(at: int) -> int | None:
    """The pointer that is kept at an address."""
    return ctypes.c_void_p.from_address(at).value


def same_objects(now: Sequence[Any], then: list[Any]) -> bool:
    """Whether two lists have the very same objects."""
    found = _compiled()
    if found is None or type(now) is not list:
        return len(now) == len(then) and all(map(is_, now, then))
    same: bool = found.same_objects(now, then)
    return same


def same_values(now: Mapping[Any, Any], then: list[Any]) -> bool:
    """Whether the values of a dictionary are the very objects of a list."""
    found = _compiled()
    if found is None or not isinstance(now, dict):
        return same_objects(list(now.values()), then)
    same: bool = found.same_values(now, then)
    return same


def set_in_all(dicts: list[dict[str, Any]], key: str, value: object) -> None:
    """Set the same in all of `dicts`."""
    found = _compiled()
    if found is not None:
        found.set_in_all(dicts, key, value)
        return
    for each in dicts:
        each[key] = value


def walk(
    params: Sequence[Tensor],
    stats: Sequence[Mapping[str, Any]],
    tensors: Sequence[str],
    numbers: Sequence[str],
    table: int,
) -> Callable[[], bool] | None:
    """A look at `params` and their `stats`, against the addresses in `table`; None without C.

    It is True if all is as it was but for values, and for gradients of the same layout, whose
    addresses it then writes into the table. False may also mean that it cannot tell.
    """
    ours, theirs = _compiled(), _torch()
    if ours is None or theirs is None:
        return None
    run, ask = ours.run, theirs.ask
    names = [*tensors, *numbers]
    trains = np.array([p.requires_grad for p in params], np.uint8)
    objects = [_ids(params), _ids(stats), _ids(names), _ids(numbers)]
    kind = np.array([_asked(question, params[0]) for question in ask[:_KIND]], np.int64)
    form = np.array([n for p in params for n in (p.dim(), *p.shape, *p.stride())], np.int64)
    hints = np.zeros((len(params), _HINTS[0] + _HINTS[1] * (2 + len(tensors))), np.int64)
    work = np.array(
        [
            *(len(params), len(tensors), len(numbers), len(stats[0])),
            *(each.ctypes.data for each in objects),
            *(id(Tensor), table),
            *(kind.ctypes.data, form.ctypes.data, _INSIDE, hints.shape[1], hints.ctypes.data),
            *(trains.ctypes.data, _address(theirs.requires_grad), _address(theirs.grad)),
            *(theirs.object, *map(_address, ask)),
        ],
        np.int64,
    )
    address = int(work.ctypes.data)
    # What the function points into.
    owned = params, stats, names, objects, trains, kind, form, hints, work

    def look(owned: Any = owned) -> bool:
        fresh: bool = run(address)
        return fresh

    return look


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def _asked(question: Any, t: Tensor) -> int:
    answer = ctypes.c_int32()
    question(ctypes.c_void_p(id(t) + _INSIDE), ctypes.byref(answer))
    return answer.value


def _ids(objects: Iterable[object]) -> np.ndarray[Any, Any]:
    return np.fromiter(map(id, objects), np.int64)
