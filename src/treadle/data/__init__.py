"""Data: from a folder of files to augmented batches on the device."""

from __future__ import annotations

from treadle.data.augment import aug_transforms
from treadle.data.blocks import Block, CategoryBlock, ImageBlock
from treadle.data.datablock import DataBlock
from treadle.data.dataloaders import DataLoaders
from treadle.data.datasets import Dataset, Datasets
from treadle.data.decode import open_image
from treadle.data.digits import digits_path
from treadle.data.download import URLs, untar_data
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
from treadle.data.getters import get_image_files, parent_label
from treadle.data.home import data_home
from treadle.data.lighting import Brightness, Contrast, Lighting
from treadle.data.loaders import DataLoader, default_device
from treadle.data.normalize import Normalize, imagenet_stats
from treadle.data.resize import PadMode, Resize, ResizeMethod
from treadle.data.show import show_batch, shown_images, shown_labels
from treadle.data.splitters import GrandparentSplitter, RandomSplitter
from treadle.data.transforms import BatchTransform, ItemTransform

__all__ = [
    "BatchTransform",
    "Block",
    "Brightness",
    "CategoryBlock",
    "Contrast",
    "DataBlock",
    "DataLoader",
    "DataLoaders",
    "Dataset",
    "Datasets",
    "Dihedral",
    "Draws",
    "Flip",
    "Geometric",
    "GrandparentSplitter",
    "ImageBlock",
    "ItemTransform",
    "Lighting",
    "Normalize",
    "PadMode",
    "RandomResizedCropGPU",
    "RandomSplitter",
    "Resize",
    "ResizeBatch",
    "ResizeMethod",
    "Rotate",
    "URLs",
    "Warp",
    "Zoom",
    "aug_transforms",
    "data_home",
    "default_device",
    "digits_path",
    "get_image_files",
    "imagenet_stats",
    "open_image",
    "parent_label",
    "show_batch",
    "shown_images",
    "shown_labels",
    "untar_data",
]
