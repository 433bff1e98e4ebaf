//! The parts of UNets alone, which say where a difference comes from.

use super::unet_config::Shapes;
use crate::support::{generated, json, record, tensors};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};
use tch_diffusers::configuration_utils::from_map;
use tch_diffusers::models::ModelMixin;
use tch_diffusers::models::attention::{
    BasicTransformerBlock, BasicTransformerBlockConfig, FeedForward, FeedForwardActivation,
};
use tch_diffusers::models::embeddings::Timesteps;
use tch_diffusers::models::transformers::{Transformer2DConfig, Transformer2DModel};
use tch_diffusers::models::unets::{UNet2DConditionModel, UNetInputs};
use tch_diffusers::nn::{Module, Scope, Weights};
use tch_diffusers::{Error, Generator, Result, TensorExt};

/// The tensors of a small file.
struct File(BTreeMap<String, Tensor>);

impl Weights for File {
    fn get(&self, path: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.0.get(path).ok_or_else(|| Error::Argument(format!("no weight {path}")))?;
        assert_eq!(tensor.size(), shape, "{path}");
        Ok(tensor.shallow_clone())
    }
}

/// Compares what `run` makes of the weights and inputs of `case`.
fn compare(case: &str, run: impl Fn(Scope<'_>, &BTreeMap<String, Tensor>) -> Result<Tensor>) {
    let _guard = tch::no_grad_guard();
    let folder = generated("unet_parts").join(case);
    let weights = File(match folder.join("weights.safetensors") {
        path if path.is_file() => tensors(&path),
        _ => BTreeMap::new(),
    });
    let inputs = tensors(&folder.join("tensors.safetensors"));
    let found = run(Scope::root(&weights), &inputs).unwrap();
    record("unet_parts", case, "output", found.max_abs_diff(&inputs["expected"]).unwrap(), 0.0);
}

#[test]
fn sinusoids_are_those_of_diffusers() {
    for (case, channels, flip, shift) in
        [("timesteps_320", 320, true, 0.0), ("timesteps_256", 256, false, 1.0), ("timesteps_33", 33, true, 0.5)]
    {
        compare(case, |_, inputs| Timesteps::new(channels, flip, shift)?.forward(&inputs["timesteps"]));
    }
}

#[test]
fn too_few_sinusoids_are_refused() {
    assert!(matches!(Timesteps::new(1, true, 0.0), Err(Error::Config(_))));
    assert!(matches!(Timesteps::new(2, true, 1.0), Err(Error::Config(_))));
}

#[test]
fn feed_forwards_are_those_of_diffusers() {
    for activation in ["geglu", "gelu", "gelu-approximate"] {
        compare(&format!("feed_forward_{activation}"), |scope, inputs| {
            FeedForward::new(scope, 24, activation.parse()?)?.forward(&inputs["hidden_states"])
        });
    }
    let error = "swiglu".parse::<FeedForwardActivation>().unwrap_err();
    assert_eq!(error.to_string(), "activation_fn `swiglu`: supported are geglu, gelu, gelu-approximate");
}

#[test]
fn transformer_blocks_are_those_of_diffusers() {
    compare("transformer_block", |scope, inputs| {
        let block = BasicTransformerBlock::new(scope, BasicTransformerBlockConfig::new(3, 8, Some(20)))?;
        block.forward(&inputs["hidden_states"], &inputs["encoder_hidden_states"], None, None)
    });
}

#[test]
fn transformers_are_those_of_diffusers() {
    for (case, use_linear_projection) in [("transformer_conv", false), ("transformer_linear", true)] {
        compare(case, |scope, inputs| {
            let config = Transformer2DConfig {
                num_attention_heads: 3,
                attention_head_dim: 8,
                num_layers: 2,
                norm_num_groups: 4,
                cross_attention_dim: Some(20),
                use_linear_projection,
                only_cross_attention: false,
                upcast_attention: false,
            };
            let transformer = Transformer2DModel::new(scope, config)?;
            transformer.forward(&inputs["hidden_states"], &inputs["encoder_hidden_states"], None, None)
        });
    }
}

/// `randomise` of `tests/fixtures/common.py`.
fn randomise(unet: &UNet2DConditionModel) {
    let mut generator = Generator::cpu(0).unwrap();
    for (key, param) in unet.node().params() {
        let shape = param.get().size();
        let noise = generator.randn(&shape, Kind::Float).unwrap();
        drop(param.replace(match &shape[..] {
            [_, inputs @ ..] if !inputs.is_empty() => noise / (inputs.iter().product::<i64>() as f64).sqrt(),
            _ if key.ends_with("weight") => noise * 0.1 + 1.0,
            _ => noise * 0.1,
        }));
    }
}

/// The widths of Stable Diffusion 1.5 choose other kernels than those of the small models.
#[test]
fn a_unet_of_stable_diffusions_width_is_that_of_diffusers() {
    compare("wide", |_, inputs| {
        let config = json(&generated("unet_parts").join("wide/config.json"));
        let config = from_map(config.as_object().unwrap())?;
        let unet = UNet2DConditionModel::from_weights(config, &Shapes)?;
        randomise(&unet);
        let timestep = Tensor::from(500i64);
        unet.forward(&UNetInputs::new(&inputs["sample"], &timestep, &inputs["encoder_hidden_states"]))
    });
}
