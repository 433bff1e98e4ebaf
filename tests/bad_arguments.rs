//! Arguments and configurations that nothing can be drawn with: each is refused with a sentence that names the argument and
//! what it may be, and the next picture is the right one.

use crate::support::generated;
use image::{DynamicImage, GrayImage, RgbImage};
use serde_json::json;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tch::{Device, Kind, Tensor};
use tch_diffusers::configuration_utils::ConfigMap;
use tch_diffusers::image_processor::{ImageInput, OutputType};
use tch_diffusers::models::ModelMixin;
use tch_diffusers::models::text_encoders::T5EncoderModel;
use tch_diffusers::models::transformers::FluxTransformer2DModel;
use tch_diffusers::nn::{RandomWeights, Weights};
use tch_diffusers::pipelines::stable_diffusion::StableDiffusionCall;
use tch_diffusers::schedulers::{FlowMatchEulerDiscreteScheduler, Scheduler, SchedulerMixin, Timesteps};
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{
    AutoencoderKL, CLIPTextModel, Error, PipelineMixin, Result, SchedulerKind, StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline, StableDiffusionPipeline, TensorExt, UNet2DConditionModel,
};

fn pipeline() -> StableDiffusionPipeline {
    let folder = generated("pipeline").join("_models/sd1");
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn latents(pipe: &mut StableDiffusionPipeline) -> Tensor {
    let call = pipe.call("a red circle").num_inference_steps(3).seed(1).output_type(OutputType::Latent);
    call.run().unwrap().images.into_tensor().unwrap()
}

/// Holds a refusal to the kind, and to `parts` of its text.
fn refused<T: std::fmt::Debug>(outcome: Result<T>, parts: &[&str]) {
    let error = outcome.unwrap_err();
    assert!(matches!(error.kind(), Error::Argument(_)), "{error:?}");
    for part in parts {
        assert!(error.to_string().contains(part), "{error} does not say {part}");
    }
}

#[test]
fn sizes_that_cannot_be_drawn_are_refused() {
    let mut pipe = pipeline();
    let before = latents(&mut pipe);
    let sizes = [0, -8, -1, 1, 7, 100, i64::MIN, i64::MAX];
    for side in sizes {
        let parts = ["`height` and `width`", "divisible by 8", &side.to_string()];
        refused(pipe.call("x").height(side).width(64).run(), &parts);
        refused(pipe.call("x").height(64).width(side).run(), &parts);
        refused(pipe.call("x").height(side).width(64).estimate_memory(), &parts);
    }
    let huge = i64::MAX - 7;
    for (height, width, images) in
        [(huge, huge, 1), (huge, 8, 1), (1 << 21, 1 << 20, 1), (64, 64, i64::MAX), (64, 64, 1 << 40)]
    {
        let call = pipe.call("x").height(height).width(width).num_images_per_prompt(images);
        refused(call.run(), &["pixels", "`num_images_per_prompt`"]);
    }
    assert_eq!(latents(&mut pipe).max_abs_diff(&before).unwrap(), 0.0);
    let mut pipe = StableDiffusionInpaintPipeline::from(pipe);
    let hole = || GrayImage::from_pixel(64, 64, image::Luma([255]));
    for side in sizes {
        refused(pipe.call("x", RgbImage::new(64, 64), hole()).height(side).run(), &["divisible by 8"]);
        refused(pipe.call("x", RgbImage::new(64, 64), hole()).width(side).run(), &["divisible by 8"]);
    }
}

#[test]
fn a_vae_that_shrinks_by_more_than_8_asks_for_its_own_multiples() {
    let mut pipe = pipeline();
    let config = pipe.vae.config().clone();
    let config = tch_diffusers::models::autoencoders::AutoencoderKLConfig {
        down_block_types: vec!["DownEncoderBlock2D".into(); 5],
        up_block_types: vec!["UpDecoderBlock2D".into(); 5],
        block_out_channels: vec![32; 5],
        ..config
    };
    pipe.vae = AutoencoderKL::from_weights(config, &RandomWeights::new(0, Kind::Float).unwrap()).unwrap();
    refused(pipe.call("x").height(72).width(64).run(), &["divisible by 16", "72"]);
    let call = pipe.call("x").height(80).width(64).num_inference_steps(1).output_type(OutputType::Tensor);
    assert_eq!(call.run().unwrap().images.into_tensor().unwrap().size(), [1, 3, 80, 64]);
}

#[test]
fn numbers_that_are_none_are_refused() {
    type Set = for<'a> fn(StableDiffusionCall<'a>, f64) -> StableDiffusionCall<'a>;
    let setters: [(&str, Set); 5] = [
        ("`guidance_scale`", |call, number| call.guidance_scale(number)),
        ("`guidance_rescale`", |call, number| call.guidance_rescale(number)),
        ("`eta`", |call, number| call.eta(number)),
        ("`timesteps`", |call, number| call.timesteps(&[900.0, number])),
        ("`sigmas`", |call, number| call.sigmas(&[9.0, number])),
    ];
    let mut pipe = pipeline();
    let before = latents(&mut pipe);
    for (name, set) in setters {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            refused(set(pipe.call("x"), number).run(), &[name, "finite", &number.to_string()]);
        }
    }
    refused(pipe.call("x").num_inference_steps(0).run(), &["`num_inference_steps`", "at least 1"]);
    for steps in [1001, usize::MAX] {
        refused(pipe.call("x").num_inference_steps(steps).run(), &[&steps.to_string(), "1000"]);
    }
    refused(pipe.call("x").num_images_per_prompt(-3).run(), &["`num_images_per_prompt`", "at least 1", "-3"]);
    refused(pipe.call(Vec::<String>::new()).run(), &["no prompt"]);
    for layers in [99, usize::MAX] {
        refused(pipe.call("x").clip_skip(layers).run(), &["clip_skip", &layers.to_string()]);
    }
    assert_eq!(latents(&mut pipe).max_abs_diff(&before).unwrap(), 0.0);
    let mut redraws = StableDiffusionImg2ImgPipeline::from(pipe);
    let slope = || RgbImage::from_pixel(64, 64, image::Rgb([9, 90, 200]));
    for number in [f64::NAN, f64::INFINITY, -0.5] {
        refused(redraws.call("x", slope()).strength(number).run(), &["`strength`", "between 0 and 1"]);
        if !number.is_finite() {
            refused(redraws.call("x", slope()).guidance_scale(number).run(), &["`guidance_scale`", "finite"]);
        }
    }
    refused(redraws.call("x", slope()).num_inference_steps(0).run(), &["`num_inference_steps`"]);
}

