"""Draw two views of a step as the settings say: orderings, sampling, transforms."""

from torch import Tensor

from autoreg.network.network import Network
from autoreg.network.orderings import find_orderings
from autoreg.train.config import TrainConfig
from autoreg.train.objectives.objective import Step
from autoreg.train.transforms import draw_dihedral, find_rgb, jitter_colours
from autoreg.train.views import draw_orderings, view_features


class Views:
    """Makes the two views of each step."""

    def __init__(self, config: TrainConfig, bands: tuple[str, ...]) -> None:
        self._config = config
        self._orderings = find_orderings(config.orderings)
        self._rgb = find_rgb(bands) if config.colour_jitter else None

    def __call__(self, network: Network, step: Step) -> tuple[Tensor, Tensor]:
        """Features of the two views, (N, feature_width, h, w) each, in the frame of the images."""
        config, second_images = self._config, None
        first, second = draw_orderings(self._orderings, config.sampling, step.rng, crossed=config.crossed)
        transform = draw_dihedral(step.rng, flip=config.flip, rotate=config.rotate)
        if self._rgb:
            second_images = jitter_colours(step.images, self._rgb, config.colour_jitter, step.rng, step.share)
        return view_features(network, step.images, first, second, second_images=second_images, transform=transform)
