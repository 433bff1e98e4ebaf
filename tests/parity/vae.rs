//! AutoencoderKL: encoding and decoding, in slices, in tiles, in 16 bits, and at Stable Diffusion 1.5's size.

use crate::support::{Checkpoint, cases, generated, json, name, record, tensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tch::{Kind, Tensor};
use tch_diffusers::configuration_utils::{ConfigMap, from_map, read_json};
use tch_diffusers::models::autoencoders::{
    AutoencoderKL, AutoencoderKLConfig, DiagonalGaussianDistribution, legacy_key,
};
use tch_diffusers::nn::{Hook, Module, Next, Node, RandomWeights, Scope};
use tch_diffusers::{Error, Generator, KindExt, MemoryFormat, Result, TensorExt};

/// The autoencoder that diffusers saved in `folder`.
fn load(folder: &Path) -> AutoencoderKL {
    let config: ConfigMap = read_json(&folder.join("config.json")).unwrap();
    let weights = Checkpoint::new(tensors(&folder.join("diffusion_pytorch_model.safetensors")));
    let vae = AutoencoderKL::new(from_map(&config).unwrap(), Scope::root(&weights)).unwrap();
    weights.assert_all_used(vae.node());
    vae
}

fn generators(seeds: impl IntoIterator<Item = u64>) -> Vec<Generator> {
    seeds.into_iter().map(|seed| Generator::cpu(seed).unwrap()).collect()
}

/// Encodes and decodes as `run` says, and compares all that comes out.
fn compare(case: &str, vae: &mut AutoencoderKL, run: &Value, tensors: &BTreeMap<String, Tensor>) {
    let flag = |key: &str| run[key].as_bool().unwrap();
    let run_name = run["name"].as_str().unwrap();
    if flag("slicing") {
        vae.enable_slicing()
    } else {
        vae.disable_slicing()
    }
    if flag("tiling") {
        vae.enable_tiling()
    } else {
        vae.disable_tiling()
    }
    let kind = Kind::from_torch_name(run["dtype"].as_str().unwrap()).unwrap();
    vae.node().to_kind(kind).unwrap();
    let layout = if flag("channels_last") { MemoryFormat::ChannelsLast } else { MemoryFormat::Contiguous };
    let stored = |quantity: &str| &tensors[&format!("{run_name}.{quantity}")];
    let input = |quantity: &str| layout.contiguous(&stored(quantity).to_kind(kind)).unwrap();
    let check = |quantity: &str, found: &Tensor| {
        assert_eq!(found.kind(), kind);
        let difference = found.max_abs_diff(stored(quantity)).unwrap();
        record("vae", case, &format!("{run_name}: {quantity}"), difference, 0.0);
    };
    let posterior = vae.encode(&input("x")).unwrap();
    check("mean", posterior.mean());
    check("logvar", posterior.logvar());
    check("std", posterior.std());
    check("mode", posterior.mode());
    check("sample", &posterior.sample(&mut generators([3])).unwrap());
    let batch = input("x").size()[0] as u64;
    if batch > 1 {
        check("samples", &posterior.sample(&mut generators(4..4 + batch)).unwrap());
    }
    check("decoded", &vae.decode(&input("z")).unwrap());
}

#[test]
fn autoencoders_equal_diffusers_whole_sliced_and_tiled() {
    for folder in cases(&generated("vae").join("models")) {
        let mut vae = load(&folder);
        let tensors = tensors(&folder.join("tensors.safetensors"));
        for run in json(&folder.join("case.json")).as_array().unwrap() {
            compare(&name(&folder), &mut vae, run, &tensors);
        }
    }
}

/// `common.randomise`, in Rust: the weights that the fixture drew.
fn drawn(case: &Value) -> Checkpoint {
    let mut generator = Generator::cpu(case["seed"].as_u64().unwrap()).unwrap();
    Checkpoint::new(case["weights"].as_array().unwrap().iter().map(|weight| {
        let key = weight[0].as_str().unwrap();
        let shape: Vec<i64> = serde_json::from_value(weight[1].clone()).unwrap();
        let noise = generator.randn(&shape, Kind::Float).unwrap();
        let fan_in: i64 = shape[1..].iter().product();
        let weight = match shape.len() {
            1 if key.ends_with("weight") => noise * 0.1 + 1.0,
            1 => noise * 0.1,
            _ => noise / (fan_in as f64).sqrt(),
        };
        (key.to_string(), weight)
    }))
}

#[test]
fn stable_diffusions_own_size_equals_diffusers() {
    let folder = generated("vae").join("full_size");
    let (case, tensors) = (json(&folder.join("case.json")), tensors(&folder.join("tensors.safetensors")));
    let config: AutoencoderKLConfig = serde_json::from_value(case["config"].clone()).unwrap();
    let weights = drawn(&case);
    let vae = AutoencoderKL::new(config, Scope::root(&weights)).unwrap();
    weights.assert_all_used(vae.node());
    assert_eq!(vae.node().num_parameters(), 83_653_863);
    let posterior = vae.encode(&tensors["x"]).unwrap();
    let found = [
        ("mean", posterior.mean().shallow_clone()),
        ("logvar", posterior.logvar().shallow_clone()),
        ("decoded", vae.decode(&tensors["z"]).unwrap()),
    ];
    for (quantity, found) in found {
        record("vae", "full_size", quantity, found.max_abs_diff(&tensors[quantity]).unwrap(), 0.0);
    }
}

#[test]
fn extreme_variances_are_cut_as_in_diffusers() {
    let tensors = tensors(&generated("vae").join("distribution/tensors.safetensors"));
    let posterior = DiagonalGaussianDistribution::new(&tensors["parameters"]).unwrap();
    let sample = posterior.sample(&mut generators([6])).unwrap();
    for (quantity, found) in [("logvar", posterior.logvar()), ("std", posterior.std()), ("sample", &sample)] {
        record("vae", "distribution", quantity, found.max_abs_diff(&tensors[quantity]).unwrap(), 0.0);
    }
    let (lowest, highest) = (f64::try_from(posterior.logvar().min()), f64::try_from(posterior.logvar().max()));
    assert_eq!((lowest.unwrap(), highest.unwrap()), (-30.0, 20.0));
}

#[test]
fn legacy_names_and_shapes_of_attention_weights_give_the_same_picture() {
    let folder = generated("vae").join("models/two_blocks");
    let today = tensors(&folder.join("diffusion_pytorch_model.safetensors"));
    let legacy = today.iter().map(|(key, tensor)| {
        let renamed = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
            .iter()
            .fold(key.clone(), |key, (now, then)| key.replace(&format!(".{now}."), &format!(".{then}.")));
        let as_conv = renamed != *key && tensor.dim() == 2;
        (renamed, if as_conv { tensor.unsqueeze(-1).unsqueeze(-1) } else { tensor.shallow_clone() })
    });
    let mut renamed = 0;
    let converted = Checkpoint::new(legacy.map(|(key, tensor)| match legacy_key(&key) {
        None => (key, tensor),
        Some(name) => {
            renamed += 1;
            let tensor = if tensor.dim() == 4 { tensor.reshape(&tensor.size()[..2]) } else { tensor };
            (name, tensor)
        }
    }));
    assert_eq!(renamed, 16);
    let expected = load(&folder);
    let vae = AutoencoderKL::new(expected.config().clone(), Scope::root(&converted)).unwrap();
    let z = Tensor::ones([1, 4, 4, 4], (Kind::Float, tch::Device::Cpu));
    assert_eq!(vae.decode(&z).unwrap().max_abs_diff(&expected.decode(&z).unwrap()).unwrap(), 0.0);
}

/// Keeps the shapes of what goes into a module.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<Vec<i64>>>>);

impl Hook for Seen {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        self.0.lock().unwrap().extend(inputs.iter().map(Tensor::size));
        next.run(inputs)
    }
}

