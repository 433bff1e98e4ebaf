//! Stable Diffusion XL's pipelines: techniques, parts left out, hand-over to the refiner, and what is refused.

use crate::support::{generated, json, record};
use serde_json::Value;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::attention_dispatch::AttentionBackend;
use tch_diffusers::models::attention_processor::AttentionSlicing;
use tch_diffusers::models::unets::TracedUNet;
use tch_diffusers::models::{Traceable, trace};
use tch_diffusers::nn::Module;
use tch_diffusers::pipelines::stable_diffusion_xl::StableDiffusionXLCall;
use tch_diffusers::pipelines::{Parts, PooledPromptEmbeds};
use tch_diffusers::{
    AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image, DiffusionPipeline, Error,
    MemoryFormat, ModelMixin, PipelineMixin, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, TensorExt,
    UNet2DConditionModel,
};

fn folder(model: &str) -> PathBuf {
    generated("sdxl_img2img").join("_models").join(model)
}

fn loaded(model: &str, kind: Kind) -> StableDiffusionXLPipeline {
    let mut pipe = StableDiffusionXLPipeline::from_pretrained(folder(model)).torch_dtype(kind).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn load() -> StableDiffusionXLPipeline {
    loaded("sdxl", Kind::Float)
}

fn refiner() -> StableDiffusionXLImg2ImgPipeline {
    let mut pipe = StableDiffusionXLImg2ImgPipeline::from_pretrained(folder("refiner")).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn asked(pipe: &mut StableDiffusionXLPipeline) -> StableDiffusionXLCall<'_> {
    let call = pipe.call(["a red circle", "dog"]).height(64).width(80).num_inference_steps(2);
    call.seed(1).output_type(OutputType::Tensor)
}

fn draw(pipe: &mut StableDiffusionXLPipeline) -> Tensor {
    asked(pipe).run().unwrap().images.into_tensor().unwrap()
}

#[test]
fn models_are_offloaded_in_the_order_of_their_use() {
    let names = |parts: &dyn Parts| parts.models().iter().map(|model| model.name).collect::<Vec<_>>();
    assert_eq!(names(&load()), ["text_encoder", "text_encoder_2", "unet", "vae"]);
    assert_eq!(names(&*refiner()), ["text_encoder_2", "unet", "vae"]);
}

#[test]
fn offloading_changes_no_bit() {
    let mut pipe = load();
    let plain = draw(&mut pipe);
    pipe.enable_model_cpu_offload(Device::Cpu).unwrap();
    assert_eq!(draw(&mut pipe), plain);
    assert!(matches!(pipe.to(Device::Cpu), Err(Error::Argument(text)) if text.contains("model offloading")));
    pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap();
    assert_eq!(draw(&mut pipe), plain);
    for options in [GroupOffloading::block_level(1), GroupOffloading::leaf_level()] {
        for to_disk in [false, true] {
            let options = options.clone().onload_device(Device::Cpu).offload_to_disk(to_disk);
            pipe.enable_group_offload(&options, &["vae"]).unwrap();
            assert_eq!(draw(&mut pipe), plain, "{options:?}");
        }
    }
    pipe.remove_all_hooks().unwrap();
    assert_eq!(draw(&mut pipe), plain);
}

#[test]
fn a_vae_that_needs_float32_has_it_offloaded_as_well() {
    let mut pipe = loaded("upcast", Kind::Half);
    let plain = draw(&mut pipe);
    assert_eq!(plain.kind(), Kind::Float);
    let vae = |pipe: &StableDiffusionXLPipeline| pipe.vae.node().dtype();
    assert_eq!(vae(&pipe), Kind::Half);
    pipe.enable_model_cpu_offload(Device::Cpu).unwrap();
    assert_eq!(draw(&mut pipe), plain);
    pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap();
    assert_eq!(draw(&mut pipe), plain);
    for to_disk in [false, true] {
        let options = GroupOffloading::leaf_level().onload_device(Device::Cpu).offload_to_disk(to_disk);
        pipe.enable_group_offload(&options, &[]).unwrap();
        assert_eq!(draw(&mut pipe), plain, "to disk: {to_disk}");
        assert_eq!(vae(&pipe), Kind::Half);
    }
}

#[test]
fn techniques_that_only_regroup_the_work_stay_close() {
    let mut pipe = load();
    let plain = draw(&mut pipe);
    let difference = |pipe: &mut StableDiffusionXLPipeline| draw(pipe).max_abs_diff(&plain).unwrap();
    pipe.enable_vae_slicing();
    record("sdxl techniques", "sdxl", "VAE slicing", difference(&mut pipe), 2e-6);
    pipe.disable_vae_slicing();
    pipe.fuse_qkv_projections(true, true).unwrap();
    record("sdxl techniques", "sdxl", "fused projections", difference(&mut pipe), 0.0);
    pipe.unfuse_qkv_projections(true, true).unwrap();
    for (backend, bound) in [("native", 0.0), ("_native_math", 4e-6)] {
        pipe.set_attention_backend(backend.parse::<AttentionBackend>().unwrap()).unwrap();
        record("sdxl techniques", "sdxl", &format!("attention backend {backend}"), difference(&mut pipe), bound);
    }
    pipe.reset().unwrap();
    pipe.enable_weights_prepack().unwrap();
    record("sdxl techniques", "sdxl", "packed weights", difference(&mut pipe), 0.0);
    pipe.disable_weights_prepack().unwrap();
    pipe.to(MemoryFormat::ChannelsLast).unwrap();
    record("sdxl techniques", "sdxl", "channels_last", difference(&mut pipe), 5e-6);
    pipe.reset().unwrap();
    pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap();
    let casted = difference(&mut pipe);
    assert!(casted > 0.0);
    // Numbers of 8 bits for most weights of a small model.
    record("sdxl techniques", "sdxl", "layerwise casting", casted, 0.16);
    pipe.reset().unwrap();
    assert_eq!(draw(&mut pipe), plain);
}

#[test]
fn text_encoders_can_be_left_out_where_embeddings_are_given() {
    let mut pipe = load();
    let plain = draw(&mut pipe);
    let prompts = ["a red circle", "dog"];
    let _guard = tch::no_grad_guard();
    let embeds = pipe.encode_prompt(&prompts, &prompts, None).unwrap();
    let loader = StableDiffusionXLPipeline::from_pretrained(folder("sdxl")).text_encoder(None).text_encoder_2(None);
    let mut bare = loader.tokenizer(None).tokenizer_2(None).load().unwrap();
    bare.progress_bar.disable = true;
    assert_eq!(bare.models().len(), 2);
    let call = bare.call_embeds(embeds).height(64).width(80).num_inference_steps(2).seed(1);
    assert_eq!(call.output_type(OutputType::Tensor).run().unwrap().images.into_tensor().unwrap(), plain);
    let error = bare.call("a red circle").run().unwrap_err();
    assert!(matches!(&error, Error::Argument(text) if text.contains("no `text_encoder_2`")), "{error}");
    let saved = tempfile::tempdir().unwrap();
    bare.save_pretrained(saved.path()).unwrap();
    let again = StableDiffusionXLPipeline::from_pretrained(saved.path()).load().unwrap();
    assert!(again.text_encoder.is_none() && again.text_encoder_2.is_none());
}

/// Whether two files say the same; 1 is 1.0 there.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(key, it)| other.get(key).is_some_and(|that| is_same(it, that)))
        }
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

