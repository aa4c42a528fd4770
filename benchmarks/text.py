"""A language model on WikiText-2, Treadle beside fastai: tokens a second, and perplexity.

Both sides train an AWD-LSTM (sizes in `text_work.py`) on the same tokens in the same batches, from
the same weights, with the same Adam and one-cycle schedule. Dropout is drawn by each in its own
way, so perplexities are compared as means over seeds. The third question leaves out one callback
after another.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import fmean, stdev
from time import perf_counter
from typing import Any

import torch

import text_work as work
from common import Report, Turn, arguments, interleave, paired_ratio, versions
from peers import Side, homes, sides
from treadle.callbacks import ModelResetter, RNNCallback, RNNRegularizer
from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.optim import Adam
from treadle.text import AWD_LSTM, LMLoader, TokenCrossEntropy, get_language_model

QUESTIONS = ("speed", "perplexity", "callbacks")
BATCHES = {"medium": 8, "small": 40}
"""How many make a turn."""
TOKENS, EPOCHS = 70_001, 6
LEFT_OUT: dict[str, dict[str, Any]] = {
    "none": {},
    "ModelResetter": {"reset": False},
    "alpha": {"alpha": 0.0},
    "beta": {"beta": 0.0},
    "alpha and beta": {"alpha": 0.0, "beta": 0.0},
}
BARS = {"tokens/s": 1.3, "perplexity": 1.02}


def options_given() -> argparse.Namespace:
    """The command line, with what a quick run changes."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    parser.add_argument("--seeds", type=int, help="trainings of each kind")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 9)
    options.seeds = options.seeds or (1 if options.quick else 3)
    options.epochs = 1 if options.quick else EPOCHS
    return options


def learner(
    size: str,
    seed: int,
    most: int,
    alpha: float = work.ALPHA,
    beta: float = work.BETA,
    reset: bool = True,
) -> Learner:
    """What `language_model_learner` makes, with these weights and callbacks."""
    bs, seq_len = work.BATCHES[size]
    train, valid = (
        LMLoader(work.tokens(part, n), bs, seq_len, device="cpu")
        for part, n in (("train", most), ("valid", None))
    )
    model = get_language_model(AWD_LSTM, len(work.vocabulary()), work.config(size))
    encoder: Any = model[0]
    named = {"embedding": encoder.encoder.weight, "out bias": model[1].decoder.bias}
    for layer, rnn in enumerate(encoder.rnns):
        names = ("input", "hidden", "bias input", "bias hidden")
        named |= {f"{layer} {n}": p for n, p in zip(names, rnn.all_weights[0], strict=True)}
    work.draw_weights(named, seed)
    return Learner(
        DataLoaders(train, valid, device="cpu"),
        model,
        TokenCrossEntropy(),
        partial(Adam, mom=work.MOM, sqr_mom=work.SQR_MOM, eps=work.EPS),
        cbs=[RNNCallback(), RNNRegularizer(alpha, beta), *[ModelResetter()] * reset],
        wd=work.WD,
    )


@contextmanager
def without_validation(learn: Learner) -> Iterator[None]:
    """fastai's side leaves it out, too."""
    loaders = learn.dls.loaders
    learn.dls.loaders = loaders[:1]
    try:
        yield
    finally:
        learn.dls.loaders = loaders


def speed_turn(size: str, batches: int) -> Turn:
    """Tokens a second of training, over `batches` updates."""
    bs, seq_len = work.BATCHES[size]
    learn = learner(size, 0, batches * bs * seq_len + 1)

    def turn() -> dict[str, float]:
        with learn.no_logging(), without_validation(learn):
            began = perf_counter()
            learn.fit(1, work.LR)
            took = perf_counter() - began
        return {"tokens/s": batches * bs * seq_len / took}

    return turn


