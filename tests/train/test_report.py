"""The report: a page that stands alone, and says what the log and the network say."""

import dataclasses
import math
import re
import statistics
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import combinations, count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoreg.errors import CheckpointError, ConfigError, OutputError
from autoreg.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from autoreg.network.network import label_pixels
from autoreg.network.orderings import RASTER_ORDERINGS
from autoreg.train import BASELINES, Status, TrainConfig, load_config, train_network
from autoreg.train.log import log_path, read_log
from autoreg.train.recording import record_training
from autoreg.train.report import report_path, write_report
from autoreg.train.report.charts import Line, draw_lines, draw_shares
from autoreg.train.samples import examine
from conftest import SHORT, noise, save_raster
from forks import autoreg

VOID = {"meta", "img", "br", "hr", "link", "input"}


@dataclass
class Page(HTMLParser):
    """A page as its reader finds it: balanced, and nothing loaded from elsewhere."""

    content: str
    open: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        assert tag not in ("script", "link", "iframe", "object")
        assert not values.keys() & {"href", "srcset", "action", "onload", "onerror"}
        if "src" in values:
            assert tag == "img"
            assert re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*", values["src"])
            assert values["alt"]
            self.images.append(values["src"])
        if tag == "data":
            assert values["id"] not in self.figures
            self.figures[values["id"]] = values["value"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def read(path: Path) -> Page:
    content = path.read_text(encoding="utf-8")
    assert "http:" not in content
    assert "https:" not in content
    assert "url(" not in content
    assert "@import" not in content
    return Page(content)


@pytest.fixture(scope="module")
def trained(scenes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "c.pt"
    with record_training(output, {"rasters": len(scenes), "first_raster": scenes[0].name}) as record:
        record.finish(train_network(scenes, output, SHORT, observe=record.observe))
    write_report(output)
    return output


def test_its_figures_are_those_of_the_log_and_the_network(trained: Path) -> None:
    page, log, checkpoint = read(report_path(trained)), read_log(log_path(trained)), load_checkpoint(trained)
    assert log.last is not None
    assert log.last.mutual_information is not None
    assert float(page.figures["mutual_information"]) == log.last.mutual_information
    assert f"{log.last.mutual_information:.3f} nats" in page.text
    assert f"{100 * log.last.mutual_information / math.log(4):.0f} % of log 4 = 1.386" in page.text
    assert int(page.figures["clusters_used"]) == log.last.clusters_used
    speeds = [item.images_per_second for item in log.measurements if item.images_per_second is not None]
    assert float(page.figures["images_per_second"]) == statistics.median(speeds)
    for cluster, share in enumerate(log.last.usage):
        assert f"cluster {cluster}: {100 * share:.1f} %" in page.text
    seen = examine(checkpoint.build_network(), checkpoint.samples, RASTER_ORDERINGS)
    assert [int(page.figures[f"pixels_{cluster}"]) for cluster in range(4)] == seen.pixels.tolist()
    assert float(page.figures["confidence"]) == pytest.approx(seen.mean_confidence)
    for name in ("agreement_between", "agreement_with_none"):
        assert float(page.figures[name]) == pytest.approx(getattr(seen, name))
    assert len(page.images) == 3 * len(checkpoint.samples)
    assert "2 rasters like 0.tif" in page.text
    assert "4 bands (red, green, blue, nir) of uint8" in page.text
    for name in ("classes", "stride", "steps", "batch_size", "crop_px"):
        assert f"{name}{getattr(SHORT, name)}{getattr(TrainConfig(), name)}" in page.text
    assert "entropy_weight" not in page.text
    assert "autoreg export" in page.text


def test_the_numbers_are_what_they_say(trained: Path) -> None:
    checkpoint = load_checkpoint(trained)
    network, samples = checkpoint.build_network(), checkpoint.samples
    seen = examine(network, samples, RASTER_ORDERINGS[:3])
    valid = np.array(
        [[(pixel != network.mean.numpy()).any() for pixel in crop.reshape(4, -1).T] for crop in samples.numpy()]
    )
    assert valid.sum() == seen.valid.sum() < valid.size  # the scenes have a corner without data
    with torch.no_grad():
        labels = [
            label_pixels(network(samples, ordering), network.config.stride).numpy()[seen.valid]
            for ordering in (None, *RASTER_ORDERINGS[:3])
        ]
    assert (seen.labels[seen.valid] == labels[0]).mean() > 0.999
    pairs = [(one == other).mean() for one, other in combinations(labels[1:], 2)]
    assert seen.agreement_between == pytest.approx(np.mean(pairs), abs=1e-3)
    assert seen.agreement_with_none == pytest.approx(np.mean([(part == labels[0]).mean() for part in labels[1:]]), abs=1e-3)
    for cluster in range(4):
        pixels = samples.numpy().transpose(0, 2, 3, 1)[seen.labels == cluster]
        assert len(pixels) == seen.pixels[cluster]
        if len(pixels):
            assert seen.means[cluster] == pytest.approx(pixels.mean(axis=0), rel=1e-5)
    assert 0.25 <= seen.confidence[seen.valid].min() <= seen.confidence.max() <= 1
    assert not network.training


def test_names_from_files_are_text_and_not_html(scenes: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "<script>alert(1)<"
    config = dataclasses.replace(SHORT, steps=2)
    with record_training(output, {"rasters": 1, "first_raster": "<img src=http:x onerror=y>&.tif"}) as record:
        record.finish(train_network(scenes, output, config, observe=record.observe))
    checkpoint = load_checkpoint(output)
    save_checkpoint(dataclasses.replace(checkpoint, bands=("</p>", "\"'", "$title", "<b>")), output, overwrite=True)
    page = Page(write_report(output).read_text())
    assert "<script>alert(1)<" in page.text
    assert "like <img src=http:x onerror=y>&.tif" in page.text
    assert "(</p>, \"', $title, <b>)" in page.text
    assert "b" not in page.tags
    assert len(page.images) == 3 * len(checkpoint.samples)


def test_a_page_without_a_log_has_no_curves(trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.pt"
    alone.write_bytes(trained.read_bytes())
    page = read(write_report(alone))
    assert "There is no log beside the checkpoint" in page.text
    assert "mutual_information" not in page.figures
    assert "pixels_3" in page.figures
    assert "While it trained" not in page.text
    again = read(write_report(alone, tmp_path / "other.html", log=log_path(trained)))
    assert again.figures == read(report_path(trained)).figures
    with pytest.raises(OutputError, match=r"alone\.report\.html exists; use --overwrite"):
        write_report(alone)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        write_report(tmp_path / "none.pt")
    assert not (tmp_path / "none.report.html").exists()


def test_it_warns_of_what_went_wrong(tmp_path: Path) -> None:
    flat = save_raster(tmp_path / "flat.tif", np.full((2, 64, 64), 50, np.uint8))
    output = tmp_path / "c.pt"
    with record_training(output, {}) as record:
        stops = (step == 2 for step in count(1))
        status = train_network([flat], output, SHORT, observe=record.observe, should_stop=stops.__next__)
        record.finish(status)
    page = read(write_report(output))
    assert "The training has collapsed" in page.text
    assert "the checkpoint is of step 2 of 25" in page.text
    assert f"autoreg train SCENES… -o {output} --resume" in page.text
    assert "Hardly used: clusters" in page.text
    failed = tmp_path / "failed.jsonl"
    failed.write_text(log_path(output).read_text().replace('"outcome": "stopped"', '"outcome": "failed", "error": "<no>"'))
    assert "The training failed: <no>" in read(write_report(output, log=failed, overwrite=True)).text


def test_clusters_that_are_merged_in_the_end_are_told_apart_from_those_of_the_maps(
    scenes: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "c.pt"
    config = dataclasses.replace(SHORT, steps=12, merge=True, overclustering=8)
    with record_training(output, {}) as record:
        status = train_network(scenes, output, config, observe=record.observe)
        record.finish(status)
    page, log = read(write_report(output)), read_log(log_path(output))
    assert {len(item.usage) for item in log.measurements} == {32}
    assert "in the end, those of all are merged into those of the maps" in page.text
    assert "log 32 = 3.466" in page.text
    assert f"{status.clusters_used} of 4" in page.text
    assert "pixels_3" in page.figures
    assert "pixels_4" not in page.figures


@pytest.mark.parametrize("name", ["kmeans", "deepcluster"])
def test_any_objective_and_any_raster_has_a_page(tmp_path: Path, name: str) -> None:
    paths = [save_raster(tmp_path / "a.tif", noise(7, 64, 64).astype(np.uint16) * 100)]
    options = {"stride": 2, "batch_size": 4, "crop_px": 32, "classes": 3, "device": "cpu"}
    options |= {"steps": 12} if name == "deepcluster" else {}
    config, output = load_config(None, options, BASELINES[name]), tmp_path / "c.pt"
    seen: list[Status] = []
    with record_training(output, {}) as record:
        status = train_network(paths, output, config, progress=seen.append, observe=record.observe)
        record.finish(status)
    page, log = read(write_report(output)), read_log(log_path(output))
    assert log.last is not None
    assert log.last.usage == status.usage
    assert int(page.figures["clusters_used"]) == status.clusters_used
    assert ("mutual_information" in page.figures) == (name == "deepcluster")
    assert "by step" in page.content or name == "kmeans"
    assert "Share of the pixels in each cluster" not in page.text  # they are found when the training ends
    assert "log 3" not in page.text
    assert "band7" in page.text


class Backbone(nn.Module):
    """Half the size, by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 8, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 4, H, W) to (N, 8, H / 2, W / 2)."""
        return torch.relu(self.layer(x))


def test_a_backbone_of_the_users_own_has_to_be_given_again(scenes: list[Path], tmp_path: Path) -> None:
    output, backbone = tmp_path / "c.pt", Backbone()
    train_network(scenes, output, dataclasses.replace(SHORT, steps=2), extractor=backbone)
    with pytest.raises(ConfigError, match="give the same one again"):
        write_report(output)
    assert "pixels_0" in read(write_report(output, extractor=backbone)).figures


def test_curves_go_where_the_values_are() -> None:
    chart = draw_lines("title", [Line("a", [(1, 0.0), (50, 1.0), (100, 2.0)], "one")], ceiling=("most", 2.5))
    (path,) = re.findall(r'<path class="one" d="(M[\d. L]+)"/>', chart)
    assert path == "M10.0 1000.0L500.0 600.0L1000.0 200.0"
    assert '<path class="ceiling" d="M0.0 0.0L1000.0 0.0"/>' in chart
    chart = draw_shares("title", [(0, (0.25, 0.75)), (10, (1.0, 0.0))], [(1, 2, 3), (4, 5, 6)])
    first, second = re.findall(r'd="(M[\d. L]+)z"', chart)
    assert first == "M0.0 1000.0L1000.0 1000.0L1000.0 0.0L0.0 750.0"
    assert second == "M0.0 750.0L1000.0 0.0L1000.0 0.0L0.0 0.0"


@pytest.mark.parametrize("top", [0.0, 1e-7, 0.3, 1.0, 7.0, 4321.0, 1e12])
def test_an_axis_has_a_few_round_numbers(top: float) -> None:
    chart = draw_lines("title", [Line("a", [(0, 0.0), (10**9, top)], "one")])
    ticks = [float(tick) for tick in re.findall(r'class="y"[^>]*>([^<]+)<', chart)]
    assert 2 <= len(ticks) <= 7
    assert ticks[0] == 0
    assert ticks == sorted(ticks)
    assert ticks[-1] <= (top or 1) * (1 + 1e-6)
    shown = re.findall(r"(?:top|left):([-\d.]+)%", chart)
    assert all(0 <= float(place) <= 100 for place in shown)


def test_a_long_training_is_thinned_out() -> None:
    line = Line("a", [(step, float(step % 2)) for step in range(1, 100_001)], "one")
    chart = draw_lines("title", [line])
    (path,) = re.findall(r'<path class="one" d="(M[\d. L]+)"/>', chart)
    heights = [float(point.split()[1]) for point in path[1:].split("L")]
    assert 100 <= len(heights) <= 300
    assert heights == pytest.approx([500] * len(heights), abs=3)  # means of neighbours, not every n-th


def test_the_command_makes_it_anew(trained: Path, tmp_path: Path) -> None:
    refused = autoreg("report", trained)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "exists; use --overwrite" in refused.stderr
    made = autoreg("report", trained, "-o", tmp_path / "page.html")
    assert made.stdout == f"{tmp_path / 'page.html'}\n", made.stderr
    assert read(tmp_path / "page.html").figures == read(report_path(trained)).figures


def test_a_checkpoint_whose_clusters_are_not_found_yet_says_so(trained: Path, tmp_path: Path) -> None:
    checkpoint: Checkpoint = dataclasses.replace(load_checkpoint(trained), fitted=False)
    save_checkpoint(checkpoint, tmp_path / "c.pt", overwrite=True)
    assert "The clusters are found when the training ends" in read(write_report(tmp_path / "c.pt")).text
