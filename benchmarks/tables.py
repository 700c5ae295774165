"""Write the tables of the documents from the records, between the marks ``<!-- table NAME -->`` and ``<!-- end -->``."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import load

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("deployment", "method", "segment")))


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
    segment, memory = load("segment"), load("memory")["result"]
    speed = segment["result"]
    differing = sum(speed["differing_labels_by_tile_px"].values())
    sizes = ", ".join(speed["differing_labels_by_tile_px"])
    peaks = [square["peak_mb"] for square in memory["squares"].values()]
    shares = [f"{100 * found['of_a_tile_on_all_cores']:.0f} %" for found in speed["sizes"].values()]
    rows = [
        _machine_row(segment),
        "| --- | --- |",
        f"| labels that depend on the tiling: tiles of {sizes} px against one pass | {differing} |",
        f"| `segment` with networks of size {', '.join(speed['sizes'])}, against their engine alone on preloaded tiles "
        f"| {', '.join(str(found['segment_mpx_s']) for found in speed['sizes'].values())} MPx/s: "
        f"{', '.join(shares)} |",
        f"| peak memory on squares of {', '.join(memory['squares'])} px | {', '.join(f'{peak:.0f}' for peak in peaks)} MB |",
    ]
    return "\n".join(rows)


def segment_table() -> str:
    """What segmenting costs."""
    segment, memory = load("segment"), load("memory")["result"]
    result = segment["result"]
    rows = [_machine_row(segment), "| --- | --- |"]
    for size, found in result["sizes"].items():
        alone, lanes = found["engine_a_tile_on_all_cores_mpx_s"], found["engine_a_tile_on_each_core_mpx_s"]
        shares = (100 * found[f"of_a_tile_on_{cores}"] for cores in ("all_cores", "each_core"))
        rows += [
            f"| size {size}: the engine alone, a tile on all cores; a tile on each core | {alone}; {lanes} MPx/s |",
            f"| size {size}: from file to map | {found['segment_mpx_s']} MPx/s, "
            f"{' and '.join(f'{share:.0f} %' for share in shares)} of that |",
        ]
    rest = result["all_but_the_engine"]
    rows.append(f"| all but the engine, {rest['raster']} | {rest['segment_mpx_s']} MPx/s |")
    rows += [
        f"| the engine alone by core and batch, size {size} "
        f"| {'; '.join(f'{name}: {speed}' for name, speed in found.items())} MPx/s |"
        for size, found in result["tiles"].items()
    ]
    rows += [
        f"| peak memory of the process, size tiny at stride 2, {side} x {side} px | {found['peak_mb']} MB |"
        for side, found in memory["squares"].items()
    ]
    sparse = memory["sparse"]
    rows.append(
        f"| 250000 x 250000 px of which {sparse['with_data']} have data | {sparse['peak_mb']} MB, {sparse['seconds']} s |"
    )
    return "\n".join(rows)


def tools_table() -> str:
    """The same job by public tools."""
    content = load("tools")
    result = content["result"]
    rows = [
        f"{result['raster']}; median of {result['rounds']}; {content['machine']['processor']}, "
        f"{content['machine']['cores']} cores, no GPU.",
        "",
        "| tool | settings | MPx/s | CPU seconds | peak memory | wrong labels | more than 64 px from the edge |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        version = result["versions"].get(row["tool"], {}).get(row["tool"])
        tool = f"{row['tool']} {version}" if version else row["tool"]
        wrong = row["wrong"]
        rows.append(
            f"| {tool} | {row['settings']} | {row['mpx_s']} | {row['cpu_seconds']} "
            f"| {row['peak_memory_mb']} MB | {wrong['percent']} % | {wrong['percent_beyond_64_px_of_edges']} % |"
        )
    return "\n".join(rows)


def precision_table() -> str:
    """What each precision costs and keeps on each engine of the processor."""
    content = load("precision")
    machine, result = content["machine"], content["result"]
    rows = [
        f"{machine['processor']}, {machine['cores']} cores, no GPU; a tile of {result['tiles_px']} px on each core. Labels "
        f"are compared on {result['left_out']} images of {result['data']} that neither training nor ranges have seen.",
        "",
        "| network | precision | engine | ms per tile | against float32 of ONNX Runtime | share of sgemm | equal labels |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size, found in result["sizes"].items():
        rows += [
            f"| {size}, {found['gflop_per_tile']} GFLOP a tile | {row['precision']} "
            f"| {row['engine'].replace(' on the CPU', '')} | {row['ms']} | {row['times_fp32_of_onnx_runtime']} x "
            f"| {row['sgemm_percent']} % | {row['agreement_percent']} % |"
            for row in found["rows"]
        ]
    return "\n".join(rows)


def _machine_row(content: dict[str, Any]) -> str:
    return f"| {content['machine']['processor']}, {content['machine']['cores']} cores, no GPU | |"


def training_table() -> str:
    """What a training step costs, and how fast crops come from files."""
    train, data, losses, attention = load("train"), *(load(name)["result"] for name in ("data", "loss", "attention"))
    result = train["result"]
    options, naive, counted = result["options"], result["naive"], result["paper_counted_gib"]
    crops = [item["ours_crops_per_cpu_second"] for item in data["files"]]
    gains = [item["ratio"] for item in data["files"]]
    rows = [f"| {train['machine']['processor']}, {result['threads']} thread, no GPU | |", "| --- | --- |"]
    for size, masking in result["masking"].items():
        rows.append(f"| a masked training step, against the same unmasked, size {size} | {masking['masked']['ratio']} x |")
    rows += [
        "| the loss as box filter, against the convolution it equals, K 6, B 8, 200 px, T 10 "
        f"| {losses['collapsed']['ratio']} x faster |",
        f"| the same per displacement, by FFT | {losses['separate']['ratio']} x faster |",
        f"| attention under an ordering on {attention['shape']['tokens']} pixels, against a dense mask | "
        f"{attention['times_faster']} x faster, {attention['times_less_extra_memory']} x less memory |",
        "| a step with the loss and the mask as they are written down: naive loss, dense mask "
        f"| {naive['naive_loss']['ratio']} x, {naive['dense_mask']['ratio']} x |",
        *(
            f"| {name} | {options[option]['ratio']} x the time, {options[option]['peak_mib']} instead of "
            f"{options['plain']['peak_mib']} MiB |"
            for option, name in (("bf16", "`--precision bf16`"), ("checkpointing", "`--checkpointing`"))
        ),
        f"| `--compile`; channels first instead of last | {options['compile']['ratio']} x; "
        f"{options['channels_first']['ratio']} x |",
        f"| waiting for data | {result['waiting']['waiting_percent']} % of the time |",
        f"| memory of size `paper` with the settings of Potsdam: fp32; fp16 and checkpointing (counted, not run) | "
        f"{counted['fp32']} GiB; {counted['fp16 checkpointing']} GiB |",
        f"| crops of {data['crop_px']} px per CPU-second from tiled deflate files, against a window read for each | "
        f"{min(crops)} to {max(crops)}, {min(gains)} to {max(gains)} times as many |",
    ]
    return "\n".join(rows)


def training_gpu_table() -> str:
    """The same on a GPU."""
    content = load("train_gpu")
    result = content["result"]
    options, naive, step = result["options"], result["naive"], result["step"]
    rows = [f"| {content['machine']['gpu']}, {content['machine']['cores']} cores | |", "| --- | --- |"]
    rows += [
        f"| a masked training step of {step['batch']} crops of {step['crop_px']} px, against the same unmasked, size {size} "
        f"| {found['masked']['ratio']} x, {1000 * found['masked']['seconds']:.0f} ms |"
        for size, found in result["masking"].items()
    ]
    rows += [
        f"| {name}, size {step['size']} | {options[option]['ratio']} x the time, {options[option]['peak_mib']} instead of "
        f"{options['plain']['peak_mib']} MiB |"
        for option, name in (
            ("bf16", "`--precision bf16`"),
            ("fp16", "`--precision fp16`"),
            ("checkpointing", "`--checkpointing`"),
            ("compile", "`--compile`"),
        )
    ]
    rows += [
        "| a step with the loss and the mask as they are written down: naive loss, dense mask "
        f"| {naive['naive_loss']['ratio']} x, {naive['dense_mask']['ratio']} x |",
        f"| waiting for data | {result['waiting']['waiting_percent']} % of the time |",
    ]
    rows += [
        f"| a step of size `paper` with the settings of Potsdam, {name}"
        f"{f', on {limit:.0f} GiB of the GPU' if (limit := found['limit_gib']) else ''} "
        + (
            "| out of memory |"
            if "out_of_memory" in found
            else f"| {found['seconds']} s, {found['images_s']} crops/s, {found['peak_gib']} GiB |"
        )
        for name, found in result["paper"].items()
    ]
    return "\n".join(rows)


def cuda_table() -> str:
    """What ``autoreg selftest`` found of ONNX Runtime on a GPU."""
    content = load("selftest_cuda")
    rows = [
        "| model | labels as on the CPU | tiles against one pass | engine alone | from file to map | GPU memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for tested in content["models"]:
        differing, labels = (sum(check[name] for check in tested["tiling"]) for name in ("differing", "labels"))
        rows.append(
            f"| {tested['precision']} | {100 * tested['parity']['agreement']:.4f} % | {differing} of {labels} labels differ "
            f"| {tested['engine_mpx_s']:.1f} MPx/s | {tested['segment_mpx_s']:.1f} MPx/s "
            f"| {tested['gpu_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(rows)


def recipe_table(where: str = "") -> str:
    """The recipe of ``autoreg train`` beside what it should beat: on a CPU, or ``_gpu``, with larger networks."""
    names = ("dubai", "india_rgbn")
    records = {name: load(f"recipe_{name}{where}") for name in names}
    contents = {name: content["result"] for name, content in records.items()}
    device = records["dubai"]["machine"]["gpu"] or "a CPU"
    common = ", ".join(f"{key} {value}" for key, value in contents["dubai"]["common"].items() if key != "classes")
    seeds = ", ".join(map(str, contents["dubai"]["seeds"]))
    heads = [f"{name}, {images}" for name in names for images in ("trained on", "left out")]
    rows = [
        f"Accuracy / mIoU in percent, mean ± deviation over seeds {seeds}, each with another third of the scenes left out. "
        f"All rows: {common}; on {device}.",
        "",
        f"| | {' | '.join(heads)} |",
        f"| --- |{' --- |' * len(heads)}",
    ]
    for index, row in enumerate(contents["dubai"]["rows"]):
        cells = []
        for name in names:
            other = contents[name]["rows"][index]
            assert other["name"] == row["name"]
            for images in ("final", "left_out"):
                scores = [other[images][f"{score}_percent"] for score in ("accuracy", "mean_iou")]
                cells.append(" / ".join(f"{score['mean']:.1f} ± {score['deviation']:.1f}" for score in scores))
        rows.append(f"| {row['name']} | {' | '.join(cells)} |")
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
    "segment": segment_table,
    "tools": tools_table,
    "precision": precision_table,
    "training": training_table,
    "training_gpu": training_gpu_table,
    "cuda": cuda_table,
    "recipe": recipe_table,
    "recipe_gpu": functools.partial(recipe_table, "_gpu"),
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
