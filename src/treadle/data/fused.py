"""What is done to a batch of pictures on the CPU, in one compiled pass.

A batch usually goes through a sampling, a change of light and a normalisation. As tensor operations
these write and read some ten intermediate batches; in `augment.c` each picture goes from its uint8
pixels to its place in the float32 batch at once. Where there is no C compiler the tensor operations
do the same, slower: the results differ by rounding alone (less than 2/255).
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.buffers import Buffers
from treadle.data.decode import Pixels
from treadle.data.sampling import Sampling, halvings_of
from treadle.native import Kernel, NoCompiler, build

__all__ = ["Pass", "compiled"]

_PICTURE = np.dtype(
    [
        ("pixels", np.uint64),
        ("row", np.int64),
        ("place", np.float64, 9),
        ("slope", np.float32),
        ("offset", np.float32),
        ("halvings", np.int32),
        ("light", np.int32),
    ],
    align=True,
)
_SIDES = "n channels height width out_height out_width pad corners threads".split()
_BATCH = np.dtype(
    [
        ("pictures", np.uint64),
        ("out", np.uint64),
        *((name, np.int32) for name in _SIDES),
        ("scale", np.float32, 4),
        ("shift", np.float32, 4),
    ],
    align=True,
)
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
# Here the last bit is no part of the result. Multiply-adds save a sixth of the time; registers of
# 512 bits, of which compilers make use only when told to, another sixth.
_FLAGS = ("-ffp-contract=fast", *(["-mprefer-vector-width=512"] if _IS_X86 else []))
_PADS = {"reflection": 0, "border": 1, "zeros": 2}


@functools.cache
def compiled() -> Kernel | None:
    """The pass in machine code, or None where there is no compiler."""
    source = Path(__file__).with_name("augment.c").read_text(encoding="utf-8")
    try:
        return build(source, *_FLAGS)
    except NoCompiler:
        return None


@dataclass(frozen=True, slots=True)
class Pass:
    """What is done to the pictures of a batch, in this order.

    - `matrices` (B, 3, 3) or (1, 3, 3), `size`, `how`: the sampling, as `sampling.resample` takes
      them.
    - `light`: slopes and offsets (B,) of the log-odds, or None.
    - `mean` and `std` by channel, of values in [0, 1].
    """

    matrices: NDArray[np.float64]
    size: tuple[int, int]
    how: Sampling
    light: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(
        self, pictures: Sequence[Pixels], kernel: Kernel, threads: int, buffers: Buffers
    ) -> torch.Tensor:
        """The batch of `pictures`, all of one shape: float32 (B, C, *size), from `buffers`."""
        shape, n = pictures[0].shape, len(pictures)
        channels = shape[2] if len(shape) == 3 else 1
        out = buffers.take(n, channels, *self.size)
        table = np.zeros(n, _PICTURE)
        table["pixels"] = [picture.__array_interface__["data"][0] for picture in pictures]
        table["row"] = [picture.strides[0] for picture in pictures]
        table["place"], table["halvings"] = self._places((shape[0], shape[1]), n)
        if self.light is not None:
            table["light"], table["slope"] = 1, self.light[0]
            table["offset"] = self.light[1] / np.log(2)  # the kernel's logarithms are of base 2
        batch = np.zeros(1, _BATCH)
        sides = (n, channels, *shape[:2], *self.size, _PADS[self.how.pad_mode])
        for name, value in zip(_SIDES, (*sides, self.how.align_corners, threads), strict=True):
            batch[name] = value
        batch["pictures"], batch["out"] = table.ctypes.data, out.data_ptr()
        mean, std = np.array(self.mean, np.float64), np.array(self.std, np.float64)
        batch["scale"][0, :channels], batch["shift"][0, :channels] = 1 / std, -mean / std
        kernel.long(batch.ctypes.data)
        return out

    def _places(
        self, frame: tuple[int, int], n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Homographies from pixels of the output to pixels of the halved picture, (B, 9)."""
        halvings = halvings_of(self.matrices, frame, self.size, self.how)
        corners = self.how.align_corners
        out = _to_normalised(self.size, corners)
        if not halvings.any():
            places = _to_pixels(frame, corners) @ self.matrices @ out
            return np.broadcast_to(places, (n, 3, 3)).reshape(n, 9), halvings
        inward = []
        for count in halvings.tolist():
            sides = tuple(max(round(side / 2**count), 1) for side in frame)
            matrix = _to_pixels((sides[0], sides[1]), corners and not count)
            if corners and count:  # averaging keeps the frame's edges: from here on 1 is the edge
                matrix = matrix @ np.diag([1 - 1 / frame[1], 1 - 1 / frame[0], 1.0])
            inward.append(matrix)
        places = np.stack(inward) @ self.matrices @ out
        return np.broadcast_to(places, (n, 3, 3)).reshape(n, 9), halvings


def _to_pixels(frame: tuple[int, int], corners: bool) -> NDArray[np.float64]:
    """The matrix from normalised coordinates to (column, row)."""
    (height, width), edge = frame, 1 if corners else 0
    x, y = (width - edge) / 2, (height - edge) / 2
    return np.array([[x, 0, (width - 1) / 2], [0, y, (height - 1) / 2], [0, 0, 1.0]])


def _to_normalised(size: tuple[int, int], corners: bool) -> NDArray[np.float64]:
    """The matrix from (column, row) to normalised coordinates; a side of one pixel is at 0."""
    height, width = (side - 1 if corners else side for side in size)
    x = 2 / width if size[1] > 1 else 0.0
    y = 2 / height if size[0] > 1 else 0.0
    return np.array([[x, 0, -x * (size[1] - 1) / 2], [0, y, -y * (size[0] - 1) / 2], [0, 0, 1.0]])
