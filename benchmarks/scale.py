"""What limits the way to 8, 64 and 1,024 GPUs, on paper: prints the tables of docs/scale.md.

python benchmarks/scale.py                  # all tables
python benchmarks/scale.py docs/scale.md    # puts them where they stand on the page
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

from common import RESULTS, table
from scale_work import (
    COUNTS,
    DDP,
    DECODED,
    DIGEST,
    FIRST_PASS,
    FSDP,
    GLOO_HOP,
    IMAGE,
    LATER_PASS,
    MEMORY,
    MODELS,
    MODES,
    PER_NODE,
    PIECE,
    PLACES,
    PLANNED,
    RECORDS,
    SAVED,
    STATES,
    WORST,
    fits,
    held,
    interval,
    lost,
    messages,
    pieces,
    planning,
    ring_latency,
    sending,
    sent,
    step,
    stopped,
    tree_latency,
    writing,
)


def bytes_table() -> str:
    """Bytes a step."""
    rows = [
        [
            f"{m.name}, {mode[0]}",
            *(gigabytes(sent(m, mode, n)) for n in COUNTS),
            f"{messages(m, mode):,}",
        ]
        for m, mode in product(MODELS, MODES)
    ]
    return table(["GB a step and GPU", *(f"{n:,} GPUs" for n in COUNTS), "messages"], rows)


def time_table() -> str:
    """Computation and communication."""
    rows = []
    for m, mode in product(MODELS, MODES):
        row = [f"{m.name}, {mode[0]}", milliseconds(m.compute)]
        for n, (_, speed) in PLACES:
            share = m.compute / step(m, mode, n, speed)
            cell = f"{milliseconds(sending(m, mode, n, speed))} ({100 * share:.0f} %)"
            row.append(cell if fits(m, mode, n) else "too large")
        rows.append(row)
    heads = [f"{n:,}, {name}" for n, (name, _) in PLACES]
    return table(["ms a step", "computation", *heads], rows)


def memory_table() -> str:
    """Which model fits."""
    rows = [
        [
            f"{m.name}, {mode[0]}",
            *(
                gigabytes(held(m, mode, n)) + ("" if fits(m, mode, n) else " (too much)")
                for n in COUNTS
            ),
        ]
        for m, mode in product(MODELS, (DDP, FSDP))
    ]
    return table(["GB on each GPU", *(f"{n:,} GPUs" for n in COUNTS)], rows)


def batch_table() -> str:
    """The batch that data parallelism makes."""
    rows = [
        [f"{m.name}, {m.samples:,} {m.unit} a GPU", *(f"{m.samples * n:,}" for n in COUNTS)]
        for m in MODELS
    ]
    return table(["samples an update", *(f"{n:,} GPUs" for n in COUNTS)], rows)


# Data


def data_table() -> str:
    """Files that must be read."""
    model = MODELS[0]
    rows = []
    for n in COUNTS:
        rate = n * model.samples / model.compute
        node = rate / math.ceil(n / PER_NODE)
        rows.append(
            [
                f"{n:,}",
                f"{rate:,.0f}",
                gigabytes(rate * IMAGE),
                gigabytes(node * IMAGE),
                f"{node / FIRST_PASS:.0f}",
                f"{node / LATER_PASS:.0f}",
            ]
        )
    return table(
        [
            "GPUs",
            "images a second",
            "GB/s of JPEG",
            "of it a node",
            "cores a node that decode",
            "cores a node from the cache",
        ],
        rows,
    )


def order_table() -> str:
    """What an order of so many samples takes where it is an array."""
    rows = [
        [f"{n:,}", gigabytes(8 * n), gigabytes(8 * n * PER_NODE), gigabytes(DECODED * n)]
        for n in (10**6, 10**7, 10**8, 10**9)
    ]
    return table(
        ["samples", "GB, order as an array", "GB, in 8 processes", "GB, cached images"], rows
    )


# Checkpoints


def checkpoint_table() -> str:
    """Sizes and times, the state sharded evenly."""
    rows = []
    for m, n in product(MODELS, COUNTS):
        if not fits(m, FSDP, n):
            continue
        whole = SAVED * m.params
        rows.append(
            [
                f"{m.name}, {n:,} GPUs",
                gigabytes(whole),
                gigabytes(whole / n),
                seconds(stopped(m, n)),
                seconds(writing(m, n)),
                seconds(whole / DIGEST),
            ]
        )
    return table(
        ["checkpoint", "GB", "GB a rank", "s stopped", "s writing", "s if rank 0 wrote it"], rows
    )


def metadata_table() -> str:
    """What rank 0 must know of all."""
    rows = []
    for m, n in product(MODELS, COUNTS):
        if not fits(m, FSDP, n):
            continue
        count = pieces(m, n)
        rows.append(
            [
                f"{m.name}, {n:,} GPUs",
                f"{count:,}",
                megabytes(PIECE * count),
                megabytes(PLANNED * count),
                seconds(planning(m, n)),
            ]
        )
    heads = ["pieces", "MB of layout.json", "MB of plans", "s of rank 0's thread"]
    return table(["checkpoint", *heads], rows)


# Failures


def failure_table() -> str:
    """Mean times between interruptions."""
    rows = [
        [
            r.name,
            f"{r.gpus:,}",
            f"{r.hours:.1f}",
            f"{r.gpus * r.hours:,.0f}",
            *(hours(r.hours_with(n)) for n in COUNTS),
        ]
        for r in RECORDS
    ]
    heads = [f"{n:,} GPUs" for n in COUNTS]
    return table(["record", "GPUs", "hours", "GPU hours", *heads], rows)


def interval_table() -> str:
    """The best interval, and what is lost with it and with others."""
    rows = []
    for m, n in product(MODELS[2:], COUNTS):
        if not fits(m, FSDP, n):
            continue
        cost, written, between = stopped(m, n), writing(m, n), 3600 * WORST.hours_with(n)
        best = max(interval(cost, between), written)  # one write at a time
        waited = interval(written, between)
        shares = [
            lost(cost, best, between, written),
            lost(cost, max(3600.0, written), between, written),
            lost(written, waited, between, 0.0),
        ]
        rows.append(
            [
                f"{m.name}, {n:,} GPUs",
                f"{between / 3600:,.0f}",
                minutes(best),
                *(f"{100 * share:.2f} %" for share in shares),
            ]
        )
    return table(
        [
            "",
            "hours between failures",
            "best interval, min",
            "time lost",
            "lost with one an hour",
            "lost if training waited",
        ],
        rows,
    )


# What processes tell one another in each batch


def exchange_table() -> str:
    """The loss of the whole batch, and a question among hosts."""
    rows = []
    for n in COUNTS:
        device, host = tree_latency(n, 0.52, 5.0), 2 * (n - 1) * GLOO_HOP
        shares = [f"{100 * device / m.compute:.3f} %" for m in (MODELS[0], MODELS[2])]
        rows.append([f"{n:,}", f"{1e6 * device:.0f}", *shares, f"{1e3 * host:.1f}"])
    return table(
        [
            "GPUs",
            "µs, the loss by NCCL",
            "of resnet50's step",
            "of the 7B's step",
            "ms, a question by gloo",
        ],
        rows,
    )


# Measured


def measured_table() -> str:
    """What benchmarks/distributed.py found."""
    (file,) = RESULTS.glob("distributed-*.json")
    rows = []
    for name, measures in json.loads(file.read_text())["results"].items():
        ((measure, numbers),) = measures.items()
        added = numbers.get("% added to the loop by hand")
        rows.append(
            [
                name,
                f"{numbers['median']:,.0f}",
                f"{numbers['x one process']:.2f}",
                "" if added is None else f"{added:+.1f}",
            ]
        )
    return table(["training", measure, "× one process", "% added to the loop by hand"], rows)


# Figures


def gigabytes(n: float) -> str:
    """Bytes as GB, three digits."""
    return digits(n / 1e9)


def megabytes(n: float) -> str:
    """Bytes as MB, three digits."""
    return digits(n / 1e6)


def milliseconds(t: float) -> str:
    """Seconds as ms, two or three digits."""
    return f"{1e3 * t:,.0f}" if t >= 0.01 else f"{1e3 * t:.1f}"


def seconds(t: float) -> str:
    """Seconds, three digits, down to a millisecond."""
    return digits(t) if t >= 0.001 else "< 0.001"


def minutes(t: float) -> str:
    """Seconds as minutes, two digits or more."""
    return f"{t / 60:,.0f}" if t >= 600 else f"{t / 60:.1f}"


def hours(t: float) -> str:
    """Hours, whole where there are many."""
    return f"{t:,.0f}" if t >= 10 else f"{t:.1f}"


def digits(x: float) -> str:
    """Three digits, without an exponent.

    >>> digits(0.01234), digits(1.234), digits(1234.5)
    ('0.0123', '1.23', '1,234')
    """
    if x >= 100:
        return f"{x:,.0f}"
    return f"{x:.{max(2 - math.floor(math.log10(x)), 0)}f}"


TABLES: dict[str, Callable[[], str]] = {
    "measured": measured_table,
    "bytes": bytes_table,
    "time": time_table,
    "memory": memory_table,
    "batch": batch_table,
    "data": data_table,
    "order": order_table,
    "checkpoints": checkpoint_table,
    "metadata": metadata_table,
    "failures": failure_table,
    "intervals": interval_table,
    "exchanges": exchange_table,
}


def facts() -> list[str]:
    """What the page says in its sentences, with the numbers as they are now."""
    resnet, seven = MODELS[0], MODELS[2]
    tokens = 4e-3 * seven.samples / seven.compute
    return [
        f"{1e3 * ring_latency(1024):.1f} ms however small it is",
        f"takes {1e3 * tree_latency(1024):.2f} ms",
        f"some {0.75 * MEMORY / STATES / 1e9:.1f} billion",
        f"{round(resnet.samples / resnet.compute, -2):,.0f} images a second on each GPU",
        f"{FIRST_PASS:,.0f} a second decoded, {LATER_PASS:,.0f} gathered",
        f"is {gigabytes(DECODED * 1_281_167)} GB",
        f"{seven.samples:,} of them a second and GPU are {tokens:.0f} kB",
        f"{100 * resnet.utilisation:.0f} %, which is what MLPerf's",
        f"for the 70B is {gigabytes(4 * MODELS[3].params)} GB",
    ]


PLACE = re.compile(r"(<!-- scale\.py: (\w+) -->\n\n)(?:(?:\|.*\n)+\n)?")
"""Where a table stands on the page."""


def filled(page: str) -> str:
    """The page with each table as it is now."""
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n\n", page)


def main() -> None:
    """Print the tables, or put them on the pages that are given."""
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(filled(page.read_text()))
    if not sys.argv[1:]:
        for name, make in TABLES.items():
            print(f"{name}\n\n{make()}\n")


if __name__ == "__main__":
    main()
