//! One layer at a time on the device: the least memory, and the most copying.
//!
//! `cargo run --release --example sequential_offload`

use tch::Device;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    pipe.enable_sequential_cpu_offload(Device::cuda_if_available())?;
    let output = pipe.call("a blue square on a black background").num_inference_steps(20).seed(0).run()?;
    output.images.to_rgb()?[0].save("sequential-offload.png")?;
    // Everything can be undone: the weights are on the CPU again, as they were loaded.
    pipe.remove_all_hooks()?;
    Ok(())
}
