//! from_single_file: diffusers' names for every key, and every weight of a small checkpoint.

use crate::support::{generated, json, record, tensors};
use tch::{Device, Kind, Tensor};
use tch_diffusers::loaders::KeyMap;
use tch_diffusers::loaders::single_file::{ldm_clip_key, ldm_unet_key, ldm_vae_key};
use tch_diffusers::nn::Module;
use tch_diffusers::{Error, StableDiffusionPipeline, UNet2DConditionModel};

#[test]
fn every_key_gets_the_name_that_diffusers_gives_it() {
    let pairs = json(&generated("single_file").join("names/pairs.json"));
    let maps: [(&str, KeyMap, usize); 3] =
        [("unet", ldm_unet_key, 686), ("vae", ldm_vae_key, 248), ("text_encoder", ldm_clip_key, 196)];
    for (part, name, count) in maps {
        let pairs = pairs[part].as_object().unwrap();
        assert_eq!(pairs.len(), count, "{part}");
        let differs = |ldm: &str, expected: &str| {
            let expected = if part == "text_encoder" { expected.trim_start_matches("text_model.") } else { expected };
            name(ldm).as_deref() != Some(expected)
        };
        let differing = pairs.iter().filter(|(ldm, expected)| differs(ldm, expected.as_str().unwrap())).count();
        record("single_file", part, "names that differ", differing as f64, 0.0);
        for (_, other, _) in maps.iter().filter(|(other, ..)| *other != part) {
            assert!(pairs.keys().all(|key| other(key).is_none()), "{part}");
        }
    }
    for key in
        ["alphas_cumprod", "model.diffusion_model", "model.diffusion_model.input_blocks.x.0.a", "first_stage_model.a.b"]
    {
        assert!(maps.iter().all(|(_, name, _)| name(key).is_none()), "{key}");
    }
}

#[test]
fn every_weight_of_a_single_file_is_where_it_belongs() {
    let folder = generated("single_file").join("small");
    let expected = tensors(&folder.join("expected.safetensors"));
    let load =
        || StableDiffusionPipeline::from_single_file(folder.join("model.safetensors")).config(folder.join("config"));
    let pipe = load().load().unwrap();
    let unet = pipe.unet.as_any().downcast_ref::<UNet2DConditionModel>().unwrap();
    let mut compared = 0;
    for (part, node) in [("unet", unet.node()), ("vae", pipe.vae.node()), ("text_encoder", pipe.text_encoder.node())] {
        let weight = |key: &str| {
            let keys = [format!("{part}.{key}"), format!("{part}.text_model.{key}")];
            keys.iter().find_map(|key| expected.get(key)).unwrap_or_else(|| panic!("{part}.{key}"))
        };
        let unequal = node.state_dict().iter().filter(|(key, found)| !found.equal(weight(key))).count();
        compared += node.state_dict().len();
        record("single_file", part, "weights that differ", unequal as f64, 0.0);
    }
    assert_eq!(compared, expected.len());
    let half = load().torch_dtype(Kind::Half).load().unwrap();
    assert_eq!(half.vae.node().dtype(), Kind::Half);
}

#[test]
fn other_checkpoints_are_named_for_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let config = generated("single_file").join("small/config");
    let load = |name: &str| StableDiffusionPipeline::from_single_file(folder.path().join(name)).config(&config).load();
    let one = Tensor::ones([1], (Kind::Float, Device::Cpu));
    let files = [
        ("xl.safetensors", "conditioner.embedders.0.transformer.a", "Stable Diffusion XL"),
        ("two.safetensors", "cond_stage_model.model.ln_final.bias", "Stable Diffusion 2.x"),
        ("lora.safetensors", "lora_unet_down_blocks.alpha", "it has no `model.diffusion_model.`"),
    ];
    for (file, key, part) in files {
        Tensor::write_safetensors(&[(key, &one)], folder.path().join(file)).unwrap();
        let error = load(file).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
        assert!(error.to_string().contains(part) && error.to_string().contains(file), "{error}");
    }
    for (file, part) in [("model.ckpt", "save_file"), ("model.gguf", "GGUF")] {
        std::fs::write(folder.path().join(file), "x").unwrap();
        let error = load(file).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains(part), "{error}");
    }
    assert!(matches!(load("gone.safetensors").unwrap_err(), Error::Io { .. }));
}
