"""Between pictures and the VAE's tensors.

Mirrors `VaeImageProcessor` of `diffusers/image_processor.py` at 0.42.1. Pictures are Pillow's, and so is what is done to them.
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
    """Turns pictures into what the VAE encodes, and what it decodes into pictures.

    >>> from PIL import Image
    >>> VaeImageProcessor().preprocess(Image.new("RGB", (21, 17))).shape
    torch.Size([1, 3, 16, 16])
    """

    def __init__(
        self,
        vae_scale_factor: int = 8,
        *,
        do_resize: bool = True,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        reducing_gap: int | None = None,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        if do_convert_rgb and do_convert_grayscale:
            raise ValueError("pictures cannot be converted to RGB and to grey: set one of the two")
        self.vae_scale_factor = vae_scale_factor
        self.vae_latent_channels = vae_latent_channels
        self.do_resize = do_resize
        self.resample = resample
        self.reducing_gap = reducing_gap
        self.do_normalize = do_normalize
        self.do_binarize = do_binarize
        self.do_convert_rgb = do_convert_rgb
        self.do_convert_grayscale = do_convert_grayscale

    def _filter(self) -> Any:
        from PIL.Image import Resampling

        filters = {"linear": Resampling.BILINEAR, **{name.name.lower(): name for name in Resampling}}
        if self.resample not in filters:
            raise ValueError(f"`resample` is one of {', '.join(sorted(filters))}, not {self.resample}")
        return filters[self.resample]

    def preprocess(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> torch.Tensor:
        """Pictures as a tensor `[batch, channels, height, width]`, resized to multiples of the VAE's factor.

        `image` is a PIL image, an array `[height, width, channels]` or a tensor `[channels, height, width]` with values in
        [0, 1], a batch of these, or a list. A tensor of latents comes back as it is.
        """
        from PIL import Image

        items = image if isinstance(image, list) else [image]
        if not items:
            raise ValueError("`image` is an empty list")
        first = items[0]
        if isinstance(first, Image.Image) and all(isinstance(item, Image.Image) for item in items):
            pixels = self._of_pictures(items, height, width, resize_mode, crops_coords)
        elif isinstance(first, torch.Tensor) and all(isinstance(item, torch.Tensor) for item in items):
            pixels = self._of_tensors(items)
            if pixels.shape[1] == self.vae_latent_channels:
                return pixels
            pixels = self._stretched(pixels, height, width, resize_mode)
        elif all(hasattr(item, "__array__") and not isinstance(item, (Image.Image, torch.Tensor)) for item in items):
            pixels = self._stretched(self._of_arrays(items), height, width, resize_mode)
        else:
            kinds = ", ".join(sorted({type(item).__name__ for item in items}))
            raise ValueError(f"`image` is made of PIL images, of arrays or of tensors, not of {kinds}")
        if self.do_normalize and pixels.min() >= 0:
            pixels = 2.0 * pixels - 1.0
        return (pixels >= 0.5).to(pixels.dtype) if self.do_binarize else pixels

    def _of_pictures(
        self, images: list[Image.Image], height: int | None, width: int | None, mode: str, crops_coords: Any
    ) -> torch.Tensor:
        import numpy

        if crops_coords is not None:
            images = [image.crop(crops_coords) for image in images]
        if self.do_resize:
            height, width = self._multiples(height or images[0].height, width or images[0].width)
            images = [self.resize(image, height, width, mode) for image in images]
        if self.do_convert_rgb or self.do_convert_grayscale:
            images = [image.convert("RGB" if self.do_convert_rgb else "L") for image in images]
        arrays = [numpy.array(image).astype(numpy.float32) / 255.0 for image in images]
        if any(array.shape != arrays[0].shape for array in arrays):
            raise ValueError("the pictures differ in size or mode")
        return _channels_first(numpy.stack(arrays))

    def _of_tensors(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        if self.do_convert_grayscale and len(tensors) == 1 and tensors[0].ndim == 3:
            return tensors[0].unsqueeze(1)
        batch = torch.cat(tensors) if tensors[0].ndim == 4 else torch.stack(tensors)
        if self.do_convert_grayscale and batch.ndim == 3:
            batch = batch.unsqueeze(1)
        if batch.ndim != 4:
            raise ValueError(f"a tensor of shape {tuple(tensors[0].shape)} is no picture")
        return batch

    def _of_arrays(self, arrays: list[Any]) -> torch.Tensor:
        import numpy

        first = arrays[0]
        if self.do_convert_grayscale and len(arrays) == 1 and first.ndim == 3:
            first = first[None] if first.shape[-1] == 1 else first[..., None]
            return _channels_first(first)
        return _channels_first(numpy.concatenate(arrays) if first.ndim == 4 else numpy.stack(arrays))

    def _stretched(self, pixels: torch.Tensor, height: int | None, width: int | None, mode: str) -> torch.Tensor:
        if not self.do_resize:
            return pixels
        if mode != "default":
            raise ValueError(f"only PIL images can be resized by `resize_mode` {mode}")
        size = self._multiples(height or pixels.shape[2], width or pixels.shape[3])
        return torch.nn.functional.interpolate(pixels, size=size)

    def _multiples(self, height: int, width: int) -> tuple[int, int]:
        factor = self.vae_scale_factor
        return height - height % factor, width - width % factor

    def resize(self, image: Image.Image, height: int, width: int, resize_mode: str = "default") -> Image.Image:
        """`image` in another size: stretched, within it with its edges drawn out (`fill`), or around it (`crop`)."""
        if resize_mode == "default":
            return image.resize((width, height), resample=self._filter(), reducing_gap=self.reducing_gap)
        if resize_mode not in ("fill", "crop"):
            raise ValueError(f"`resize_mode` is one of default, fill, crop, not {resize_mode}")
        from PIL import Image

        ratio, own = width / height, image.width / image.height
        # Of the two sides one is as asked for: that which leaves room, or that which goes beyond.
        by_height = ratio >= own if resize_mode == "fill" else ratio <= own
        columns = image.width * height // image.height if by_height else width
        rows = height if by_height else image.height * width // image.width
        resized = image.resize((columns, rows), resample=self._filter())
        left, top = width // 2 - columns // 2, height // 2 - rows // 2
        placed = Image.new("RGB", (width, height))
        placed.paste(resized, box=(left, top))
        if resize_mode == "fill" and ratio < own and top > 0:
            edges = [(0, 0, width, 0), (0, rows, width, rows)]
            for edge, start in zip(edges, (0, top + rows)):
                placed.paste(resized.resize((width, top), box=edge), box=(0, start))
        if resize_mode == "fill" and ratio > own and left > 0:
            edges = [(0, 0, 0, height), (columns, 0, columns, height)]
            for edge, start in zip(edges, (0, left + columns)):
                placed.paste(resized.resize((left, height), box=edge), box=(start, 0))
        return placed

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        """`image`, such as a mask, with its edges softened."""
        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def get_crop_region(
        mask_image: Image.Image, width: int, height: int, pad: int = 0
    ) -> tuple[int, int, int, int]:
        """The smallest part that holds all that is not black, padded, and as wide for its height as `width` for `height`."""
        box = mask_image.convert("L").getbbox()
        # Differs from diffusers: there, a mask that is black all over has a part without a meaning.
        if box is None:
            raise ValueError("the mask is black all over: there is nothing to paint")
        x1, y1 = max(box[0] - pad, 0), max(box[1] - pad, 0)
        x2, y2 = min(box[2] + pad, mask_image.width), min(box[3] + pad, mask_image.height)
        ratio = width / height
        if (x2 - x1) / (y2 - y1) > ratio:
            y1, y2 = _widened(y1, y2, (x2 - x1) / ratio, mask_image.height)
        else:
            x1, x2 = _widened(x1, x2, (y2 - y1) * ratio, mask_image.width)
        return x1, y1, x2, y2

    def apply_overlay(
        self,
        mask: Image.Image,
        init_image: Image.Image,
        image: Image.Image,
        crop_coords: tuple[int, int, int, int] | None = None,
    ) -> Image.Image:
        """`image`, or its part at `crop_coords`, where `mask` is white, and `init_image` where it is black."""
        from PIL import Image, ImageOps

        kept = Image.new("RGBa", init_image.size)
        kept.paste(init_image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
        if crop_coords is not None:
            x1, y1, x2, y2 = crop_coords
            part = self.resize(image, y2 - y1, x2 - x1, "crop")
            image = Image.new("RGB", init_image.size)
            image.paste(part, (x1, y1))
        laid = image.convert("RGBA")
        laid.alpha_composite(kept.convert("RGBA"))
        return laid.convert("RGB")

    def postprocess(
        self, image: torch.Tensor, output_type: str = "pil", do_denormalize: list[bool] | None = None
    ) -> Any:
        """`image` with values in [-1, 1], `[batch, channels, height, width]`, as pictures.

        `do_denormalize` says of each picture whether its values are brought to [0, 1]; they all are by default.
        """
        check_output_type(output_type)
        if output_type == "latent":
            return image
        if do_denormalize is None or all(do_denormalize):
            image = (image * 0.5 + 0.5).clamp(0, 1)
        else:
            one_by_one = zip(image, do_denormalize)
            image = torch.stack([(one * 0.5 + 0.5).clamp(0, 1) if brought else one for one, brought in one_by_one])
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


def _channels_first(images: Any) -> torch.Tensor:
    if images.ndim == 3:
        images = images[..., None]
    return torch.from_numpy(images.transpose(0, 3, 1, 2))


def _widened(start: int, end: int, length: float, room: int) -> tuple[int, int]:
    """The span made `length` long around its middle, and moved and cut to lie within `room`."""
    more = int(length - (end - start))
    start, end = start - more // 2, end + more - more // 2
    if end >= room:
        start, end = start - (end - room), room
    if start < 0:
        start, end = 0, end - start
    return start, min(end, room)
