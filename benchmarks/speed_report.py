"""The results of `benchmarks/speed.py` as Markdown, as a chart, and held against the bars that were set."""

from pathlib import Path
from statistics import median

from speed_rows import DIFFUSERS, OURS

SHOWN_OPERATORS = 16


def ratio(seconds: dict, reference: dict) -> float:
    """The median of the ratios of the rounds in which both were measured."""
    return median(value / reference[number] for number, value in seconds.items())


def gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def timed(table: dict, side: str, dtype: str | None = None) -> list[dict]:
    rows = [row for row in table["rows"] if row["side"] == side and "seconds" in row]
    return [row for row in rows if dtype in (None, row["dtype"])]


def named(rows: list[dict], name: str) -> dict | None:
    return next((row for row in rows if row["name"] == name), None)


def fastest(rows: list[dict]) -> dict | None:
    return min(rows, key=lambda row: row["to_ours"], default=None)


def bar(text: str, ours: dict | None, theirs: dict | None, bound: float) -> dict:
    """Rows of different batches are compared by way of the row that was in both."""
    if ours is None or theirs is None:
        return {"bar": text, "bound": bound, "value": None, "row": None}
    value = ours["to_ours"] / theirs["to_ours"]
    return {"bar": text, "bound": bound, "value": value, "row": ours["name"]}


def bars(tables: list[dict], device: str) -> list[dict]:
    """What was set out to be reached."""
    found, by_name = [], {table["name"]: table for table in tables}
    for name, table in by_name.items():
        for row in ("original", "fp16") if device != "cpu" else ("original",):
            if not name.startswith("unet"):
                continue
            ours, theirs = named(timed(table, OURS), row), named(timed(table, DIFFUSERS), row)
            found.append(bar(f"{table['title']}: eager ({row}) at most 1.0 of diffusers eager", ours, theirs, 1.0))
    if "unet" in by_name and device == "cpu":
        table = by_name["unet"]
        for dtype, eager, bound in (("float32", "original", 0.95), ("bfloat16", "bfloat16", 0.80)):
            ours, theirs = timed(table, OURS, dtype), timed(table, DIFFUSERS, dtype)
            found.append(bar(f"best mode in {dtype}, of diffusers eager", fastest(ours), named(theirs, eager), bound))
            compiled = fastest([row for row in theirs if "compile" in row["name"]])
            found.append(bar(f"best mode in {dtype}, of diffusers + torch.compile", fastest(ours), compiled, 0.95))
        found += regional_bars(timed(table, OURS, "float32"))
    elif "unet" in by_name:
        ours, theirs = timed(by_name["unet"], OURS, "float16"), timed(by_name["unet"], DIFFUSERS, "float16")
        text = "best mode without graphs at least 1.3 times as fast as diffusers eager, fp16"
        found.append(bar(text, fastest(ours), named(theirs, "fp16"), 1 / 1.3))
    if "vae" in by_name and device == "cpu":
        ours, theirs = timed(by_name["vae"], OURS), timed(by_name["vae"], DIFFUSERS)
        text = "VAE decode at most 0.85 of diffusers eager"
        found.append(bar(f"{text}: eager", named(ours, "original"), named(theirs, "original"), 0.85))
        found.append(bar(f"{text}: best mode", fastest(ours), named(theirs, "original"), 0.85))
    return found


WHOLE = "compiled, default, channels_last"
REGIONAL = "compiled, default, repeated blocks, channels_last"


def regional_bars(rows: list[dict]) -> list[dict]:
    """Blocks that are compiled once for all twins, against the whole model."""
    whole, regional = named(rows, WHOLE), named(rows, REGIONAL)
    text = "repeated blocks at most 1.05 times the time of the whole model compiled"
    found = [bar(text, regional, whole, 1.05)]
    both = whole and regional
    value = regional["compile_seconds"] / whole["compile_seconds"] if both else None
    text = "repeated blocks compiled in at most a fifth of the whole model's time"
    return [*found, {"bar": text, "bound": 0.2, "value": value, "row": REGIONAL if both else None}]


def verdict(entry: dict) -> str:
    if entry["value"] is None:
        return f"- not measured: {entry['bar']}"
    met = "met" if entry["value"] <= entry["bound"] else "**missed**"
    return f"- {met}: {entry['bar']}: {entry['value']:.3f} (bound {entry['bound']:.2f}; {entry['row']})"


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def row_line(row: dict) -> str:
    if "seconds" not in row:
        return f"| {row['side']} | {row['name']} | {row.get('note', 'not run')} | | | | | |"
    low, high = row["range"]
    floor = f"{row['floor_seconds'] / row['seconds']:.0%}" if row["floor_seconds"] else ""
    return (
        f"| {row['side']} | {row['name']} | {duration(row['seconds'])} ({duration(low)} to {duration(high)}) "
        f"| **{row['to_ours']:.2f}** | **{row['to_diffusers']:.2f}** | {floor} "
        f"| {row['peak_bytes'] / 2**20:.0f} MiB | {row['difference']:.1e} |"
    )


