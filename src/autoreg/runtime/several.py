"""Several engines of one model as one, so that all GPUs work on one raster."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

from autoreg.errors import EngineError
from autoreg.runtime.devices import alike_gpus, find_gpus
from autoreg.runtime.engine import Engine, Images, Labels, Prediction

_log = logging.getLogger("autoreg")


class SeveralEngines:
    """Gives each call to an engine that has an idle lane; see ``autoreg.runtime.engine.Engine``.

    More threads than there are lanes may call it; then some of them wait.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        """Take over some engines, at least one.

        Raises:
            EngineError: they run different models.
        """
        self.spec, self.model_digest = engines[0].spec, engines[0].model_digest
        for engine in engines:
            if (engine.spec, engine.model_digest) != (self.spec, self.model_digest):
                raise EngineError(
                    f"{engine.device} runs the model {engine.model_digest[:12]} and {engines[0].device} the model "
                    f"{self.model_digest[:12]}, expected one model; load one file for all"
                )
        names = Counter(engine.device for engine in engines)
        self.device = ", ".join(name if count == 1 else f"{name} x {count}" for name, count in names.items())
        self.lanes = sum(engine.lanes for engine in engines)
        self._idle: SimpleQueue[Engine] = SimpleQueue()
        for lane in range(max(engine.lanes for engine in engines)):
            for engine in engines:  # in turns, so that few calls at once use them all, too
                if lane < engine.lanes:
                    self._idle.put(engine)

    def label(self, images: Images) -> Labels:
        """Labels of ``images``."""
        with self._idle_one() as engine:
            return engine.label(images)

    def predict(self, images: Images) -> Prediction:
        """Labels and logits of ``images``."""
        with self._idle_one() as engine:
            return engine.predict(images)

    @contextmanager
    def _idle_one(self) -> Iterator[Engine]:
        engine = self._idle.get()
        try:
            yield engine
        finally:
            self._idle.put(engine)


def load_on_gpus(load: Callable[[int, int], Engine], lanes: int) -> Engine:
    """An engine on each GPU, as one; on no more GPUs than there are lanes.

    Args:
        load: from the number of a GPU, and of lanes there, to an engine.
        lanes: of all together.
    """
    gpus, names = alike_gpus(), find_gpus()
    if len(gpus) < len(names):
        _log.warning(
            "%d of %d GPUs are no %s as the first is, and are not used, as a label could depend on which one was idle; "
            "choose others with CUDA_VISIBLE_DEVICES",
            len(names) - len(gpus),
            len(names),
            names[0],
        )
    shares = [len(range(place, lanes, len(gpus))) for place in range(len(gpus))]
    engines = [load(gpu, share) for gpu, share in zip(gpus, shares, strict=True) if share]
    return engines[0] if len(engines) == 1 else SeveralEngines(engines)
