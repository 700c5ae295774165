"""Write the tables of the documents from the records, between the marks ``<!-- table NAME -->`` and ``<!-- end -->``."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

from record import load

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "method.md")


def demo_table() -> str:
    """Accuracy on the demo's unseen landscape."""
    content = load("demo")
    rows = ["| seed | autoreg | K-means on colour | minutes |", "| --- | --- | --- | --- |"]
    for run in content["result"]["runs"]:
        accuracy, floor = run["accuracy_percent"], run["kmeans_on_colour_percent"]
        rows.append(f"| {run['seed']} | {accuracy:.1f} % | {floor:.1f} % | {run['seconds'] / 60:.1f} |")
    return "\n".join(rows)


def speed_table() -> str:
    """What was measured on the processor."""
    segment, loss, attention = load("segment"), load("loss"), load("attention")["result"]
    speed, losses = segment["result"], loss["result"]
    differing = sum(speed["differing_labels_by_tile_px"].values())
    sizes = ", ".join(speed["differing_labels_by_tile_px"])
    rows = [
        f"| {segment['machine']['processor']}, {segment['machine']['cores']} cores, no GPU | |",
        "| --- | --- |",
        f"| labels that depend on the tiling: tiles of {sizes} px against one pass, {speed['labels']} labels each "
        f"| {differing} |",
        "| `segment` with the demo's network, against its engine alone on preloaded tiles "
        f"| {speed['segment_mpx_s']} of {speed['engine_alone_mpx_s']} MPx/s ({100 * speed['ratio']:.0f} %) |",
        "| the training loss as box filter, against the convolution it equals, K 6, B 8, 200 px, T 10 "
        f"| {losses['collapsed']['ratio']} x faster |",
        f"| the same per displacement, by FFT | {losses['separate']['ratio']} x faster |",
        f"| attention under an ordering on {attention['shape']['tokens']} pixels, against a dense mask | "
        f"{attention['times_faster']} x faster, {attention['times_less_extra_memory']} x less memory |",
    ]
    return "\n".join(rows)


def ablation_table(name: str) -> str:
    """Configurations over seeds on a data set."""
    content = load(f"ablation_{name}")
    result = content["result"]
    common = ", ".join(f"{key} {value}" for key, value in result["common"].items())
    selections = ("final", "best_by_loss", "best_by_accuracy")
    rows = [
        f"**{name}**: {result['images']} images, seeds {', '.join(map(str, result['seeds']))}; most frequent class "
        f"{result['majority_percent']} %. All rows: {common}.",
        "",
        f"| configuration | {' | '.join(selections)} | mIoU, final |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        figures = [row[selection]["accuracy_percent"] for selection in selections] + [row["final"]["mean_iou_percent"]]
        cells = [f"{value['mean']:.1f} ± {value['deviation']:.1f}" for value in figures]
        rows.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo_table,
    "speed": speed_table,
    "ablation_dubai": functools.partial(ablation_table, "dubai"),
    "ablation_india_rgbn": functools.partial(ablation_table, "india_rgbn"),
}


def render(text: str) -> str:
    """``text`` with its tables made anew."""
    pattern = re.compile(r"<!-- table (\w+) -->\n.*?<!-- end -->", re.DOTALL)
    return pattern.sub(lambda match: f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->", text)


if __name__ == "__main__":
    for path in DOCUMENTS:
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
