"""Autoregressive clustering, AC (paper, section 3.2, eq. 12); without orderings and with transforms it is IIC."""

import torch
from torch import Tensor, nn

from autoreg.network.network import Network, upsample
from autoreg.train.config import TrainConfig
from autoreg.train.losses import MutualInformation, joint_distribution, joint_per_displacement, mutual_information
from autoreg.train.objectives.objective import Gain, Objective, Step
from autoreg.train.objectives.views import Views


class Clustering(Objective):
    """Mutual information between the clusters of two views; with an auxiliary decoder, the sum over both decoders."""

    def __init__(self, config: TrainConfig, network: Network, bands: tuple[str, ...]) -> None:  # noqa: ARG002
        super().__init__()
        self._config = config
        self._views = Views(config, bands)

    def forward(self, network: Network, step: Step) -> Gain:
        """The gain of one step; its information is that of the decoder that gets deployed."""
        features_y, features_z = self._views(network, step)
        mask = None if step.valid.all() else step.valid[:, None].to(features_y)
        objective, information = features_y.new_zeros((), dtype=torch.float64), None
        for decoder in (network.decoder, network.auxiliary):
            if decoder is not None:
                gained = self._information(decoder, features_y, features_z, network.config.stride, mask)
                information = gained.value if information is None else information
                objective = objective + gained.objective(self._config.entropy_weight)
        assert information is not None
        return Gain(objective, information)

    def _information(
        self, decoder: nn.Module, features_y: Tensor, features_z: Tensor, stride: int, mask: Tensor | None
    ) -> MutualInformation:
        probs_y, probs_z = (upsample(decoder(part), stride).softmax(dim=1) for part in (features_y, features_z))
        if mask is not None:
            probs_y, probs_z = probs_y * mask, probs_z * mask
        joints = joint_per_displacement if self._config.displacements == "separate" else joint_distribution
        joint = joints(probs_y, probs_z, self._config.displacement_px)
        # One pair of orderings: symmetrised, as the paper does. Crossed pairs are balanced already (see train/views.py).
        return mutual_information(joint if self._config.crossed else joint + joint.mT)
