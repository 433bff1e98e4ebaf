#!/usr/bin/env python3
"""Train the bundled model `assets/shapes`: a complete, tiny Stable Diffusion.

The model draws 128x128 pictures of one plain shape on a plain background from captions such as
"a red circle on a blue background".  It has every part of a Stable Diffusion 1.5 folder (byte-level CLIP
tokenizer, CLIP text encoder, VAE, conditional UNet, scheduler), all of them made or trained here from
scratch on pictures that the script draws itself, on two CPU cores in about an hour:

    python examples/train_shapes.py [--device cuda] [--output assets/shapes]

There are four stages: (1) the VAE, (2) the latents of a pool of pictures, (3) the UNet and the text
encoder together, (4) tempering: a model this small learns its few captions so well that guidance at the
pipeline's default of 7.5 overdraws every outline, so its answer to the caption is turned down until 7.5 suits.
Each leaves checkpoints in --work, so that an interrupted run goes on where it stopped.  Random choices come
from --seed and the step's number alone, so that stopping and going on changes nothing.

One in ten of the (shape colour, shape, background) combinations is never shown in training; see
`held_out`.  `tests/judge/judge_shapes.py` asks for exactly those.
"""

import argparse
import copy
import json
import math
import os
import time
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

SIZE = 128  # pixels
COLOURS = {
    "red": (222, 32, 38), "green": (34, 160, 62), "blue": (36, 74, 222), "yellow": (252, 218, 36),
    "purple": (140, 44, 176), "orange": (252, 134, 20), "pink": (255, 158, 196), "cyan": (44, 206, 224),
    "white": (252, 252, 252), "black": (14, 14, 14)}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
WORDS = (*COLOURS, *SHAPES, "a", "an", "on", "background")
# What the VAE sees is more than what captions ask for.
CAPTION_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
CAPTION_SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")


def caption(colour, shape, background):
    """The sentence for a picture."""
    article = lambda word: ("an " if word[0] in "aeiou" else "a ") + word
    return f"{article(colour)} {shape} on {article(background)} background"


def combinations():
    """Every (colour, shape, background) with two different colours."""
    return [(c, s, b) for c in CAPTION_COLOURS for s in CAPTION_SHAPES for b in CAPTION_COLOURS if c != b]


def held_out(colour, shape, background):
    """Whether a combination is kept out of training: one in ten, spread evenly over all the words."""
    number = list(COLOURS).index
    return (number(colour) + 3 * number(background) + 7 * SHAPES.index(shape)) % 10 == 0


def outline(shape):
    """A shape as polygons in a circle of radius about 1, as [(points, 1 to fill or 0 to cut out)]."""
    turn = lambda n, radius, start=-90.0: [
        (radius[i % len(radius)] * math.cos(math.radians(start + 360 * i / n)),
         radius[i % len(radius)] * math.sin(math.radians(start + 360 * i / n))) for i in range(n)]
    a, b, t = 0.98, 0.32, np.linspace(0, 2 * math.pi, 96, endpoint=False)
    heart_y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return {
        "circle": [(turn(96, [0.92]), 1)],
        "ring": [(turn(96, [1.0]), 1), (turn(96, [0.56]), 0)],
        "square": [(turn(4, [1.1], 45), 1)],
        "diamond": [(turn(4, [1.05, 0.62]), 1)],
        "triangle": [(turn(3, [1.12]), 1)],
        "star": [(turn(10, [1.12, 0.47]), 1)],
        "cross": [([(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b),
                    (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)], 1)],
        "heart": [(list(zip(16 * np.sin(t) ** 3 / 16.5, (heart_y - 2) / 16.5)), 1)],
    }[shape]


def draw_mask(shape, x, y, radius, angle, size=SIZE, over=4):
    """The shape's coverage of each pixel, 0 to 255; antialiased by drawing it `over` times as large."""
    image = Image.new("L", (size * over, size * over), 0)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    for points, fill in outline(shape):
        points = [((x + radius * (c * u - s * v)) * over, (y + radius * (s * u + c * v)) * over) for u, v in points]
        ImageDraw.Draw(image).polygon(points, fill=255 * fill)
    return np.asarray(image.reduce(over))


