//! `tch-diffusers inspect` and `convert`, as a person and as a script would use them.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tch_diffusers::utils::assets::bundled_model;

fn run(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-diffusers"));
    command.args(arguments).current_dir(folder).env_remove("LD_LIBRARY_PATH").output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The report on a model, and the exit code.
fn inspect(model: &str, folder: &Path) -> (Value, Option<i32>) {
    let output = run(&["inspect", model, "--json"], folder);
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code())
}

fn component<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["components"].as_array().unwrap().iter().find(|component| component["name"] == name).unwrap()
}

/// The bundled model, cast to bfloat16 in shards, in `folder`.
fn converted(folder: &Path) {
    let arguments =
        ["convert", "bundled", "out", "--dtype", "bfloat16", "--max-shard-size", "1MB", "--variant", "bf16"];
    stdout(&run(&arguments, folder));
}

#[test]
fn inspect_says_what_the_bundled_model_is_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let (report, code) = inspect("bundled", folder.path());
    assert_eq!(code, Some(0));
    assert_eq!(report["class"], "StableDiffusionPipeline");
    let unet = component(&report, "unet");
    assert_eq!((&unet["class"], &unet["library"]), (&"UNet2DConditionModel".into(), &"diffusers".into()));
    let header =
        std::fs::metadata(bundled_model().unwrap().join("unet/diffusion_pytorch_model.safetensors")).unwrap().len();
    let (parameters, bytes) = (unet["parameters"].as_u64().unwrap(), unet["bytes"].as_u64().unwrap());
    assert!(bytes < header && bytes > header * 9 / 10, "{bytes} of {header}");
    assert!(parameters > 0 && report["parameters"].as_u64().unwrap() > parameters);
    let dtypes = unet["dtypes"].as_object().unwrap();
    assert_eq!(dtypes.values().map(|bytes| bytes.as_u64().unwrap()).sum::<u64>(), bytes);
    let text = stdout(&run(&["inspect"], folder.path()));
    for part in ["StableDiffusionPipeline", "unet", "AutoencoderKL", "scheduler_config.json", "parameters", "MB", "all"]
    {
        assert!(text.contains(part), "{part} is missing from:\n{text}");
    }
    assert!(!text.contains("missing"), "{text}");
}

#[test]
fn inspect_names_what_is_missing_and_what_is_too_much() {
    let folder = tempfile::tempdir().unwrap();
    converted(folder.path());
    let out = folder.path().join("out");
    std::fs::write(out.join("unet/diffusion_pytorch_model.bin"), "x").unwrap();
    std::fs::remove_file(out.join("scheduler/scheduler_config.json")).unwrap();
    std::fs::remove_file(out.join("text_encoder/model.bf16.safetensors")).unwrap();
    std::fs::create_dir(out.join("extra")).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(out.join("vae/config.json")).unwrap()).unwrap();
    config["latent_channels"] = 8.into();
    config["layers_per_block"] = (config["layers_per_block"].as_i64().unwrap() + 1).into();
    std::fs::write(out.join("vae/config.json"), config.to_string()).unwrap();
    let output = run(&["inspect", "out", "--variant", "bf16", "--json"], folder.path());
    assert_eq!(output.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(component(&report, "scheduler")["missing_files"][0], "scheduler_config.json");
    assert_eq!(component(&report, "text_encoder")["missing_files"][0], "model.safetensors");
    assert_eq!(component(&report, "unet")["unexpected_files"][0], "diffusion_pytorch_model.bin");
    assert_eq!(report["unexpected_files"][0], "extra");
    let vae = component(&report, "vae");
    assert!(vae["missing_weights"].as_array().unwrap().iter().any(|key| key.as_str().unwrap().contains("resnets")));
    assert!(vae["wrong_shapes"].as_array().unwrap().iter().any(|text| text.as_str().unwrap().contains("should be")));
    let output = run(&["inspect", "out/vae", "--variant", "bf16"], folder.path());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("AutoencoderKL") && text.contains("missing weights") && text.contains("more"), "{text}");
    let output = run(&["inspect", "out/unet/diffusion_pytorch_model.bin"], folder.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("not a safetensors file"));
}

