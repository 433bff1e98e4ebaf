"""From pictures to CLIP's input: the `feature_extractor` of a safety checker.

Mirrors `CLIPImageProcessorPil` of `transformers/models/clip/image_processing_pil_clip.py` at 5.23.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tch_diffusers.utils import BaseOutput

if TYPE_CHECKING:
    import numpy
    from PIL import Image

__all__ = ["CLIPImageProcessor"]

_FILE = "preprocessor_config.json"


@dataclass(eq=False)
class BatchFeature(BaseOutput):
    """What the image processor gives."""

    pixel_values: torch.Tensor

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """The same on another device, or in another dtype."""
        return BatchFeature(self.pixel_values.to(*args, **kwargs))


class CLIPImageProcessor:
    """Turns PIL images into what a CLIP vision model looks at.

    >>> from PIL import Image
    >>> CLIPImageProcessor()(Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 224, 224])
    """

    defaults: dict[str, Any] = {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 224},
    }

    def __init__(self, **config: Any) -> None:
        self.config = {**self.defaults, **config}
        for key in self.defaults:
            setattr(self, key, self.config[key])

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], subfolder: str | None = None) -> CLIPImageProcessor:
        """Reads `preprocessor_config.json` of a folder."""
        path = Path(folder) / (subfolder or "") / _FILE
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path}: there is no configuration in it")
        return cls(**config)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `preprocessor_config.json`, so that transformers reads it back."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / _FILE).write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def __call__(self, images: Image.Image | list[Image.Image], return_tensors: str | None = "pt") -> BatchFeature:
        """The pictures as one tensor, `[batch, channels, height, width]`."""
        if return_tensors not in (None, "pt"):
            raise NotImplementedError(f"`return_tensors` is pt, not {return_tensors}")
        listed = images if isinstance(images, (list, tuple)) else [images]
        if not listed:
            raise ValueError("there are no pictures to look at")
        return BatchFeature(torch.stack([torch.from_numpy(self._values(image)) for image in listed]))

    def _values(self, image: Image.Image) -> numpy.ndarray:
        import numpy as np

        config = self.config
        if config["do_convert_rgb"]:
            image = _over_white(image)
        if config["do_resize"]:
            image = image.resize(self._resized(*image.size), resample=config["resample"])
        pixels = np.array(image)
        pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if config["do_center_crop"]:
            pixels = _center_crop(pixels, *_sides(config["crop_size"]))
        values = pixels.astype(np.float32)
        if config["do_rescale"]:
            values = (pixels.astype(np.float64) * config["rescale_factor"]).astype(np.float32)
        if config["do_normalize"]:
            mean, std = (np.array(config[key], dtype=np.float32)[:, None, None] for key in ("image_mean", "image_std"))
            if len(mean) != len(values) or len(std) != len(values):
                raise ValueError(f"`image_mean` and `image_std` do not fit pictures of {len(values)} channels")
            values = (values - mean) / std
        return np.ascontiguousarray(values)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture once it is resized."""
        size = self.config["size"]
        if isinstance(size, dict) and "height" in size and "width" in size:
            return size["width"], size["height"]
        side = size["shortest_edge"] if isinstance(size, dict) else size
        if width <= height:
            return side, int(side * height / width)
        return int(side * width / height), side


def _over_white(image: Image.Image) -> Image.Image:
    """In colour; what is transparent shows white."""
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _sides(size: Any) -> tuple[int, int]:
    return (size["height"], size["width"]) if isinstance(size, dict) else (size, size)


def _center_crop(pixels: numpy.ndarray, height: int, width: int) -> numpy.ndarray:
    """The middle of a picture; what it lacks is black."""
    import numpy as np

    cut = np.zeros((pixels.shape[0], height, width), dtype=pixels.dtype)
    ways = []
    for whole, part in ((pixels.shape[1], height), (pixels.shape[2], width)):
        start = (whole - part) // 2
        into, length = max(-start, 0), min(whole, part)
        ways.append((slice(into, into + length), slice(max(start, 0), max(start, 0) + length)))
    (rows, from_rows), (columns, from_columns) = ways
    cut[:, rows, columns] = pixels[:, from_rows, from_columns]
    return cut
