//! Compiled models other than Stable Diffusion's UNet: SDXL's UNet, FLUX.1's transformer, and the VAE.

use super::aoti::{BOUND, cache, calls, folder, options, package};
use super::{flux_pipeline, sdxl_pipeline};
use crate::support::{name, record, tensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::models::Traceable;
use tch_diffusers::models::compile::{CompileOptions, CompileStats, Mode};
use tch_diffusers::models::transformers::{
    CompiledFluxTransformer, FluxInputs, FluxTransformer, FluxTransformer2DModel,
};
use tch_diffusers::models::unets::{AddedCond, CompiledUNet, UNet, UNetInputs};
use tch_diffusers::nn::Module;
use tch_diffusers::{
    AutoencoderKL, Error, FluxPipeline, Generator, MemoryFormat, ModelMixin, PipelineMixin, Result,
    StableDiffusionXLPipeline, TensorExt, UNet2DConditionModel,
};

/// Products of one row round by where their factors begin in memory, and a trace takes weights out of their mapped
/// file. 0 and 2.4e-7 were seen, as memory came.
const ALIGNMENT: f64 = 5e-7;
/// After four steps, as `DRAWN`; 6.7e-5 was seen.
const DRAWN_BY_SDXL: f64 = 7e-5;

const SHAPES: [&str; 3] = ["exported", "one", "wide"];

fn traced(dynamic: Option<bool>) -> CompileOptions {
    CompileOptions { dynamic, fullgraph: true, ..CompileOptions::default() }
}

fn packed(name: &str) -> CompileOptions {
    CompileOptions { dynamic: Some(true), fullgraph: true, ..options(name) }
}

/// Draws every case of the pipeline `model`, and holds the latents to diffusers'.
fn draws_the_same(model: &str, what: &str, bound: f64, mut draw: impl FnMut(&Path, &Value) -> Images) {
    let calls = calls(model);
    assert!(!calls.is_empty());
    for (case, call) in calls {
        let expected = &tensors(&case.join("expected.safetensors"))["latent"];
        let Images::Latent(found) = draw(&case, &call) else { panic!("latents were asked for") };
        record("aoti", &name(&case), what, found.max_abs_diff(expected).unwrap(), bound);
    }
}

fn sdxl() -> StableDiffusionXLPipeline {
    let mut pipe = StableDiffusionXLPipeline::from_pretrained(folder("sdxl")).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn draw_sdxl(pipe: &mut StableDiffusionXLPipeline, what: &str, bound: f64) -> CompileStats {
    draws_the_same("sdxl", what, bound, |case, call| sdxl_pipeline::draw(pipe, case, call, OutputType::Latent));
    pipe.unet.as_any().downcast_ref::<CompiledUNet>().map(CompiledUNet::stats).unwrap_or_default()
}

#[test]
fn the_unet_of_sdxl_runs_traced() {
    for (dynamic, graphs) in [(Some(false), 2), (Some(true), 1), (None, 2)] {
        let mut pipe = sdxl();
        pipe.compile_unet(&traced(dynamic)).unwrap();
        let stats = draw_sdxl(&mut pipe, &format!("latents, compiled, dynamic {dynamic:?}"), 0.0);
        assert_eq!((stats.graphs, stats.recompilations, stats.eager_calls), (graphs, graphs - 1, 0), "{dynamic:?}");
    }
}

#[test]
fn the_unet_of_sdxl_runs_as_a_package() {
    let mut pipe = sdxl();
    pipe.to(MemoryFormat::ChannelsLast).unwrap();
    pipe.compile_unet(&packed("sdxl.pt2")).unwrap();
    let stats = draw_sdxl(&mut pipe, "latents, compiled", DRAWN_BY_SDXL);
    assert_eq!((stats.graphs, stats.recompilations, stats.eager_calls), (1, 0, 0));
    pipe.enable_model_cpu_offload(Device::Cpu).unwrap();
    draw_sdxl(&mut pipe, "latents, compiled, model offloading", DRAWN_BY_SDXL);
    pipe.remove_all_hooks().unwrap();
    // Stable Diffusion's own package takes no other text, and none of what SDXL adds.
    let error = sdxl().compile_unet(&options("unet.pt2")).unwrap_err();
    assert!(error.to_string().contains("was exported for a UNet2DConditionModel whose `"), "{error}");
}

#[test]
fn sizes_that_the_package_of_sdxl_lacks_are_refused() {
    let unet = UNet2DConditionModel::from_pretrained(folder("sdxl")).subfolder("unet").load().unwrap();
    unet.to(MemoryFormat::ChannelsLast).unwrap();
    let unet = unet.compile(&packed("sdxl.pt2")).unwrap();
    let inputs = unet.model().example_inputs(2, [8, 8]).unwrap();
    let [sample, timestep, text, text_embeds, time_ids] = &inputs[..] else { panic!("SDXL's UNet has five inputs") };
    let predict = |text_embeds: &Tensor, time_ids: &Tensor| {
        let added_cond = Some(AddedCond { text_embeds, time_ids });
        UNet::forward(&unet, &UNetInputs { added_cond, ..UNetInputs::new(sample, timestep, text) })
    };
    assert_eq!(predict(text_embeds, time_ids).unwrap().size(), sample.size());
    let error = predict(text_embeds, &time_ids.narrow(0, 0, 1)).unwrap_err();
    assert!(error.to_string().contains("`time_ids` of [batch=2, 6]"), "{error}");
    let error = predict(&text_embeds.to_kind(Kind::Double), time_ids).unwrap_err();
    assert!(error.to_string().contains("`text_embeds` in float32, not in float64"), "{error}");
    let error = UNet::forward(&unet, &UNetInputs::new(sample, timestep, text)).unwrap_err();
    assert!(error.to_string().contains("the package needs `text_embeds`"), "{error}");
}

fn flux() -> FluxPipeline {
    let mut pipe = FluxPipeline::from_pretrained(folder("flux")).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn draw_flux(pipe: &mut FluxPipeline, what: &str, bound: f64) -> CompileStats {
    draws_the_same("flux", what, bound, |case, call| flux_pipeline::draw(pipe, case, call, OutputType::Latent));
    let compiled = pipe.transformer.as_any().downcast_ref::<CompiledFluxTransformer>();
    compiled.map(CompiledFluxTransformer::stats).unwrap_or_default()
}

fn transformer() -> FluxTransformer2DModel {
    FluxTransformer2DModel::from_pretrained(folder("flux")).subfolder("transformer").load().unwrap()
}

fn predict(model: &dyn FluxTransformer, given: &BTreeMap<String, Tensor>, shape: &str) -> Result<Tensor> {
    let tensor = |key: &str| &given[&format!("{shape}.{key}")];
    model.forward(&FluxInputs {
        hidden_states: tensor("hidden_states"),
        encoder_hidden_states: tensor("encoder_hidden_states"),
        pooled_projections: tensor("pooled_projections"),
        timestep: tensor("timestep"),
        img_ids: tensor("img_ids"),
        txt_ids: tensor("txt_ids"),
        guidance: Some(tensor("guidance")),
    })
}

/// Holds what the transformer predicts to what diffusers' does, for every size.
fn predicts_the_same(model: &dyn FluxTransformer, what: &str, bound: f64) {
    let given = tensors(&package("transformer.safetensors"));
    for shape in SHAPES {
        let found = predict(model, &given, shape).unwrap();
        let difference = found.max_abs_diff(&given[&format!("{shape}.expected")]).unwrap();
        record("aoti", &format!("flux {shape}"), what, difference, bound);
    }
}

#[test]
fn the_transformer_of_flux_runs_traced() {
    let given = tensors(&package("transformer.safetensors"));
    for dynamic in [Some(false), Some(true), None] {
        let compiled = transformer().compile(&traced(dynamic)).unwrap();
        predicts_the_same(&compiled, &format!("velocity, compiled, dynamic {dynamic:?}"), ALIGNMENT);
        for shape in SHAPES {
            let expected = predict(compiled.model(), &given, shape).unwrap();
            let difference = predict(&compiled, &given, shape).unwrap().max_abs_diff(&expected).unwrap();
            assert_eq!(difference, 0.0, "{shape}");
        }
        let stats = compiled.stats();
        assert_eq!((stats.graphs, stats.recompilations, stats.eager_calls), (3, 2, 0), "{dynamic:?}");
    }
    // Any number of items, with as many tokens.
    let two = |name: &str| (format!("two.{name}"), Tensor::cat(&[&given[&format!("one.{name}")]; 2], 0));
    let shared = |name: &str| (format!("two.{name}"), given[&format!("one.{name}")].shallow_clone());
    let batched = ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance"].map(two);
    let twice: BTreeMap<_, _> = batched.into_iter().chain(["img_ids", "txt_ids"].map(shared)).collect();
    let compiled = transformer().compile(&traced(Some(true))).unwrap();
    let _ = predict(&compiled, &given, "one").unwrap();
    let expected = predict(&transformer(), &twice, "two").unwrap();
    assert_eq!(predict(&compiled, &twice, "two").unwrap().max_abs_diff(&expected).unwrap(), 0.0);
    assert_eq!(compiled.stats().graphs, 1);
}

#[test]
fn the_transformer_of_flux_runs_as_a_package() {
    predicts_the_same(&transformer().compile(&packed("flux.pt2")).unwrap(), "velocity, package", BOUND);
    let mut pipe = flux();
    pipe.compile_transformer(&packed("flux.pt2")).unwrap();
    let stats = draw_flux(&mut pipe, "latents, compiled", BOUND);
    assert_eq!((stats.graphs, stats.recompilations, stats.eager_calls), (1, 0, 0));
    pipe.enable_model_cpu_offload(Device::Cpu).unwrap();
    draw_flux(&mut pipe, "latents, compiled, model offloading", BOUND);
    pipe.remove_all_hooks().unwrap();
    let error = pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("pass over"), "{error}");
    let saved = tempfile::tempdir().unwrap();
    pipe.save_pretrained(saved.path()).unwrap();
}

#[test]
fn what_the_package_of_flux_lacks_runs_as_the_model_or_is_refused() {
    let mut given = tensors(&package("transformer.safetensors"));
    for (key, side) in [("encoder_hidden_states", 1), ("txt_ids", 0)] {
        let long = Tensor::cat(&[&given[&format!("exported.{key}")]; 2], side);
        given.insert(format!("exported.{key}"), long);
    }
    let expected = predict(&transformer(), &given, "exported").unwrap();
    let lenient = transformer().compile(&options("flux.pt2")).unwrap();
    let found = predict(&lenient, &given, "exported").unwrap();
    assert_eq!((found.max_abs_diff(&expected).unwrap(), lenient.stats().eager_calls), (0.0, 1));
    let strict = transformer().compile(&packed("flux.pt2")).unwrap();
    let error = predict(&strict, &given, "exported").unwrap_err();
    assert!(matches!(error.kind(), Error::Shape(_)) && error.to_string().contains("words from 1 to 64"), "{error}");
    // Text of one length with places of another.
    let short = given["exported.txt_ids"].narrow(0, 0, 60);
    given.insert("wide.txt_ids".into(), short);
    let error = predict(&strict, &given, "wide").unwrap_err();
    assert!(error.to_string().contains("`txt_ids` of [words=7, 3]"), "{error}");
    // Other blocks, another dtype, another class.
    let other =
        FluxTransformer2DModel::from_pretrained(crate::support::generated("flux_pipeline").join("_models/schnell"));
    let error = other.subfolder("transformer").load().unwrap().compile(&options("flux.pt2")).unwrap_err();
    assert!(error.to_string().contains("whose `num_layers` is 1, and here it is 2"), "{error}");
    let half = transformer();
    half.to(Kind::BFloat16).unwrap();
    let error = half.compile(&options("flux.pt2")).unwrap_err();
    assert!(error.to_string().contains("for weights in float32, and these are in bfloat16"), "{error}");
    let error = transformer().compile(&options("unet.pt2")).unwrap_err();
    assert!(error.to_string().contains("for a UNet2DConditionModel, not for a FluxTransformer2DModel"), "{error}");
    let error = transformer().compile(&options("flux_blocks.pt2")).unwrap_err();
    assert!(error.to_string().contains("compile_repeated_blocks"), "{error}");
}

#[test]
fn the_blocks_of_flux_have_their_own_weights() {
    let model = transformer();
    let made = model.compile_repeated_blocks(&packed("flux_blocks.pt2")).unwrap();
    // One of one kind, two of the other.
    assert_eq!((made.graphs, made.blocks.len()), (2, 3), "{made:?}");
    predicts_the_same(&model, "velocity, repeated blocks", BOUND);
    let mut pipe = flux();
    let model = pipe.transformer.model().unwrap();
    let made = model.compile_repeated_blocks(&packed("flux_blocks.pt2")).unwrap();
    draw_flux(&mut pipe, "latents, repeated blocks", BOUND);
    let groups = GroupOffloading::block_level(1).onload_device(Device::Cpu);
    pipe.transformer.model().unwrap().enable_group_offload(&groups).unwrap();
    draw_flux(&mut pipe, "latents, repeated blocks, group offloading", BOUND);
    assert_eq!(made.eager_calls(), 0);
    let leaves = GroupOffloading::leaf_level().onload_device(Device::Cpu);
    let model = pipe.transformer.model().unwrap();
    model.disable_group_offload().unwrap();
    model.enable_group_offload(&leaves).unwrap();
    let [(_, call), ..] = &calls("flux")[..] else { panic!("there are calls") };
    let error = pipe.call(call["prompt"].as_str().unwrap_or("dog")).height(32).width(32).run().unwrap_err();
    assert!(error.to_string().contains("pass over the hook"), "{error}");
}

fn vae() -> AutoencoderKL {
    let vae = AutoencoderKL::from_pretrained(folder("flux")).subfolder("vae").load().unwrap();
    vae.to(MemoryFormat::ChannelsLast).unwrap();
    vae
}

/// Holds what the VAE makes to what diffusers' does, for every size.
fn codes_the_same(vae: &AutoencoderKL, what: &str, bound: f64) {
    let given = tensors(&package("vae.safetensors"));
    for shape in SHAPES {
        let tensor = |key: &str| &given[&format!("{shape}.{key}")];
        let decoded = vae.decode(tensor("z")).unwrap();
        let difference = decoded.max_abs_diff(tensor("decoded")).unwrap();
        record("aoti", &format!("vae {shape}"), &format!("decoded, {what}"), difference, bound);
        let encoded = vae.encode(tensor("x")).unwrap();
        // Half of the channels are the mean, half its variance.
        let difference = encoded.mode().max_abs_diff(&tensor("encoded").narrow(1, 0, 4)).unwrap();
        record("aoti", &format!("vae {shape}"), &format!("encoded, {what}"), difference, bound);
    }
}

#[test]
fn a_vae_runs_traced() {
    for (dynamic, graphs) in [(Some(false), 3), (Some(true), 1), (None, 2)] {
        let mut vae = vae();
        vae.compile_decoder(&traced(dynamic)).unwrap();
        vae.compile_encoder(&traced(dynamic)).unwrap();
        codes_the_same(&vae, &format!("compiled, dynamic {dynamic:?}"), 0.0);
        for stats in [vae.decoder_stats().unwrap(), vae.encoder_stats().unwrap()] {
            assert_eq!((stats.graphs, stats.eager_calls), (graphs, 0), "{dynamic:?}");
        }
        assert!(vae.disable_compiled_halves() && !vae.disable_compiled_halves());
        assert!(vae.decoder_stats().is_none() && vae.node().hook_names().is_empty());
    }
}

#[test]
fn a_vae_runs_as_packages_with_tiles_and_slices() {
    let (mut compiled, mut eager) = (vae(), vae());
    compiled.compile_decoder(&packed("vae.pt2")).unwrap();
    compiled.compile_encoder(&packed("vae_encoder.pt2")).unwrap();
    codes_the_same(&compiled, "package", BOUND);
    for vae in [&mut compiled, &mut eager] {
        vae.enable_tiling();
        vae.enable_slicing();
        (vae.tile_latent_min_size, vae.tile_sample_min_size) = (8, 16);
    }
    let latents = Generator::cpu(3).unwrap().randn([2, 4, 20, 12], Kind::Float).unwrap();
    let (found, expected) = (compiled.decode(&latents).unwrap(), eager.decode(&latents).unwrap());
    record("aoti", "vae in tiles", "decoded, package", found.max_abs_diff(&expected).unwrap(), 2.6e-6);
    assert_eq!(compiled.decoder_stats().unwrap().eager_calls, 0);
}

#[test]
fn a_compiled_vae_draws_the_same_pictures() {
    let mut pipe = flux();
    pipe.to(MemoryFormat::ChannelsLast).unwrap();
    pipe.compile_vae(&packed("vae.pt2")).unwrap();
    pipe.enable_model_cpu_offload(Device::Cpu).unwrap();
    for (case, call) in calls("flux") {
        let Images::Tensor(found) = flux_pipeline::draw(&mut pipe, &case, &call, OutputType::Tensor) else {
            panic!("tensors were asked for")
        };
        let expected = &tensors(&case.join("expected.safetensors"))["picture"];
        record("aoti", &name(&case), "picture, VAE compiled", found.max_abs_diff(expected).unwrap(), BOUND);
    }
    pipe.remove_all_hooks().unwrap();
    let error = pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("pass over"), "{error}");
    let error = pipe.vae.enable_group_offload(&GroupOffloading::leaf_level().onload_device(Device::Cpu)).unwrap_err();
    assert!(error.to_string().contains("pass over"), "{error}");
}

#[test]
fn the_residual_blocks_of_a_vae_have_their_own_weights() {
    let vae = vae();
    let made = vae.compile_repeated_blocks(&packed("vae_blocks.pt2")).unwrap();
    assert!(made.graphs < made.blocks.len(), "{made:?}");
    assert!(made.blocks.iter().all(|path| path.starts_with("decoder.")), "{made:?}");
    codes_the_same(&vae, "residual blocks", BOUND);
    let groups = GroupOffloading::block_level(1).onload_device(Device::Cpu);
    vae.enable_group_offload(&groups).unwrap();
    codes_the_same(&vae, "residual blocks, group offloading", BOUND);
    assert_eq!(made.eager_calls(), 0);
}

#[test]
fn what_the_packages_of_a_vae_lack_runs_as_the_model_or_is_refused() {
    let large = Tensor::zeros([1, 4, 65, 8], (Kind::Float, Device::Cpu));
    let (mut lenient, mut strict) = (vae(), vae());
    lenient.compile_decoder(&options("vae.pt2")).unwrap();
    let expected = strict.decode(&large).unwrap();
    assert_eq!(lenient.decode(&large).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
    assert_eq!(lenient.decoder_stats().unwrap().eager_calls, 1);
    strict.compile_decoder(&packed("vae.pt2")).unwrap();
    let error = strict.decode(&large).unwrap_err();
    assert!(matches!(error.kind(), Error::Shape(_)) && error.to_string().contains("height from 1 to 64"), "{error}");
    let error = strict.decode(&large.narrow(2, 0, 8).to_kind(Kind::Double)).unwrap_err();
    assert!(error.to_string().contains("`z` in float32, not in float64"), "{error}");
    let mut other = AutoencoderKL::from_pretrained(folder("sd")).subfolder("vae").load().unwrap();
    let error = other.compile_decoder(&options("vae.pt2")).unwrap_err();
    assert!(error.to_string().contains("was exported for a AutoencoderKL whose `"), "{error}");
    let error = strict.compile_encoder(&options("vae.pt2")).unwrap_err();
    assert!(error.to_string().contains("no code `encoder`: it has decoder"), "{error}");
    let error = strict.compile_decoder(&options("vae_blocks.pt2")).unwrap_err();
    assert!(error.to_string().contains("compile_repeated_blocks"), "{error}");
    let mut rows = AutoencoderKL::from_pretrained(folder("flux")).subfolder("vae").load().unwrap();
    let error = rows.compile_decoder(&options("vae.pt2")).unwrap_err();
    assert!(error.to_string().contains("to(MemoryFormat::ChannelsLast)"), "{error}");
    // What was refused has changed nothing.
    assert!(rows.decoder_stats().is_none() && rows.node().hook_names().is_empty());
}

#[test]
fn each_class_finds_its_own_packages_in_the_cache() {
    let names = ["blocks", "flux", "flux_blocks", "sdxl", "unet", "vae", "vae_blocks", "vae_encoder"];
    let files = names.map(|name| package(&format!("{name}.pt2")));
    let cached = cache(&files.each_ref().map(std::path::PathBuf::as_path));
    let options = CompileOptions {
        mode: Mode::MaxAutotune,
        fullgraph: true,
        cache: Some(cached.path().into()),
        ..CompileOptions::default()
    };
    predicts_the_same(&transformer().compile(&options).unwrap(), "velocity, package of the cache", BOUND);
    assert_eq!(transformer().compile_repeated_blocks(&options).unwrap().blocks.len(), 3);
    let mut compiled = vae();
    compiled.compile_decoder(&options).unwrap();
    compiled.compile_encoder(&options).unwrap();
    codes_the_same(&compiled, "package of the cache", BOUND);
    vae().compile_repeated_blocks(&options).unwrap();
    let mut pipe = sdxl();
    pipe.to(MemoryFormat::ChannelsLast).unwrap();
    pipe.compile_unet(&options).unwrap();
    draw_sdxl(&mut pipe, "latents, package of the cache", DRAWN_BY_SDXL);
}
