//! AOTInductor packages: what they compute is what diffusers computes, and what they were not made for is refused.

use crate::support::{cases, generated, json, name, record, tensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::models::compile::{CompileOptions, Mode, cache_entries, clear_cache};
use tch_diffusers::models::unets::{CompiledUNet, UNet, UNetInputs};
use tch_diffusers::nn::Module;
use tch_diffusers::pipelines::Prompt;
use tch_diffusers::torch::{AotiModel, AotiPackage};
use tch_diffusers::{
    Error, MemoryFormat, ModelMixin, PipelineMixin, Result, StableDiffusionPipeline, TensorExt, UNet2DConditionModel,
};

/// Fused kernels add in another order, as torch.compile's do in Python; 1.85e-6 was seen.
pub(super) const BOUND: f64 = 2e-6;
/// After four steps that add up such differences; 1.94e-5 was seen.
pub(super) const DRAWN: f64 = 2e-5;

pub(super) fn package(name: &str) -> PathBuf {
    generated("aoti").join("_packages").join(name)
}

pub(super) fn folder(which: &str) -> PathBuf {
    generated("aoti").join("_model").join(which)
}

fn unet(which: &str) -> UNet2DConditionModel {
    let unet = UNet2DConditionModel::from_pretrained(folder(which)).subfolder("unet").load().unwrap();
    unet.to(MemoryFormat::ChannelsLast).unwrap();
    unet
}

pub(super) fn options(name: &str) -> CompileOptions {
    CompileOptions { mode: Mode::MaxAutotune, package: Some(package(name)), ..CompileOptions::default() }
}

fn fixture() -> BTreeMap<String, Tensor> {
    tensors(&package("tensors.safetensors"))
}

fn model() -> AotiModel {
    AotiPackage::load(package("unet.pt2")).unwrap().model("model", Device::Cpu).unwrap()
}

const SHAPES: [&str; 3] = ["exported", "one", "wide"];

/// What a UNet predicts for the inputs of the fixture called `shape`.
fn predict(unet: &dyn UNet, shape: &str) -> Result<Tensor> {
    let given = fixture();
    let [sample, text] =
        ["sample", "encoder_hidden_states"].map(|key| given[&format!("{shape}.{key}")].shallow_clone());
    unet.forward(&UNetInputs::new(&sample, &Tensor::from_slice(&[501f32]), &text))
}

fn differ(found: &Tensor, expected: &str) -> f64 {
    found.max_abs_diff(&fixture()[expected]).unwrap()
}

/// The inputs of the fixture called `shape`, as the package takes them.
fn inputs(shape: &str) -> [Tensor; 3] {
    let given = fixture();
    let tensor = |key: &str| given[&format!("{shape}.{key}")].shallow_clone();
    [tensor("sample"), Tensor::from(501f32), tensor("encoder_hidden_states")]
}

fn run(model: &AotiModel, inputs: &[Tensor]) -> Result<Tensor> {
    Ok(model.run(&inputs.iter().collect::<Vec<_>>())?.remove(0))
}

#[test]
fn one_package_serves_every_checkpoint_batch_and_size() {
    let code = model();
    for which in ["sd", "other", "sd"] {
        // Swapped between runs: nothing of the other checkpoint is left.
        code.load_constants(&unet(which).node().state_dict()).unwrap();
        for shape in SHAPES {
            let difference = differ(&run(&code, &inputs(shape)).unwrap(), &format!("{shape}.{which}"));
            record("aoti", shape, &format!("package, weights of {which}"), difference, BOUND);
        }
    }
}

#[test]
fn swapped_weights_are_put_back() {
    let code = model();
    let (own, other) = (unet("sd"), unet("other"));
    assert!(code.swap_constants(&own.node().state_dict()).unwrap().is_none());
    let before = code.swap_constants(&other.node().state_dict()).unwrap().unwrap();
    assert!(differ(&run(&code, &inputs("wide")).unwrap(), "wide.other") <= BOUND);
    code.restore_constants(before);
    assert!(differ(&run(&code, &inputs("wide")).unwrap(), "wide.sd") <= BOUND);
}

#[test]
fn weights_are_not_copied() {
    let (code, own) = (model(), unet("sd"));
    code.load_constants(&own.node().state_dict()).unwrap();
    let before = run(&code, &inputs("wide")).unwrap();
    let mut bias = own.node().get("conv_out").unwrap().own_params().remove(1).1.get();
    let _ = tch::no_grad(|| bias.g_add_scalar_(1.0));
    let after = run(&code, &inputs("wide")).unwrap();
    assert!((after - before).max_abs_diff(&Tensor::ones([3, 4, 4, 10], (Kind::Float, Device::Cpu))).unwrap() < 1e-5);
}

#[test]
fn inputs_that_the_code_was_not_made_for_never_reach_it() {
    let code = model();
    code.load_constants(&unet("sd").node().state_dict()).unwrap();
    let [sample, timestep, text] = inputs("exported");
    let refused = |inputs: &[&Tensor], words: &str| {
        let error = code.run(inputs).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        error
    };
    let cpu = (Kind::Float, Device::Cpu);
    let sized = |shape: [i64; 4]| Tensor::zeros(shape, cpu);
    // Sizes: not a multiple, beyond the range, other channels, a batch beyond the range, two batches.
    for shape in [[2, 4, 9, 8], [2, 4, 8, 18], [2, 3, 8, 8], [9, 4, 8, 8], [3, 4, 8, 8]] {
        let words =
            if shape[0] == 3 { "`encoder_hidden_states` of [batch=3, 77, 32]" } else { "`sample` of [batch, 4," };
        let error = refused(&[&sized(shape), &timestep, &text], words);
        assert!(matches!(error, Error::Shape(_)), "{error}");
    }
    let error = refused(&[&sized([9, 4, 8, 8]), &timestep, &text], "batch from 1 to 8");
    assert!(error.to_string().contains("height a multiple of 2 from 2 to 16"), "{error}");
    refused(&[&sample, &timestep, &text.narrow(1, 0, 5).contiguous()], "`encoder_hidden_states` of [batch=2, 77, 32]");
    refused(&[&sample, &timestep.unsqueeze(0), &text], "`timestep` of []");
    // dtypes, strides, number.
    refused(&[&sample.to_kind(Kind::Double), &timestep, &text], "`sample` in float32, not in float64");
    refused(&[&sample, &Tensor::from(501), &text], "`timestep` in float32, not in int32");
    let last = MemoryFormat::ChannelsLast.contiguous(&sample).unwrap();
    refused(&[&last, &timestep, &text], "`sample` contiguous");
    refused(&[&sample.transpose(2, 3), &timestep, &text], "`sample` contiguous");
    refused(&[&sample, &timestep], "takes sample, timestep, encoder_hidden_states, and is given 2");
    // What was refused has changed nothing.
    assert!(differ(&run(&code, &[sample, timestep, text]).unwrap(), "exported.sd") <= BOUND);
}

#[test]
fn weights_that_the_code_was_not_made_for_never_reach_it() {
    let code = model();
    let error = run(&code, &inputs("one")).unwrap_err();
    assert!(error.to_string().contains("holds no weights"), "{error}");
    let good = unet("sd").node().state_dict();
    code.load_constants(&good).unwrap();
    let with = |key: &str, change: &dyn Fn(&Tensor) -> Tensor| {
        let changed = good.iter().map(|(name, weight)| match name == key {
            true => (name.clone(), change(weight)),
            false => (name.clone(), weight.shallow_clone()),
        });
        code.load_constants(&changed.collect::<Vec<_>>()).unwrap_err()
    };
    let error = code.load_constants(&good[2..]).unwrap_err();
    assert!(matches!(&error, Error::MissingWeights { keys, .. } if keys.len() == 2), "{error}");
    // As large, and of another shape.
    let error = with("conv_out.weight", &|weight| weight.reshape([16, 4, 3, 3]));
    assert!(error.to_string().contains("`conv_out.weight` should be [4, 16, 3, 3] and is [16, 4, 3, 3]"), "{error}");
    let error = with("conv_in.bias", &|weight| weight.to_kind(Kind::BFloat16));
    assert!(error.to_string().contains("`conv_in.bias` in float32, not in bfloat16"), "{error}");
    let error = with("conv_in.weight", &|weight| MemoryFormat::Contiguous.apply(weight).unwrap());
    assert!(error.to_string().contains("to(MemoryFormat::ChannelsLast)"), "{error}");
    // Every other row of a matrix has the shape and not the strides.
    let key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    let error = with(key, &|weight| Tensor::cat(&[weight, weight], 1).narrow(1, 0, 16));
    assert!(error.to_string().contains("with the strides [16, 1], not [32, 1]"), "{error}");
    assert!(differ(&run(&code, &inputs("wide")).unwrap(), "wide.sd") <= BOUND);
}

/// A copy of the package, some words of whose description are others of the same length.
fn forged(folder: &Path, from: &str, to: &str) -> PathBuf {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(package("unet.pt2")).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the words are there");
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    let path = folder.join(format!("{}.pt2", to.len() + at));
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn packages_of_elsewhere_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let contract = AotiPackage::load(package("unet.pt2")).unwrap().contract().clone();
    let torch = format!("\"torch\": \"{}\"", contract.torch);
    let other_torch = torch.replace("2.11", "2.10");
    let error = AotiPackage::load(forged(folder.path(), &torch, &other_torch)).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("for torch 2.10"), "{error}");
    let error = AotiPackage::load(forged(folder.path(), "\"linux-", "\"beos1-")).unwrap_err();
    assert!(error.to_string().contains("for the platform beos1-"), "{error}");
    let flag = format!("\"{}\"", contract.cpu_flags[0]);
    let error =
        AotiPackage::load(forged(folder.path(), &flag, &format!("\"{}\"", "z".repeat(flag.len() - 2)))).unwrap_err();
    assert!(error.to_string().contains("instructions that this one lacks"), "{error}");
    let error = AotiPackage::load(forged(folder.path(), "\"format\": 1", "\"format\": 7")).unwrap_err();
    assert!(matches!(error, Error::Config(_)) && error.to_string().contains("format Some(7)"), "{error}");

    assert!(matches!(AotiPackage::load(folder.path().join("none.pt2")), Err(Error::Io { .. })));
    let broken = folder.path().join("broken.pt2");
    std::fs::write(&broken, "no zip archive").unwrap();
    assert!(matches!(AotiPackage::load(&broken), Err(Error::Config(_))));
    // A zip that libtorch knows, and no package.
    let error = AotiPackage::load(generated("tracing").join("_traces/unet.pt")).unwrap_err();
    assert!(error.to_string().contains("does not say what it was made for"), "{error}");
    let own = AotiPackage::load(package("unet.pt2")).unwrap();
    assert!(own.model("decoder", Device::Cpu).unwrap_err().to_string().contains("it has model"));
    assert!(matches!(own.model("model", Device::Cuda(0)), Err(Error::Argument(_))));
}

