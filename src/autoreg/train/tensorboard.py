"""A training in TensorBoard: the figures of the log as scalars, and sample crops above their labels as images."""

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from autoreg.network.network import Network
from autoreg.optional import require
from autoreg.raster.palette import class_colours
from autoreg.raster.picture import Picture, paint, stretch
from autoreg.spec import NODATA_LABEL
from autoreg.train.log import Measurement, Meter
from autoreg.train.samples import examine
from autoreg.train.status import Status

PICTURES = 20
"""How often the samples are drawn in a training."""

_GROUPS = {
    "objective": ("mutual_information", "objective", "entropy_y", "entropy_z"),
    "clusters": ("clusters_used",),
    "training": ("learning_rate", "images_per_second", "peak_memory_mib"),
}
"""The scalars, under the headings that TensorBoard shows."""


class TensorBoard:
    """Writes what TensorBoard shows of one training; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Into ``folder``, which is made if needed; steps that are written again replace those that are there.

        Raises:
            MissingDependencyError: tensorboard is not installed.
        """
        require("tensorboard")
        self._folder = folder
        self._meter = Meter()
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.close()

    def observe(self, network: Network, status: Status) -> None:
        """Called after each step of the training."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier run wrote from this step on is not shown: after --resume, it was not part of the training.
            self._writer = SummaryWriter(str(self._folder), purge_step=status.step)
        measurement = self._meter.observe(network, status)
        if measurement:
            self._write(measurement)
        drawable = 0 < len(status.usage) <= NODATA_LABEL  # more than that are no labels
        if drawable and status.step % max(status.steps // PICTURES, 1) == 0:
            self._writer.add_image("samples", draw_samples(network, status), status.step)

    def _write(self, measurement: Measurement) -> None:
        figures = dataclasses.asdict(measurement)
        scalars = {f"{group}/{name}": figures[name] for group, names in _GROUPS.items() for name in names}
        scalars |= {f"usage/cluster_{cluster:03}": share for cluster, share in enumerate(measurement.usage)}
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, measurement.step)


def draw_samples(network: Network, status: Status) -> Picture:
    """The sample crops in a row, and below them the clusters of ``status.usage`` that the network gives without ordering."""
    assert status.samples is not None
    clusters = len(status.usage)
    # Where clusters are merged in the end, the decoder means nothing until then.
    decoder = network.decoder if clusters == network.config.classes else network.aux_decoders[0]
    seen = examine(network, status.samples, orderings=(), decoder=decoder)
    crops = stretch(status.samples.numpy(), status.bands, seen.valid)
    rows = [crops, paint(seen.labels, class_colours(clusters))]
    return np.concatenate([np.concatenate(list(row), axis=2) for row in rows], axis=1)
