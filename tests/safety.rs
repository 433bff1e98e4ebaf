//! The safety checker as a component: loaded, left out, saved, moved, offloaded, counted.

use crate::support::{generated, json, tensors};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::{CLIPImageProcessor, OutputType};
use tch_diffusers::nn::Module;
use tch_diffusers::utils::progress::ProgressBarConfig;
use tch_diffusers::{
    Error, ModelMixin, PipelineMixin, Result, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline,
    StableDiffusionSafetyChecker,
};

/// The folder of a tiny pipeline with a checker, and which of five pictures it blackens.
fn whole() -> (PathBuf, Vec<bool>) {
    let folder = generated("safety");
    let flags = &tensors(&folder.join("text_to_image/expected.safetensors"))["flags"];
    (folder.join("_models/whole"), Vec::<bool>::try_from(flags).unwrap())
}

fn load(folder: &Path) -> StableDiffusionPipeline {
    let hidden = ProgressBarConfig { disable: true, desc: None };
    StableDiffusionPipeline::from_pretrained(folder).progress_bar(hidden).load().unwrap()
}

fn flagged(pipe: &mut StableDiffusionPipeline) -> Option<Vec<bool>> {
    try_flagged(pipe).unwrap()
}

fn try_flagged(pipe: &mut StableDiffusionPipeline) -> Result<Option<Vec<bool>>> {
    let call = json(&generated("safety").join("text_to_image/call.json"));
    let call = pipe.call(call["prompt"].as_str().unwrap()).num_inference_steps(4).num_images_per_prompt(5).seed(0);
    call.output_type(OutputType::Tensor).run().map(|output| output.nsfw_content_detected)
}

#[test]
fn a_folder_with_a_checker_is_looked_at_by_default() {
    let (folder, expected) = whole();
    let mut pipe = load(&folder);
    assert_eq!(flagged(&mut pipe).as_ref(), Some(&expected));
    let mut pipe = StableDiffusionPipeline::from_pretrained(&folder).safety_checker(None).load().unwrap();
    assert!(pipe.requires_safety_checker && pipe.feature_extractor.is_some());
    assert_eq!(flagged(&mut pipe), None);
    let checker = StableDiffusionSafetyChecker::from_pretrained(folder.join("safety_checker")).load().unwrap();
    let loader = StableDiffusionPipeline::from_pretrained(&folder).safety_checker(Some(checker));
    let extractor = CLIPImageProcessor::from_pretrained(folder.join("feature_extractor")).unwrap();
    assert_eq!(flagged(&mut loader.feature_extractor(extractor).load().unwrap()).as_ref(), Some(&expected));
}

#[test]
fn a_saved_pipeline_keeps_its_checker_or_the_lack_of_one() {
    let (folder, expected) = whole();
    let out = tempfile::tempdir().unwrap();
    load(&folder).save_pretrained(out.path()).unwrap();
    let (before, after) = (json(&folder.join("model_index.json")), json(&out.path().join("model_index.json")));
    for key in ["safety_checker", "requires_safety_checker"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert_eq!(after["feature_extractor"][1], "CLIPImageProcessor");
    assert_eq!(flagged(&mut load(out.path())), Some(expected));
    let weights = |folder: &Path| tensors(&folder.join("safety_checker/model.safetensors"));
    assert_eq!(weights(&folder), weights(out.path()));
    let mut pipe = load(&folder);
    pipe.safety_checker = None;
    pipe.requires_safety_checker = false;
    let bare = tempfile::tempdir().unwrap();
    pipe.save_pretrained(bare.path()).unwrap();
    let index = json(&bare.path().join("model_index.json"));
    assert_eq!(
        (&index["safety_checker"][1], &index["requires_safety_checker"]),
        (&serde_json::Value::Null, &false.into())
    );
    assert!(!bare.path().join("safety_checker").exists());
    assert_eq!(flagged(&mut load(bare.path())), None);
}

#[test]
fn a_checker_that_is_not_whole_is_named() {
    let (folder, _) = whole();
    let out = tempfile::tempdir().unwrap();
    load(&folder).save_pretrained(out.path()).unwrap();
    let load = || StableDiffusionPipeline::from_pretrained(out.path()).load();
    std::fs::remove_file(out.path().join("feature_extractor/preprocessor_config.json")).unwrap();
    let error = load().unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("preprocessor_config.json"), "{error}");
    std::fs::write(out.path().join("feature_extractor/preprocessor_config.json"), r#"{"resample": 0}"#).unwrap();
    let error = load().unwrap_err();
    assert!(error.to_string().contains("preprocessor_config.json: `resample` 0"), "{error}");
    std::fs::remove_dir_all(out.path().join("feature_extractor")).unwrap();
    std::fs::remove_file(out.path().join("safety_checker/model.safetensors")).unwrap();
    let error = load().unwrap_err();
    assert!(error.to_string().contains("the model's safety checker is missing"), "{error}");
    std::fs::write(out.path().join("safety_checker/pytorch_model.bin"), "x").unwrap();
    let error = load().unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("pickle"), "{error}");
    StableDiffusionPipeline::from_pretrained(out.path()).safety_checker(None).load().unwrap();
    let mut pipe = StableDiffusionPipeline::from_pretrained(&folder).load().unwrap();
    pipe.feature_extractor = None;
    let error = try_flagged(&mut pipe).unwrap_err();
    assert!(matches!(error, Error::Argument(_)), "{error}");
}