#[test]
fn a_package_of_another_architecture_is_refused() {
    let traced = generated("tracing").join("_model/sd1");
    let wide = UNet2DConditionModel::from_pretrained(traced).subfolder("unet").load().unwrap();
    let error = wide.compile(&options("unet.pt2")).unwrap_err();
    assert!(
        error.to_string().contains("`mid_block_type` is null, and here it is \"UNetMidBlock2DCrossAttn\""),
        "{error}"
    );
    let half = UNet2DConditionModel::from_pretrained(folder("sd")).subfolder("unet").torch_dtype(Kind::BFloat16);
    let error = half.load().unwrap().compile(&options("unet.pt2")).unwrap_err();
    assert!(error.to_string().contains("for weights in float32, and these are in bfloat16"), "{error}");
    let rows = UNet2DConditionModel::from_pretrained(folder("sd")).subfolder("unet").load().unwrap();
    let error = rows.compile(&options("unet.pt2")).unwrap_err();
    assert!(error.to_string().contains("to(MemoryFormat::ChannelsLast)"), "{error}");
    let error = unet("sd").compile(&options("blocks.pt2")).unwrap_err();
    assert!(error.to_string().contains("compile_repeated_blocks"), "{error}");
    let error = unet("sd").compile_repeated_blocks(&options("unet.pt2")).unwrap_err();
    assert!(error.to_string().contains("--repeated-blocks"), "{error}");
}

