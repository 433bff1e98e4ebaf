//! Attention by libtorch's memory-efficient kernel, under the name that xFormers gave it.
//!
//! `cargo run --release --example memory_efficient_attention`

use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init();
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    // On the CPU a warning says that libtorch picks the kernel.
    pipe.enable_xformers_memory_efficient_attention()?;
    if let Some((path, processor)) = pipe.attn_processors().first() {
        println!("{path}: {processor:?}");
    }
    let output = pipe.call("a red heart on a white background").num_inference_steps(25).seed(1).run()?;
    output.images.to_rgb()?[0].save("heart.png")?;
    pipe.disable_xformers_memory_efficient_attention()?;
    Ok(())
}
