"""What a classifier takes for what agrees with scikit-learn and with counting by hand."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix
from torch import nn
from torch.utils.data import TensorDataset

from helpers import tiny_learner
from treadle.all import (
    SGD,
    Callback,
    DataLoaders,
    ImageDataLoaders,
    Learner,
    Normalize,
    accuracy,
    aug_transforms,
    imagenet_stats,
)
from treadle.errors import UsageError
from treadle.interpret import ClassificationInterpretation
from treadle.interpret.pictures import thumbnail


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


def test_predictions_that_fit_no_items_are_refused():
    with pytest.raises(UsageError, match="for 3 items of 4 classes"):
        interpretation(items=["a", "b", "c"])


def test_targets_that_are_no_classes_are_refused():
    probs, items = torch.full((2, 2), 0.5), ["a", "b"]
    with pytest.raises(UsageError, match="targets are 0 to 2; give indices of the 2 classes"):
        ClassificationInterpretation(probs, torch.tensor([0, 2]), torch.zeros(2), ["x", "y"], items)


# From a learner


def images(n=40, c=4, size=8, seed=0):
    """Images in which class i is a bright row i, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    pixels = rng.integers(0, 120, (n, size, size, 3)).astype(np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[label] = 255
    return pixels, labels


def folder(tmp_path, names=("ant", "bee", "cat", "dog"), **kwargs):
    pixels, labels = images(c=len(names), **kwargs)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        part = tmp_path / ("valid" if i % 3 == 0 else "train") / names[label]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part / f"{i:02d}.png")
    return tmp_path


def net(c=4, size=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, c))


def folder_learner(path, **kwargs):
    dls = ImageDataLoaders.from_folder(
        path, valid="valid", bs=6, device="cpu", seed=3, num_workers=0, **kwargs
    )
    return Learner(dls, net(dls.c), metrics=accuracy, opt_func=SGD)


