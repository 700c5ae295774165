"""How a training stands: what is reported after each step."""

from dataclasses import dataclass, field

from torch import Tensor

COLLAPSE_NATS = 1e-3
COLLAPSE_SHARE = 0.99
LEAST_SHARE = 0.1
"""Of an equal share of the pixels: a cluster that has less is hardly used."""


@dataclass(frozen=True)
class Status:
    """How a training stands.

    Attributes:
        step: updates done.
        steps: updates in all.
        mutual_information: of the last step's two views, in nats; at most the log of the number of trained clusters. Of
            another objective, the lower bound of a mutual information that it maximises; 0 if no step was done. Of several
            networks, this and what follows from a step are means.
        usage: share of the pixels that the *unmasked* network, of several the first, gives to each trained cluster, and in
            the end to each of the deployed ones, on the last batch looked at; sums to 1. Empty while there are no clusters
            yet.
        trains_clusters: whether the clusters are trained; else K-means finds them in the end, whatever was learned.
        objective: what the last step maximised; 0 if no step was done.
        entropies: H(y) and H(z) of its two views, in nats, at most that log; None where no clusters are trained.
        learning_rate: of that step; None if there is nothing to train.
        images: crops that a step sees, of all networks.
        samples: raw crops of the first step, float32 (N, bands, H, W), that the checkpoint will hold.
        bands: their names.
    """

    step: int
    steps: int
    mutual_information: float
    usage: tuple[float, ...]
    trains_clusters: bool = True
    objective: float = 0.0
    entropies: tuple[float, float] | None = None
    learning_rate: float | None = None
    images: int = 0
    samples: Tensor | None = field(default=None, repr=False, compare=False)
    bands: tuple[str, ...] = ()

    @property
    def clusters_used(self) -> int:
        """Clusters with at least a tenth of an equal share of the pixels."""
        return sum(share >= LEAST_SHARE / len(self.usage) for share in self.usage)

    @property
    def collapsed(self) -> bool:
        """Whether the views tell nothing about each other, or one cluster takes everything."""
        if self.steps == 0:
            return False
        uninformed = self.trains_clusters and self.mutual_information < COLLAPSE_NATS
        return uninformed or max(self.usage, default=0.0) > COLLAPSE_SHARE
