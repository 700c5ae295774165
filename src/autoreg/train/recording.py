"""What a training leaves for people to look at: its log and what TensorBoard shows, while it runs, and then its report."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from autoreg.network.network import Network
from autoreg.output import check_output
from autoreg.train.distributed import together
from autoreg.train.log import TrainingLog, log_path
from autoreg.train.loop import Observe
from autoreg.train.report import report_path
from autoreg.train.status import Status
from autoreg.train.tensorboard import TensorBoard


class Recording(NamedTuple):
    """How a training is recorded.

    Attributes:
        observe: for ``train_network`` or ``resume_training``.
        finish: to be called with what they return.
    """

    observe: Observe
    finish: Callable[[Status], None]


@contextmanager
def record_training(
    checkpoint: Path,
    about: Mapping[str, Any],
    *,
    tensorboard: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[Recording]:
    """Record the training of a block. Of several processes that train together, only the first one is asked to observe.

    Args:
        checkpoint: that the training writes; the log lies beside it (``log_path``).
        about: what the log tells of the training; plain values.
        tensorboard: folder for TensorBoard; nothing for it if None.
        resume: go on with the record of a training that goes on.
        overwrite: replace the log of an earlier training, and let ``write_report`` replace its report.

    Raises:
        OutputError: the log or the report exists, or cannot be written.
        MissingDependencyError: tensorboard is wanted, and not installed.
    """
    with together():
        for path in (log_path(checkpoint), report_path(checkpoint)):
            check_output(path, overwrite=overwrite or resume)
        board = TensorBoard(tensorboard) if tensorboard else None
    with TrainingLog(log_path(checkpoint), about, resume=resume) as log, board or nullcontext():

        def observe(network: Network, status: Status) -> None:
            log.observe(network, status)
            if board:
                board.observe(network, status)

        yield Recording(observe, log.finish)
