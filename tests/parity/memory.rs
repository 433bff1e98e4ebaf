//! Techniques that save memory, on single models: layerwise casting, attention in slices, channels last.

use crate::support::{cases, generated, json, name, record, tensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::{LAYERWISE_CASTING_HOOK, SkipModules, apply_layerwise_casting, is_layerwise_casting_active};
use tch_diffusers::models::ModelMixin;
use tch_diffusers::models::attention_processor::{AttentionProcessor, AttentionSlicing, attn_processors};
use tch_diffusers::models::autoencoders::AutoencoderKL;
use tch_diffusers::models::unets::{UNet2DConditionModel, UNetInputs};
use tch_diffusers::nn::{Hook, Module, Next, Node};
use tch_diffusers::{Error, KindExt, MemoryFormat, Result, TensorExt};

/// A UNet's case: its inputs, and how diffusers set it up for each run.
struct Case {
    folder: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    runs: Vec<Value>,
}

impl Case {
    fn read(folder: &Path) -> Self {
        let runs = serde_json::from_value(json(&folder.join("runs.json"))).unwrap();
        Self { folder: folder.into(), tensors: tensors(&folder.join("tensors.safetensors")), runs }
    }

    fn all(technique: &str) -> Vec<Self> {
        cases(&generated("memory").join(technique)).iter().map(|folder| Self::read(folder)).collect()
    }

    fn one(technique: &str, name: &str) -> Self {
        Self::read(&generated("memory").join(technique).join(name))
    }

    fn load(&self, kind: Kind) -> UNet2DConditionModel {
        UNet2DConditionModel::from_pretrained(&self.folder).torch_dtype(kind).load().unwrap()
    }

    fn predict(&self, unet: &UNet2DConditionModel, kind: Kind) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let cast = |key: &str| match self.tensors.get(key) {
            Some(tensor) if tensor.kind().is_floating_point() => Some(tensor.to_kind(kind)),
            tensor => tensor.map(Tensor::shallow_clone),
        };
        let (sample, text) = (cast("sample").unwrap(), cast("encoder_hidden_states").unwrap());
        let (labels, mask, text_mask) = (cast("class_labels"), cast("attention_mask"), cast("encoder_attention_mask"));
        unet.forward(&UNetInputs {
            class_labels: labels.as_ref(),
            attention_mask: mask.as_ref(),
            encoder_attention_mask: text_mask.as_ref(),
            ..UNetInputs::new(&sample, &self.tensors["timestep"], &text)
        })
    }

    /// Holds what the UNet predicts to what it does in diffusers in this run.
    fn compare(&self, unet: &UNet2DConditionModel, run: usize, what: &str, bound: f64) {
        let kind = dtype(&self.runs[run]);
        let prediction = self.predict(unet, kind).unwrap();
        assert_eq!(prediction.kind(), kind);
        let difference = prediction.max_abs_diff(&self.tensors[&format!("run.{run}")]).unwrap();
        record("memory", &name(&self.folder), &format!("{what}, {}", kind.torch_name()), difference, bound);
    }
}

fn dtype(run: &Value) -> Kind {
    Kind::from_torch_name(run["dtype"].as_str().unwrap()).unwrap()
}

fn storage(run: &Value) -> Kind {
    Kind::from_torch_name(run["storage"].as_str().unwrap()).unwrap()
}

fn strings(value: &Value) -> Option<Vec<&str>> {
    value.as_array().map(|texts| texts.iter().map(|text| text.as_str().unwrap()).collect())
}

/// Every weight's dtype has to be the one it has in diffusers.
fn assert_stored(node: &Node, run: &Value) {
    let found: BTreeMap<_, _> =
        node.state_dict().into_iter().map(|(key, weight)| (key, weight.kind().torch_name())).collect();
    let expected: BTreeMap<String, String> = serde_json::from_value(run["stored"].clone()).unwrap();
    assert_eq!(found, expected);
}

fn bytes(node: &Node) -> usize {
    node.state_dict().iter().map(|(_, weight)| weight.numel() * weight.kind().elt_size_in_bytes()).sum()
}

