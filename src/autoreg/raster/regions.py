"""Regions: the connected areas of one label, found strip by strip.

Pixels are connected by their sides, not by their corners. A region of a strip is part of a larger one where it meets a pixel
of its label in the next strip; who reads the strips links the two.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.optional import require

Labels = NDArray[np.uint8]
Ids = NDArray[np.int64]


def find_regions(labels: Labels) -> tuple[Ids, int]:
    """Number the regions of ``labels`` (height, width), nodata among them.

    Returns:
        The number of each pixel's region (height, width), from 0, and how many there are.
    """
    starts = np.ones(labels.shape, np.bool_)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=starts[:, 1:])
    runs = (np.cumsum(starts, dtype=np.int64) - 1).reshape(labels.shape)
    # Two runs of a label lie on each other from the pixel on where the second of them starts.
    linked = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])
    numbers, count = connect(int(np.count_nonzero(starts)), runs[:-1][linked], runs[1:][linked])
    return numbers[runs], count


def connect(nodes: int, ones: NDArray[Any], others: NDArray[Any]) -> tuple[Ids, int]:
    """Number the connected parts of a graph.

    Args:
        nodes: how many; they are 0 .. ``nodes`` - 1.
        ones: a node of each edge (edges,).
        others: the other node of each edge (edges,).

    Returns:
        The number of each node's part (nodes,), from 0, and how many there are.
    """
    sparse, csgraph = require("scipy.sparse"), require("scipy.sparse.csgraph")
    edges = sparse.coo_array((np.ones(len(ones), np.bool_), (ones, others)), shape=(nodes, nodes))
    count, numbers = csgraph.connected_components(edges, directed=False)
    return numbers.astype(np.int64), int(count)
