"""What a training maximises: the paper's two objectives, and those of the methods that it is compared with."""

from collections.abc import Callable

from autoreg.network.network import Network
from autoreg.train.config import TrainConfig
from autoreg.train.objectives.clustering import Clustering
from autoreg.train.objectives.deepcluster import DeepCluster
from autoreg.train.objectives.objective import Gain, Objective, Step, average_gains
from autoreg.train.objectives.patches import PatchRelation
from autoreg.train.objectives.representation import Representation
from autoreg.train.objectives.untrained import Untrained

__all__ = ["Gain", "Objective", "Step", "average_gains", "make_objective"]

_BY_NAME: dict[str, Callable[[TrainConfig, Network, tuple[str, ...]], Objective]] = {
    "clustering": Clustering,
    "representation": Representation,
    "features": Untrained,
    "deepcluster": DeepCluster,
    "doersch": PatchRelation,
    "isola": PatchRelation,
}


def make_objective(config: TrainConfig, network: Network, bands: tuple[str, ...]) -> Objective:
    """The objective that ``config.objective`` names.

    Args:
        config: of the training.
        network: to be trained.
        bands: their names.

    Raises:
        ConfigError: the bands do not fit the settings.
    """
    return _BY_NAME[config.objective](config, network, bands)
