//! Weights from files: what is mapped, what is cast, and what is refused.

use crate::support::generated;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tch_diffusers::configuration_utils::{ConfigMap, read_json, write_json};
use tch_diffusers::loaders::{Checkpoint, LoadOptions};
use tch_diffusers::models::text_encoders::CLIPTextModel;
use tch_diffusers::nn::{Linear, Module, Scope, Weights};
use tch_diffusers::{AutoModel, AutoencoderKL, Error, ModelMixin, TensorExt, UNet2DConditionModel};

/// A file with a linear map of 3 inputs and 2 outputs, in float16.
fn linear_file(folder: &Path) -> PathBuf {
    let path = folder.join("model.safetensors");
    let weight = Tensor::arange(6, (Kind::Half, Device::Cpu)).reshape([2, 3]);
    let bias = Tensor::ones([2], (Kind::Half, Device::Cpu));
    Tensor::write_safetensors(&[("weight", &weight), ("bias", &bias)], &path).unwrap();
    path
}

fn open(path: &Path, kind: Option<Kind>) -> tch_diffusers::Result<Checkpoint> {
    Checkpoint::open(&[path.to_path_buf()], |key| Some(key.to_string()), kind, Device::Cpu)
}

/// Whether `tensor`'s bytes lie in a mapping of the file called `name`.
fn is_mapped(tensor: &Tensor, name: &str) -> bool {
    let address = tensor.data_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.ends_with(name)).any(|line| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let hex = |text| usize::from_str_radix(text, 16).unwrap();
        (hex(start)..hex(end)).contains(&address)
    })
}

#[test]
fn a_weight_whose_dtype_fits_is_a_view_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = linear_file(folder.path());
    let checkpoint = open(&path, Some(Kind::Half)).unwrap();
    let name = path.to_str().unwrap();
    assert!(is_mapped(&checkpoint.get("weight", &[2, 3]).unwrap(), name));
    let cast = open(&path, Some(Kind::Float)).unwrap().get("weight", &[2, 3]).unwrap();
    assert_eq!(cast.kind(), Kind::Float);
    assert!(!is_mapped(&cast, name));
    assert_eq!(cast.to_vec().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn writing_to_a_mapped_weight_never_reaches_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = linear_file(folder.path());
    let before = std::fs::read(&path).unwrap();
    let mut weight = open(&path, None).unwrap().get("weight", &[2, 3]).unwrap();
    let _ = weight.fill_(9.0);
    assert_eq!(weight.to_vec().unwrap(), [9.0; 6]);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn all_missing_weights_are_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = linear_file(folder.path());
    let checkpoint = open(&path, None).unwrap();
    let scope = Scope::root(&checkpoint);
    let first = Linear::new(&scope / "proj_in", 3, 2, true).unwrap();
    assert_eq!(first.node().path(), "proj_in");
    let Err(Error::MissingWeights { file, keys }) = checkpoint.finish() else { panic!("nothing was missed") };
    assert_eq!(file, path);
    assert_eq!(keys, ["proj_in.weight", "proj_in.bias"]);
}

#[test]
fn a_weight_of_another_shape_is_named_with_both_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = open(&linear_file(folder.path()), None).unwrap();
    let _linear = Linear::new(Scope::root(&checkpoint), 4, 2, true).unwrap();
    let error = checkpoint.finish().unwrap_err();
    assert!(error.to_string().ends_with("`weight` should be [2, 4] and is [2, 3]"), "{error}");
}

#[test]
fn a_cut_file_is_refused_before_anything_is_read_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = linear_file(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    for (length, reason) in [(bytes.len() - 1, "the download may be cut"), (20, "longer than the file"), (3, "8 bytes")]
    {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = open(&path, None).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("model.safetensors"), "{length}: {error}");
    }
    std::fs::write(&path, [&(16u64.to_le_bytes())[..], &[0xff; 16]].concat()).unwrap();
    assert!(matches!(open(&path, None), Err(Error::Config(_))));
}

#[test]
fn misaligned_data_is_copied_rather_than_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.safetensors");
    let header = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#;
    let data = [&(header.len() as u64).to_le_bytes()[..], header, &[7], &1.5f32.to_le_bytes()].concat();
    std::fs::write(&path, data).unwrap();
    let checkpoint = open(&path, Some(Kind::Float)).unwrap();
    assert_eq!(checkpoint.get("b", &[1]).unwrap().to_vec().unwrap(), [1.5]);
    assert_eq!(checkpoint.get("a", &[1]).unwrap().kind(), Kind::Uint8);
}

