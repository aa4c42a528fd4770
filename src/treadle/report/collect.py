"""Gather from a learner what a report tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from treadle.data import CategoryBlock, Dataset
from treadle.errors import UsageError
from treadle.interpret import ClassificationInterpretation
from treadle.report.watch import ReportCallback
from treadle.run.folder import environment
from treadle.run.record import ClassBalance, RunRecord

N_WORST = 12


def collect(
    learn: Any,
    name: str,
    config: Mapping[str, object] | None = None,
    started: datetime | None = None,
) -> RunRecord:
    """The record of the last fit of `learn`.

    Of a classifier with what it confuses in the validation set and its worst samples there; with
    the times of the batches and samples as the model got them if a `ReportCallback` watched.

    Args:
        learn: a learner that was fitted.
        name: what to call the run.
        config: what to show as its configuration.
        started: when it began; now, by default.
    """
    recorder = learn.recorder
    watch = next((cb for cb in learn.cbs if isinstance(cb, ReportCallback)), None)
    interpretation = _interpretation(learn)
    return RunRecord(
        name=name,
        started=(started or datetime.now()).isoformat(timespec="seconds"),
        metric_names=recorder.metric_names,
        rows=recorder.rows,
        config=config or {},
        environment=environment(learn.device),
        losses=recorder.losses,
        raw_losses=recorder.raw_losses,
        hps=recorder.hps,
        iters=recorder.iters,
        balance=_balance(learn.dls),
        seen=watch.seen() if watch else (),
        times=watch.times if watch else None,
        skipped=_skipped(learn.dls),
        texts=learn.sample_texts() if hasattr(learn, "sample_texts") else (),
        **(_answers(interpretation) if interpretation else {}),
    )


def _interpretation(learn: Any) -> ClassificationInterpretation | None:
    """None where the answers are no single class a sample, and where they are fewer than the
    items, because some could not be read: then nobody knows whose they are."""
    if getattr(learn.dls, "vocab", None) is None or hasattr(learn, "sample_texts"):
        return None
    dataset = getattr(learn.dls.valid, "dataset", None)
    if isinstance(dataset, Dataset) and _classes(dataset) is None:
        return None
    try:
        return ClassificationInterpretation.from_learner(learn)
    except UsageError:
        return None


def _answers(interpretation: ClassificationInterpretation) -> dict[str, Any]:
    _, worst = interpretation.top_losses(N_WORST)
    return {
        "confusion": interpretation.confusion(),
        "confused": interpretation.confused_examples(),
        "worst": [interpretation.example(i) for i in worst.tolist()],
    }


def _balance(dls: Any) -> ClassBalance | None:
    """How many samples each class has; of other data than single labels, None."""
    parts = [getattr(dl, "dataset", None) for dl in (dls.train, dls.valid)]
    counts = [_counts(part) for part in parts if isinstance(part, Dataset)]
    if len(counts) < 2 or None in counts:
        return None
    vocab = dls.train.dataset.targets[0].vocab
    train, valid = ([count[i] for i in range(len(vocab))] for count in counts if count)
    return ClassBalance([str(label) for label in vocab], train, valid)


def _classes(dataset: Dataset) -> CategoryBlock | None:
    """The block of the labels, if each sample has a single one."""
    targets = dataset.blocks[dataset.n_inp :]
    block = targets[0] if len(targets) == 1 else None
    return block if isinstance(block, CategoryBlock) else None


def _counts(dataset: Dataset) -> Counter[int] | None:
    """How many samples each class has, by its place in the vocab; no image is read for it."""
    block = _classes(dataset)
    if block is None:
        return None
    labels = (dataset.value(i, dataset.n_inp) for i in range(len(dataset)))
    return Counter(map(block.index, labels))


def _skipped(dls: Any) -> list[tuple[str, str]]:
    """The samples that could not be read, each once, with the reason."""
    found = [s for dl in (dls.train, dls.valid) for s in getattr(dl, "skipped", ())]
    return list({skipped.item: (skipped.item, skipped.reason) for skipped in found}.values())
