//! Whole pipelines of Stable Diffusion XL's kind, from text and from pictures, the refiner among them: the same model, arguments
//! and seed give the same latents and the same 8-bit pictures.

use super::img2img::pictures;
use super::pipeline::{compare, floats, generators, prompt};
use crate::support::{cases, generated, json, tensors};
use serde_json::Value;
use std::path::Path;
use tch::Kind;
use tch_diffusers::configuration_utils::read_json;
use tch_diffusers::image_processor::{ImageInput, Images, OutputType};
use tch_diffusers::pipelines::PooledPromptEmbeds;
use tch_diffusers::pipelines::stable_diffusion_xl::{
    StableDiffusionXLCall, StableDiffusionXLImg2ImgCall, StableDiffusionXLLoader,
};
use tch_diffusers::schedulers::scheduler_from_config;
use tch_diffusers::utils::progress::ProgressBarConfig;
use tch_diffusers::{KindExt, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline};

fn load<P: From<StableDiffusionXLPipeline>>(
    from_pretrained: impl FnOnce(&Path) -> StableDiffusionXLLoader<P>,
    case: &Path,
    call: &Value,
) -> P {
    let folder = case.parent().unwrap().join("_models").join(call["model"].as_str().unwrap());
    let kind = Kind::from_torch_name(call["dtype"].as_str().unwrap()).unwrap();
    let scheduler = scheduler_from_config(&read_json(&case.join("scheduler_config.json")).unwrap()).unwrap();
    let hidden = ProgressBarConfig { disable: true, desc: None };
    from_pretrained(&folder).torch_dtype(kind).scheduler(scheduler).progress_bar(hidden).load().unwrap()
}

fn pair(value: &Value) -> (i64, i64) {
    (value[0].as_i64().unwrap(), value[1].as_i64().unwrap())
}

/// The arguments that both pipelines take, one by one; of others, `own` says whether it knows them.
fn with_arguments<'a, T>(
    mut it: StableDiffusionXLCall<'a, T>,
    arguments: &Value,
    own: &[&str],
) -> StableDiffusionXLCall<'a, T> {
    for (key, value) in arguments.as_object().unwrap() {
        let (float, integer) = (|| value.as_f64().unwrap(), || value.as_i64().unwrap());
        let (first, second) = if value.is_array() && value[0].is_i64() { pair(value) } else { (0, 0) };
        it = match key.as_str() {
            "prompt_2" => it.prompt_2(prompt(value)),
            "negative_prompt" => it.negative_prompt(prompt(value)),
            "negative_prompt_2" => it.negative_prompt_2(prompt(value)),
            "original_size" => it.original_size(first, second),
            "crops_coords_top_left" => it.crops_coords_top_left(first, second),
            "target_size" => it.target_size(first, second),
            "negative_original_size" => it.negative_original_size(first, second),
            "negative_crops_coords_top_left" => it.negative_crops_coords_top_left(first, second),
            "negative_target_size" => it.negative_target_size(first, second),
            "num_inference_steps" => it.num_inference_steps(integer() as usize),
            "timesteps" => it.timesteps(&floats(value)),
            "sigmas" => it.sigmas(&floats(value)),
            "denoising_end" => it.denoising_end(float()),
            "guidance_scale" => it.guidance_scale(float()),
            "guidance_rescale" => it.guidance_rescale(float()),
            "num_images_per_prompt" => it.num_images_per_prompt(integer()),
            "eta" => it.eta(float()),
            "clip_skip" => it.clip_skip(integer() as usize),
            "model" | "dtype" | "prompt" | "seeds" | "latents" | "embeds" => it,
            other if own.contains(&other) => it,
            other => panic!("the case has an argument `{other}` that this test does not know"),
        };
    }
    it
}