#[test]
fn a_failure_of_the_checker_names_it_and_leaves_the_pipeline_usable() {
    let (folder, expected) = whole();
    let mut pipe = load(&folder);
    let right = pipe.feature_extractor.clone();
    pipe.feature_extractor = Some(CLIPImageProcessor::default());
    let error = try_flagged(&mut pipe).unwrap_err();
    assert!(error.to_string().starts_with("safety_checker.vision_model.embeddings: pictures are"), "{error}");
    pipe.feature_extractor = right;
    assert_eq!(flagged(&mut pipe), Some(expected));
}

#[test]
fn offloading_changes_nothing_of_what_is_found() {
    let (folder, expected) = whole();
    let mut pipe = load(&folder);
    pipe.enable_model_cpu_offload(Device::Cpu).unwrap();
    assert_eq!(flagged(&mut pipe).as_ref(), Some(&expected));
    let hooks = |pipe: &StableDiffusionPipeline| pipe.safety_checker.as_ref().unwrap().node().hook_names();
    assert!(hooks(&pipe).is_empty() && !pipe.vae.node().hook_names().is_empty(), "it stays where it is");
    pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap();
    assert!(hooks(&pipe).is_empty());
    assert_eq!(flagged(&mut pipe).as_ref(), Some(&expected));
    pipe.enable_group_offload(&GroupOffloading::leaf_level(), &[]).unwrap();
    assert!(!hooks(&pipe).is_empty());
    assert_eq!(flagged(&mut pipe).as_ref(), Some(&expected));
    pipe.enable_group_offload(&GroupOffloading::block_level(1), &["safety_checker"]).unwrap();
    assert!(hooks(&pipe).is_empty());
    assert_eq!(flagged(&mut pipe).as_ref(), Some(&expected));
    pipe.reset().unwrap();
    assert_eq!(flagged(&mut pipe).as_ref(), Some(&expected));
    let early = StableDiffusionPipeline::from_pretrained(&folder).group_offload(GroupOffloading::leaf_level());
    let mut early = early.load().unwrap();
    assert!(!hooks(&early).is_empty());
    assert_eq!(flagged(&mut early).as_ref(), Some(&expected));
    let mut moved = StableDiffusionImg2ImgPipeline::from_pipe(early);
    assert!(moved.safety_checker.is_some());
    moved.remove_all_hooks().unwrap();
    moved.to(Kind::BFloat16).unwrap();
    assert_eq!(moved.safety_checker.as_ref().unwrap().node().dtype(), Kind::BFloat16);
}

#[test]
fn the_ledger_counts_the_checker() {
    let (folder, _) = whole();
    let mut pipe = load(&folder);
    let weights = pipe.safety_checker.as_ref().unwrap().node().num_parameters() as i64 * 4;
    let with = pipe.estimate_memory(64, 64, 5, Kind::Float).unwrap();
    let checker = pipe.safety_checker.take();
    let without = pipe.estimate_memory(64, 64, 5, Kind::Float).unwrap();
    assert_eq!(with.stages.len(), without.stages.len() + 1);
    assert_eq!(with.stages[0].weights, without.stages[0].weights + weights);
    pipe.safety_checker = checker;
    flagged(&mut pipe);
    let report = pipe.memory_report().unwrap();
    assert!(report.weights.iter().any(|line| line.component == "safety_checker"), "{report}");
    let (call, estimate) = (report.last_call.unwrap(), report.estimate.unwrap());
    let measured = call.stages.iter().find(|stage| stage.name == "check").unwrap().peak;
    let expected = estimate.stage("check").unwrap().allocated();
    // The pictures' way to 8 bits is not reckoned.
    assert!(measured > 0 && expected > measured / 3 && expected < measured * 3, "{expected} for {measured}");
}

fn run(arguments: &[&str], folder: &Path) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-diffusers"));
    let output = command.args(arguments).current_dir(folder).env_remove("LD_LIBRARY_PATH").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_program_blackens_says_so_and_can_be_told_not_to() {
    let ((model, expected), out) = (whole(), tempfile::tempdir().unwrap());
    let model = model.to_str().unwrap();
    let (done, text, _) = run(&["inspect", model], out.path());
    assert!(
        done && text.contains("StableDiffusionSafetyChecker") && text.contains("preprocessor_config.json"),
        "{text}"
    );
    let prompt = json(&generated("safety").join("text_to_image/call.json"))["prompt"].as_str().unwrap().to_string();
    let generate = ["generate", "--model", model, "--prompt", &prompt, "--steps", "4", "--num-images", "5", "--quiet"];
    let black = |number: usize| {
        let picture = image::open(out.path().join(format!("a-{number}.png"))).unwrap().to_rgb8();
        picture.as_raw().iter().all(|value| *value == 0)
    };
    let (done, _, log) = run(&[&generate[..], &["--output", "a.png"]].concat(), out.path());
    assert!(done, "{log}");
    assert_eq!((0..5).map(black).collect::<Vec<_>>(), expected);
    let first = expected.iter().position(|flag| *flag).unwrap();
    assert!(log.contains(&format!("a-{first}.png: black")), "{log}");
    let (done, _, log) = run(&[&generate[..], &["--output", "a.png", "--no-safety-checker"]].concat(), out.path());
    assert!(done && log.contains("there is no safety checker"), "{log}");
    assert!(!(0..5).any(black));
    let again = ["generate", "--from", "a-0.png", "--output", "b.png", "--quiet"];
    let (done, _, log) = run(&again, out.path());
    assert!(done && !log.contains("black,"), "{log}");
    let read = |name: &str| std::fs::read(out.path().join(name)).map(|_| image::open(out.path().join(name)).unwrap());
    assert_eq!(read("a-0.png").unwrap(), read("b.png").unwrap());
}
