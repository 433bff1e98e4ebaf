//! Group offloading: the same groups as diffusers makes, coming and going in the same order.

use crate::support::{cases, generated, json, name, record, tensors, transfers};
use serde_json::{Value, json};
use std::path::Path;
use tch::{Device, Tensor};
use tch_diffusers::hooks::{GroupOffloading, OffloadGroup};
use tch_diffusers::models::unets::UNetInputs;
use tch_diffusers::nn::Module;
use tch_diffusers::{AutoencoderKL, ModelMixin, TensorExt, UNet2DConditionModel};

const VAE_BLOCKS: [&str; 4] = ["quant_conv", "post_quant_conv", "encoder", "decoder"];

fn options(config: &str) -> GroupOffloading {
    match config.strip_prefix("block_") {
        Some(blocks) => GroupOffloading::block_level(blocks.parse().unwrap()),
        None => GroupOffloading::leaf_level(),
    }
    .onload_device(Device::Cpu)
}

enum Model {
    Unet(Box<UNet2DConditionModel>),
    Encode(Box<AutoencoderKL>),
    Decode(Box<AutoencoderKL>),
}

impl Model {
    fn load(case: &Path) -> Self {
        let vae = || Box::new(AutoencoderKL::from_pretrained(case).load().unwrap());
        match name(case).as_str() {
            "unet" => Self::Unet(Box::new(UNet2DConditionModel::from_pretrained(case).load().unwrap())),
            "vae_encode" => Self::Encode(vae()),
            _ => Self::Decode(vae()),
        }
    }

    fn enable(&self, options: &GroupOffloading) {
        match self {
            Self::Unet(unet) => unet.enable_group_offload(options).unwrap(),
            Self::Encode(vae) | Self::Decode(vae) => vae.enable_group_offload(options).unwrap(),
        }
    }

    fn groups(&self, options: GroupOffloading) -> Vec<OffloadGroup> {
        match self {
            Self::Unet(unet) => options.groups(unet.node()).unwrap(),
            Self::Encode(vae) | Self::Decode(vae) => options.block_modules(&VAE_BLOCKS).groups(vae.node()).unwrap(),
        }
    }

    fn run(&self, case: &Path) -> Tensor {
        let given = tensors(&case.join("tensors.safetensors"));
        match self {
            Self::Unet(unet) => {
                unet.forward(&UNetInputs::new(&given["sample"], &Tensor::from(10), &given["text"])).unwrap()
            }
            Self::Encode(vae) => vae.encode(&given["sample"].narrow(1, 0, 3)).unwrap().mean().shallow_clone(),
            Self::Decode(vae) => vae.decode(&given["sample"]).unwrap(),
        }
    }
}

/// A group as the fixture describes it.
fn described(group: &OffloadGroup) -> Value {
    let mut params: Vec<_> = group.params.iter().map(|(key, _)| key.as_str()).collect();
    params.sort_unstable();
    json!({
        "id": group.id,
        "onload_leader": group.onload_leader.path(),
        "offload_leader": group.offload_leader.path(),
        "modules": group.modules.iter().map(|module| module.path()).collect::<Vec<_>>(),
        "params": params,
    })
}

#[test]
fn groups_are_those_of_diffusers() {
    for case in cases(&generated("offloading")) {
        let model = Model::load(&case);
        for (config, expected) in json(&case.join("offloading.json")).as_object().unwrap() {
            let mut found: Vec<_> = model.groups(options(config)).iter().map(described).collect();
            found.sort_by_key(|group| group["id"].as_str().unwrap().to_string());
            let expected = expected["groups"].as_array().unwrap();
            let ids = |groups: &[Value]| groups.iter().map(|group| group["id"].clone()).collect::<Vec<_>>();
            assert_eq!(ids(&found), ids(expected), "{} {config}", name(&case));
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found, expected, "{} {config}", name(&case));
            }
        }
    }
}

#[test]
fn groups_come_and_go_in_the_order_of_diffusers() {
    let _guard = tch::no_grad_guard();
    for case in cases(&generated("offloading")) {
        let expected_output = &tensors(&case.join("tensors.safetensors"))["expected"];
        for (config, expected) in json(&case.join("offloading.json")).as_object().unwrap() {
            for disk in [false, true] {
                let model = Model::load(&case);
                model.enable(&options(config).offload_to_disk(disk));
                let (output, found) = transfers(|| model.run(&case));
                let expected: Vec<String> = serde_json::from_value(expected["events"].clone()).unwrap();
                assert_eq!(found, expected, "{} {config} {disk}", name(&case));
                let quantity = format!("output, {config}{}", if disk { " from the file" } else { "" });
                let difference = output.max_abs_diff(expected_output).unwrap();
                record("offloading", &name(&case), &quantity, difference, 0.0);
            }
        }
    }
}