pub(super) fn draw(
    pipe: &mut StableDiffusionXLPipeline,
    case: &Path,
    arguments: &Value,
    output_type: OutputType,
) -> Images {
    let given = tensors(&case.join("expected.safetensors"));
    let tensor = |key: &str| given[key].shallow_clone();
    let embeds = |of: &str| PooledPromptEmbeds {
        prompt_embeds: tensor(&format!("given_{of}prompt_embeds")),
        pooled_prompt_embeds: tensor(&format!("given_{of}pooled_prompt_embeds")),
    };
    let mut generators = generators(arguments);
    let mut it = match given.contains_key("given_prompt_embeds") {
        true => pipe.call_embeds(embeds("")).negative_embeds(embeds("negative_")),
        false => pipe.call(prompt(&arguments["prompt"])),
    };
    if given.contains_key("given_latents") {
        it = it.latents(tensor("given_latents"));
    }
    if let (Some(height), Some(width)) = (arguments["height"].as_i64(), arguments["width"].as_i64()) {
        it = it.height(height).width(width);
    }
    with_arguments(it, arguments, &["height", "width"])
        .generators(&mut generators)
        .output_type(output_type)
        .run()
        .unwrap()
        .images
}

fn with_own<'a>(mut it: StableDiffusionXLImg2ImgCall<'a>, arguments: &Value) -> StableDiffusionXLImg2ImgCall<'a> {
    let number = |key: &str| arguments.get(key).and_then(Value::as_f64);
    if let Some(strength) = number("strength") {
        it = it.strength(strength);
    }
    if let Some(part) = number("denoising_start") {
        it = it.denoising_start(part);
    }
    if let (Some(score), Some(negative)) = (number("aesthetic_score"), number("negative_aesthetic_score")) {
        it = it.aesthetic_score(score).negative_aesthetic_score(negative);
    }
    it
}

fn draw_from_image(
    pipe: &mut StableDiffusionXLImg2ImgPipeline,
    case: &Path,
    arguments: &Value,
    output_type: OutputType,
) -> Images {
    let mut given = tensors(&case.join("expected.safetensors"));
    let image = given.remove("given_image").map_or_else(|| pictures(case, "image"), ImageInput::from);
    let mut generators = generators(arguments);
    let mut it = with_own(pipe.call(prompt(&arguments["prompt"]), image), arguments);
    if let Some(latents) = given.remove("given_latents") {
        it = it.latents(latents);
    }
    let own =
        ["strength", "denoising_start", "aesthetic_score", "negative_aesthetic_score", "images", "size", "tensor"];
    let it = with_arguments(it, arguments, &own);
    it.generators(&mut generators).output_type(output_type).run().unwrap().images
}

#[test]
fn the_same_seed_gives_the_same_picture() {
    for case in cases(&generated("sdxl_pipeline")) {
        let arguments = json(&case.join("call.json"));
        let mut pipe = load(|folder| StableDiffusionXLPipeline::from_pretrained(folder), &case, &arguments);
        compare("sdxl_pipeline", &case, |output_type| draw(&mut pipe, &case, &arguments, output_type));
    }
}

#[test]
fn the_same_picture_and_seed_give_the_same_picture() {
    for case in cases(&generated("sdxl_img2img")) {
        let arguments = json(&case.join("call.json"));
        let mut pipe = load(|folder| StableDiffusionXLImg2ImgPipeline::from_pretrained(folder), &case, &arguments);
        compare("sdxl_img2img", &case, |output_type| draw_from_image(&mut pipe, &case, &arguments, output_type));
    }
}

#[test]
fn a_saved_pipeline_draws_the_same_picture() {
    let folder = generated("sdxl_pipeline").join("_models/sdxl");
    let hidden = || ProgressBarConfig { disable: true, desc: None };
    let mut pipe = StableDiffusionXLPipeline::from_pretrained(folder).progress_bar(hidden()).load().unwrap();
    let saved = tempfile::tempdir().unwrap();
    pipe.save_pretrained(saved.path()).unwrap();
    let mut again = StableDiffusionXLPipeline::from_pretrained(saved.path()).progress_bar(hidden()).load().unwrap();
    let draw = |pipe: &mut StableDiffusionXLPipeline| {
        pipe.call("a red circle").num_inference_steps(2).seed(5).run().unwrap().images.to_rgb().unwrap().remove(0)
    };
    assert_eq!(draw(&mut pipe), draw(&mut again));
}