def test_from_learner_is_what_the_model_says_of_the_validation_samples(tmp_path):
    learn = folder_learner(folder(tmp_path))
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.vocab == ["ant", "bee", "cat", "dog"]
    files = learn.dls.valid.dataset.items
    assert [str(item) for item in interp.items] == [str(file) for file in files]
    x = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    with torch.no_grad():
        out = learn.model.eval()(x.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(interp.probs, out.softmax(1))
    names = [interp.vocab[i] for i in interp.targets]
    assert names == [file.parent.name for file in files]
    torch.testing.assert_close(
        interp.losses, F.cross_entropy(out, interp.targets, reduction="none")
    )
    right = interp.confusion_matrix().trace() / len(files)
    assert learn.validate()[1] == pytest.approx(right)


def test_the_training_part_is_seen_whole_in_order_and_without_augmentation(tmp_path):
    learn = folder_learner(folder(tmp_path), batch_tfms=aug_transforms(size=8))
    epoch = learn.dls.train.epoch
    interp = ClassificationInterpretation.from_learner(learn, ds_idx=0)
    files = learn.dls.train.dataset.items
    assert len(files) % learn.dls.train.bs  # the last batch is one that training leaves out
    assert [str(item) for item in interp.items] == [str(file) for file in files]
    assert learn.dls.train.epoch == epoch  # training goes on as if nobody had looked
    again = ClassificationInterpretation.from_learner(learn, ds_idx=0)
    assert torch.equal(interp.probs, again.probs)


def test_other_items_with_labels(tmp_path):
    learn = folder_learner(folder(tmp_path))
    files = learn.dls.train.dataset.items[:5]
    dl = learn.dls.test_dl(files, with_labels=True)
    interp = ClassificationInterpretation.from_learner(learn, dl=dl)
    assert [interp.name(i) for i in range(5)] == [file.name for file in files]


def test_a_loader_that_shuffles_and_augments_shows_what_the_model_saw(tmp_path):
    """What is plotted are the pictures of that epoch, although others were drawn since."""
    learn = folder_learner(folder(tmp_path), batch_tfms=aug_transforms(size=8))
    seen = []
    keep = Callback(after_pred=lambda cb: seen.append(cb.x.clone()))
    learn.add_cb(keep)
    interp = ClassificationInterpretation.from_learner(learn, dl=learn.dls.train)
    learn.remove_cb(keep)
    whole = torch.cat(seen)
    for _ in learn.dls.train:
        pass
    figure = interp.plot_top_losses(5)
    for axes, i in zip(figure.axes, interp.top_losses(5)[1].tolist(), strict=True):
        shown = np.asarray(axes.images[0].get_array())
        wanted = whole[i].permute(1, 2, 0).clamp(0, 1).mul(255).round().numpy()
        np.testing.assert_array_equal(shown, wanted)


def test_samples_that_could_not_be_read_shift_nothing(tmp_path):
    path = folder(tmp_path)
    learn = folder_learner(path, on_error="skip")
    files = list(learn.dls.valid.dataset.items)
    files[2].write_bytes(b"no image")
    learn = folder_learner(path, on_error="skip")
    interp = ClassificationInterpretation.from_learner(learn)
    assert [str(item) for item in interp.items] == [str(f) for f in files if f != files[2]]
    names = [interp.vocab[i] for i in interp.targets]
    assert names == [item.parent.name for item in interp.items]
    assert len(interp.plot_top_losses(3).axes) == 3


def test_top_losses_are_plotted_with_what_is_true_and_what_was_said(tmp_path):
    learn = folder_learner(folder(tmp_path), batch_tfms=Normalize.from_stats(*imagenet_stats))
    interp = ClassificationInterpretation.from_learner(learn)
    figure = interp.plot_top_losses(4)
    losses, places = interp.top_losses(4)
    for axes, loss, i in zip(figure.axes, losses, places, strict=True):
        actual, said = interp.vocab[interp.targets[i]], interp.vocab[interp.decoded[i]]
        share = f"{interp.probs[i].max().item():.0%}"
        assert axes.get_title() == f"is {actual}\nmodel: {said}, {share}\nloss {loss:.3g}"
        with Image.open(interp.items[i]) as image:  # normalisation is undone
            np.testing.assert_array_equal(axes.images[0].get_array(), np.asarray(image))
    assert len(interp.plot_top_losses(999).axes) == len(interp.losses)
    with pytest.raises(UsageError, match="k=0; give 1 or more"):
        interp.plot_top_losses(0)


def test_top_losses_of_items_that_are_images_or_none():
    pixels = images(6)[0]
    interp = interpretation(n=6, items=list(pixels))
    figure = interp.plot_top_losses(1)
    worst = int(interp.losses.argmax())
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), pixels[worst])
    with pytest.raises(UsageError, match="is no image that can be read: '"):
        interpretation(n=6).plot_top_losses(1)


# With loaders of PyTorch


def torch_loader(shuffle=False, classes=None):
    pixels, labels = images()
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    data = TensorDataset(x, torch.from_numpy(labels))
    if classes is not None:
        data.classes = classes
    return torch.utils.data.DataLoader(data, 16, shuffle=shuffle)


def torch_learner(loss_func=None, **kwargs):
    dls = DataLoaders(torch_loader(**kwargs), torch_loader(**kwargs), device="cpu")
    return Learner(dls, net(), loss_func or nn.CrossEntropyLoss(), opt_func=SGD)


def test_a_loader_of_pytorch():
    learn = torch_learner()
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.vocab == ["0", "1", "2", "3"]
    x, y = learn.dls.valid.source.dataset.tensors
    assert torch.equal(interp.targets, y)
    with torch.no_grad():
        out = learn.model(x)
    torch.testing.assert_close(interp.probs, out.softmax(1))  # the loss itself does not say so
    figure = interp.plot_top_losses(6)
    low, high = x[interp.top_losses(6)[1]].aminmax()
    for axes, i in zip(figure.axes, interp.top_losses(6)[1].tolist(), strict=True):
        wanted = ((x[i] - low) / (high - low)).permute(1, 2, 0)
        np.testing.assert_allclose(axes.images[0].get_array(), wanted, atol=1e-6)
    assert interp.name(3) == "sample 3" and interp.example(3).image is None


def test_names_of_the_classes_where_nobody_knows_them():
    learn = torch_learner(classes=["ant", "bee", "cat", "dog"])
    assert ClassificationInterpretation.from_learner(learn).vocab == ["ant", "bee", "cat", "dog"]
    interp = ClassificationInterpretation.from_learner(learn, vocab=[10, 11, 12, 13])
    assert interp.vocab == ["10", "11", "12", "13"]
    with pytest.raises(UsageError, match="gives 4 numbers a prediction, and there are 2 classes"):
        ClassificationInterpretation.from_learner(learn, vocab=["a", "b"])


