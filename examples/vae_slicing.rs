//! A batch whose pictures are decoded one at a time: the decoder's memory is that of one picture.
//!
//! `cargo run --release --example vae_slicing`

use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    pipe.enable_vae_slicing();
    let call = pipe.call("a yellow star on a black background").num_images_per_prompt(4);
    let output = call.num_inference_steps(25).seed(7).run()?;
    for (number, picture) in output.images.to_rgb()?.iter().enumerate() {
        picture.save(format!("star-{number}.png"))?;
    }
    pipe.disable_vae_slicing();
    Ok(())
}
