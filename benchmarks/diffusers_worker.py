"""diffusers' half of the benchmark; `benchmarks/worker.rs` is the other, line for line."""

import json
import os
import sys
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")


def peak_resident_bytes() -> int:
    """The kernel's VmHWM."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def serve(run) -> None:
    """Does one run for each line on standard input."""
    print("ready", flush=True)
    for line in sys.stdin:
        if not line.strip():
            break
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, peak_resident_bytes(), flush=True)


def pipeline_steps(folder: str, steps: str) -> None:
    """Denoising steps of a pipeline, from ready embeddings to latents."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt("a red circle on a blue background", "cpu", 1, True)

    def run():
        pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            num_inference_steps=int(steps),
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )

    serve(run)


def unet_step(folder: str, dtype: str, latent: str, batch: str, output: str) -> None:
    """One call of a UNet; its prediction goes to the file `output`."""
    import torch
    from diffusers import UNet2DConditionModel

    kind, latent, batch = getattr(torch, dtype), int(latent), int(batch)
    unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=kind)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, 4, latent, latent, generator=generator, dtype=kind)
    text = torch.randn(batch, 77, 768, generator=generator, dtype=kind)
    timestep = torch.tensor([500.0])

    predict(output, lambda: unet(sample, timestep, text, return_dict=False))


def sdxl_step(folder: str, dtype: str, latent: str, batch: str, output: str) -> None:
    """One call of SDXL's UNet; its prediction goes to the file `output`."""
    import torch
    from diffusers import UNet2DConditionModel

    kind, latent, batch = getattr(torch, dtype), int(latent), int(batch)
    unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=kind)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, 4, latent, latent, generator=generator, dtype=kind)
    text = torch.randn(batch, 77, 2048, generator=generator, dtype=kind)
    pooled = torch.randn(batch, 1280, generator=generator, dtype=kind)
    side = 8.0 * latent
    sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]], dtype=kind).repeat(batch, 1)
    timestep, added = torch.tensor([500.0]), {"text_embeds": pooled, "time_ids": sizes}
    predict(output, lambda: unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False))


def flux_step(folder: str, dtype: str, side: str, tokens: str, output: str) -> None:
    """One call of FLUX.1's transformer for a picture of `side` by `side` tokens; its prediction goes to the file `output`."""
    import torch
    from diffusers import FluxTransformer2DModel

    kind, side, tokens = getattr(torch, dtype), int(side), int(tokens)
    transformer = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=kind)
    generator = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(1, side * side, 64, generator=generator, dtype=kind)
    encoder_hidden_states = torch.randn(1, tokens, 4096, generator=generator, dtype=kind)
    pooled = torch.randn(1, 768, generator=generator, dtype=kind)
    along = torch.arange(side, dtype=torch.float32)
    rows, columns = along.repeat_interleave(side), along.repeat(side)
    img_ids = torch.stack([torch.zeros_like(rows), rows, columns], 1).to(kind)
    inputs = dict(
        hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, pooled_projections=pooled,
        timestep=torch.tensor([0.5], dtype=kind), img_ids=img_ids, txt_ids=torch.zeros(tokens, 3, dtype=kind),
        guidance=torch.tensor([3.5]), return_dict=False,
    )  # fmt: skip
    predict(output, lambda: transformer(**inputs))


def predict(output: str, forward) -> None:
    """Serves one call of a model; the last prediction goes to the file `output`."""
    import torch
    from safetensors.torch import save_file

    predictions = []

    @torch.no_grad()
    def run():
        predictions[:] = forward()

    serve(run)
    save_file({"prediction": predictions[0].float().contiguous()}, output)


def load(folder: str, dtype: str) -> None:
    """Reading a model; then a look at every weight, since a mapped file is read when it is looked at."""
    import diffusers
    import torch

    # Importing the class is no part of loading: AutoModel would do it while the clock runs.
    model = getattr(diffusers, json.loads(Path(folder, "config.json").read_text())["_class_name"])
    kept = []
    serve(lambda: kept.append(model.from_pretrained(folder, torch_dtype=getattr(torch, dtype))))
    start = time.perf_counter()
    for tensor in kept[-1].state_dict().values():
        tensor.flatten().view(torch.int8).max()
    print(time.perf_counter() - start, peak_resident_bytes(), flush=True)


def picture(folder: str, output: str) -> None:
    """From process start to a PNG: the script that a user of diffusers writes."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    generator = torch.Generator("cpu").manual_seed(7)
    image = pipe("a yellow star on a black background", num_inference_steps=25, generator=generator).images[0]
    image.save(output)


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    modes = {
        "steps": pipeline_steps,
        "unet": unet_step,
        "sdxl": sdxl_step,
        "flux": flux_step,
        "load": load,
        "picture": picture,
    }
    modes[mode](*arguments)
