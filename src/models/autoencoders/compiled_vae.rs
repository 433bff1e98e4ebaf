//! A VAE whose decoder or encoder runs compiled.
//!
//! Twin of `pipe.vae.decode = torch.compile(pipe.vae.decode)` of diffusers' documentation, with torch 2.11.

use super::AutoencoderKL;
use crate::error::Result;
use crate::hooks::{COMPILED_HOOK, MarkCompiled, refuse_bypassed_hooks};
use crate::models::compile::{Compilable, CompileOptions, CompileStats, Engine, FreeSides, Given};
use crate::nn::Module;
use tch::Tensor;

/// What runs in the place of the halves.
#[derive(Debug, Default)]
pub(super) struct CompiledHalves {
    encoder: Option<Engine>,
    decoder: Option<Engine>,
}

/// The input of each half.
const PICTURE: &str = "x";
const LATENTS: &str = "z";

impl AutoencoderKL {
    /// Has [`AutoencoderKL::decode`] run compiled. With slicing and tiling, each item and tile does.
    ///
    /// # Examples
    /// ```
    /// use tch_diffusers::models::autoencoders::AutoencoderKL;
    /// use tch_diffusers::{ModelMixin, models::compile::CompileOptions, utils::assets::bundled_model};
    /// let mut vae = AutoencoderKL::from_pretrained(bundled_model()?).subfolder("vae").load()?;
    /// vae.compile_decoder(&CompileOptions { dynamic: Some(true), ..CompileOptions::default() })?;
    /// let latents = tch::Tensor::zeros([1, vae.config().latent_channels, 8, 8], (tch::Kind::Float, tch::Device::Cpu));
    /// vae.decode(&latents)?;
    /// assert_eq!(vae.decoder_stats().map(|stats| stats.graphs), Some(1));
    /// # Ok::<(), tch_diffusers::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a mode that the device does not have, or hooks that compiled
    /// code would pass over; [`Error::Argument`](crate::Error::Argument) for a package of another architecture, or none; as
    /// [`AotiPackage::load`](crate::torch::AotiPackage::load).
    pub fn compile_decoder(&mut self, options: &CompileOptions) -> Result<()> {
        self.compiled.decoder = Some(Engine::new(self, options, "decoder")?);
        self.node().add_hook(COMPILED_HOOK, MarkCompiled);
        Ok(())
    }

    /// Has [`AutoencoderKL::encode`] run compiled, as [`AutoencoderKL::compile_decoder`] does with the other half.
    ///
    /// # Errors
    /// As there.
    pub fn compile_encoder(&mut self, options: &CompileOptions) -> Result<()> {
        self.compiled.encoder = Some(Engine::new(self, options, "encoder")?);
        self.node().add_hook(COMPILED_HOOK, MarkCompiled);
        Ok(())
    }

    /// Has both halves run as modules again; says whether one was compiled.
    pub fn disable_compiled_halves(&mut self) -> bool {
        self.compiled = CompiledHalves::default();
        self.node().remove_hook(COMPILED_HOOK)
    }

    /// What was compiled of the decoder so far; none if it is not compiled.
    #[must_use]
    pub fn decoder_stats(&self) -> Option<CompileStats> {
        self.compiled.decoder.as_ref().map(Engine::stats)
    }

    /// What was compiled of the encoder so far; none if it is not compiled.
    #[must_use]
    pub fn encoder_stats(&self) -> Option<CompileStats> {
        self.compiled.encoder.as_ref().map(Engine::stats)
    }

    /// From a picture, or a tile of one, to what the distribution of its latents is made of.
    pub(super) fn run_encoder(&self, x: &Tensor) -> Result<Tensor> {
        match &self.compiled.encoder {
            Some(engine) => self.run_engine(engine, PICTURE, x),
            None => self.encode_whole(x),
        }
    }

    /// From latents, or a tile of them, to a picture.
    pub(super) fn run_decoder(&self, z: &Tensor) -> Result<Tensor> {
        match &self.compiled.decoder {
            Some(engine) => self.run_engine(engine, LATENTS, z),
            None => self.decode_whole(z),
        }
    }

    fn run_engine(&self, engine: &Engine, name: &str, input: &Tensor) -> Result<Tensor> {
        refuse_bypassed_hooks(self.node())?;
        engine.run(self, &Given::new(&[(name, Some(input))]))
    }
}

impl Compilable for AutoencoderKL {
    fn run_on(&self, given: &Given<'_>) -> Result<Tensor> {
        match given.find(LATENTS) {
            Some(latents) => self.decode_whole(latents),
            None => self.encode_whole(given.needed(PICTURE)?),
        }
    }

    /// A picture that does not halve evenly fixes its size in a trace.
    fn free_sides(&self, given: &Given<'_>) -> Option<FreeSides> {
        let Some(picture) = given.find(PICTURE) else { return Some(&[(LATENTS, &[0, 2, 3])]) };
        let (size, factor) = (picture.size(), self.config().vae_scale_factor());
        let halves = size.len() == 4 && size[2..].iter().all(|side| side % factor == 0);
        let free: FreeSides = &[(PICTURE, &[0, 2, 3])];
        halves.then_some(free)
    }
}
