//! TorchScript files: Python's run here, and what is traced here gives what the model gives.

use crate::support::{cases, generated, json, name, record, tensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::models::traced::TracedModel;
use tch_diffusers::models::unets::{AddedCond, TracedUNet, UNet, UNetInputs};
use tch_diffusers::models::{To, Traceable, VaeDecoder, trace};
use tch_diffusers::nn::Module;
use tch_diffusers::pipelines::Prompt;
use tch_diffusers::torch::TracedModule;
use tch_diffusers::{
    AutoencoderKL, CLIPTextModel, Error, Generator, MemoryFormat, ModelMixin, PipelineMixin, StableDiffusionPipeline,
    TensorExt, UNet2DConditionModel,
};

fn traces() -> PathBuf {
    generated("tracing").join("_traces")
}

fn model() -> PathBuf {
    generated("tracing").join("_model/sd1")
}

fn load_unet(kind: Kind) -> UNet2DConditionModel {
    UNet2DConditionModel::from_pretrained(model()).subfolder("unet").torch_dtype(kind).load().unwrap()
}

fn predict(unet: &dyn UNet, given: &BTreeMap<String, Tensor>, kind: Kind) -> tch_diffusers::Result<Tensor> {
    let [sample, timestep, text] = ["sample", "timestep", "encoder_hidden_states"].map(|key| given[key].to_kind(kind));
    tch::no_grad(|| unet.forward(&UNetInputs::new(&sample, &timestep, &text)))
}

fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    found.max_abs_diff(expected).unwrap()
}

#[test]
fn unets_traced_in_python_predict_the_same() {
    let given = tensors(&traces().join("tensors.safetensors"));
    let files = [
        ("unet.pt", Kind::Float, "prediction"),
        ("unet_tensor.pt", Kind::Float, "prediction"),
        ("unet_bfloat16.pt", Kind::BFloat16, "prediction_bfloat16"),
    ];
    for (file, kind, expected) in files {
        let unet = TracedUNet::load(traces().join(file)).unwrap();
        assert_eq!((unet.dtype(), unet.device()), (kind, Device::Cpu), "{file}");
        // libtorch rewrites a module after its first runs.
        for run in ["first run", "second run", "third run"] {
            let found = predict(&unet, &given, kind).unwrap();
            record("tracing", file, run, difference(&found, &given[expected]), 0.0);
        }
    }
}

fn draw(pipe: &mut StableDiffusionPipeline, call: &Value, output_type: OutputType) -> Tensor {
    let prompt = match &call["prompt"] {
        Value::Array(texts) => Prompt::from(texts.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>()),
        text => Prompt::from(text.as_str().unwrap()),
    };
    let mut it = pipe.call(prompt).seed(0).output_type(output_type);
    it = it.num_inference_steps(call["num_inference_steps"].as_u64().unwrap() as usize);
    if let (Some(height), Some(width)) = (call["height"].as_i64(), call["width"].as_i64()) {
        it = it.height(height).width(width);
    }
    if let Some(scale) = call["guidance_scale"].as_f64() {
        it = it.guidance_scale(scale);
    }
    match it.run().unwrap().images {
        Images::Latent(images) | Images::Tensor(images) => images,
        other => panic!("{other:?}"),
    }
}

/// Each case of the fixtures with a pipeline that `change` has put traced models into.
fn same_pictures(what: &str, change: impl Fn(&mut StableDiffusionPipeline)) {
    let mut pipe = StableDiffusionPipeline::from_pretrained(model()).load().unwrap();
    pipe.progress_bar.disable = true;
    change(&mut pipe);
    for case in cases(&generated("tracing")) {
        let (call, expected) = (json(&case.join("call.json")), tensors(&case.join("expected.safetensors")));
        for (key, output_type) in [("latent", OutputType::Latent), ("pt", OutputType::Tensor)] {
            let found = draw(&mut pipe, &call, output_type);
            let quantity = format!("{key}, {what}");
            // One item where the example had two: the last bits differ from the model's, in Python's own runs of its trace
            // as well, which is where this bound comes from.
            let bound = if name(&case) == "without_guidance" { 5e-6 } else { 0.0 };
            record("tracing", &name(&case), &quantity, difference(&found, &expected[key]), bound);
        }
    }
}