#[test]
fn shards_and_variants_are_found_as_diffusers_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let touch = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let options = |variant: Option<&str>| LoadOptions { variant: variant.map(Into::into), ..LoadOptions::default() };
    let names = |variant| -> Vec<String> {
        let files = options(variant).weight_files(folder.path(), "model").unwrap();
        files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_string()).collect()
    };
    let index = |a: &str, b: &str| {
        touch(a, "");
        touch(b, "");
        format!(r#"{{"weight_map": {{"x": "{b}", "y": "{a}", "z": "{a}"}}}}"#)
    };
    touch("model.safetensors.index.json", &index("model-1.safetensors", "model-2.safetensors"));
    assert_eq!(names(None), ["model-1.safetensors", "model-2.safetensors"]);
    touch("model.safetensors.index.fp16.json", &index("model.fp16-1.safetensors", "model.fp16-2.safetensors"));
    assert_eq!(names(Some("fp16")), ["model.fp16-1.safetensors", "model.fp16-2.safetensors"]);
    touch("model.safetensors", "");
    assert_eq!(names(None), ["model.safetensors"]);
    touch("model.safetensors.bf16.index.json", &index("model-00001.bf16.safetensors", "model-00002.bf16.safetensors"));
    assert_eq!(names(Some("bf16")), ["model-00001.bf16.safetensors", "model-00002.bf16.safetensors"]);
    let missing = options(Some("fp8")).weight_files(folder.path(), "model").unwrap_err().to_string();
    assert!(missing.contains("model.fp8.safetensors"), "{missing}");
    let outside = r#"{"weight_map": {"x": "../../etc/passwd", "y": "model.fp16-2.safetensors"}}"#;
    touch("model.safetensors.index.fp16.json", outside);
    let outside = options(Some("fp16")).weight_files(folder.path(), "model").unwrap_err().to_string();
    assert!(outside.contains("lies outside the folder"), "{outside}");
}

#[test]
fn pickle_files_are_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("diffusion_pytorch_model.bin"), "").unwrap();
    let error = LoadOptions::default().weight_files(folder.path(), "diffusion_pytorch_model").unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("save_file"), "{error}");
}

/// Loads a model of which `config.json` has a key more, saves it, and gives both configurations.
fn saved_config<M: ModelMixin>(model: &str) -> (ConfigMap, ConfigMap) {
    let source = generated("pipeline").join("_models/sd1").join(model);
    let (folder, saved) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut config: ConfigMap = read_json(&folder.path().join("config.json")).unwrap();
    config.insert("a note".into(), serde_json::json!({ "of": ["somebody", 2.5, null] }));
    write_json(&folder.path().join("config.json"), &config).unwrap();
    M::from_pretrained(folder.path()).load().unwrap().save_pretrained(saved.path()).unwrap();
    (config, read_json(&saved.path().join("config.json")).unwrap())
}

#[test]
fn every_key_of_a_models_configuration_is_written_back() {
    let configs = [
        saved_config::<UNet2DConditionModel>("unet"),
        saved_config::<AutoencoderKL>("vae"),
        saved_config::<CLIPTextModel>("text_encoder"),
    ];
    for (given, saved) in configs {
        for (key, value) in given.iter().filter(|(key, _)| *key != "_diffusers_version") {
            // Where diffusers has 0, a number that need not be whole is 0.0.
            let same = match (saved[key].as_f64(), value.as_f64()) {
                (Some(saved), Some(given)) => saved == given,
                _ => saved[key] == *value,
            };
            assert!(same, "{key}: {} of {value}", saved[key]);
        }
    }
}

#[test]
fn a_models_folder_says_its_class() {
    let (sdxl, flux) =
        (generated("sdxl_pipeline").join("_models/sdxl"), generated("flux_pipeline").join("_models/dev"));
    for (folder, subfolder, class_name) in [
        (&sdxl, "unet", "UNet2DConditionModel"),
        (&sdxl, "vae", "AutoencoderKL"),
        (&sdxl, "text_encoder", "CLIPTextModel"),
        (&sdxl, "text_encoder_2", "CLIPTextModelWithProjection"),
        (&flux, "text_encoder_2", "T5EncoderModel"),
        (&flux, "transformer", "FluxTransformer2DModel"),
    ] {
        let model = AutoModel::from_pretrained(folder).subfolder(subfolder).torch_dtype(Kind::BFloat16).load().unwrap();
        assert_eq!(model.class_name(), class_name);
        assert_eq!(model.node().dtype(), Kind::BFloat16);
    }
    let saved = tempfile::tempdir().unwrap();
    AutoModel::from_pretrained(sdxl.join("vae")).load().unwrap().save_pretrained(saved.path()).unwrap();
    let path = saved.path().join("config.json");
    let mut config: ConfigMap = read_json(&path).unwrap();
    config.insert("_class_name".into(), "AutoencoderTiny".into());
    write_json(&path, &config).unwrap();
    let error = AutoModel::from_pretrained(saved.path()).load().unwrap_err();
    assert!(matches!(&error, Error::Unsupported(text) if text.contains("the model is a AutoencoderTiny")), "{error}");
    config.shift_remove("_class_name");
    write_json(&path, &config).unwrap();
    let error = AutoModel::from_pretrained(saved.path()).load().unwrap_err();
    assert!(matches!(&error, Error::Config(text) if text.contains("neither `_class_name`")), "{error}");
}
