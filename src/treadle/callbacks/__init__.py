"""Callbacks: what may be tied onto the training loop, one concept a file."""

from treadle.callbacks.csv_logger import CSVLogger
from treadle.callbacks.early_stopping import EarlyStoppingCallback
from treadle.callbacks.gather import GatherPredsCallback
from treadle.callbacks.gradient_clip import GradientClip
from treadle.callbacks.mixed_precision import MixedPrecision
from treadle.callbacks.progress import ProgressCallback
from treadle.callbacks.recorder import Recorder
from treadle.callbacks.reduce_lr import ReduceLROnPlateau
from treadle.callbacks.rnn import ModelResetter, RNNCallback, RNNRegularizer, rnn_cbs
from treadle.callbacks.save_model import SaveModelCallback
from treadle.callbacks.scheduler import ParamScheduler
from treadle.callbacks.terminate_on_nan import TerminateOnNaNCallback
from treadle.callbacks.tracker import TrackerCallback
from treadle.callbacks.train_eval import TrainEvalCallback

__all__ = [
    "CSVLogger",
    "EarlyStoppingCallback",
    "GatherPredsCallback",
    "GradientClip",
    "MixedPrecision",
    "ModelResetter",
    "ParamScheduler",
    "ProgressCallback",
    "RNNCallback",
    "RNNRegularizer",
    "Recorder",
    "ReduceLROnPlateau",
    "SaveModelCallback",
    "TerminateOnNaNCallback",
    "TrackerCallback",
    "TrainEvalCallback",
    "rnn_cbs",
]
