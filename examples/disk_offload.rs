//! Weights that stay in their files, and are in memory one layer at a time: saves memory without a GPU too.
//!
//! `cargo run --release --example disk_offload`

use tch::{Device, Kind};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    // Weights of the file's own dtype are read where they lie. Others, like these, are cast for each forward.
    let loader = StableDiffusionPipeline::from_pretrained(bundled_model()?).torch_dtype(Kind::Float);
    let mut pipe = loader.load()?;
    let options = GroupOffloading::leaf_level().onload_device(Device::Cpu).offload_to_disk(true);
    pipe.enable_group_offload(&options, &[])?;
    let output = pipe.call("an orange cross on a black background").num_inference_steps(20).seed(0).run()?;
    output.images.to_rgb()?[0].save("disk-offload.png")?;
    Ok(())
}
