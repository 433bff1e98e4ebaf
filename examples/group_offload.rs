//! A few blocks at a time on the device; the small VAE stays there.
//!
//! `cargo run --release --example group_offload`

use tch::Device;
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    let options = GroupOffloading::block_level(2).onload_device(Device::cuda_if_available());
    if let Some(unet) = pipe.unet.tree() {
        for group in options.groups(unet)? {
            let weights = group.params.iter().map(|(_, param)| param.get());
            let bytes: usize = weights.map(|weight| weight.numel() * weight.kind().elt_size_in_bytes()).sum();
            println!("{:36} {:8.2} MB", group.id, bytes as f64 / 1e6);
        }
    }
    pipe.enable_group_offload(&options, &["vae"])?;
    let output = pipe.call("a green star on a white background").num_inference_steps(20).seed(0).run()?;
    output.images.to_rgb()?[0].save("group-offload.png")?;
    Ok(())
}
