//! from_single_file: diffusers' names for every key, and every weight of small checkpoints of Stable Diffusion 1.x and 2.x.

use crate::support::{generated, json, record, tensors};
use tch::{Device, Kind, Tensor};
use tch_diffusers::loaders::KeyMap;
use tch_diffusers::loaders::single_file::{
    OriginalCheckpoint, check_single_file, ldm_clip_key, ldm_open_clip_key, ldm_unet_key, ldm_vae_key,
    original_state_dict,
};
use tch_diffusers::nn::Module;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{CLIPTokenizer, Error, StableDiffusionPipeline, UNet2DConditionModel};

#[test]
fn every_key_gets_the_name_that_diffusers_gives_it() {
    let pairs = json(&generated("single_file").join("names/pairs.json"));
    let maps: [(&str, KeyMap, usize); 4] = [
        ("unet", ldm_unet_key, 686),
        ("vae", ldm_vae_key, 248),
        ("text_encoder", ldm_clip_key, 196),
        ("open_clip", ldm_open_clip_key, 234),
    ];
    for (part, name, count) in maps {
        let pairs = pairs[part].as_object().unwrap();
        assert_eq!(pairs.len(), count, "{part}");
        let differs = |ldm: &str, expected: &str| {
            let expected = expected.trim_start_matches("text_model.");
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

/// The weights of a pipeline, by model and key.
fn weights(pipe: &StableDiffusionPipeline) -> Vec<(&'static str, String, Tensor)> {
    let unet = pipe.unet.as_any().downcast_ref::<UNet2DConditionModel>().unwrap();
    [("unet", unet.node()), ("vae", pipe.vae.node()), ("text_encoder", pipe.text_encoder.node())]
        .into_iter()
        .flat_map(|(part, node)| node.state_dict().into_iter().map(move |(key, weight)| (part, key, weight)))
        .collect()
}

#[test]
fn every_weight_of_a_single_file_is_where_it_belongs() {
    for name in ["small", "second", "second_inpainting"] {
        let folder = generated("single_file").join(name);
        let expected = tensors(&folder.join("expected.safetensors"));
        let load = || {
            StableDiffusionPipeline::from_single_file(folder.join("model.safetensors")).config(folder.join("config"))
        };
        let pipe = load().load().unwrap();
        let weight = |part: &str, key: &str| {
            let keys = [format!("{part}.{key}"), format!("{part}.text_model.{key}")];
            keys.iter().find_map(|key| expected.get(key)).unwrap_or_else(|| panic!("{part}.{key}"))
        };
        let found = weights(&pipe);
        let unequal = found.iter().filter(|(part, key, found)| !found.equal(weight(part, key))).count();
        record("single_file", name, "weights that differ", unequal as f64, 0.0);
        assert_eq!(found.len(), expected.len());
        let half = load().torch_dtype(Kind::Half).load().unwrap();
        assert_eq!((half.vae.node().dtype(), half.text_encoder.node().dtype()), (Kind::Half, Kind::Half));
        assert!(half.safety_checker.is_none());
    }
}

#[test]
fn models_go_back_into_the_file_they_came_from() {
    for (name, file) in [("small", "model"), ("second", "own"), ("second_inpainting", "own")] {
        let folder = generated("single_file").join(name);
        let pipe = StableDiffusionPipeline::from_single_file(folder.join("model.safetensors"))
            .config(folder.join("config"))
            .load()
            .unwrap();
        let of = |part: &str| {
            let own = weights(&pipe).into_iter().filter(|(other, ..)| *other == part);
            own.map(|(_, key, weight)| (key, weight)).collect::<Vec<_>>()
        };
        let models = OriginalCheckpoint { unet: of("unet"), vae: of("vae"), text_encoder: of("text_encoder") };
        let written = original_state_dict(models).unwrap();
        let mut expected = tensors(&folder.join(format!("{file}.safetensors")));
        for key in
            ["alphas_cumprod", "model_ema.decay", "cond_stage_model.transformer.text_model.embeddings.position_ids"]
        {
            expected.remove(key);
        }
        assert_eq!(written.iter().map(|(key, _)| key).collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        let unequal =
            written.iter().filter(|(key, found)| found.size() != expected[key].size() || !found.equal(&expected[key]));
        record("single_file", name, "weights that differ on the way back", unequal.count() as f64, 0.0);
    }
}

#[test]
fn a_model_that_no_such_file_holds_is_named() {
    let one = || Tensor::ones([1], (Kind::Float, Device::Cpu));
    let models = |unet: &str, vae: &str, text: &str| {
        let weights = |key: &str| if key.is_empty() { vec![] } else { vec![(key.to_string(), one())] };
        original_state_dict(OriginalCheckpoint { unet: weights(unet), vae: weights(vae), text_encoder: weights(text) })
    };
    for (unet, vae) in [
        ("down_blocks.0.resnets.2.conv1.weight", ""),
        ("class_embedding.weight", ""),
        ("mid_block.attentions.1.proj_in.weight", ""),
        ("", "encoder.down_blocks.x.resnets.0.norm1.bias"),
        ("", "decoder.up_blocks.4.resnets.0.norm1.bias"),
        ("up_blocks.99999999999999999999.resnets.0.norm1.bias", ""),
        ("down_blocks.9223372036854775807.resnets.0.norm1.bias", ""),
    ] {
        let error = models(unet, vae, "").unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("has no place"), "{error}");
    }
    let lacking = vec![
        ("encoder.layers.22.layer_norm2.bias".to_string(), one()),
        ("encoder.layers.0.self_attn.q_proj.bias".into(), one()),
    ];
    let error =
        original_state_dict(OriginalCheckpoint { unet: vec![], vae: vec![], text_encoder: lacking }).unwrap_err();
    assert!(error.to_string().contains("lacks queries, keys or values"), "{error}");
}

/// A file with these keys and shapes that takes no room: half floats of zero that were never written.
fn sparse(path: &std::path::Path, shapes: &serde_json::Map<String, serde_json::Value>) {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (key, shape) in shapes {
        let elements: i64 = shape.as_array().unwrap().iter().map(|side| side.as_i64().unwrap()).product();
        let entry = serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [end, end + 2 * elements]});
        header.insert(key.clone(), entry);
        end += 2 * elements;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_slice()].concat();
    std::fs::write(path, &bytes).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_len(bytes.len() as u64 + end as u64).unwrap();
}

#[test]
fn published_files_need_no_configuration_but_a_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let published = json(&generated("single_file").join("published/shapes.json"));
    let expected = [
        ("v1", "PNDMScheduler", None, [4, 64, 12], true),
        ("inpainting", "DDIMScheduler", None, [9, 64, 12], true),
        ("v2", "DDIMScheduler", Some("v_prediction"), [4, 96, 23], false),
        ("inpainting_v2", "PNDMScheduler", None, [9, 64, 23], false),
    ];
    for (name, scheduler, prediction_type, [channels, sample_size, layers], requires) in expected {
        let path = folder.path().join("model.safetensors");
        sparse(&path, published[name].as_object().unwrap());
        assert_eq!(check_single_file(&path).unwrap().dtype(), Some(Kind::Half));
        let tokenizer = || CLIPTokenizer::from_pretrained(bundled_model().unwrap().join("tokenizer")).unwrap();
        let load = || StableDiffusionPipeline::from_single_file(&path).torch_dtype(Kind::Half).tokenizer(tokenizer());
        let pipe = load().load().unwrap();
        let config = pipe.unet.config();
        assert_eq!((config.in_channels, pipe.text_encoder.config().num_hidden_layers), (channels, layers), "{name}");
        assert_eq!(serde_json::to_value(&config.sample_size).unwrap(), serde_json::json!(sample_size), "{name}");
        assert_eq!(pipe.scheduler.class_name(), scheduler, "{name}");
        let found = pipe.scheduler.config().get("prediction_type").and_then(|value| value.as_str());
        assert_eq!(found.unwrap_or("epsilon"), prediction_type.unwrap_or("epsilon"), "{name}");
        assert_eq!((pipe.requires_safety_checker, pipe.feature_extractor.is_some()), (requires, true), "{name}");
        let base = load().prediction_type("epsilon").image_size(512).load().unwrap();
        assert_eq!(base.scheduler.config()["prediction_type"], "epsilon");
        assert_eq!(serde_json::to_value(&base.unet.config().sample_size).unwrap(), 64);
        assert!(load().prediction_type("velocity").load().is_err());
    }
}

#[test]
fn other_checkpoints_are_named_for_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let config = generated("single_file").join("small/config");
    let load = |name: &str| StableDiffusionPipeline::from_single_file(folder.path().join(name)).config(&config).load();
    let one = Tensor::ones([1], (Kind::Float, Device::Cpu));
    let files = [
        ("xl.safetensors", "conditioner.embedders.0.transformer.a", "Stable Diffusion XL"),
        ("two.safetensors", "cond_stage_model.model.ln_final.bias", "it has no `model.diffusion_model.`"),
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
