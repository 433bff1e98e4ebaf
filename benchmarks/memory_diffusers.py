"""One picture under some techniques to save memory, in a process of its own: diffusers' half of `benchmarks/memory.py`.

`memory_diffusers.py FOLDER TECHNIQUES IMAGES STEPS GUIDANCE SIDE OUTPUT` prints one line of JSON.
"""

import json
import os
import sys
import tempfile
import time
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")

import torch  # noqa: E402
from diffusers import StableDiffusionPipeline  # noqa: E402
from diffusers.hooks import apply_group_offloading  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def resident(name: str) -> int:
    """A size of /proc/self/status, in bytes; mapped pages that were touched are counted."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(name)).split()[1]) * 1024


def enable(pipe: StableDiffusionPipeline, technique: str, disk: str) -> None:
    if technique in ("disk_block", "disk_leaf"):
        block = {"offload_type": "block_level", "num_blocks_per_group": 1}
        options = block if technique == "disk_block" else {"offload_type": "leaf_level"}
        for name in ("text_encoder", "unet", "vae"):
            # A folder for each: files are named by module alone, so that models would read each other's.
            folder = os.path.join(disk, name)
            model = getattr(pipe, name)
            cpu = torch.device("cpu")
            apply_group_offloading(model, onload_device=cpu, offload_device=cpu, offload_to_disk_path=folder, **options)
    elif technique == "attention_slicing":
        pipe.enable_attention_slicing()
    elif technique == "vae_slicing":
        pipe.vae.enable_slicing()
    elif technique == "vae_tiling":
        pipe.vae.enable_tiling()
        pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 256, 32
    elif technique == "channels_last":
        pipe.unet.to(memory_format=torch.channels_last)
    elif technique == "layerwise_casting":
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    else:
        raise SystemExit(f"unknown technique {technique}")


def main() -> None:
    folder, techniques, images, steps, guidance, side, output = sys.argv[1:]
    started_with = resident("VmHWM")
    with tempfile.TemporaryDirectory(dir=os.path.dirname(output)) as disk:
        start = time.perf_counter()
        pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        for technique in filter(None, techniques.split(",")):
            enable(pipe, technique, disk)
        loaded = time.perf_counter() - start

        start = time.perf_counter()
        picture = pipe(
            "a red circle on a blue background",
            num_images_per_prompt=int(images),
            num_inference_steps=int(steps),
            guidance_scale=float(guidance),
            height=int(side),
            width=int(side),
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        called = time.perf_counter() - start
        peak = resident("VmHWM") - started_with
    print(json.dumps({"load_seconds": loaded, "seconds": called, "peak_bytes": peak}))
    save_file({"images": picture.contiguous()}, output)


if __name__ == "__main__":
    main()
