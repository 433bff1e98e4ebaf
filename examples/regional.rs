//! Regional compilation without Python: each kind of repeated block is recorded once, and all its twins run the record.
//!
//! `cargo run --release --example regional`

use tch_diffusers::models::compile::CompileOptions;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{ModelMixin, StableDiffusionPipeline};

const PROMPT: &str = "a yellow star on a black background";

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    let eager = pipe.call(PROMPT).num_inference_steps(10).seed(7).run()?.images.to_rgb()?.remove(0);
    let options = CompileOptions { dynamic: Some(true), ..CompileOptions::default() };
    let unet = pipe.unet.model().ok_or_else(|| anyhow::anyhow!("the UNet is a model"))?;
    let (of_unet, of_vae) = (unet.compile_repeated_blocks(&options)?, pipe.vae.compile_repeated_blocks(&options)?);
    let compiled = pipe.call(PROMPT).num_inference_steps(10).seed(7).run()?.images.to_rgb()?.remove(0);
    anyhow::ensure!(compiled == eager, "the compiled blocks draw another picture");
    println!("UNet: {} blocks, {:?}", of_unet.blocks.len(), of_unet.stats());
    println!("VAE: {} blocks, {:?}", of_vae.blocks.len(), of_vae.stats());
    compiled.save("regional.png")?;
    println!("regional.png");
    Ok(())
}
