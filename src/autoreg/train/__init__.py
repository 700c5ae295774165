"""Train: unlabelled rasters to a checkpoint."""

from autoreg.train.config import TrainConfig, load_config
from autoreg.train.loop import Status, resume_training, train_network
from autoreg.train.presets import BASELINES, PRESETS

__all__ = ["BASELINES", "PRESETS", "Status", "TrainConfig", "load_config", "resume_training", "train_network"]
