"""Autoregressive clustering, AC (paper, section 3.2, eq. 12); without orderings and with transforms it is IIC."""

from collections.abc import Iterable, Sequence

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
from autoreg.train.objectives.objective import Gain, Objective, Step, average_gains
from autoreg.train.objectives.views import Views


class Clustering(Objective):
    """Mutual information between the clusters of two views.

    With ``config.merge`` it is that of the auxiliary decoders' many clusters, which are merged into those of the decoder.
    Otherwise it is that of the decoder's clusters, to which that of auxiliary decoders is added. Of several of these it is
    the mean.
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

        def gain(decoders: Sequence[nn.Module]) -> Gain:
            each = (self._information(decoder, features_y, features_z, network.config.stride, mask) for decoder in decoders)
            return average_gains(
                [
                    Gain(one.objective(self._config.entropy_weight), one.value, torch.stack([one.entropy_y, one.entropy_z]))
                    for one in each
                ]
            )

        if self._config.merge:
            return gain(network.aux_decoders)
        own = gain([network.decoder])
        if not network.auxiliary:
            return own
        return own._replace(objective=own.objective + gain(network.aux_decoders).objective)

    def trained_decoder(self, network: Network) -> nn.Conv2d | None:
        """The first auxiliary decoder if their clusters are merged, else the decoder itself."""
        return network.aux_decoders[0] if self._config.merge else network.decoder

    def fit_decoder(self, networks: Sequence[Network], batches: Iterable[Batch], seed: int) -> Network:  # noqa: ARG002
        """Merge the trained clusters of all ``networks`` (see ``train/merging.py``)."""
        return fit_merged_decoder(networks, batches)

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
