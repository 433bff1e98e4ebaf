"""Draws with a traced UNet in a pipeline of diffusers 0.42.

    tch-diffusers trace --component unet --output unet_traced.pt
    python examples/traced_unet.py unet_traced.pt

The file may as well come from torch.jit.trace. Of the class that diffusers' documentation once showed, today's pipelines
want more: a `config`, a `dtype`, and room for the arguments that they pass by name.
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

SHAPES = Path(__file__).resolve().parent.parent / "assets" / "shapes"


class TracedUNet(torch.nn.Module):
    """A TorchScript file in the place of the pipeline's UNet."""

    def __init__(self, path: str, unet: torch.nn.Module):
        super().__init__()
        self.traced = torch.jit.load(path, map_location=unet.device)
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=True, **others):
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise NotImplementedError(f"the trace does not take {', '.join(given)}")
        prediction = self.traced(sample, timestep, encoder_hidden_states)[0]
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("traced", help="the TorchScript file")
    parser.add_argument("--model", default=SHAPES, help="the folder of the pipeline that it was traced from")
    parser.add_argument("--prompt", default="a yellow star on a black background")
    parser.add_argument("--output", default="traced_unet.png")
    args = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipe.unet = TracedUNet(args.traced, pipe.unet)
    with torch.inference_mode():
        pipe(args.prompt, num_inference_steps=25, generator=torch.Generator().manual_seed(7)).images[0].save(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
