//! FLUX.1's pipeline: techniques, saving, callbacks, and what it refuses.

use crate::support::{generated, json, record};
use serde_json::json;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::attention_dispatch::AttentionBackend;
use tch_diffusers::models::transformers::TracedFluxTransformer;
use tch_diffusers::models::{Traceable, trace};
use tch_diffusers::pipelines::Parts;
use tch_diffusers::pipelines::PooledPromptEmbeds;
use tch_diffusers::pipelines::flux::FluxCall;
use tch_diffusers::{
    AutoPipelineForText2Image, DiffusionPipeline, Error, FluxPipeline, FluxTransformer2DModel, ModelMixin,
    PipelineMixin, SchedulerKind, TensorExt,
};

fn folder(model: &str) -> PathBuf {
    generated("flux_pipeline").join("_models").join(model)
}

fn load() -> FluxPipeline {
    loaded(Kind::Float)
}

fn loaded(kind: Kind) -> FluxPipeline {
    let mut pipe = FluxPipeline::from_pretrained(folder("dev")).torch_dtype(kind).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn asked(pipe: &mut FluxPipeline) -> FluxCall<'_> {
    let call = pipe.call(["a red circle", "dog"]).height(32).width(40).num_inference_steps(2);
    call.max_sequence_length(32).seed(1).output_type(OutputType::Tensor)
}

fn draw(pipe: &mut FluxPipeline) -> Tensor {
    asked(pipe).run().unwrap().images.into_tensor().unwrap()
}

fn bytes_of(pipe: &FluxPipeline, model: usize, key: &str) -> Kind {
    let weights = pipe.models()[model].node.state_dict();
    weights.into_iter().find(|(known, _)| known == key).unwrap().1.kind()
}

#[test]
fn models_are_offloaded_in_the_order_of_their_use() {
    let pipe = load();
    let names: Vec<_> = pipe.models().iter().map(|model| model.name).collect();
    assert_eq!(names, ["text_encoder", "text_encoder_2", "transformer", "vae"]);
    let groups =
        GroupOffloading::block_level(1).onload_device(Device::Cpu).groups(pipe.transformer.tree().unwrap()).unwrap();
    let ids: Vec<_> = groups.iter().map(|group| group.id.as_str()).collect();
    for block in ["transformer_blocks", "single_transformer_blocks"] {
        assert!(ids.iter().any(|id| id.starts_with(block)), "{block} is not among {ids:?}");
    }
    let singles = ids.iter().filter(|id| id.starts_with("single_transformer_blocks")).count();
    assert_eq!(singles, 2, "{ids:?}");
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
    for options in [GroupOffloading::block_level(1), GroupOffloading::block_level(2), GroupOffloading::leaf_level()] {
        for to_disk in [false, true] {
            let options = options.clone().onload_device(Device::Cpu).offload_to_disk(to_disk);
            pipe.enable_group_offload(&options, &["vae"]).unwrap();
            assert_eq!(draw(&mut pipe), plain, "{options:?}");
        }
    }
    let error = pipe.enable_group_offload(&GroupOffloading::leaf_level().onload_device(Device::Cpu), &["unet"]);
    let error = error.unwrap_err().to_string();
    assert!(error.ends_with("it has text_encoder, text_encoder_2, transformer, vae"), "{error}");
    pipe.remove_all_hooks().unwrap();
    assert_eq!(draw(&mut pipe), plain);
}

#[test]
fn techniques_that_only_regroup_the_work_stay_close() {
    let mut pipe = load();
    let plain = draw(&mut pipe);
    let difference = |pipe: &mut FluxPipeline| draw(pipe).max_abs_diff(&plain).unwrap();
    pipe.enable_vae_slicing();
    // oneDNN sums up a batch of one in another order: 1.19e-6 in diffusers as well.
    record("flux techniques", "dev", "VAE slicing", difference(&mut pipe), 1.2e-6);
    pipe.enable_vae_tiling();
    // 40 pixels in tiles of 32, whose norms see one tile only: 0.21345 in diffusers.
    let tiled = difference(&mut pipe);
    assert!(tiled > 0.2134, "nothing was tiled: {tiled}");
    record("flux techniques", "dev", "VAE tiling", tiled, 0.2135);
    pipe.reset().unwrap();
    pipe.fuse_qkv_projections(true, true).unwrap();
    record("flux techniques", "dev", "fused projections", difference(&mut pipe), 0.0);
    pipe.unfuse_qkv_projections(true, true).unwrap();
    for (backend, bound) in [("native", 0.0), ("_native_math", 6e-7)] {
        pipe.set_attention_backend(backend.parse::<AttentionBackend>().unwrap()).unwrap();
        record("flux techniques", "dev", &format!("attention backend {backend}"), difference(&mut pipe), bound);
    }
    pipe.reset().unwrap();
    assert_eq!(draw(&mut pipe), plain);
}

