import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import naive
from autoreg.cli import cli
from autoreg.errors import OutputError
from autoreg.network.figures import attention_mask, blind_spots, draw_figures, receptive_field
from autoreg.network.orderings import ORDERINGS, RASTER_ORDERINGS, ZIGZAG_ORDERINGS, Ordering

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [(f"o{number}", str(ordering)) for number, ordering in enumerate(ORDERINGS, start=1)]
every_ordering = pytest.mark.parametrize("ordering", ORDERINGS, ids=str)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.stem: path for path in draw_figures(tmp_path_factory.mktemp("figures"), overwrite=False)}


def panels(path: Path) -> Iterator[tuple[str, str, ET.Element]]:
    """Title, name and drawing of each panel."""
    for panel in ET.parse(path).iter(f"{SVG}g"):
        if panel.get("class") == "panel":
            title, name = (text.text or "" for text in panel.iter(f"{SVG}text"))
            yield title, name, panel


def cells(drawing: ET.Element, kind: str) -> set[tuple[int, int]]:
    """Row and column of the cells of a kind."""
    return {
        (int(row), col)
        for path in drawing.iter(f"{SVG}path")
        if path.get("class") == kind
        for start, row, length in re.findall(r"M(\d+) (\d+)h(\d+)v1", path.attrib["d"])
        for col in range(int(start), int(start) + int(length))
    }


def where(mask: Tensor) -> set[tuple[int, int]]:
    return {(row, col) for row, col in mask.nonzero().tolist()}


def current(drawing: ET.Element) -> tuple[int, int]:
    (mark,) = (circle for circle in drawing.iter(f"{SVG}circle") if circle.get("class") == "now")
    return int(float(mark.attrib["cy"])), int(float(mark.attrib["cx"]))


def test_four_small_figures_that_need_nothing_else(figures: dict[str, Path]) -> None:
    assert list(figures) == ["orderings", "attention_masks", "kernels", "receptive_fields"]
    for path in figures.values():
        text = path.read_text(encoding="utf-8")
        assert ET.fromstring(text).tag == f"{SVG}svg"
        assert len(text) < 150_000
        assert "href" not in text
        assert text.count("http") == 1  # the name space


def test_the_figures_are_the_same_each_time(figures: dict[str, Path], tmp_path: Path) -> None:
    for path in draw_figures(tmp_path, overwrite=False):
        assert path.read_bytes() == figures[path.stem].read_bytes()


def test_the_documentation_shows_them(figures: dict[str, Path]) -> None:
    """If this fails, run: autoreg orderings docs/figures --overwrite."""
    for path in figures.values():
        assert (Path(__file__).parents[2] / "docs" / "figures" / path.name).read_bytes() == path.read_bytes()


def test_every_scan_is_drawn_along_its_path(figures: dict[str, Path]) -> None:
    drawn = list(panels(figures["orderings"]))
    assert [(title, name) for title, name, _ in drawn] == NAMES
    for ordering, (_, _, drawing) in zip(ORDERINGS, drawn, strict=True):
        visits = naive.scan(ordering, 5, 5)
        shaded = [group for group in drawing.iter(f"{SVG}g") if "fill-opacity" in group.attrib]
        assert [cells(shade, "rank") for shade in shaded] == [{pixel} for pixel in visits]
        strokes = [path for path in drawing.iter(f"{SVG}path") if path.get("class") in ("scan", "jump")]
        steps = [step for stroke in strokes for step in itertools.pairwise(points(stroke))]
        assert sorted(steps) == sorted(itertools.pairwise(visits))
        assert points(strokes[-1])[-1] == visits[-1]  # the last arrow
        (start,) = drawing.iter(f"{SVG}circle")
        assert (float(start.attrib["cy"]) - 0.5, float(start.attrib["cx"]) - 0.5) == visits[0]


def points(stroke: ET.Element) -> list[tuple[int, int]]:
    numbers = [int(float(number) - 0.5) for number in re.findall(r"[\d.]+", stroke.attrib["d"])]
    return list(zip(numbers[1::2], numbers[::2], strict=True))


def test_an_attention_mask_hides_what_the_scan_visits_later(figures: dict[str, Path]) -> None:
    drawn = list(panels(figures["attention_masks"]))
    assert [(title, name) for title, name, _ in drawn] == NAMES
    for ordering, (_, _, drawing) in zip(ORDERINGS, drawn, strict=True):
        order = [3 * row + col for row, col in naive.scan(ordering, 3, 3)]
        visible = {(pixel, seen) for place, pixel in enumerate(order) for seen in order[: place + 1]}
        assert cells(drawing, "seen") == where(attention_mask(ordering, 3, 3)) == visible
        assert len(cells(drawing, "masked")) == 9 * 8 // 2
        assert not cells(drawing, "masked") & visible


