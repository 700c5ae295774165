"""No objective, for methods of Table 3 that train nothing: clusters of features as they are."""

from autoreg.network.network import Network
from autoreg.train.config import TrainConfig
from autoreg.train.objectives.objective import Objective


class Untrained(Objective):
    """Nothing to maximise: the features are those of the first weights, or of no weights at all (``steps`` is 0)."""

    def __init__(self, config: TrainConfig, network: Network, bands: tuple[str, ...]) -> None:  # noqa: ARG002
        super().__init__()