#[test]
fn saved_pipelines_are_as_diffusers_has_them() {
    for model in ["sdxl", "refiner"] {
        let saved = tempfile::tempdir().unwrap();
        let pipe = DiffusionPipeline::from_pretrained(folder(model)).load().unwrap();
        pipe.save_pretrained(saved.path()).unwrap();
        for file in ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"] {
            assert!(is_same(&json(&saved.path().join(file)), &json(&folder(model).join(file))), "{model}: {file}");
        }
        let again = DiffusionPipeline::from_pretrained(saved.path()).load().unwrap();
        assert_eq!(again.class_name(), pipe.class_name());
    }
}

#[test]
fn pipelines_of_other_tasks_are_found_and_take_the_weights_over() {
    let class_name = |pipe: &DiffusionPipeline| pipe.class_name();
    let pipe = AutoPipelineForText2Image::from_pretrained(folder("refiner")).load().unwrap();
    assert_eq!(class_name(&pipe), "StableDiffusionXLPipeline");
    let address = |pipe: &DiffusionPipeline| pipe.models()[1].node.state_dict()[0].1.data_ptr();
    let before = address(&pipe);
    let pipe = AutoPipelineForImage2Image::from_pipe(pipe).unwrap();
    assert_eq!((class_name(&pipe), address(&pipe)), ("StableDiffusionXLImg2ImgPipeline", before));
    let pipe = AutoPipelineForText2Image::from_pipe(pipe).unwrap();
    assert_eq!((class_name(&pipe), address(&pipe)), ("StableDiffusionXLPipeline", before));
    let error = AutoPipelineForInpainting::from_pipe(pipe).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(text) if text.contains("StableDiffusionXLPipeline")), "{error}");

    let bundled = tch_diffusers::utils::assets::bundled_model().unwrap();
    let pipe = AutoPipelineForInpainting::from_pretrained(&bundled).load().unwrap();
    assert_eq!(class_name(&pipe), "StableDiffusionInpaintPipeline");
    let pipe = AutoPipelineForImage2Image::from_pipe(pipe).unwrap();
    assert_eq!(class_name(&pipe), "StableDiffusionImg2ImgPipeline");
    let flux = DiffusionPipeline::from_pretrained(generated("flux_pipeline").join("_models/dev")).load().unwrap();
    let error = AutoPipelineForImage2Image::from_pipe(flux).unwrap_err();
    assert!(error.to_string().contains("FluxPipeline"), "{error}");
}