#[test]
fn custom_schedules_that_lead_nowhere_are_refused_by_every_scheduler() {
    let mut pipe = pipeline();
    let config = pipe.scheduler.config().clone();
    for kind in SchedulerKind::ALL {
        pipe.scheduler = kind.from_config(&config).unwrap();
        for schedule in [&[] as &[f64], &[f64::NAN]] {
            let outcome = pipe.call("x").timesteps(schedule).output_type(OutputType::Latent).run();
            assert!(outcome.is_err(), "{kind} walks the timesteps {schedule:?}");
        }
        for schedule in [&[] as &[f64], &[f64::NAN]] {
            let outcome = pipe.call("x").sigmas(schedule).output_type(OutputType::Latent).run();
            assert!(outcome.is_err(), "{kind} walks the sigmas {schedule:?}");
        }
        for steps in [0, 1 << 40, usize::MAX] {
            let outcome = pipe.scheduler.set_timesteps(Timesteps::Steps(steps));
            assert!(matches!(outcome, Err(Error::Argument(_))), "{kind} {steps}: {outcome:?}");
        }
        let _ = latents(&mut pipe);
    }
    let mut flow = FlowMatchEulerDiscreteScheduler::from_config(&ConfigMap::new()).unwrap();
    for steps in [0, 1 << 40, usize::MAX] {
        let outcome = flow.set_timesteps(Timesteps::Steps(steps));
        assert!(matches!(outcome, Err(Error::Argument(_))), "flow matching, {steps}: {outcome:?}");
    }
}

