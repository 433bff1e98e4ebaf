//! What makes a picture faster on the CPU: packed weights to the bit, and Winograd with channels last but for rounding.
//!
//! `cargo run --release --example fast_on_cpu`

use std::time::Instant;
use tch_diffusers::models::ModelMixin;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{MemoryFormat, PipelineMixin, StableDiffusionPipeline};

fn draw(pipe: &mut StableDiffusionPipeline, what: &str) -> anyhow::Result<image::RgbImage> {
    let call = |pipe: &mut StableDiffusionPipeline, steps| {
        let call = pipe.call("a green triangle on a white background").num_inference_steps(steps);
        anyhow::Ok(call.seed(3).run()?.images.to_rgb()?.remove(0))
    };
    // The first forward packs.
    call(pipe, 1)?;
    let start = Instant::now();
    let picture = call(pipe, 25)?;
    println!("{what}: {:.2} s", start.elapsed().as_secs_f64());
    Ok(picture)
}

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    pipe.progress_bar.disable = true;
    let plain = draw(&mut pipe, "as loaded")?;

    pipe.enable_weights_prepack()?;
    let exact = draw(&mut pipe, "packed weights")?;
    println!("the same picture: {}", exact == plain);

    pipe.unet.move_to(MemoryFormat::ChannelsLast.into())?;
    pipe.vae.to(MemoryFormat::ChannelsLast)?;
    pipe.fuse_qkv_projections(true, true)?;
    pipe.enable_winograd()?;
    let close = draw(&mut pipe, "with channels last, fused projections and Winograd")?;
    let largest = close.iter().zip(plain.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    println!("largest difference of a channel's 0 to 255: {}", largest.unwrap_or(0));
    close.save("triangle.png")?;
    Ok(())
}
