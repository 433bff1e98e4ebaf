//! This library's half of the benchmark; `benchmarks/diffusers_worker.py` is the other, line for line.
//!
//! `bench_worker MODE FOLDER [ARGUMENT ...]` prepares, prints `ready`, and for each line on standard input does one run
//! and prints its seconds, then the peak of its resident memory in bytes.

use anyhow::{Context, bail};
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::ModelMixin;
use tch_diffusers::models::transformers::{FluxInputs, FluxTransformer2DModel};
use tch_diffusers::models::unets::{AddedCond, UNet, UNet2DConditionModel, UNetInputs};
use tch_diffusers::nn::Module;
use tch_diffusers::pipelines::stable_diffusion::StableDiffusionPipeline;
use tch_diffusers::{AutoModel, Generator, KindExt};

/// Serves libtorch as well: tensors come and go thousands of times a step, which the system's allocator is slower at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["steps", folder, steps] => pipeline_steps(folder, steps.parse()?),
        ["unet", folder, dtype, latent, batch, output] => {
            unet_step(folder, dtype, latent.parse()?, batch.parse()?, Path::new(output))
        }
        ["sdxl", folder, dtype, latent, batch, output] => {
            sdxl_step(folder, dtype, latent.parse()?, batch.parse()?, Path::new(output))
        }
        ["flux", folder, dtype, side, tokens, output] => {
            flux_step(folder, dtype, side.parse()?, tokens.parse()?, Path::new(output))
        }
        ["load", folder, dtype] => load(folder, dtype),
        _ => bail!("unknown arguments {arguments:?}"),
    }
}

/// Denoising steps of a pipeline, from ready embeddings to latents.
fn pipeline_steps(folder: &str, steps: usize) -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder).load()?;
    pipe.progress_bar.disable = true;
    let embeds = pipe.encode_prompt(&["a red circle on a blue background"], 1, None)?;
    let negative = pipe.encode_prompt(&[""], 1, None)?;
    serve(|| {
        let call = pipe.call_embeds(embeds.shallow_clone()).negative_prompt_embeds(negative.shallow_clone());
        call.num_inference_steps(steps).seed(0).output_type(OutputType::Latent).run()?;
        Ok(())
    })
}

/// What the command line tool does for a model of some size.
fn allow_huge_pages() -> anyhow::Result<()> {
    Ok(rustix::thread::disable_transparent_huge_pages(false)?)
}

/// One call of a UNet; its prediction goes to the file `output`.
fn unet_step(folder: &str, dtype: &str, latent: i64, batch: i64, output: &Path) -> anyhow::Result<()> {
    allow_huge_pages()?;
    let kind = Kind::from_torch_name(dtype)?;
    let unet = UNet2DConditionModel::from_pretrained(folder).torch_dtype(kind).load()?;
    let mut generator = Generator::cpu(0)?;
    let sample = generator.randn([batch, 4, latent, latent], kind)?;
    let text = generator.randn([batch, 77, 768], kind)?;
    let timestep = Tensor::f_from_slice(&[500f32])?;
    predict(output, || Ok(UNet::forward(&unet, &UNetInputs::new(&sample, &timestep, &text))?))
}

/// One call of SDXL's UNet; its prediction goes to the file `output`.
fn sdxl_step(folder: &str, dtype: &str, latent: i64, batch: i64, output: &Path) -> anyhow::Result<()> {
    allow_huge_pages()?;
    let kind = Kind::from_torch_name(dtype)?;
    let unet = UNet2DConditionModel::from_pretrained(folder).torch_dtype(kind).load()?;
    let mut generator = Generator::cpu(0)?;
    let sample = generator.randn([batch, 4, latent, latent], kind)?;
    let text = generator.randn([batch, 77, 2048], kind)?;
    let text_embeds = generator.randn([batch, 1280], kind)?;
    let side = (8 * latent) as f32;
    let time_ids = Tensor::f_from_slice(&[side, side, 0.0, 0.0, side, side])?.f_to_kind(kind)?.f_repeat([batch, 1])?;
    let timestep = Tensor::f_from_slice(&[500f32])?;
    let mut inputs = UNetInputs::new(&sample, &timestep, &text);
    inputs.added_cond = Some(AddedCond { text_embeds: &text_embeds, time_ids: &time_ids });
    predict(output, || Ok(UNet::forward(&unet, &inputs)?))
}