#[test]
fn layerwise_casting_leaves_norms_and_embeddings_of_places_alone() {
    let mut pipe = load();
    let plain = draw(&mut pipe);
    pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap();
    for (key, stored) in [
        ("transformer_blocks.0.attn.to_q.weight", Kind::Float8e4m3fn),
        ("single_transformer_blocks.1.proj_mlp.weight", Kind::Float8e4m3fn),
        ("x_embedder.weight", Kind::Float8e4m3fn),
        ("proj_out.weight", Kind::Float),
        ("transformer_blocks.0.norm1.linear.weight", Kind::Float),
        ("transformer_blocks.0.attn.norm_q.weight", Kind::Float),
        ("norm_out.linear.weight", Kind::Float),
    ] {
        assert_eq!(bytes_of(&pipe, 2, key), stored, "{key}");
    }
    let difference = draw(&mut pipe).max_abs_diff(&plain).unwrap();
    assert!(difference > 0.0);
    // Numbers of 8 bits for the weights of three blocks.
    record("flux techniques", "dev", "layerwise casting", difference, 0.018);
    pipe.reset().unwrap();
    assert_eq!(draw(&mut pipe), plain);
}

#[test]
fn t5_keeps_its_float32_island_however_it_is_loaded() {
    let mut pipe = loaded(Kind::Half);
    let (island, other) =
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight");
    assert_eq!((bytes_of(&pipe, 1, island), bytes_of(&pipe, 1, other)), (Kind::Float, Kind::Half));
    assert_eq!(bytes_of(&loaded(Kind::BFloat16), 1, island), Kind::BFloat16);
    let plain = draw(&mut pipe);
    for options in [GroupOffloading::leaf_level(), GroupOffloading::block_level(1)] {
        let options = options.onload_device(Device::Cpu).offload_to_disk(true);
        let loader = FluxPipeline::from_pretrained(folder("dev")).torch_dtype(Kind::Half);
        let mut offloaded = loader.group_offload(options).load().unwrap();
        assert_eq!(draw(&mut offloaded), plain);
    }
}

#[test]
fn a_saved_pipeline_is_as_diffusers_has_it_and_draws_the_same() {
    let saved = tempfile::tempdir().unwrap();
    let mut pipe = load();
    pipe.save_pretrained(saved.path()).unwrap();
    for file in ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"] {
        assert_eq!(json(&saved.path().join(file)), json(&folder("dev").join(file)), "{file}");
    }
    let mut again = FluxPipeline::from_pretrained(saved.path()).load().unwrap();
    assert_eq!(draw(&mut again), draw(&mut pipe));
    let report = pipe.memory_report().unwrap();
    let stages = report.last_call.unwrap().stages;
    let names: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["encode prompt", "denoise", "decode"]);
    assert_eq!(report.weights.len(), 4);
}

#[test]
fn a_callback_sees_each_step_changes_latents_and_interrupts() {
    let mut pipe = load();
    let mut steps = vec![];
    let call = asked(&mut pipe).num_inference_steps(5).output_type(OutputType::Latent);
    let call = call.callback_on_step_end(|end| {
        steps.push((end.step, end.latents.size(), end.prompt_embeds.size()));
        end.latents = end.latents.f_zeros_like()?;
        end.interrupt = end.step == 2;
        Ok(())
    });
    let latents = call.run().unwrap().images.into_tensor().unwrap();
    assert_eq!(latents.f_abs().unwrap().max().double_value(&[]), 0.0);
    assert_eq!(steps.len(), 3);
    assert_eq!(steps[2], (2, vec![2, 80, 16], vec![2, 32, 32]));
    let call = asked(&mut pipe).callback_on_step_end(|_| Err(Error::Argument("enough".into())));
    assert_eq!(call.run().unwrap_err().to_string(), "enough");
    drop(draw(&mut pipe));
}

