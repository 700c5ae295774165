"""Several processes (ranks) that train as one. With one process, every function here gives back what it gets.

The ranks hold the same weights all the time; each sees its own part of every batch. What they maximise together is the
*mean* of their objectives. So a mean over images needs no care, because all parts are of one size. A sum that enters a
function which is not linear, such as the joint distribution of eq. 12 or the moments of a batch norm, is a sum over the
ranks, and so is its gradient (``sum_over_ranks``). With ``average_gradients`` after the backward pass, N ranks with B images
each then make the step that one rank makes with N * B.

Gradients are averaged at once and not, as DistributedDataParallel does it, while the backward pass still runs: the network
does much work with few weights, and an objective calls its parts as it likes, outside any one ``forward``.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from autoreg.errors import AutoregError, ConfigError, RankError

T = TypeVar("T")


@contextmanager
def join_ranks() -> Iterator[None]:
    """Within the block, be one of the processes that torchrun started; alone, if it started none.

    Raises:
        ConfigError: something else than torchrun started several, and does not say how they find each other.
        RankError: the other processes do not answer.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    try:
        with _linked():
            # What is agreed on lies in main memory; waiting for it must not wait for the GPU.
            distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except ValueError as error:
        raise ConfigError(f"several processes cannot find each other ({error}): start them with torchrun") from error
    yield
    # Not after an error: taking leave is a common act too, and the others may be elsewhere.
    distributed.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0; rank 0 is the one that reads settings, writes files and reports."""
    return distributed.get_rank() if rank_count() > 1 else 0


def rank_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def own_device(device: torch.device) -> torch.device:
    """The device of this rank, if ``device`` says ``cuda``: each takes one of the GPUs of its machine.

    Raises:
        ConfigError: it names a single GPU, or there are more processes on this machine than GPUs.
    """
    if rank_count() == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise ConfigError(f"device is {device}, but each of {rank_count()} processes needs its own: use cuda")
    local, gpus = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if local >= gpus:
        raise ConfigError(f"this machine has {gpus} GPUs for more processes: use torchrun --nproc-per-node {gpus}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def together() -> Iterator[None]:
    """All ranks come to the end of the block, or none: if it fails on some, the first of them raises why.

    Within the block the ranks must not wait for each other.

    Raises:
        RankError: it failed on another rank, which raises the reason.
    """
    failed: AutoregError | None = None
    try:
        yield
    except AutoregError as error:
        failed = error
    first = rank_count() - int(_reduce_number(rank_count() - rank() if failed else 0))
    if first == rank_count():
        return
    raise failed if failed and first == rank() else RankError(f"process {first} of the training failed; it says why")


def lead(work: Callable[[], T]) -> T:
    """What ``work`` gives on rank 0, where alone it is done.

    Raises:
        RankError: it failed; rank 0 raises the reason.
    """
    with together():
        result = [work() if rank() == 0 else None]
    if rank_count() > 1:
        with _linked():
            distributed.broadcast_object_list(result)
    return cast(T, result[0])


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is true on any rank."""
    return _reduce_number(int(flag)) > 0


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of ``x`` over the ranks, on each of them; the gradient is summed likewise."""
    return cast(Tensor, _Sum.apply(x)) if rank_count() > 1 else x  # type: ignore[no-untyped-call]


def average_over_ranks(x: Tensor) -> Tensor:
    """The mean of ``x`` over the ranks, likewise."""
    return sum_over_ranks(x) / rank_count()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if rank_count() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _reduce(flat)
    flat /= rank_count()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, torch.split(flat, sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


def copy_from_lead(module: nn.Module) -> None:
    """Give ``module`` the parameters and buffers that it has on rank 0."""
    if rank_count() > 1:
        with _linked():
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)


class Share(NamedTuple):
    """The images of a whole batch that one rank sees.

    Attributes:
        total: images of the whole batch.
        places: of this rank's images in it, in their order.
    """

    total: int
    places: NDArray[np.intp]


def share_batch(batch_size: int, groups: int) -> Share:
    """This rank's share of a batch.

    Args:
        batch_size: images per rank.
        groups: equal parts that the whole batch is dealt out to, one after the other, such as to pairs of orderings (see
            ``predict_crossed``); each rank has its part of each, so that all images meet the orderings that they would
            meet on one rank.
    """
    total = batch_size * rank_count()
    return Share(total, np.arange(total).reshape(groups, rank_count(), -1)[:, rank()].ravel())


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return _reduce(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return _reduce(gradient.clone(memory_format=torch.contiguous_format))


def _reduce(x: Tensor) -> Tensor:
    with _linked():
        distributed.all_reduce(x)
    return x


def _reduce_number(number: int) -> int:
    """The largest over the ranks."""
    if rank_count() == 1:
        return number
    value = torch.tensor(number)
    with _linked():
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return int(value)


@contextmanager
def _linked() -> Iterator[None]:
    """Turn what the link between the processes raises into one sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RankError(f"another process of the training has ended or does not answer ({reason})") from error
