"""The log of a training: what it says, and that neither a crash nor a full disk costs more than a line."""

import dataclasses
import json
import logging
import math
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from autoreg.errors import ConfigError, OutputError
from autoreg.network.config import NetworkConfig
from autoreg.network.network import Network
from autoreg.train import Status, TrainConfig, resume_training, train_network
from autoreg.train.log import Measurement, TrainingLog, log_path, read_log
from autoreg.train.recording import record_training

SHORT = TrainConfig(classes=4, stride=2, steps=25, batch_size=4, crop_px=32, displacement_px=2, device="cpu")
TIMES = ("time", "seconds", "images_per_second")
"""What no two trainings share."""


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in TIMES}


def network() -> Network:
    return Network(NetworkConfig(2, 3, 16, (16,), 2))


def status(step: int, **others: Any) -> Status:
    return dataclasses.replace(Status(step, 100, 0.5, (0.5, 0.25, 0.25), images=8, entropies=(1.0, 0.75)), **others)


def test_it_says_how_a_training_goes(scenes: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "c.pt"
    seen: list[Status] = []
    about = {"rasters": 2, "settings": dataclasses.asdict(SHORT)}
    with record_training(output, about) as record:
        record.finish(train_network(scenes, output, SHORT, progress=seen.append, observe=record.observe))
    start, *steps, end = lines(tmp_path / "c.log.jsonl")
    assert (start["event"], start["rasters"], start["settings"]["classes"]) == ("start", 2, 4)
    assert (start["device"], start["torch"]) == ("cpu", torch.__version__)
    assert [line["step"] for line in steps] == [1, 10, 20, 25]
    for line in steps:
        told = seen[line["step"] - 1]
        assert line["event"] == "step"
        assert line["mutual_information"] == told.mutual_information
        assert line["objective"] == told.objective
        assert (line["entropy_y"], line["entropy_z"]) == told.entropies
        assert tuple(line["usage"]) == told.usage
        assert (line["clusters_used"], line["learning_rate"]) == (told.clusters_used, SHORT.learning_rate)
        assert line["peak_memory_mib"] is None
        # IIC's weighting of the entropies, and the bounds of a mutual information.
        entropies = line["entropy_y"] + line["entropy_z"]
        assert line["objective"] == pytest.approx(line["mutual_information"] + 0.5 * entropies)
        assert 0 <= line["mutual_information"] <= min(told.entropies or ()) <= math.log(4 * SHORT.overclustering)
    assert steps[0]["images_per_second"] is None
    assert all(line["images_per_second"] > 0 for line in steps[1:])
    assert [line["seconds"] for line in steps] == sorted(line["seconds"] for line in steps)
    assert (end["event"], end["outcome"], end["step"], end["collapsed"]) == ("end", "finished", 25, False)
    content = read_log(log_path(output))
    assert [measurement.step for measurement in content.measurements] == [1, 10, 20, 25]
    assert content.last is not None
    assert content.last.mutual_information == seen[-1].mutual_information


def test_a_log_that_goes_on_is_that_of_one_training(scenes: list[Path], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    with record_training(whole, {}) as record:
        record.finish(train_network(scenes, whole, SHORT, observe=record.observe))
    with record_training(parts, {}) as record:
        stops = (step == 13 for step in count(1))
        record.finish(train_network(scenes, parts, SHORT, observe=record.observe, should_stop=stops.__next__))
    assert lines(log_path(parts))[-1]["outcome"] == "stopped"
    kept = lines(log_path(parts))[:3]
    # As if a training that was resumed had gone on to step 20, and been killed in the midst of a line.
    with log_path(parts).open("a") as file:
        for line in ({**kept[-1], "event": "resume", "step": 13}, {**kept[-1], "step": 20, "mutual_information": 9.0}):
            file.write(json.dumps(line) + "\n")
        file.write('{"event": "step", "step": 2')
    with record_training(parts, {}, resume=True) as record:
        record.finish(resume_training(scenes, parts, observe=record.observe))
    resumed = lines(log_path(parts))
    assert resumed[:3] == kept
    assert (resumed[3]["event"], resumed[3]["step"]) == ("resume", 13)
    expected = [without_times(line) for line in lines(log_path(whole))]
    assert [without_times(line) for line in resumed if line["event"] != "resume"] == expected
    seconds = [line["seconds"] for line in resumed if line["event"] == "step"]
    assert seconds == sorted(seconds)


def test_each_line_is_on_the_disk_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "c.log.jsonl"
    log = TrainingLog(path, {})
    for step in range(1, 11):
        log.observe(network(), status(step))
    assert [line["event"] for line in lines(path)] == ["start", "step", "step"]  # as SIGKILL would leave it
    content = read_log(path)
    assert content.end is None
    assert content.last == content.measurements[-1]
    assert content.last.step == 10
    log.__exit__(None, None, None)


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "c.log.jsonl"
    with TrainingLog(path, {}) as log:
        log.observe(network(), status(1, mutual_information=math.nan, objective=-math.inf, usage=(math.nan,)))
    (measurement,) = read_log(path).measurements
    assert measurement == Measurement(1, measurement.seconds, entropy_y=1.0, entropy_z=0.75)
    assert '"mutual_information": null' in path.read_text()


def test_a_failure_is_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "c.log.jsonl"
    with pytest.raises(ConfigError), TrainingLog(path, {}) as log:
        log.observe(network(), status(1))
        raise ConfigError("the training diverged")
    end = lines(path)[-1]
    assert (end["event"], end["outcome"], end["error"], end["step"]) == ("end", "failed", "the training diverged", 1)


def test_a_training_that_never_starts_leaves_the_earlier_log(scenes: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "c.pt"
    log_path(output).write_text("precious\n")
    with pytest.raises(OutputError, match=r"c\.log\.jsonl exists; use --overwrite"), record_training(output, {}):
        raise AssertionError
    wrong = dataclasses.replace(SHORT, device="toaster")
    with pytest.raises(ConfigError, match="toaster"), record_training(output, {}, overwrite=True) as record:
        train_network(scenes, output, wrong, observe=record.observe)
    assert log_path(output).read_text() == "precious\n"
    with record_training(output, {}, overwrite=True) as record:
        record.observe(network(), status(1))
    assert [line["event"] for line in lines(log_path(output))] == ["start", "step"]


def test_a_log_that_cannot_be_written_does_not_stop_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with caplog.at_level(logging.WARNING, logger="autoreg"), TrainingLog(gone / "c.log.jsonl", {}) as log:
        gone.rmdir()
        log.observe(network(), status(1))
        log.observe(network(), status(10))
        log.finish(status(100))
    (record,) = caplog.records
    assert "the training goes on without its log" in record.getMessage()


def test_a_full_disk_does_not_stop_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.log.jsonl"
    log = TrainingLog(path, {})
    with caplog.at_level(logging.WARNING, logger="autoreg"), log:
        log.observe(network(), status(1))
        with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
            assert log._file
            log._file.close()
            log._file = full
            log.observe(network(), status(10))
            log.observe(network(), status(20))
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()
    assert [line["step"] for line in lines(path)] == [0, 1]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[" * 100_000,
        "[1]",
        '"step"',
        '{"event": "step"}',
        '{"event": "end", "step": 1}',
        '{"event": "cake"}',
        "\x00\xff",
        "1" * 5000,
    ],
)
def test_lines_that_are_none_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.log.jsonl"
    with TrainingLog(path, {"rasters": 3}) as log:
        log.observe(network(), status(1))
    path.write_text(path.read_text() + line + "\n", encoding="latin-1")
    content = read_log(path)
    assert content.about["rasters"] == 3
    assert len(content.measurements) == 1
    assert content.end is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -1),
        ("step", 1.5),
        ("step", True),
        ("step", 10**400),
        ("seconds", None),
        ("objective", "<b>"),
        ("objective", 10**400),
        ("usage", [None]),
        ("usage", 3),
    ],
)
def test_values_that_no_training_writes_are_left_out(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "c.log.jsonl"
    with TrainingLog(path, {}) as log:
        log.observe(network(), status(1))
    _, step = lines(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in (step, step | {name: value})))
    assert len(read_log(path).measurements) == 1


def test_a_missing_log_is_an_empty_one(tmp_path: Path) -> None:
    content = read_log(tmp_path / "none.log.jsonl")
    assert (content.about, content.measurements, content.end, content.last) == ({}, (), None, None)


def test_trainings_in_one_folder_have_logs_of_their_own() -> None:
    assert log_path(Path("runs/a.pt")) == Path("runs/a.log.jsonl")
    assert log_path(Path("runs/v1.2")) == Path("runs/v1.2.log.jsonl")
