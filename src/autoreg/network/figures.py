"""The paper's figures of the orderings, drawn from the code that trains: what they show is what the network does."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from autoreg.errors import OutputError
from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.orderings import MASKINGS, ORDERINGS, RASTER_ORDERINGS, ZIGZAG_ORDERINGS, Masking, Ordering
from autoreg.output import atomic_output

# Okabe and Ito's blue and orange differ for every kind of colour vision, and in grey. The background is part of the
# picture, so that it reads on a dark page.
_STYLE = (
    "text{font:10px 'Helvetica Neue',Helvetica,Arial,'Liberation Sans',sans-serif;fill:#24292f}"
    ".heading{font-size:12px;font-weight:bold}.title{font-weight:bold}.title,.name{text-anchor:middle}.name{fill:#57606a}"
    ".paper{fill:#fff}.pixels{fill:#eceff1}.seen,.rank{fill:#0072b2}.masked{fill:#b0b7be}.blind{fill:#e69f00}"
    ".lines{stroke:#fff;stroke-width:.08}.now{fill:#fff;stroke:#24292f;stroke-width:.16}.start{fill:#24292f}"
    ".kernel,.scan,.jump{fill:none;stroke:#24292f}.kernel{stroke-width:.16}"
    ".scan{stroke-width:.09;marker-end:url(#arrow)}.jump{stroke-width:.04;stroke-dasharray:.12}"
)
_ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 4 4" refX="2.4" refY="2" markerWidth="4" markerHeight="4" orient="auto">'
    '<path fill="#24292f" d="M0 0L4 2L0 4z"/></marker></defs>'
)
_NOW = '<circle class="now" cx="{0}" cy="{0}" r=".34"/>'
_MARGIN = 24


def draw_figures(folder: Path, *, overwrite: bool) -> list[Path]:
    """Draw the scan orders, attention masks, kernels and receptive fields as SVG.

    Args:
        folder: where to write; it must exist.
        overwrite: replace the figures that are there.

    Returns:
        The files: ``orderings.svg`` (paper, Figs. 2 and 4), ``attention_masks.svg`` (Fig. 5), ``kernels.svg`` (Fig. 3) and
        ``receptive_fields.svg`` (Figs. 6, 9 and 10).

    Raises:
        OutputError: a figure is there already, or cannot be written.
    """
    drawers = {
        "orderings": _draw_orderings,
        "attention_masks": _draw_attention_masks,
        "kernels": _draw_kernels,
        "receptive_fields": _draw_receptive_fields,
    }
    paths = {folder / f"{name}.svg": draw for name, draw in drawers.items()}
    present = [path for path in paths if path.exists()]
    if present and not overwrite:
        raise OutputError(f"{present[0]} exists; use --overwrite to replace it, or name another folder")
    for path, draw in paths.items():
        with atomic_output(path, overwrite=overwrite) as temporary:
            temporary.write_text(str(draw()), encoding="utf-8")
    return list(paths)


def attention_mask(ordering: Ordering, height: int, width: int) -> Tensor:
    """Which pixels (columns) each pixel (rows) may attend to: bool (height * width, height * width)."""
    rank = ordering.rank(height, width).flatten()
    return rank[None, :] <= rank[:, None]


def receptive_field(ordering: Ordering, side: int, layers: int, kernel_size: int = 3) -> Tensor:
    """The pixels that the centre pixel sees after some masked convolutions: bool (side, side).

    They are where its gradient is not zero. All weights are one, so the gradient counts the paths from a pixel to the
    centre, and nothing cancels.
    """
    conv = MaskedConv2d(1, 1, kernel_size).double()
    torch.nn.init.ones_(conv.weight)
    image = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    signal: Tensor = image
    for _ in range(layers):
        signal = conv(signal, ordering)
    (gradient,) = torch.autograd.grad(signal[0, 0, side // 2, side // 2], image)
    return gradient[0, 0] > 0


def blind_spots(ordering: Ordering, seen: Tensor) -> Tensor:
    """What the centre pixel may see but is not among ``seen``, so what an attention block adds: bool (side, side)."""
    rank = ordering.rank(*seen.shape)
    return (rank <= rank[len(seen) // 2, len(seen) // 2]) & ~seen


@dataclass
class _Figure:
    """A picture that grows downwards, by headings, rows of panels and a legend."""

    columns: int
    panel_px: int
    parts: list[str] = field(default_factory=list)
    height: int = _MARGIN

    @property
    def pitch(self) -> int:
        return max(self.panel_px, 108) + 16

    def heading(self, words: str) -> None:
        self.parts.append(_text("heading", _MARGIN, self.height + 8, words))
        self.height += 26

    def panels(self, panels: Iterable[tuple[str, str, str, int]]) -> None:
        """Set panels, each a title, a name, a drawing in units of pixels of the image, and its side, in rows."""
        for index, (title, name, drawing, side) in enumerate(panels):
            row, col = divmod(index, self.columns)
            left = _MARGIN + col * self.pitch + (self.pitch - self.panel_px) // 2
            top = self.height + row * (self.panel_px + 44)
            label = _text("title", self.panel_px / 2, 8, title) + _text("name", self.panel_px / 2, 21, name)
            drawing = f'<g transform="translate(0 28) scale({self.panel_px / side:g})">{drawing}</g>'
            self.parts.append(f'<g class="panel" transform="translate({left} {top})">{label}{drawing}</g>')
        self.height = top + 28 + self.panel_px + _MARGIN

    def legend(self, **entries: str) -> None:
        """Explain classes of cells; ``now`` is the mark of the current pixel."""
        left = _MARGIN
        for kind, words in entries.items():
            swatch = _NOW.format(0.5) if kind == "now" else f'<rect class="{kind}" width="1" height="1"/>'
            self.parts.append(f'<g transform="translate({left} {self.height}) scale(12)">{swatch}</g>')
            self.parts.append(_text("legend", left + 18, self.height + 10, words))
            left += 40 + 5 * len(words)
        self.height += 12 + _MARGIN

    def __str__(self) -> str:
        width, height = self.columns * self.pitch + 2 * _MARGIN, self.height
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        paper = f'<style>{_STYLE}</style>{_ARROW}<rect class="paper" width="{width}" height="{height}" rx="6"/>'
        return "\n".join([head, paper, *self.parts, "</svg>\n"])


def _draw_orderings() -> _Figure:
    figure = _Figure(columns=4, panel_px=110)
    for words, orderings in (("Raster scans", RASTER_ORDERINGS), ("Zigzag scans", ZIGZAG_ORDERINGS)):
        figure.heading(f"{words}: from the dot to the last arrow, and the darker the later")
        figure.panels((*_names(ordering), _scan(ordering, 5), 5) for ordering in orderings)
    return figure


def _scan(ordering: Ordering, side: int) -> str:
    """The path of the scan over its pixels, which are shaded by rank."""
    rank = ordering.rank(side, side)
    shades = "".join(
        f'<g fill-opacity="{0.04 + 0.6 * index / (side * side - 1):.2f}">{_cells("rank", rank == index)}</g>'
        for index in range(side * side)
    )
    points = [(index % side + 0.5, index // side + 0.5) for index in rank.flatten().argsort().tolist()]
    steps = [(end[0] - start[0], end[1] - start[1]) for start, end in pairwise(points)]
    (along, _), *_ = Counter(steps).most_common(1)
    lines, jumps = [[points[0]]], []
    for (start, end), step in zip(pairwise(points), steps, strict=True):
        if step == along:
            lines[-1].append(end)
        else:
            jumps.append((start, end))
            lines.append([end])
    if len(lines[-1]) == 1:  # the last diagonal is one pixel: the arrow shows how the scan gets there
        lines[-1] = [*jumps.pop()]
    lines = [line for line in lines if len(line) > 1]
    strokes = [*(_stroke("jump", jump) for jump in jumps), *(_stroke("scan", line) for line in lines)]
    dot = '<circle class="start" cx="{:g}" cy="{:g}" r=".15"/>'.format(*points[0])
    return _grid(side, shades) + "".join(strokes) + dot


def _draw_attention_masks() -> _Figure:
    figure = _Figure(columns=4, panel_px=126)
    figure.heading("Attention masks of 3 × 3 pixels, numbered row by row: who looks (down) at whom (across)")
    masks = ((ordering, attention_mask(ordering, 3, 3)) for ordering in ORDERINGS)
    figure.panels(
        (*_names(ordering), _grid(9, _cells("seen", mask) + _cells("masked", ~mask)), 9) for ordering, mask in masks
    )
    figure.legend(seen="visible: visited no later", masked="masked: visited later")
    return figure


def _draw_kernels() -> _Figure:
    figure = _Figure(columns=8, panel_px=90)
    figure.heading("Three ways to mask a kernel of 3 × 3 and of 5 × 5 under o1")
    figure.panels(
        (masking, f"{size} × {size}", _kernel(RASTER_ORDERINGS[0], size, masking), 2 * size - 1)
        for size in (3, 5)
        for masking in reversed(MASKINGS)
    )
    for size in (3, 5):
        figure.heading(f"Shifted kernels of {size} × {size}")
        figure.panels((*_names(ordering), _kernel(ordering, size, "shifted"), 2 * size - 1) for ordering in RASTER_ORDERINGS)
    figure.legend(seen="weight in use", masked="masked weight", now="current pixel")
    return figure


def _kernel(ordering: Ordering, size: int, masking: Masking) -> str:
    """The kernel where it lies around the current pixel, in the middle of a field that holds it under every ordering."""
    left, _, top, _ = ordering.padding(size, masking)
    centre = size - 1
    taps = ordering.kernel_mask(size, masking)
    around = (centre - left, left, centre - top, top)
    cells = _cells("seen", functional.pad(taps, around)) + _cells("masked", functional.pad(~taps, around))
    outline = f'<path class="kernel" d="M{centre - left} {centre - top}h{size}v{size}h-{size}z"/>'
    return _grid(2 * size - 1, cells) + outline + _NOW.format(centre + 0.5)


def _draw_receptive_fields() -> _Figure:
    figure = _Figure(columns=8, panel_px=112)
    for ordering in RASTER_ORDERINGS[:2]:
        figure.heading(f"{' '.join(_names(ordering))}: what the centre pixel sees after 1 to 8 masked 3 × 3 convolutions")
        fields = [receptive_field(ordering, 16, step) for step in range(1, 9)]
        figure.panels((f"step {step}", f"{seen.sum()} pixels", _field(seen), 16) for step, seen in enumerate(fields, 1))
    figure.heading("Every ordering: what 5 convolutions see, and the blind spots that an attention block opens")
    every = ((ordering, receptive_field(ordering, 16, 5)) for ordering in ORDERINGS)
    figure.panels((*_names(ordering), _field(seen, blind_spots(ordering, seen)), 16) for ordering, seen in every)
    figure.legend(seen="seen by the convolutions", blind="added by attention: the blind spots", now="current pixel")
    return figure


def _field(seen: Tensor, blind: Tensor | None = None) -> str:
    cells = _cells("seen", seen) + ("" if blind is None else _cells("blind", blind))
    return _grid(len(seen), cells) + _NOW.format(len(seen) // 2 + 0.5)


def _names(ordering: Ordering) -> tuple[str, str]:
    return f"o{ORDERINGS.index(ordering) + 1}", str(ordering)


def _grid(side: int, cells: str) -> str:
    """Cells on a square of pixels, parted by lines."""
    lines = "".join(f"M{line} 0v{side}M0 {line}h{side}" for line in range(1, side))
    return f'<rect class="pixels" width="{side}" height="{side}"/>{cells}<path class="lines" d="{lines}"/>'


def _cells(kind: str, mask: Tensor) -> str:
    """The cells where ``mask`` is True as one path, a rectangle for each run in a row."""
    runs = []
    for row, line in enumerate(mask.tolist()):
        edges = [col for col, (before, after) in enumerate(pairwise([False, *line, False])) if before != after]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            runs.append(f"M{start} {row}h{end - start}v1h-{end - start}z")
    return f'<path class="{kind}" d="{"".join(runs)}"/>'


def _stroke(kind: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<path class="{kind}" d="M{"L".join(f"{x:g} {y:g}" for x, y in points)}"/>'


def _text(kind: str, x: float, y: float, words: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'
