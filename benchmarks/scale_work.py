"""The sums behind scale.py: what a step, a checkpoint and a failure cost on many GPUs.

Nothing is measured here. Every assumption is a name in capitals or a field of `Model`; where it
comes from stands beside it. Units: bytes, seconds, operations; GB is 10^9 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

COUNTS = (8, 64, 1024)

PER_NODE = 8

PEAK = 989e12
"""An H100 SXM, bfloat16 without sparsity, operations a second: NVIDIA's data sheet."""

MEMORY = 80e9

NVLINK = 450e9
"""From one GPU to the others of its node, one direction: NVIDIA's data sheet of the H100."""

REACHED = 0.8
"""The share of a link's speed that a large message gets."""

FIRST, BUCKET = 1 << 20, 25 << 20
"""DDP sends gradients in messages of so many bytes, the first one smaller (torch's defaults)."""


@dataclass(frozen=True)
class Model:
    """A model, and what a GPU does with it in a step."""

    name: str
    params: int
    tensors: int
    blocks: int
    """That FSDP gathers one at a time, with the rest of the model as one."""
    largest: int
    """Parameters of the largest of them."""
    operations: float
    """Of the forward and the backward pass, a sample."""
    samples: int
    """On a GPU, a step."""
    unit: str
    utilisation: float
    """The share of PEAK that is reached without any communication."""

    @property
    def compute(self) -> float:
        """Seconds a step."""
        return self.operations * self.samples / (self.utilisation * PEAK)


def transformer(
    name: str, params: int, tensors: int, layers: int, width: int, length: int, rows: int
) -> Model:
    """A decoder on `rows` sequences of `length` tokens: 6 operations a parameter and token, and
    attention (arXiv 2204.02311, appendix B). Its blocks are its layers."""
    operations = 6 * params + 12 * layers * width * length
    block = params // layers  # with its share of the embedding: somewhat too much
    return Model(name, params, tensors, layers + 1, block, operations, rows * length, "tokens", 0.4)


# Utilisation: the resnet50 of MLPerf Training 3.0 saw some 7,000 images a second on each of 8 H100;
# the transformers reach 0.5 to 0.58 on A100 with FSDP2 (torchtitan's docs/performance.md), less on
# the faster H100.
MODELS = (
    Model("resnet50", 25_557_032, 161, 11, 6_039_552, 3 * 2 * 4.09e9, 256, "images", 0.17),
    transformer("GPT-2 small", 124_439_808, 148, 12, 768, 1024, 32),
    transformer("7B", 6_738_415_616, 291, 32, 4096, 4096, 2),  # the shapes of Llama 2
    transformer("70B", 68_976_648_192, 723, 80, 8192, 4096, 1),
)

Mode = tuple[str, float]
"""A name, and the bytes a parameter that go over the wire in a step, for infinitely many GPUs."""

DDP: Mode = ("DDP", 2 * 4.0)  # a reduce-scatter and a gather of gradients
FSDP: Mode = ("FSDP", 3 * 4.0)  # two gathers of parameters, a reduce-scatter of gradients
FSDP_BF16: Mode = ("FSDP, bfloat16", 2 * 2.0 + 4.0)

MODES = (DDP, FSDP, FSDP_BF16)

STATES = 16
"""Bytes a parameter: it, its gradient and Adam's two averages, float32 each."""

SAVED = 12
"""Bytes a parameter in a checkpoint: the same without the gradient."""


# What goes over the wire, and how long that takes


def sent(model: Model, mode: Mode, n: int) -> float:
    """Bytes that each of `n` GPUs sends, and receives, in a step, by rings."""
    return mode[1] * model.params * (n - 1) / n


def ring_latency(n: int) -> float:
    """Seconds before a ring of `n` GPUs has handed around its first bytes: the constants are those
    that NCCL's own cost model has for its protocol for large messages (src/graph/tuning.cc)."""
    nodes = math.ceil(n / PER_NODE)
    return (8.4 + (n - nodes) * 3.4 + (nodes - 1) * 9.6) * 1e-6


def tree_latency(n: int, hop: float = 1.2, far: float = 8.5) -> float:
    """The same for an all-reduce by trees: within a node one after the other, up and down."""
    nodes = math.ceil(n / PER_NODE)
    within = min(n, PER_NODE) - 1
    return (4.4 + 2 * (within * hop + math.log2(nodes) * far)) * 1e-6


def messages(model: Model, mode: Mode) -> int:
    """How many collectives a step takes."""
    if mode is DDP:
        return 1 + math.ceil(max(4 * model.params - FIRST, 0) / BUCKET)
    return 3 * model.blocks


def sending(model: Model, mode: Mode, n: int, node_speed: float) -> float:
    """Seconds of communication a step. A ring enters and leaves each node once, so that the wires
    of a node, `node_speed` bytes a second, carry together what each GPU sends to the next."""
    speed = REACHED * (NVLINK if n <= PER_NODE else min(NVLINK, node_speed))
    latency = tree_latency(n) if mode is DDP else ring_latency(n)
    return sent(model, mode, n) / speed + messages(model, mode) * latency


