//! Models from the Hub, which is played by a server on this machine.

use crate::support::{COMMIT, Fault, HubServer};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tch_diffusers::loaders::HubOptions;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::utils::progress::ProgressBarConfig;
use tch_diffusers::{AutoencoderKL, Error, ModelMixin, Result, StableDiffusionPipeline, UNet2DConditionModel};

const ID: &str = "tiny/shapes";
const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

/// A server with a small repository of a pipeline, of which nothing can be loaded.
fn small() -> HubServer {
    let index = r#"{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
        "unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [null, null], "requires_safety_checker": false}"#;
    HubServer::new([
        ("model_index.json".to_string(), index.as_bytes().to_vec()),
        ("scheduler/scheduler_config.json".to_string(), b"{}".to_vec()),
        ("unet/config.json".to_string(), b"{\"a\": 1}".to_vec()),
        (WEIGHTS.to_string(), (0..100_000u32).flat_map(u32::to_le_bytes).collect()),
    ])
}

fn options(server: &HubServer, cache: &Path) -> HubOptions {
    HubOptions {
        cache_dir: Some(cache.into()),
        endpoint: Some(server.url.clone()),
        token: Some("hf_test".into()),
        ..HubOptions::default()
    }
}

fn download(server: &HubServer, cache: &Path) -> Result<PathBuf> {
    options(server, cache).pipeline_folder(Path::new(ID), None, &[])
}

