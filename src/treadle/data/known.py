"""Public data sets: where they are, how large, and what is known to check them by."""

from __future__ import annotations

from dataclasses import dataclass

from treadle.errors import UsageError, nearest

__all__ = ["KNOWN", "KnownData", "URLs", "known_data"]


class URLs:
    """Public data sets that fast.ai serves (https://docs.fast.ai/data.external.html).

    Imagenette: ten easily told classes of ImageNet; Imagewoof: ten breeds of dogs. `_160` and
    `_320` name the length of the shortest side in pixels; without it the files are full size.
    """

    _S3 = "https://s3.amazonaws.com/fast-ai-"
    IMAGENETTE = _S3 + "imageclas/imagenette2.tgz"
    IMAGENETTE_160 = _S3 + "imageclas/imagenette2-160.tgz"
    IMAGENETTE_320 = _S3 + "imageclas/imagenette2-320.tgz"
    IMAGEWOOF = _S3 + "imageclas/imagewoof2.tgz"
    IMAGEWOOF_160 = _S3 + "imageclas/imagewoof2-160.tgz"
    IMAGEWOOF_320 = _S3 + "imageclas/imagewoof2-320.tgz"
    CIFAR = _S3 + "sample/cifar10.tgz"
    CIFAR_100 = _S3 + "imageclas/cifar100.tgz"
    MNIST = _S3 + "imageclas/mnist_png.tgz"
    MNIST_SAMPLE = _S3 + "sample/mnist_sample.tgz"
    MNIST_TINY = _S3 + "sample/mnist_tiny.tgz"
    FLOWERS = _S3 + "imageclas/oxford-102-flowers.tgz"
    PETS = _S3 + "imageclas/oxford-iiit-pet.tgz"
    CAMVID = _S3 + "imagelocal/camvid.tgz"
    CAMVID_TINY = _S3 + "sample/camvid_tiny.tgz"
    BIWI_SAMPLE = _S3 + "sample/biwi_sample.tgz"
    COCO_TINY = _S3 + "coco/coco_tiny.tgz"
    PLANET_SAMPLE = _S3 + "sample/planet_sample.tgz"
    PLANET_TINY = _S3 + "sample/planet_tiny.tgz"


@dataclass(frozen=True)
class KnownData:
    """One public data set: `size` is that of its archive in bytes; `md5`, where it is published,
    tells a damaged archive from a whole one (not a forged one)."""

    name: str
    url: str
    size: int
    about: str
    md5: str | None = None


# Sizes: what fastai 2.8 checks its downloads by. MD5 of Imagenette: what torchvision does.
_DATA = (
    KnownData("biwi-sample", URLs.BIWI_SAMPLE, 593_774, "heads, a point each"),
    KnownData("camvid", URLs.CAMVID, 598_913_237, "streets, a mask of 32 classes each"),
    KnownData("camvid-tiny", URLs.CAMVID_TINY, 2_314_212, "a few of camvid, small"),
    KnownData("cifar", URLs.CIFAR, 168_168_549, "32 x 32 px, 10 classes"),
    KnownData("cifar-100", URLs.CIFAR_100, 169_168_619, "32 x 32 px, 100 classes"),
    KnownData("coco-tiny", URLs.COCO_TINY, 801_038, "photographs with boxes"),
    KnownData("flowers", URLs.FLOWERS, 345_236_087, "102 kinds of flowers"),
    KnownData(
        "imagenette",
        URLs.IMAGENETTE,
        1_557_161_267,
        "10 easy classes of ImageNet",
        md5="fe2fc210e6bb7c5664d602c3cd71e612",
    ),
    KnownData(
        "imagenette-160",
        URLs.IMAGENETTE_160,
        99_003_388,
        "imagenette, 160 px",
        md5="e793b78cc4c9e9a4ccc0c1155377a412",
    ),
    KnownData(
        "imagenette-320",
        URLs.IMAGENETTE_320,
        341_663_724,
        "imagenette, 320 px",
        md5="3df6f0d01a2c9592104656642f5e78a3",
    ),
    KnownData("imagewoof", URLs.IMAGEWOOF, 1_343_715_595, "10 breeds of dogs of ImageNet"),
    KnownData("imagewoof-160", URLs.IMAGEWOOF_160, 92_612_825, "imagewoof, 160 px"),
    KnownData("imagewoof-320", URLs.IMAGEWOOF_320, 328_387_740, "imagewoof, 320 px"),
    KnownData("mnist", URLs.MNIST, 15_683_414, "handwritten digits, 28 x 28 px"),
    KnownData("mnist-sample", URLs.MNIST_SAMPLE, 3_214_948, "the threes and sevens of mnist"),
    KnownData("mnist-tiny", URLs.MNIST_TINY, 342_207, "a few of mnist-sample"),
    KnownData("pets", URLs.PETS, 811_706_944, "37 breeds of cats and dogs"),
    KnownData("planet-sample", URLs.PLANET_SAMPLE, 15_523_994, "from above, several labels each"),
    KnownData("planet-tiny", URLs.PLANET_TINY, 997_569, "a part of planet-sample"),
)

KNOWN = {data.name: data for data in _DATA}


def known_data(name: str) -> KnownData:
    """The data set of that name, in any spelling of it: `imagenette-160`, `IMAGENETTE_160`.

    Raises `UsageError` with the nearest name.

    >>> known_data("IMAGENETTE_160").size
    99003388
    """
    try:
        return KNOWN[name.lower().replace("_", "-")]
    except KeyError:
        raise UsageError(
            f"There is no data set {name!r}; {nearest(name, KNOWN)} An address works too."
        ) from None
