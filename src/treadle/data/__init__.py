"""Data: from a folder of files to augmented batches on the device."""

from __future__ import annotations

from treadle.data.adapt import adapt
from treadle.data.augment import aug_transforms
from treadle.data.blocks import (
    BBoxBlock,
    BBoxLblBlock,
    Block,
    CategoryBlock,
    ImageBlock,
    MaskBlock,
    MultiCategoryBlock,
    PixelBlock,
    PointBlock,
    RegressionBlock,
)
from treadle.data.datablock import DataBlock
from treadle.data.dataloaders import DataLoaders
from treadle.data.datasets import Dataset, Datasets
from treadle.data.decode import open_image
from treadle.data.digits import digits_path
from treadle.data.download import untar_data
from treadle.data.draws import Draws
from treadle.data.geometry import (
    Dihedral,
    Flip,
    Geometric,
    RandomResizedCropGPU,
    ResizeBatch,
    Rotate,
    Warp,
    Zoom,
)
from treadle.data.getters import ColReader, RegexLabeller, get_image_files, parent_label
from treadle.data.home import data_home
from treadle.data.known import URLs
from treadle.data.lighting import Brightness, Contrast, Lighting
from treadle.data.loaders import DataLoader, default_device
from treadle.data.normalize import Normalize, imagenet_stats
from treadle.data.order import Balanced, InOrder, Order, Shuffled, Weighted
from treadle.data.resize import PadMode, Resize, ResizeMethod
from treadle.data.show import show_batch, shown_images, shown_labels
from treadle.data.splitters import (
    ColSplitter,
    FileSplitter,
    FuncSplitter,
    GrandparentSplitter,
    IndexSplitter,
    MaskSplitter,
    RandomSplitter,
    TrainTestSplitter,
)
from treadle.data.table import Table, read_csv
from treadle.data.transforms import BatchTransform, ItemTransform

__all__ = [
    "BBoxBlock",
    "BBoxLblBlock",
    "Balanced",
    "BatchTransform",
    "Block",
    "Brightness",
    "CategoryBlock",
    "ColReader",
    "ColSplitter",
    "Contrast",
    "DataBlock",
    "DataLoader",
    "DataLoaders",
    "Dataset",
    "Datasets",
    "Dihedral",
    "Draws",
    "FileSplitter",
    "Flip",
    "FuncSplitter",
    "Geometric",
    "GrandparentSplitter",
    "ImageBlock",
    "InOrder",
    "IndexSplitter",
    "ItemTransform",
    "Lighting",
    "MaskBlock",
    "MaskSplitter",
    "MultiCategoryBlock",
    "Normalize",
    "Order",
    "PadMode",
    "PixelBlock",
    "PointBlock",
    "RandomResizedCropGPU",
    "RandomSplitter",
    "RegexLabeller",
    "RegressionBlock",
    "Resize",
    "ResizeBatch",
    "ResizeMethod",
    "Rotate",
    "Shuffled",
    "Table",
    "TrainTestSplitter",
    "URLs",
    "Warp",
    "Weighted",
    "Zoom",
    "adapt",
    "aug_transforms",
    "data_home",
    "default_device",
    "digits_path",
    "get_image_files",
    "imagenet_stats",
    "open_image",
    "parent_label",
    "read_csv",
    "show_batch",
    "shown_images",
    "shown_labels",
    "untar_data",
]