/// One call of FLUX.1's transformer for a picture of `side` by `side` tokens; its prediction goes to the file `output`.
fn flux_step(folder: &str, dtype: &str, side: i64, tokens: i64, output: &Path) -> anyhow::Result<()> {
    allow_huge_pages()?;
    let kind = Kind::from_torch_name(dtype)?;
    let transformer = FluxTransformer2DModel::from_pretrained(folder).torch_dtype(kind).load()?;
    let mut generator = Generator::cpu(0)?;
    let hidden_states = generator.randn([1, side * side, 64], kind)?;
    let encoder_hidden_states = generator.randn([1, tokens, 4096], kind)?;
    let pooled_projections = generator.randn([1, 768], kind)?;
    let options = (Kind::Float, Device::Cpu);
    let along = Tensor::f_arange(side, options)?;
    let rows = along.f_repeat_interleave_self_int(side, 0, None)?;
    let columns = along.f_repeat([side])?;
    let img_ids = Tensor::f_stack(&[rows.f_zeros_like()?, rows, columns], 1)?.f_to_kind(kind)?;
    let txt_ids = Tensor::f_zeros([tokens, 3], (kind, Device::Cpu))?;
    let timestep = Tensor::f_from_slice(&[0.5f32])?.f_to_kind(kind)?;
    let guidance = Tensor::f_from_slice(&[3.5f32])?;
    let inputs = FluxInputs {
        hidden_states: &hidden_states,
        encoder_hidden_states: &encoder_hidden_states,
        pooled_projections: &pooled_projections,
        timestep: &timestep,
        img_ids: &img_ids,
        txt_ids: &txt_ids,
        guidance: Some(&guidance),
    };
    predict(output, || Ok(transformer.forward(&inputs)?))
}

/// Serves one call of a model; the last prediction goes to the file `output`.
fn predict(output: &Path, mut forward: impl FnMut() -> anyhow::Result<Tensor>) -> anyhow::Result<()> {
    let _no_grad = tch::no_grad_guard();
    let mut prediction = None;
    serve(|| {
        prediction = Some(forward()?);
        Ok(())
    })?;
    let prediction = prediction.context("no run was asked for")?.f_to_kind(Kind::Float)?;
    Ok(Tensor::write_safetensors(&[("prediction", prediction)], output)?)
}

/// Reading a model; then a look at every weight, since a mapped file is read when it is looked at.
fn load(folder: &str, dtype: &str) -> anyhow::Result<()> {
    allow_huge_pages()?;
    let kind = Kind::from_torch_name(dtype)?;
    let mut model = None;
    serve(|| {
        model = Some(AutoModel::from_pretrained(folder).torch_dtype(kind).device(Device::Cpu).load()?);
        Ok(())
    })?;
    let model = model.context("no run was asked for")?;
    let start = Instant::now();
    for (_, tensor) in model.node().state_dict() {
        let _ = tensor.f_flatten(0, -1)?.f_view_dtype(Kind::Int8)?.f_max()?;
    }
    println!("{} {}", start.elapsed().as_secs_f64(), peak_resident_bytes()?);
    Ok(())
}

fn serve(mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        if line?.is_empty() {
            break;
        }
        let start = Instant::now();
        run()?;
        println!("{} {}", start.elapsed().as_secs_f64(), peak_resident_bytes()?);
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// The kernel's VmHWM.
fn peak_resident_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
