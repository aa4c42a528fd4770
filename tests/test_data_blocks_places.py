"""Blocks of pixels and of places in them: images, masks, points, boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from treadle.data import (
    BBoxBlock,
    BBoxLblBlock,
    Block,
    DataBlock,
    Flip,
    ImageBlock,
    MaskBlock,
    PointBlock,
    Resize,
)
from treadle.errors import DataError, UsageError


def setup(block: Block, train: list[Any], valid: tuple[Any, ...] = ()) -> Any:
    return block.setup([(v, f"t{i}") for i, v in enumerate(train)], [(v, "v0") for v in valid])


def test_images_of_every_kind(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    for value in (array, Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")):
        pixels, frame = ImageBlock().pixels(value)
        assert np.array_equal(pixels, array) and frame == (6, 9) and pixels.dtype == np.uint8
        grey, _ = ImageBlock("L").pixels(value)
        assert np.array_equal(grey, np.asarray(Image.fromarray(array).convert("L")))
        assert ImageBlock().encode(value).tobytes() == array.tobytes()
    flat = array[..., 0]
    for value in (flat, flat[..., None], Image.fromarray(flat)):
        assert np.array_equal(ImageBlock("L").pixels(value)[0], flat)
        assert np.array_equal(ImageBlock().pixels(value)[0], np.stack([flat] * 3, 2))


def test_an_image_stands_upright_whether_it_is_opened_or_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    array = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    by_path, frame = ImageBlock().pixels(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        by_pil, other = ImageBlock().pixels(image)
    assert frame == other == (9, 6) and np.array_equal(by_path, by_pil)
    assert np.array_equal(by_path, np.rot90(array, -1))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4))],
)
def test_arrays_that_are_no_images(array: Any) -> None:
    with pytest.raises(DataError, match="is no image; expected uint8"):
        ImageBlock().pixels(array)


CODES = ["sky", "tree", "road"]


def test_masks_of_every_kind(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (5, 7), dtype=np.uint8)
    grey = Image.fromarray(mask)
    indexed = Image.new("P", (7, 5))
    indexed.putdata(mask.ravel().tolist())
    indexed.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    indexed.save(tmp_path / "palette.png")
    grey.save(tmp_path / "grey.png")
    Image.fromarray(np.stack([mask] * 3, 2)).save(tmp_path / "colour.png")
    Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "deep.png")
    values = [tmp_path / f"{name}.png" for name in ("palette", "grey", "colour", "deep")]
    for value in (*values, indexed, grey, mask, mask.astype(np.int64), mask[..., None]):
        pixels, frame = MaskBlock(CODES).pixels(value)
        assert np.array_equal(pixels, mask) and pixels.dtype == np.uint8 and frame == (5, 7)
    two = np.array([[True, False]])
    assert MaskBlock(["no", "yes"]).pixels(two)[0].tolist() == [[1, 0]]
    Image.fromarray(two).save(tmp_path / "bits.png")
    assert MaskBlock(["no", "yes"]).pixels(tmp_path / "bits.png")[0].tolist() == [[1, 0]]


def test_masks_with_values_outside_the_codes(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2], [7, 255, 2]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    match = r"mask .*a\.png holds the values 7, 255; expected 0 to 2, the indices of 3 codes"
    with pytest.raises(DataError, match=match):
        MaskBlock(CODES).pixels(tmp_path / "a.png")
    with pytest.raises(DataError, match="The mask holds the values 7; expected"):
        MaskBlock(CODES, ignore=255).pixels(mask)
    assert MaskBlock().pixels(mask)[0].max() == 255
    with pytest.raises(DataError, match=r"in -1\.\.0; expected classes in 0\.\.255"):
        MaskBlock().pixels(np.array([[-1, 0]]))


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(colour[..., 0]).save(tmp_path / "a.jpg")
    (tmp_path / "text.png").write_text("no image at all")
    for name, match in (
        ("colour.png", r"colour\.png is a picture of mode 'RGB' in colour"),
        ("a.jpg", r"a\.jpg is a JPEG file"),
        ("text.png", r"text\.png \(15 bytes\) does not decode"),
        ("none.png", r"mask .*none\.png"),
    ):
        with pytest.raises(DataError, match=match):
            MaskBlock(CODES).pixels(tmp_path / name)
    for array in (colour, np.zeros((4, 4))):
        with pytest.raises(DataError, match="is no mask; expected whole numbers"):
            MaskBlock(CODES).pixels(array)
    with pytest.raises(UsageError, match="each once"):
        MaskBlock(["a", "a"])


def test_the_loss_of_masks_leaves_out_what_is_ignored() -> None:
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    by_hand = -scores.log_softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(MaskBlock(CODES).loss_func(scores, y), by_hand.mean())
    y[0, :2] = 255
    kept = y != 255
    assert torch.allclose(MaskBlock(CODES, ignore=255).loss_func(scores, y), by_hand[kept].mean())


def test_points_and_boxes() -> None:
    points = setup(PointBlock(), [[(1, 2), (3, 4)]])
    assert points.n_out == 4 and points.encode(np.array([[0, 1], [np.nan, 2]])).dtype == np.float32
    assert setup(PointBlock(), [(1, 2)]).n_out == 2
    with pytest.raises(DataError, match="There are 1 points; expected 2"):
        points.encode([(1, 2)])
    for wrong in ([(1, 2, 3)], "x", [[(1, 2)]], [(1, float("inf"))]):
        with pytest.raises(DataError, match=r"points \(x, y\)"):
            PointBlock().encode(wrong)
    with pytest.raises(DataError, match=r"training item t0: .*holds no points"):
        setup(PointBlock(), [[(1, 2, 3)]])

    boxes = setup(BBoxBlock(), [[(0, 0, 2, 3)], [(0, 0, 1, 1), (1, 1, 2, 2)]], ([],))
    filled = boxes.encode([(0, 0, 2, 3)])
    assert (
        filled.shape == (2, 4) and np.isnan(filled[1]).all() and filled[0].tolist() == [0, 0, 2, 3]
    )
    assert boxes.encode([]).shape == (2, 4)
    with pytest.raises(
        DataError, match=r"t0: The box \[5.0, 5.0, 2.0, 3.0\] ends before it begins"
    ):
        setup(BBoxBlock(), [[(5, 5, 2, 3)]])
    with pytest.raises(DataError, match="There are 3 boxes; expected at most 2"):
        boxes.encode([(0, 0, 1, 1)] * 3)
    labels = setup(BBoxLblBlock(), [["cat"], ["cat", "dog"]], (["cow"],))
    assert labels.vocab == ["#na#", "cat", "dog"]
    assert labels.encode(["dog"]).tolist() == [2, 0] and labels.encode(["cow"]).tolist() == [0, 0]
    assert labels.decode(torch.tensor([2, 0])) == ["dog"]


HEIGHT, WIDTH = 20, 40


def item(index: int) -> dict[str, Any]:
    """A picture with a bright square, and where that lies."""
    x, y = 2 + index, 3 + index // 2
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[y : y + 4, x : x + 6] = 255
    box = (x, y, x + 6, y + 4)
    return {"image": image, "mask": image[..., 0] // 255, "points": [(x, y)], "boxes": [box]}


def placed(**kwargs: Any) -> Any:
    plan = DataBlock(
        (ImageBlock, MaskBlock(["none", "square"]), PointBlock, BBoxBlock, BBoxLblBlock),
        n_inp=1,
        get_x=lambda i: i["image"],
        get_y=[
            *(lambda i, key=key: i[key] for key in ("mask", "points", "boxes")),
            lambda i: ["square"],
        ],
        splitter=lambda items: (range(8), range(8, 12)),
        **kwargs,
    )
    return plan, plan.dataloaders([item(i) for i in range(12)], bs=4, device="cpu", seed=3)


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (10, 20), (40, 80)])
def test_places_go_where_the_image_goes(size: tuple[int, int]) -> None:
    _, dls = placed(item_tfms=Resize(size), batch_tfms=Flip(p=0.5))
    x, mask, points, boxes, labels = dls.one_batch()
    assert x.shape == (4, 3, *size) and mask.shape == (4, *size) and mask.dtype == torch.int64
    assert points.shape == (4, 1, 2) and boxes.shape == (4, 1, 4) and labels.tolist() == [[1]] * 4
    for image, m, (point,), (box,) in zip(x, mask, points, boxes, strict=True):
        assert ((image[0] > 0.5).long() == m).float().mean() > 0.97
        ys, xs = m.nonzero(as_tuple=True)
        edges = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        scale = torch.tensor([size[1], size[0]] * 2) / 2
        assert torch.allclose((box + 1) * scale, edges.float(), atol=0.51)
        corner = (point + 1) * scale[:2]
        assert min(abs(corner[0] - edges[0]), abs(corner[0] - edges[2])) < 0.51


def test_places_are_shown() -> None:
    import matplotlib

    matplotlib.use("Agg")
    _, dls = placed()
    figure = dls.show_batch(max_n=3)
    assert len(figure.axes) == 3
    _, mask, points, boxes, _ = dls.one_batch()
    for at, axes in enumerate(figure.axes):
        picture, overlay = axes.images
        assert np.array_equal(overlay.get_array(), mask[at].numpy())
        assert picture.get_array().shape == (HEIGHT, WIDTH, 3)
        (line,) = axes.lines
        scale = np.array([WIDTH, HEIGHT]) / 2
        assert np.allclose(line.get_xydata(), (points[at].numpy() + 1) * scale - 0.5)
        (patch,) = axes.patches
        expected = (boxes[at, 0].numpy() + 1) * np.tile(scale, 2) - 0.5
        assert np.allclose(patch.get_bbox().extents, expected, atol=1e-4)
        assert [text.get_text() for text in axes.texts] == ["square"]
        assert axes.get_title() == ""


def test_summary_of_places(capsys: pytest.CaptureFixture[str]) -> None:
    plan, dls = placed(item_tfms=Resize(10), batch_tfms=Flip())
    plan.summary([item(i) for i in range(12)], bs=2)
    out = capsys.readouterr().out
    for line in (
        "Items: list\n",
        "8 training items, 4 validation items",
        "vocab of 2 (MaskBlock): none, square",
        "One sample, the training item 0: ",
        "get_y[0]",
        "PointBlock: ndarray (1, 2) float32 in 2..3",
        "y[0], MaskBlock: ndarray (10, 10) uint8 in 0..",
        "y[1], PointBlock: Tensor (2, 1, 2) float32 in ",
        "y[0], MaskBlock: Tensor (2, 10, 10) int64 in 0..",
        "y[3], BBoxLblBlock: Tensor (2, 1) int64 in 1..1",
        "Loss: to be given as loss_func=",
    ):
        assert line in out, line
    dls.summary()
    assert "One batch of 4 samples" in capsys.readouterr().out


def test_results_of_masks_and_points_are_shown() -> None:
    import matplotlib

    matplotlib.use("Agg")
    rng = np.random.default_rng(0)
    items = [item(int(i)) for i in rng.integers(0, 12, 8)]
    plan = DataBlock(
        (ImageBlock, MaskBlock(["none", "square"])),
        get_x=lambda i: i["image"],
        get_y=lambda i: i["mask"],
        splitter=lambda items: (range(6), range(6, 8)),
    )
    dls = plan.dataloaders(items, bs=2, device="cpu")
    assert dls.c == 2 and dls.vocab == ["none", "square"]
    batch = dls.valid.one_batch()
    answers = 1 - batch[1]
    figure = dls.show_results(dls.valid, batch, answers)
    assert [axes.get_title() for axes in figure.axes] == ["label", "model"] * 2
    assert np.array_equal(figure.axes[1].images[1].get_array(), answers[0].numpy())
    plan = DataBlock(
        (ImageBlock, PointBlock),
        get_x=lambda i: i["image"],
        get_y=lambda i: i["points"],
        splitter=lambda items: (range(6), range(6, 8)),
    )
    dls = plan.dataloaders(items, bs=2, device="cpu")
    figure = dls.show_results(dls.valid, dls.valid.one_batch(), torch.zeros(2, 2))
    said = figure.axes[0].lines[1].get_xydata()
    assert np.allclose(said, [[WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5]])


def test_inputs_alone_and_side_by_side_are_shown() -> None:
    import matplotlib

    matplotlib.use("Agg")
    items = [item(i) for i in range(10)]
    alone = DataBlock((ImageBlock,), get_x=lambda i: i["image"]).dataloaders(items, bs=4)
    assert [axes.get_title() for axes in alone.show_batch(max_n=2).axes] == ["", ""]
    assert alone.loss_func is None and not hasattr(alone, "c") and not hasattr(alone, "vocab")
    pair = DataBlock(
        (ImageBlock, ImageBlock("L"), PointBlock),
        get_x=[lambda i: i["image"]] * 2,
        get_y=lambda i: i["points"],
    )
    figure = pair.dataloaders(items, bs=4, device="cpu").show_batch(max_n=1)
    assert figure.axes[0].images[0].get_array().shape == (HEIGHT, 2 * WIDTH, 3)
    assert (figure.axes[0].lines[0].get_xdata() < WIDTH).all()