def test_a_kernel_uses_no_pixel_that_comes_later(figures: dict[str, Path]) -> None:
    drawn = list(panels(figures["kernels"]))
    kinds = [(kind, f"{size} × {size}") for size in (3, 5) for kind in ("standard", "relaxed", "shifted")]
    assert [(title, name) for title, name, _ in drawn] == kinds + 2 * NAMES[:8]
    assert [len(cells(drawing, "masked")) for _, _, drawing in drawn] == [5, 4, 1, 13, 12, 2] + 8 * [1] + 8 * [2]
    sizes = 3 * [3] + 3 * [5] + 8 * [3] + 8 * [5]
    orderings = 6 * [ORDERINGS[0]] + 2 * list(RASTER_ORDERINGS)
    for (kind, _, drawing), size, ordering in zip(drawn, sizes, orderings, strict=True):
        visits = naive.scan(ordering, 2 * size - 1, 2 * size - 1)
        past = set(visits[: visits.index(current(drawing)) + (kind != "standard")])
        used, masked = cells(drawing, "seen"), cells(drawing, "masked")
        assert len(used | masked) == size**2
        assert used == (used | masked) & past


def test_the_receptive_fields_are_those_of_the_layers(figures: dict[str, Path]) -> None:
    drawn = list(panels(figures["receptive_fields"]))
    assert [(title, name) for title, name, _ in drawn[16:]] == NAMES
    steps = [(ordering, step) for ordering in ORDERINGS[:2] for step in range(1, 9)]
    for (ordering, step), (title, name, drawing) in zip(steps, drawn[:16], strict=True):
        assert current(drawing) == (8, 8)
        assert cells(drawing, "seen") == closed_form(ordering, 16, step)
        assert (title, name) == (f"step {step}", f"{len(cells(drawing, 'seen'))} pixels")
    for ordering, (_, _, drawing) in zip(ORDERINGS, drawn[16:], strict=True):
        visits = naive.scan(ordering, 16, 16)
        seen, blind = cells(drawing, "seen"), cells(drawing, "blind")
        assert not seen & blind
        assert seen | blind == set(visits[: visits.index((8, 8)) + 1])
        assert seen == closed_form(ordering, 16, 5)


def closed_form(ordering: Ordering, side: int, layers: int) -> set[tuple[int, int]]:
    """What the centre sees through kernels of 3 x 3; a zigzag shares the kernels of its raster scan."""
    raster = RASTER_ORDERINGS[ORDERINGS.index(ordering) % 8]
    here = naive.canonical(raster, side, side, (side // 2, side // 2))
    field = set()
    for pixel in itertools.product(range(side), range(side)):
        there = naive.canonical(raster, side, side, pixel)
        up, right = here[0] - there[0], there[1] - here[1]
        if 0 <= up <= 2 * layers and -layers <= right <= min(layers, up):
            field.add(pixel)
    return field


@every_ordering
def test_t4_five_convolutions_see_106_pixels(ordering: Ordering) -> None:
    assert receptive_field(ordering, 21, 5).sum() == 106
    assert where(receptive_field(ordering, 21, 0)) == {(10, 10)}


def test_t4_the_raster_orderings_together_see_341_pixels() -> None:
    union = torch.stack([receptive_field(ordering, 21, 5) for ordering in RASTER_ORDERINGS]).any(dim=0)
    assert union.sum() == 341
    assert union[5:16, 5:16].all()


def test_within_reach_a_stack_sees_what_a_raster_scan_and_its_zigzag_share() -> None:
    for raster, zigzag in zip(RASTER_ORDERINGS, ZIGZAG_ORDERINGS, strict=True):
        seen = receptive_field(raster, 15, 20)
        allowed = [attention_mask(ordering, 15, 15)[7 * 15 + 7].reshape(15, 15) for ordering in (raster, zigzag)]
        assert torch.equal(seen, allowed[0] & allowed[1])
        assert torch.equal(blind_spots(raster, seen), allowed[0] & ~allowed[1])
        assert torch.equal(blind_spots(zigzag, seen), allowed[1] & ~allowed[0])


def test_the_command_makes_the_folder_and_replaces_figures_only_when_told(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "figures"
    result = CliRunner().invoke(cli, ["orderings", str(folder)])
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(path) for path in draw_figures(folder, overwrite=True)]
    (folder / "kernels.svg").write_text("mine")
    (folder / "orderings.svg").unlink()
    refused = CliRunner().invoke(cli, ["orderings", str(folder)])
    assert isinstance(refused.exception, OutputError)
    assert "attention_masks.svg exists; use --overwrite to replace it, or name another folder" in str(refused.exception)
    assert (folder / "kernels.svg").read_text() == "mine"
    assert not (folder / "orderings.svg").exists()  # nothing is drawn in part
    assert CliRunner().invoke(cli, ["orderings", str(folder), "--overwrite"]).exit_code == 0
    assert len(list(folder.iterdir())) == 4
    assert "<svg" in (folder / "kernels.svg").read_text(encoding="utf-8")
    assert CliRunner().invoke(cli, ["orderings", "-h"]).output.count("autoreg orderings") == 2
