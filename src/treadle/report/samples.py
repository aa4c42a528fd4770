"""The parts of the page with pictures: the worst samples, and some as the model got them."""

from __future__ import annotations

from collections.abc import Sequence

from treadle.report.page import data_url
from treadle.report.text import esc
from treadle.run.record import ConfusedExample, SeenSamples

_UNNAMED = "sample"


def worst(examples: Sequence[ConfusedExample]) -> str:
    """The samples with the highest losses, highest first."""
    if not examples:
        return ""
    note = "Under an image: its loss, what it is, and what the model took it for."
    shots = "".join(map(_worst, examples))
    return f'<p class="note">{note}</p><div class="shots">{shots}</div>'


def seen(epochs: Sequence[SeenSamples]) -> str:
    """Samples of some epochs, after augmentation and after all that callbacks did to them."""
    told = "".join(map(_epoch, (samples for samples in epochs if samples.images)))
    note = "The first training samples of an epoch, augmented, as they entered the model."
    return f'<p class="note">{note}</p>{told}' if told else ""


def _worst(example: ConfusedExample) -> str:
    share = f"{100 * example.probability:.0f}\u202f%"
    right = example.actual == example.predicted
    said = f"{esc(example.predicted)}, {'right, ' if right else ''}{share}"
    if right:
        alt = f"{example.file_name}: {example.actual}, rightly, at {share}"
    else:
        alt = f"{example.file_name}: {example.actual}, taken for {example.predicted} at {share}"
    return (
        f"<figure>{_picture(example.image, alt)}<figcaption>loss <b>{example.loss:.2f}</b>"
        f'<span class="line">{"" if right else f"<b>{esc(example.actual)}</b>, not "}{said}</span>'
        f'<span class="file" title="{esc(example.file_name)}">{esc(example.file_name)}</span>'
        "</figcaption></figure>"
    )


def _epoch(samples: SeenSamples) -> str:
    shots = "".join(
        f"<figure>{_picture(image, f'{label or _UNNAMED}, epoch {samples.epoch}')}"
        f"{f'<figcaption>{esc(label)}</figcaption>' if label else ''}</figure>"
        for label, image in zip(samples.labels, samples.images, strict=True)
    )
    return (
        f'<div class="pair"><h3><b>Epoch {samples.epoch}</b></h3>'
        f'<div class="shots small">{shots}</div></div>'
    )


def _picture(image: bytes | None, alt: str) -> str:
    if image is None:
        return '<div class="blank">no picture</div>'
    return f'<img src="{data_url(image)}" alt="{esc(alt)}" decoding="async">'
