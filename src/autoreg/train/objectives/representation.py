"""Autoregressive representation learning, ARL (paper, section 3.2, eqs. 7 and 14)."""

import numpy as np
import torch
from torch import Tensor

from autoreg.network.network import Network, valid_cells
from autoreg.train.config import TrainConfig
from autoreg.train.infonce import Critic, info_nce
from autoreg.train.objectives.objective import Gain, Objective, Step
from autoreg.train.objectives.views import Views


class Representation(Objective):
    """InfoNCE between the features of two views, at feature resolution; the clusters are found by K-means afterwards."""

    def __init__(self, config: TrainConfig, network: Network, bands: tuple[str, ...]) -> None:
        super().__init__()
        self._views = Views(config, bands)
        self._samples = config.samples
        self._displacement = config.displacement_px // network.config.stride
        self.critic_y, self.critic_z = (Critic(network.config.feature_width) for _ in range(2))

    def forward(self, network: Network, step: Step) -> Gain:
        """The gain of one step: a lower bound of the mutual information, at most log of the number of pairs."""
        features_y, features_z = self._views(network, step)
        weights = valid_cells(step.valid, network.config.stride).flatten(1).float().cpu().numpy()
        anchors, negatives = (_draw(weights, self._samples, step.rng).to(features_y.device) for _ in range(2))
        bound = info_nce(
            self.critic_y(features_y),
            self.critic_z(features_z),
            anchors,
            negatives,
            displacement=self._displacement,
        )
        return Gain(bound, bound)


def _draw(weights: np.ndarray, samples: int, rng: np.random.Generator) -> Tensor:
    """Cells of each image, int64 (N, samples or all): different ones, of those with data as far as there are enough."""
    samples = min(samples, weights.shape[1])
    # The largest of random keys: a draw without replacement; cells without data come last.
    keys = rng.random(weights.shape) + weights
    return torch.from_numpy(np.argpartition(-keys, samples - 1, axis=1)[:, :samples].copy())