#[test]
fn a_callback_sees_each_step_changes_latents_and_interrupts() {
    let mut pipe = load();
    let mut steps = vec![];
    let call = asked(&mut pipe).num_inference_steps(5).output_type(OutputType::Latent);
    let call = call.callback_on_step_end(|end| {
        steps.push((end.step, end.latents.size(), end.embeds.prompt_embeds.size(), end.add_time_ids.size()));
        end.latents = end.latents.f_zeros_like()?;
        end.interrupt = end.step == 2;
        Ok(())
    });
    let latents = call.run().unwrap().images.into_tensor().unwrap();
    assert_eq!(latents.f_abs().unwrap().max().double_value(&[]), 0.0);
    assert_eq!(steps.len(), 3);
    assert_eq!(steps[2], (2, vec![2, 4, 8, 10], vec![4, 77, 72], vec![4, 6]));
    let call = asked(&mut pipe).callback_on_step_end(|_| Err(Error::Argument("enough".into())));
    assert_eq!(call.run().unwrap_err().to_string(), "enough");
    drop(draw(&mut pipe));
}

#[test]
fn arguments_that_do_not_fit_are_refused_with_the_reason() {
    let mut pipe = load();
    let mut refused = |change: &dyn Fn(StableDiffusionXLCall<'_>) -> StableDiffusionXLCall<'_>, part: &str| {
        let error = change(asked(&mut pipe)).run().unwrap_err();
        assert!(matches!(error.kind(), Error::Argument(_)) && error.to_string().contains(part), "{error}");
    };
    refused(&|call| call.height(63), "divisible by 8");
    refused(&|call| call.width(0), "above 0");
    refused(&|call| call.num_images_per_prompt(0), "`num_images_per_prompt`");
    refused(&|call| call.guidance_scale(f64::NAN), "`guidance_scale`");
    refused(&|call| call.denoising_end(f64::INFINITY), "`denoising_end`");
    refused(&|call| call.num_inference_steps(0), "`num_inference_steps`");
    refused(&|call| call.prompt_2("one"), "1 of `prompt_2` for 2 prompts");
    refused(&|call| call.negative_prompt(["a"]), "1 of `negative_prompt` for 2 prompts");
    refused(&|call| call.clip_skip(9), "`clip_skip` is 10");
    refused(&|call| call.latents(Tensor::zeros([2, 4, 9, 9], (Kind::Float, Device::Cpu))), "[2, 4, 8, 10]");
    let embeds = || PooledPromptEmbeds {
        prompt_embeds: Tensor::zeros([1, 77, 72], (Kind::Float, Device::Cpu)),
        pooled_prompt_embeds: Tensor::zeros([2, 24], (Kind::Float, Device::Cpu)),
    };
    refused(&|call| call.negative_embeds(embeds()), "[1, 77, 72] and [2, 24]");

    let picture = || image::RgbImage::from_pixel(64, 64, image::Rgb([200, 30, 30]));
    let mut refiner = refiner();
    let error = refiner.call("a", picture()).strength(1.5).run().unwrap_err().to_string();
    assert!(error.contains("`strength`"), "{error}");
    let error = refiner.call("a", picture()).denoising_start(0.8).denoising_end(0.5).run().unwrap_err().to_string();
    assert!(error.contains("`denoising_start` has to be below `denoising_end`"), "{error}");
    // The refiner is told other numbers than the base model.
    let mut from_text = StableDiffusionXLPipeline::from_pipe(refiner);
    let error = from_text.call("a red circle").num_inference_steps(1).run().unwrap_err();
    assert!(matches!(&error, Error::Config(text) if text.contains("is this a refiner")), "{error}");
}

#[test]
fn a_traced_unet_takes_sizes_and_pooled_text_and_any_batch() {
    for (model, from_text) in [("sdxl", true), ("refiner", false)] {
        let mut pipe = loaded(model, Kind::Float);
        let unet = UNet2DConditionModel::from_pretrained(folder(model)).subfolder("unet").load().unwrap();
        let traced = trace(&unet, &unet.example_inputs(2, [8, 8]).unwrap()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        traced.save(file.path()).unwrap();
        let picture = image::RgbImage::from_fn(64, 80, |x, y| image::Rgb([x as u8, y as u8, 90]));
        let draw = |pipe: StableDiffusionXLPipeline| {
            let mut drawn = vec![];
            let mut pipe = pipe;
            if from_text {
                drawn.push(self::draw(&mut pipe));
            }
            let mut refiner = StableDiffusionXLImg2ImgPipeline::from_pipe(pipe);
            let call = refiner.call(["a", "b", "c"], picture.clone()).strength(0.6).num_inference_steps(4).seed(3);
            drawn.push(call.output_type(OutputType::Tensor).run().unwrap().images.into_tensor().unwrap());
            (refiner.into(), drawn)
        };
        let (back, plain): (StableDiffusionXLPipeline, _) = draw(pipe);
        pipe = back;
        pipe.set_unet(TracedUNet::load(file.path()).unwrap());
        let (pipe, found) = draw(pipe);
        for (number, (found, plain)) in found.iter().zip(&plain).enumerate() {
            let difference = found.max_abs_diff(plain).unwrap();
            // Other batches than that of the example: libtorch's optimised graph rounds otherwise.
            record("sdxl techniques", model, &format!("traced UNet, picture {number}"), difference, 5e-6);
        }
        let error = pipe.save_pretrained(tempfile::tempdir().unwrap().path()).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("another UNet")), "{error}");
        assert!(matches!(pipe.enable_attention_slicing(AttentionSlicing::Auto), Err(Error::Unsupported(_))));
    }
    let mut bundled =
        tch_diffusers::StableDiffusionPipeline::from_pretrained(tch_diffusers::utils::assets::bundled_model().unwrap())
            .load()
            .unwrap();
    let unet = UNet2DConditionModel::from_pretrained(folder("sdxl")).subfolder("unet").load().unwrap();
    let traced = trace(&unet, &unet.example_inputs(2, [8, 8]).unwrap()).unwrap();
    bundled.set_unet(TracedUNet::new(traced).unwrap());
    let error = bundled.call("a").num_inference_steps(1).run().unwrap_err().to_string();
    assert!(error.contains("needs `text_embeds` and `time_ids`"), "{error}");
}