#[test]
fn layerwise_casting_equals_diffusers_in_what_is_stored_and_in_what_is_predicted() {
    for case in Case::all("casting") {
        for (number, run) in case.runs.iter().enumerate() {
            let unet = case.load(dtype(run));
            let (pattern, classes) = (strings(&run["pattern"]), strings(&run["classes"]));
            if run["whole"] == true {
                apply_layerwise_casting(unet.node(), storage(run), dtype(run), SkipModules::NONE).unwrap();
            } else if let Some(classes) = classes {
                let skip = SkipModules { classes: Some(&classes), ..SkipModules::default() };
                apply_layerwise_casting(unet.node(), storage(run), dtype(run), skip).unwrap();
            } else {
                unet.enable_layerwise_casting(storage(run), None, pattern.as_deref()).unwrap();
            }
            assert_stored(unet.node(), run);
            assert_eq!(unet.node().dtype(), dtype(run), "the dtype is that of the computation");
            case.compare(&unet, number, &format!("cast to {}, run {number}", storage(run).torch_name()), 0.0);
            assert_stored(unet.node(), run);
        }
    }
}

#[test]
fn layerwise_casting_of_a_vae_equals_diffusers() {
    let _guard = tch::no_grad_guard();
    let folder = generated("memory").join("casting_vae");
    let (tensors, runs) = (tensors(&folder.join("tensors.safetensors")), json(&folder.join("runs.json")));
    for (number, run) in runs.as_array().unwrap().iter().enumerate() {
        let vae = AutoencoderKL::from_pretrained(&folder).torch_dtype(dtype(run)).load().unwrap();
        vae.enable_layerwise_casting(storage(run), None, None).unwrap();
        assert_stored(vae.node(), run);
        let posterior = vae.encode(&tensors["x"].to_kind(dtype(run))).unwrap();
        let decoded = vae.decode(&tensors["z"].to_kind(dtype(run))).unwrap();
        for (quantity, found) in [("encoded", posterior.mode()), ("decoded", &decoded)] {
            let difference = found.max_abs_diff(&tensors[&format!("run.{number}.{quantity}")]).unwrap();
            let what = format!("{quantity}, cast to {}", storage(run).torch_name());
            record("memory", "vae", &format!("{what}, {}", dtype(run).torch_name()), difference, 0.0);
        }
    }
}

#[test]
fn eight_bits_take_half_the_memory_of_bfloat16() {
    let case = Case::one("casting", "sd2");
    let unet = case.load(Kind::BFloat16);
    let before = bytes(unet.node());
    unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    let after = bytes(unet.node());
    // Norms keep their 16 bits: 1 % of these tiny models.
    assert!(after * 1000 < before * 515, "{after} bytes of {before}");
    let _ = case.predict(&unet, Kind::BFloat16).unwrap();
    assert_eq!(bytes(unet.node()), after, "a forward leaves copies behind");
}

#[test]
fn forwards_keep_the_very_weights_that_are_stored() {
    let case = Case::one("casting", "sd2");
    let unet = case.load(Kind::Float);
    unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    let addresses =
        || unet.node().state_dict().iter().map(|(_, weight)| weight.data_ptr() as usize).collect::<Vec<_>>();
    let before = addresses();
    for _ in 0..2 {
        let _ = case.predict(&unet, Kind::Float).unwrap();
    }
    assert_eq!(addresses(), before);
}

#[test]
fn a_weight_beyond_the_format_is_refused_by_name_and_nothing_is_changed() {
    let unet = Case::one("casting", "sd2").load(Kind::Float);
    let conv = unet.node().get("mid_block.resnets.1.conv2").unwrap();
    let (_, weight) = conv.own_params().remove(0);
    let _ = weight.get().view([-1]).get(7).fill_(-500.0);
    let before = bytes(unet.node());
    let error = unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap_err();
    assert!(matches!(error.kind(), Error::Argument(_)));
    let expected = "mid_block.resnets.1.conv2.weight: the weight holds -500, and float8_e4m3fn ends at 448";
    assert!(error.to_string().starts_with(expected), "{error}");
    assert_eq!(bytes(unet.node()), before);
    assert!(!is_layerwise_casting_active(unet.node()));
    unet.enable_layerwise_casting(Kind::Float8e5m2, None, None).unwrap();
    let error = unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap_err();
    assert!(error.to_string().contains("holds -512"), "what is stored counts, rounded as it is: {error}");
    unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, Some(&[r"conv2$"])).unwrap();
    let wrong = unet.enable_layerwise_casting(Kind::Int8, None, None).unwrap_err();
    assert!(matches!(wrong.kind(), Error::Argument(_)), "{wrong}");
    let broken = unet.enable_layerwise_casting(Kind::Float8e5m2, None, Some(&["(norm"])).unwrap_err();
    assert!(broken.to_string().contains("`(norm`"), "{broken}");
}

