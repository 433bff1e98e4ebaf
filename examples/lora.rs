//! Low-rank adapters: two of them, weighed, fused into the weights, and taken away again.
//!
//! `cargo run --release --example lora`. The adapters are random and of this program's own making: what they draw is no
//! style, but it can be seen that they are at work.

use std::path::Path;
use tch::{Kind, Tensor};
use tch_diffusers::loaders::LoraOptions;
use tch_diffusers::nn::lora_shapes;
use tch_diffusers::pipelines::stable_diffusion::{CrossAttentionKwargs, FuseLora, LORA_LOADABLE_MODULES};
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{Generator, StableDiffusionPipeline};

/// Writes a random LoRA of rank 4 for the values of the UNet's attention.
fn write_lora(pipe: &StableDiffusionPipeline, seed: u64, path: &Path) -> anyhow::Result<()> {
    let mut generator = Generator::cpu(seed)?;
    let mut tensors = vec![];
    for node in pipe.unet.tree().into_iter().flat_map(|tree| tree.walk()) {
        let Some([down, up]) = lora_shapes(&node, 4).filter(|_| node.path().ends_with("to_v")) else { continue };
        for (name, shape) in [("lora_A", down), ("lora_B", up)] {
            let tensor = generator.randn(&shape, Kind::Float)?.f_mul_scalar(0.3)?;
            tensors.push((format!("unet.{}.{name}.weight", node.path()), tensor));
        }
    }
    Ok(Tensor::write_safetensors(&tensors, path)?)
}

fn draw(pipe: &mut StableDiffusionPipeline, scale: f64, name: &str) -> anyhow::Result<()> {
    let call = pipe.call("a yellow star on a black background").num_inference_steps(15).seed(7);
    let output = call.cross_attention_kwargs(CrossAttentionKwargs { scale }).run()?;
    Ok(output.images.to_rgb()?[0].save(name)?)
}

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    for (seed, name) in [(1, "first"), (2, "second")] {
        let path = format!("{name}.safetensors");
        write_lora(&pipe, seed, Path::new(&path))?;
        pipe.load_lora_weights(&path, &LoraOptions::default().adapter_name(name))?;
    }
    pipe.set_adapters(&["first", "second"], &[0.8, 0.3])?;
    draw(&mut pipe, 1.0, "both.png")?;
    draw(&mut pipe, 0.5, "half.png")?;

    // As part of the weights they cost no time.
    pipe.fuse_lora(&FuseLora { adapter_names: Some(&["first"]), ..FuseLora::default() })?;
    draw(&mut pipe, 1.0, "fused.png")?;

    pipe.unfuse_lora(&LORA_LOADABLE_MODULES)?;
    pipe.unload_lora_weights();
    draw(&mut pipe, 1.0, "without.png")
}