#[test]
fn files_traced_in_python_take_their_place_in_the_pipeline() {
    same_pictures("Python's UNet", |pipe| {
        let config = pipe.unet.config().clone();
        pipe.set_unet(TracedUNet::load(traces().join("unet.pt")).unwrap());
        assert_eq!(pipe.unet.config(), &config);
    });
    same_pictures("all models Python's", |pipe| {
        let load = |file| TracedModel::load(traces().join(file), Device::Cpu).unwrap();
        pipe.set_unet(TracedUNet::load(traces().join("unet_tensor.pt")).unwrap());
        pipe.set_traced_text_encoder(Some(load("text_encoder.pt")));
        pipe.set_traced_vae_decoder(Some(load("vae_decoder.pt")));
    });
}

fn saved<M: Traceable>(model: &M, batch: i64, folder: &Path) -> PathBuf {
    let path = folder.join(format!("{}.pt", M::CLASS_NAME));
    trace(model, &model.example_inputs(batch, [8, 8]).unwrap()).unwrap().save(&path).unwrap();
    path
}

#[test]
fn files_traced_here_take_their_place_in_the_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let unet = saved(&load_unet(Kind::Float), 2, folder.path());
    let vae = AutoencoderKL::from_pretrained(model()).subfolder("vae").load().unwrap();
    let vae = saved(&VaeDecoder(&vae), 1, folder.path());
    let text = CLIPTextModel::from_pretrained(model()).subfolder("text_encoder").load().unwrap();
    let text = saved(&text, 1, folder.path());
    same_pictures("all models traced here", |pipe| {
        pipe.set_unet(TracedUNet::load(&unet).unwrap());
        pipe.set_traced_text_encoder(Some(TracedModel::load(&text, Device::Cpu).unwrap()));
        pipe.set_traced_vae_decoder(Some(TracedModel::load(&vae, Device::Cpu).unwrap()));
    });
}

/// The prediction of both for `batch` pictures of `size` latents, and how they differ.
fn differ(unet: &UNet2DConditionModel, traced: &TracedUNet, batch: i64, size: [i64; 2]) -> f64 {
    let inputs = unet.example_inputs(batch, size).unwrap();
    let [sample, timestep, text] = &inputs[..] else { panic!("a UNet has three inputs") };
    let inputs = UNetInputs::new(sample, timestep, text);
    tch::no_grad(|| difference(&UNet::forward(traced, &inputs).unwrap(), &unet.forward(&inputs).unwrap()))
}

#[test]
fn a_trace_has_the_checkpoints_weights_and_leaves_batch_and_size_free() {
    // SD 2's UNet multiplies tensors that are not contiguous, SD 1's has none.
    for name in ["sd1", "sd2"] {
        let folder = generated("pipeline").join("_models").join(name);
        let unet = UNet2DConditionModel::from_pretrained(folder).subfolder("unet").load().unwrap();
        let module = trace(&unet, &unet.example_inputs(2, [8, 8]).unwrap()).unwrap();
        let (found, expected) = (module.parameters().unwrap(), unet.node().state_dict());
        let keys = |weights: &[(String, Tensor)]| weights.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        let mut sorted = [keys(&found), keys(&expected)];
        sorted.iter_mut().for_each(|keys| keys.sort());
        assert_eq!(sorted[0], sorted[1]);
        let traced = TracedUNet::new(module).unwrap();
        assert_eq!(traced.config(), unet.config());
        for (batch, size) in [(2, [8, 8]), (1, [8, 8]), (3, [16, 8]), (2, [24, 32])] {
            let case = format!("{name}, {batch} of {} x {}", size[0], size[1]);
            record("tracing", &case, "traced here", differ(&unet, &traced, batch, size), 0.0);
        }
        let frozen = TracedUNet::new(traced.module().freeze().unwrap()).unwrap();
        assert!(frozen.module().parameters().unwrap().is_empty());
        record("tracing", name, "frozen", differ(&unet, &frozen, 3, [16, 8]), 0.0);
        let optimized = TracedUNet::new(traced.module().optimize_for_inference().unwrap()).unwrap();
        // oneDNN convolves in another order.
        record("tracing", name, "optimised for inference", differ(&unet, &optimized, 2, [8, 8]), 5e-6);
    }
}