#[test]
fn embeddings_give_the_picture_of_their_prompts() {
    let mut pipe = load();
    let plain = draw(&mut pipe);
    let prompts = ["a red circle", "dog"];
    let _guard = tch::no_grad_guard();
    let embeds = pipe.encode_prompt(&prompts, &prompts, 1, 32).unwrap();
    let given = |embeds: &PooledPromptEmbeds, item: i64| PooledPromptEmbeds {
        prompt_embeds: embeds.prompt_embeds.narrow(0, item, 1),
        pooled_prompt_embeds: embeds.pooled_prompt_embeds.narrow(0, item, 1),
    };
    let one = given(&embeds, 0);
    let sized = |call: FluxCall<'_>| {
        let call = call.height(32).width(40).num_inference_steps(2).seed(1).output_type(OutputType::Tensor);
        call.max_sequence_length(32).run().unwrap().images.into_tensor().unwrap()
    };
    assert_eq!(sized(pipe.call_embeds(embeds)), plain);
    let twice = sized(pipe.call_embeds(one).num_images_per_prompt(2));
    assert_eq!(twice, sized(pipe.call("a red circle").num_images_per_prompt(2)));
}

#[test]
fn without_text_encoders_a_pipeline_draws_from_embeddings() {
    for kind in [Kind::Float, Kind::Half] {
        let mut whole = loaded(kind);
        let _guard = tch::no_grad_guard();
        let prompts = ["a red circle", "dog"];
        let embeds = whole.encode_prompt(&prompts, &prompts, 1, 32).unwrap();
        let plain = draw(&mut whole);

        let loader = FluxPipeline::from_pretrained(folder("dev")).torch_dtype(kind).tokenizer(None).tokenizer_2(None);
        let mut pipe = loader.text_encoder(None).text_encoder_2(None).load().unwrap();
        pipe.progress_bar.disable = true;
        let names: Vec<_> = pipe.models().iter().map(|model| model.name).collect();
        assert_eq!(names, ["transformer", "vae"]);
        let error = asked(&mut pipe).run().unwrap_err();
        let part = "no `text_encoder` and `tokenizer`: give embeddings";
        assert!(matches!(&error, Error::Argument(text) if text.contains(part)), "{error}");
        let call = pipe.call_embeds(embeds).height(32).width(40).num_inference_steps(2).seed(1);
        let drawn = call.output_type(OutputType::Tensor).run().unwrap().images.into_tensor().unwrap();
        assert_eq!(drawn, plain);

        let saved = tempfile::tempdir().unwrap();
        pipe.save_pretrained(saved.path()).unwrap();
        let index = json(&saved.path().join("model_index.json"));
        assert_eq!((&index["text_encoder_2"], &index["tokenizer"]), (&json!([null, null]), &json!([null, null])));
        let again = FluxPipeline::from_pretrained(saved.path()).load().unwrap();
        assert!(again.text_encoder.is_none() && again.tokenizer_2.is_none());
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused_with_the_reason() {
    let mut pipe = load();
    let mut refused = |change: &dyn Fn(FluxCall<'_>) -> FluxCall<'_>, part: &str| {
        let error = change(asked(&mut pipe)).run().unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(&|call| call.max_sequence_length(513), "cannot be greater than 512");
    refused(&|call| call.max_sequence_length(0), "`max_length` is 0");
    refused(&|call| call.height(3), "at least 4");
    refused(&|call| call.num_images_per_prompt(0), "`num_images_per_prompt`");
    refused(&|call| call.prompt_2("one"), "1 of `prompt_2` for 2 prompts");
    refused(&|call| call.negative_prompt(["a"]), "1 of `negative_prompt` for 2 prompts");
    refused(&|call| call.sigmas(&[]), "at least one step");
    refused(&|call| call.num_inference_steps(0), "`num_inference_steps` has to be at least 1");
    refused(&|call| call.latents(Tensor::zeros([2, 79, 16], (Kind::Float, Device::Cpu))), "[2, 80, 16]");
    let none: [&str; 0] = [];
    assert!(matches!(pipe.call(none).run(), Err(Error::Argument(text)) if text == "there is no prompt"));
    pipe.scheduler = SchedulerKind::DDIM.from_config(pipe.scheduler.config()).unwrap();
    let error = asked(&mut pipe).run().unwrap_err().to_string();
    assert!(error.contains("DDIMScheduler takes no `mu`"), "{error}");
}

#[test]
fn a_traced_transformer_takes_the_models_place() {
    for model in ["dev", "schnell"] {
        let mut pipe = FluxPipeline::from_pretrained(folder(model)).load().unwrap();
        pipe.progress_bar.disable = true;
        let plain = draw(&mut pipe);
        let loader = FluxTransformer2DModel::from_pretrained(folder(model)).subfolder("transformer");
        let transformer = loader.load().unwrap();
        let mut inputs = transformer.example_inputs(2, [16, 20]).unwrap();
        // Of the prompts of the call.
        inputs[1] = inputs[1].narrow(1, 0, 32);
        inputs[5] = inputs[5].narrow(0, 0, 32);
        let file = tempfile::NamedTempFile::new().unwrap();
        trace(&transformer, &inputs).unwrap().save(file.path()).unwrap();
        pipe.set_transformer(TracedFluxTransformer::load(file.path(), Device::Cpu).unwrap());
        let difference = draw(&mut pipe).max_abs_diff(&plain).unwrap();
        record("flux techniques", model, "traced transformer", difference, 5e-6);
        let names: Vec<_> = pipe.models().iter().map(|model| model.name).collect();
        assert_eq!(names, ["text_encoder", "text_encoder_2", "vae"]);
        let error = pipe.save_pretrained(tempfile::tempdir().unwrap().path()).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("another transformer")), "{error}");
        let error = pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
    }
}

#[test]
fn a_folder_says_which_pipeline_it_holds() {
    let flux = DiffusionPipeline::from_pretrained(folder("schnell")).load().unwrap();
    assert_eq!(flux.class_name(), "FluxPipeline");
    let DiffusionPipeline::Flux(mut flux) = flux else { panic!("{flux:?}") };
    drop(draw(&mut flux));
    let bundled = tch_diffusers::utils::assets::bundled_model().unwrap();
    let mut pipe = AutoPipelineForText2Image::from_pretrained(&bundled).load().unwrap();
    assert_eq!(pipe.class_name(), "StableDiffusionPipeline");
    pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap();
    assert!(pipe.models().iter().all(|model| !model.node.hook_names().is_empty()));

    // A folder of inpainting draws from text as well, where that is asked for.
    let saved = tempfile::tempdir().unwrap();
    pipe.remove_all_hooks().unwrap();
    pipe.save_pretrained(saved.path()).unwrap();
    let path = saved.path().join("model_index.json");
    let index = std::fs::read_to_string(&path).unwrap();
    let named = |class: &str| std::fs::write(&path, index.replace("StableDiffusionPipeline", class)).unwrap();
    named("StableDiffusionInpaintPipeline");
    let class_name = |loaded: DiffusionPipeline| loaded.class_name();
    let from_name = DiffusionPipeline::from_pretrained(saved.path()).load().unwrap();
    assert_eq!(class_name(from_name), "StableDiffusionInpaintPipeline");
    let from_text = AutoPipelineForText2Image::from_pretrained(saved.path()).load().unwrap();
    assert_eq!(class_name(from_text), "StableDiffusionPipeline");
    named("KandinskyPipeline");
    let error = DiffusionPipeline::from_pretrained(saved.path()).load().unwrap_err();
    assert!(matches!(&error, Error::Unsupported(text) if text.contains("KandinskyPipeline")), "{error}");
    let error = FluxPipeline::from_pretrained(&bundled).load().unwrap_err().to_string();
    assert!(error.ends_with("the folder holds a StableDiffusionPipeline, not a FluxPipeline"), "{error}");
}