/// Fails in the place of a module.
#[derive(Debug)]
struct Fail;

impl Hook for Fail {
    fn around(&self, _: &Node, _: &[Tensor], _: Next<'_>) -> Result<Vec<Tensor>> {
        Err(Error::OutOfMemory("there is no room".into()))
    }
}

#[test]
fn an_error_leaves_the_stored_weights_in_place() {
    let case = Case::one("casting", "sd2");
    let unet = case.load(Kind::Float);
    unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    let (plain, stored) = (case.predict(&unet, Kind::Float).unwrap(), bytes(unet.node()));
    // Hooks that are added later run inside the casting.
    let conv = unet.node().get("conv_out").unwrap();
    conv.add_hook("fail", Fail);
    let error = case.predict(&unet, Kind::Float).unwrap_err();
    assert!(error.to_string().starts_with("conv_out: "), "{error}");
    assert_eq!(bytes(unet.node()), stored);
    conv.remove_hook("fail");
    assert_eq!(case.predict(&unet, Kind::Float).unwrap().max_abs_diff(&plain).unwrap(), 0.0);
}

#[test]
fn casting_is_undone_and_redone() {
    let case = Case::one("casting", "sd2");
    let unet = case.load(Kind::Float);
    unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    let cast = case.predict(&unet, Kind::Float).unwrap();
    for _ in 0..3 {
        unet.disable_layerwise_casting().unwrap();
        assert!(!is_layerwise_casting_active(unet.node()));
        assert!(unet.node().state_dict().iter().all(|(_, weight)| weight.kind() == Kind::Float));
        assert_eq!(case.predict(&unet, Kind::Float).unwrap().max_abs_diff(&cast).unwrap(), 0.0, "it stays rounded");
        unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
        assert_eq!(case.predict(&unet, Kind::Float).unwrap().max_abs_diff(&cast).unwrap(), 0.0);
    }
    let hooks = unet.node().get("conv_in").unwrap().hook_names();
    assert_eq!(hooks, [LAYERWISE_CASTING_HOOK], "hooks pile up");
}

#[test]
fn a_cast_model_moves_to_another_dtype_and_stays_small() {
    let case = Case::one("casting", "sd2");
    let (direct, moved) = (case.load(Kind::Float), case.load(Kind::Float));
    direct.enable_layerwise_casting(Kind::Float8e4m3fn, Some(Kind::BFloat16), None).unwrap();
    direct.to(Kind::BFloat16).unwrap();
    moved.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    moved.to(Kind::BFloat16).unwrap();
    assert_eq!((moved.node().dtype(), bytes(moved.node())), (Kind::BFloat16, bytes(direct.node())));
    let [direct, moved] = [direct, moved].map(|unet| case.predict(&unet, Kind::BFloat16).unwrap());
    assert_eq!(moved.max_abs_diff(&direct).unwrap(), 0.0);
}

