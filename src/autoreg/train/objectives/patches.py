"""Pretext tasks on pairs of patches of one image, two of the methods of Table 3.

Doersch et al. (2015) ask in which of eight directions the second patch lies, Isola et al. (2016) whether it lies next to
the first. Patches are cut from the image, not from a feature map: there, receptive fields that overlap would give the answer
away.
"""

import math

import torch
from torch import Tensor, nn

from autoreg.network.network import Network
from autoreg.train.config import TrainConfig
from autoreg.train.objectives.objective import Gain, Objective, Step

_DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
_HIDDEN = 256
_NOISE = 0.01


class PatchRelation(Objective):
    """How two patches of a quarter of the crop's side lie to each other; clusters are found by K-means afterwards.

    ``doersch``: which of the eight directions, at a distance of one and a half patches. ``isola``: next to each other or two
    patches away. IIC's version of the former has nine answers of which two are the same direction; here there are eight.
    """

    def __init__(self, config: TrainConfig, network: Network, bands: tuple[str, ...]) -> None:  # noqa: ARG002
        super().__init__()
        self._directional = config.objective == "doersch"
        stride = network.config.stride
        self._patch_px = max(config.crop_px // 4 // stride * stride, stride)
        answers = len(_DIRECTIONS) if self._directional else 2
        self.head = nn.Sequential(
            nn.Linear(2 * network.config.feature_width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, answers)
        )

    def forward(self, network: Network, step: Step) -> Gain:
        """The gain of one step: how much better than chance the relation is told, in nats, at most log of the answers."""
        patches, answers = self._cut(step)
        patches = _drop_colours(patches, network.mean, network.std, step)
        vectors = network.features(network.encode(patches), None).mean(dim=(2, 3))
        told = self.head(torch.cat(vectors.chunk(2), dim=1))
        loss = nn.functional.cross_entropy(told.float(), answers.to(told.device))
        gained = math.log(told.shape[1]) - loss
        return Gain(gained, gained)

    def _cut(self, step: Step) -> tuple[Tensor, Tensor]:
        """Two patches of each image, (2N, bands, p, p), the first ones first, and the answers, int64 (N,)."""
        side, size = self._patch_px, step.images.shape[-1]
        firsts, seconds, answers = [], [], []
        for image in step.images:
            answer = int(step.rng.integers(len(_DIRECTIONS) if self._directional else 2))
            direction = _DIRECTIONS[answer if self._directional else int(step.rng.integers(len(_DIRECTIONS)))]
            distance = side * 3 // 2 if self._directional else side * (1 + answer)
            places = []
            for sign in direction:
                # The first patch anywhere such that the second lies inside the crop.
                low, high = max(0, -sign * distance), size - side - max(0, sign * distance)
                start = int(step.rng.integers(low, high + 1))
                places.append((start, start + sign * distance))
            (row, other_row), (col, other_col) = places
            firsts.append(image[:, row : row + side, col : col + side])
            seconds.append(image[:, other_row : other_row + side, other_col : other_col + side])
            answers.append(answer)
        return torch.stack(firsts + seconds), torch.tensor(answers)


def _drop_colours(patches: Tensor, mean: Tensor, std: Tensor, step: Step) -> Tensor:
    """Keep one random band of each patch, and noise in the others: colour fringes tell where in the lens a patch was."""
    bands = patches.shape[1]
    kept = torch.from_numpy(step.rng.integers(bands, size=len(patches))).to(patches.device)
    keep = torch.nn.functional.one_hot(kept, bands)[:, :, None, None].bool()
    noise = torch.from_numpy(step.rng.standard_normal(patches.shape)).to(patches) * _NOISE
    return torch.where(keep, patches, mean[:, None, None] + noise * std[:, None, None])
