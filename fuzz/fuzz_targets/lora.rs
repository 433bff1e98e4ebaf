//! LoRAs: one that a model accepts has factors of the shapes of the model's layers, and leaves nothing behind.
//!
//! The first byte says what the rest is: a safetensors file, or a list of tensors, a byte 0xFF between them, which is in no
//! UTF-8 text. The list begins with the metadata; of a tensor there are a byte for dtype and value, the number of sides, the
//! sides, and the key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};
use tch_diffusers::configuration_utils::{from_map, parse_json};
use tch_diffusers::loaders::LoraStateDict;
use tch_diffusers::loaders::lora::peft;
use tch_diffusers::models::ModelMixin;
use tch_diffusers::nn::{LoraLayer, Module, Node, RandomWeights, lora_shapes};
use tch_diffusers::{CLIPTextModel, Result, UNet2DConditionModel};

const UNET: &[u8] = br#"{
    "block_out_channels": [4, 8], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "norm_num_groups": 2, "attention_head_dim": 2,
    "cross_attention_dim": 4
}"#;
const TEXT_ENCODER: &[u8] = br#"{
    "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9,
    "max_position_embeddings": 5
}"#;

static MODELS: LazyLock<(UNet2DConditionModel, CLIPTextModel)> = LazyLock::new(|| (built(UNET), built(TEXT_ENCODER)));

fn built<M: ModelMixin>(config: &[u8]) -> M {
    let config = from_map(&parse_json(Path::new("config.json"), config.to_vec()).unwrap()).unwrap();
    M::from_weights(config, &RandomWeights::new(0, Kind::Float).unwrap()).unwrap()
}

/// The tensor that a part of a list describes.
fn tensor(part: &[u8]) -> Option<(String, Tensor)> {
    let [code, count, rest @ ..] = part else { return None };
    let (sides, key) = rest.split_at_checked(usize::from(count % 5))?;
    let sides: Vec<_> = sides.iter().map(|side| i64::from(side % 10)).collect();
    let kind = [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Int64][usize::from(code % 4)];
    let value = [0.5, 3.0, 0.0, f64::NAN][usize::from(code / 4 % 4)];
    let value = if kind == Kind::Int64 { 1.0 } else { value };
    let tensor = Tensor::f_full(sides, value, (Kind::Double, Device::Cpu)).ok()?.f_to_kind(kind).ok()?;
    Some((String::from_utf8_lossy(key).into_owned(), tensor))
}

fn listed(bytes: &[u8]) -> Result<LoraStateDict> {
    let mut parts = bytes.split(|byte| *byte == 0xff);
    let metadata = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let tensors: Vec<_> = parts.filter_map(tensor).collect();
    let metadata = Some(metadata.as_str()).filter(|metadata| !metadata.is_empty());
    LoraStateDict::from_tensors(Path::new("fuzz"), &tensors, metadata)
}

/// Holds the adapters of `model` to its layers; there are at most `most`.
fn check(model: &Node, most: usize) {
    let mut found = 0;
    for node in model.walk() {
        let Some(layer) = LoraLayer::of(&node) else { continue };
        found += 1;
        assert_eq!(layer.adapters().len(), 1, "{}", node.path());
        let sizes: Vec<_> = node.own_hook_weights().iter().map(|weight| weight.get().size()).collect();
        let [down, up, bias @ ..] = &sizes[..] else { panic!("{}: {sizes:?}", node.path()) };
        let expected = lora_shapes(&node, down[0]).unwrap();
        assert!(down[0] > 0 && expected == [down.clone(), up.clone()], "{}: {sizes:?}", node.path());
        assert!(bias.is_empty() || bias == [vec![up[0]]], "{}: {sizes:?}", node.path());
    }
    assert!(found > 0 && found <= most, "{found} layers with adapters, of {most}");
}

fn places(model: &Node) -> Vec<*mut std::ffi::c_void> {
    model.state_dict().iter().map(|(_, weight)| weight.data_ptr()).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let lora = if first % 2 == 0 { LoraStateDict::parse(Path::new("fuzz.safetensors"), rest) } else { listed(rest) };
    let Ok(lora) = lora else { return };
    let (unet, text_encoder) = &*MODELS;
    let models = [("unet", unet.node()), ("text_encoder", text_encoder.node())];
    let loaded = peft::load_lora_adapter(&models, &lora, "fuzz").unwrap_or_default();
    for (component, model) in models {
        if !loaded.contains(&component) {
            assert!(peft::list_adapters(model).is_empty(), "{component} was changed");
            continue;
        }
        check(model, lora.layers(component).len());
        let before = places(model);
        if peft::fuse_lora(model, 1.0, false, None).is_ok() {
            peft::unfuse_lora(model).unwrap();
        }
        assert_eq!(places(model), before, "{component} has other weights");
        peft::unload_lora(model);
        assert!(model.walk().iter().all(|node| node.hook_names().is_empty()), "{component} has adapters left");
    }
});
