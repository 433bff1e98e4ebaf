"""Time and memory of this library and of diffusers, side by side.

Both do the same work in processes of their own, one run of one after one run of the other, so that a busy machine is
busy for both. Medians count; the spread is given as the range of the runs. Writes JSON and a Markdown table into
benchmarks/results/.

    python benchmarks/bench.py [--rows start,step,unet-f32,unet-bf16,sdxl,flux,load-f32,load-f16,load-flux] [--quick] [--name NAME]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BINARY = ROOT / "target/release/tch-diffusers"
WORKER = ROOT / "target/release/examples/bench_worker"
SHAPES = ROOT / "assets/shapes"
MODELS = ROOT / "target/bench"
DIFFUSERS = [sys.executable, str(HERE / "diffusers_worker.py")]


class Worker:
    """A process that does one run for each line it is sent."""

    def __init__(self, command: list[str], *arguments: object) -> None:
        command = [*command, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{command} did not get ready (exit code {self.process.wait()})")

    def run(self, line: str = "run") -> tuple[float, int]:
        """Seconds of one run, and the peak of the process's resident memory in bytes."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        seconds, peak = self.process.stdout.readline().split()
        return float(seconds), int(peak)

    def finish(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def alternate(name: str, ours: Worker, theirs: Worker, runs: int, warmups: int = 1, per: int = 1) -> dict:
    """Runs both in turn; seconds are divided by `per`."""
    for _ in range(warmups):
        ours.run(), theirs.run()
    pairs = [(ours.run(), theirs.run()) for _ in range(runs)]
    ours.finish(), theirs.finish()
    return row(
        name, [a[0] / per for a, _ in pairs], [b[0] / per for _, b in pairs], pairs[-1][0][1], pairs[-1][1][1]
    )


def row(name: str, ours: list[float], theirs: list[float], our_peak: int = 0, their_peak: int = 0) -> dict:
    """One line of the table."""
    return {
        "name": name,
        "ours_seconds": median(ours),
        "diffusers_seconds": median(theirs),
        "ratio": median(ours) / median(theirs),
        "ours_range": [min(ours), max(ours)],
        "diffusers_range": [min(theirs), max(theirs)],
        "ours_peak_bytes": our_peak,
        "diffusers_peak_bytes": their_peak,
    }


def start_to_png(runs: int) -> list[dict]:
    """From process start to a PNG on disk, with the bundled model and 25 steps."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        mine, other = Path(folder, "ours.png"), Path(folder, "diffusers.png")
        prompt = ["--prompt", "a yellow star on a black background", "--steps", "25", "--seed", "7"]
        for number in range(runs + 1):
            for command, times in (
                ([BINARY, "generate", *prompt, "--output", mine], ours),
                ([*DIFFUSERS, "picture", SHAPES, other], theirs),
            ):
                start = time.perf_counter()
                subprocess.run([str(part) for part in command], check=True, capture_output=True)
                if number:
                    times.append(time.perf_counter() - start)
        from PIL import Image, ImageChops

        if ImageChops.difference(Image.open(mine).convert("RGB"), Image.open(other).convert("RGB")).getbbox():
            raise SystemExit("the two pictures differ")
    return [row("process start to PNG, bundled model, 25 steps", ours, theirs)]


def step(runs: int) -> list[dict]:
    """One denoising step of the bundled model: UNet on two branches, guidance, scheduler."""
    steps = 25
    workers = Worker([str(WORKER)], "steps", SHAPES, steps), Worker(DIFFUSERS, "steps", SHAPES, steps)
    return [alternate("one step, bundled model", *workers, runs=runs, warmups=3, per=steps)]


def sd15_unet(dtype: str) -> Path:
    """Stable Diffusion 1.5's UNet with random weights, made once."""
    folder = MODELS / f"sd15-unet-{dtype}"
    if not (folder / "config.json").exists():
        import torch
        from diffusers import UNet2DConditionModel

        torch.manual_seed(0)
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        unet.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def sdxl_unet() -> Path:
    """SDXL's UNet, as wide as it is and less deep, with random weights, made once."""
    folder = MODELS / "sdxl-unet"
    if not (folder / "config.json").exists():
        import torch
        from diffusers import UNet2DConditionModel

        torch.manual_seed(0)
        UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=1, cross_attention_dim=2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        ).save_pretrained(folder)  # fmt: skip
    return folder


def flux_transformer() -> Path:
    """FLUX.1-dev's transformer, as wide as it is, with 1 of 19 double and 2 of 38 single blocks, made once, in shards."""
    folder = MODELS / "flux-transformer"
    if not (folder / "config.json").exists():
        import torch
        from diffusers import FluxTransformer2DModel

        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=2, guidance_embeds=True)
        transformer.save_pretrained(folder, max_shard_size="500MB")
    return folder