def random_mask(shape, rng, wide=True):
    """A mask at a random place and size that leaves the corners free: anywhere and slightly turned for the VAE; near the
    middle and upright for captions, since where a shape is, is noise to who learns what it is."""
    if wide:
        radius = rng.uniform(27, 43)
        room = SIZE / 2 - 1.12 * radius - 5
        return draw_mask(shape, *(SIZE / 2 + rng.uniform(-room, room, 2)), radius, rng.uniform(-12, 12))
    return draw_mask(shape, *(SIZE / 2 + rng.uniform(-3, 3, 2)), rng.uniform(37, 41), 0)


def paint(masks, colours, backgrounds):
    """Pictures [n, 3, h, w] from -1 to 1 of masks [n, h, w] (uint8) in the named colours."""
    rgb = lambda names: torch.tensor([COLOURS[n] for n in names])[:, :, None, None] / 127.5 - 1
    cover = masks[:, None].float() / 255
    return cover * rgb(colours) + (1 - cover) * rgb(backgrounds)

def make_tokenizer(folder):
    """Write and load a CLIP tokenizer in which each of WORDS is one token and any text still has tokens.

    `vocab.json` and `merges.txt` are as in the hub's repositories: the 256 bytes, the same with `</w>`,
    one token for each merge, and the two special ones.  The merges come from ordinary BPE training.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters, merges = list(bytes_to_unicode().values()), []
    words = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    while any(len(w) > 1 for w in words):
        counts = Counter(pair for w in words for pair in zip(w, w[1:]))
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        for w in words:
            for i in range(len(w) - 1, 0, -1):
                if tuple(w[i - 1:i + 1]) == merges[-1]:
                    w[i - 1:i + 1] = ["".join(merges[-1])]
    tokens = [*letters, *(b + "</w>" for b in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)  # tokenizer.json and tokenizer_config.json; the older files are missing
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    for name, content in (("vocab.json", json.dumps(vocab, ensure_ascii=False)),
                          ("merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)),
                          ("special_tokens_map.json", json.dumps(special, indent=2))):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            f.write(content)
    assert all(len(tokenizer(word).input_ids) == 3 for word in WORDS)
    return tokenizer


def token_ids(tokenizer, captions, device):
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True,
                     return_tensors="pt").input_ids.to(device)


def make_vae():
    """A VAE with four blocks that starts as an almost linear one: its residual branches at zero, its trunk
    at full gain.  Otherwise noise from the branches drowns the colours, which take very long to learn.
    The groups of its norms are few and wide, as a group of two channels forgets a flat picture's colour."""
    from diffusers import AutoencoderKL
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        sample_size=SIZE)
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
        elif isinstance(module, torch.nn.Conv2d) and not name.endswith("conv1"):
            module.weight.data *= 3 ** 0.5
    return vae


def make_unet_and_text(tokenizer):
    """A UNet with one block without and one with attention to the text, and the text encoder."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8, in_channels=4, out_channels=4, block_out_channels=(48, 96, 96), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=8, norm_num_groups=4)
    for embedding in (m for m in text.modules() if isinstance(m, torch.nn.Embedding)):
        embedding.weight.data *= 10
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out")):
            torch.nn.init.zeros_(module.weight)
    return unet, text


def make_scheduler():
    """DDIM with a schedule that ends in pure noise: with SD's own one the colours ignore the prompt."""
    from diffusers import DDIMScheduler
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=True, steps_offset=1, prediction_type="v_prediction",
        timestep_spacing="trailing", rescale_betas_zero_snr=True)

