//! Runs the UNet as a CUDA graph: `torch.compile(unet, mode="reduce-overhead")`. Without a GPU it says what it needs.
//!
//! `cargo run --release --example cuda_graphs`

use tch::{Device, Kind};
use tch_diffusers::models::compile::{CompileOptions, Mode};
use tch_diffusers::models::unets::CompiledUNet;
use tch_diffusers::torch::cuda_unavailable_reason;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{MemoryFormat, StableDiffusionPipeline};

const PROMPT: &str = "a yellow star on a black background";

fn main() -> anyhow::Result<()> {
    if let Some(reason) = cuda_unavailable_reason()? {
        println!("CUDA graphs need an NVIDIA GPU with its driver, and libtorch built for CUDA. Here: {reason}");
        return Ok(());
    }
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).torch_dtype(Kind::Half).load()?;
    pipe.to(Device::Cuda(0))?;
    pipe.to(MemoryFormat::ChannelsLast)?;
    pipe.compile_unet(&CompileOptions { mode: Mode::ReduceOverhead, ..CompileOptions::default() })?;
    // The first picture of a size is traced and captured, those after it are replayed.
    for seed in 0..4 {
        let picture = pipe.call(PROMPT).num_inference_steps(10).seed(seed).run()?.images.to_rgb()?.remove(0);
        picture.save(format!("cuda_graphs_{seed}.png"))?;
    }
    if let Some(unet) = pipe.unet.as_any().downcast_ref::<CompiledUNet>() {
        println!("{:?}", unet.stats());
    }
    Ok(())
}
