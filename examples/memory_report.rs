//! What a call will take before it is run, what it took, and what each technique saved.
//!
//!     cargo run --release --example memory_report

use tch::{Device, Kind};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

fn main() -> tch_diffusers::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    let plain = pipe.estimate_memory(192, 192, 1, Kind::Float)?;
    let leaves = GroupOffloading::leaf_level().onload_device(Device::Cpu).offload_to_disk(true);
    pipe.enable_group_offload(&leaves, &[])?;
    pipe.enable_vae_tiling();
    let saving = pipe.estimate_memory(192, 192, 1, Kind::Float)?;
    println!("as loaded:\n{plain}\nfrom files, with tiles:\n{saving}");
    pipe.call("a red circle on a white background").height(192).width(192).num_inference_steps(4).seed(0).run()?;
    println!("{}", pipe.memory_report()?);
    pipe.reset()?;
    Ok(())
}