fn draw(pipe: &mut StableDiffusionPipeline, call: &Value) -> Tensor {
    let prompt = match &call["prompt"] {
        Value::Array(texts) => Prompt::from(texts.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>()),
        text => Prompt::from(text.as_str().unwrap()),
    };
    let mut it = pipe.call(prompt).seed(0).output_type(OutputType::Latent);
    it = it.num_inference_steps(call["num_inference_steps"].as_u64().unwrap() as usize);
    if let (Some(height), Some(width)) = (call["height"].as_i64(), call["width"].as_i64()) {
        it = it.height(height).width(width);
    }
    if let Some(scale) = call["guidance_scale"].as_f64() {
        it = it.guidance_scale(scale);
    }
    match it.run().unwrap().images {
        Images::Latent(images) => images,
        other => panic!("{other:?}"),
    }
}

fn pipeline() -> StableDiffusionPipeline {
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder("sd")).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe.to(MemoryFormat::ChannelsLast).unwrap();
    pipe
}

/// The cases of the pipeline `model`, and what they are called with.
pub(super) fn calls(model: &str) -> Vec<(PathBuf, Value)> {
    let calls = cases(&generated("aoti")).into_iter().map(|case| {
        let call = json(&case.join("call.json"));
        (case, call)
    });
    calls.filter(|(_, call)| call["model"] == model).collect()
}

