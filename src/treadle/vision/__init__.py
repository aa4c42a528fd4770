"""Images: models and learners."""

from treadle.vision.dataloaders import ImageDataLoaders
from treadle.vision.folder import folder_dataloaders
from treadle.vision.learner import cnn_learner, vision_learner
from treadle.vision.models import (
    arch_names,
    create_body,
    create_head,
    create_vision_model,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)

__all__ = [
    "ImageDataLoaders",
    "arch_names",
    "cnn_learner",
    "create_body",
    "create_head",
    "create_vision_model",
    "folder_dataloaders",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vision_learner",
]