/// Holds an error to the kind and to `parts` of its text.
fn assert_hub(error: &Error, parts: &[&str]) {
    assert!(matches!(error, Error::Hub(_)), "{error:?}");
    let text = error.to_string();
    parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` is missing from: {text}"));
}

/// Every file of the cache, by its path in it, that is neither a lock nor a link.
fn blobs(cache: &Path) -> Vec<String> {
    let folder = cache.join("models--tiny--shapes/blobs");
    let entries = std::fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect());
    let mut names: Vec<_> = entries.unwrap_or_else(|_| vec![]);
    names.sort();
    names.into_iter().map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn a_pipeline_of_the_hub_has_the_weights_of_its_folder() {
    let folder = bundled_model().unwrap();
    let server = HubServer::of_folder(&folder);
    let cache = tempfile::tempdir().unwrap();
    let load = || {
        let quiet = ProgressBarConfig { disable: true, desc: None };
        StableDiffusionPipeline::from_pretrained(ID).hub(options(&server, cache.path())).progress_bar(quiet).load()
    };
    let pipe = load().unwrap();
    let expected = AutoencoderKL::from_pretrained(folder.join("vae")).load().unwrap();
    for ((key, found), (_, weight)) in tch_diffusers::nn::Module::node(&pipe.vae)
        .state_dict()
        .iter()
        .zip(tch_diffusers::nn::Module::node(&expected).state_dict())
    {
        assert!(found.equal(&weight), "{key}");
    }
    let repository = cache.path().join("models--tiny--shapes");
    let pointer = repository.join("snapshots").join(COMMIT).join(WEIGHTS);
    let target = std::fs::read_link(&pointer).unwrap();
    assert!(target.starts_with("../../../blobs") && target.file_name().unwrap().len() == 64, "{target:?}");
    assert_eq!(std::fs::read(&pointer).unwrap(), std::fs::read(folder.join(WEIGHTS)).unwrap());
    assert_eq!(std::fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    assert!(cache.path().join(".locks/models--tiny--shapes").is_dir());
    server.take_log();
    drop(load().unwrap());
    assert_eq!(server.take_log(), ["GET /api/models/tiny/shapes/revision/main token"], "something came twice");
}

#[test]
fn one_model_of_a_repository_brings_its_own_files_only() {
    let server = HubServer::of_folder(&bundled_model().unwrap());
    let cache = tempfile::tempdir().unwrap();
    let hub = options(&server, cache.path());
    let unet = UNet2DConditionModel::from_pretrained(ID).subfolder("unet").hub(hub.clone()).load().unwrap();
    assert!(tch_diffusers::nn::Module::node(&unet).num_parameters() > 0);
    let log = server.take_log();
    assert!(log.iter().all(|line| line.contains("/unet/") || line.contains("/api/")), "{log:?}");
    let offline = HubOptions { local_files_only: true, ..hub };
    UNet2DConditionModel::from_pretrained(ID).subfolder("unet").hub(offline).load().unwrap();
    assert!(server.take_log().is_empty());
}

/// The files that come of a repository with all kinds of them.
fn brought(variant: Option<&str>, passed: &[&str]) -> Result<Vec<String>> {
    let index = r#"{"_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"], "image_encoder": [null, null],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}"#;
    let names = [
        "README.md",
        ".gitattributes",
        "v1-5-pruned.safetensors",
        "diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        "vae/diffusion_pytorch_model.safetensors.index.fp16.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model-00001-of-00001.fp16.safetensors",
        "text_encoder/model.safetensors.fp16.index.json",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "scheduler/scheduler_config.json",
        "image_encoder/model.safetensors",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
    ];
    let files = names.iter().map(|name| ((*name).to_string(), name.as_bytes().to_vec()));
    let server = HubServer::new(files.chain([("model_index.json".to_string(), index.as_bytes().to_vec())]));
    let cache = tempfile::tempdir().unwrap();
    let folder = options(&server, cache.path()).pipeline_folder(Path::new(ID), variant, passed)?;
    let mut found: Vec<_> = std::iter::once(&"model_index.json").chain(&names).map(ToString::to_string).collect();
    found.retain(|name| folder.join(name).is_file());
    found.sort();
    Ok(found)
}

#[test]
fn the_files_that_diffusers_would_download_come_and_no_others() {
    let plain = [
        "model_index.json",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.safetensors.index.json",
    ];
    assert_eq!(brought(None, &[]).unwrap(), plain);
    let half = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model-00001-of-00001.fp16.safetensors",
        "text_encoder/model.safetensors.fp16.index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        "vae/diffusion_pytorch_model.safetensors.index.fp16.json",
    ];
    assert_eq!(brought(Some("fp16"), &["tokenizer", "safety_checker"]).unwrap(), half);
    let error = brought(Some("fp8"), &[]).unwrap_err();
    assert!(matches!(error, Error::Argument(_)) && error.to_string().contains("variant `fp8`"), "{error}");
}

#[test]
fn a_repository_of_pickle_files_is_refused_before_they_come() {
    let index = r#"{"unet": ["diffusers", "UNet2DConditionModel"]}"#;
    let files = [("model_index.json", index), ("unet/config.json", "{}"), ("unet/diffusion_pytorch_model.bin", "x")];
    let server = HubServer::new(files.map(|(name, text)| (name.to_string(), text.as_bytes().to_vec())));
    let cache = tempfile::tempdir().unwrap();
    let error = download(&server, cache.path()).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    assert!(error.to_string().contains("`unet`") && error.to_string().contains("save_file"), "{error}");
    assert!(server.take_log().iter().all(|line| !line.contains("unet/")));
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let server = small();
    for revision in ["v1.0", "refs/pr/1", COMMIT] {
        let cache = tempfile::tempdir().unwrap();
        let hub = HubOptions { revision: Some(revision.into()), ..options(&server, cache.path()) };
        let folder = hub.pipeline_folder(Path::new(ID), None, &[]).unwrap();
        assert!(folder.ends_with(COMMIT) && folder.join(WEIGHTS).is_file());
        let note = cache.path().join("models--tiny--shapes/refs").join(revision);
        assert_eq!(note.is_file(), revision != COMMIT);
        let offline = HubOptions { local_files_only: true, ..hub };
        assert_eq!(offline.pipeline_folder(Path::new(ID), None, &[]).unwrap(), folder);
    }
    let cache = tempfile::tempdir().unwrap();
    let hub = |revision: &str| HubOptions { revision: Some(revision.into()), ..options(&server, cache.path()) };
    let error = hub("v9").pipeline_folder(Path::new(ID), None, &[]).unwrap_err();
    assert_hub(&error, &[ID, "`v9`", "404", "tree/main"]);
    let error = hub("../../up").pipeline_folder(Path::new(ID), None, &[]).unwrap_err();
    assert!(matches!(error, Error::Argument(_)), "{error:?}");
}

#[test]
fn a_renamed_repository_is_followed() {
    let server = small();
    let cache = tempfile::tempdir().unwrap();
    let folder = options(&server, cache.path()).pipeline_folder(Path::new("old/shapes"), None, &[]).unwrap();
    assert!(folder.join(WEIGHTS).is_file());
}

#[test]
fn a_token_goes_to_the_hub_alone() {
    let server = small();
    let cache = tempfile::tempdir().unwrap();
    server.require("hf_test");
    download(&server, cache.path()).unwrap();
    let log = server.take_log();
    let (elsewhere, hub): (Vec<_>, Vec<_>) = log.iter().partition(|line| line.contains("/lfs/"));
    assert_eq!(elsewhere.len(), 1, "{log:?}");
    assert!(
        elsewhere.iter().all(|line| !line.contains("token")) && hub.iter().all(|line| line.contains("token")),
        "{log:?}"
    );
}

#[test]
fn without_the_hub_the_cache_serves_what_it_has() {
    let server = small();
    let cache = tempfile::tempdir().unwrap();
    let offline = HubOptions { local_files_only: true, ..options(&server, cache.path()) };
    let error = offline.pipeline_folder(Path::new(ID), None, &[]).unwrap_err();
    assert_hub(&error, &[ID, "not in the cache", "local_files_only"]);
    let folder = download(&server, cache.path()).unwrap();
    server.take_log();
    assert_eq!(offline.pipeline_folder(Path::new(ID), None, &[]).unwrap(), folder);
    assert!(server.take_log().is_empty(), "the server was asked");
    let nowhere = HubOptions { endpoint: Some("http://127.0.0.1:9".into()), ..options(&server, cache.path()) };
    assert_eq!(nowhere.pipeline_folder(Path::new(ID), None, &[]).unwrap(), folder);
    server.trouble("GET /api", Fault::Status(503, ""), 1);
    assert_eq!(download(&server, cache.path()).unwrap(), folder);
    std::fs::remove_dir_all(folder.join("unet")).unwrap();
    assert_hub(&offline.pipeline_folder(Path::new(ID), None, &[]).unwrap_err(), &["`unet` is not in the cache"]);
}

#[test]
fn a_hub_that_cannot_be_reached_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let hub = HubOptions {
        endpoint: Some("http://127.0.0.1:9".into()),
        cache_dir: Some(cache.path().into()),
        ..HubOptions::default()
    };
    let error = hub.pipeline_folder(Path::new(ID), None, &[]).unwrap_err();
    assert_hub(&error, &["http://127.0.0.1:9", "cannot be reached", "HF_HUB_OFFLINE"]);
}

#[test]
fn a_cut_download_goes_on_where_it_was() {
    let server = small();
    let cache = tempfile::tempdir().unwrap();
    server.trouble("GET /lfs/unet", Fault::Cut(150_000), 1);
    server.trouble(&format!("GET /lfs/{WEIGHTS} from 150000"), Fault::Cut(100_000), 1);
    let folder = download(&server, cache.path()).unwrap();
    let expected: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), expected);
    let log = server.take_log();
    for part in ["from 150000", "from 250000"] {
        assert!(log.iter().any(|line| line.contains("/lfs/") && line.contains(part)), "{part}: {log:?}");
    }
    assert!(blobs(cache.path()).iter().all(|name| !name.contains("incomplete")));
}

#[test]
fn an_interrupted_download_looks_like_no_file_and_is_gone_on_with() {
    let server = small();
    let cache = tempfile::tempdir().unwrap();
    server.trouble("GET /lfs/unet", Fault::Cut(1000), 1);
    server.trouble(&format!("GET /lfs/{WEIGHTS} from 1000"), Fault::Cut(0), 4);
    let error = download(&server, cache.path()).unwrap_err();
    assert_hub(&error, &[WEIGHTS, "1000 of 400000", "run it again"]);
    let incomplete: Vec<_> = blobs(cache.path()).into_iter().filter(|name| name.len() > 40).collect();
    assert!(incomplete.len() == 1 && incomplete[0].ends_with(".incomplete"), "{incomplete:?}");
    let repository = cache.path().join("models--tiny--shapes");
    assert!(!repository.join("snapshots").join(COMMIT).join(WEIGHTS).exists());
    assert!(!repository.join("refs/main").exists(), "a part of a repository passes for the whole");
    server.take_log();
    let folder = download(&server, cache.path()).unwrap();
    assert_eq!(std::fs::metadata(folder.join(WEIGHTS)).unwrap().len(), 400_000);
    let log = server.take_log();
    assert!(log.iter().any(|line| line.contains("from 1000")), "{log:?}");
}

#[test]
fn a_server_without_ranges_begins_again() {
    let server = small();
    let cache = tempfile::tempdir().unwrap();
    server.trouble("GET /lfs/unet", Fault::Cut(1000), 1);
    server.trouble(&format!("GET /lfs/{WEIGHTS} from 1000"), Fault::NoRanges, 1);
    let folder = download(&server, cache.path()).unwrap();
    let expected: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), expected);
}

#[test]
fn a_file_of_another_length_or_of_other_bytes_is_not_kept() {
    let cases: [(Fault, &[&str]); 3] = [
        (Fault::Length(7), &["has 400000 bytes", "sends 400007"]),
        (Fault::Length(-7), &["has 400000 bytes", "sends 399993"]),
        (Fault::Changed, &["SHA-256"]),
    ];
    for (fault, parts) in cases {
        let server = small();
        let cache = tempfile::tempdir().unwrap();
        server.trouble("GET /lfs/unet", fault, usize::MAX);
        let error = download(&server, cache.path()).unwrap_err();
        assert_hub(&error, &[&[WEIGHTS, "nothing was kept"][..], parts].concat());
        let folder = cache.path().join("models--tiny--shapes");
        assert!(!folder.join("snapshots").join(COMMIT).join(WEIGHTS).exists(), "{fault:?}");
        let kept = blobs(cache.path()).into_iter().filter(|name| name.len() > 40);
        let kept: u64 = kept.map(|name| std::fs::metadata(folder.join("blobs").join(name)).unwrap().len()).sum();
        assert_eq!(kept, 0, "{fault:?}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let cases: [(&str, Fault, &[&str]); 8] = [
        ("GET /api", Fault::Status(401, "RepoNotFound"), &["check the name", "token"]),
        ("GET /api", Fault::Status(401, "GatedRepo"), &["gated", "ask for access", "HF_TOKEN"]),
        ("GET /api", Fault::Status(403, "GatedRepo"), &["gated", "ask for access"]),
        ("GET /api", Fault::Status(403, ""), &["403", "right to read"]),
        ("GET /api", Fault::Status(404, "RepoNotFound"), &["404", "check the name"]),
        ("HEAD", Fault::Status(404, "EntryNotFound"), &["model_index.json", "404"]),
        ("HEAD", Fault::Status(403, "GatedRepo"), &["gated", "model_index.json"]),
        ("GET /api", Fault::Loop, &["redirects"]),
    ];
    for (request, fault, parts) in cases {
        let server = small();
        let cache = tempfile::tempdir().unwrap();
        server.trouble(request, fault, usize::MAX);
        assert_hub(&download(&server, cache.path()).unwrap_err(), &[&[ID][..], parts].concat());
    }
    let server = small();
    let cache = tempfile::tempdir().unwrap();
    let nameless = HubOptions { token: None, ..options(&server, cache.path()) };
    let error = nameless.pipeline_folder(Path::new("tiny/nothing"), None, &[]).unwrap_err();
    assert_hub(&error, &["tiny/nothing", "401", "a folder was meant"]);
}

#[test]
fn trouble_that_passes_is_waited_out() {
    let server = small();
    let cache = tempfile::tempdir().unwrap();
    server.trouble("GET /api", Fault::Status(503, ""), 1);
    server.trouble("HEAD", Fault::Status(500, ""), 1);
    server.trouble("GET /lfs", Fault::Status(502, ""), 1);
    server.trouble("GET /tiny/shapes/resolve", Fault::Status(429, ""), 1);
    assert!(download(&server, cache.path()).unwrap().join(WEIGHTS).is_file());
    let (server, cache) = (small(), tempfile::tempdir().unwrap());
    server.trouble("GET /api", Fault::Status(503, ""), usize::MAX);
    assert_hub(&download(&server, cache.path()).unwrap_err(), &[ID, "503", "try again later", "HF_HUB_OFFLINE"]);
}

#[test]
fn a_server_that_is_no_hub_is_named() {
    for (request, fault) in
        [("HEAD", Fault::Foreign), ("HEAD", Fault::Etag("../../../evil")), ("HEAD", Fault::Etag(""))]
    {
        let server = small();
        let cache = tempfile::tempdir().unwrap();
        server.trouble(request, fault, usize::MAX);
        assert_hub(&download(&server, cache.path()).unwrap_err(), &[&server.url, "does not answer as the Hub does"]);
        assert!(!cache.path().parent().unwrap().join("evil").exists());
    }
    let (server, cache) = (small(), tempfile::tempdir().unwrap());
    server.trouble("GET /api", Fault::Changed, usize::MAX);
    assert_hub(&download(&server, cache.path()).unwrap_err(), &[&server.url, "does not answer as the Hub does"]);
}

#[test]
fn files_that_would_lie_outside_of_the_cache_are_none_of_the_models() {
    let server = small();
    for path in ["unet/../../../../evil.json", "/tmp/evil.json", "scheduler/../../evil.json", "scheduler/./x.json"] {
        server.list(path);
    }
    let cache = tempfile::tempdir().unwrap();
    download(&server, cache.path()).unwrap();
    assert!(server.take_log().iter().all(|line| !line.contains("evil") && !line.contains("./")));
}

#[test]
fn what_is_no_repository_is_a_folder_that_is_not_there() {
    for name in ["nowhere", "./tiny/shapes", "/tiny/shapes", "tiny/shapes/more"] {
        let hub = HubOptions { endpoint: Some("http://127.0.0.1:9".into()), ..HubOptions::default() };
        let error = StableDiffusionPipeline::from_pretrained(name).hub(hub).load().unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(name), "{error:?}");
    }
}

#[test]
fn two_at_once_bring_each_file_once() {
    let server = small();
    let cache = tempfile::tempdir().unwrap();
    let folders: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| download(&server, cache.path()).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(folders.iter().all(|folder| *folder == folders[0]));
    assert_eq!(std::fs::metadata(folders[0].join(WEIGHTS)).unwrap().len(), 400_000);
    let fetched = server.take_log().iter().filter(|line| line.contains("GET /lfs/")).count();
    assert_eq!(fetched, 1);
}

/// The command line tool, with nothing of the Hub's but what is given here.
fn run(server: &HubServer, home: &Path, arguments: &[&str], more: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-diffusers"));
    for name in
        ["LD_LIBRARY_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"]
    {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &server.url).env("HF_HOME", home).envs(more.iter().copied());
    command.args(arguments).current_dir(home).output().unwrap()
}

#[test]
fn the_command_line_draws_with_a_model_of_the_hub() {
    let server = HubServer::of_folder(&bundled_model().unwrap());
    let home = tempfile::tempdir().unwrap();
    let star =
        ["generate", "--prompt", "a yellow star on a black background", "--steps", "2", "--seed", "7", "--output"];
    let hub = ["--model", ID, "--revision", "v1.0"];
    server.require("hf_of_the_environment");
    let refused = run(&server, home.path(), &[&star[..], &["a.png"], &hub].concat(), &[]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(3) && text.contains("gated") && text.contains("HF_TOKEN"), "{text}");
    let token = [("HF_TOKEN", "hf_of_the_environment")];
    let drawn = run(&server, home.path(), &[&star[..], &["a.png"], &hub].concat(), &token);
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let bundled = run(&server, home.path(), &[&star[..], &["b.png"]].concat(), &[]);
    assert!(bundled.status.success());
    let pixels = |name: &str| image::open(home.path().join(name)).unwrap().to_rgb8();
    assert_eq!(pixels("a.png"), pixels("b.png"));
    assert!(home.path().join("hub/models--tiny--shapes/refs/v1.0").is_file());
    server.take_log();
    let again =
        run(&server, home.path(), &["generate", "--from", "a.png", "--output", "c.png"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(pixels("a.png"), pixels("c.png"));
    assert!(server.take_log().is_empty(), "the server was asked");
}

#[test]
fn two_processes_at_once_do_no_harm() {
    let server = HubServer::of_folder(&bundled_model().unwrap());
    let home = tempfile::tempdir().unwrap();
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let inspect = || run(&server, home.path(), &["inspect", ID, "--json"], &[]);
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(inspect)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for output in &outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    let fetched = server.take_log().iter().filter(|line| line.contains("GET /lfs/unet")).count();
    assert_eq!(fetched, 1);
}