fn draws_the_same(pipe: &mut StableDiffusionPipeline, what: &str) {
    for (case, call) in calls("sd") {
        let expected = &tensors(&case.join("expected.safetensors"))["latent"];
        let found = draw(pipe, &call);
        record("aoti", &name(&case), what, found.max_abs_diff(expected).unwrap(), DRAWN);
    }
}

fn compiled(pipe: &StableDiffusionPipeline) -> &CompiledUNet {
    pipe.unet.as_any().downcast_ref().unwrap()
}

#[test]
fn a_compiled_unet_takes_its_place_in_the_pipeline() {
    let mut pipe = pipeline();
    pipe.compile_unet(&CompileOptions { dynamic: Some(true), fullgraph: true, ..options("unet.pt2") }).unwrap();
    draws_the_same(&mut pipe, "latents, compiled");
    let stats = compiled(&pipe).stats();
    assert_eq!((stats.graphs, stats.recompilations, stats.eager_calls), (1, 0, 0));
    assert!(stats.compile_time.as_secs_f64() > 0.0);
    // The weights are the model's own, so that it is saved as ever.
    let saved = tempfile::tempdir().unwrap();
    pipe.save_pretrained(saved.path()).unwrap();
}

#[test]
fn a_compiled_unet_goes_with_model_offloading() {
    let mut pipe = pipeline();
    pipe.compile_unet(&options("unet.pt2")).unwrap();
    pipe.enable_model_cpu_offload(Device::Cpu).unwrap();
    draws_the_same(&mut pipe, "latents, compiled, model offloading");
    pipe.remove_all_hooks().unwrap();
    assert_eq!(compiled(&pipe).stats().eager_calls, 0);
    // Others put hooks around layers, which the code passes over.
    for error in [
        pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap_err(),
        pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap_err(),
        pipe.enable_group_offload(&tch_diffusers::hooks::GroupOffloading::leaf_level().onload_device(Device::Cpu), &[])
            .unwrap_err(),
    ] {
        assert!(matches!(error.kind(), Error::Unsupported(_)) && error.to_string().contains("pass over"), "{error}");
    }
}

#[test]
fn weights_that_were_replaced_are_found() {
    let own = unet("sd").compile(&options("unet.pt2")).unwrap();
    assert!(differ(&predict(&own, "wide").unwrap(), "wide.sd") <= BOUND);
    for ((_, param), (_, other)) in own.model().node().params().iter().zip(unet("other").node().state_dict()) {
        drop(param.replace(other));
    }
    assert!(differ(&predict(&own, "wide").unwrap(), "wide.other") <= BOUND);
    // There and back: the addresses are new, and what was at the old ones may be anything.
    own.move_to(MemoryFormat::Contiguous.into()).unwrap();
    let error = predict(&own, "wide").unwrap_err();
    assert!(error.to_string().contains("to(MemoryFormat::ChannelsLast)"), "{error}");
    own.move_to(MemoryFormat::ChannelsLast.into()).unwrap();
    assert!(differ(&predict(&own, "wide").unwrap(), "wide.other") <= BOUND);
}

