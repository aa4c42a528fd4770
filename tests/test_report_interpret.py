"""What a classifier takes for what agrees with scikit-learn and with counting by hand."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix

from treadle.errors import UsageError
from treadle.report import ClassificationInterpretation
from treadle.report.interpret import thumbnail


def interpretation(n=60, c=4, seed=0, items=None):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(n, c, generator=generator).softmax(dim=1)
    targets = torch.randint(0, c, (n,), generator=generator)
    losses = -probs[torch.arange(n), targets].log()
    vocab = [f"class {i}" for i in range(c)]
    items = [f"{i}.jpg" for i in range(n)] if items is None else items
    return ClassificationInterpretation(probs, targets, losses, vocab, items)


@given(n=st.integers(1, 60), c=st.integers(2, 6), seed=st.integers(0, 99))
def test_the_confusion_matrix_is_scikit_learns(n, c, seed):
    interp = interpretation(n, c, seed)
    expected = confusion_matrix(interp.targets, interp.decoded, labels=range(c))
    np.testing.assert_array_equal(interp.confusion_matrix(), expected)


def test_most_confused_is_sorted_and_leaves_out_what_is_right():
    interp = interpretation()
    cm = interp.confusion_matrix()
    pairs = interp.most_confused()
    assert sum(n for *_, n in pairs) == cm.sum() - np.trace(cm)
    assert [n for *_, n in pairs] == sorted((n for *_, n in pairs), reverse=True)
    index = {name: i for i, name in enumerate(interp.vocab)}
    assert all(cm[index[a], index[p]] == n and a != p for a, p, n in pairs)
    few = interp.most_confused(min_val=4)
    assert few == [pair for pair in pairs if pair[2] >= 4] != pairs


def test_top_losses_are_the_largest_with_their_samples():
    interp = interpretation()
    losses, indices = interp.top_losses(5)
    assert losses.tolist() == sorted(interp.losses.tolist(), reverse=True)[:5]
    assert torch.equal(interp.losses[indices], losses)
    assert len(interp.top_losses()[0]) == len(interp.top_losses(999)[0]) == 60
    assert interp.top_losses(1, largest=False)[0].item() == interp.losses.min().item()


def test_confused_examples_are_the_worst_of_the_most_confused_pairs(tmp_path):
    files = []
    for i in range(60):
        files.append(tmp_path / f"{i}.png")
        Image.new("RGB", (300, 150), (i, 0, 0)).save(files[-1])
    interp = interpretation(items=files)
    examples = interp.confused_examples(pairs=2, k=3, size=64)
    for pair in interp.most_confused()[:2]:
        mine = [e for e in examples if (e.actual, e.predicted) == pair[:2]]
        members = [
            i
            for i in range(60)
            if interp.vocab[interp.targets[i]] == pair[0]
            and interp.vocab[interp.decoded[i]] == pair[1]
        ]
        members.sort(key=lambda i: -interp.losses[i].item())
        assert [e.file_name for e in mine] == [f"{i}.png" for i in members[:3]]
        assert [e.loss for e in mine] == [interp.losses[i].item() for i in members[:3]]
        assert [e.probability for e in mine] == [interp.probs[i].max().item() for i in members[:3]]
    assert len(examples) <= 6
    with Image.open(io.BytesIO(examples[0].image)) as image:
        assert image.size == (64, 32)


def test_thumbnails_of_everything_that_is_an_image(tmp_path):
    rgb = np.full((10, 20, 3), 200, np.uint8)
    for item in (rgb, rgb[..., 0], torch.from_numpy(rgb), Image.fromarray(rgb)):
        png = thumbnail(item, 8)
        with Image.open(io.BytesIO(png)) as image:
            assert image.format == "PNG" and image.size == (8, 4)
            assert image.convert("RGB").getpixel((0, 0)) == (200, 200, 200)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    for item in (tmp_path / "broken.jpg", tmp_path / "none.jpg", 3, rgb.astype(float), rgb[0, 0]):
        assert thumbnail(item) is None


def test_a_sample_without_a_file_has_its_number_for_a_name():
    images = [np.zeros((8, 8), np.uint8)] * 60
    example = interpretation(items=images).confused_examples(1, 1)[0]
    assert example.file_name.startswith("sample ") and example.image is not None


def test_the_classification_report_is_scikit_learns(capsys):
    interp = interpretation(n=6)  # so few that a class is never predicted
    interp.print_classification_report()
    expected = classification_report(
        interp.targets,
        interp.decoded,
        labels=range(4),
        target_names=list(interp.vocab),
        zero_division=0,
    )
    assert capsys.readouterr().out == f"{expected}\n"


def test_the_matrix_is_plotted():
    interp = interpretation()
    texts = interp.plot_confusion_matrix().axes[0].texts
    assert [int(t.get_text()) for t in texts] == interp.confusion_matrix().flatten().tolist()


def test_from_learner_predicts_the_validation_set_unless_told_otherwise():
    other = interpretation(n=7)
    asked = []
    valid = SimpleNamespace(dataset=SimpleNamespace(items=list(range(60))))
    test_dl = SimpleNamespace(dataset=SimpleNamespace(items=list(range(7))))

    class Learn:
        dls = SimpleNamespace(valid=valid, vocab=[0, 1, 2, 3])

        def get_preds(self, *, dl, with_loss):
            asked.append(dl)
            source = interpretation() if dl is valid else other
            return source.probs, source.targets, source.losses

    interp = ClassificationInterpretation.from_learner(Learn())
    assert interp.vocab == ["0", "1", "2", "3"] and len(interp.items) == 60
    assert torch.equal(
        ClassificationInterpretation.from_learner(Learn(), dl=test_dl).probs, other.probs
    )
    assert asked == [valid, test_dl]


def test_predictions_that_fit_no_items_are_refused():
    with pytest.raises(UsageError, match="for 3 items of 4 classes"):
        interpretation(items=["a", "b", "c"])