def test_a_loader_in_another_order_each_time_is_told():
    interp = ClassificationInterpretation.from_learner(torch_learner(shuffle=True))
    with pytest.raises(UsageError, match="gives other samples than before"):
        interp.plot_top_losses(9)


@pytest.mark.parametrize(
    ("wrap", "loss"),
    [
        (nn.Identity, F.cross_entropy),
        (partial(nn.LogSoftmax, dim=1), nn.NLLLoss()),
        (
            partial(nn.Softmax, dim=1),
            lambda p, y, reduction: F.nll_loss(p.log(), y, reduction=reduction),
        ),
    ],
)
def test_probabilities_of_scores_of_their_logarithms_and_of_themselves(wrap, loss):
    plain = ClassificationInterpretation.from_learner(torch_learner())
    learn = torch_learner(loss)
    learn.model = nn.Sequential(net(), wrap())
    interp = ClassificationInterpretation.from_learner(learn)
    torch.testing.assert_close(interp.probs, plain.probs)
    torch.testing.assert_close(interp.losses, plain.losses)


def test_a_loss_without_reduction_is_told():
    def my_loss(pred, y):
        return F.cross_entropy(pred, y)

    learn = torch_learner(my_loss)
    with pytest.raises(UsageError, match="the loss my_loss cannot give a number for each sample"):
        ClassificationInterpretation.from_learner(learn)
    assert learn.loss_func is my_loss


def test_a_loss_that_is_reduced_all_the_same_is_told():
    learn = torch_learner(lambda pred, y, reduction: F.cross_entropy(pred, y))
    with pytest.raises(UsageError, match="16 samples has the shape \\(\\); with"):
        ClassificationInterpretation.from_learner(learn)


def test_what_is_no_single_label_is_sent_elsewhere():
    learn = torch_learner(nn.MSELoss())
    x, y = learn.dls.valid.source.dataset.tensors
    dl = [(x, F.one_hot(y).float())]
    with pytest.raises(UsageError, match="RegressionInterpretation for numbers"):
        ClassificationInterpretation.from_learner(learn, dl=dl)
    with pytest.raises(UsageError, match="nothing to interpret"):
        ClassificationInterpretation.from_learner(learn, dl=[])


def test_inputs_that_are_no_pictures_still_have_a_matrix():
    learn = tiny_learner()
    interp = ClassificationInterpretation.from_learner(learn)
    x, y = (torch.cat(parts) for parts in zip(*learn.dls.valid, strict=True))
    with torch.no_grad():
        said = learn.model(x).argmax(1)
    np.testing.assert_array_equal(interp.confusion_matrix(), confusion_matrix(y, said))
    with pytest.raises(UsageError, match="are no pictures; expected"):
        interp.plot_top_losses(2)


# Names that nobody would choose


HOSTILE = [
    "<script>alert(1)</script>",
    "$x^{2$ \\frac",
    "tab\tand\nnew\x1b[31mline",
    "a very long name of a class " * 20,
]


def test_names_that_are_hostile_or_very_long(tmp_path, capsys):
    interp = interpretation(n=30)
    interp = ClassificationInterpretation(
        interp.probs, interp.targets, interp.losses, HOSTILE, list(images(30)[0])
    )
    for figure in (interp.plot_confusion_matrix(), interp.plot_top_losses(9)):
        figure.savefig(tmp_path / "figure.png")  # draws it: a dollar sign is no mathematics
        width, height = figure.get_size_inches() * figure.dpi
        for axes in figure.axes:
            box = axes.get_window_extent()
            assert box.width > 0.05 * width and box.height > 0.05 * height  # names left some room
    interp.print_classification_report()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 100
    assert len([line for line in lines if line.strip()]) == 8
    assert interp.most_confused()[0][0] in HOSTILE  # whole: they are data


def test_two_classes_whose_names_read_the_same_stay_two():
    interp = interpretation(n=60, c=3)
    same = ClassificationInterpretation(
        interp.probs, interp.targets, interp.losses, ["a", "a", "b"], interp.items
    )
    found = same.confused_examples(pairs=99, k=99)
    assert len(found) == int((interp.decoded != interp.targets).sum())
