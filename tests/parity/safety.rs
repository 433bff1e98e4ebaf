//! The safety checker: the same pictures are looked at, judged and blackened as by diffusers.

use super::img2img::pictures;
use super::pipeline::{generators, load, prompt, with_arguments, with_size};
use crate::support::{cases, generated, json, name, record, tensors};
use image::DynamicImage;
use serde_json::Value;
use std::path::Path;
use tch::{Kind, Tensor};
use tch_diffusers::image_processor::{CLIPImageProcessor, OutputType};
use tch_diffusers::pipelines::stable_diffusion::{SafetyScores, StableDiffusionPipelineOutput};
use tch_diffusers::{
    KindExt, ModelMixin, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline,
    StableDiffusionSafetyChecker, TensorExt,
};

fn flags(tensor: &Tensor) -> Vec<bool> {
    Vec::<bool>::try_from(tensor).unwrap()
}

#[test]
fn pictures_of_all_sizes_and_modes_are_looked_at_in_the_same_numbers() {
    let folder = generated("safety").join("_processors");
    let picture = |name: &str| image::open(folder.join("pictures").join(format!("{name}.png"))).unwrap();
    for case in cases(&folder).iter().filter(|case| name(case) != "pictures") {
        let processor = CLIPImageProcessor::from_pretrained(case).unwrap();
        let mut largest: f64 = 0.0;
        for (key, expected) in tensors(&case.join("expected.safetensors")) {
            let pictures = match key.as_str() {
                "_batch" => vec![picture("RGB_64x64"), picture("L_64x64")],
                name => vec![picture(name)],
            };
            let found = processor.preprocess(&pictures).unwrap();
            assert_eq!(found.size(), expected.size(), "{}: {key}", case.display());
            largest = largest.max(found.max_abs_diff(&expected).unwrap());
        }
        record("safety", &format!("processor_{}", name(case)), "pixel values", largest, 0.0);
    }
}

#[test]
fn a_picture_that_is_not_brought_to_colour_keeps_its_channels() {
    let grey = CLIPImageProcessor {
        do_convert_rgb: false,
        image_mean: vec![0.5],
        image_std: vec![0.25],
        ..CLIPImageProcessor::default()
    };
    let values = grey.preprocess(&[DynamicImage::new_luma8(300, 240)]).unwrap();
    assert_eq!(values.size(), [1, 1, 224, 224]);
    assert_eq!(values.to_vec().unwrap()[0], -2.0);
}

#[test]
fn checkers_judge_as_diffusers_does() {
    for case in cases(&generated("safety").join("_checkers")) {
        let expected = tensors(&case.join("expected.safetensors"));
        let kind = Kind::from_torch_name(json(&case.join("case.json"))["dtype"].as_str().unwrap()).unwrap();
        let checker = StableDiffusionSafetyChecker::from_pretrained(&case).torch_dtype(kind).load().unwrap();
        let record = |quantity: &str, difference: f64| {
            record("safety", &format!("checker_{}", name(&case)), quantity, difference, 0.0);
        };
        let difference = |found: &Tensor, key: &str| found.max_abs_diff(&expected[key]).unwrap();
        let clip_input = &expected["clip_input"];
        let seen = checker.vision_model().forward(clip_input).unwrap();
        record("vision model", difference(&seen.last_hidden_state, "last_hidden_state"));
        record("pooled", difference(&seen.pooler_output, "pooler_output"));
        let scores = checker.scores(clip_input).unwrap();
        let all =
            |of: fn(&SafetyScores) -> &Vec<f32>| scores.iter().flat_map(|one| of(one).clone()).collect::<Vec<f32>>();
        let special = Tensor::from_slice(&all(|one| &one.special_scores));
        record("special scores", special.max_abs_diff(&expected["special_scores"].flatten(0, -1)).unwrap());
        let concepts = Tensor::from_slice(&all(|one| &one.concept_scores));
        record("concept scores", concepts.max_abs_diff(&expected["concept_scores"].flatten(0, -1)).unwrap());
        let before = expected["images"].copy();
        let (images, found) = checker.forward(clip_input, &expected["images"]).unwrap();
        assert_eq!(found, flags(&expected["flags"]), "{}", case.display());
        record("pictures", difference(&images, "checked"));
        assert_eq!(expected["images"], before, "the tensor that was given is written to");
    }
}

fn draw(case: &Path, call: &Value, output_type: OutputType) -> StableDiffusionPipelineOutput {
    let kind = Kind::from_torch_name(call["dtype"].as_str().unwrap()).unwrap();
    let equip = |mut pipe: StableDiffusionPipeline| {
        let checker = StableDiffusionSafetyChecker::from_pretrained(case.join("safety_checker"));
        pipe.safety_checker = Some(checker.torch_dtype(kind).load().unwrap());
        pipe.feature_extractor = Some(CLIPImageProcessor::from_pretrained(case.join("feature_extractor")).unwrap());
        pipe
    };
    let pipe: StableDiffusionPipeline =
        equip(load(|folder| StableDiffusionPipeline::from_pretrained(folder), case, call));
    let (mut generators, text) = (generators(call), prompt(&call["prompt"]));
    let own = ["task", "strength", "padding_mask_crop", "height", "width"];
    match call["task"].as_str() {
        None => {
            let mut pipe = pipe;
            let it = with_size(with_arguments(pipe.call(text), call, &own), call);
            it.generators(&mut generators).output_type(output_type).run().unwrap()
        }
        Some("img2img") => {
            let mut pipe = StableDiffusionImg2ImgPipeline::from_pipe(pipe);
            let it = pipe.call(text, pictures(case, "image")).strength(call["strength"].as_f64().unwrap());
            with_arguments(it, call, &own).generators(&mut generators).output_type(output_type).run().unwrap()
        }
        _ => {
            let mut pipe = StableDiffusionInpaintPipeline::from_pipe(pipe);
            let mut it = pipe.call(text, pictures(case, "image"), pictures(case, "mask"));
            if let Some(pixels) = call.get("padding_mask_crop").and_then(Value::as_i64) {
                it = it.padding_mask_crop(pixels);
            }
            with_arguments(it, call, &own).generators(&mut generators).output_type(output_type).run().unwrap()
        }
    }
}

#[test]
fn the_same_pictures_are_black() {
    for case in cases(&generated("safety")) {
        let (call, expected) = (json(&case.join("call.json")), tensors(&case.join("expected.safetensors")));
        let flags = flags(&expected["flags"]);
        if let Some(pixels) = expected.get("pt") {
            let found = draw(&case, &call, OutputType::Tensor);
            assert_eq!(found.nsfw_content_detected.as_ref(), Some(&flags), "{}", case.display());
            let difference = found.images.into_tensor().unwrap().max_abs_diff(pixels).unwrap();
            record("safety", &name(&case), "pixels in [0, 1]", difference, 0.0);
        }
        let found = draw(&case, &call, OutputType::Image);
        assert_eq!(found.nsfw_content_detected, Some(flags), "{}", case.display());
        let bytes: Vec<u8> = found.images.to_rgb().unwrap().iter().flat_map(|one| one.as_raw().clone()).collect();
        let difference = Tensor::from_slice(&bytes).max_abs_diff(&expected["np"].flatten(0, -1)).unwrap();
        record("safety", &name(&case), "8-bit picture", difference, 0.0);
        if call.get("padding_mask_crop").is_none() {
            assert!(draw(&case, &call, OutputType::Latent).nsfw_content_detected.is_none());
        }
    }
}
