"""Attention under an ordering as causal attention on sorted pixels, against the dense mask of eq. 2, forward and backward.

Each form runs in a process of its own, so that the memory is its own.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoreg.network.attention import attend
from autoreg.network.orderings import RASTER_ORDERINGS, Ordering
from record import record

SIDE, WIDTH, RUNS = 100, 64, 5  # 200 x 200 px at stride 2; half of 128 channels


def attend_dense(query: Tensor, key: Tensor, value: Tensor, ordering: Ordering, height: int, width: int) -> Tensor:
    """Scores of all pairs, minus infinity where the mask is 0."""
    rank = ordering.rank(height, width).flatten()
    scores = query @ key.mT / query.shape[-1] ** 0.5
    weights: Tensor = scores.masked_fill((rank[None, :] > rank[:, None]).to(scores.device), -torch.inf).softmax(dim=-1)
    return weights @ value


def run(form: str, path: str) -> dict[str, Any]:
    """Median seconds and extra memory in MiB; result and gradient go to ``path``."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 1, SIDE * SIDE, WIDTH, generator=generator).requires_grad_()
    attention = attend if form == "sorted" else attend_dense
    warm = torch.randn(3, 1, 32 * 32, WIDTH).requires_grad_()  # so that thread pools and their buffers are there
    attention(warm[0], warm[1], warm[2], RASTER_ORDERINGS[4], 32, 32).square().sum().backward()  # type: ignore[no-untyped-call]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(RUNS):
        tokens.grad = None
        start = time.perf_counter()
        result = attention(tokens[0], tokens[1], tokens[2], RASTER_ORDERINGS[4], SIDE, SIDE)
        result.square().sum().backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - start)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert tokens.grad is not None
    torch.save((result.detach(), tokens.grad), path)
    return {"seconds": round(statistics.median(times), 3), "extra_mib": round(extra, 1)}


def main(folder: Path) -> None:
    """Measure both, and compare what they say."""
    results, tensors = {}, {}
    for form in ("sorted", "dense"):
        path = folder / f"{form}.pt"
        command = [sys.executable, __file__, form, str(path)]
        results[form] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        tensors[form] = torch.load(path, weights_only=True)
    differences = [(ours - dense).abs().max().item() for ours, dense in zip(*tensors.values(), strict=True)]
    record(
        "attention",
        {
            "shape": {"tokens": SIDE * SIDE, "width": WIDTH, "heads": 1, "ordering": str(RASTER_ORDERINGS[4])},
            **results,
            "times_faster": round(results["dense"]["seconds"] / results["sorted"]["seconds"], 1),
            "times_less_extra_memory": round(results["dense"]["extra_mib"] / results["sorted"]["extra_mib"], 1),
            "max_difference": differences[0],
            "max_gradient_difference": differences[1],
        },
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run(*sys.argv[1:])))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
