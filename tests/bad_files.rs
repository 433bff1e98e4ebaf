//! Files that are cut, broken or made to do harm: each is refused with a sentence that names file, key, expected and found.

use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tch_diffusers::configuration_utils::{ConfigMap, read_json, write_json};
use tch_diffusers::loaders::{Checkpoint, LoadOptions, SafetensorsHeader};
use tch_diffusers::nn::Weights;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{AutoencoderKL, CLIPTextModel, CLIPTokenizer, Error, ModelMixin, UNet2DConditionModel};
use tch_diffusers::{Result, StableDiffusionPipeline};

/// A file of this header and so many bytes of data.
fn safetensors(folder: &Path, header: &[u8], data: usize) -> PathBuf {
    let path = folder.join("model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; data]].concat()).unwrap();
    path
}

fn open(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(&[path.to_path_buf()], |key| Some(key.to_string()), None, Device::Cpu)
}

/// Holds the refusal of a file to the kind, the file's name, and `parts` of its text.
fn assert_config(error: &Error, file: &str, parts: &[&str]) {
    let text = error.to_string();
    assert!(matches!(error.kind(), Error::Config(_)), "{error:?}");
    for part in parts.iter().chain([&file]) {
        assert!(text.contains(part), "`{part}` is missing from: {text}");
    }
}

#[test]
fn a_hostile_header_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, usize, &[&str]); 21] = [
        ("", 0, &["header"]),
        ("[]", 0, &["tensors by name"]),
        ("{", 0, &["header"]),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, 4, &["header"]),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, &["`a` ends at byte 8", "has 4"]),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9, &["end at byte 8", "has 9"]),
        (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, &["`a`, F32 [3]", "takes 12 bytes"]),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, &["`a`"]),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8, &["gap", "`a` begins at byte 4"]),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            8,
            &["overlap", "`b` begins at byte 4"],
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            &["`a` is there twice"],
        ),
        (r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, 4, &["`a`", "no dtype \"F31\""]),
        (r#"{"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}}"#, 4, &["`a`", "integer `7`"]),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, &["`a`", "`-1`"]),
        (r#"{"a":{"dtype":"F32","shape":"1","data_offsets":[0,4]}}"#, 4, &["`a`", "sequence"]),
        (r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, 4, &["`a`", "`shape`"]),
        (
            r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#,
            4,
            &["`a`", "larger than any file"],
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#,
            0,
            &["`a`", "larger than any file"],
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#,
            4,
            &["`a`", "18446744073709551615"],
        ),
        (r#"{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}"#, 1, &["`a`", "whole byte"]),
        (
            r#"{"__metadata__":{"format":[1]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
            0,
            &["__metadata__"],
        ),
    ];
    for (header, data, parts) in cases {
        let path = safetensors(folder.path(), header.as_bytes(), data);
        let error = open(&path).expect_err(header);
        assert_config(&error, "model.safetensors", parts);
    }
    let path = safetensors(folder.path(), b"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
    assert_config(&open(&path).unwrap_err(), "model.safetensors", &["utf-8", "index 2"]);
}

#[test]
fn a_nested_header_is_refused_before_the_stack_ends() {
    let folder = tempfile::tempdir().unwrap();
    let depth = 1_000_000;
    for value in [
        "[".repeat(depth),
        format!("{{\"dtype\":{}", "[".repeat(depth)),
        format!("{{\"dtype\":\"U8\",\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth)),
    ] {
        let path = safetensors(folder.path(), format!("{{\"a\":{value}}}").as_bytes(), 0);
        assert_config(&open(&path).unwrap_err(), "model.safetensors", &["`a`"]);
    }
}

#[test]
fn a_header_beyond_the_file_or_beyond_reason_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for length in [9u64, 1 << 40, u64::MAX] {
        std::fs::write(&path, [&length.to_le_bytes()[..], b"{}      "].concat()).unwrap();
        assert_config(&open(&path).unwrap_err(), "model.safetensors", &["longer than the file"]);
    }
    // A file of a terabyte without a block of it on the disk.
    let file = std::fs::File::create(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &(1u64 << 39).to_le_bytes(), 0).unwrap();
    if file.set_len(1 << 40).is_ok() {
        assert_config(&open(&path).unwrap_err(), "model.safetensors", &["at most 100000000"]);
    }
    assert_config(&open(folder.path()).unwrap_err(), "not a safetensors file", &["no file"]);
}

#[test]
fn every_cut_and_every_changed_byte_is_an_error_or_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let weight = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([2, 3]);
    Tensor::write_safetensors(&[("weight", &weight), ("bias", &weight.reshape([6]))], &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_config(&open(&path).expect_err("a cut file is read"), "model.safetensors", &[]);
    }
    let mut state = 1u64;
    let mut refused = 0;
    for _ in 0..4000 {
        let mut bytes = whole.clone();
        for _ in 0..=(state >> 62) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 24) as u8;
        }
        std::fs::write(&path, &bytes).unwrap();
        match open(&path) {
            // Whatever it is called and shaped now, it lies within the file.
            Ok(checkpoint) => {
                let keys: Vec<_> = checkpoint.keys().map(String::from).collect();
                keys.iter().for_each(|key| drop(checkpoint.get(key, &[2, 3]).unwrap()));
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("model.safetensors"), "{error}");
            }
        }
    }
    assert!(refused > 500, "only {refused} of the changed files were refused");
}

