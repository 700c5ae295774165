from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoreg.evaluation import score
from autoreg.train import BASELINES, Status
from autoreg.train.study import Moment, Row, run_study

COMMON = {
    "classes": 5,
    "stride": 2,
    "steps": 6,
    "batch_size": 4,
    "crop_px": 32,
    "displacement_px": 2,
    "device": "cpu",
}


def test_a_study_scores_every_configuration_with_every_seed(scenes: list[Path]) -> None:
    pairs = [(path, path.with_name(f"truth{index}.tif")) for index, path in enumerate(scenes)]
    seen: list[tuple[str, int, int]] = []

    def progress(name: str, seed: int, status: Status) -> None:
        seen.append((name, seed, status.step))

    configurations: dict[str, dict[str, Any]] = {
        "AC": {"merge": False, "overclustering": 0},
        "K-means": BASELINES["kmeans"],
        "ARL": {"objective": "representation"},
    }
    rows = run_study(pairs, configurations, common=COMMON, seeds=[0, 1], moments=3, progress=progress)
    assert [row.name for row in rows] == ["AC", "K-means", "ARL"]
    assert [[moment.step for moment in run] for run in rows[0].runs] == [[2, 4, 6]] * 2
    assert [[moment.step for moment in run] for run in rows[1].runs] == [[0]] * 2
    assert [[moment.step for moment in run] for run in rows[2].runs] == [[6]] * 2
    assert {(name, seed) for name, seed, _ in seen} == {(row.name, seed) for row in rows for seed in (0, 1)}
    for row in rows:
        summary = row.summary()
        assert summary["best_by_accuracy"]["accuracy_percent"]["mean"] >= summary["final"]["accuracy_percent"]["mean"]
        assert 0 < summary["final"]["accuracy_percent"]["mean"] < 100


def test_clusters_can_be_mapped_on_other_images(scenes: list[Path]) -> None:
    pairs = [(path, path.with_name(f"truth{index}.tif")) for index, path in enumerate(scenes)]
    (row,) = run_study(
        pairs[:1],
        {"K-means": BASELINES["kmeans"]},
        common=COMMON | {"classes": 9},
        seeds=[0],
        mapping=pairs[1:],
        matching="many-to-one",
    )
    matching = row.runs[0][0].evaluation.matching
    assert len(set(matching)) < len(matching)  # several clusters share a class


def test_selections_take_the_last_the_most_informed_and_the_most_accurate() -> None:
    moments = [
        Moment(step, information, score(np.array([[right, 100 - right], [0, 0]]), [0, 1]))
        for step, information, right in ((1, 0.1, 90), (2, 0.9, 20), (3, 0.5, 50))
    ]
    row = Row("x", {}, [moments, moments])
    chosen = {name: [picked.step for picked in row.select(name)] for name in ("final", "best_by_loss", "best_by_accuracy")}
    assert chosen == {"final": [3, 3], "best_by_loss": [2, 2], "best_by_accuracy": [1, 1]}
    figures = row.summary()["best_by_accuracy"]["accuracy_percent"]
    assert figures == {"mean": pytest.approx(90), "deviation": 0.0, "by_seed": [90.0, 90.0]}