#[test]
fn sizes_that_a_package_lacks_run_as_the_model_or_are_refused() {
    let given = Tensor::zeros([1, 4, 18, 8], (Kind::Float, Device::Cpu));
    let text = Tensor::zeros([1, 77, 32], (Kind::Float, Device::Cpu));
    let inputs = UNetInputs::new(&given, &text, &text);
    let time = Tensor::from_slice(&[3f32]);
    let inputs = UNetInputs { timestep: &time, ..inputs };
    let expected = unet("sd").forward(&inputs).unwrap();
    let lenient = unet("sd").compile(&options("unet.pt2")).unwrap();
    assert_eq!(UNet::forward(&lenient, &inputs).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
    assert_eq!(lenient.stats().eager_calls, 1);
    let strict = unet("sd").compile(&CompileOptions { fullgraph: true, ..options("unet.pt2") }).unwrap();
    let error = UNet::forward(&strict, &inputs).unwrap_err();
    assert!(matches!(error.kind(), Error::Shape(_)), "{error}");
    let mask = Tensor::ones([1, 77], (Kind::Float, Device::Cpu));
    let masked = UNetInputs { encoder_attention_mask: Some(&mask), ..inputs };
    let error = UNet::forward(&strict, &masked).unwrap_err();
    assert!(error.to_string().contains("no `encoder_attention_mask`"), "{error}");
}

#[test]
fn twins_of_a_compiled_block_have_their_own_weights() {
    for which in ["sd", "other"] {
        let own = unet(which);
        let made = own.compile_repeated_blocks(&options("blocks.pt2")).unwrap();
        assert_eq!((made.graphs, made.blocks.len()), (1, 3), "{made:?}");
        assert!(made.compile_time.as_secs_f64() > 0.0);
        for shape in SHAPES {
            let difference = differ(&predict(&own, shape).unwrap(), &format!("{shape}.{which}"));
            record("aoti", shape, &format!("repeated blocks, weights of {which}"), difference, BOUND);
        }
        assert_eq!(made.eager_calls(), 0);
        // Each gives its own result, not its twin's.
        let inputs = inputs("wide");
        let seen: Vec<_> = made
            .blocks
            .iter()
            .map(|path| own.node().get(path).unwrap().params()[0].1.get().double_value(&[0]))
            .collect();
        assert!(seen[0] != seen[1] && seen[1] != seen[2], "{seen:?} of {inputs:?}");
        assert!(own.disable_compiled_blocks() && !own.disable_compiled_blocks());
    }
}

#[test]
fn compiled_blocks_draw_the_same_pictures() {
    let mut pipe = pipeline();
    pipe.unet.model().unwrap().compile_repeated_blocks(&options("blocks.pt2")).unwrap();
    draws_the_same(&mut pipe, "latents, repeated blocks");
    // Whole blocks come and go with their weights, which the code finds where they are.
    let groups = tch_diffusers::hooks::GroupOffloading::block_level(1).onload_device(Device::Cpu);
    pipe.unet.model().unwrap().enable_group_offload(&groups).unwrap();
    draws_the_same(&mut pipe, "latents, repeated blocks, group offloading");
    pipe.unet.model().unwrap().disable_group_offload().unwrap();
    assert!(matches!(
        pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap_err().kind(),
        Error::Unsupported(_)
    ));
}

#[test]
fn masks_never_get_lost_in_a_compiled_block() {
    let [sample, timestep, text] = inputs("wide");
    let mut mask = Tensor::ones([3, 77], (Kind::Float, Device::Cpu));
    let _ = mask.narrow(1, 5, 70).zero_();
    mask = mask.contiguous();
    let inputs = UNetInputs { encoder_attention_mask: Some(&mask), ..UNetInputs::new(&sample, &timestep, &text) };
    let own = unet("sd");
    let expected = own.forward(&inputs).unwrap();
    let made = own.compile_repeated_blocks(&options("blocks.pt2")).unwrap();
    assert_eq!(own.forward(&inputs).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
    assert_eq!(made.eager_calls(), 3);
    own.compile_repeated_blocks(&CompileOptions { fullgraph: true, ..options("blocks.pt2") }).unwrap();
    let error = own.forward(&inputs).unwrap_err();
    assert!(error.to_string().contains("takes no masks"), "{error}");
}

/// A cache with these files, under their own names.
pub(super) fn cache(files: &[&Path]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("aoti")).unwrap();
    for file in files {
        std::fs::copy(file, folder.path().join("aoti").join(file.file_name().unwrap())).unwrap();
    }
    folder
}

#[test]
fn the_cache_lists_what_fits_and_what_does_not_and_clears_both() {
    let forgeries = tempfile::tempdir().unwrap();
    let stale = forged(forgeries.path(), "\"torch\": \"2.11", "\"torch\": \"2.10");
    let folder = cache(&[&package("unet.pt2"), &package("blocks.pt2"), &stale]);
    std::fs::write(folder.path().join("aoti/broken.pt2"), "no zip archive").unwrap();
    std::fs::write(folder.path().join("aoti/notes.txt"), "mine").unwrap();
    let entries = cache_entries(folder.path()).unwrap();
    let usable: Vec<_> = entries.iter().filter(|entry| entry.package.is_ok()).map(|entry| name(&entry.path)).collect();
    assert_eq!((entries.len(), usable), (4, vec!["blocks.pt2".to_string(), "unet.pt2".to_string()]));
    assert_eq!(clear_cache(folder.path()).unwrap(), 4);
    assert!(cache_entries(folder.path()).unwrap().is_empty() && folder.path().join("aoti/notes.txt").is_file());
    assert_eq!(clear_cache(&folder.path().join("none")).unwrap(), 0);
}

#[test]
fn the_cache_is_looked_through_for_a_package_that_fits() {
    let forgeries = tempfile::tempdir().unwrap();
    let stale = forged(forgeries.path(), "\"torch\": \"2.11", "\"torch\": \"2.10");
    let threads = forged(forgeries.path(), "\"num_threads\": ", "\"num_threads\":9");
    let unnamed = |folder: &Path| CompileOptions { package: None, cache: Some(folder.into()), ..options("unet.pt2") };
    let full = cache(&[&stale, &package("blocks.pt2"), &package("unet.pt2")]);
    // Of another libtorch, or made for another number of threads.
    let empty = cache(&[&stale, &threads]);
    let own = unet("sd").compile(&unnamed(full.path())).unwrap();
    assert!(differ(&predict(&own, "wide").unwrap(), "wide.sd") <= BOUND);
    let own = unet("sd");
    assert_eq!(own.compile_repeated_blocks(&unnamed(full.path())).unwrap().blocks.len(), 3);
    let error = unet("sd").compile(&unnamed(empty.path())).unwrap_err();
    assert!(error.to_string().contains("tch_diffusers.export_aoti"), "{error}");
    let traced = UNet2DConditionModel::from_pretrained(generated("tracing").join("_model/sd1")).subfolder("unet");
    assert!(traced.load().unwrap().compile(&unnamed(full.path())).is_err());
}

#[test]
fn the_command_line_tool_lists_and_clears_the_cache() {
    let forgeries = tempfile::tempdir().unwrap();
    let stale = forged(forgeries.path(), "\"torch\": \"2.11", "\"torch\": \"2.10");
    let folder = cache(&[&package("unet.pt2"), &package("blocks.pt2"), &package("vae.pt2"), &stale]);
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tch-diffusers"));
        let output = command.args(arguments).env("TCH_DIFFUSERS_CACHE", folder.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = run(&["cache"]);
    for words in [
        "4 packages",
        "whole, any size, float32, cpu",
        "AutoencoderKL, decoder, any",
        "repeated blocks, any size",
        "not used: ",
        "torch 2.10",
    ] {
        assert!(listed.contains(words), "{words} is not in {listed}");
    }
    assert!(run(&["cache", "clear"]).contains("4 deleted"));
    assert!(run(&["cache"]).contains("0 packages"));
}