def step(model: Model, mode: Mode, n: int, node_speed: float) -> float:
    """Seconds a step where all that can overlap does: DDP sends during the backward pass, two
    thirds of the computation; FSDP a third of its bytes during the forward pass."""
    wire = sending(model, mode, n, node_speed)
    forward = model.compute / 3
    if mode is DDP:
        return forward + max(2 * forward, wire)
    gathers = 1 / 3 if mode is FSDP else 1 / 4
    return max(forward, gathers * wire) + max(2 * forward, (1 - gathers) * wire)


INFINIBAND = ("8 × 400 Gb/s", 8 * 50e9)
ONE_CARD = ("400 Gb/s", 50e9)
ETHERNET = ("100 Gb/s", 12.5e9)

PLACES = (
    (8, ("NVLink", math.inf)),
    *((n, link) for n, link in product(COUNTS[1:], (INFINIBAND, ONE_CARD, ETHERNET))),
)


# What a GPU holds


def held(model: Model, mode: Mode, n: int) -> float:
    """Bytes of parameters, gradients and Adam's averages on a GPU, without activations."""
    if mode is DDP:
        return STATES * model.params
    gathered = 2 * (4 if mode is FSDP else 2) * model.largest  # one in use, the next on its way
    return STATES * model.params / n + gathered


def fits(model: Model, mode: Mode, n: int) -> bool:
    """Whether that leaves a quarter of the memory to activations."""
    return held(model, mode, n) < 0.75 * MEMORY


# Data

IMAGE = 110e3
"""Bytes of a JPEG of ImageNet, on average."""

FIRST_PASS, LATER_PASS = 3600 / 2, 16_660 / 2
"""Images a second and core, from JPEG files of 160 pixels and from the cache: benchmarks/data.py
on 2 cores, without workers."""

DECODED = 160 * 160 * 3
"""Bytes that a cached image takes."""


# Checkpoints

HOST_LINK = 25e9
"""Bytes a second from a GPU to its host's memory: half of what PCIe 5 x16 could carry."""

DIGEST = 1.5e9
"""Bytes of SHA-256 a second and core, where the processor has instructions for it."""

DISK = 5e9
"""Bytes a second that the local disks of a node write."""

STORE = 50e9
"""Bytes a second of a file system that all nodes write to. Meta's for Llama 3 had 2,000e9."""

PIECE, PLANNED = 24, 200
"""Bytes a piece of a tensor takes in `layout.json`, and in the plan that rank 0 is sent."""

PLANNING = 50e-6
"""Seconds that rank 0 takes a piece, in Python, to make one plan of all."""


def stopped(model: Model, n: int) -> float:
    """Seconds that training stands still: the copy to the host's memory."""
    return SAVED * model.params / n / HOST_LINK


def planning(model: Model, n: int) -> float:
    """Seconds until rank 0 has made one plan of what each rank writes."""
    return PLANNING * pieces(model, n)


def pieces(model: Model, n: int) -> int:
    """Of all tensors: each parameter and its two averages lies in a piece on each rank."""
    return 3 * model.tensors * n


def writing(model: Model, n: int) -> float:
    """Seconds until the checkpoint is on the common file system, training going on."""
    total = SAVED * model.params
    node = total / math.ceil(n / PER_NODE)
    return planning(model, n) + max(total / n / DIGEST, node / DISK, total / STORE)


# Failures


@dataclass(frozen=True)
class Record:
    """A published record of interruptions."""

    name: str
    gpus: int
    hours: float
    """Between two of them."""

    def hours_with(self, n: int) -> float:
        """The mean time between interruptions of `n` GPUs, if each fails by itself."""
        return self.hours * self.gpus / n


RECORDS = (
    Record("Llama 3 405B (arXiv 2407.21783)", 16_384, 54 * 24 / 419),
    Record("Meta's research clusters (arXiv 2410.21680)", 1024, 7.9),
    Record("OPT-175B (arXiv 2205.01068)", 992, 60 * 24 / (35 + 70)),
    Record("BLOOM (its authors' report)", 384, 7 * 24 / 1.5),
    Record("504 B200 (arXiv 2605.09370)", 504, 55 * 24 / 10),
)

WORST = RECORDS[1]

RESTART = 5 * 60
"""Seconds from the failure to the next step: noticed, started anew, read, the ranks connected."""


def interval(cost: float, between: float) -> float:
    """Seconds between checkpoints that cost `cost` each, where the machine is interrupted every
    `between`: Young (doi 10.1145/361147.361115), Daly (doi 10.1016/j.future.2004.11.016)."""
    return math.sqrt(2 * cost * between)


def lost(cost: float, every: float, between: float, written: float) -> float:
    """The share of time lost: to checkpoints, to what is done again (half an interval, and what
    came before the newest was on the disk), and to restarts."""
    return cost / every + (every / 2 + written + RESTART) / between


# What processes tell one another

GLOO_HOP = 30e-6
"""Seconds from host to host over TCP, and a ring of gloo has 2 (n - 1) of them."""
