"""Milliseconds of one Adam step with decoupled decay: Treadle, torch, fastai."""

from __future__ import annotations

from typing import Any

from torch.optim import AdamW, Optimizer

from common import Report, Turn, arguments, interleave, versions
from peers import Fastai, fastai_peer
from treadle.optim import Adam
from workloads import PARAMETER_SETS, parameters, step_turn

LR, MOM, SQR_MOM, EPS, WD = 1e-3, 0.9, 0.99, 1e-5, 0.01
HYPERS: dict[str, Any] = {"lr": LR, "mom": MOM, "sqr_mom": SQR_MOM, "eps": EPS, "wd": WD}
TORCH: dict[str, dict[str, bool]] = {
    "torch AdamW, fused": {"fused": True},
    "torch AdamW, foreach": {"foreach": True},
    "torch AdamW, loop": {"foreach": False},
}
UNIT = "ms"


def contestants(parameter_set: str, fastai: Fastai | None) -> dict[str, Turn]:
    """Each with parameters of its own."""
    turns = {"Treadle Adam": turn_of(Adam(parameters(parameter_set), **HYPERS))}
    for name, how in TORCH.items():
        opt = AdamW(parameters(parameter_set), LR, (MOM, SQR_MOM), EPS, WD, **how)
        turns[name] = turn_of(opt)
    if fastai is not None:
        turns["fastai Adam"] = fastai.prepare("step", parameter_set=parameter_set, **HYPERS)
    return turns


def turn_of(opt: Optimizer) -> Turn:
    """A contestant with this optimizer."""
    return lambda: step_turn(opt)


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__).parse_args()
    options.rounds = options.rounds or (10 if options.quick else 150)
    report = Report("optimizer", options, hypers=HYPERS)
    report.versions["treadle"] = versions("torch", "torchvision", "treadle")
    rows: dict[str, list[str]] = {}
    with fastai_peer(options.fastai_python) as fastai:
        if fastai is not None:
            report.versions["fastai"] = fastai.versions
        for parameter_set in PARAMETER_SETS:
            samples = interleave(contestants(parameter_set, fastai), options.rounds, warm_up=3)
            for name, measured in samples.items():
                middle = report.add(name, f"{parameter_set}, {UNIT}", measured[UNIT])
                rows.setdefault(name, [name]).append(f"{middle:.2f}")
    report.show(["one step, ms", *PARAMETER_SETS], rows.values())
    report.write()


if __name__ == "__main__":
    main()
