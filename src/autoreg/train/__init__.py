"""Train: unlabelled rasters to a checkpoint."""

from autoreg.train.config import TrainConfig, load_config
from autoreg.train.presets import BASELINES, PAPER, PRESETS
from autoreg.train.start import resume_training, train_network
from autoreg.train.status import Status

__all__ = ["BASELINES", "PAPER", "PRESETS", "Status", "TrainConfig", "load_config", "resume_training", "train_network"]