def call(name: str, arguments: tuple, runs: int) -> list[dict]:
    """One call of a model, and the largest difference between the two predictions."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as outputs:
        mine, other = Path(outputs, "ours.safetensors"), Path(outputs, "diffusers.safetensors")
        workers = Worker([str(WORKER)], *arguments, mine), Worker(DIFFUSERS, *arguments, other)
        entry = alternate(name, *workers, runs=runs)
        difference = load_file(mine)["prediction"] - load_file(other)["prediction"]
    entry["largest_difference"] = difference.abs().max().item()
    return [entry]


def unet(dtype: str, latent: int, runs: int) -> list[dict]:
    """One UNet call of Stable Diffusion 1.5's size on the two branches of guidance."""
    name = f"one UNet call, SD 1.5's size, {8 * latent} px, {dtype}"
    return call(name, ("unet", sd15_unet("float32"), dtype, latent, 2), runs)


def sdxl(latent: int, runs: int) -> list[dict]:
    """One UNet call of SDXL's width on the two branches of guidance."""
    name = f"one UNet call, SDXL's width, fewer blocks, {8 * latent} px, float32"
    return call(name, ("sdxl", sdxl_unet(), "float32", latent, 2), runs)


def flux(side: int, runs: int) -> list[dict]:
    """One call of a transformer of FLUX.1's width."""
    name = f"one transformer call, FLUX.1's width, 3 of 57 blocks, {16 * side} px, float32"
    return call(name, ("flux", flux_transformer(), "float32", side, 512), runs)


def load(label: str, folder: Path, dtype: str, runs: int) -> list[dict]:
    """Reading a model from files in the page cache, each time in a fresh process."""
    times, read, peaks = ([], []), ([], []), [0, 0]
    for number in range(runs + 1):
        for side, command in enumerate(([str(WORKER)], DIFFUSERS)):
            worker = Worker(command, "load", folder, dtype)
            seconds, _ = worker.run()
            looked, peak = worker.run("")
            worker.finish()
            if number:
                times[side].append(seconds)
                read[side].append(seconds + looked)
                peaks[side] = max(peaks[side], peak)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    rows = [
        row(f"loading {label}, {dtype}", *times),
        row(f"loading it and reading every weight, {dtype}", *read, *peaks),
    ]
    for entry in rows:
        entry["weights_bytes"] = size
    return rows


def machine() -> dict:
    """What the figures were measured on."""
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown")
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def table(rows: list[dict], machine: dict) -> str:
    """The rows as Markdown."""

    def seconds(value: float) -> str:
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"

    def spread(entry: dict, side: str) -> str:
        low, high = entry[f"{side}_range"]
        return f"{seconds(entry[f'{side}_seconds'])} ({seconds(low)} to {seconds(high)})"

    def peak(entry: dict, side: str) -> str:
        value = entry[f"{side}_peak_bytes"]
        return f"{value / 2**20:.0f} MiB" if value else ""

    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['versions']['torch']}, "
        f"diffusers {machine['versions']['diffusers']}, {machine['date']}",
        "",
        "| | tch-diffusers | diffusers | ratio | peak memory | of diffusers |",
        "|---|---|---|---|---|---|",
    ]
    for entry in rows:
        lines.append(
            f"| {entry['name']} | {spread(entry, 'ours')} | {spread(entry, 'diffusers')} | **{entry['ratio']:.2f}** "
            f"| {peak(entry, 'ours')} | {peak(entry, 'diffusers')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="start,step,unet-f32,unet-bf16,sdxl,flux,load-f32,load-f16,load-flux")
    parser.add_argument("--quick", action="store_true", help="fewer runs, smaller pictures: does it work at all?")
    parser.add_argument("--name", default="cpu", help="the results' file name")
    options = parser.parse_args()
    quick = options.quick
    flux_label = "a transformer of FLUX.1's width from float32 shards"
    jobs = {
        "start": lambda: start_to_png(2 if quick else 7),
        "step": lambda: step(3 if quick else 15),
        "unet-f32": lambda: unet("float32", 16 if quick else 64, 3),
        "unet-bf16": lambda: unet("bfloat16", 8 if quick else 16, 2),
        "sdxl": lambda: sdxl(16 if quick else 64, 3),
        "flux": lambda: flux(8 if quick else 32, 3),
        "load-f32": lambda: load("SD 1.5's UNet", sd15_unet("float32"), "float32", 1 if quick else 5),
        "load-f16": lambda: load("SD 1.5's UNet", sd15_unet("float16"), "float16", 1 if quick else 5),
        "load-flux": lambda: load(flux_label, flux_transformer(), "bfloat16", 1 if quick else 5),
    }
    rows = []
    for name in options.rows.split(","):
        rows += jobs[name]()
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    results = {"machine": machine(), "rows": rows}
    text = table(rows, results["machine"])
    print(text)
    if not quick:
        (HERE / "results" / f"{options.name}.json").write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "results" / f"{options.name}.md").write_text(text)


if __name__ == "__main__":
    main()
