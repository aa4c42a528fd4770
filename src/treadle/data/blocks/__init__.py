"""Blocks: what an element of a sample is, and how it comes from what its getter returned."""

from __future__ import annotations

from treadle.data.blocks.base import Block, Labelled, is_missing
from treadle.data.blocks.categories import CategoryBlock, MultiCategoryBlock
from treadle.data.blocks.masks import MaskBlock
from treadle.data.blocks.pixels import ImageBlock, PixelBlock
from treadle.data.blocks.regression import RegressionBlock
from treadle.data.blocks.shapes import BBoxBlock, BBoxLblBlock, PointBlock

__all__ = [
    "BBoxBlock",
    "BBoxLblBlock",
    "Block",
    "CategoryBlock",
    "ImageBlock",
    "Labelled",
    "MaskBlock",
    "MultiCategoryBlock",
    "PixelBlock",
    "PointBlock",
    "RegressionBlock",
    "is_missing",
]
