"""The look at every parameter that a step begins with, in C.

What the step relies on belongs to others: autograd replaces gradients, users replace stats, freeze
parameters, move models. To ask Python for it costs more than a small model's step, so a compiled
function asks: of the interpreter by its C interface, of torch by DLPack's, which gives a tensor's
address, shape and strides without a new object (DLPackExchangeAPI,
https://dmlc.github.io/dlpack/latest/c_api.html). Where either cannot be had, `bucket` asks itself.
"""

from __future__ import annotations

import ctypes
import functools
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from treadle.native import NoCompiler, build

_SOURCE = r"""
#include <stddef.h>
#include <stdint.h>

/* As in Python.h, which not every machine with a compiler has. */
typedef struct Object Object;
Object *PyObject_GetAttr(Object *, Object *);
Object *PyObject_Type(Object *);
Object *PyDict_GetItemWithError(Object *, Object *);
ptrdiff_t PyDict_Size(Object *);
void PyErr_Clear(void);
void Py_DecRef(Object *);

typedef struct {
    void *data;
    int32_t device_type, device;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
} DLTensor;

typedef struct {
    int64_t params, tensors, numbers, width;
    Object **param, **stats, **name; /* name: first of the stats that are tensors, then numbers */
    Object **trains;                 /* what `requires_grad` was */
    Object *requires_grad, *grad, *tensor_type;
    uint64_t *address;               /* [parameters, gradients, stats by name][parameter] */
    int64_t *entries;
    int (*view)(void *, DLTensor *);
    int64_t hints;
    char **hint; /* [parameter][hint]: what will be looked at, to be fetched early */
} Walk;

static int same_layout(const DLTensor *a, const DLTensor *b, int64_t entries)
{
    int64_t n = 1;
    if (a->ndim != b->ndim || a->code != b->code || a->bits != b->bits
        || a->device_type != b->device_type || a->device != b->device)
        return 0;
    for (int32_t d = 0; d < a->ndim; d++) {
        if (a->shape[d] != b->shape[d] || (a->shape[d] > 1 && a->strides[d] != b->strides[d]))
            return 0;
        n *= a->shape[d];
    }
    return n == entries;
}

/* Whether the gradient fits; if so its address goes into the table. */
static int fresh_grad(const Walk *w, int64_t i, const DLTensor *p)
{
    DLTensor g;
    Object *grad = PyObject_GetAttr(w->param[i], w->grad);
    if (!grad)
        return 0;
    Object *type = PyObject_Type(grad);
    int fits = type == w->tensor_type && w->view(grad, &g) == 0
        && same_layout(p, &g, w->entries[i]);
    if (fits)
        w->address[w->params + i] = (uint64_t)g.data + g.offset;
    Py_DecRef(type);
    Py_DecRef(grad);
    return fits;
}

static int fresh_stats(const Walk *w, int64_t i)
{
    DLTensor t;
    if (PyDict_Size(w->stats[i]) != w->width)
        return 0;
    for (int64_t k = 0; k < w->tensors; k++) {
        Object *stat = PyDict_GetItemWithError(w->stats[i], w->name[k]);
        if (!stat || w->view(stat, &t) != 0
            || (uint64_t)t.data + t.offset != w->address[(2 + k) * w->params + i])
            return 0;
    }
    /* Numbers are one object for all parameters, as `Bucket.keep` leaves them. */
    for (int64_t k = w->tensors; k < w->tensors + w->numbers; k++) {
        Object *number = PyDict_GetItemWithError(w->stats[i], w->name[k]);
        if (!number || number != PyDict_GetItemWithError(w->stats[0], w->name[k]))
            return 0;
    }
    return 1;
}

/* 1: all is as it was but for values and gradients; 0: it is not, or this cannot tell. */
int run(const Walk *w)
{
    DLTensor p;
    for (int64_t i = 0; i < w->params; i++) {
        /* The kernel has filled the caches with numbers: fetch what is needed six from here. */
        const int64_t soon = i + 6 < w->params ? i + 6 : i;
        for (int64_t k = 0; k < w->hints; k++)
            __builtin_prefetch(w->hint[soon * w->hints + k]);
        Object *trains = PyObject_GetAttr(w->param[i], w->requires_grad);
        int same = trains == w->trains[i] && w->view(w->param[i], &p) == 0
            && (uint64_t)p.data + p.offset == w->address[i];
        if (trains)
            Py_DecRef(trains);
        if (!same || !fresh_grad(w, i, &p) || !fresh_stats(w, i)) {
            PyErr_Clear();
            return 0;
        }
    }
    return 1;
}
"""


class _Exchange(ctypes.Structure):
    """DLPackExchangeAPI."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("from_object", ctypes.c_void_p),
        ("to_object", ctypes.c_void_p),
        ("view", ctypes.c_void_p),
    )


@functools.cache
def _compiled() -> tuple[Callable[[int], int], int] | None:
    """The function, and torch's that it calls; None if either is not to be had."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # torch 2.10 has none
    if capsule is None or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    try:
        exchange = _Exchange.from_address(pointer(capsule, b"dlpack_exchange_api"))
        run: Any = build(_SOURCE).short
    except (ValueError, NoCompiler):
        return None
    if exchange.major != 1 or not exchange.view:
        return None
    run.restype = ctypes.c_int
    return run, exchange.view


_REQUIRES_GRAD, _GRAD = "requires_grad", "grad"


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
    found = _compiled()
    if found is None:
        return None
    run, view = found
    names = [*tensors, *numbers]
    trains = [p.requires_grad for p in params]
    objects = [_ids(params), _ids(stats), _ids(names), _ids(trains)]
    entries = np.array([p.numel() for p in params], np.int64)
    hints = np.array(
        [
            [id(s), *(place for t in (p, *(s[n] for n in tensors)) for place in _hints(t))]
            for p, s in zip(params, stats, strict=True)
        ],
        np.int64,
    )
    work = np.array(
        [
            *(len(params), len(tensors), len(numbers), len(stats[0])),
            *(each.ctypes.data for each in objects),
            *(id(_REQUIRES_GRAD), id(_GRAD), id(Tensor), table, entries.ctypes.data, view),
            *(hints.shape[1], hints.ctypes.data),
        ],
        np.int64,
    )
    address = int(work.ctypes.data)
    owned = params, stats, names, objects, entries, hints, work  # what the function points into

    def look(owned: Any = owned) -> bool:
        return run(address) == 1

    return look


def _hints(t: Tensor) -> list[int]:
    """Where the parts of a tensor lie that tell its address: only to be fetched, never read."""
    inner = getattr(t, "_cdata", id(t))
    return [id(t), inner, inner + 64, inner + 128]


def _ids(objects: Iterable[object]) -> np.ndarray[Any, Any]:
    return np.fromiter(map(id, objects), np.int64)
