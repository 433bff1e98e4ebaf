//! One picture under some techniques to save memory, in a process of its own, for `benchmarks/memory.py`;
//! `benchmarks/memory_diffusers.py` is diffusers' half, line for line.
//!
//! `bench_memory FOLDER TECHNIQUES IMAGES STEPS GUIDANCE SIDE OUTPUT` prints one line of JSON.

use anyhow::{Context, bail};
use std::time::Instant;
use tch::{Device, Kind};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::To;
use tch_diffusers::models::attention_processor::AttentionSlicing;
use tch_diffusers::pipelines::stable_diffusion::StableDiffusionPipeline;
use tch_diffusers::{MemoryFormat, PipelineMixin};

/// Serves libtorch as well, as in the command line tool.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, techniques, images, steps, guidance, side, output] = arguments.as_slice() else {
        bail!("usage: bench_memory FOLDER TECHNIQUES IMAGES STEPS GUIDANCE SIDE OUTPUT");
    };
    // As the command line tool does for a model of this size.
    rustix::thread::disable_transparent_huge_pages(false)?;
    let started_with = resident("VmHWM")?;
    let techniques: Vec<&str> = techniques.split(',').filter(|name| !name.is_empty()).collect();

    let start = Instant::now();
    let mut loader = StableDiffusionPipeline::from_pretrained(folder).torch_dtype(Kind::Float);
    for technique in &techniques {
        let options = match *technique {
            "disk_block" => GroupOffloading::block_level(1),
            "disk_leaf" => GroupOffloading::leaf_level(),
            _ => continue,
        };
        loader = loader.group_offload(options.onload_device(Device::Cpu).offload_to_disk(true));
    }
    let mut pipe = loader.load()?;
    pipe.progress_bar.disable = true;
    techniques.iter().try_for_each(|technique| enable(&mut pipe, technique))?;
    let loaded = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let call = pipe.call("a red circle on a blue background").num_images_per_prompt(images.parse()?);
    let call = call.num_inference_steps(steps.parse()?).guidance_scale(guidance.parse()?).seed(0);
    let call = call.height(side.parse()?).width(side.parse()?).output_type(OutputType::Tensor);
    let estimated = call.estimate_memory()?.process_peak().context("not on the CPU")?;
    // The peak begins anew at what is taken now.
    let loading = resident("VmHWM")? - started_with;
    std::fs::write("/proc/self/clear_refs", "5")?;
    let picture = call.run()?;
    let called = start.elapsed().as_secs_f64();
    let calling = resident("VmHWM")? - started_with;
    let peak = loading.max(calling);
    let measured = serde_json::json!({
        "load_seconds": loaded,
        "seconds": called,
        "peak_bytes": peak,
        "call_peak_bytes": calling,
        "estimated_bytes": estimated,
    });
    println!("{measured}");
    let images = picture.images.into_tensor()?.f_contiguous()?;
    Ok(tch::Tensor::write_safetensors(&[("images", images)], output)?)
}

fn enable(pipe: &mut StableDiffusionPipeline, technique: &str) -> anyhow::Result<()> {
    match technique {
        "disk_block" | "disk_leaf" => {}
        "attention_slicing" => pipe.enable_attention_slicing(AttentionSlicing::Auto)?,
        "vae_slicing" => pipe.enable_vae_slicing(),
        "vae_tiling" => {
            pipe.enable_vae_tiling();
            (pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size) = (256, 32);
        }
        "channels_last" => pipe.unet.move_to(To::MemoryFormat(MemoryFormat::ChannelsLast))?,
        "layerwise_casting" => pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None)?,
        other => bail!("unknown technique {other}"),
    }
    Ok(())
}

/// A size of /proc/self/status, in bytes; mapped pages that were touched are counted.
fn resident(name: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<u64>()? * 1024)
}