#[test]
fn tensors_of_a_wrong_shape_or_dtype_are_refused() {
    let mut pipe = pipeline();
    let before = latents(&mut pipe);
    let options = (Kind::Float, Device::Cpu);
    let factor = pipe.vae_scale_factor();
    let side = 64 / factor;
    let shapes: [&[i64]; 6] =
        [&[1, 4, side + 1, side], &[2, 4, side, side], &[1, 3, side, side], &[4, side, side], &[0, 4, side, side], &[]];
    for shape in shapes {
        let given = Tensor::zeros(shape, options);
        let call = pipe.call("x").height(64).width(64).latents(given);
        refused(call.run(), &["`latents`", &format!("[1, 4, {side}, {side}]"), &format!("{shape:?}")]);
    }
    let whole = Tensor::zeros([1, 4, side, side], (Kind::Int64, Device::Cpu));
    refused(pipe.call("x").height(64).width(64).latents(whole).run(), &["`latents`", "floating-point", "int64"]);
    for shape in [&[32i64] as &[i64], &[77, 32], &[1, 1, 77, 32]] {
        let embeds = Tensor::zeros(shape, options);
        refused(pipe.call_embeds(embeds).run(), &["`prompt_embeds`", &format!("{shape:?}")]);
    }
    let none = Tensor::zeros([0, 77, 32], options);
    refused(pipe.call_embeds(none).run(), &["no prompt"]);
    let embeds = Tensor::zeros([1, 77, 32], options);
    let negative = Tensor::zeros([2, 77, 32], options);
    let call = pipe.call_embeds(embeds).negative_prompt_embeds(negative);
    refused(call.run(), &["`prompt_embeds`", "`negative_prompt_embeds`", "[2, 77, 32]"]);
    assert_eq!(latents(&mut pipe).max_abs_diff(&before).unwrap(), 0.0);
    let mut redraws = StableDiffusionImg2ImgPipeline::from(pipe);
    let shapes: [&[i64]; 5] = [&[], &[64], &[0, 3, 64, 64], &[1, 3, 0, 64], &[1, 1, 1, 3, 64, 64]];
    for shape in shapes {
        let image = Tensor::zeros(shape, options);
        let error = redraws.call("x", image).num_inference_steps(2).run().unwrap_err();
        assert!(matches!(error.kind(), Error::Shape(_) | Error::Argument(_)), "{shape:?}: {error:?}");
    }
    let image = Tensor::zeros([1, 5, 64, 64], options);
    let error = redraws.call("x", image).num_inference_steps(2).run().unwrap_err();
    assert!(error.to_string().starts_with("vae.encoder.conv_in"), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_refused_and_the_pipeline_stays_where_it_was() {
    let mut pipe = pipeline();
    let before = latents(&mut pipe);
    let devices = [Device::Cuda(0), Device::Cuda(99), Device::Mps, Device::Vulkan];
    let absent = |device: &Device| !(device.is_cuda() && tch::Cuda::is_available());
    for device in devices.into_iter().filter(absent) {
        let error = pipe.to(device).unwrap_err();
        assert!(!device.is_cuda() || matches!(error.kind(), Error::Argument(_)), "{device:?}: {error:?}");
        assert!(!error.to_string().contains('\n') && error.to_string().len() < 400, "{device:?}: {error}");
        assert!(pipe.enable_model_cpu_offload(device).is_ok(), "{device:?}: the weights wait on the CPU");
        assert!(pipe.call("x").num_inference_steps(1).run().is_err(), "{device:?}");
        pipe.remove_all_hooks().unwrap();
        assert_eq!(latents(&mut pipe).max_abs_diff(&before).unwrap(), 0.0, "{device:?}");
    }
}

#[test]
fn pictures_that_are_none_are_refused() {
    let mut pipe = StableDiffusionImg2ImgPipeline::from(pipeline());
    let of = |width, height| DynamicImage::from(RgbImage::new(width, height));
    for (width, height) in [(0, 0), (0, 64), (64, 0), (7, 7), (8, 1)] {
        refused(pipe.call("x", of(width, height)).num_inference_steps(2).run(), &["divisible by 8"]);
    }
    refused(pipe.call("x", ImageInput::Images(vec![])).run(), &["no picture"]);
    let deep = DynamicImage::new_rgb16(64, 64);
    assert!(pipe.call("x", deep).num_inference_steps(2).run().is_err());
    let mut pipe = StableDiffusionInpaintPipeline::from(StableDiffusionPipeline::from(pipe));
    let hole = || GrayImage::from_pixel(64, 64, image::Luma([255]));
    assert!(pipe.call("x", of(64, 64), GrayImage::new(0, 0)).num_inference_steps(2).run().is_err());
    assert!(pipe.call("x", of(0, 0), hole()).num_inference_steps(2).run().is_err());
    for pixels in [-1, i64::MIN] {
        refused(pipe.call("x", of(64, 64), hole()).padding_mask_crop(pixels).run(), &["`padding_mask_crop`", "0"]);
    }
    let wide = pipe.call("x", of(64, 64), hole()).padding_mask_crop(i64::MAX).num_inference_steps(2).run();
    assert_eq!(wide.unwrap().images.to_rgb().unwrap()[0].dimensions(), (64, 64));
}

#[test]
fn every_option_of_every_scheduler_is_held_to_what_it_may_be() {
    // As in diffusers, DDPM takes a variance of another scheduler for its own, with a warning, and a way to shift time is looked at
    // where it is used.
    const LENIENT: [&str; 2] = ["variance_type", "time_shift_type"];
    let build = |name: &str, config: &ConfigMap| -> Result<Box<dyn Scheduler>> {
        match name {
            "FlowMatchEulerDiscreteScheduler" => Ok(Box::new(FlowMatchEulerDiscreteScheduler::from_config(config)?)),
            name => name.parse::<SchedulerKind>()?.from_config(config),
        }
    };
    let names = SchedulerKind::ALL.map(SchedulerKind::class_name);
    let mut wrong = vec![];
    for name in names.into_iter().chain(["FlowMatchEulerDiscreteScheduler"]) {
        let plain = build(name, &ConfigMap::new()).unwrap();
        let mut held = 0;
        for (key, value) in plain.config().iter().filter(|(key, _)| !key.starts_with('_')) {
            let with = |value: serde_json::Value| build(name, &ConfigMap::from_iter([(key.clone(), value)]));
            let is_name = value.is_string() && value != "Infinity" && value != "-Infinity";
            if (is_name || value.is_number()) && !LENIENT.contains(&key.as_str()) {
                let expected = value.as_str().filter(|_| is_name).unwrap_or_default();
                let text = with(json!("warp")).map_or_else(|error| error.to_string(), |_| "nothing".into());
                if ![&format!("`{key}`"), "warp", expected].iter().all(|part| text.contains(*part)) {
                    wrong.push(format!("{name} `{key}` = warp: {text}"));
                }
                held += 1;
            }
            // Whatever comes of these, it is no panic, and no run out of memory.
            let odd = [json!(0), json!(-1), json!(1e300), json!(u64::MAX), json!(1e18 as i64), json!([]), json!("NaN")];
            for odd in odd {
                let outcome = catch_unwind(AssertUnwindSafe(|| with(odd.clone())?.set_timesteps(Timesteps::Steps(3))));
                match outcome {
                    Err(_) => wrong.push(format!("{name} `{key}` = {odd}: a panic")),
                    Ok(Err(Error::OutOfMemory(text))) => wrong.push(format!("{name} `{key}` = {odd}: {text}")),
                    Ok(_) => (),
                }
            }
        }
        assert!(held > 2, "{name} has {held} options that were held to anything");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every name in the configuration of `component`, made wrong one by one.
fn unknown_names<M: ModelMixin>(config: &ConfigMap, weights: &dyn Weights) -> Vec<String> {
    let with = |map: &ConfigMap| M::from_weights(tch_diffusers::configuration_utils::from_map(map)?, weights);
    with(config).unwrap();
    let names = config.iter().filter(|(key, _)| !key.starts_with('_'));
    let mut held = vec![];
    for (key, value) in names {
        let wrong = match value {
            serde_json::Value::String(_) => json!("warp"),
            serde_json::Value::Array(values) if values.iter().any(serde_json::Value::is_string) => {
                json!(vec!["warp"; values.len()])
            }
            _ => continue,
        };
        let mut map = config.clone();
        map.insert(key.clone(), wrong);
        // What is not read at all, such as `torch_dtype`, may say anything.
        let Err(error) = with(&map) else { continue };
        let text = error.to_string();
        assert!(matches!(error, Error::Config(_) | Error::Unsupported(_)), "{key}: {error:?}");
        let names_both = text.contains("warp") && text.contains(key);
        held.push(if names_both { key.clone() } else { format!("{key}: {text}") });
    }
    held.sort();
    held
}

#[test]
fn every_name_in_a_models_configuration_is_held_to_what_is_supported() {
    let weights = RandomWeights::new(0, Kind::Float).unwrap();
    let folder = bundled_model().unwrap();
    let config =
        |path: &Path| tch_diffusers::configuration_utils::read_json::<ConfigMap>(&path.join("config.json")).unwrap();
    let held = unknown_names::<UNet2DConditionModel>(&config(&folder.join("unet")), &weights);
    for key in ["act_fn", "down_block_types", "mid_block_type", "resnet_time_scale_shift", "up_block_types"] {
        assert!(held.contains(&key.to_string()), "`{key}` of the UNet may be anything: {held:?}");
    }
    let held = unknown_names::<AutoencoderKL>(&config(&folder.join("vae")), &weights);
    assert_eq!(held, ["act_fn", "down_block_types", "up_block_types"]);
    let held = unknown_names::<CLIPTextModel>(&config(&folder.join("text_encoder")), &weights);
    assert!(held.contains(&"hidden_act".to_string()), "{held:?}");
    let t5 = json!({"d_ff": 8, "d_kv": 4, "d_model": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 9,
        "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 4, "relative_attention_max_distance": 8});
    let held = unknown_names::<T5EncoderModel>(t5.as_object().unwrap(), &weights);
    assert_eq!(held, ["feed_forward_proj"]);
    let flux = json!({"attention_head_dim": 8, "num_attention_heads": 2, "num_layers": 1, "num_single_layers": 1,
        "in_channels": 4, "joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": [2, 2, 4]});
    let _ = unknown_names::<FluxTransformer2DModel>(flux.as_object().unwrap(), &weights);
}
