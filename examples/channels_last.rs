//! Convolutions with channels last, which many processors and GPUs are faster with.
//!
//! `cargo run --release --example channels_last`

use tch_diffusers::models::To;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{MemoryFormat, StableDiffusionPipeline};

/// The strides of the UNet's last convolution.
fn strides(pipe: &StableDiffusionPipeline) -> Vec<i64> {
    let conv_out = pipe.unet.tree().and_then(|tree| tree.get("conv_out"));
    conv_out.map(|node| node.own_params()[0].1.get().stride()).unwrap_or_default()
}

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    println!("before: {:?}", strides(&pipe));
    pipe.unet.move_to(To::MemoryFormat(MemoryFormat::ChannelsLast))?;
    println!("after:  {:?}", strides(&pipe));
    let output = pipe.call("a red heart on a white background").num_inference_steps(25).seed(1).run()?;
    output.images.to_rgb()?[0].save("heart.png")?;
    Ok(())
}
