//! Between pictures and latents.

mod attention;
mod autoencoder_kl;
mod autoencoder_kl_config;
mod compiled_vae;
mod tiling;
mod unet_2d_blocks;
mod vae;

pub use attention::{Attention, legacy_key};
pub use autoencoder_kl::AutoencoderKL;
pub use autoencoder_kl_config::AutoencoderKLConfig;
pub(crate) use tiling::{Tiling, starts as tile_starts};
pub use unet_2d_blocks::{BlockConfig, DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D};
pub use vae::{Decoder, DiagonalGaussianDistribution, Encoder};
