//! The variational autoencoder of Stable Diffusion.
//!
//! Mirrors `AutoencoderKL` of `diffusers/models/autoencoders/autoencoder_kl.py` (0.42.1).
//! Rombach et al. 2022, arXiv:2112.10752.

use super::attention::legacy_key;
use super::autoencoder_kl_config::AutoencoderKLConfig;
use super::compiled_vae::CompiledHalves;
use super::tiling::Tiling;
use super::vae::{Decoder, DiagonalGaussianDistribution, Encoder};
use crate::error::Result;
use crate::loaders::KeyMap;
use crate::loaders::lora::PeftAdapterMixin;
use crate::models::{ModelMixin, share};
use crate::nn::{Conv2d, Conv2dConfig, Module, Node, Scope};
use crate::torch::Generator;
use tch::Tensor;

/// A variational autoencoder with a Kullback-Leibler loss, from pictures to latents and back.
///
/// # Examples
/// ```
/// use tch_diffusers::models::autoencoders::{AutoencoderKL, AutoencoderKLConfig};
/// use tch_diffusers::nn::{RandomWeights, Scope};
/// let weights = RandomWeights::new(0, tch::Kind::Float)?;
/// let vae = AutoencoderKL::new(AutoencoderKLConfig::default(), Scope::root(&weights))?;
/// let picture = tch::Tensor::zeros([1, 3, 16, 16], (tch::Kind::Float, tch::Device::Cpu));
/// let latents = vae.encode(&picture)?;
/// assert_eq!(latents.mode().size(), [1, 4, 16, 16]);
/// assert_eq!(vae.decode(latents.mode())?.size(), [1, 3, 16, 16]);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct AutoencoderKL {
    node: Node,
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    config: AutoencoderKLConfig,
    use_slicing: bool,
    use_tiling: bool,
    pub(super) compiled: CompiledHalves,
    /// Side of a tile of a picture, in pixels. Pictures that are no larger are not tiled.
    pub tile_sample_min_size: i64,
    /// Side of a tile of latents.
    pub tile_latent_min_size: i64,
    /// The part of a tile's side that it shares with the next; 0.25.
    pub tile_overlap_factor: f64,
}

impl AutoencoderKL {
    /// Reads `encoder`, `decoder` and, as `config` has them, `quant_conv` and `post_quant_conv`.
    ///
    /// # Errors
    /// If the weights cannot be had; [`crate::Error::Unsupported`] or [`crate::Error::Config`] for a `config` that
    /// cannot be built.
    pub fn new(config: AutoencoderKLConfig, scope: Scope<'_>) -> Result<Self> {
        config.check()?;
        let encoder = Encoder::new(&scope / "encoder", &config)?;
        let decoder = Decoder::new(&scope / "decoder", &config)?;
        let pointwise = |name, channels| Conv2d::new(&scope / name, channels, channels, Conv2dConfig::POINTWISE);
        let latents = config.latent_channels;
        let quant_conv = config.use_quant_conv.then(|| pointwise("quant_conv", 2 * latents)).transpose()?;
        let post_quant_conv = config.use_post_quant_conv.then(|| pointwise("post_quant_conv", latents)).transpose()?;
        // Differs from diffusers: with a `sample_size` of two sides it cannot tile, here the first counts.
        let tile_sample_min_size = config.sample_side()?;
        Ok(Self {
            node: scope.finish::<Self>(),
            encoder,
            decoder,
            quant_conv,
            post_quant_conv,
            use_slicing: false,
            use_tiling: false,
            compiled: CompiledHalves::default(),
            tile_sample_min_size,
            tile_latent_min_size: tile_sample_min_size / config.vae_scale_factor(),
            tile_overlap_factor: 0.25,
            config,
        })
    }

    /// What it was made with.
    #[must_use]
    pub fn config(&self) -> &AutoencoderKLConfig {
        &self.config
    }

    /// Encodes and decodes the items of a batch one at a time, which takes less memory.
    pub fn enable_slicing(&mut self) {
        self.use_slicing = true;
    }

    /// Encodes and decodes whole batches again.
    pub fn disable_slicing(&mut self) {
        self.use_slicing = false;
    }

    /// Encodes and decodes pictures larger than a tile in overlapping tiles, which takes less memory. The result
    /// differs a little: norms and attention see one tile only.
    pub fn enable_tiling(&mut self) {
        self.use_tiling = true;
    }

    /// Encodes and decodes whole pictures again.
    pub fn disable_tiling(&mut self) {
        self.use_tiling = false;
    }

    /// Whether batches are encoded and decoded one item at a time.
    #[must_use]
    pub fn use_slicing(&self) -> bool {
        self.use_slicing
    }

    /// Whether large pictures are encoded and decoded in tiles.
    #[must_use]
    pub fn use_tiling(&self) -> bool {
        self.use_tiling
    }

    /// The tiles that latents are cut into.
    pub(crate) fn latent_tiling(&self) -> Tiling {
        self.tiling(self.tile_latent_min_size, self.tile_sample_min_size)
    }

