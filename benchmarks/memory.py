"""Peak memory and time of the techniques that save memory, here and in diffusers.

Draws with Stable Diffusion 1.5's real sizes and random weights (a bfloat16 file, computed in float32), each time in a
process of its own. Peak memory is the process's resident memory (VmHWM, pages of mapped files counted) beyond what it
had once its libraries were loaded; what the call alone took of it is set against the estimate made before it. Writes
JSON, a Markdown table and a chart into benchmarks/results/.

    python benchmarks/memory.py [--side 512] [--runs 1] [--only NAME ...] [--name memory-cpu]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench import HERE, MODELS, ROOT, SHAPES, machine

WORKER = [str(ROOT / "target/release/examples/bench_memory")]
DIFFUSERS = [sys.executable, str(HERE / "memory_diffusers.py")]

# name: techniques. Two pictures of one step without guidance: one forward of each model on a batch of two.
TECHNIQUES = {
    "nothing": "",
    "attention slicing": "attention_slicing",
    "VAE slicing": "vae_slicing",
    "VAE tiling (256 px)": "vae_tiling",
    "channels last": "channels_last",
    "layerwise casting, float8_e4m3fn": "layerwise_casting",
    "group offload to disk, blocks": "disk_block",
    "group offload to disk, leaves": "disk_leaf",
    "leaves to disk, VAE slicing and tiling": "disk_leaf,vae_slicing,vae_tiling",
}
# One picture of two steps with guidance: what a person draws, resident and in as little memory as it takes.
PICTURE = {
    "one picture, resident, VAE tiling": "vae_tiling",
    "one picture, leaves to disk, VAE tiling": "disk_leaf,vae_tiling",
}


def stable_diffusion() -> Path:
    """Stable Diffusion 1.5's models with random weights in bfloat16, made once."""
    folder = MODELS / "sd15-bfloat16"
    if (folder / "model_index.json").exists():
        return folder
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )
    pipe = StableDiffusionPipeline(
        text_encoder=CLIPTextModel(text),
        vae=vae,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        tokenizer=CLIPTokenizer.from_pretrained(SHAPES / "tokenizer"),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def measure(command: list[str], techniques: str, call: list[str], output: Path) -> dict:
    """One process: seconds, peak and what it drew."""
    arguments = [str(stable_diffusion()), techniques, *call, str(output)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} {techniques}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def largest_difference(a: Path, b: Path) -> float:
    from safetensors.torch import load_file

    return (load_file(a)["images"] - load_file(b)["images"]).abs().max().item()


def compare(names: dict[str, str], call: list[str], runs: int, folder: Path) -> list[dict]:
    """A row for each technique; differences are those to the first row, on pictures from 0 to 1."""
    rows, plain = [], {}
    for name, techniques in names.items():
        entry, pictures = {"name": name}, {}
        for side, command in (("ours", WORKER), ("diffusers", DIFFUSERS)):
            pictures[side] = folder / f"{side}-{len(rows)}-{call[0]}.safetensors"
            measured = [measure(command, techniques, call, pictures[side]) for _ in range(runs)]
            plain.setdefault(side, pictures[side])
            entry[side] = {key: median(run[key] for run in measured) for key in measured[0]}
            entry[side]["difference_to_plain"] = largest_difference(pictures[side], plain[side])
        entry["difference_to_diffusers"] = largest_difference(pictures["ours"], pictures["diffusers"])
        print(json.dumps(entry), file=sys.stderr, flush=True)
        rows.append(entry)
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown; shares are those of the first row's."""
    first = rows[0]

    def estimate(entry: dict) -> str:
        measured, estimated = entry["ours"]["call_peak_bytes"], entry["ours"]["estimated_bytes"]
        return f"{estimated / 2**20:.0f} MiB ({(estimated - measured) / measured:+.0%})"

    def cells(entry: dict, side: str) -> str:
        peak, plain = entry[side]["peak_bytes"], first[side]["peak_bytes"]
        return (
            f"{peak / 2**20:.0f} MiB ({peak / plain:.2f}) | {entry[side]['seconds']:.1f} s "
            f"({entry[side]['seconds'] / first[side]['seconds']:.2f}) | {entry[side]['difference_to_plain']:.1e}"
        )

    lines = [
        "| | peak memory | time | difference | estimate of the call | diffusers: peak | time | difference | both |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in rows:
        ours, theirs, both = cells(entry, "ours"), cells(entry, "diffusers"), entry["difference_to_diffusers"]
        lines.append(f"| {entry['name']} | {ours} | {estimate(entry)} | {theirs} | {both:.1e} |")
    return "\n".join(lines) + "\n"


def chart(rows: list[dict], path: Path) -> None:
    """Peak memory as bars, this library's beside diffusers'."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.55 * len(rows) + 1.2), layout="constrained")
    places = range(len(rows))
    for side, shift, colour, label in (
        ("ours", -0.2, "#d9480f", "tch-diffusers"),
        ("diffusers", 0.2, "#868e96", "diffusers"),
    ):
        sizes = [entry[side]["peak_bytes"] / 2**30 for entry in rows]
        bars = axes.barh([place + shift for place in places], sizes, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(places, [entry["name"] for entry in rows])
    axes.invert_yaxis()
    axes.set_xlabel("peak resident memory beyond start, GiB")
    axes.set_title("Stable Diffusion 1.5's sizes, CPU, float32", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512, help="of the pictures, in pixels")
    parser.add_argument("--runs", type=int, default=1, help="of each process; medians count")
    parser.add_argument("--only", nargs="*", help="rows by name; the first of each table is always run")
    parser.add_argument("--name", default="memory-cpu", help="the results' file name")
    options = parser.parse_args()

    def chosen(names: dict[str, str]) -> dict[str, str]:
        first = next(iter(names))
        return {name: names[name] for name in names if not options.only or name == first or name in options.only}

    side = str(options.side)
    with tempfile.TemporaryDirectory(dir=MODELS) as folder:
        techniques = compare(chosen(TECHNIQUES), ["2", "1", "1.0", side], options.runs, Path(folder))
        picture = compare(chosen(PICTURE), ["1", "2", "7.5", side], options.runs, Path(folder))
    about = machine()
    text = (
        f"{about['cpu']}, {about['cores']} cores, torch {about['versions']['torch']}, "
        f"diffusers {about['versions']['diffusers']}, {about['date']}; {side} px, float32 from a bfloat16 file\n\n"
        f"Two pictures, one step, no guidance:\n\n{table(techniques)}\n"
        f"One picture, two steps, guidance:\n\n{table(picture)}"
    )
    print(text)
    results = {"machine": about, "side": options.side, "runs": options.runs, "rows": techniques, "picture": picture}
    place = HERE / "results" / options.name
    place.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    place.with_suffix(".md").write_text(text)
    chart(techniques, place.with_suffix(".png"))


if __name__ == "__main__":
    main()
