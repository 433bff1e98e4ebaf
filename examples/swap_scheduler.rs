//! One prompt, every scheduler: each takes over the configuration of the one before.
//!
//! `cargo run --release --example swap_scheduler`

use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{SchedulerKind, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    for name in ["ddim", "euler", "dpmsolver", "unipc"] {
        pipe.scheduler = name.parse::<SchedulerKind>()?.from_config(pipe.scheduler.config())?;
        let output = pipe.call("a blue square on a yellow background").num_inference_steps(20).seed(3).run()?;
        output.images.to_rgb()?[0].save(format!("{name}.png"))?;
        println!("{name}.png");
    }
    Ok(())
}