#[test]
fn a_converted_model_has_the_dtype_the_shards_and_the_names_that_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    converted(folder.path());
    let report = run(&["inspect", "out", "--variant", "bf16", "--json"], folder.path());
    let report: Value = serde_json::from_str(&stdout(&report)).unwrap();
    assert_eq!(report["dtypes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["bfloat16"]);
    let (bundled, _) = inspect("bundled", folder.path());
    assert_eq!(report["parameters"], bundled["parameters"]);
    let files = component(&report, "unet")["files"].as_array().unwrap();
    assert!(
        files.len() > 3 && files.iter().any(|file| file.as_str().unwrap().contains(".bf16-00001-of-")),
        "{files:?}"
    );
    let star = ["generate", "--prompt", "a yellow star", "--steps", "2", "--dtype", "bfloat16", "--output"];
    stdout(&run(&[&star[..], &["a.png", "--model", "out", "--variant", "bf16"]].concat(), folder.path()));
    stdout(&run(&[&star[..], &["b.png"]].concat(), folder.path()));
    let pixels = |name: &str| image::open(folder.path().join(name)).unwrap().to_rgb8();
    assert_eq!(pixels("a.png"), pixels("b.png"));
}

#[test]
fn convert_writes_over_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("out")).unwrap();
    std::fs::write(folder.path().join("out/mine"), "x").unwrap();
    let output = run(&["convert", "bundled", "out"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("something already"));
    for (arguments, part) in [(["--max-shard-size", "5GiB"], "as in 5GB"), (["--dtype", "int8"], "float32, float16")] {
        let output = run(&[&["convert", "bundled", "new"][..], &arguments].concat(), folder.path());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(!folder.path().join("new").exists());
}

#[test]
fn a_single_file_becomes_a_folder_with_all_of_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let small = crate::support::generated("single_file").join("small");
    let (file, config) = (small.join("model.safetensors"), small.join("config"));
    let arguments = ["convert", file.to_str().unwrap(), "out", "--config", config.to_str().unwrap()];
    stdout(&run(&arguments, folder.path()));
    let (report, code) = inspect("out", folder.path());
    assert_eq!(code, Some(0), "{report}");
    let output = run(&["convert", "gone.safetensors", "other"], folder.path());
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_folder_and_a_single_file_become_each_other_to_the_bit() {
    use crate::support::{generated, tensors};
    for (name, own) in [("small", None), ("second", Some("own.safetensors"))] {
        let folder = tempfile::tempdir().unwrap();
        let source = generated("single_file").join(name);
        let (file, config) = (source.join("model.safetensors"), source.join("config"));
        let (file, config) = (file.to_str().unwrap(), config.to_str().unwrap());
        let shards = ["--max-shard-size", "40KB"];
        stdout(&run(&[&["convert", file, "out", "--config", config][..], &shards].concat(), folder.path()));
        assert!(folder.path().join("out/unet/diffusion_pytorch_model.safetensors.index.json").is_file());
        stdout(&run(&["convert", "out", "back.safetensors"], folder.path()));
        let written = tensors(&folder.path().join("back.safetensors"));
        let mut expected = tensors(&source.join(own.unwrap_or("model.safetensors")));
        expected.retain(|key, _| written.contains_key(key));
        assert_eq!(written, expected, "{name}");
        assert!(written.len() > 400, "{name}: {}", written.len());
        // Halves go there and back as halves.
        stdout(&run(&["convert", "out", "half.safetensors", "--dtype", "float16"], folder.path()));
        stdout(&run(&["convert", "half.safetensors", "half", "--config", config], folder.path()));
        let (report, code) = inspect("half", folder.path());
        assert_eq!(code, Some(0), "{report}");
        assert_eq!(report["dtypes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["float16"]);
        stdout(&run(&["convert", "half", "again.safetensors"], folder.path()));
        let read = |name: &str| tensors(&folder.path().join(name));
        assert_eq!(read("half.safetensors"), read("again.safetensors"));
        stdout(&run(&["convert", "again.safetensors", "full.safetensors", "--dtype", "float32"], folder.path()));
        assert!(read("full.safetensors").values().all(|weight| weight.kind() == tch::Kind::Float));
    }
}

#[test]
fn a_single_file_is_refused_where_it_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.ckpt"), "x").unwrap();
    let cases: [(&[&str], i32, &str); 5] = [
        (&["convert", "bundled", "a.safetensors", "--max-shard-size", "1MB"], 2, "neither shards nor a variant"),
        (&["convert", "bundled", "out", "--config", "x"], 2, "go with a single file as the input"),
        (&["convert", "bundled", "a.safetensors"], 3, "has no place in a single file"),
        (&["convert", "model.ckpt", "out"], 3, "save_file"),
        (&["convert", "bundled", "nowhere/a.safetensors"], 3, "no place"),
    ];
    for (arguments, code, part) in cases {
        let output = run(arguments, folder.path());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_of_flux_needs_no_flag() {
    let folder = tempfile::tempdir().unwrap();
    let dev = crate::support::generated("flux_pipeline").join("_models/dev");
    let model = ["--model", dev.to_str().unwrap(), "--height", "32", "--width", "32", "--steps", "2", "--quiet"];
    let draw = |output: &str, more: &[&str]| {
        let prompt = ["generate", "--prompt", "a red circle", "--output", output];
        run(&[&prompt[..], &model[..], more].concat(), folder.path())
    };
    stdout(&draw("a.png", &[]));
    assert_eq!(image::open(folder.path().join("a.png")).unwrap().width(), 32);
    stdout(&run(&["generate", "--from", "a.png", "--output", "b.png", "--quiet"], folder.path()));
    stdout(&draw("c.png", &["--offload", "group", "--offload-disk", "--guidance-scale", "3.5"]));
    stdout(&draw("d.png", &["--negative-prompt", "dog", "--true-cfg-scale", "3", "--prompt-2", "a cat"]));
    let pixels = |name: &str| image::open(folder.path().join(name)).unwrap().to_rgb8();
    assert_eq!(pixels("a.png"), pixels("b.png"));
    assert_eq!(pixels("a.png"), pixels("c.png"));
    assert_ne!(pixels("a.png"), pixels("d.png"));
    for (more, part) in
        [(&["--eta", "0.5"][..], "--eta goes with Stable Diffusion"), (&["--clip-skip", "1"], "--clip-skip")]
    {
        let output = draw("e.png", more);
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let output =
        run(&["generate", "--prompt", "a", "--prompt-2", "b", "--steps", "1", "--output", "f.png"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("go with SDXL and FLUX.1"));
}

#[test]
fn a_folder_of_sdxl_needs_no_flag() {
    let folder = tempfile::tempdir().unwrap();
    let models = crate::support::generated("sdxl_img2img").join("_models");
    let pixels = |name: &str| image::open(folder.path().join(name)).unwrap().to_rgb8();
    let draw = |model: &str, output: &str, more: &[&str]| {
        let model = models.join(model);
        let prompt = ["generate", "--prompt", "a red circle", "--output", output, "--steps", "4", "--quiet"];
        run(&[&prompt[..], &["--model", model.to_str().unwrap()], more].concat(), folder.path())
    };
    let told = ["--prompt-2", "dog", "--negative-prompt", "cat", "--original-size", "128x96", "--crops-coords", "16x8"];
    stdout(&draw("sdxl", "plain.png", &[]));
    stdout(&draw("sdxl", "told.png", &told));
    stdout(&run(&["generate", "--from", "told.png", "--output", "again.png", "--quiet"], folder.path()));
    stdout(&draw("sdxl", "offloaded.png", &["--offload", "sequential"]));
    assert_eq!(pixels("plain.png").dimensions(), (64, 64));
    assert_eq!(pixels("told.png"), pixels("again.png"));
    assert_eq!(pixels("plain.png"), pixels("offloaded.png"));
    assert_ne!(pixels("plain.png"), pixels("told.png"));
    stdout(&draw("refiner", "refined.png", &["--image", "plain.png", "--strength", "0.5"]));
    stdout(&draw("refiner", "praised.png", &["--image", "plain.png", "--strength", "0.5", "--aesthetic-score", "9"]));
    assert_ne!(pixels("refined.png"), pixels("praised.png"));
    for (model, more, code, part) in [
        ("refiner", &[][..], 1, "is this a refiner"),
        ("sdxl", &["--aesthetic-score", "7"], 2, "--aesthetic-score goes with --image"),
        ("sdxl", &["--true-cfg-scale", "3"], 2, "go with FLUX.1"),
        ("sdxl", &["--target-size", "64"], 2, "1024x768"),
    ] {
        let output = draw(model, "refused.png", more);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(part), "{more:?}: {text}");
        assert_eq!(output.status.code(), Some(code), "{more:?}: {text}");
    }
    let (report, code) = inspect(models.join("refiner").to_str().unwrap(), folder.path());
    assert_eq!((code, report["class"].as_str()), (Some(0), Some("StableDiffusionXLImg2ImgPipeline")), "{report}");
    assert_eq!(component(&report, "text_encoder_2")["class"], "CLIPTextModelWithProjection");
}

#[test]
fn inspect_shows_what_flux_is_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let dev = crate::support::generated("flux_pipeline").join("_models/dev");
    let (report, code) = inspect(dev.to_str().unwrap(), folder.path());
    assert_eq!((code, report["class"].as_str()), (Some(0), Some("FluxPipeline")), "{report}");
    for (name, class) in [("transformer", "FluxTransformer2DModel"), ("text_encoder_2", "T5EncoderModel")] {
        let component = component(&report, name);
        assert_eq!(component["class"], class);
        assert!(component["files"].as_array().unwrap().len() > 1, "{component}");
        assert_eq!(component["unexpected_weights"].as_array().unwrap().len(), 0, "{component}");
    }
    // A transformer with a block more than its files have.
    let out = folder.path().join("transformer");
    std::fs::create_dir(&out).unwrap();
    for entry in std::fs::read_dir(dev.join("transformer")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), out.join(entry.file_name())).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    config["num_single_layers"] = 3.into();
    std::fs::write(out.join("config.json"), config.to_string()).unwrap();
    let output = run(&["inspect", "transformer", "--json"], folder.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("single_transformer_blocks.2."));
}