#[test]
fn one_weight_under_two_names_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let one = folder.path().join("one.safetensors");
    let two = folder.path().join("two.safetensors");
    let weight = Tensor::ones([2], (Kind::Float, Device::Cpu));
    for path in [&one, &two] {
        Tensor::write_safetensors(&[("weight", &weight)], path).unwrap();
    }
    let shards = [one.clone(), two];
    let error = Checkpoint::open(&shards, |key| Some(key.to_string()), None, Device::Cpu).unwrap_err();
    assert_config(&error, "two.safetensors", &["`weight` is there twice", "one.safetensors"]);
    let both = folder.path().join("both.safetensors");
    Tensor::write_safetensors(&[("a.to_q.weight", &weight), ("a.query.weight", &weight)], &both).unwrap();
    let error = Checkpoint::open(&[both], |key| Some(key.replace("query", "to_q")), None, Device::Cpu).unwrap_err();
    assert_config(&error, "both.safetensors", &["a.to_q.weight", "twice"]);
}

/// A copy of the bundled model's folder, or of one of its components.
fn bundled(component: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&bundled_model().unwrap().join(component), folder.path());
    folder
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn weights_of_whole_numbers_are_refused_by_name() {
    let folder = bundled("vae");
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    let mut tensors = Tensor::read_safetensors(&path).unwrap();
    let changed = tensors.iter_mut().find(|(name, _)| name == "decoder.conv_in.bias").unwrap();
    changed.1 = changed.1.to_kind(Kind::Int64);
    Tensor::write_safetensors(&tensors, &path).unwrap();
    let error = AutoencoderKL::from_pretrained(folder.path()).load().unwrap_err();
    assert_config(
        &error,
        "diffusion_pytorch_model.safetensors",
        &["`decoder.conv_in.bias`", "floating-point", "int64"],
    );
}