def table_text(table: dict, rates: dict) -> str:
    floors = {row["dtype"]: row["floor_seconds"] for row in table["rows"] if row["floor_seconds"]}
    lines = [
        f"### {table['title'][0].upper()}{table['title'][1:]}",
        "",
        "| | | median (range) | of ours, eager | of diffusers, eager | floor's share | peak memory | difference |",
        "|---|---|---|---|---|---|---|---|",
        *map(row_line, table["rows"]),
        "",
    ]
    compiled = [row for row in table["rows"] if row.get("compile_seconds")]
    if compiled:
        times = ", ".join(f"{row['side']}: {row['name']} {duration(row['compile_seconds'])}" for row in compiled)
        lines += [f"Compiled in: {times}.", ""]
    for dtype, seconds in floors.items():
        lines.append(
            f"Floor in {dtype}: {duration(seconds)}, {table['work']['operations'] / 1e12:.3f} T operations at "
            f"{rates['matmul'][dtype] / 1e9:.0f} G a second."
        )
    return "\n".join(lines) + "\n"


def profile_text(table: dict) -> str:
    """Both sides' operators, those first that take this library longest."""
    ours, theirs = table["profiles"][OURS], table["profiles"][DIFFUSERS]
    other = {operator["name"]: operator for operator in theirs["operators"]}
    known = {operator["name"] for operator in ours["operators"]}
    listed = ours["operators"] + [operator for operator in theirs["operators"] if operator["name"] not in known]
    own = {operator["name"]: operator for operator in ours["operators"]}
    listed.sort(key=lambda operator: -operator["seconds"])

    def cells(operator: dict | None, seconds: float) -> str:
        if operator is None:
            return " | |"
        return f"{operator['calls']} | {operator['seconds'] * 1e3:.1f} | {operator['seconds'] / seconds:.1%}"

    lines = [
        f"Operators of one eager run of each, {duration(ours['seconds'])} and {duration(theirs['seconds'])}:",
        "",
        "| operator | calls | ms by itself | share | diffusers: calls | ms by itself | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for operator in listed[:SHOWN_OPERATORS]:
        name = operator["name"]
        mine, its = cells(own.get(name), ours["seconds"]), cells(other.get(name), theirs["seconds"])
        lines.append(f"| `{name}` | {mine} | {its} |")
    outside = [
        profile["seconds"] - sum(operator["seconds"] for operator in profile["operators"]) for profile in (ours, theirs)
    ]
    lines.append(f"| outside operators | | {outside[0] * 1e3:.1f} | | | {outside[1] * 1e3:.1f} | |")
    return "\n".join(lines) + "\n"


def sizes_text(rows: list[dict]) -> str:
    """How often each mode compiles for pictures of twelve sizes."""
    lines = [
        f"### {rows[0].get('sizes', 12)} sizes in turn, the bundled model's UNet",
        "",
        "| mode | recompilations | graphs kept | forwards of the model itself | compiling | all forwards | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "note" in row:
            lines.append(f"| {row['name']} | {row['note']} | | | | | |")
            continue
        lines.append(
            f"| {row['name']} | {row['recompilations']} | {row['graphs']} | {row['eager_calls']} "
            f"| {duration(row['compile_seconds'])} | {duration(row['seconds'])} | {row['difference']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def markdown(results: dict) -> str:
    about, rates = results["machine"], results["rates"]
    products = ", ".join(f"{dtype} {rate / 1e9:.0f} G operations/s" for dtype, rate in rates["matmul"].items())
    parts = [
        f"{about.get('gpu') or about['cpu']}, {about['cores']} cores, torch {about['versions']['torch']}, "
        f"diffusers {about['versions']['diffusers']}, {about['date']}. Measured rates of matrix products: {products}; "
        f"of copies: {rates['bandwidth'] / 1e9:.1f} GB/s.\n",
        "Random weights. Ratios are medians of the rounds' own, differences the largest to this library's eager float32 of "
        "the same table, peak memory that of a run with its weights.\n",
        "\n".join(map(verdict, results["bars"])) + "\n",
    ]
    for table in results["tables"]:
        parts += [table_text(table, rates), profile_text(table)]
    if results.get("sizes"):
        parts.append(sizes_text(results["sizes"]))
    return "\n".join(parts)


def chart(results: dict, path: Path) -> None:
    """Medians as bars with their ranges, the floor as a line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    tables = [table for table in results["tables"] if any("seconds" in row for row in table["rows"])]
    heights = [len(table["rows"]) + 2 for table in tables]
    figure, axes = pyplot.subplots(
        len(tables), figsize=(9, 0.34 * sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    colours = {OURS: "#d9480f", DIFFUSERS: "#868e96"}
    for table, axis in zip(tables, axes[:, 0], strict=True):
        rows = sorted((row for row in table["rows"] if "seconds" in row), key=lambda row: row["seconds"])
        for place, row in enumerate(rows):
            low, high = row["range"]
            spread = [[row["seconds"] - low], [high - row["seconds"]]]
            bars = axis.barh(place, row["seconds"], 0.7, color=colours[row["side"]], xerr=spread, ecolor="#212529")
            axis.bar_label(bars, [duration(row["seconds"])], padding=4, fontsize=7)
        axis.set_yticks(range(len(rows)), [f"{row['side']}: {row['name']}" for row in rows], fontsize=7)
        floor = next((row["floor_seconds"] for row in rows if row["floor_seconds"]), None)
        if floor:
            axis.axvline(floor, color="#1971c2", linestyle="--", linewidth=1)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.15 * max(row["range"][1] for row in rows))
        axis.set_title(table["title"][0].upper() + table["title"][1:], fontsize=8, loc="left")
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    note = "seconds, median and range; dashed: the floor of the products in the table's first dtype"
    figure.supxlabel(note, fontsize=8)
    figure.savefig(path, dpi=130)
