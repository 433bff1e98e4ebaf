//! One model at a time on the device: text encoder, UNet, VAE.
//!
//! `cargo run --release --example model_offload`

use tch::Device;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    // The models are loaded on the CPU, and stay there until they are called.
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    pipe.enable_model_cpu_offload(Device::cuda_if_available())?;
    for seed in 0..2 {
        let output = pipe.call("a red circle on a white background").num_inference_steps(20).seed(seed).run()?;
        output.images.to_rgb()?[0].save(format!("model-offload-{seed}.png"))?;
    }
    Ok(())
}
