"""The sample crops of a training, and the clusters that were found in them."""

import base64
import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from autoreg.network.checkpoint import Checkpoint
from autoreg.raster.palette import Colour, class_colours
from autoreg.raster.picture import Picture, encode_picture, paint, stretch
from autoreg.train.report.charts import css
from autoreg.train.report.markup import heading, short, whole
from autoreg.train.samples import Examination

_WIDEST_PX = 256
"""Of the pictures; larger crops are thinned out."""


def draw_crops(checkpoint: Checkpoint, seen: Examination, *, rescaled: bool) -> Iterator[str]:
    """The two sections, part by part.

    Args:
        checkpoint: of the training.
        seen: what its network says of its first sample crops.
        rescaled: the crops were, each to the mean and deviation of all.
    """
    colours = class_colours(checkpoint.network.classes)
    pictures = stretch(checkpoint.samples[: len(seen.labels)].numpy(), checkpoint.bands, seen.valid)
    yield heading(
        "h2",
        "Sample crops",
        "Crops of the rasters. Beside each are the clusters that the network gives without scan order, in the colours "
        "of the maps, and its confidence: the brighter, the surer; lines are dark where clusters meet. Good: borders "
        "that follow what you see, and one colour for one kind of thing.",
    )
    drawn = zip(pictures, paint(seen.labels, colours), _grey(seen.confidence, 1 / len(colours)), strict=True)
    triples = "".join(_triple(number, *three) for number, three in enumerate(drawn, start=1))
    yield f'<div class="samples">{triples}</div>'
    values = "of the rasters, each rescaled to the mean and deviation of all" if rescaled else "of the rasters"
    yield heading(
        "h2",
        "Clusters",
        "What each cluster holds in the crops above: its share of their pixels, their mean colour in the pictures, and "
        f"their mean in each band, in the values {values}. Clusters that share a mean differ in texture.",
    )
    yield _cluster_table(checkpoint.bands, seen, pictures, colours)


def _grey(confidence: NDArray[np.float32], chance: float) -> Iterator[Picture]:
    """Black at chance, white at certainty."""
    share = (confidence - chance) / (1 - chance)
    yield from (255 * np.clip(share, 0, 1)).round().astype(np.uint8)[:, None]


def _triple(number: int, crop: Picture, labels: Picture, confidence: Picture) -> str:
    step = math.ceil(max(crop.shape[1:]) / _WIDEST_PX)
    parts = (
        ("crop", crop, "JPEG", "photo"),
        ("clusters of crop", labels, "PNG", ""),
        ("confidence in crop", confidence, "PNG", ""),
    )
    images = []
    for name, picture, driver, kind in parts:
        content = base64.b64encode(encode_picture(picture[:, ::step, ::step], driver)).decode()
        source = f"data:image/{driver.lower()};base64,{content}"
        images.append(f'<img alt="{name} {number}" class="{kind}" src="{source}">')
    return f"<div>{''.join(images)}</div>"


def _cluster_table(bands: Sequence[str], seen: Examination, pictures: Picture, colours: Sequence[Colour]) -> str:
    total = max(int(seen.pixels.sum()), 1)
    rows = []
    for cluster, (pixels, means) in enumerate(zip(seen.pixels.tolist(), seen.means, strict=True)):
        colour = css(colours[cluster])
        share = f'<span style="width:{140 * pixels / total:.1f}px;background:{colour}"></span>{100 * pixels / total:.1f} %'
        figures = "".join(f"<td>{short(mean)}</td>" for mean in means)
        look = f'<i style="background:{css(_mean_colour(pictures, seen.labels == cluster))}"></i>' if pixels else ""
        cells = (
            f'<td><i style="background:{colour}"></i>{cluster}</td><td class="bar">{share}</td>',
            f'<td><data id="pixels_{cluster}" value="{pixels}">{whole(pixels)}</data></td><td>{look}</td>',
        )
        rows.append(f"<tr>{''.join(cells)}{figures}</tr>")
    names = "".join(f"<th>{escape(name)}</th>" for name in bands)
    head = f'<tr><th>cluster</th><th class="bar">share</th><th>pixels</th><th>looks like</th>{names}</tr>'
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _mean_colour(pictures: Picture, where: NDArray[np.bool_]) -> Colour:
    red, green, blue = (round(float(pictures[:, channel][where].mean())) for channel in range(3))
    return red, green, blue
