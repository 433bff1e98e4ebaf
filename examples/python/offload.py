"""Weights that are only where they are worked with: on a GPU in little memory, on the CPU left to their files."""

import torch

from tch_diffusers import DiffusionPipeline, apply_group_offloading
from tch_diffusers.utils import bundled_model

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pipe = DiffusionPipeline.from_pretrained(bundled_model())

pipe.enable_model_cpu_offload(device=device)
first = pipe("a red ring on a white background", num_inference_steps=8, generator=torch.Generator().manual_seed(1))
pipe.remove_all_hooks()

pipe.unet.enable_group_offload(device, offload_type="leaf_level", offload_to_disk_path="unused")
pipe.vae.enable_group_offload(device, offload_type="block_level", num_blocks_per_group=1)
apply_group_offloading(pipe.text_encoder, device, offload_type="leaf_level")
second = pipe("a red ring on a white background", num_inference_steps=8, generator=torch.Generator().manual_seed(1))

assert first.images[0].tobytes() == second.images[0].tobytes()
print("the same picture either way")
