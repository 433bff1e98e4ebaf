//! A part of a picture drawn anew: by a mask over all of it, and at full size by the part around the mask.
//!
//! `cargo run --release --example inpaint`

use image::{DynamicImage, GrayImage, Luma};
use tch_diffusers::image_processor::VaeImageProcessor;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{StableDiffusionInpaintPipeline, StableDiffusionPipeline};

fn main() -> anyhow::Result<()> {
    let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    let star = pipe.call("a yellow star on a black background").num_inference_steps(20).seed(7).run()?;
    let star = star.images.into_images()?.remove(0);
    star.save("star.png")?;

    let inside = |x: u32, y: u32| (32..96).contains(&x) && (32..96).contains(&y);
    let mask = GrayImage::from_fn(128, 128, |x, y| Luma([if inside(x, y) { 255 } else { 0 }]));
    // A soft edge blends better where the part is put back.
    let mask = VaeImageProcessor::blur(&DynamicImage::from(mask), 4.0)?;

    let mut pipe = StableDiffusionInpaintPipeline::from_pipe(pipe);
    let prompt = "a red circle on a black background";
    let output = pipe.call(prompt, &star, &mask).num_inference_steps(20).seed(1).run()?;
    output.images.to_rgb()?[0].save("inpainted.png")?;
    let output = pipe.call(prompt, &star, &mask).padding_mask_crop(16).num_inference_steps(20).seed(1).run()?;
    output.images.to_rgb()?[0].save("inpainted-part.png")?;
    Ok(())
}
