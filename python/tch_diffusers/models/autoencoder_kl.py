"""The variational autoencoder of Stable Diffusion.

Mirrors `diffusers/models/autoencoders/autoencoder_kl.py` at 0.42.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.loaders.peft import PeftAdapterMixin
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.utils import BaseOutput, Generators, generators_of

__all__ = ["AutoencoderKL", "AutoencoderKLOutput", "DecoderOutput", "DiagonalGaussianDistribution"]


class DiagonalGaussianDistribution:
    """What the encoder gives: each latent normally distributed, independent of the others."""

    def __init__(self, core: _tch_diffusers.DiagonalGaussianDistribution) -> None:
        self._core = core

    @property
    def mean(self) -> torch.Tensor:
        """The mean."""
        return self._core.mean

    @property
    def logvar(self) -> torch.Tensor:
        """The natural logarithm of the variance, held between -30 and 20."""
        return self._core.logvar

    @property
    def std(self) -> torch.Tensor:
        """The standard deviation."""
        return self._core.std

    @property
    def var(self) -> torch.Tensor:
        """The variance."""
        return torch.exp(self._core.logvar)

    def mode(self) -> torch.Tensor:
        """The likeliest latents: the mean."""
        return self._core.mean

    def sample(self, generator: Generators = None) -> torch.Tensor:
        """Latents drawn at random."""
        return self._core.sample(generators_of(generator))


@dataclass(eq=False)
class AutoencoderKLOutput(BaseOutput):
    """What encoding gives."""

    latent_dist: DiagonalGaussianDistribution


@dataclass(eq=False)
class DecoderOutput(BaseOutput):
    """What decoding gives: pictures with values around [-1, 1]."""

    sample: torch.Tensor


class AutoencoderKL(ModelMixin, PeftAdapterMixin):
    """From pictures to latents and back.

    >>> import torch
    >>> from tch_diffusers.utils import bundled_model
    >>> vae = AutoencoderKL.from_pretrained(bundled_model(), subfolder="vae")
    >>> latents = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode()
    >>> vae.decode(latents).sample.shape
    torch.Size([1, 3, 64, 64])
    """

    _core_class = _tch_diffusers.AutoencoderKL
    _core: _tch_diffusers.AutoencoderKL
    _group_offload_block_modules = ["quant_conv", "post_quant_conv", "encoder", "decoder"]

    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encodes pictures with values in [-1, 1]."""
        posterior = DiagonalGaussianDistribution(self._core.encode(x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: Generators = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decodes latents; `generator` is not drawn from."""
        sample = self._core.decode(z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Encodes pictures, and decodes their likeliest latents or, with `sample_posterior`, latents drawn at random."""
        posterior = DiagonalGaussianDistribution(self._core.encode(sample))
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(latents, return_dict)

    def enable_slicing(self) -> None:
        """Encodes and decodes the items of a batch one at a time, which takes less memory."""
        self._core.set_slicing(True)

    def disable_slicing(self) -> None:
        """Encodes and decodes whole batches again."""
        self._core.set_slicing(False)

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Encodes and decodes large pictures in overlapping tiles, which takes less memory."""
        self._core.set_tiling(use_tiling)

    def disable_tiling(self) -> None:
        """Encodes and decodes whole pictures again."""
        self._core.set_tiling(False)

    @property
    def use_slicing(self) -> bool:
        """Whether the items of a batch go one at a time."""
        return self._core.use_slicing

    @property
    def use_tiling(self) -> bool:
        """Whether large pictures go in tiles."""
        return self._core.use_tiling

    @property
    def tile_sample_min_size(self) -> int:
        """Side of a tile of a picture, in pixels; smaller pictures are not cut."""
        return self._core.tiles()[0]

    @property
    def tile_latent_min_size(self) -> int:
        """Side of a tile of latents."""
        return self._core.tiles()[1]

    @property
    def tile_overlap_factor(self) -> float:
        """The part of a tile's side that it shares with the next."""
        return self._core.tiles()[2]

    def __setattr__(self, name: str, value: Any) -> None:
        tiles = ("tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor")
        if name in tiles:
            now: Any = dict(zip(tiles, self._core.tiles()))
            self._core.set_tiles(*{**now, name: value}.values())
        else:
            super().__setattr__(name, value)