fn tiny(config: AutoencoderKLConfig) -> Result<AutoencoderKL> {
    let config = AutoencoderKLConfig { norm_num_groups: 4, ..config };
    AutoencoderKL::new(config, Scope::root(&RandomWeights::new(0, Kind::Float)?))
}

#[test]
fn hooks_around_the_model_fire_for_encode_and_for_decode() {
    let mut vae = tiny(AutoencoderKLConfig { block_out_channels: vec![8], ..Default::default() }).unwrap();
    vae.enable_slicing();
    let (whole, slices) = (Seen::default(), Seen::default());
    vae.node().add_hook("seen", whole.clone());
    vae.node().get("decoder").unwrap().add_hook("seen", slices.clone());
    let x = Tensor::zeros([2, 3, 8, 8], (Kind::Float, tch::Device::Cpu));
    let latents = vae.encode(&x).unwrap().mode().shallow_clone();
    let _ = vae.decode(&latents).unwrap();
    assert_eq!(*whole.0.lock().unwrap(), [[2, 3, 8, 8], [2, 4, 8, 8]]);
    assert_eq!(*slices.0.lock().unwrap(), [[1, 4, 8, 8], [1, 4, 8, 8]]);
}

#[test]
fn forward_encodes_and_decodes() {
    let vae = tiny(AutoencoderKLConfig { block_out_channels: vec![8], ..Default::default() }).unwrap();
    let x = Generator::cpu(0).unwrap().randn([1, 3, 8, 8], Kind::Float).unwrap();
    let posterior = vae.encode(&x).unwrap();
    let likeliest = vae.decode(posterior.mode()).unwrap();
    assert_eq!(vae.forward(&x, false, &mut []).unwrap().max_abs_diff(&likeliest).unwrap(), 0.0);
    let drawn = vae.decode(&posterior.sample(&mut generators([1])).unwrap()).unwrap();
    assert_eq!(vae.forward(&x, true, &mut generators([1])).unwrap().max_abs_diff(&drawn).unwrap(), 0.0);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let down_block_types = vec!["AttnDownEncoderBlock2D".to_string()];
    let error = tiny(AutoencoderKLConfig { down_block_types, ..Default::default() }).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("AttnDownEncoderBlock2D"), "{error}");

    let error = tiny(AutoencoderKLConfig { block_out_channels: vec![8, 8], ..Default::default() }).unwrap_err();
    assert_eq!(error.to_string(), "`down_block_types` has 1 values for 2 of `block_out_channels`");

    let error = tiny(AutoencoderKLConfig { block_out_channels: vec![6], ..Default::default() }).unwrap_err();
    assert_eq!(error.to_string(), "`block_out_channels` of 6 do not divide by `norm_num_groups`, 4");
}
