//! save_pretrained: the same files under the same names, byte for byte, and the same indices.

use crate::support::{cases, generated, json, name, record};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use tch_diffusers::loaders::{LoadOptions, SaveOptions, parse_size};
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{AutoencoderKL, CLIPTextModel, ModelMixin, UNet2DConditionModel};

/// Saves the bundled model's `component`, holds what was written to diffusers', and reads it back.
fn saved<M: ModelMixin>(component: &str, case: &str, options: &SaveOptions, expected: &serde_json::Value) {
    let model = M::from_pretrained(bundled_model().unwrap().join(component)).load().unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained_with(folder.path(), options).unwrap();
    let mut files = BTreeMap::new();
    let mut indices = BTreeMap::new();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let file = name(&path);
        if file.ends_with(".safetensors") {
            let digest = Sha256::digest(std::fs::read(&path).unwrap());
            files.insert(file, digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        } else if file.contains(".index.") {
            indices.insert(file, std::fs::read_to_string(&path).unwrap());
        }
    }
    let differing = |found: &BTreeMap<String, String>, expected: &serde_json::Value| {
        let expected: BTreeMap<String, String> = serde_json::from_value(expected.clone()).unwrap();
        let names: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
        names.into_iter().filter(|name| found.get(*name) != expected.get(*name)).count() as f64
    };
    record("shards", case, "indices that differ", differing(&indices, &expected["indices"]), 0.0);
    record("shards", case, "files that differ", differing(&files, &expected["files"]), 0.0);
    let options = LoadOptions { variant: options.variant.clone(), ..LoadOptions::default() };
    let again = M::from_pretrained(folder.path()).options(options).load().unwrap();
    let both = model.node().state_dict().into_iter().zip(again.node().state_dict());
    let unequal = both.filter(|((_, one), (_, other))| !one.equal(other)).count();
    record("shards", case, "weights that differ once read back", unequal as f64, 0.0);
}

#[test]
fn saved_files_equal_those_of_diffusers() {
    let found = cases(&generated("shards"));
    assert_eq!(found.len(), 18);
    for folder in found {
        let case = name(&folder);
        let size = |text: &str| Some(parse_size(text).unwrap());
        let (max_shard_size, variant) = match case.split_once("_").unwrap().1.trim_start_matches("encoder_") {
            "default" => (None, None),
            "kilobytes" => (size("300KB"), None),
            "megabytes" => (size("1.5MB"), None),
            "bytes" => (size("70000"), None),
            "variant" => (None, Some("fp16".to_string())),
            "variant_shards" => (size("500KB"), Some("fp16".to_string())),
            other => panic!("{other}"),
        };
        let options = SaveOptions { max_shard_size, variant };
        let expected = json(&folder.join("files.json"));
        match case.split('_').next().unwrap() {
            "unet" => saved::<UNet2DConditionModel>("unet", &case, &options, &expected),
            "vae" => saved::<AutoencoderKL>("vae", &case, &options, &expected),
            _ => saved::<CLIPTextModel>("text_encoder", &case, &options, &expected),
        }
    }
}

#[test]
fn a_later_save_leaves_nothing_of_an_earlier_one() {
    let vae = AutoencoderKL::from_pretrained(bundled_model().unwrap().join("vae")).load().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let save = |size: Option<u64>, variant: Option<&str>| {
        let options = SaveOptions { max_shard_size: size, variant: variant.map(Into::into) };
        vae.save_pretrained_with(folder.path(), &options).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| name(&entry.unwrap().path())).collect();
        names.sort();
        names
    };
    let single = ["config.json", "diffusion_pytorch_model.safetensors"];
    assert_eq!(save(None, None), single);
    let shards = save(Some(2_500_000), None);
    let index = "diffusion_pytorch_model.safetensors.index.json";
    assert_eq!(shards.len(), 4, "{shards:?}");
    assert!(shards.contains(&index.to_string()) && !shards.contains(&single[1].to_string()), "{shards:?}");
    assert_eq!(save(Some(1_000_000), None).iter().filter(|name| name.contains("-of-00002")).count(), 0);
    assert_eq!(save(None, None), single);
    // Those of another variant stay.
    let both = save(Some(2_500_000), Some("fp16"));
    assert!(both.len() == 5 && single.iter().all(|name| both.contains(&(*name).to_string())), "{both:?}");
    assert_eq!(save(None, None).len(), 5);
}

#[test]
fn a_save_that_fails_leaves_the_earlier_one() {
    let vae = AutoencoderKL::from_pretrained(bundled_model().unwrap().join("vae")).load().unwrap();
    let folder = tempfile::tempdir().unwrap();
    vae.save_pretrained(folder.path()).unwrap();
    let before = std::fs::read(folder.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    // Where the second shard would be written to, nothing can be.
    let taken = folder.path().join("diffusion_pytorch_model-00002-of-00002.safetensors.tmp");
    std::fs::create_dir(&taken).unwrap();
    let options = SaveOptions { max_shard_size: Some(2_500_000), variant: None };
    let error = vae.save_pretrained_with(folder.path(), &options).unwrap_err();
    assert!(matches!(error, tch_diffusers::Error::Io { .. }), "{error:?}");
    std::fs::remove_dir(&taken).unwrap();
    let names =
        |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| name(&entry.unwrap().path())).collect::<Vec<_>>();
    assert_eq!(names(folder.path()).len(), 2, "{:?}", names(folder.path()));
    assert_eq!(std::fs::read(folder.path().join("diffusion_pytorch_model.safetensors")).unwrap(), before);
    for variant in ["", "a/b", "..", "fp 16"] {
        let options = SaveOptions { max_shard_size: None, variant: Some(variant.into()) };
        let error = vae.save_pretrained_with(folder.path(), &options).unwrap_err();
        assert!(matches!(error, tch_diffusers::Error::Argument(_)), "{error:?}");
    }
}
