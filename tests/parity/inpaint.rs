//! Inpainting: the same picture, mask, arguments and seed give the same latents and the same 8-bit pictures.

use super::img2img::pictures;
use super::pipeline::{compare, generators, load, prompt, with_arguments, with_size};
use crate::support::{cases, generated, json, tensors};
use serde_json::Value;
use std::path::Path;
use tch_diffusers::StableDiffusionInpaintPipeline;
use tch_diffusers::image_processor::{ImageInput, Images, OutputType};

const OWN: [&str; 13] = [
    "strength",
    "images",
    "masks",
    "mask",
    "image_size",
    "image_mode",
    "mask_size",
    "height",
    "width",
    "tensor",
    "latents",
    "masked_image_latents",
    "padding_mask_crop",
];

fn draw(pipe: &mut StableDiffusionInpaintPipeline, case: &Path, arguments: &Value, output_type: OutputType) -> Images {
    let mut given = tensors(&case.join("expected.safetensors"));
    let (image, mask) = match (given.remove("given_image"), given.remove("given_mask")) {
        (Some(image), Some(mask)) => (ImageInput::from(image), ImageInput::from(mask)),
        _ => (pictures(case, "image"), pictures(case, "mask")),
    };
    let mut generators = generators(arguments);
    let mut it = pipe.call(prompt(&arguments["prompt"]), image, mask);
    if let Some(strength) = arguments.get("strength").and_then(Value::as_f64) {
        it = it.strength(strength);
    }
    if let Some(pixels) = arguments.get("padding_mask_crop").and_then(Value::as_i64) {
        it = it.padding_mask_crop(pixels);
    }
    if let Some(latents) = given.remove("given_masked_image_latents") {
        it = it.masked_image_latents(latents);
    }
    if let Some(latents) = given.remove("given_latents") {
        it = it.latents(latents);
    }
    let it = with_size(with_arguments(it, arguments, &OWN), arguments);
    it.generators(&mut generators).output_type(output_type).run().unwrap().images
}

#[test]
fn the_same_picture_mask_and_seed_give_the_same_picture() {
    for case in cases(&generated("inpaint")) {
        let arguments = json(&case.join("call.json"));
        let mut pipe = load(|folder| StableDiffusionInpaintPipeline::from_pretrained(folder), &case, &arguments);
        compare("inpaint", &case, |output_type| draw(&mut pipe, &case, &arguments, output_type));
    }
}
