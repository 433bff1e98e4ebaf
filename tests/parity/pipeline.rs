//! Whole pipelines: the same model, arguments and seed give the same latents and the same 8-bit pictures.

use crate::support::{cases, generated, json, name, record, tensors};
use serde_json::Value;
use std::path::Path;
use tch::{Kind, Tensor};
use tch_diffusers::configuration_utils::read_json;
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::pipelines::Prompt;
use tch_diffusers::pipelines::stable_diffusion::{
    FromComponents, StableDiffusionCall, StableDiffusionLoader, StableDiffusionPipeline, TakesSize,
};
use tch_diffusers::schedulers::scheduler_from_config;
use tch_diffusers::utils::progress::ProgressBarConfig;
use tch_diffusers::{Generator, KindExt, TensorExt};

/// A pipeline of the case's model, dtype and scheduler.
pub(super) fn load<P: FromComponents>(
    loader: impl Fn(&Path) -> StableDiffusionLoader<P>,
    case: &Path,
    call: &Value,
) -> P {
    let folder = case.parent().unwrap().join("_models").join(call["model"].as_str().unwrap());
    let kind = Kind::from_torch_name(call["dtype"].as_str().unwrap()).unwrap();
    let scheduler = scheduler_from_config(&read_json(&case.join("scheduler_config.json")).unwrap()).unwrap();
    let hidden = ProgressBarConfig { disable: true, desc: None };
    loader(&folder).torch_dtype(kind).scheduler(scheduler).progress_bar(hidden).load().unwrap()
}

pub(super) fn prompt(value: &Value) -> Prompt {
    match value {
        Value::Array(texts) => Prompt::from(texts.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>()),
        text => Prompt::from(text.as_str().unwrap()),
    }
}

pub(super) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// One generator for each seed of the case, or one for all.
pub(super) fn generators(arguments: &Value) -> Vec<Generator> {
    let seeds = arguments.get("seeds").map_or(vec![0.0], floats);
    seeds.iter().map(|&seed| Generator::cpu(seed as u64).unwrap()).collect()
}

/// The arguments of diffusers' call that all pipelines take, one by one; of others, `own` says whether it knows them.
pub(super) fn with_arguments<'a, T>(
    mut it: StableDiffusionCall<'a, T>,
    arguments: &Value,
    own: &[&str],
) -> StableDiffusionCall<'a, T> {
    for (key, value) in arguments.as_object().unwrap() {
        let (float, integer) = (|| value.as_f64().unwrap(), || value.as_i64().unwrap());
        it = match key.as_str() {
            "negative_prompt" => it.negative_prompt(prompt(value)),
            "num_inference_steps" => it.num_inference_steps(integer() as usize),
            "num_images_per_prompt" => it.num_images_per_prompt(integer()),
            "guidance_scale" => it.guidance_scale(float()),
            "eta" => it.eta(float()),
            "clip_skip" => it.clip_skip(integer() as usize),
            "timesteps" => it.timesteps(&floats(value)),
            "sigmas" => it.sigmas(&floats(value)),
            "model" | "dtype" | "prompt" | "seeds" => it,
            other if own.contains(&other) => it,
            other => panic!("the case has an argument `{other}` that this test does not know"),
        };
    }
    it
}

/// The height and width that the case names.
pub(super) fn with_size<'a, T: TakesSize>(
    mut it: StableDiffusionCall<'a, T>,
    arguments: &Value,
) -> StableDiffusionCall<'a, T> {
    if let Some(height) = arguments.get("height").and_then(Value::as_i64) {
        it = it.height(height);
    }
    match arguments.get("width").and_then(Value::as_i64) {
        Some(width) => it.width(width),
        None => it,
    }
}

/// Holds latents, pixels and 8-bit pictures that `draw` gives to what diffusers drew.
pub(super) fn compare(group: &str, case: &Path, mut draw: impl FnMut(OutputType) -> Images) {
    let expected = tensors(&case.join("expected.safetensors"));
    let record = |quantity: &str, difference: f64| record(group, &name(case), quantity, difference, 0.0);
    if let Some(latent) = expected.get("latent") {
        let latents = draw(OutputType::Latent).into_tensor().unwrap();
        record("latents", latents.max_abs_diff(latent).unwrap());
        let pixels = draw(OutputType::Tensor).into_tensor().unwrap();
        record("pixels in [0, 1]", pixels.max_abs_diff(&expected["pt"]).unwrap());
    }
    let pictures = draw(OutputType::Image).to_rgb().unwrap();
    let bytes: Vec<u8> = pictures.iter().flat_map(|picture| picture.as_raw().clone()).collect();
    let difference = Tensor::from_slice(&bytes).max_abs_diff(&expected["np"].flatten(0, -1)).unwrap();
    record("8-bit picture", difference);
}

fn draw(pipe: &mut StableDiffusionPipeline, case: &Path, arguments: &Value, output_type: OutputType) -> Images {
    let given = tensors(&case.join("expected.safetensors"));
    let tensor = |key: &str| given[key].shallow_clone();
    let mut generators = generators(arguments);
    let mut it = match given.contains_key("given_embeds") {
        true => pipe.call_embeds(tensor("given_embeds")).negative_prompt_embeds(tensor("given_negative_embeds")),
        false => pipe.call(prompt(&arguments["prompt"])),
    };
    if given.contains_key("given_latents") {
        it = it.latents(tensor("given_latents"));
    }
    if let Some(rescale) = arguments.get("guidance_rescale").and_then(Value::as_f64) {
        it = it.guidance_rescale(rescale);
    }
    let own = ["height", "width", "guidance_rescale", "latents", "embeds"];
    let it = with_size(with_arguments(it, arguments, &own), arguments);
    it.generators(&mut generators).output_type(output_type).run().unwrap().images
}

#[test]
fn the_same_seed_gives_the_same_picture() {
    for case in cases(&generated("pipeline")) {
        let arguments = json(&case.join("call.json"));
        let mut pipe = load(|folder| StableDiffusionPipeline::from_pretrained(folder), &case, &arguments);
        compare("pipeline", &case, |output_type| draw(&mut pipe, &case, &arguments, output_type));
    }
}
