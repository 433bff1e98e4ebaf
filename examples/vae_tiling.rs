//! A picture larger than the VAE was trained for, decoded in overlapping tiles.
//!
//! `cargo run --release --example vae_tiling`

use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    pipe.enable_vae_tiling();
    println!("tiles have {} pixels a side", pipe.vae.tile_sample_min_size);
    let call = pipe.call("a green circle on a black background").width(320).height(192);
    let output = call.num_inference_steps(25).seed(2).run()?;
    output.images.to_rgb()?[0].save("wide.png")?;
    println!("wide.png");
    Ok(())
}
