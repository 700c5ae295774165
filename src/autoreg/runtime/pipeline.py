"""Reading, the engine, and what becomes of its answers, side by side: the engine waits for nothing that can be done ahead.

A thread reads ahead of the engine, and another turns its answers into maps; the engine runs in as many threads as it has
lanes. All are at most some tiles apart, so memory does not depend on the size of the raster.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, tee
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.raster.background import in_background
from autoreg.raster.blending import Blending
from autoreg.raster.statistics import Read
from autoreg.raster.tiling import Area, Tiling
from autoreg.raster.window import Window
from autoreg.runtime.blend import Answer, Blended, blend, probabilities_within
from autoreg.runtime.engine import Engine, Images, Labels, Logits
from autoreg.runtime.images import image_type, to_image
from autoreg.spec import NODATA_LABEL, ModelSpec

PROBABILITY_SCALE = 0.004
"""What a pixel of a map of probabilities is multiplied with: 250 stands for 1, and 255 is free for nodata."""

_BEHIND_AREAS = 4

Put = Callable[[Sequence[NDArray[np.uint8]] | None, Window, float], None]
"""Takes the maps (height, width, bands) of a part of the raster, or None where it is nodata; its place; and how many labels
depend on the tiling. Called in two threads."""


@dataclass(frozen=True)
class Outputs:
    """Which maps to make besides the labels. Values are probabilities in units of ``PROBABILITY_SCALE``; nodata is 255.

    Attributes:
        confidence: the probability of the class that the map of labels says, one band.
        probabilities: of each class, a band each, in the order of the spec's classes.
    """

    confidence: bool = False
    probabilities: bool = False

    @property
    def need_logits(self) -> bool:
        """Whether labels alone are not enough."""
        return self.confidence or self.probabilities


def _no_window(_window: Window) -> bool:
    return False


class Job(NamedTuple):
    """What is to be done with a raster.

    Attributes:
        engine: runs the model.
        plan: of the tiles.
        read: from a window to its pixels and which of them are data, as the model is to see them. Called in a background
            thread.
        put: takes the maps.
        outputs: which maps.
        batch_size: tiles per call of the engine.
        is_empty: whether there is certainly no data in a core: then it is not read.
        is_done: whether the maps of a core are there already.
        advance: called with the number of pixels of each core that is done.
    """

    engine: Engine
    plan: Tiling | Blending
    read: Read
    put: Put
    outputs: Outputs
    batch_size: int
    is_empty: Callable[[Window], bool] = _no_window
    is_done: Callable[[Window], bool] = _no_window
    advance: Callable[[int], None] = lambda _pixels: None


def run(job: Job) -> None:
    """Do a job."""
    with (
        closing(_answer_areas(job)) as answered,
        closing(in_background(_Finish(job), answered, depth=_BEHIND_AREAS)) as done,
    ):
        for area, _ in done:
            job.advance(area.core.height * area.core.width)


class _Answered(NamedTuple):
    """What an engine said about the tiles of an area that the area before it did not have.

    Attributes:
        core, tiles: as in ``Area``.
        answers: None for a tile without data.
    """

    core: Window
    tiles: tuple[Window, ...]
    answers: dict[Window, Answer | None]


class _Tile(NamedTuple):
    """A window for the engine, and the part of it that matters: if that has no data, the engine need not see it."""

    window: Window
    matters: Window


_Prepared = tuple[Images | None, list[NDArray[np.bool_] | None]]
"""What the engine is to see, and for each tile of a batch which of it is data; None for tiles that it need not see."""


def _answer_areas(job: Job) -> Generator[_Answered]:
    """Run the engine over the tiles of a plan: each once in a strip, and none without data."""
    for_tiles, for_areas = tee(_new_tiles(job))
    tiles = (tile for _, new in for_tiles for tile in new)
    with closing(_answer_tiles(job, tiles)) as answers:
        for area, new in for_areas:
            yield _Answered(area.core, area.tiles, {tile.window: next(answers) for tile in new})


def _new_tiles(job: Job) -> Iterator[tuple[Area, list[_Tile]]]:
    """The areas of a plan that have to be labelled, and those of their tiles that the one before did not have."""
    exact = isinstance(job.plan, Tiling)
    before: tuple[Window, ...] = ()
    for area in job.plan:
        core, tiles = area
        done, empty = job.is_done(core), job.is_empty(core)
        if done or empty:
            if not done:
                job.put(None, core, 0.0)
            job.advance(core.height * core.width)
        elif exact:
            # Two cores may have one window, at the raster's edge, and one of them no data: then it is no answer for both.
            yield area, [_Tile(window, core) for window in tiles]
        else:
            yield area, [_Tile(window, window) for window in tiles if window not in before]
            before = tiles


def _answer_tiles(job: Job, tiles: Iterable[_Tile]) -> Generator[Answer | None]:
    lanes = job.engine.lanes
    logits_too = job.outputs.need_logits or isinstance(job.plan, Blending)

    def ask(prepared: list[_Prepared]) -> list[Answer | None]:
        images, masks = prepared.pop()  # nobody else is to keep the images, the largest arrays of all, while answers wait
        answers = iter(() if images is None else _ask(job.engine, images, logits_too=logits_too))
        del images
        return [None if mask is None else Answer(*next(answers), mask) for mask in masks]

    with (
        closing(in_background(_Prepare(job), _batched(tiles, job.batch_size), depth=lanes)) as read,
        closing(in_background(ask, ([prepared] for _, prepared in read), depth=lanes, threads=lanes)) as asked,
    ):
        for _, answers in asked:
            yield from answers


def _ask(engine: Engine, images: Images, *, logits_too: bool) -> Iterable[tuple[Labels, Logits | None]]:
    """Labels of each image, and, if they are wanted, logits."""
    if logits_too:
        return zip(*engine.predict(images), strict=True)
    return ((labels, None) for labels in engine.label(images))


class _Prepare:
    """Read what an engine is to see in a batch of tiles, and which of it is data."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, batch: tuple[_Tile, ...]) -> _Prepared:
        """Images of the tiles that have data where it matters; for each tile its mask, or None if it has none."""
        spec, images = self._job.engine.spec, None
        masks: list[NDArray[np.bool_] | None] = []
        count = 0
        for window, matters in batch:
            masks.append(None)
            pixels, valid = self._job.read(window)
            if not valid[matters.within(window).slices].any():
                continue
            masks[-1] = valid
            if images is None:
                images = np.empty((len(batch), *pixels.shape), image_type(pixels, spec))
            to_image(pixels, valid, spec, out=images[count])
            count += 1
        return None if images is None else images[:count], masks