#[test]
fn an_index_that_leads_nowhere_or_out_of_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("here.safetensors"), "").unwrap();
    let index = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
    let files = |text: &str| {
        std::fs::write(&index, text).unwrap();
        LoadOptions::default().weight_files(folder.path(), "diffusion_pytorch_model")
    };
    let map = |name: &str| format!(r#"{{"weight_map": {{"conv.weight": {}}}}}"#, serde_json::json!(name));
    assert_eq!(files(&map("here.safetensors")).unwrap().len(), 1);
    for name in
        ["../other.safetensors", "/etc/passwd", "..", ".", "/", "", "a/../../b", "a/b.safetensors", "here.safetensors/"]
    {
        assert_config(&files(&map(name)).unwrap_err(), "index.json", &["`conv.weight`", "lies outside the folder"]);
    }
    let missing = files(&map("gone.safetensors")).unwrap_err();
    let text = missing.to_string();
    assert!(matches!(missing, Error::Io { .. }), "{missing:?}");
    assert!(
        text.contains("gone.safetensors") && text.contains("index.json") && text.contains("`conv.weight`"),
        "{text}"
    );
    let deep = format!(r#"{{"weight_map": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let cases = [
        ("{", "EOF"),
        ("[]", "index.json"),
        ("{}", "`weight_map`"),
        (r#"{"weight_map": {}}"#, "names no file"),
        (r#"{"weight_map": {"a": 7}}"#, "`weight_map.a`"),
        (deep.as_str(), "`weight_map`"),
        ("{\"weight_map\": {\"a\": \"b\"}} and more", "trailing"),
    ];
    for (text, part) in cases {
        assert_config(&files(text).unwrap_err(), "index.json", &[part]);
    }
    std::fs::write(&index, b"{\"weight_map\": {\"\xff\": \"a\"}}").unwrap();
    let error = LoadOptions::default().weight_files(folder.path(), "diffusion_pytorch_model").unwrap_err();
    assert_config(&error, "index.json", &["utf-8"]);
}

/// Loads a model whose `config.json` has `value` for `key`.
fn load_with<M: ModelMixin>(component: &str, key: &str, value: &serde_json::Value) -> Result<M> {
    let folder = bundled(component);
    let path = folder.path().join("config.json");
    let mut config: ConfigMap = read_json(&path).unwrap();
    config.insert(key.into(), value.clone());
    write_json(&path, &config).unwrap();
    M::from_pretrained(folder.path()).load()
}

/// The refusal of such a model.
fn with_config<M: ModelMixin>(component: &str, key: &str, value: serde_json::Value) -> Error {
    match load_with::<M>(component, key, &value) {
        Ok(_) => panic!("{component} is loaded with `{key}` = {value}"),
        Err(error) => error,
    }
}

#[test]
fn a_configuration_that_does_not_fit_is_refused_with_its_key() {
    use serde_json::json;
    let error = with_config::<UNet2DConditionModel>("unet", "layers_per_block", json!("two"));
    assert_config(&error, "config.json", &["`layers_per_block`"]);
    let error = with_config::<UNet2DConditionModel>("unet", "block_out_channels", json!([32, "a"]));
    assert_config(&error, "config.json", &["`block_out_channels[1]`", "string \"a\""]);
    let error = with_config::<AutoencoderKL>("vae", "latent_channels", json!(1.5));
    assert_config(&error, "config.json", &["`latent_channels`", "1.5"]);
    let error = with_config::<CLIPTextModel>("text_encoder", "num_attention_heads", json!(null));
    assert_config(&error, "config.json", &["`num_attention_heads`"]);
}

/// Holds a model to refuse absurd numbers for `key`, and not by running out of memory. A 0 may be a model without layers.
fn absurd<M: ModelMixin>(component: &str, key: &str) {
    for number in [1_000_000_000_000i64, i64::MAX] {
        let error = with_config::<M>(component, key, number.into());
        assert!(!matches!(error.kind(), Error::OutOfMemory(_)), "{component} {key} {number}: {error}");
    }
    for number in [0, -1] {
        drop(load_with::<M>(component, key, &number.into()));
    }
}

#[test]
fn a_configuration_of_absurd_numbers_is_refused() {
    use serde_json::json;
    for key in ["layers_per_block", "norm_num_groups", "attention_head_dim", "cross_attention_dim", "in_channels"] {
        absurd::<UNet2DConditionModel>("unet", key);
    }
    for key in ["layers_per_block", "norm_num_groups", "latent_channels"] {
        absurd::<AutoencoderKL>("vae", key);
    }
    for key in ["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "max_position_embeddings"] {
        absurd::<CLIPTextModel>("text_encoder", key);
    }
    for number in [0, -1, 7] {
        let error = with_config::<UNet2DConditionModel>("unet", "norm_num_groups", number.into());
        assert_config(&error, "config.json", &["groups"]);
        let error = with_config::<AutoencoderKL>("vae", "norm_num_groups", number.into());
        assert_config(&error, "config.json", &["groups"]);
    }
    for key in ["block_out_channels", "down_block_types", "up_block_types"] {
        with_config::<UNet2DConditionModel>("unet", key, json!([]));
        drop(load_with::<AutoencoderKL>("vae", key, &json!([])));
    }
}

#[test]
fn broken_json_is_refused_wherever_it_is() {
    let nested = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let files = [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/tokenizer.json",
    ];
    for file in files {
        let folder = bundled("");
        for text in ["", "{", "[]", "nul", "{\"a\": }", nested.as_str(), "{\"a\": 1}}", "\u{feff}{}"] {
            std::fs::write(folder.path().join(file), text).unwrap();
            let error = StableDiffusionPipeline::from_pretrained(folder.path()).load().unwrap_err();
            let name = file.rsplit('/').next().unwrap();
            let start: String = text.chars().take(20).collect();
            assert!(error.to_string().contains(name), "{file} {start:?}: {error}");
        }
        std::fs::write(folder.path().join(file), b"{\"\xff\": 1}").unwrap();
        let error = StableDiffusionPipeline::from_pretrained(folder.path()).load().unwrap_err();
        assert!(error.to_string().contains("utf-8"), "{file}: {error}");
    }
}

#[test]
fn classes_that_are_not_there_are_named_with_those_that_are() {
    let cases = [
        ("unet", "FluxTransformer2DModel", "UNet2DConditionModel"),
        ("vae", "AutoencoderTiny", "AutoencoderKL"),
        ("text_encoder", "T5EncoderModel", "CLIPTextModel"),
        ("tokenizer", "T5Tokenizer", "CLIPTokenizer"),
    ];
    for (component, class, supported) in cases {
        let folder = bundled("");
        let path = folder.path().join("model_index.json");
        let mut index: ConfigMap = read_json(&path).unwrap();
        index.insert(component.into(), serde_json::json!(["diffusers", class]));
        write_json(&path, &index).unwrap();
        let error = StableDiffusionPipeline::from_pretrained(folder.path()).load().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
        for part in ["model_index.json", component, class, supported] {
            assert!(text.contains(part), "{part} is missing from: {text}");
        }
        for value in [serde_json::json!(["diffusers"]), serde_json::json!([7, 8]), serde_json::json!("x")] {
            index.insert(component.into(), value);
            write_json(&path, &index).unwrap();
            let error = StableDiffusionPipeline::from_pretrained(folder.path()).load().unwrap_err();
            assert_config(&error, "model_index.json", &[component]);
        }
    }
    let folder = bundled("");
    let path = folder.path().join("scheduler/scheduler_config.json");
    write_json(&path, &serde_json::from_str(r#"{"_class_name": "NoScheduler"}"#).unwrap()).unwrap();
    let error = StableDiffusionPipeline::from_pretrained(folder.path()).load().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    assert!(text.contains("scheduler_config.json") && text.contains("NoScheduler") && text.contains("ddim"), "{text}");
}

#[test]
fn broken_tokenizers_are_refused_by_file() {
    let folder = bundled("tokenizer");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let merges = std::fs::read(folder.path().join("merges.txt")).unwrap();
    for (bytes, part) in [(&b"#version: 0.2\na b c\n"[..], "merges.txt"), (b"\xff\xfe\n", "merges.txt")] {
        std::fs::write(folder.path().join("merges.txt"), bytes).unwrap();
        let error = CLIPTokenizer::from_pretrained(folder.path()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    std::fs::write(folder.path().join("merges.txt"), merges).unwrap();
    for text in [r#"{"a": -1}"#, r#"{"a": "b"}"#, "[]", r#"{"a": 1"#, r#"{"a": 4294967296}"#] {
        std::fs::write(folder.path().join("vocab.json"), text).unwrap();
        let error = CLIPTokenizer::from_pretrained(folder.path()).unwrap_err();
        assert!(error.to_string().contains("vocab.json"), "{text}: {error}");
    }
}

#[test]
fn the_header_of_a_whole_file_says_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"a":{"dtype":"I64","shape":[],"data_offsets":[12,20]}}"#;
    let path = safetensors(folder.path(), header.as_bytes(), 20);
    let header = SafetensorsHeader::read(&path).unwrap();
    let names: Vec<_> = header.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype.as_str())).collect();
    assert_eq!(names, [("b", "F16"), ("a", "I64")]);
    assert_eq!((header.tensors[0].numel(), header.tensors[0].bytes()), (6, 12));
    assert_eq!((header.tensors[1].numel(), header.tensors[1].bytes()), (1, 8));
    assert_eq!(header.metadata["format"], "pt");
}
