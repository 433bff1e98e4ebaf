"""Runs diffusers' own tests of the Stable Diffusion pipeline, with their hard-coded slices of pictures, on this package's.

`python pipelines.py PATH` takes the path of an unmodified checkout of diffusers, of version 0.42 or near. Its tests make tiny
models with diffusers; those are saved, and loaded by `tch_diffusers`. Their tokenizer lies on the hub: where it is not in the
local cache the bundled model's takes its place, each test is first run with diffusers' pipeline, and what that drew takes the
place of the hard-coded slice.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from run import Recorder, collect, report

TOKENIZER = "hf-internal-testing/tiny-random-clip"
TESTED = "tests/pipelines/stable_diffusion/test_stable_diffusion.py"
NAMES = (
    "ddim",
    "ddim_factor_8",
    "pndm",
    "k_euler",
    "k_euler_ancestral",
    "negative_prompt",
    "prompt_embeds",
    "negative_prompt_embeds",
    "vae_slicing",
    "height_width_opt",
)
# Which of them set a scheduler of their own; the models' own is read from their folder.
SCHEDULERS = ("PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


def adopted() -> type:
    """A class that is called as diffusers' pipeline is, and gives this package's with the same models."""
    import diffusers

    import tch_diffusers

    theirs = diffusers.StableDiffusionPipeline

    class StableDiffusionPipeline:
        def __new__(cls, **components: Any) -> Any:
            # A file does not say which options were left at their defaults, which another scheduler has of its own.
            scheduler = components["scheduler"]
            if type(scheduler) is diffusers.DDIMScheduler:
                scheduler = tch_diffusers.DDIMScheduler.from_config(scheduler.config)
            saved = theirs(**{**components, "scheduler": diffusers.DDIMScheduler()}, requires_safety_checker=False)
            with tempfile.TemporaryDirectory() as folder:
                saved.save_pretrained(folder)
                return tch_diffusers.StableDiffusionPipeline.from_pretrained(folder, scheduler=scheduler)

    return StableDiffusionPipeline


class Setting:
    """Has each test find these names in its module, and this pipeline in its class."""

    def __init__(self, pipeline: type, names: dict[str, Any]) -> None:
        self.pipeline, self.names = pipeline, names

    def pytest_runtest_setup(self, item: Any) -> None:
        """Before the test's own fixtures."""
        item.cls.pipeline_class = self.pipeline
        for name, value in self.names.items():
            setattr(item.module, name, value)


class Pictures:
    """What diffusers drew in each test, in the place of what its authors once wrote down."""

    def __init__(self) -> None:
        self.known: dict[str, torch.Tensor] = {}

    def keep(self, actual: torch.Tensor, expected: torch.Tensor, **bounds: float) -> None:
        """In the place of `assert_tensors_close`."""
        self.known[os.environ["PYTEST_CURRENT_TEST"]] = actual

    def compare(self, actual: torch.Tensor, expected: torch.Tensor, **bounds: float) -> None:
        """In the place of `assert_tensors_close`, when this package draws."""
        torch.testing.assert_close(actual, self.known[os.environ["PYTEST_CURRENT_TEST"]], atol=1e-5, rtol=0)


def run(checkout: Path, verbose: bool = False) -> Recorder:
    """Runs the tests that there is everything for."""
    import diffusers
    import transformers
    from huggingface_hub import try_to_load_from_cache

    import tch_diffusers
    from tch_diffusers.utils import bundled_model

    file = checkout / TESTED
    if not file.is_file():
        raise SystemExit(f"{checkout} is no checkout of diffusers: {file} is missing")
    tests = [f"{file}::TestStableDiffusionPipeline::test_stable_diffusion_{name}" for name in NAMES]
    ours = {name: getattr(tch_diffusers, name) for name in SCHEDULERS}
    theirs = {name: getattr(diffusers, name) for name in SCHEDULERS}
    original = transformers.CLIPTokenizer.from_pretrained
    if isinstance(try_to_load_from_cache(TOKENIZER, "vocab.json"), str):
        return collect(checkout, tests, {}, verbose, Setting(adopted(), ours))
    transformers.CLIPTokenizer.from_pretrained = lambda name, **options: original(str(bundled_model() / "tokenizer"), **options)
    pictures = Pictures()
    try:
        drawn = Setting(diffusers.StableDiffusionPipeline, theirs | {"assert_tensors_close": pictures.keep})
        failures = collect(checkout, tests, {}, verbose, drawn).failures
        if failures:
            raise SystemExit(f"diffusers' own pipeline fails: {failures[0]}")
        return collect(checkout, tests, {}, verbose, Setting(adopted(), ours | {"assert_tensors_close": pictures.compare}))
    finally:
        transformers.CLIPTokenizer.from_pretrained = original


def main() -> int:
    """Prints the table; says by its status whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="an unmodified checkout of diffusers")
    parser.add_argument("--verbose", action="store_true", help="shows what pytest prints")
    options = parser.parse_args()
    return report(run(options.checkout.resolve(), options.verbose))


if __name__ == "__main__":
    sys.exit(main())