class _Finish:
    """Turn the answers about an area into maps, and put them; areas must come in the order of the plan."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._spec = job.engine.spec
        self._labels_of = _labels_of_clusters(self._spec)
        self._held: dict[Window, Answer | None] = {}

    def __call__(self, area: _Answered) -> None:
        held = self._held | area.answers
        self._held = {tile: held[tile] for tile in area.tiles}
        if all(answer is None for answer in self._held.values()):
            self._job.put(None, area.core, 0.0)
            return
        blended = self._exact(area.core) if isinstance(self._job.plan, Tiling) else self._blended(area.core)
        self._job.put(self._maps(blended), area.core, blended.tiling_dependent)

    def _exact(self, core: Window) -> Blended:
        ((window, answer),) = self._held.items()
        assert answer is not None
        inside = core.within(window)
        labels = self._labels_of.take(answer.labels[inside.slices])
        valid = answer.valid[inside.slices]
        if not valid.all():
            labels[~valid] = NODATA_LABEL
        found = None if answer.logits is None else probabilities_within(inside, answer.logits, self._spec.stride)
        return Blended(labels, found, 0.0)

    def _blended(self, core: Window) -> Blended:
        clusters = self._spec.clusters if self._job.outputs.need_logits else None
        return blend(core, self._held, self._spec.stride, self._labels_of, with_probabilities=clusters)

    def _maps(self, blended: Blended) -> list[NDArray[np.uint8]]:
        maps = [blended.labels[..., None]]
        if blended.probabilities is None:
            return maps
        of_classes = np.stack(
            [blended.probabilities[list(item.clusters)].sum(axis=0) for item in self._spec.classes], axis=-1
        )
        scaled = np.rint(of_classes.clip(0, 1) / PROBABILITY_SCALE).astype(np.uint8)
        nodata = blended.labels == NODATA_LABEL
        scaled[nodata] = NODATA_LABEL
        if self._job.outputs.confidence:
            row_of = np.zeros(NODATA_LABEL + 1, np.intp)
            row_of[[item.label for item in self._spec.classes]] = np.arange(len(self._spec.classes))
            maps.append(np.take_along_axis(scaled, row_of.take(blended.labels)[..., None], axis=-1))
        if self._job.outputs.probabilities:
            maps.append(scaled)
        return maps


def _labels_of_clusters(spec: ModelSpec) -> NDArray[np.uint8]:
    """Label of each cluster, (256,): nodata for what is none, whatever the graph answers."""
    table = np.full(NODATA_LABEL + 1, NODATA_LABEL, np.uint8)
    table[: spec.clusters] = spec.cluster_labels
    return table


def _batched(tiles: Iterable[_Tile], size: int) -> Iterator[tuple[_Tile, ...]]:
    """Tuples of ``size`` tiles; the last may be shorter."""
    iterator = iter(tiles)
    while batch := tuple(islice(iterator, size)):
        yield batch
