#!/usr/bin/env python3
"""What each pipeline's call accepts, as a table made from the code.

    python scripts/pipelines_table.py           writes docs/pipelines.md
    python scripts/pipelines_table.py --check   fails if docs/pipelines.md is not what the code says
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src/pipelines"
PAGE = ROOT / "docs/pipelines.md"
PIPELINES = {
    "StableDiffusionPipeline": "SD",
    "StableDiffusionImg2ImgPipeline": "SD image to image",
    "StableDiffusionInpaintPipeline": "SD inpainting",
    "StableDiffusionXLPipeline": "SDXL",
    "StableDiffusionXLImg2ImgPipeline": "SDXL image to image, refiner",
    "FluxPipeline": "FLUX.1",
}
# Of each the family of calls, and what is drawn from.
TASKS = {
    "StableDiffusionPipeline": ("StableDiffusion", "TextToImage"),
    "StableDiffusionImg2ImgPipeline": ("StableDiffusion", "ImageToImage"),
    "StableDiffusionInpaintPipeline": ("StableDiffusion", "Inpainting"),
    "StableDiffusionXLPipeline": ("StableDiffusionXL", "TextToImage"),
    "StableDiffusionXLImg2ImgPipeline": ("StableDiffusionXL", "ImageToImage"),
    "FluxPipeline": ("Flux", "TextToImage"),
}
METHOD = re.compile(r"((?:^ *///[^\n]*\n)+)^ *pub fn (\w+)\(\s*mut self,", re.MULTILINE)
IMPL = re.compile(r"^impl(<[^{]*?>)? (\w+)Call(<[^{]*?>)? \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
MACRO = re.compile(r"^macro_rules! (\w+) \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
HEAD = """# What the pipelines accept

Made from the code by `scripts/pipelines_table.py`. Arguments are named as those of diffusers' `__call__`: methods of what
`pipe.call(..)` gives in Rust, keywords in Python. Beside them, `call` takes the prompt, and with a picture `image` and, for
inpainting, `mask_image`; `call_embeds` takes embeddings in place of the prompt. Numbers are defaults.

"""


def methods(text: str, macros: dict[str, str]) -> dict[str, tuple[str, str]]:
    """The arguments that a block of methods takes, each with what it is and its default, where that is a number."""
    for name, body in macros.items():
        text = text.replace(f"{name}!();", body)
    found = {}
    for doc, name in METHOD.findall(text):
        words = " ".join(line.strip().removeprefix("///").strip() for line in doc.splitlines())
        words = re.sub(r"\[`(?:\w+::)*(\w+)`\](\([^)]*\))?", r"`\1`", words)
        default = re.search(r"([\d.]+)(?: and 0)? by default|([\d.]+), the default", words)
        first = re.split(r"(?<=[.])\s", words)[0]
        what = re.sub(r"; [\d.]+ by default|; [\d.]+, the default, is without", "", first)
        found[name] = (what, next(filter(None, default.groups())) if default else "yes")
    return found


def arguments() -> dict[str, dict[str, tuple[str, str]]]:
    """What each pipeline's call takes."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.rs"))}
    macros = dict(match for text in files.values() for match in MACRO.findall(text))
    sized = {
        (path.parent.name, task)
        for path, text in files.items()
        for task in re.findall(r"^impl TakesSize for (\w+)", text, re.MULTILINE)
    }
    taken: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in PIPELINES}
    for path, text in files.items():
        for bounds, start, generics, body in IMPL.findall(text):
            for pipeline, (family, task) in TASKS.items():
                of_all = start == family and "T" in generics
                if of_all and "TakesSize" in bounds and (path.parent.name, task) not in sized:
                    continue
                if of_all or start + "Pipeline" == pipeline:
                    taken[pipeline] |= methods(body, macros)
    return taken


def page() -> str:
    """The page's text."""
    taken = arguments()
    described: dict[str, str] = {}
    for own in taken.values():
        described |= {name: what for name, (what, _) in own.items() if name not in described}
    lines = [
        "| argument | " + " | ".join(PIPELINES.values()) + " | |",
        "|---|" + ":-:|" * len(PIPELINES) + "---|",
    ]
    for name, text in described.items():
        marks = " | ".join(own[name][1] if name in own else "" for own in taken.values())
        lines.append(f"| `{name}` | {marks} | {text} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Writes or checks the page."""
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is not what the code says: run scripts/pipelines_table.py")


if __name__ == "__main__":
    main()
