"""Settings of a training: option of the command line, else train.toml, else a preset, else the default here."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from autoreg.errors import ConfigError
from autoreg.network.config import SIZES, VARIANTS, NetworkConfig, Size, network_config
from autoreg.network.orderings import MASKINGS, Masking, find_orderings
from autoreg.spec import NODATA_LABEL, NORMALISATIONS
from autoreg.toml_file import read_toml, suggest
from autoreg.train.precision import PRECISIONS
from autoreg.train.views import CROSSED

OBJECTIVES = ("clustering", "representation", "features", "deepcluster", "doersch", "isola")
SAMPLINGS = ("no_rep", "random", "hard")
DISPLACEMENTS = ("collapsed", "separate")
RESOLUTIONS = ("cells", "pixels")


@dataclass(frozen=True)
class TrainConfig:
    """What a training does. Every field is a key of ``train.toml``.

    Attributes:
        classes: number of clusters K.
        objective: ``clustering`` (AC, eq. 12) or ``representation`` (ARL, eq. 14); of the methods compared with:
            ``deepcluster``, ``doersch`` and ``isola``, and ``features``, which trains nothing. All but the first find their
            clusters by K-means on the whitened features.
        network: ``F1`` to ``F5`` (Table 1a), or ``pixels`` or ``sift``, which have nothing to train.
        size: ``tiny``, ``small``, ``base`` or ``paper``.
        widths: ``double`` or ``constant``, from block to block; empty: as the size has it.
        max_width: where doubling ends; 0: as the size has it.
        stride: pixels per cell, 2 or 4; 0: as the size has it.
        kernel_size: of the masked convolutions, odd.
        masking: ``shifted``, ``relaxed`` or ``standard`` (Fig. 3).
        attention: an attention block after the first masked block (eq. 2).
        dropout: probability, 0 to less than 1 (Table 1f).
        backbone: ``package.module:function``, a function from the number of bands to a module that stands in the place of
            the stem; empty: none.
        orderings: the set O: ``raster``, ``zigzag`` or names of single ones (see ``find_orderings``); empty: no orderings.
        sampling: how a step chooses from them, ``random``, ``no_rep`` or ``hard`` (Table 1d).
        crossed: two orderings for each view, crossed; if false, one each and a symmetrised loss, as in the paper, which
            rewards a network that tells the orderings apart (see ``train/views.py``).
        steps: updates of the weights in all; 0 for a network that stays as it is. With more, clusters turn to detail.
        batch_size: crops per step and network; a multiple of 4 where orderings are crossed.
        crop_px: side of a crop; a multiple of the stride.
        normalisation: ``global``: each raster is normalised with the mean and deviation of all; ``scene``: with its own, in
            training and wherever the model runs, which suits scenes that were stretched or lit differently.
        displacement_px: T, less than ``crop_px``; predictions up to T pixels apart, in rows and in columns, should agree
            (Table 8: 10).
        displacements: ``collapsed`` sums the joint distributions of all displacements into one (eq. 12); ``separate``
            takes the mean of their mutual informations, as IIC's public code does.
        resolution: where the views are compared: in the ``cells`` of the feature map, or after its upsampling in all
            ``pixels``, as in the paper.
        entropy_weight: of the marginal entropies in the objective; 1 is the paper's eq. 12, IIC's public code has 1.5.
        overclustering: auxiliary decoders tell this many times ``classes`` clusters; 0: there is none.
        heads: how many of them there are. They start differently and find other clusters.
        ensemble: where clusters are merged, so many networks are trained side by side, each with its own weights, crops and
            orderings. Their clusters are merged together, and the network that says the merged ones best is kept.
        merge: only the auxiliary decoders are trained, and all their clusters are merged by their surroundings into
            ``classes``, of any size (see ``train/merging.py``); if false, they only help the training of those.
        embedding: channels of the features that ``representation`` learns; the paper does not say.
        samples: cells per image that it compares, and that it compares them with.
        learning_rate: of Adam.
        colour_jitter: how much brightness, contrast, saturation and hue of the second view change, 0 (not) to 0.5; the paper
            has 0.1. Needs bands named red, green and blue.
        flip: mirror the second view half of the time.
        rotate: turn the second view by a random number of quarter turns.
        checkpoint_steps: steps between two saves of the checkpoint; 0: at the end only.
        seed: decides the initial weights, the crops and the orderings.
        precision: of the network in training; the loss and the weights are always in float32 or float64. ``fp32``;
            ``fp16``, with loss scaling, for GPUs from V100 on; ``bf16``, for GPUs from A100 on, and on processors.
        compile: compile a part of the network, for GPUs; it takes a minute at the start and a C++ compiler.
        checkpointing: less memory for a third more time: residual blocks are computed again in the backward pass.
        device: ``auto``, ``cpu``, ``cuda`` or another torch device.
    """

    classes: int = 6
    objective: str = "clustering"
    network: str = "F2"
    size: str = "tiny"
    widths: str = ""
    max_width: int = 0
    stride: int = 0
    kernel_size: int = 3
    masking: str = "shifted"
    attention: bool = False
    dropout: float = 0.0
    backbone: str = ""
    orderings: tuple[str, ...] = ("raster",)
    sampling: str = "no_rep"
    crossed: bool = True
    steps: int = 300
    batch_size: int = 8
    crop_px: int = 128
    normalisation: str = "global"
    displacement_px: int = 5
    displacements: str = "collapsed"
    resolution: str = "cells"
    entropy_weight: float = 1.5
    overclustering: int = 8
    heads: int = 3
    ensemble: int = 3
    merge: bool = True
    embedding: int = 64
    samples: int = 256
    learning_rate: float = 5e-4
    colour_jitter: float = 0.0
    flip: bool = True
    rotate: bool = True
    checkpoint_steps: int = 100
    seed: int = 0
    precision: str = "fp32"
    compile: bool = False
    checkpointing: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in (
            ("objective", OBJECTIVES),
            ("network", VARIANTS),
            ("size", SIZES),
            ("widths", ("", "double", "constant")),
            ("masking", MASKINGS),
            ("sampling", SAMPLINGS),
            ("displacements", DISPLACEMENTS),
            ("resolution", RESOLUTIONS),
            ("precision", PRECISIONS),
            ("normalisation", NORMALISATIONS),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected {_alternatives(choices)}")
        for name, low, high in (
            ("classes", 2, NODATA_LABEL),
            ("max_width", 0, 2**16),
            ("stride", 0, 4),
            ("kernel_size", 1, 31),
            ("steps", 0, 10**9),
            ("batch_size", 2, 2**16),
            ("crop_px", 16, 4096),
            ("displacement_px", 0, self.crop_px - 1),
            ("overclustering", 0, 4096 // self.classes),
            ("heads", 1, 16),
            ("ensemble", 1, 16),
            ("embedding", 1, 4096),
            ("samples", 1, 2**20),
            ("colour_jitter", 0, 0.5),
            ("checkpoint_steps", 0, 10**9),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}, expected {low} to {high}")
        for name, limit in (("learning_rate", 1), ("entropy_weight", 10)):
            if not 0 < getattr(self, name) < limit:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0 and less than {limit}")
        self._check_together()
        self.network_config(bands=1)

    def _check_together(self) -> None:
        """Refuse settings that are each right and do not fit together."""
        if self.crossed and self.batch_size % CROSSED**2:
            raise ConfigError(f"batch_size is {self.batch_size}, expected a multiple of 4, because orderings are crossed")
        if self.crop_px % 4:
            raise ConfigError(f"crop_px is {self.crop_px}, expected a multiple of 4")
        orderings = find_orderings(self.orderings)
        if self.sampling == "no_rep" and len(orderings) == 1:
            raise ConfigError(f"sampling without repetition needs two orderings, but there is only {orderings[0]}")
        lonely = [str(ordering) for ordering in orderings if ordering.reverse not in orderings]
        if self.sampling == "hard" and lonely:
            raise ConfigError(f"hard sampling needs the reverse of each ordering, but that of {lonely[0]} is missing")
        learns = self.network not in ("pixels", "sift") and self.objective != "features"
        if self.steps and not learns:
            raise ConfigError(
                f"steps is {self.steps}, but network {self.network} with {self.objective} trains nothing: use 0"
            )
        if self.objective == "clustering" and self.merge and self.overclustering < 2:
            raise ConfigError(
                f"overclustering is {self.overclustering}, expected at least 2, because clusters are merged; or set merge "
                f"to false"
            )
        if self.objective == "deepcluster" and not self.overclustering:
            raise ConfigError("deepcluster needs overclustering, how many times the classes it tells apart; IIC has 10")

    @property
    def members(self) -> int:
        """How many networks are trained."""
        return self.ensemble if self.objective == "clustering" and self.merge else 1

    def network_config(self, bands: int, backbone: tuple[int, int] | None = None) -> NetworkConfig:
        """The layers of the network.

        Args:
            bands: of the rasters.
            backbone: channels and stride of the user's module, if there is one.

        Raises:
            ConfigError: the settings do not go together.
        """
        size = SIZES[self.size]
        stride = self.stride or size.stride
        width = size.stem_width
        if backbone:
            width, stride = backbone
        size = Size(width, size.blocks, cast(Any, self.widths) or size.growth, self.max_width or size.max_width, stride)
        return network_config(
            self.network,
            size,
            bands=bands,
            classes=self.classes,
            custom=backbone is not None,
            kernel_size=self.kernel_size,
            masking=cast(Masking, self.masking),
            attention=self.attention,
            dropout=self.dropout,
            embedding=self.embedding if self.objective == "representation" else 0,
            aux_classes=self.overclustering * self.classes if self.objective in ("clustering", "deepcluster") else 0,
            aux_decoders=self.heads if self.objective == "clustering" else 1,
        )


def load_config(path: Path | None, options: Mapping[str, Any], preset: Mapping[str, Any] | None = None) -> TrainConfig:
    """Settings from ``options``, else from a TOML file, else from a preset, else the defaults.

    Args:
        path: of the file, or None.
        options: by name; None means not given.
        preset: by name.

    Raises:
        ConfigError: the file is missing or not TOML, or a key is unknown, or a value has the wrong type or range.
    """
    values: dict[str, Any] = dict(preset or {})
    if path is not None:
        values |= read_toml(path, expected="the settings of a training")
    values |= {name: value for name, value in options.items() if value is not None}
    return config_from(values, source=str(path) if path else "the options")


def config_from(values: Mapping[str, Any], *, source: str) -> TrainConfig:
    """Check names and types of ``values`` and make a ``TrainConfig`` of them; ``source`` names them in errors.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or range.
    """
    fields = {field.name: type(field.default) for field in dataclasses.fields(TrainConfig)}
    for name in values:
        if name not in fields:
            hint = suggest(name, fields, otherwise=f"expected {_alternatives(fields)}")
            raise ConfigError(f"{source} has an unknown setting {name!r}; {hint}")
    return TrainConfig(**{name: _parse(name, value, fields[name], source) for name, value in values.items()})


def _parse(name: str, value: Any, kind: type, source: str) -> Any:
    """Check the type of one value; a single name stands for a list of one."""
    if kind is tuple:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(item, str) for item in names):
            raise ConfigError(f"{name} in {source} is {value!r}, expected a name or a list of names")
        return tuple(names)
    accepted = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
        raise ConfigError(f"{name} in {source} is {value!r}, expected a value of type {kind.__name__}")
    return value


def _alternatives(names: Iterable[str]) -> str:
    return "one of " + ", ".join(name or '""' for name in names)
