"""Runs diffusers' own tests of the Stable Diffusion pipeline, with their hard-coded slices of pictures, on this package's.

`python pipelines.py PATH` takes the path of an unmodified checkout of diffusers, of version 0.42 or near. Its tests make tiny
models with diffusers; those are saved, and loaded by `tch_diffusers`. Their tokenizer lies on the hub: where it is not in the
local cache the bundled model's takes its place. Pictures of models that were never trained hang on the prompt by less than the
tests' tolerance, so that the slices hold all the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from run import Recorder, collect, report

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
            with tempfile.TemporaryDirectory() as folder:
                theirs(**components, requires_safety_checker=False).save_pretrained(folder)
                return tch_diffusers.StableDiffusionPipeline.from_pretrained(folder)

    return StableDiffusionPipeline


def stand_in(tokenizer: Any) -> Any:
    """`from_pretrained` of a tokenizer that reads the bundled model's where the hub's is not at hand."""
    from tch_diffusers.utils import bundled_model

    original = tokenizer.from_pretrained

    def from_pretrained(name: str, **options: Any) -> Any:
        try:
            return original(name, **options, local_files_only=True)
        except OSError:
            return original(str(bundled_model() / "tokenizer"), **options)

    return from_pretrained


def run(checkout: Path, verbose: bool = False) -> Recorder:
    """Runs the tests that there is everything for."""
    import transformers

    import tch_diffusers

    file = checkout / TESTED
    if not file.is_file():
        raise SystemExit(f"{checkout} is no checkout of diffusers: {file} is missing")
    resolved = {name: getattr(tch_diffusers, name) for name in SCHEDULERS} | {"StableDiffusionPipeline": adopted()}
    tests = [f"{file}::TestStableDiffusionPipeline::test_stable_diffusion_{name}" for name in NAMES]
    before = transformers.CLIPTokenizer.from_pretrained
    transformers.CLIPTokenizer.from_pretrained = stand_in(transformers.CLIPTokenizer)
    try:
        return collect(checkout, tests, resolved, verbose)
    finally:
        transformers.CLIPTokenizer.from_pretrained = before


def main() -> int:
    """Prints the table; says by its status whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="an unmodified checkout of diffusers")
    parser.add_argument("--verbose", action="store_true", help="shows what pytest prints")
    options = parser.parse_args()
    return report(run(options.checkout.resolve(), options.verbose))


if __name__ == "__main__":
    sys.exit(main())