class Training:
    """AdamW with warm-up and then a decay along a cosine (ending at `horizon`), a moving average of the weights, and checkpoints."""

    def __init__(self, name, modules, steps, horizon, rate, decay, args):
        self.name, self.modules, self.steps, self.rate, self.decay = name, modules, steps, rate, decay
        self.seed, self.horizon = args.seed, horizon
        self.path = os.path.join(args.work, f"{name}-{steps}-{args.seed}.pt")
        self.average = copy.deepcopy(modules).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(modules.parameters(), lr=rate, weight_decay=0.01)
        self.step, self.seen, self.start = 0, [], time.time()
        if os.path.exists(self.path):
            state = torch.load(self.path, map_location=args.device)
            for part in ("modules", "average", "optimizer"):
                getattr(self, part).load_state_dict(state[part])
            self.step = state["step"]
            print(f"{name}: going on from step {self.step}", flush=True)

    def rng(self):
        """This step's random numbers."""
        return np.random.default_rng([self.seed, self.step, len(self.name)])

    def update(self, loss):
        """One step down the loss."""
        decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / self.horizon))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1, (self.step + 1) / 100) * decay
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.modules.parameters()), 1 - keep)
        self.seen.append(loss.item())
        if self.step % 50 == 0:
            print(f"{self.name} {self.step}/{self.steps} loss {np.mean(self.seen):.4f} "
                  f"after {time.time() - self.start:.0f} s", flush=True)
            self.seen = []
        if self.step % 250 == 0 or self.step == self.steps:
            torch.save({"step": self.step, **{part: getattr(self, part).state_dict() for part in
                                              ("modules", "average", "optimizer")}}, self.path + ".new")
            os.replace(self.path + ".new", self.path)


def train_vae(args):
    """Train the VAE on crops of 64 pixels, which have more edges in them for the time than whole pictures."""
    torch.manual_seed(args.seed)
    vae = make_vae().to(args.device, memory_format=torch.channels_last)
    run = Training("vae", vae, args.vae_steps, 1.25 * args.vae_steps, 2e-3, 0.995, args)
    pool, names = np.random.default_rng(args.seed), list(COLOURS)
    masks = torch.from_numpy(np.stack([random_mask(SHAPES[i % len(SHAPES)], pool) for i in range(4096)]))
    while run.step < run.steps:
        rng = run.rng()
        corners = [(i, *rng.integers(0, SIZE - 64 + 1, 2)) for i in rng.integers(0, len(masks), 8)]
        crops = torch.stack([masks[i, y:y + 64, x:x + 64] for i, y, x in corners])
        colours, backgrounds = zip(*(rng.choice(names, 2, replace=False) for _ in crops))
        real = paint(crops, colours, backgrounds).to(args.device, memory_format=torch.channels_last)
        mean, logvar = vae._encode(real).chunk(2, dim=1)
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32)).to(mean)
        logvar = logvar.clamp(-30, 20)
        made = vae.decode(mean + noise * torch.exp(0.5 * logvar)).sample
        kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
        edges = sum((made.diff(dim=d) - real.diff(dim=d)).abs().mean() for d in (2, 3))
        run.update((made - real).abs().mean() + F.mse_loss(made, real) + 0.5 * edges + 1e-4 * kl)
    return run.average


@torch.no_grad()
def make_pool(vae, count, args):
    """The latents of pictures of the combinations that training may see, and what they show."""
    path = os.path.join(args.work, f"pool-{count}-{args.vae_steps}-{args.seed}.pt")
    rng = np.random.default_rng([args.seed, 1])
    allowed = [c for c in combinations() if not held_out(*c)]
    rounds = count // len(allowed) + 1
    shown = [allowed[j] for _ in range(rounds) for j in rng.permutation(len(allowed))][:count]
    latents = torch.load(path, map_location=args.device) if os.path.exists(path) else []
    if not len(latents):
        for i in range(0, count, 16):
            colours, shapes, backgrounds = zip(*shown[i:i + 16])
            masks = torch.from_numpy(np.stack([random_mask(s, rng, wide=False) for s in shapes]))
            pictures = paint(masks, colours, backgrounds).to(args.device, memory_format=torch.channels_last)
            latents.append(vae.encode(pictures).latent_dist.mean)
        latents = torch.cat(latents)
        torch.save(latents, path)
    return latents, shown


