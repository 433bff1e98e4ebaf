//! The UNet's weights in 8 bits, computed with in bfloat16: half the memory of bfloat16 alone.
//!
//! `cargo run --release --example layerwise_casting`

use tch::Kind;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

/// Bytes of the UNet's weights.
fn bytes(pipe: &StableDiffusionPipeline) -> usize {
    let weights = pipe.unet.tree().map(|tree| tree.state_dict()).unwrap_or_default();
    weights.iter().map(|(_, weight)| weight.numel() * weight.kind().elt_size_in_bytes()).sum()
}

fn main() -> anyhow::Result<()> {
    let loader = StableDiffusionPipeline::from_pretrained(bundled_model()?);
    let mut pipe = loader.torch_dtype(Kind::BFloat16).load()?;
    let before = bytes(&pipe);
    pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None)?;
    println!("the UNet's weights: {before} bytes, then {}", bytes(&pipe));
    let output = pipe.call("a blue square on a yellow background").num_inference_steps(25).seed(3).run()?;
    output.images.to_rgb()?[0].save("eight-bits.png")?;
    println!("eight-bits.png");
    Ok(())
}
