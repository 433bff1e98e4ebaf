"""The Python package beside diffusers: import, import to first picture, and 25 steps of the bundled model in one process.

Runs alternate; the figures are medians. `--runs N` (5 by default) runs of each; the table goes to results/python-cpu.md, the data to
results/python-cpu.json.
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
import torch
from {library} import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({model!r}, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
pipe({prompt!r}, num_inference_steps=25, generator=torch.Generator().manual_seed(7)).images[0].save({output!r})
"""


def seconds(source: str) -> float:
    """How long a fresh interpreter runs `source`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", source], check=True, capture_output=True)
    return time.perf_counter() - start


def processes(runs: int, sources: dict[str, str]) -> dict[str, float]:
    """The median time of each program, in turns, after one of each that counts for nothing."""
    times: dict[str, list[float]] = {name: [] for name in sources}
    for run in range(runs + 1):
        for name, source in sources.items():
            times[name].append(seconds(source))
    return {name: median(values[1:]) for name, values in times.items()}


def imports(runs: int) -> dict:
    """What importing costs beyond `import torch`, by a clock inside a fresh interpreter."""
    clock = "import torch, time; start = time.perf_counter(); from {} import StableDiffusionPipeline; print(time.perf_counter() - start)"
    times: dict[str, list[float]] = {"ours": [], "diffusers": []}
    for _ in range(runs + 1):
        for name, library in (("ours", "tch_diffusers"), ("diffusers", "diffusers")):
            command = [sys.executable, "-c", clock.format(library)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            times[name].append(float(result.stdout.split()[-1]))
    found = {name: median(values[1:]) for name, values in times.items()}
    return {
        "name": "import of StableDiffusionPipeline, beyond import torch",
        "ours_seconds": found["ours"],
        "diffusers_seconds": found["diffusers"],
    }


def first_picture(runs: int, model: str, folder: Path) -> dict:
    """From the start of Python to a PNG."""
    sources = {
        name: PICTURE.format(library=library, model=model, prompt=PROMPT, output=str(folder / f"{name}.png"))
        for name, library in (("ours", "tch_diffusers"), ("diffusers", "diffusers"))
    }
    found = processes(runs, sources)
    same = (folder / "ours.png").read_bytes() == (folder / "diffusers.png").read_bytes()
    return row("start of Python to PNG, bundled model, 25 steps", found, same)


def one_process(runs: int, model: str) -> dict:
    """Pictures in turns, in this process."""
    import torch

    import tch_diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers

        pipes = {
            "ours": tch_diffusers.StableDiffusionPipeline.from_pretrained(model),
            "diffusers": diffusers.StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32),
        }
    times: dict[str, list[float]] = {name: [] for name in pipes}
    pictures = {}
    for run in range(runs + 1):
        for name, pipe in pipes.items():
            pipe.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(7)
            start = time.perf_counter()
            pictures[name] = pipe(PROMPT, num_inference_steps=25, generator=generator).images[0].tobytes()
            times[name].append(time.perf_counter() - start)
    found = {name: median(values[1:]) for name, values in times.items()}
    return row("25 steps, bundled model, in one process", found, pictures["ours"] == pictures["diffusers"])


def row(name: str, found: dict[str, float], same: bool) -> dict:
    """One line of the table."""
    return {"name": name, "ours_seconds": found["ours"], "diffusers_seconds": found["diffusers"], "same_pixels": same}


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    import tempfile

    from tch_diffusers.utils import bundled_model

    model = str(bundled_model())
    with tempfile.TemporaryDirectory() as folder:
        rows = [imports(runs), first_picture(runs, model, Path(folder)), one_process(runs, model)]
    for one in rows:
        one["ratio"] = one["ours_seconds"] / one["diffusers_seconds"]
    about = machine()
    versions = about["versions"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {versions['torch']}, diffusers {versions['diffusers']}, {about['date']}",
        "",
        "| | tch_diffusers | diffusers | ratio |",
        "|---|---|---|---|",
        *(
            f"| {one['name']} | {one['ours_seconds']:.3f} s | {one['diffusers_seconds']:.3f} s | **{one['ratio']:.2f}** |"
            for one in rows
        ),
    ]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "python-cpu.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "python-cpu.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