@torch.no_grad()
def standardise(vae, latents):
    """Change the VAE's two 1x1 convolutions so that each latent channel has mean zero and the same spread,
    which does not change any picture, and set `scaling_factor` to one over the spread.  Returns what takes
    the latents made before to those that the UNet is to see, as (mean, factor)."""
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    total = spread.pow(2).mean().sqrt()
    factor, quant, post = total / spread, vae.quant_conv, vae.post_quant_conv
    quant.bias[:4] = (quant.bias[:4] - mean) * factor
    quant.weight[:4] *= factor[:, None, None, None]
    quant.bias[4:] += 2 * factor.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight /= factor[None, :, None, None]
    vae.register_to_config(scaling_factor=round(1 / total.item(), 5))
    return mean[:, None, None], factor[:, None, None] * vae.config.scaling_factor


def captions_of(shown, chosen, rng):
    """The captions of the chosen pictures, one in ten left empty, for guidance; and which of them are told."""
    told = rng.random(len(chosen)) >= 0.1
    return [caption(*shown[i]) if tell else "" for i, tell in zip(chosen, told)], told


def teach_text(text, tokenizer, shown, args):
    """Give the text encoder a start: teach it to tell colour, shape and background (or that they are not
    said) at the end token and at the padding after it.  The UNet would take thousands of steps to find out
    that one word of the 77 is the shape; so it sees it from the first step on."""
    heads = torch.nn.Linear(text.config.hidden_size, 3 * 11).to(args.device)
    optimizer = torch.optim.AdamW([*text.parameters(), *heads.parameters()], lr=2e-3)
    rng, names = np.random.default_rng([args.seed, 2]), list(COLOURS)
    for step in range(args.text_steps):
        chosen = rng.integers(0, len(shown), 32)
        captions, told = captions_of(shown, chosen, rng)
        ids = token_ids(tokenizer, captions, args.device)
        labels = [[names.index(c) + 1, SHAPES.index(s) + 1, names.index(b) + 1] for c, s, b in (shown[i] for i in chosen)]
        labels = torch.tensor(labels, device=args.device) * torch.tensor(told, device=args.device)[:, None]
        ended = (ids == tokenizer.eos_token_id).cumsum(1) > 0
        guess = heads(text(ids).last_hidden_state).unflatten(2, (3, 11))[ended]
        loss = F.cross_entropy(guess.flatten(0, 1), labels[:, None].expand(-1, 77, -1)[ended].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"text {step + 1}/{args.text_steps} loss {loss.item():.4f}", flush=True)


def noisy_latents(clean, rng):
    """Latents on their way to noise: (noisy ones, timesteps, the velocity v that the UNet is to predict)."""
    alphas, count = make_scheduler().alphas_cumprod.to(clean), len(clean)
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(clean)
    # More of the early, noisy steps, where it is decided what is drawn; the very first one often.
    t = (999.99 * (1 - rng.random(count) ** 1.4)).astype(np.int64)
    t = torch.from_numpy(np.where(rng.random(count) < 0.08, 999, t)).to(clean.device)
    a, b = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
    return (a * clean + b * noise).contiguous(memory_format=torch.channels_last), t, a * noise - b * clean


def train_unet(both, tokenizer, latents, shown, args):
    """Train the UNet and the text encoder together to predict v."""
    run = Training("unet", both.requires_grad_(True).train(), args.unet_steps, args.unet_steps, 2e-3, 0.998, args)
    while run.step < run.steps:
        rng = run.rng()
        chosen = rng.integers(0, len(latents), args.batch)
        noisy, t, velocity = noisy_latents(latents[torch.from_numpy(chosen).to(args.device)], rng)
        ids = token_ids(tokenizer, captions_of(shown, chosen, rng)[0], args.device)
        made = both["unet"](noisy, t, both["text"](ids).last_hidden_state).sample
        run.update(F.mse_loss(made, velocity))
    return run.average