#[test]
fn forwards_on_several_threads_take_turns() {
    let case = Case::one("casting", "sd2");
    let unet = case.load(Kind::Float);
    unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    let expected = case.predict(&unet, Kind::Float).unwrap();
    let differences = std::thread::scope(|scope| {
        let run = || {
            let case = Case::one("casting", "sd2");
            (0..5).map(|_| case.predict(&unet, Kind::Float).unwrap()).collect::<Vec<_>>()
        };
        let threads = [scope.spawn(run), scope.spawn(run)];
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(differences.iter().all(|found| found.max_abs_diff(&expected).unwrap() == 0.0));
}

fn slicing(value: &Value) -> Option<AttentionSlicing> {
    match value {
        Value::Null => None,
        Value::String(name) => Some(name.parse().unwrap()),
        size => Some(AttentionSlicing::Size(size.as_i64().unwrap())),
    }
}

#[test]
fn attention_in_slices_equals_diffusers_sliced_attention() {
    for case in Case::all("slicing") {
        for (number, run) in case.runs.iter().enumerate() {
            let unet = case.load(dtype(run));
            unet.set_attention_slice(slicing(&run["slice"])).unwrap();
            case.compare(&unet, number, &format!("slices of {}", run["slice"]), 0.0);
        }
    }
}

#[test]
fn slices_change_rounding_alone_and_toggles_leave_no_trace() {
    let case = Case::one("slicing", "sd1");
    let unet = case.load(Kind::Float);
    let plain = case.predict(&unet, Kind::Float).unwrap();
    for slicing in [AttentionSlicing::Auto, AttentionSlicing::Max, AttentionSlicing::Size(3)] {
        unet.set_attention_slice(Some(slicing)).unwrap();
        let difference = case.predict(&unet, Kind::Float).unwrap().max_abs_diff(&plain).unwrap();
        assert!(difference > 0.0, "nothing is sliced");
        record("memory", "sd1", &format!("{slicing:?} beside all heads at once"), difference, 1e-5);
    }
    for round in 0..1000 {
        let slicing = [AttentionSlicing::Max, AttentionSlicing::Size(2)][round % 2];
        unet.set_attention_slice(Some(slicing)).unwrap();
        unet.set_attention_slice(None).unwrap();
    }
    assert_eq!(case.predict(&unet, Kind::Float).unwrap().max_abs_diff(&plain).unwrap(), 0.0);
}

#[test]
fn a_slice_of_more_heads_than_a_layer_has_is_refused_by_name() {
    let case = Case::one("slicing", "sd2");
    let unet = case.load(Kind::Float);
    let first = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
    let error = unet.set_attention_slice(Some(AttentionSlicing::Size(3))).unwrap_err();
    assert!(matches!(error.kind(), Error::Argument(_)));
    assert_eq!(error.to_string(), format!("{first}: a slice has from 1 to 2 heads, as many as the layer, not 3"));
    assert!(unet.set_attention_slice(Some(AttentionSlicing::Size(0))).is_err());
    assert!("none".parse::<AttentionSlicing>().unwrap_err().to_string().contains("use auto, max or a number"));
    assert!(attn_processors(unet.node()).iter().all(|(_, processor)| *processor == AttentionProcessor::Default));
    unet.set_attention_slice(Some(AttentionSlicing::Auto)).unwrap();
    let sizes: Vec<_> = attn_processors(unet.node()).into_iter().map(|(_, processor)| processor).collect();
    assert_eq!(sizes[..4], [1, 1, 2, 2].map(AttentionProcessor::Sliced), "half of 2 heads, and of 4");
}

#[test]
fn channels_last_equals_diffusers_and_is_undone() {
    for case in Case::all("channels_last") {
        for (number, run) in case.runs.iter().enumerate() {
            let unet = case.load(dtype(run));
            unet.to(MemoryFormat::ChannelsLast).unwrap();
            if run["contiguous"] == true {
                unet.to(MemoryFormat::Contiguous).unwrap();
            } else {
                let strides: BTreeMap<String, Vec<i64>> = serde_json::from_value(run["strides"].clone()).unwrap();
                let found = unet.node().state_dict().into_iter().map(|(key, weight)| (key, weight.stride()));
                assert_eq!(found.collect::<BTreeMap<_, _>>(), strides);
            }
            let undone = run["contiguous"] == true;
            // With linear projections diffusers lays each transformer's picture out anew, channels first, and here it stays
            // as it is (see `picture` in transformer_2d.rs): the next layers sum in another order.
            let bound = match (unet.config().use_linear_projection && !undone, dtype(run)) {
                (false, _) => 0.0,
                (true, Kind::Float) => 1e-5,
                (true, _) => 0.02,
            };
            case.compare(&unet, number, if undone { "channels last, undone" } else { "channels last" }, bound);
        }
    }
}

#[test]
fn convolution_weights_get_the_strides_of_python() {
    for case in json(&generated("memory").join("strides.json")).as_array().unwrap() {
        let list = |key: &str| -> Vec<i64> { serde_json::from_value(case[key].clone()).unwrap() };
        let plain = Tensor::zeros(list("shape"), (Kind::Float, Device::Cpu));
        assert_eq!(plain.stride(), list("plain"));
        let last = MemoryFormat::ChannelsLast.apply(&plain).unwrap();
        assert_eq!(last.stride(), list("channels_last"), "{case}");
        let twice = MemoryFormat::ChannelsLast.apply(&last).unwrap();
        assert_eq!(twice.stride(), list("channels_last_twice"), "{case}");
        assert_eq!(MemoryFormat::Contiguous.apply(&last).unwrap().stride(), list("back"), "{case}");
        let contiguous = MemoryFormat::ChannelsLast.contiguous(&plain).unwrap();
        assert_eq!(contiguous.stride(), list("contiguous_channels_last"), "{case}");
    }
}
