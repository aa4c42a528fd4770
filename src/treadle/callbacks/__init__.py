"""Callbacks: what may be tied onto the training loop, one concept a file."""

from treadle.callbacks.accumulation import GradientAccumulation
from treadle.callbacks.activation_stats import ActivationStats
from treadle.callbacks.bn_freeze import BnFreeze
from treadle.callbacks.channels_last import ChannelsLast
from treadle.callbacks.checkpoint import CheckpointCallback, Every
from treadle.callbacks.compile import CompileCallback
from treadle.callbacks.csv_logger import CSVLogger
from treadle.callbacks.cutmix import CutMix
from treadle.callbacks.early_stopping import EarlyStoppingCallback
from treadle.callbacks.ema import EMACallback
from treadle.callbacks.forensic import NonFinite, NonFiniteError, NonFiniteWarning
from treadle.callbacks.gather import GatherPredsCallback
from treadle.callbacks.gradient_clip import GradientClip
from treadle.callbacks.gradient_log import GradientLog
from treadle.callbacks.hooks import Hook, HookCallback, Hooks, hook_output, hook_outputs
from treadle.callbacks.logger import LoggerCallback
from treadle.callbacks.mixed_precision import MixedPrecision
from treadle.callbacks.mixup import MixUp
from treadle.callbacks.mlflow import MLflowCallback
from treadle.callbacks.profiler import ProfilerCallback
from treadle.callbacks.progress import ProgressCallback
from treadle.callbacks.recorder import Recorder
from treadle.callbacks.reduce_lr import ReduceLROnPlateau
from treadle.callbacks.rnn import ModelResetter, RNNCallback, RNNRegularizer, rnn_cbs
from treadle.callbacks.roll_back import RollBack
from treadle.callbacks.save_model import SaveModelCallback
from treadle.callbacks.scheduler import ParamScheduler
from treadle.callbacks.short_epoch import ShortEpochCallback
from treadle.callbacks.skip_non_finite import SkipNonFinite
from treadle.callbacks.tensorboard import TensorBoardCallback
from treadle.callbacks.terminate_on_nan import TerminateOnNaNCallback
from treadle.callbacks.tracker import TrackerCallback
from treadle.callbacks.train_eval import TrainEvalCallback
from treadle.callbacks.wandb import WandbCallback

__all__ = [
    "ActivationStats",
    "BnFreeze",
    "CSVLogger",
    "ChannelsLast",
    "CheckpointCallback",
    "CompileCallback",
    "CutMix",
    "EMACallback",
    "EarlyStoppingCallback",
    "Every",
    "GatherPredsCallback",
    "GradientAccumulation",
    "GradientClip",
    "GradientLog",
    "Hook",
    "HookCallback",
    "Hooks",
    "LoggerCallback",
    "MLflowCallback",
    "MixUp",
    "MixedPrecision",
    "ModelResetter",
    "NonFinite",
    "NonFiniteError",
    "NonFiniteWarning",
    "ParamScheduler",
    "ProfilerCallback",
    "ProgressCallback",
    "RNNCallback",
    "RNNRegularizer",
    "Recorder",
    "ReduceLROnPlateau",
    "RollBack",
    "SaveModelCallback",
    "ShortEpochCallback",
    "SkipNonFinite",
    "TensorBoardCallback",
    "TerminateOnNaNCallback",
    "TrackerCallback",
    "TrainEvalCallback",
    "WandbCallback",
    "hook_output",
    "hook_outputs",
    "rnn_cbs",
]