def temper(teacher, tokenizer, latents, shown, args):
    """Train a copy to answer as its teacher does without a caption, and with one to differ from that by only
    --temper of what its teacher differs.  A guidance scale of 7.5 then does what 7.5 * --temper did before."""
    both = copy.deepcopy(teacher).requires_grad_(True).train()
    run = Training("temper", both, args.temper_steps, args.temper_steps, 1e-3, 0.99, args)
    empty = token_ids(tokenizer, [""], args.device)

    def predict(model, noisy, t, ids):
        """Without a caption, and how it differs with one."""
        states = model["text"](torch.cat([empty, ids])).last_hidden_state
        states = torch.cat([states[:1].expand(len(ids), -1, -1), states[1:]])
        plain, told = model["unet"](torch.cat([noisy, noisy]), torch.cat([t, t]), states).sample.chunk(2)
        return plain, told - plain

    while run.step < run.steps:
        rng = run.rng()
        chosen = rng.integers(0, len(latents), args.batch // 2)
        noisy, t, _ = noisy_latents(latents[torch.from_numpy(chosen).to(args.device)], rng)
        ids = token_ids(tokenizer, [caption(*shown[i]) for i in chosen], args.device)
        with torch.no_grad():
            plain, difference = predict(teacher, noisy, t, ids)
        made_plain, made_difference = predict(both, noisy, t, ids)
        # Guidance enlarges errors of the difference, so they weigh more.
        run.update(F.mse_loss(made_plain, plain) + 10 * F.mse_loss(made_difference, args.temper * difference))
    return run.average


def load_in_float32(path):
    """Say in the text encoder's config.json that it is to be float32. Where no dtype is asked for, transformers
    takes this one and diffusers takes float32 for the other models: they have to agree."""
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    with open(path, "w", encoding="utf-8") as f:
        json.dump({**config, "dtype": "float32"}, f, indent=2)


def main():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default=os.path.join(here, "assets", "shapes"))
    parser.add_argument("--work", default=os.path.join(here, "target", "train_shapes"),
                        help="folder for checkpoints; a later run with the same arguments goes on from them")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--text-steps", type=int, default=300)
    parser.add_argument("--unet-steps", type=int, default=2400)
    parser.add_argument("--temper-steps", type=int, default=1200)
    parser.add_argument("--temper", type=float, default=0.26, help="what is left of the caption's weight")
    parser.add_argument("--batch", type=int, default=24, help="batch size of the UNet's training")
    parser.add_argument("--pool", type=int, default=4800, help="how many pictures to draw and encode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.makedirs(args.work, exist_ok=True)
    from diffusers import StableDiffusionPipeline
    tokenizer = make_tokenizer(os.path.join(args.work, "tokenizer"))
    vae = train_vae(args)
    latents, shown = make_pool(vae, args.pool, args)
    mean, factor = standardise(vae, latents)
    torch.manual_seed(args.seed + 1)
    unet, text = make_unet_and_text(tokenizer)
    both = torch.nn.ModuleDict({"unet": unet, "text": text}).to(args.device, memory_format=torch.channels_last)
    teach_text(text, tokenizer, shown, args)
    latents = (latents - mean) * factor
    both = temper(train_unet(both, tokenizer, latents, shown, args), tokenizer, latents, shown, args)
    unet, text = both["unet"], both["text"]
    vae, unet, text = (m.to("cpu", torch.float16, memory_format=torch.contiguous_format) for m in (vae, unet, text))
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=make_scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False).save_pretrained(args.output)
    make_tokenizer(os.path.join(args.output, "tokenizer"))
    load_in_float32(os.path.join(args.output, "text_encoder", "config.json"))


if __name__ == "__main__":
    main()
