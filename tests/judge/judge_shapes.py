#!/usr/bin/env python3
"""Judge the pictures of `assets/shapes` by their pixels alone.

    python tests/judge/judge_shapes.py --self-test
    python tests/judge/judge_shapes.py --side diffusers
    python tests/judge/judge_shapes.py --side rust --binary target/release/tch-diffusers
    python tests/judge/judge_shapes.py --folder DIR     # PNGs, and captions.json: a list, or {file: caption}

A picture is right if the background's colour, the shape's colour and the shape are all the caption's.
The prompts are of combinations that the model has never seen in training (`held_out`).
"""

import argparse
import functools
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter

import numpy as np
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "examples"))
from train_shapes import COLOURS, SHAPES, caption, combinations, draw_mask, held_out  # noqa: E402

GRID = 64  # side of the pictures in which outlines are compared
SPREAD = 15.0  # radius of a circle of a shape's area there
COLOUR_LIMIT = 70  # a colour farther than this from all named ones (Euclidean, 0 to 255) has no name
OVERLAP_LIMIT = 0.82  # an outline that overlaps all templates less than this is no shape
MESS_LIMIT = 0.05  # largest share of pixels that are neither background nor shape nor between them


def colour_name(rgb):
    """The nearest named colour, or None."""
    distance, name = min((np.linalg.norm(np.subtract(rgb, c)), n) for n, c in COLOURS.items())
    return name if distance <= COLOUR_LIMIT else None


def normalised(cover):
    """A soft mask (0 to 1) moved to the middle of a GRID picture and scaled to a fixed area."""
    total = cover.sum()
    y, x = np.mgrid[:cover.shape[0], :cover.shape[1]] + 0.5
    cx, cy = (cover * x).sum() / total, (cover * y).sum() / total
    scale = np.sqrt(total / np.pi) / SPREAD
    affine = (scale, 0, cx - scale * GRID / 2, 0, scale, cy - scale * GRID / 2)
    image = Image.fromarray(cover.astype(np.float32), mode=None)
    return np.asarray(image.transform((GRID, GRID), Image.Transform.AFFINE, affine,
                                      resample=Image.Resampling.BILINEAR))


@functools.cache
def templates():
    """Every shape at every slight rotation, normalised: (names, array [n, GRID * GRID])."""
    names, masks = [], []
    for shape in SHAPES:
        for angle in range(-20, 21, 2):
            names.append(shape)
            masks.append(normalised(draw_mask(shape, 64, 64, 38, angle) / 255.0).ravel())
    return names, np.stack(masks)


