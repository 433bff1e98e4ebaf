"""The Python package beside diffusers: import, import to first picture, and 25 steps of the bundled model in one process.

Runs alternate; the figures are medians. `--runs N` (5 by default) runs of each; `--real-size` adds Stable Diffusion 1.5's.
The table goes to results/python-cpu.md, the data to results/python-cpu.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median

os.environ["HF_HUB_OFFLINE"] = "1"
from bench import machine

RESULTS = Path(__file__).parent / "results"
PROMPT = "a yellow star on a black background"
PICTURE = """
import time, torch
start = time.perf_counter()
from {library} import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({model!r}, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
pipe({prompt!r}, num_inference_steps=25, generator=torch.Generator().manual_seed(7)).images[0].save({output!r})
print(time.perf_counter() - start)
"""


def seconds(source: str) -> tuple[float, float]:
    """How long a fresh interpreter runs `source`, and the seconds that this prints at its end."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, float(result.stdout.split()[-1])


def processes(runs: int, sources: dict[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """The median times of each program, whole and as it says, in turns, after one of each that counts for nothing."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for run in range(runs + 1):
        for name, source in sources.items():
            times[name].append(seconds(source))
    whole = {name: median(total for total, _ in values[1:]) for name, values in times.items()}
    return whole, {name: median(said for _, said in values[1:]) for name, values in times.items()}


def imports(runs: int) -> dict:
    """What importing costs beyond `import torch`, by a clock inside a fresh interpreter."""
    clock = "import torch, time; start = time.perf_counter(); from {} import StableDiffusionPipeline; print(time.perf_counter() - start)"
    sources = {name: clock.format(library) for name, library in (("ours", "tch_diffusers"), ("diffusers", "diffusers"))}
    _, found = processes(runs, sources)
    return {
        "name": "import of StableDiffusionPipeline, beyond import torch",
        "ours_seconds": found["ours"],
        "diffusers_seconds": found["diffusers"],
    }


def first_picture(runs: int, model: str, folder: Path) -> list[dict]:
    """From the start of Python to a PNG, and from the library's import to it."""
    sources = {
        name: PICTURE.format(library=library, model=model, prompt=PROMPT, output=str(folder / f"{name}.png"))
        for name, library in (("ours", "tch_diffusers"), ("diffusers", "diffusers"))
    }
    whole, imported = processes(runs, sources)
    same = (folder / "ours.png").read_bytes() == (folder / "diffusers.png").read_bytes()
    what = "PNG, bundled model, 25 steps; the same file: " + ("yes" if same else "no")
    return [
        row(f"start of Python, with import torch, to {what}", whole, same),
        row(f"import of the library, beyond import torch, to {what}", imported, same),
    ]


def nothing(pipe) -> None:
    """As the pipeline comes."""


def exact(pipe) -> None:
    """What changes no bit."""
    pipe.enable_weights_prepack()


def fast(pipe) -> None:
    """All that makes a CPU faster. The result is close: 8-bit pictures differ in single values, if at all."""
    import torch

    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.fuse_qkv_projections()
    pipe.enable_winograd()


# Each on top of the ones before.
MODES = {"": nothing, ", packed weights": exact, ", channels_last, fused, Winograd, packed": fast}


def one_process(runs: int, model: str, name: str, **call) -> list[dict]:
    """Pictures, or latents, in turns in this process: as they come, with what is exact, and with what is close."""
    import numpy
    import torch

    import tch_diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers

        pipes = {
            "ours": tch_diffusers.StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32),
            "diffusers": diffusers.StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32),
        }

    def draw(side: str) -> tuple[float, numpy.ndarray]:
        pipes[side].set_progress_bar_config(disable=True)
        start = time.perf_counter()
        image = pipes[side](PROMPT, generator=torch.Generator().manual_seed(7), **call).images[0]
        seconds = time.perf_counter() - start
        return seconds, numpy.asarray(image, dtype=float)

    rows = []
    draw("diffusers")
    for mode, switch in MODES.items():
        switch(pipes["ours"])
        draw("ours")
        times: dict[str, list[float]] = {side: [] for side in pipes}
        made = {}
        for _ in range(runs):
            for side in pipes:
                seconds, made[side] = draw(side)
                times[side].append(seconds)
        difference = float(abs(made["ours"] - made["diffusers"]).max())
        found = {side: median(values) for side, values in times.items()}
        rows.append(row(name + mode, found, difference == 0) | {"largest_difference": difference})
    return rows


def row(name: str, found: dict[str, float], same: bool) -> dict:
    """One line of the table."""
    return {"name": name, "ours_seconds": found["ours"], "diffusers_seconds": found["diffusers"], "same_pixels": same}


def line(one: dict) -> str:
    """A row as Markdown."""
    difference = f"{one['largest_difference']:.2g}" if "largest_difference" in one else ""
    times = f"{one['ours_seconds']:.3f} s | {one['diffusers_seconds']:.3f} s | **{one['ratio']:.2f}**"
    return f"| {one['name']} | {times} | {difference} |"


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--real-size", action="store_true", help="also at Stable Diffusion 1.5's size: 14 GB, six minutes")
    options = parser.parse_args()
    runs = options.runs
    import tempfile

    from tch_diffusers.utils import bundled_model

    model = str(bundled_model())
    with tempfile.TemporaryDirectory() as folder:
        rows = [imports(runs), *first_picture(runs, model, Path(folder))]
    rows += one_process(runs, model, "25 steps, bundled model, in one process", num_inference_steps=25)
    if options.real_size:
        from memory import stable_diffusion

        name = "one step to latents, SD 1.5's size, 512 x 512, float32"
        rows += one_process(2, str(stable_diffusion()), name, num_inference_steps=1, output_type="latent")
    for one in rows:
        one["ratio"] = one["ours_seconds"] / one["diffusers_seconds"]
    about = machine()
    versions = about["versions"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {versions['torch']}, diffusers {versions['diffusers']}, {about['date']}",
        "",
        "| | tch_diffusers | diffusers | ratio | largest difference, of 255 or of latents |",
        "|---|---|---|---|---|",
        *map(line, rows),
    ]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "python-cpu.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "python-cpu.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
