"""Train: unlabelled rasters to a checkpoint."""

from autoreg.train.config import TrainConfig, load_config
from autoreg.train.loop import resume_training, train_network
from autoreg.train.presets import BASELINES, PAPER, PRESETS
from autoreg.train.status import Status

__all__ = ["BASELINES", "PAPER", "PRESETS", "Status", "TrainConfig", "load_config", "resume_training", "train_network"]