def look(picture):
    """What an RGB picture (array [h, w, 3], 0 to 255) shows: a dict with background, colour, shape
    (each None if it cannot be told) and the measurements behind them."""
    picture = np.asarray(picture, dtype=np.float64)
    h, w = picture.shape[:2]
    k = max(2, h // 16)
    corners = [picture[:k, :k], picture[:k, -k:], picture[-k:, :k], picture[-k:, -k:]]
    corners = [np.median(c.reshape(-1, 3), axis=0) for c in corners]
    names = {colour_name(c) for c in corners}
    back = np.median(corners, axis=0)
    seen = {"background": names.pop() if len(names) == 1 else None, "colour": None, "shape": None,
            "background_rgb": back.round().tolist()}
    away = np.linalg.norm(picture - back, axis=2)
    top = np.percentile(away, 97)
    if top < 40:  # nothing there
        return seen
    front = np.median(picture[away > 0.7 * top], axis=0)
    seen["colour"], seen["colour_rgb"] = colour_name(front), front.round().tolist()
    line = front - back
    cover = np.clip(((picture - back) @ line) / (line @ line), 0, 1)
    mess = np.linalg.norm(picture - (back + cover[..., None] * line), axis=2) > 60
    seen["mess"] = round(float(mess.mean()), 4)
    cover = np.clip((cover - 0.25) * 2, 0, 1)  # so that a faint texture of the background counts for nothing
    seen["area"] = round(float(cover.mean()), 4)
    if seen["area"] < 0.01 or seen["mess"] > MESS_LIMIT:
        return seen
    names, masks = templates()
    mask = normalised(cover).ravel()
    overlaps = np.minimum(masks, mask).sum(1) / np.maximum(masks, mask).sum(1)
    best = int(overlaps.argmax())
    seen["overlap"], seen["nearest"] = round(float(overlaps[best]), 4), names[best]
    if seen["overlap"] >= OVERLAP_LIMIT:
        seen["shape"] = names[best]
    return seen


def parse(text):
    """A caption as (colour, shape, background)."""
    return re.fullmatch(r"an? (\w+) (\w+) on an? (\w+) background", text.strip()).groups()


def judge(picture, text):
    """(right or not, list of what is wrong, what was seen)."""
    seen = look(picture)
    wrong = [f"{what}: {want} -> {seen[what]}" for what, want in
             zip(("colour", "shape", "background"), parse(text)) if seen[what] != want]
    return not wrong, wrong, seen


def prompts(count):
    """`count` captions of held-out combinations, always the same: every one once in a mixed order, then
    again in another order, so that each prompt comes with several seeds."""
    kept, rng, chosen = [c for c in combinations() if held_out(*c)], np.random.default_rng(20), []
    while len(chosen) < count:
        chosen += [kept[i] for i in rng.permutation(len(kept))]
    return [caption(*c) for c in chosen[:count]]


# ------------------------------------------------------------------------------------- the two sides


def scheduler_of(pipe, name):
    import diffusers
    return getattr(diffusers, name).from_config(pipe.scheduler.config)


def by_diffusers(args, texts, folder):
    import torch
    from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    if args.scheduler:
        pipe.scheduler = scheduler_of(pipe, args.scheduler)
    files = []
    for batch, start in enumerate(range(0, len(texts), args.batch)):
        some = texts[start:start + args.batch]
        images = pipe(some, num_inference_steps=args.steps, guidance_scale=args.guidance,
                      negative_prompt=[args.negative] * len(some) if args.negative else None,
                      generator=torch.Generator().manual_seed(batch)).images
        for i, image in enumerate(images):
            files.append(os.path.join(folder, f"{batch:03d}-{i:02d}.png"))
            image.save(files[-1])
    return files


def numbered(folder):
    """The PNGs of a folder in the order of the last number in their names."""
    key = lambda f: [int(n) for n in re.findall(r"\d+", os.path.basename(f))][-1:]
    return sorted(glob.glob(os.path.join(folder, "*.png")), key=key)


def by_rust(args, texts, folder):
    files = []
    for batch, start in enumerate(range(0, len(texts), args.batch)):
        some = texts[start:start + args.batch]
        inside = os.path.join(folder, f"{batch:03d}")
        os.makedirs(inside, exist_ok=True)
        command = [args.binary, "generate", *(part for text in some for part in ("--prompt", text)),
                   "--steps", str(args.steps), "--seed", str(batch), "--guidance-scale", str(args.guidance),
                   "--output", os.path.join(inside, "batch.png"), *args.extra]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        made = numbered(inside)
        if len(made) != len(some):
            raise SystemExit(f"{len(some)} prompts gave {len(made)} pictures in {inside}")
        files += made
    return files


def from_folder(folder):
    with open(os.path.join(folder, "captions.json")) as f:
        captions = json.load(f)
    if isinstance(captions, dict):
        return [os.path.join(folder, name) for name in captions], list(captions.values())
    files = numbered(folder)
    if len(files) != len(captions):
        raise SystemExit(f"{len(captions)} captions for {len(files)} pictures")
    return files, captions


# ------------------------------------------------------------------------------------------ self-test


def self_test(count):
    """The judge on pictures of which the answer is known: right captions, wrong ones, spoilt pictures."""
    from train_shapes import random_mask
    rng = np.random.default_rng(7)
    every = combinations()
    right, rejected, spoilt = 0, 0, 0
    for i in range(count):
        c, s, b = every[rng.integers(len(every))]
        cover = random_mask(s, rng)[..., None] / 255
        picture = cover * np.array(COLOURS[c]) + (1 - cover) * np.array(COLOURS[b])
        picture = np.clip(picture + rng.normal(0, 6, picture.shape) + rng.normal(0, 6, 3), 0, 255)
        good, wrong, _ = judge(picture.astype(np.uint8), caption(c, s, b))
        right += good
        if not good and right > i - 10:
            print("not recognised:", caption(c, s, b), wrong)
        others = [(c2, s, b) for c2 in COLOURS if c2 not in (c, b)] + [(c, s2, b) for s2 in SHAPES if s2 != s] \
            + [(c, s, b2) for b2 in COLOURS if b2 not in (c, b)] + [(b, s, c)]
        rejected += not judge(picture.astype(np.uint8), caption(*others[rng.integers(len(others))]))[0]
        mess = [rng.integers(0, 256, picture.shape), np.full(picture.shape, COLOURS[b]),
                np.where(rng.random(cover.shape) < 0.4, picture, rng.integers(0, 256, picture.shape)),
                np.where(np.arange(128)[:, None, None] < 64, picture, np.array(COLOURS[b]))][i % 4]
        # Half of a shape is no such shape, except that the top of a triangle is one.
        if i % 4 != 3 or s != "triangle" and 0.3 < cover[:64].sum() / cover.sum() < 0.7:
            spoilt += judge(mess.astype(np.uint8), caption(c, s, b))[0]
    print(f"right captions recognised: {right}/{count}\nwrong captions rejected: {rejected}/{count}\n"
          f"spoilt pictures accepted: {spoilt}/{count}")
    ok = right >= 0.99 * count and rejected == count and spoilt <= 0.01 * count
    print("self-test", "passed" if ok else "FAILED")
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--self-test", type=int, nargs="?", const=1000, metavar="COUNT",
                        help="judge COUNT pictures of which the answer is known")
    parser.add_argument("--side", choices=("diffusers", "rust"), default="diffusers")
    parser.add_argument("--binary", help="the Rust command-line tool, for --side rust")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="more arguments for the binary, last")
    parser.add_argument("--folder", help="judge the PNGs of a folder that has a captions.json")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=7.5, help="guidance scale")
    parser.add_argument("--negative", help="a negative prompt, for --side diffusers")
    parser.add_argument("--scheduler", help="a scheduler class by from_config, for --side diffusers")
    parser.add_argument("--model", default=os.path.join(ROOT, "assets", "shapes"))
    parser.add_argument("--keep", help="folder in which to leave the pictures")
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args()
    if args.self_test:
        sys.exit(0 if self_test(args.self_test) else 1)
    if args.folder:
        files, texts = from_folder(args.folder)
    else:
        folder, texts = args.keep or tempfile.mkdtemp(prefix="judge-"), prompts(args.prompts)
        os.makedirs(folder, exist_ok=True)
        if args.side == "rust":
            if not args.binary:
                parser.error("--side rust needs --binary")
            args.binary = os.path.abspath(args.binary)
            files = by_rust(args, texts, os.path.abspath(folder))
        else:
            files = by_diffusers(args, texts, folder)
    results, kinds = [], Counter()
    for file, text in zip(files, texts):
        good, wrong, seen = judge(np.asarray(Image.open(file).convert("RGB")), text)
        results.append({"file": file, "caption": text, "right": good, "wrong": wrong, "seen": seen})
        kinds.update(w.split(":")[0] for w in wrong)
        if not good:
            print(f"wrong: {os.path.basename(file)} {text!r}: {'; '.join(wrong)} (overlap {seen.get('overlap')}, "
                  f"mess {seen.get('mess')})")
    right = sum(r["right"] for r in results)
    print(f"{right}/{len(results)} ({100 * right / max(1, len(results)):.1f} %)")
    print("wrong by part:", ", ".join(f"{k} {kinds[k]}" for k in ("colour", "shape", "background")))
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"right": right, "total": len(results), "wrong_by_part": dict(kinds), "results": results},
                      f, indent=1)


if __name__ == "__main__":
    main()