def trained(seed: int, epochs: int, **left_out: Any) -> dict[str, float]:
    """One training of the small network, and the perplexities that it came to."""
    torch.manual_seed(seed)
    learn = learner("small", seed, TOKENS, **left_out)
    with learn.no_logging():
        with without_validation(learn):
            learn.fit_one_cycle(epochs, work.LR, moms=(0.8, 0.7, 0.8))
        told = math.exp(learn.validate()[0])

    def logits_of(x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = learn.model(x)[0]
        return scores

    found = work.perplexity(learn.model, logits_of, work.tokens("valid"))
    return {"perplexity": found, "validate": told, "updates": len(learn.recorder.losses)}


def speed(report: Report, fastai: Side | None) -> None:
    """How many tokens a second does each side train on?"""
    torch.set_num_threads(work.THREADS)
    rows = []
    for size, batches in BATCHES.items():
        turns = {"Treadle": speed_turn(size, batches)}
        if fastai is not None:
            turns["fastai"] = fastai.prepare("text_fastai.speed", size=size, batches=batches)
        found = interleave(turns, report.options.rounds)
        medians = {
            name: report.add(name, f"{size}: tokens/s", values["tokens/s"], digits=0)
            for name, values in found.items()
        }
        ratio = ""
        if fastai is not None:
            times = paired_ratio(*(found[name]["tokens/s"] for name in ("Treadle", "fastai")))
            ratio = f"{times:.2f}"
            report.note(f"{size}: {ratio} x fastai's (bar: {BARS['tokens/s']}).")
        rows.append([f"{size} {work.SIZES[size]}", *(f"{m:,.0f}" for m in medians.values()), ratio])
    report.show(["tokens a second", *turns, "ratio"][: len(rows[0])], rows)


def perplexity(report: Report, fastai: Side | None) -> None:
    """Which perplexity do both sides come to in the same number of updates?"""
    options = report.options
    found: dict[str, list[Mapping[str, float]]] = {"Treadle": [], "fastai": []}
    for seed in range(options.seeds):
        found["Treadle"].append(trained(seed, options.epochs))
        if fastai is not None:
            given = {"size": "small", "seed": seed, "most": TOKENS, "epochs": options.epochs}
            found["fastai"].append(fastai.prepare("text_fastai.training", **given)())
        print({name: [round(run["perplexity"], 1) for run in runs] for name, runs in found.items()})
    assert len({run["updates"] for runs in found.values() for run in runs}) == 1
    means = {name: told(report, name, runs) for name, runs in found.items() if runs}
    if fastai is not None:
        report.note(
            f"{means['Treadle'] / means['fastai']:.3f} x fastai's perplexity after "
            f"{found['Treadle'][0]['updates']} updates (bar: {BARS['perplexity']})."
        )


def callbacks(report: Report, fastai: Side | None) -> None:
    """What does each callback do to the perplexity that `validate` tells?"""
    options = report.options
    for name, left_out in LEFT_OUT.items():
        runs = [trained(seed, options.epochs, **left_out) for seed in range(options.seeds)]
        told(report, f"without {name}", runs)


def told(report: Report, name: str, runs: list[Mapping[str, float]]) -> float:
    """Note what trainings came to; returns their mean perplexity."""
    measures = [measure for measure in ("perplexity", "validate") if measure in runs[0]]
    for measure in measures:
        report.add(name, measure, [run[measure] for run in runs])
    means = {measure: fmean(run[measure] for run in runs) for measure in measures}
    values = [run[measures[-1]] for run in runs]
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    report.note(f"{name}: {', '.join(f'{m} {v:.1f}' for m, v in means.items())}{spread}")
    return means["perplexity"]


def main() -> None:
    """Ask the questions, each with a file of its own."""
    options = options_given()
    if not work.ARCHIVE.is_file():
        print(f"Skipped: there is no {work.ARCHIVE}.")
        return
    where = {k: v for k, v in homes(options.peer).items() if k == "fastai"}
    with sides(where) as others:
        for question in options.questions:
            report = Report(f"text-{question}", options, sizes=work.SIZES, batches=work.BATCHES)
            report.versions["treadle"] = versions("torch", "treadle", "numpy")
            report.meet(others)
            {"speed": speed, "perplexity": perplexity, "callbacks": callbacks}[question](
                report, others.get("fastai")
            )
            report.write()


if __name__ == "__main__":
    main()
