//! Configurations: those of published models, and those that are refused.

use crate::support::{cases, generated, json, name};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tch_diffusers::configuration_utils::from_map;
use tch_diffusers::models::ModelMixin;
use tch_diffusers::models::unets::{UNet2DConditionConfig, UNet2DConditionModel};
use tch_diffusers::nn::{Module, Weights};
use tch_diffusers::{Error, Result};

/// Weights of any shape that take no memory.
pub(super) struct Shapes;

impl Weights for Shapes {
    fn get(&self, _: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?.f_expand(shape, false)?)
    }
}

fn build(config: &Value) -> Result<UNet2DConditionModel> {
    UNet2DConditionModel::from_weights(from_map(config.as_object().unwrap())?, &Shapes)
}

#[test]
fn published_configurations_have_the_weights_of_diffusers() {
    for case in cases(&generated("unet_published")) {
        let unet = build(&json(&case.join("config.json"))).unwrap_or_else(|error| panic!("{}: {error}", name(&case)));
        let found: Vec<_> = unet.node().state_dict().into_iter().map(|(key, tensor)| (key, tensor.size())).collect();
        let expected = json(&case.join("parameters.json"));
        let shape = |shape: &Value| shape.as_array().unwrap().iter().map(|side| side.as_i64().unwrap()).collect();
        let expected: Vec<(String, Vec<i64>)> =
            expected.as_object().unwrap().iter().map(|(key, sides)| (key.clone(), shape(sides))).collect();
        assert_eq!(found, expected, "{}", name(&case));
    }
}

#[test]
fn defaults_are_those_of_diffusers() {
    let config = UNet2DConditionConfig::default();
    assert_eq!(config, from_map(&serde_json::Map::new()).unwrap());
    let saved = json(&generated("unet").join("sd1/config.json"));
    let written = serde_json::to_value(&config).unwrap();
    let keys: Vec<_> = saved.as_object().unwrap().keys().filter(|key| !key.starts_with('_')).collect();
    assert_eq!(keys.len(), written.as_object().unwrap().len());
    for key in keys {
        assert!(written.get(key).is_some(), "{key}");
    }
}

/// The message of the refusal of a small UNet with `change`.
fn refusal(change: Value) -> Error {
    let mut config = json!({
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [32, 64],
    });
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    build(&config).map(|_| ()).expect_err(&change.to_string())
}

fn unsupported(change: Value, message: &str) {
    let error = refusal(change);
    assert!(matches!(error.kind(), Error::Unsupported(_)), "{error:?}");
    assert_eq!(error.kind().to_string(), message);
}

fn misfit(change: Value, message: &str) {
    let error = refusal(change);
    assert!(matches!(error.kind(), Error::Config(_)), "{error:?}");
    assert_eq!(error.kind().to_string(), message);
}

#[test]
fn an_unsupported_down_block_is_named() {
    for block in ["AttnDownBlock2D", "KDownBlock2D", "SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"] {
        unsupported(
            json!({ "down_block_types": [block, "DownBlock2D"] }),
            &format!("`down_block_types`: {block} is not supported; CrossAttnDownBlock2D and DownBlock2D are"),
        );
    }
}

#[test]
fn an_unsupported_up_block_is_named() {
    for block in ["AttnUpBlock2D", "KUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"] {
        unsupported(
            json!({ "up_block_types": ["UpBlock2D", block] }),
            &format!("`up_block_types`: {block} is not supported; CrossAttnUpBlock2D and UpBlock2D are"),
        );
    }
}

#[test]
fn an_unsupported_mid_block_is_named() {
    unsupported(
        json!({ "mid_block_type": "UNetMidBlock2DSimpleCrossAttn" }),
        "`mid_block_type`: UNetMidBlock2DSimpleCrossAttn is not supported; UNetMidBlock2DCrossAttn and UNetMidBlock2D are",
    );
}

#[test]
fn an_unsupported_class_embedding_is_named() {
    unsupported(
        json!({ "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 8 }),
        "`class_embed_type` = simple_projection is not supported; timestep, identity and projection are",
    );
}

#[test]
fn an_unsupported_addition_is_named() {
    for kind in ["text", "text_image", "image", "image_hint"] {
        unsupported(
            json!({ "addition_embed_type": kind }),
            &format!("`addition_embed_type` = {kind} is not supported; text_time is"),
        );
    }
}

#[test]
fn a_projection_of_the_text_is_refused() {
    unsupported(
        json!({ "encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 8 }),
        "`encoder_hid_dim_type` = text_image_proj is not supported",
    );
    unsupported(json!({ "encoder_hid_dim": 8 }), "`encoder_hid_dim_type` = text_proj is not supported");
}

#[test]
fn two_attentions_side_by_side_are_refused() {
    unsupported(json!({ "dual_cross_attention": true }), "`dual_cross_attention` = true is not supported");
}

#[test]
fn random_frequencies_are_refused() {
    unsupported(json!({ "time_embedding_type": "fourier" }), "`time_embedding_type` = fourier is not supported");
}

#[test]
fn gated_attention_is_refused() {
    unsupported(json!({ "attention_type": "gated" }), "`attention_type` = gated is not supported");
}

#[test]
fn an_unknown_time_scale_shift_is_refused() {
    // serde hands on the message alone, so the kind is that of the file.
    misfit(
        json!({ "resnet_time_scale_shift": "ada_group" }),
        "`resnet_time_scale_shift`: `ada_group` is not supported: use default or scale_shift",
    );
}

#[test]
fn lists_of_another_length_are_named() {
    misfit(json!({ "attention_head_dim": [4, 4, 4] }), "`attention_head_dim` has 3 values for 2 blocks");
    misfit(json!({ "layers_per_block": [1] }), "`layers_per_block` has 1 values for 2 blocks");
    misfit(json!({ "cross_attention_dim": [1, 2, 3] }), "`cross_attention_dim` has 3 values for 2 blocks");
    misfit(json!({ "only_cross_attention": [true] }), "`only_cross_attention` has 1 values for 2 blocks");
    misfit(json!({ "up_block_types": ["UpBlock2D"] }), "`up_block_types` has 1 values for 2 blocks");
    misfit(json!({ "transformer_layers_per_block": [1] }), "`transformer_layers_per_block` has 1 values for 2 blocks");
}

#[test]
fn contradictions_are_named() {
    misfit(
        json!({ "num_attention_heads": 8 }),
        "`num_attention_heads` must be null: `attention_head_dim` holds the number of heads",
    );
    misfit(json!({ "norm_num_groups": null }), "`norm_num_groups` must not be null");
    misfit(json!({ "addition_embed_type": "text_time" }), "`addition_time_embed_dim` is missing");
    misfit(json!({ "class_embed_type": "projection" }), "`projection_class_embeddings_input_dim` is missing");
    misfit(json!({ "attention_head_dim": 5 }), "32 channels do not divide into `attention_head_dim` = 5 heads");
    misfit(
        json!({ "transformer_layers_per_block": [[1, 1], 1] }),
        "a list of lists in `transformer_layers_per_block` needs `reverse_transformer_layers_per_block`",
    );
}
