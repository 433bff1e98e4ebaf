//! Image-to-image: the same picture, arguments and seed give the same latents and the same 8-bit pictures.

use super::pipeline::{compare, generators, load, prompt, with_arguments};
use crate::support::{cases, generated, json, tensors};
use image::DynamicImage;
use serde_json::Value;
use std::path::Path;
use tch_diffusers::StableDiffusionImg2ImgPipeline;
use tch_diffusers::image_processor::{ImageInput, Images, OutputType};

/// The pictures `image-0.png`, `image-1.png` ... of a case.
pub(super) fn pictures(case: &Path, stem: &str) -> ImageInput {
    let paths = (0..).map(|number| case.join(format!("{stem}-{number}.png"))).take_while(|path| path.is_file());
    let pictures: Vec<DynamicImage> = paths.map(|path| image::open(path).unwrap()).collect();
    assert!(!pictures.is_empty(), "{} has no {stem}", case.display());
    pictures.into()
}

fn draw(pipe: &mut StableDiffusionImg2ImgPipeline, case: &Path, arguments: &Value, output_type: OutputType) -> Images {
    let image = match tensors(&case.join("expected.safetensors")).remove("given_image") {
        Some(tensor) => ImageInput::from(tensor),
        None => pictures(case, "image"),
    };
    let mut generators = generators(arguments);
    let mut it = pipe.call(prompt(&arguments["prompt"]), image);
    if let Some(strength) = arguments.get("strength").and_then(Value::as_f64) {
        it = it.strength(strength);
    }
    let it = with_arguments(it, arguments, &["strength", "images", "size", "tensor"]);
    it.generators(&mut generators).output_type(output_type).run().unwrap().images
}

#[test]
fn the_same_picture_and_seed_give_the_same_picture() {
    for case in cases(&generated("img2img")) {
        let arguments = json(&case.join("call.json"));
        let mut pipe = load(|folder| StableDiffusionImg2ImgPipeline::from_pretrained(folder), &case, &arguments);
        compare("img2img", &case, |output_type| draw(&mut pipe, &case, &arguments, output_type));
    }
}
