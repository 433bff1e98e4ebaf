//! Transformers of FLUX.1's kind.

use crate::support::{cases, generated, json, name, record, tensors};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::models::ModelMixin;
use tch_diffusers::models::transformers::{FluxInputs, FluxTransformer2DModel};
use tch_diffusers::nn::Module;
use tch_diffusers::{Error, Result, TensorExt};

fn load(case: &Path, kind: Kind) -> FluxTransformer2DModel {
    FluxTransformer2DModel::from_pretrained(case).torch_dtype(kind).load().unwrap()
}

pub(crate) fn forward(model: &FluxTransformer2DModel, given: &BTreeMap<String, Tensor>) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    model.forward(&FluxInputs {
        hidden_states: &given["hidden_states"],
        encoder_hidden_states: &given["encoder_hidden_states"],
        pooled_projections: &given["pooled_projections"],
        timestep: &given["timestep"],
        img_ids: &given["img_ids"],
        txt_ids: &given["txt_ids"],
        guidance: given.get("guidance"),
    })
}

#[test]
fn velocities_are_those_of_diffusers() {
    for case in cases(&generated("flux")) {
        let given = tensors(&case.join("tensors.safetensors"));
        let model = load(&case, given["hidden_states"].kind());
        let found = forward(&model, &given).unwrap();
        assert_eq!(found.kind(), given["expected"].kind());
        record("flux", &name(&case), "velocity", found.max_abs_diff(&given["expected"]).unwrap(), 0.0);
    }
}

#[test]
fn fused_projections_give_what_they_give_in_diffusers() {
    let case = generated("flux").join("dev");
    let given = tensors(&case.join("tensors.safetensors"));
    let expected = &tensors(&case.join("fused.safetensors"))["expected"];
    let model = load(&case, Kind::Float);
    model.fuse_qkv_projections();
    let found = forward(&model, &given).unwrap();
    record("flux", "dev", "fused projections", found.max_abs_diff(expected).unwrap(), 0.0);
    model.unfuse_qkv_projections();
    assert_eq!(forward(&model, &given).unwrap(), given["expected"]);
}

#[test]
fn memory_techniques_change_nothing_but_what_casting_rounds() {
    let case = generated("flux").join("dev");
    let given = tensors(&case.join("tensors.safetensors"));
    let model = load(&case, Kind::Float);
    for offloading in [GroupOffloading::leaf_level(), GroupOffloading::block_level(1)] {
        model.enable_group_offload(&offloading.onload_device(Device::Cpu).offload_to_disk(true)).unwrap();
        assert_eq!(forward(&model, &given).unwrap(), given["expected"]);
        assert!(model.disable_group_offload().unwrap());
    }
    model.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    let stored = |key: &str| model.node().state_dict().into_iter().find(|(known, _)| known == key).unwrap().1.kind();
    assert_eq!(stored("transformer_blocks.0.attn.to_q.weight"), Kind::Float8e4m3fn);
    assert_eq!(stored("transformer_blocks.0.norm1.linear.weight"), Kind::Float);
    let difference = forward(&model, &given).unwrap().max_abs_diff(&given["expected"]).unwrap();
    // Numbers of 8 bits for weights of two blocks each: 0.17 measured.
    assert!(difference > 0.0 && difference < 0.2, "{difference}");
}

#[test]
fn a_model_is_saved_as_diffusers_has_it() {
    let case = generated("flux").join("schnell");
    let saved = tempfile::tempdir().unwrap();
    let model = load(&case, Kind::Float);
    model.save_pretrained(saved.path()).unwrap();
    assert_eq!(json(&saved.path().join("config.json")), json(&case.join("config.json")));
    let file = "diffusion_pytorch_model.safetensors";
    assert_eq!(tensors(&saved.path().join(file)), tensors(&case.join(file)));
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let folder = generated("flux");
    let mut given = tensors(&folder.join("dev/tensors.safetensors"));
    let dev = load(&folder.join("dev"), Kind::Float);
    let guidance = given.remove("guidance").unwrap();
    let error = forward(&dev, &given).unwrap_err();
    assert!(error.to_string().contains("guidance_embeds"), "{error}");
    given.insert("guidance".into(), guidance);
    let places = given["img_ids"].narrow(1, 0, 2);
    given.insert("img_ids".into(), places.shallow_clone());
    given.insert("txt_ids".into(), given["txt_ids"].narrow(1, 0, 2));
    assert!(matches!(forward(&dev, &given), Err(Error::Shape(_))));

    let mut given = tensors(&folder.join("schnell/tensors.safetensors"));
    given.insert("guidance".into(), Tensor::from_slice(&[3.5f32]));
    let error = forward(&load(&folder.join("schnell"), Kind::Float), &given).unwrap_err();
    assert!(error.to_string().contains("takes none"), "{error}");
}
