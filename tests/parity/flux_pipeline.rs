//! Whole pipelines of FLUX.1's kind: the same model, arguments and seed give the same latents and the same 8-bit pictures.

use super::pipeline::{compare, floats, generators, prompt};
use crate::support::{cases, generated, json, tensors};
use serde_json::Value;
use std::path::Path;
use tch::Kind;
use tch_diffusers::configuration_utils::read_json;
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::pipelines::PooledPromptEmbeds;
use tch_diffusers::pipelines::flux::FluxCall;
use tch_diffusers::schedulers::scheduler_from_config;
use tch_diffusers::utils::progress::ProgressBarConfig;
use tch_diffusers::{FluxPipeline, KindExt};

fn load(case: &Path, call: &Value) -> FluxPipeline {
    let folder = case.parent().unwrap().join("_models").join(call["model"].as_str().unwrap());
    let kind = Kind::from_torch_name(call["dtype"].as_str().unwrap()).unwrap();
    let scheduler = scheduler_from_config(&read_json(&case.join("scheduler_config.json")).unwrap()).unwrap();
    let hidden = ProgressBarConfig { disable: true, desc: None };
    FluxPipeline::from_pretrained(folder).torch_dtype(kind).scheduler(scheduler).progress_bar(hidden).load().unwrap()
}

fn with_arguments<'a>(mut it: FluxCall<'a>, arguments: &Value) -> FluxCall<'a> {
    for (key, value) in arguments.as_object().unwrap() {
        let (float, integer) = (|| value.as_f64().unwrap(), || value.as_i64().unwrap());
        it = match key.as_str() {
            "prompt_2" => it.prompt_2(prompt(value)),
            "negative_prompt" => it.negative_prompt(prompt(value)),
            "negative_prompt_2" => it.negative_prompt_2(prompt(value)),
            "true_cfg_scale" => it.true_cfg_scale(float()),
            "height" => it.height(integer()),
            "width" => it.width(integer()),
            "num_inference_steps" => it.num_inference_steps(integer() as usize),
            "sigmas" => it.sigmas(&floats(value)),
            "guidance_scale" => it.guidance_scale(float()),
            "num_images_per_prompt" => it.num_images_per_prompt(integer()),
            "max_sequence_length" => it.max_sequence_length(integer() as usize),
            "model" | "dtype" | "prompt" | "seeds" | "latents" | "embeds" => it,
            other => panic!("the case has an argument `{other}` that this test does not know"),
        };
    }
    it
}

pub(super) fn draw(pipe: &mut FluxPipeline, case: &Path, arguments: &Value, output_type: OutputType) -> Images {
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
    with_arguments(it, arguments).generators(&mut generators).output_type(output_type).run().unwrap().images
}

#[test]
fn the_same_seed_gives_the_same_picture() {
    for case in cases(&generated("flux_pipeline")) {
        let arguments = json(&case.join("call.json"));
        let mut pipe = load(&case, &arguments);
        compare("flux_pipeline", &case, |output_type| draw(&mut pipe, &case, &arguments, output_type));
    }
}
