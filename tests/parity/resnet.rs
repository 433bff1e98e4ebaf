//! ResnetBlock2D, Downsample2D and Upsample2D, each alone.

use crate::support::{Checkpoint, cases, generated, json, name, record, tensors};
use serde_json::Value;
use std::path::Path;
use tch::{Kind, Tensor};
use tch_diffusers::models::downsampling::Downsample2D;
use tch_diffusers::models::resnet::{Resample, ResnetBlock2D, ResnetBlock2DConfig};
use tch_diffusers::models::upsampling::Upsample2D;
use tch_diffusers::nn::{Activation, Module, Node, Scope};
use tch_diffusers::{Error, MemoryFormat, Result, TensorExt};

const CHANNELS: i64 = 16;

fn resnet_config(config: &Value) -> ResnetBlock2DConfig {
    let number = |key: &str| config[key].as_i64();
    let flag = |key: &str| config[key].as_bool().unwrap_or(false);
    let text = |key: &str| config[key].as_str();
    let defaults = ResnetBlock2DConfig::new(CHANNELS, number("out_channels").unwrap_or(CHANNELS));
    ResnetBlock2DConfig {
        conv_2d_out_channels: number("conv_2d_out_channels"),
        temb_channels: number("temb_channels"),
        groups: number("groups").unwrap(),
        groups_out: number("groups_out"),
        eps: config["eps"].as_f64().unwrap_or(defaults.eps),
        non_linearity: text("non_linearity").map_or(Activation::Silu, |name| name.parse().unwrap()),
        skip_time_act: flag("skip_time_act"),
        time_embedding_norm: text("time_embedding_norm").unwrap_or("default").parse().unwrap(),
        output_scale_factor: config["output_scale_factor"].as_f64().unwrap_or(1.0),
        use_in_shortcut: config["use_in_shortcut"].as_bool(),
        conv_shortcut_bias: config["conv_shortcut_bias"].as_bool().unwrap_or(true),
        resample: match (flag("up"), flag("down")) {
            (true, _) => Resample::Up,
            (_, true) => Resample::Down,
            _ => Resample::None,
        },
        ..defaults
    }
}

type Forward = Box<dyn Fn(&Tensor, Option<&Tensor>) -> Result<Tensor>>;

/// The module of a case, and how to run it.
fn build(case: &Value, scope: Scope<'_>) -> (Node, Forward) {
    let config = &case["config"];
    let out_channels = config["out_channels"].as_i64().unwrap_or(CHANNELS);
    match (case["class"].as_str().unwrap(), config["use_conv"].as_bool().unwrap_or(false)) {
        ("ResnetBlock2D", _) => {
            let block = ResnetBlock2D::new(scope, resnet_config(config)).unwrap();
            (block.node().clone(), Box::new(move |x, temb| block.forward(x, temb)))
        }
        ("Downsample2D", conv) => {
            let padding = config["padding"].as_i64().unwrap_or(1);
            let block = if conv {
                Downsample2D::with_conv(scope, CHANNELS, out_channels, padding).unwrap()
            } else {
                Downsample2D::new(scope, CHANNELS)
            };
            (block.node().clone(), Box::new(move |x, _| block.forward(x)))
        }
        ("Upsample2D", conv) => {
            let size = config["output_size"].as_array().map(|size| [0, 1].map(|i: usize| size[i].as_i64().unwrap()));
            let block = if conv {
                Upsample2D::with_conv(scope, CHANNELS, out_channels).unwrap()
            } else {
                Upsample2D::new(scope, CHANNELS)
            };
            (block.node().clone(), Box::new(move |x, _| block.forward(x, size)))
        }
        (other, _) => panic!("unknown class {other}"),
    }
}

fn compare(folder: &Path) {
    let tensors = tensors(&folder.join("tensors.safetensors"));
    let weights =
        Checkpoint::new(tensors.iter().filter_map(|(key, tensor)| {
            key.strip_prefix("weight.").map(|key| (key.to_string(), tensor.shallow_clone()))
        }));
    let (node, forward) = build(&json(&folder.join("case.json")), Scope::root(&weights));
    weights.assert_all_used(&node);
    let (x, temb) = (&tensors["input.x"], tensors.get("input.temb"));
    let check = |quantity: &str, found: Tensor| {
        let difference = found.max_abs_diff(&tensors[&format!("output.{quantity}")]).unwrap();
        record("resnet", &name(folder), quantity, difference, 0.0);
    };
    check("float32", forward(x, temb).unwrap());
    check("channels_last", forward(&MemoryFormat::ChannelsLast.contiguous(x).unwrap(), temb).unwrap());
    node.to_kind(Kind::BFloat16).unwrap();
    let temb = temb.map(|temb| temb.to_kind(Kind::BFloat16));
    check("bfloat16", forward(&x.to_kind(Kind::BFloat16), temb.as_ref()).unwrap());
}

#[test]
fn residual_blocks_and_samplers_equal_diffusers() {
    for folder in cases(&generated("resnet")) {
        compare(&folder);
    }
}

#[test]
fn a_time_embedding_too_many_or_too_few_is_refused() {
    let folder = generated("resnet").join("resnet_temb");
    let tensors = tensors(&folder.join("tensors.safetensors"));
    let weights =
        Checkpoint::new(tensors.iter().map(|(key, tensor)| (key.replace("weight.", ""), tensor.shallow_clone())));
    let (_, forward) = build(&json(&folder.join("case.json")), Scope::root(&weights));
    let error = forward(&tensors["input.x"], None).unwrap_err();
    assert!(matches!(error.kind(), Error::Argument(_)), "{error}");
    let error = forward(&tensors["input.temb"], Some(&tensors["input.temb"])).unwrap_err();
    assert!(!matches!(error.kind(), Error::Argument(_)), "{error}");
}

#[test]
fn wrong_channels_name_the_module() {
    let weights = tch_diffusers::nn::RandomWeights::new(0, Kind::Float).unwrap();
    let scope = &Scope::root(&weights) / "downsamplers" / 0;
    let sampler = Downsample2D::with_conv(scope, 4, 4, 0).unwrap();
    let error = sampler.forward(&Tensor::zeros([1, 3, 8, 8], (Kind::Float, tch::Device::Cpu))).unwrap_err();
    assert_eq!(error.to_string(), "downsamplers.0: expected [batch, 4, height, width], got [1, 3, 8, 8]");
}
