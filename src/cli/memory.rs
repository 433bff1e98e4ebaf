//! The options that save memory, of every subcommand that draws.

use clap::Args;
use serde::{Deserialize, Serialize};
use tch_diffusers::models::attention_processor::AttentionSlicing;
use tch_diffusers::pipelines::Parts;
use tch_diffusers::{DiffusionPipeline, Error, KindExt, MemoryFormat, PipelineMixin};

/// What is switched on to save memory. Some of it changes the picture a little, so it is kept with the picture.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "Memory")]
#[serde(default)]
pub(crate) struct Memory {
    /// Computes attention this many heads at a time: auto (half a layer's heads), max (one) or a number
    #[arg(long, value_name = "HEADS", num_args = 0..=1, default_missing_value = "auto", value_parser = slice_size)]
    attention_slicing: Option<String>,
    /// Decodes pictures one at a time; the same pictures, but for rounding
    #[arg(long)]
    vae_slicing: bool,
    /// Decodes large pictures in overlapping tiles; the pictures differ a little. 0 is the model's own side of a tile
    #[arg(long, value_name = "PIXELS", num_args = 0..=1, default_missing_value = "0",
        value_parser = clap::value_parser!(i64).range(0..))]
    vae_tiling: Option<i64>,
    /// Stores the weights of the UNet, or of FLUX.1's transformer, in 8 bits, float8_e4m3fn or float8_e5m2; the pictures differ
    #[arg(long, value_name = "DTYPE", value_parser = storage_dtype)]
    layerwise_casting: Option<String>,
    /// Lays the UNet's convolutions out with channels last; the same pictures, but for rounding
    #[arg(long)]
    channels_last: bool,
}

fn slice_size(size: &str) -> Result<String, Error> {
    match size.parse::<AttentionSlicing>()? {
        AttentionSlicing::Size(heads) if heads < 1 => Err(Error::Argument("a slice has at least one head".into())),
        _ => Ok(size.to_string()),
    }
}

fn storage_dtype(name: &str) -> Result<String, Error> {
    match name.strip_prefix("torch.").unwrap_or(name) {
        name @ ("float8_e4m3fn" | "float8_e5m2") => Ok(name.to_string()),
        _ => Err(Error::Argument("weights are stored in float8_e4m3fn or float8_e5m2".into())),
    }
}

impl Memory {
    /// These options, and those of `base` that are not named here.
    pub(crate) fn or(&self, base: Self) -> Self {
        Self {
            attention_slicing: self.attention_slicing.clone().or(base.attention_slicing),
            vae_slicing: self.vae_slicing || base.vae_slicing,
            vae_tiling: self.vae_tiling.or(base.vae_tiling),
            layerwise_casting: self.layerwise_casting.clone().or(base.layerwise_casting),
            channels_last: self.channels_last || base.channels_last,
        }
    }

    /// Whether the weights are changed before they can be offloaded.
    pub(crate) fn changes_weights(&self) -> bool {
        self.channels_last || self.layerwise_casting.is_some()
    }

    /// Switches on what is asked for.
    pub(crate) fn enable(&self, pipe: &mut DiffusionPipeline) -> Result<(), Error> {
        if let Some(size) = &self.attention_slicing {
            pipe.enable_attention_slicing(size.parse()?)?;
        }
        if self.vae_slicing {
            pipe.enable_vae_slicing();
        }
        if let Some(side) = self.vae_tiling {
            pipe.enable_vae_tiling();
            if side > 0 {
                let vae = pipe.autoencoder_mut();
                let scale = vae.tile_sample_min_size / vae.tile_latent_min_size;
                if side < 4 * scale || side % scale != 0 {
                    let wanted = format!("a tile's side is a multiple of {scale}, at least {}", 4 * scale);
                    return Err(Error::Argument(format!("--vae-tiling {side}: {wanted}")));
                }
                (vae.tile_sample_min_size, vae.tile_latent_min_size) = (side, side / scale);
            }
        }
        if self.channels_last {
            pipe.denoiser("--channels-last")?.node.to_memory_format(MemoryFormat::ChannelsLast)?;
        }
        if let Some(dtype) = &self.layerwise_casting {
            pipe.enable_layerwise_casting(tch::Kind::from_torch_name(dtype)?, None)?;
        }
        Ok(())
    }
}
