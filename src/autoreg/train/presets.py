"""Settings by name: those of the paper's data sets (Table 8), and the methods that it is compared with (Table 3)."""

from typing import Any

_WITHOUT_RECIPE: dict[str, Any] = {
    "resolution": "pixels",
    "overclustering": 0,
    "heads": 1,
    "merge": False,
    "flip": False,
    "rotate": False,
}

PAPER: dict[str, Any] = _WITHOUT_RECIPE | {"sampling": "random", "crossed": False, "entropy_weight": 1.0}
"""The method as the paper has it: one random pair of orderings per batch, the loss of eq. 12, no transforms (Table 3)."""

_LARGE = PAPER | {"size": "paper", "displacement_px": 10, "steps": 1140}
_COCO = _LARGE | {"batch_size": 60, "crop_px": 128, "stride": 4}
_POTSDAM = _LARGE | {"batch_size": 30, "crop_px": 200, "stride": 2, "attention": True}

PRESETS: dict[str, dict[str, Any]] = {
    "coco-stuff3": _COCO | {"classes": 3, "learning_rate": 4e-5},
    "coco-stuff": _COCO | {"classes": 15, "learning_rate": 6e-6},
    "potsdam3": _POTSDAM | {"classes": 3, "learning_rate": 1e-6},
    "potsdam": _POTSDAM | {"classes": 6, "learning_rate": 4e-5},
}
"""Table 8, and what the paper says elsewhere. The learning rate of Potsdam-3 has no mantissa there, unlike its neighbours;
it may have been 4e-6. Steps are not given; IIC's released run on Potsdam-3 was best after 1140."""

BASELINES: dict[str, dict[str, Any]] = {
    "random": _WITHOUT_RECIPE | {"steps": 0},
    "kmeans": {"network": "pixels", "objective": "features", "steps": 0},
    "sift": {"network": "sift", "objective": "features", "steps": 0},
    "doersch": {"network": "F4", "objective": "doersch", "orderings": ()},
    "isola": {"network": "F4", "objective": "isola", "orderings": ()},
    "deepcluster": {"network": "F4", "objective": "deepcluster", "orderings": (), "overclustering": 10},
    "iic": _WITHOUT_RECIPE
    | {
        "network": "F4",
        "orderings": (),
        "crossed": False,
        "displacements": "separate",
        "overclustering": 6,
        "colour_jitter": 0.1,
        "flip": True,
    },
}
"""The rows of Table 3, each a training like ours with other settings: a network as it was initialised, clusters of colours
and of dense SIFT descriptors, two pretext tasks, DeepCluster, and Invariant Information Clustering. Networks have no masks
(F4, of the size asked for); IIC's own were of its time, VGG-like with dilation."""