    /// Encodes pictures with values in [-1, 1].
    ///
    /// Hooks around the model itself run around this, as around [`AutoencoderKL::decode`].
    ///
    /// # Shapes
    /// `[batch, in_channels, height, width]`.
    ///
    /// # Errors
    /// If the shape does not fit; [`crate::Error::Argument`] for tiles that overlap wholly.
    pub fn encode(&self, x: &Tensor) -> Result<DiagonalGaussianDistribution> {
        // Differs from diffusers: there, hooks around the model fire for `forward` alone, which pipelines do not call.
        let [moments] = self.node.call([x], |[x]| Ok([self.sliced(x, |x| self.encode_moments(x))?]))?;
        DiagonalGaussianDistribution::new(&moments)
    }

    /// Decodes latents to pictures with values around [-1, 1].
    ///
    /// # Shapes
    /// `[batch, latent_channels, height, width]` to `[batch, out_channels, height * f, width * f]`, `f` being
    /// [`AutoencoderKLConfig::vae_scale_factor`].
    ///
    /// # Errors
    /// As [`AutoencoderKL::encode`].
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        let [sample] = self.node.call([z], |[z]| Ok([self.sliced(z, |z| self.decode_sample(z))?]))?;
        Ok(sample)
    }

    /// Encodes pictures, and decodes the likeliest latents or, with `sample_posterior`, latents drawn by `generators`.
    ///
    /// # Errors
    /// As [`AutoencoderKL::encode`] and [`DiagonalGaussianDistribution::sample`].
    pub fn forward(&self, sample: &Tensor, sample_posterior: bool, generators: &mut [Generator]) -> Result<Tensor> {
        let posterior = self.encode(sample)?;
        if sample_posterior { self.decode(&posterior.sample(generators)?) } else { self.decode(posterior.mode()) }
    }

    /// Runs `forward` on the batch, or on one item after the other.
    fn sliced(&self, x: &Tensor, forward: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (batch, ..) = x.size4()?;
        if !self.use_slicing || batch <= 1 {
            return forward(x);
        }
        let items = x.f_split(1, 0)?.iter().map(forward).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&items, 0)?)
    }

    fn encode_moments(&self, x: &Tensor) -> Result<Tensor> {
        let forward = |x: &Tensor| self.run_encoder(x);
        let (sample, latent) = (self.tile_sample_min_size, self.tile_latent_min_size);
        if self.tiles(x, sample)? { self.tiling(sample, latent).run(x, forward) } else { forward(x) }
    }

    fn decode_sample(&self, z: &Tensor) -> Result<Tensor> {
        let forward = |z: &Tensor| self.run_decoder(z);
        if self.tiles(z, self.tile_latent_min_size)? { self.latent_tiling().run(z, forward) } else { forward(z) }
    }

    /// The encoder, whatever is switched on.
    pub(super) fn encode_whole(&self, x: &Tensor) -> Result<Tensor> {
        let moments = self.encoder.forward(x)?;
        match &self.quant_conv {
            Some(conv) => conv.forward(&moments),
            None => Ok(moments),
        }
    }

    /// The decoder, whatever is switched on.
    pub(super) fn decode_whole(&self, z: &Tensor) -> Result<Tensor> {
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(z)?),
            None => self.decoder.forward(z),
        }
    }

    /// Whether `x` is to be cut into tiles of side `size`.
    fn tiles(&self, x: &Tensor, size: i64) -> Result<bool> {
        let (_, _, height, width) = x.size4()?;
        Ok(self.use_tiling && (height > size || width > size))
    }

    /// Tiles of side `input` that become tiles of side `output`.
    #[allow(clippy::cast_possible_truncation)]
    fn tiling(&self, input: i64, output: i64) -> Tiling {
        let step = (input as f64 * (1.0 - self.tile_overlap_factor)) as i64;
        let blend = (output as f64 * self.tile_overlap_factor) as i64;
        Tiling { size: input, step, blend, keep: output - blend }
    }
}

impl Module for AutoencoderKL {
    fn node(&self) -> &Node {
        &self.node
    }
}

impl PeftAdapterMixin for AutoencoderKL {}

impl ModelMixin for AutoencoderKL {
    type Config = AutoencoderKLConfig;
    const CLASS_NAME: &'static str = "AutoencoderKL";
    const GROUP_OFFLOAD_BLOCK_MODULES: &'static [&'static str] =
        &["quant_conv", "post_quant_conv", "encoder", "decoder"];
    // Differs from diffusers: there, a VAE has none. The decoder's blocks differ from each other in their channels, but what
    // they are made of comes again: SD's 14 residual blocks are of 5 kinds, and do nearly all of the work.
    const REPEATED_BLOCKS: &'static [&'static str] = &["ResnetBlock2D"];
    const KEYS: KeyMap = |key| Some(legacy_key(key).unwrap_or_else(|| key.into()));

    fn from_scope(config: AutoencoderKLConfig, scope: Scope<'_>) -> Result<Self> {
        Self::new(config, scope)
    }

    fn config(&self) -> &AutoencoderKLConfig {
        &self.config
    }

    fn share(&self) -> Result<Self> {
        Ok(Self {
            use_slicing: self.use_slicing,
            use_tiling: self.use_tiling,
            tile_sample_min_size: self.tile_sample_min_size,
            tile_latent_min_size: self.tile_latent_min_size,
            tile_overlap_factor: self.tile_overlap_factor,
            ..share(self)?
        })
    }
}
