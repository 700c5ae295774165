"""Probes: how well classes can be told from what a frozen network has learned (paper, section 4.1, Table 2)."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoreg.errors import ConfigError
from autoreg.evaluation import Evaluation, score
from autoreg.network.network import Network
from autoreg.raster.window import Window
from autoreg.runtime.segment import array_reader, scene_reader
from autoreg.spec import NODATA_LABEL, ModelSpec
from autoreg.train.scoring import TorchEngine, confusion_of_network, read_pair

KINDS = ("linear", "non-linear")
INPUTS = ("features", "decoder")

_MOST_PIXELS = 200_000
_HIDDEN = 256
_STEPS, _BATCH = 1000, 4096


def probe(
    network: Network,
    train: Sequence[tuple[Path, Path]],
    test: Sequence[tuple[Path, Path]],
    *,
    bands: Sequence[str],
    dtype: str,
    crop_px: int,
    normalisation: str = "global",
    kind: str = "linear",
    on: str = "features",
    seed: int = 0,
) -> Evaluation:
    """Train a classifier on what a frozen network gives, with labels, and score it on other images.

    Linear is multinomial logistic regression, to convergence (L-BFGS). Non-linear are two hidden 1 x 1 layers of 256 with
    ReLU (Adam, 1000 steps). Both replace the decoder, before the upsampling.

    Args:
        network: stays as it is.
        train: images and their truths to train on; 200,000 of their pixels are drawn.
        test: those to score.
        bands: see ``TorchEngine``.
        dtype: see ``TorchEngine``.
        crop_px: see ``TorchEngine``.
        normalisation: see ``TorchEngine``.
        kind: one of ``KINDS``.
        on: ``features``, or the outputs of the ``decoder``, as in the paper.
        seed: of the draw and of the first weights.

    Raises:
        ConfigError: ``kind`` or ``on`` is unknown, or the training images have no labels.
        RasterError: a file cannot be read.
    """
    for value, choices, name in ((kind, KINDS, "kind"), (on, INPUTS, "input")):
        if value not in choices:
            raise ConfigError(f"the probe's {name} is {value!r}, expected one of {', '.join(choices)}")
    probed = copy.deepcopy(network).eval().requires_grad_(False)
    before = probed.decoder if on == "decoder" else nn.Identity()
    rng = np.random.default_rng((seed, 4))
    share = max(_MOST_PIXELS // len(train), 1)
    engine = TorchEngine(probed, bands, dtype, crop_px, normalisation=normalisation)
    parts = [_sample(probed, engine.spec, before, *pair, share, rng) for pair in train]
    inputs, classes = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    if not len(classes):
        raise ConfigError(f"none of the {len(train)} images to train the probe on has a label below {NODATA_LABEL}")
    count = max(int(classes.max()) + 1, 2)
    head = _fit(inputs, classes, count, kind, seed).to(network.mean.device)
    probed.decoder = nn.Sequential(before, head)  # type: ignore[assignment]
    engine = TorchEngine(probed, bands, dtype, crop_px, normalisation=normalisation, classes=count)
    confusion = confusion_of_network(engine, test)
    return score(confusion, tuple(range(count)))


@torch.no_grad()
def _sample(
    network: Network,
    spec: ModelSpec,
    before: nn.Module,
    image_path: Path,
    truth_path: Path,
    count: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Upsampled inputs of the probe (n, C) at random labelled pixels of one image, and their classes (n,)."""
    image, valid, truth = read_pair(image_path, truth_path, len(spec.bands))
    height, width = truth.shape
    scene, _ = scene_reader(spec, array_reader(image, valid), height, width)(Window(0, 0, height, width))
    stride = network.config.stride
    rows, cols = (-(-size // stride) * stride for size in (height, width))
    filled = np.where(valid, scene, network.mean.cpu().numpy()[:, None, None]).astype(np.float32)
    tensor = torch.from_numpy(Window(0, 0, rows, cols).extend(filled))[None].to(network.mean.device)
    features = before(network.features(network.encode(tensor), None))
    labelled = np.flatnonzero(((truth != NODATA_LABEL) & valid).ravel())
    chosen = rng.permutation(labelled)[:count]
    # Bilinear upsampling at single pixels: sampling with the same centres.
    y, x = (
        torch.from_numpy((index + 0.5) / size * 2 - 1)
        for index, size in zip(divmod(chosen, width), (rows, cols), strict=True)
    )
    grid = torch.stack([x, y], dim=1)[None, None].to(features)
    sampled = functional.grid_sample(features, grid, padding_mode="border", align_corners=False)[0, :, 0].T
    return sampled.cpu(), torch.from_numpy(truth.ravel()[chosen].astype(np.int64))


def _fit(inputs: Tensor, classes: Tensor, count: int, kind: str, seed: int) -> nn.Module:
    """A classifier of 1 x 1 convolutions; its first layer standardises the inputs."""
    mean, std = inputs.mean(dim=0), inputs.std(dim=0).clamp_min(1e-6)
    channels = inputs.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = [nn.Conv2d(channels, _HIDDEN, 1), nn.ReLU(), nn.Conv2d(_HIDDEN, _HIDDEN, 1), nn.ReLU()]
        layers = hidden if kind == "non-linear" else []
        classifier = nn.Sequential(*layers, nn.Conv2d(_HIDDEN if layers else channels, count, 1))
    points = ((inputs - mean) / std).T[None, :, :, None]  # one image, a pixel a row: the layout in which 1 x 1 is fast
    (_descend if kind == "non-linear" else _converge)(classifier, points, classes, seed)
    standardise = nn.Conv2d(channels, channels, 1, groups=channels)
    with torch.no_grad():
        standardise.weight.copy_((1 / std)[:, None, None, None])
        cast(Tensor, standardise.bias).copy_(-mean / std)
    return nn.Sequential(standardise, classifier).requires_grad_(False)


def _converge(classifier: nn.Module, points: Tensor, classes: Tensor, seed: int) -> None:  # noqa: ARG001
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(classifier(points)[0, :, :, 0].T, classes)
        # So little that it only keeps separable classes from growing for ever.
        loss = loss + 1e-6 * sum(parameter.square().sum() for parameter in classifier.parameters())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _descend(classifier: nn.Module, points: Tensor, classes: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(_STEPS):
        chosen = torch.randint(len(classes), (min(_BATCH, len(classes)),), generator=generator)
        optimizer.zero_grad()
        loss = functional.cross_entropy(classifier(points[:, :, chosen])[0, :, :, 0].T, classes[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
