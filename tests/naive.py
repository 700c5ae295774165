"""Slow, obvious definitions that the fast code must match."""

import itertools

import numpy as np
import torch
from torch import Tensor

from autoreg.network.orderings import Ordering


def scan(ordering: Ordering, height: int, width: int) -> list[tuple[int, int]]:
    """The pixels in the order in which the scan visits them."""
    rows = list(range(height) if ordering.down else range(height - 1, -1, -1))
    cols = list(range(width) if ordering.right else range(width - 1, -1, -1))
    if ordering.kind == "zigzag":
        lines: list[list[tuple[int, int]]] = [[] for _ in range(height + width - 1)]
        for place, row in enumerate(rows):
            for other, col in enumerate(cols):
                lines[place + other].append((row, col))  # along a diagonal, the rows in their direction
        return [pixel for line in lines for pixel in (line if ordering.axis == "row" else line[::-1])]
    if ordering.axis == "row":
        return [(row, col) for row in rows for col in cols]
    return [(row, col) for col in cols for row in rows]


def canonical(ordering: Ordering, height: int, width: int, pixel: tuple[int, int]) -> tuple[int, int]:
    """Coordinates of a pixel in a frame turned and flipped so that the ordering is row by row, down and right."""
    row = pixel[0] if ordering.down else height - 1 - pixel[0]
    col = pixel[1] if ordering.right else width - 1 - pixel[1]
    return (row, col) if ordering.axis == "row" else (col, row)


def joint_at(probs_y: Tensor, probs_z: Tensor, down: int, right: int) -> Tensor:
    """One term of eq. 12: the sum over images and pixels of y_l z_{l+u}^T, zero outside."""
    classes, height, width = probs_y.shape[1:]
    joint = torch.zeros(classes, classes, dtype=probs_y.dtype)
    for row, col in itertools.product(range(height), range(width)):
        if 0 <= row + down < height and 0 <= col + right < width:
            joint = joint + probs_y[:, :, row, col].T @ probs_z[:, :, row + down, col + right]
    return joint


def joint_distribution(probs_y: Tensor, probs_z: Tensor, displacement_px: int) -> Tensor:
    """Eq. 12, term by term: the sum over displacements."""
    return torch.stack(joint_per_displacement(probs_y, probs_z, displacement_px)).sum(0)


def joint_per_displacement(probs_y: Tensor, probs_z: Tensor, displacement_px: int) -> list[Tensor]:
    """The terms, row by row."""
    reach = range(-displacement_px, displacement_px + 1)
    return [joint_at(probs_y, probs_z, down, right) for down, right in itertools.product(reach, reach)]


def mutual_information(joint: Tensor) -> Tensor:
    """Sum of P log(P / (P_y P_z)) over the entries that are not zero."""
    joint = joint / joint.sum()
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    used = joint > 0
    return (joint[used] * (joint[used] / product[used]).log()).sum()


def confusion(labels: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by label and true class, 255 ignored."""
    counts = np.zeros((classes, classes), np.int64)
    for label, true_class in zip(labels.ravel(), truth.ravel(), strict=True):
        if label != 255 and true_class != 255:
            counts[label, true_class] += 1
    return counts


def best_accuracy(counts: np.ndarray) -> float:
    """Accuracy of the best one-to-one matching, by trying them all."""
    size = len(counts)
    best = max(sum(counts[i, match[i]] for i in range(size)) for match in itertools.permutations(range(size)))
    return float(best / counts.sum())


def info_nce(phi_y: Tensor, phi_z: Tensor, anchors: Tensor, negatives: Tensor, displacement: int, scale: float) -> Tensor:
    """Eq. 14, term by term: one for each anchor and each displacement that stays inside the image."""
    images, _, height, width = phi_y.shape
    terms = []
    for image, anchor in itertools.product(range(images), range(anchors.shape[1])):
        row, col = divmod(int(anchors[image, anchor]), width)
        here = scale * phi_y[image, :, row, col]
        others = [
            here @ phi_z[other, :, int(cell) // width, int(cell) % width]
            for other in range(images)
            if other != image
            for cell in negatives[other]
        ]
        reach = range(-displacement, displacement + 1)
        for down, right in itertools.product(reach, reach):
            if 0 <= row + down < height and 0 <= col + right < width:
                score = here @ phi_z[image, :, row + down, col + right]
                scores = torch.stack([score, *others])
                terms.append(score - torch.log(scores.exp().sum() / len(scores)))
    return torch.stack(terms).mean()


def many_to_one_accuracy(mapping: np.ndarray, scoring: np.ndarray) -> float:
    """Each cluster stands for the first class that most of its mapping pixels have, one without mapping pixels for none."""
    right = 0
    for cluster, counts in enumerate(mapping):
        if sum(counts):
            right += scoring[cluster, list(counts).index(max(counts))]
    return float(right / scoring.sum())


def normalised_information(counts: np.ndarray) -> float:
    """Mutual information over the mean of the two entropies, pixel pair by pixel pair."""
    joint = counts / counts.sum()
    rows, cols = joint.sum(axis=1), joint.sum(axis=0)
    information = sum(
        joint[i, j] * np.log(joint[i, j] / (rows[i] * cols[j]))
        for i, j in itertools.product(range(len(rows)), range(len(cols)))
        if joint[i, j]
    )
    entropies = [-sum(share * np.log(share) for share in shares if share) for shares in (rows, cols)]
    return float(information / (sum(entropies) / 2))
