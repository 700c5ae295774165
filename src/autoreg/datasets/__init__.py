"""Datasets: the downloads that papers measure on, to folders of small rasters, labels and lists that autoreg reads."""

from autoreg.datasets.layout import PROTOCOLS, SPLITS, image_path, label_path, protocol_pairs, read_split
from autoreg.datasets.preparation import DATASETS, Prepared, prepare

__all__ = [
    "DATASETS",
    "PROTOCOLS",
    "SPLITS",
    "Prepared",
    "image_path",
    "label_path",
    "prepare",
    "protocol_pairs",
    "read_split",
]