#[test]
fn a_trace_is_cast_and_laid_out_anew_without_the_model() {
    let (unet, half) = (load_unet(Kind::Float), load_unet(Kind::BFloat16));
    let folder = tempfile::tempdir().unwrap();
    let path = saved(&unet, 2, folder.path());
    let traced = TracedUNet::load(&path).unwrap();
    let before = unet.node().state_dict();
    let shared = TracedUNet::new(trace(&unet, &unet.example_inputs(2, [8, 8]).unwrap()).unwrap()).unwrap();
    for traced in [&traced, &shared] {
        traced.move_to(To::Kind(Kind::BFloat16)).unwrap();
        assert_eq!(traced.dtype(), Kind::BFloat16);
        record("tracing", "cast", "bfloat16 after tracing in float32", differ(&half, traced, 3, [16, 8]), 0.0);
    }
    let after = unet.node().state_dict();
    assert!(before.iter().zip(&after).all(|((_, a), (_, b))| a.data_ptr() == b.data_ptr() && b.kind() == Kind::Float));
    let last = TracedUNet::load(&path).unwrap();
    last.move_to(To::MemoryFormat(MemoryFormat::ChannelsLast)).unwrap();
    unet.to(MemoryFormat::ChannelsLast).unwrap();
    // The trace fixes that pictures are made contiguous between transformers, which the model leaves out here.
    record("tracing", "channels_last", "laid out after tracing", differ(&unet, &last, 2, [8, 8]), 1e-5);
}

#[test]
fn a_trace_of_a_mapped_file_holds_its_weights_alone() {
    let folder = tempfile::tempdir().unwrap();
    // In the dtype of its file a model's weights are views of the mapped file.
    let vae = AutoencoderKL::from_pretrained(model()).subfolder("vae").load().unwrap();
    let bytes: usize = VaeDecoder(&vae).weights().iter().map(|(_, weight)| weight.numel() * 4).sum();
    let path = saved(&VaeDecoder(&vae), 1, folder.path());
    let size = std::fs::metadata(path).unwrap().len() as usize;
    assert!(size < bytes + 300_000, "{size} bytes for {bytes} bytes of weights");
}

#[test]
fn what_cannot_be_traced_or_loaded_says_why() {
    let unet = load_unet(Kind::Float);
    let inputs = unet.example_inputs(2, [8, 8]).unwrap();
    assert!(matches!(trace(&unet, &inputs[..2]), Err(Error::Argument(_))));
    let narrow = [inputs[0].narrow(1, 0, 3), inputs[1].shallow_clone(), inputs[2].shallow_clone()];
    let error = trace(&unet, &narrow).unwrap_err();
    assert!(error.to_string().starts_with("conv_in: "), "{error}");
    // A failed trace leaves nothing open: the next one works.
    trace(&unet, &inputs).unwrap();
    unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    let error = trace(&unet, &inputs).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("hooks"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(TracedUNet::load(folder.path().join("none.pt")), Err(Error::Io { .. })));
    let broken = folder.path().join("broken.pt");
    std::fs::write(&broken, "no zip archive").unwrap();
    let error = TracedUNet::load(&broken).unwrap_err().to_string();
    assert!(error.contains("broken.pt"), "{error}");
    let error = TracedUNet::load(traces().join("vae_decoder.pt")).unwrap_err();
    assert!(matches!(error, Error::Argument(_)) && error.to_string().contains("takes 1 inputs"), "{error}");
    assert!(matches!(TracedModel::load(traces().join("unet.pt"), Device::Cpu), Err(Error::Argument(_))));
}

#[test]
fn a_traced_unet_refuses_what_it_does_not_take() {
    let given = tensors(&traces().join("tensors.safetensors"));
    let unet = TracedUNet::load(traces().join("unet.pt")).unwrap();
    let error = predict(&unet, &given, Kind::BFloat16).unwrap_err();
    assert!(error.to_string().contains("computes in float32, but is given bfloat16"), "{error}");
    let (sample, timestep, text) = (&given["sample"], &given["timestep"], &given["encoder_hidden_states"]);
    let added_cond = Some(AddedCond { text_embeds: text, time_ids: text });
    let error =
        UNet::forward(&unet, &UNetInputs { added_cond, ..UNetInputs::new(sample, timestep, text) }).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("added_cond_kwargs"), "{error}");
    let wide = Generator::cpu(0).unwrap().randn([2, 5, 8, 8], Kind::Float).unwrap();
    let error = UNet::forward(&unet, &UNetInputs::new(&wide, timestep, text)).unwrap_err().to_string();
    assert!(error.contains("expected input[2, 5, 8, 8] to have 4 channels") && !error.contains('\n'), "{error}");

    let frozen = unet.module().freeze().unwrap();
    assert!(matches!(frozen.to_kind(Kind::Half), Err(Error::Unsupported(_))));
    let optimized: TracedModule = unet.module().optimize_for_inference().unwrap();
    let error = optimized.save(tempfile::tempdir().unwrap().path().join("unet.pt")).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    let mut pipe = StableDiffusionPipeline::from_pretrained(model()).load().unwrap();
    pipe.set_unet(unet);
    assert!(matches!(pipe.enable_model_cpu_offload(Device::Cpu), Err(Error::Unsupported(_))));
}
