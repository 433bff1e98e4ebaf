//! Whole pipelines: the same model, arguments and seed give the same latents and the same 8-bit pictures.

use crate::support::{cases, generated, json, name, record, tensors};
use serde_json::Value;
use std::path::Path;
use tch::{Kind, Tensor};
use tch_diffusers::configuration_utils::read_json;
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::pipelines::Prompt;
use tch_diffusers::pipelines::stable_diffusion::{StableDiffusionCall, StableDiffusionPipeline};
use tch_diffusers::schedulers::scheduler_from_config;
use tch_diffusers::{Generator, KindExt, TensorExt};

fn load(case: &Path, call: &Value) -> StableDiffusionPipeline {
    let folder = case.parent().unwrap().join("_models").join(call["model"].as_str().unwrap());
    let kind = Kind::from_torch_name(call["dtype"].as_str().unwrap()).unwrap();
    let scheduler = scheduler_from_config(&read_json(&case.join("scheduler_config.json")).unwrap()).unwrap();
    let loader = StableDiffusionPipeline::from_pretrained(folder).torch_dtype(kind);
    let mut pipe = loader.scheduler(scheduler).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn prompt(value: &Value) -> Prompt {
    match value {
        Value::Array(texts) => Prompt::from(texts.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>()),
        text => Prompt::from(text.as_str().unwrap()),
    }
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// The arguments of diffusers' call, one by one.
fn with_arguments<'a>(mut it: StableDiffusionCall<'a>, arguments: &Value) -> StableDiffusionCall<'a> {
    for (key, value) in arguments.as_object().unwrap() {
        let (float, integer) = (|| value.as_f64().unwrap(), || value.as_i64().unwrap());
        it = match key.as_str() {
            "negative_prompt" => it.negative_prompt(prompt(value)),
            "num_inference_steps" => it.num_inference_steps(integer() as usize),
            "num_images_per_prompt" => it.num_images_per_prompt(integer()),
            "guidance_scale" => it.guidance_scale(float()),
            "guidance_rescale" => it.guidance_rescale(float()),
            "eta" => it.eta(float()),
            "clip_skip" => it.clip_skip(integer() as usize),
            "height" => it.height(integer()),
            "width" => it.width(integer()),
            "timesteps" => it.timesteps(&floats(value)),
            "sigmas" => it.sigmas(&floats(value)),
            "model" | "dtype" | "prompt" | "seeds" | "latents" | "embeds" => it,
            other => panic!("the case has an argument `{other}` that this test does not know"),
        };
    }
    it
}

fn draw(pipe: &mut StableDiffusionPipeline, case: &Path, arguments: &Value, output_type: OutputType) -> Images {
    let given = tensors(&case.join("expected.safetensors"));
    let tensor = |key: &str| given[key].shallow_clone();
    let seeds = arguments.get("seeds").map_or(vec![0.0], floats);
    let mut generators: Vec<_> = seeds.iter().map(|&seed| Generator::cpu(seed as u64).unwrap()).collect();
    let mut it = match given.contains_key("given_embeds") {
        true => pipe.call_embeds(tensor("given_embeds")).negative_prompt_embeds(tensor("given_negative_embeds")),
        false => pipe.call(prompt(&arguments["prompt"])),
    };
    if given.contains_key("given_latents") {
        it = it.latents(tensor("given_latents"));
    }
    with_arguments(it, arguments).generators(&mut generators).output_type(output_type).run().unwrap().images
}

#[test]
fn the_same_seed_gives_the_same_picture() {
    for case in cases(&generated("pipeline")) {
        let arguments = json(&case.join("call.json"));
        let expected = tensors(&case.join("expected.safetensors"));
        let mut pipe = load(&case, &arguments);
        let record = |quantity: &str, difference: f64| record("pipeline", &name(&case), quantity, difference, 0.0);
        let Images::Latent(latents) = draw(&mut pipe, &case, &arguments, OutputType::Latent) else { unreachable!() };
        record("latents", latents.max_abs_diff(&expected["latent"]).unwrap());
        let Images::Tensor(pixels) = draw(&mut pipe, &case, &arguments, OutputType::Tensor) else { unreachable!() };
        record("pixels in [0, 1]", pixels.max_abs_diff(&expected["pt"]).unwrap());
        let pictures = draw(&mut pipe, &case, &arguments, OutputType::Image).to_rgb().unwrap();
        let bytes: Vec<u8> = pictures.iter().flat_map(|picture| picture.as_raw().clone()).collect();
        let difference = Tensor::from_slice(&bytes).max_abs_diff(&expected["np"].flatten(0, -1)).unwrap();
        record("8-bit picture", difference);
    }
}
