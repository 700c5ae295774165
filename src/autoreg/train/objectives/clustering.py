"""Autoregressive clustering, AC (paper, section 3.2, eq. 12); without orderings and with transforms it is IIC."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from autoreg.network.network import Network, upsample, valid_cells
from autoreg.train.config import TrainConfig
from autoreg.train.data import Batch
from autoreg.train.distributed import sum_over_ranks
from autoreg.train.losses import (
    MutualInformation,
    joint_distribution,
    joint_per_displacement,
    mutual_information,
    widen_logits,
)
from autoreg.train.merging import fit_merged_decoder
from autoreg.train.objectives.objective import Gain, Objective, Step
from autoreg.train.objectives.views import Views


class Clustering(Objective):
    """Mutual information between the clusters of two views.

    With ``config.merge`` it is that of the auxiliary decoder's many clusters, which are merged into those of the decoder.
    Otherwise it is that of the decoder's clusters, and where there is an auxiliary decoder, the sum over both.
    """

    parallel = True

    def __init__(self, config: TrainConfig, network: Network, bands: tuple[str, ...]) -> None:  # noqa: ARG002
        super().__init__()
        self._config = config
        self._views = Views(config, bands)

    def forward(self, network: Network, step: Step) -> Gain:
        """The gain of one step; its information is that of the trained decoder."""
        features_y, features_z = self._views(network, step)
        cells = self._config.resolution == "cells"
        valid = valid_cells(step.valid, network.config.stride) if cells else step.valid
        mask = None if valid.all() else valid[:, None].to(features_y)
        objective, trained = features_y.new_zeros((), dtype=torch.float64), None
        for decoder in (self.trained_decoder(network), None if self._config.merge else network.auxiliary):
            if decoder is not None:
                gained = self._information(decoder, features_y, features_z, network.config.stride, mask)
                trained = trained or gained
                objective = objective + gained.objective(self._config.entropy_weight)
        assert trained is not None
        return Gain(objective, trained.value, torch.stack([trained.entropy_y, trained.entropy_z]))

    def trained_decoder(self, network: Network) -> nn.Conv2d | None:
        """The auxiliary decoder if its clusters are merged, else the decoder itself."""
        return network.auxiliary if self._config.merge else network.decoder

    def fit_decoder(self, network: Network, batches: Iterable[Batch], seed: int) -> None:  # noqa: ARG002
        """Merge the trained clusters (see ``train/merging.py``)."""
        fit_merged_decoder(network, batches)

    def _information(
        self, decoder: nn.Module, features_y: Tensor, features_z: Tensor, stride: int, mask: Tensor | None
    ) -> MutualInformation:
        displacement = self._config.displacement_px
        logits_y, logits_z = (widen_logits(decoder(features)) for features in (features_y, features_z))
        if self._config.resolution == "cells":
            displacement //= stride
        else:
            logits_y, logits_z = upsample(logits_y, stride), upsample(logits_z, stride)
        probs_y, probs_z = logits_y.softmax(dim=1), logits_z.softmax(dim=1)
        if mask is not None:
            probs_y, probs_z = probs_y * mask, probs_z * mask
        joints = joint_per_displacement if self._config.displacements == "separate" else joint_distribution
        joint = sum_over_ranks(joints(probs_y, probs_z, displacement))
        # One pair of orderings: symmetrised, as the paper does. Crossed pairs are balanced already (see train/views.py).
        return mutual_information(joint if self._config.crossed else joint + joint.mT)
