"""Pictures out of the VAE's tensors.

Mirrors `VaeImageProcessor` of `diffusers/image_processor.py` at 0.42.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy
    from PIL import Image

__all__ = ["VaeImageProcessor"]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class VaeImageProcessor:
    """Turns what the VAE decodes into pictures: `"pil"`, `"np"`, `"pt"`, or `"latent"` for leaving it as it is."""

    def __init__(self, vae_scale_factor: int = 8) -> None:
        self.vae_scale_factor = vae_scale_factor

    def postprocess(self, image: torch.Tensor, output_type: str = "pil") -> Any:
        """`image` with values in [-1, 1], `[batch, channels, height, width]`, as pictures."""
        check_output_type(output_type)
        if output_type == "latent":
            return image
        image = (image * 0.5 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return image
        array = image.cpu().permute(0, 2, 3, 1).float().numpy()
        return array if output_type == "np" else self.numpy_to_pil(array)

    @staticmethod
    def numpy_to_pil(images: numpy.ndarray) -> list[Image.Image]:
        """Pictures of an array with values in [0, 1], `[batch, height, width, channels]`."""
        from PIL import Image

        batch = (images[None] if images.ndim == 3 else images) * 255
        pixels = batch.round().astype("uint8")
        return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]


def check_output_type(output_type: str) -> None:
    """Refuses a type of output that is none."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` is one of {', '.join(OUTPUT_TYPES)}, not {output_type}")
