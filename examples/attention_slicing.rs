//! Attention a few heads at a time: less memory, more time, the same picture.
//!
//! `cargo run --release --example attention_slicing`

use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::attention_processor::AttentionSlicing;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline, TensorExt};

fn draw(pipe: &mut StableDiffusionPipeline) -> anyhow::Result<tch::Tensor> {
    let call = pipe.call("a red heart on a white background").num_inference_steps(8).seed(1);
    Ok(call.output_type(OutputType::Tensor).run()?.images.into_tensor()?)
}

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    let plain = draw(&mut pipe)?;
    for slicing in [AttentionSlicing::Auto, AttentionSlicing::Max] {
        pipe.enable_attention_slicing(slicing)?;
        println!("{slicing:?}: pixels in [0, 1] differ by at most {:.1e}", draw(&mut pipe)?.max_abs_diff(&plain)?);
    }
    pipe.disable_attention_slicing()?;
    Ok(())
}
