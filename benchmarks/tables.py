"""Write the tables of the README from the records, between the marks ``<!-- table NAME -->`` and ``<!-- end -->``."""

import re
from pathlib import Path

from record import load

README = Path(__file__).parents[1] / "README.md"


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
    segment, loss = load("segment"), load("loss")
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
    ]
    return "\n".join(rows)


def render(text: str) -> str:
    """``text`` with its tables made anew."""
    for name, table in (("demo", demo_table()), ("speed", speed_table())):
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, table=table: match[1] + table + "\n" + match[2], text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{README.name} has {count} places for the table {name}, expected 1")
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
