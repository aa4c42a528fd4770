"""Pixels counted agree with scikit-learn; the worst pictures are shown with their masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, jaccard_score, precision_score, recall_score
from torch import nn

from treadle.all import (
    SGD,
    DataBlock,
    DataLoaders,
    ImageBlock,
    JaccardCoeffMulti,
    Learner,
    MaskBlock,
    SegmentationInterpretation,
    UsageError,
)
from treadle.losses import BCEWithLogitsLossFlat

CODES = ["sky", "tree", "road"]


def picture(i, size=8):
    """An image of noise, and a mask of which a part is road, a part is to be ignored."""
    rng = np.random.default_rng(i)
    mask = rng.integers(0, 2, (size, size)).astype(np.uint8)
    mask[: 1 + i % 3] = 2
    mask[-1, :2] = 255
    return rng.integers(0, 256, (size, size, 3)).astype(np.uint8), mask


def learner(n=14, codes=CODES):
    pictures = [picture(i) for i in range(n)]
    dls = DataBlock(
        (ImageBlock, MaskBlock(codes, ignore=255)),
        get_x=lambda i: pictures[i][0],
        get_y=lambda i: pictures[i][1],
        splitter=lambda items: (range(7), range(7, n)),
    ).dataloaders(list(range(n)), bs=3, device="cpu", num_workers=0, seed=1)
    torch.manual_seed(0)
    learn = Learner(
        dls,
        nn.Conv2d(3, 3, 3, padding=1),
        opt_func=SGD,
        metrics=JaccardCoeffMulti(ignore_index=255),
    )
    return learn, pictures


def by_hand(learn, pictures):
    """Scores, masks and answers of the validation pictures."""
    x = torch.from_numpy(np.stack([image for image, _ in pictures[7:]])).permute(0, 3, 1, 2) / 255
    y = torch.from_numpy(np.stack([mask for _, mask in pictures[7:]])).long()
    with torch.no_grad():
        scores = learn.model.eval()(x)
    return scores, y, scores.argmax(1)


def test_counts_are_scikit_learns_and_ignored_pixels_are_left_out():
    learn, pictures = learner()
    interp = SegmentationInterpretation.from_learner(learn)
    _, y, said = by_hand(learn, pictures)
    kept = y != 255
    wanted = confusion_matrix(y[kept], said[kept], labels=range(3))
    np.testing.assert_array_equal(interp.confusion_matrix(), wanted)
    iou = jaccard_score(y[kept], said[kept], labels=range(3), average=None)
    assert interp.iou() == pytest.approx(dict(zip(CODES, iou, strict=True)))
    assert np.mean(list(interp.iou().values())) == pytest.approx(learn.validate()[1])
    assert interp.most_confused()[0][2] == max(
        n for i, row in enumerate(wanted) for j, n in enumerate(row) if i != j
    )


def test_losses_are_means_over_the_pixels_of_a_picture():
    learn, pictures = learner()
    interp = SegmentationInterpretation.from_learner(learn)
    scores, y, _ = by_hand(learn, pictures)
    losses = F.cross_entropy(scores, y, ignore_index=255, reduction="none").mean((1, 2))
    torch.testing.assert_close(interp.losses, losses)
    torch.testing.assert_close(learn.get_preds(with_loss=True)[-1], losses)
    assert interp.top_losses(2)[1].tolist() == losses.topk(2).indices.tolist()


def test_the_report_is_scikit_learns(capsys):
    learn, pictures = learner()
    SegmentationInterpretation.from_learner(learn).print_report()
    head, *rows, mean, right = capsys.readouterr().out.splitlines()
    assert head.split() == ["IoU", "precision", "recall", "pixels"]
    _, y, said = by_hand(learn, pictures)
    y, said = y[y != 255], said[y != 255]
    for i, row in enumerate(rows):
        name, iou, precision, recall, share = row.split()
        assert name == CODES[i]
        one = {"labels": [i], "average": "macro", "zero_division": 0}
        assert float(iou) == pytest.approx(jaccard_score(y, said, **one), abs=1e-4)
        assert float(precision) == pytest.approx(precision_score(y, said, **one), abs=1e-4)
        assert float(recall) == pytest.approx(recall_score(y, said, **one), abs=1e-4)
        assert float(share) == pytest.approx(float((y == i).float().mean()), abs=1e-4)
    assert float(mean.split()[1]) == pytest.approx(
        jaccard_score(y, said, labels=range(3), average="macro"), abs=1e-4
    )
    assert float(right.split()[1]) == pytest.approx(float((y == said).float().mean()), abs=1e-4)


def test_a_class_that_neither_occurs_nor_is_predicted(capsys):
    counts = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    interp = SegmentationInterpretation(counts, torch.zeros(1), CODES, [None], None)
    assert np.isnan(interp.iou()["road"])
    interp.print_report()
    rows = capsys.readouterr().out.splitlines()
    assert rows[3].split() == ["road", "–", "–", "–", "0.0000"]
    assert float(rows[4].split()[1]) == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_the_worst_pictures_stand_beside_their_masks_and_the_models():
    learn, pictures = learner()
    interp = SegmentationInterpretation.from_learner(learn)
    _, y, said = by_hand(learn, pictures)
    figure = interp.plot_top_losses(3)
    assert len(figure.axes) == 9
    for row, i in enumerate(interp.top_losses(3)[1].tolist()):
        plain, true, model = figure.axes[3 * row : 3 * row + 3]
        np.testing.assert_array_equal(plain.images[0].get_array(), pictures[7 + i][0])
        shown = true.images[1].get_array()
        np.testing.assert_array_equal(shown.mask, y[i] == 255)
        assert (shown == y[i].numpy()).all()
        np.testing.assert_array_equal(model.images[1].get_array().data, said[i])
        assert plain.get_title() == f"loss {interp.losses[i]:.3g}"
    assert len(interp.plot_top_losses(3, ncols=2).axes) == 9
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == CODES


def test_after_more_training_the_pictures_no_longer_fit():
    learn, _ = learner()
    interp = SegmentationInterpretation.from_learner(learn)
    learn.fit(2, 0.5)
    with pytest.raises(UsageError, match="the model was trained since"):
        interp.plot_top_losses(3)


def test_loaders_of_pytorch_and_names_by_hand(tmp_path):
    learn, pictures = learner()
    _, y, _ = by_hand(learn, pictures)
    x = torch.from_numpy(np.stack([image for image, _ in pictures[7:]])).permute(0, 3, 1, 2) / 255
    data = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(data, 4)
    dls = DataLoaders(loader, loader, device="cpu")
    plain = Learner(dls, learn.model, nn.CrossEntropyLoss(ignore_index=255))
    names = ["<b>sky</b>", "$tree", "a road " * 30]
    interp = SegmentationInterpretation.from_learner(plain, vocab=names)
    same = SegmentationInterpretation.from_learner(learn)
    np.testing.assert_array_equal(interp.confusion_matrix(), same.confusion_matrix())
    interp.plot_top_losses(2).savefig(tmp_path / "worst.png")
    figure = interp.plot_confusion_matrix()
    share = same.counts[0, 0] / same.counts[0].sum()
    assert float(figure.axes[0].texts[0].get_text()) == pytest.approx(float(share), abs=0.005)
    numbered = SegmentationInterpretation.from_learner(plain)
    assert numbered.vocab == ["0", "1", "2"]


def test_pixels_that_are_of_no_class_are_told():
    learn, pictures = learner()
    learn.loss_func = nn.CrossEntropyLoss(ignore_index=255)
    y = torch.from_numpy(np.stack([mask for _, mask in pictures[7:]])).long()
    with pytest.raises(UsageError, match="28 pixels of the targets are none of the 3 classes"):
        learn.loss_func = lambda p, y, reduction: F.cross_entropy(p, y % 3, reduction=reduction)
        SegmentationInterpretation.from_learner(
            learn, dl=[(torch.zeros(14, 3, 8, 8), torch.cat([y, y]))]
        )


def test_one_score_a_pixel_is_two_classes():
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, 4, 4), torch.randint(0, 2, (6, 4, 4))
    model = nn.Conv2d(3, 1, 1)
    said = (model(x)[:, 0] > 0).long()
    dls = DataLoaders([(x, y)], [(x[:4], y[:4]), (x[4:], y[4:])], device="cpu")
    interp = SegmentationInterpretation.from_learner(Learner(dls, model, BCEWithLogitsLossFlat()))
    wanted = confusion_matrix(y.flatten(), said.flatten())
    np.testing.assert_array_equal(interp.confusion_matrix(), wanted)


def test_what_are_no_masks_is_sent_elsewhere():
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    dls = DataLoaders([(x, y)], [(x, torch.stack([y, y], 1))], device="cpu")
    learn = Learner(dls, nn.Linear(3, 3), lambda p, y, reduction: p.sum(1))
    with pytest.raises(UsageError, match="are no masks; expected"):
        SegmentationInterpretation.from_learner(learn)


def test_results_are_shown_in_pairs():
    learn, _ = learner(n=12)
    figure = learn.show_results(max_n=3)
    assert [axes.get_title() for axes in figure.axes] == ["label", "model"] * 3
    columns = {axes.get_subplotspec().colspan.start % 2 for axes in figure.axes[::2]}
    assert columns == {0}  # a label and what the model says of it are never in two rows
