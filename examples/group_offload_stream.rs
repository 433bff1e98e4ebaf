//! Leaves of the models copied on a CUDA stream beside the work; where there is no CUDA, left to their files instead.
//!
//! `cargo run --release --example group_offload_stream`

use tch::Device;
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{Error, PipelineMixin, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    // Three layers ahead, so that a small one at work hides the copy of a large one behind it.
    let options = GroupOffloading::leaf_level().onload_device(Device::Cuda(0)).use_stream(true).prefetch_groups(3);
    match pipe.enable_group_offload(&options, &[]) {
        Err(Error::Unsupported(reason)) => {
            println!("{reason}");
            let options = GroupOffloading::leaf_level().onload_device(Device::Cpu).offload_to_disk(true);
            pipe.enable_group_offload(&options, &[])?;
        }
        other => other?,
    }
    let output = pipe.call("a green star on a white background").num_inference_steps(20).seed(0).run()?;
    output.images.to_rgb()?[0].save("group-offload-stream.png")?;
    Ok(())
}
