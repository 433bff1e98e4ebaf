//! Watching the denoising and stopping it early.
//!
//! `cargo run --release --example step_callback`

use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{Generator, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    pipe.progress_bar.disable = true;
    let mut generator = Generator::cpu(5)?;
    let output = pipe
        .call(["a green circle on a black background", "an orange cross on a white background"])
        .negative_prompt(["a red circle", "a red cross"])
        .generator(&mut generator)
        .num_inference_steps(25)
        .callback_on_step_end(|end| {
            let spread = end.latents.f_std(true)?.f_double_value(&[])?;
            println!("step {:2}, timestep {:5.1}: the latents spread {spread:.3}", end.step, end.timestep);
            end.interrupt = end.step == 19;
            Ok(())
        })
        .run()?;
    for (number, picture) in output.images.to_rgb()?.iter().enumerate() {
        picture.save(format!("early-{number}.png"))?;
    }
    Ok(())
}
