"""DeepCluster (Caron et al., 2018) for cells of a feature map, one of the methods of Table 3."""

import copy
import math

import torch
from torch import Tensor, nn

from autoreg.network.network import Network, valid_cells
from autoreg.train.config import TrainConfig
from autoreg.train.kmeans import fit_decoder
from autoreg.train.objectives.objective import Gain, Objective, Step

REFRESH_STEPS = 50
"""Steps between two clusterings: an epoch, of a training that has none."""

_MOST_CELLS = 2**15


class DeepCluster(Objective):
    """Tell the cluster that K-means gave to a cell's features as they were at the last clustering.

    The clusters are as many as the auxiliary decoder has, which tells them and starts anew at each clustering; large
    clusters weigh no more than small ones. The final clusters are found by K-means on the features.
    """

    def __init__(self, config: TrainConfig, network: Network, bands: tuple[str, ...]) -> None:  # noqa: ARG002
        super().__init__()
        self._seed = config.seed
        clusters = network.config.aux_classes
        # The network as it was then: its clusters of crops that come later must be those of that moment.
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.assignment = nn.Conv2d(network.config.feature_width, clusters, 1).requires_grad_(False)
        self.register_buffer("weight", torch.ones(clusters))

    def forward(self, network: Network, step: Step) -> Gain:
        """The gain of one step: how much better than chance the clusters are told, in nats, at most log of their number."""
        if step.number % REFRESH_STEPS == 0:
            self._cluster(network, step)
        with torch.no_grad():
            answers = self.assignment(self._remember(step.images)).argmax(dim=1)
            answers[~valid_cells(step.valid, network.config.stride)] = -100  # what cross_entropy leaves out
        (decoder,) = network.aux_decoders
        told = decoder(network.features(network.encode(step.images), None))
        loss = nn.functional.cross_entropy(told.float(), answers, weight=self.get_buffer("weight"))
        gained = math.log(told.shape[1]) - loss
        return Gain(gained, gained)

    def _remember(self, images: Tensor) -> Tensor:
        self.teacher.eval()
        return self.teacher.features(self.teacher.encode(images), None)

    @torch.no_grad()
    def _cluster(self, network: Network, step: Step) -> None:
        self.teacher.load_state_dict(network.state_dict())
        features = self._remember(step.images).movedim(1, -1)[valid_cells(step.valid, network.config.stride)].cpu()
        features = features[torch.from_numpy(step.rng.permutation(len(features))[:_MOST_CELLS])]
        labels = fit_decoder(self.assignment, features, self._seed)
        counts = labels.bincount(minlength=self.assignment.out_channels).clamp_min(1)
        self.get_buffer("weight").copy_(counts.sum() / counts / len(counts))
        (decoder,) = network.aux_decoders
        assert decoder.bias is not None
        fresh = torch.empty(decoder.weight.shape)
        nn.init.xavier_uniform_(fresh, generator=torch.Generator().manual_seed(step.number))
        decoder.weight.copy_(fresh)
        decoder.bias.zero_()
