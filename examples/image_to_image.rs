//! A picture from a picture and a prompt, and the same components as another pipeline.
//!
//! `cargo run --release --example image_to_image`

use image::{Rgb, RgbImage};
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{StableDiffusionImg2ImgPipeline, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    // A rough sketch: a blue disc on white.
    let inside = |x: u32, y: u32| (x as i32 - 64).pow(2) + (y as i32 - 64).pow(2) < 40 * 40;
    let sketch = RgbImage::from_fn(128, 128, |x, y| Rgb(if inside(x, y) { [40, 60, 220] } else { [250; 3] }));
    sketch.save("sketch.png")?;

    let pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    // The components move into the other pipeline: no weight is copied.
    let mut pipe = StableDiffusionImg2ImgPipeline::from_pipe(pipe);
    for strength in [0.5, 0.9] {
        let call = pipe.call("a blue circle on a white background", sketch.clone()).strength(strength);
        let output = call.num_inference_steps(20).seed(3).run()?;
        output.images.to_rgb()?[0].save(format!("from-sketch-{strength}.png"))?;
    }
    Ok(())
}
