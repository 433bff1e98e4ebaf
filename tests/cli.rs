//! The command line tool, as a person and as a script would use it.

use std::path::Path;
use std::process::{Command, Output};

fn run(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-diffusers"));
    command.args(arguments).current_dir(folder).env_remove("LD_LIBRARY_PATH").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const STAR: [&str; 7] = ["generate", "--prompt", "a yellow star on a black background", "--steps", "3", "--seed", "7"];

fn generate(more: &[&str], folder: &Path) -> Output {
    let output = run(&[&STAR[..], more].concat(), folder);
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

#[test]
fn the_same_command_writes_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    generate(&["--output", "a.png"], folder.path());
    generate(&["--output", "b.png"], folder.path());
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(read("a.png"), read("b.png"));
    let other = run(&["generate", "--prompt", STAR[2], "--steps", "3", "--seed", "8", "-o", "c.png"], folder.path());
    assert!(other.status.success() && read("a.png") != read("c.png"), "the seed changes nothing");
}

#[test]
fn from_repeats_a_picture_to_the_pixel() {
    let folder = tempfile::tempdir().unwrap();
    let more =
        ["--num-images", "2", "--negative-prompt", "a red circle", "--scheduler", "euler_a", "--output", "a.png"];
    let printed = generate(&more, folder.path());
    assert_eq!(String::from_utf8_lossy(&printed.stdout), "a-0.png\na-1.png\n");
    let again = run(&["generate", "--from", "a-1.png", "--output", "again.png"], folder.path());
    assert!(again.status.success(), "{}", stderr(&again));
    let pixels = |name: &str| image::open(folder.path().join(name)).unwrap().to_rgb8();
    assert_eq!(pixels("a-1.png"), pixels("again.png"));
    assert_ne!(pixels("a-0.png"), pixels("a-1.png"));
}

#[test]
fn each_way_to_save_memory_is_kept_with_the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let ways: [(&str, &[&str]); 6] = [
        ("slicing", &["--attention-slicing"]),
        ("max", &["--attention-slicing", "max"]),
        ("vae", &["--vae-slicing"]),
        ("tiles", &["--vae-tiling", "--width", "192"]),
        ("cast", &["--layerwise-casting", "float8_e4m3fn"]),
        ("last", &["--channels-last"]),
    ];
    let pixels = |name: &str| image::open(folder.path().join(name)).unwrap().to_rgb8();
    generate(&["--output", "plain.png"], folder.path());
    for (name, way) in ways {
        let (first, again) = (format!("{name}.png"), format!("{name}-again.png"));
        generate(&[way, &["--output", &first]].concat(), folder.path());
        let output = run(&["generate", "--from", &first, "--output", &again], folder.path());
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        assert_eq!(pixels(&first), pixels(&again), "{name}");
    }
    assert_ne!(pixels("cast.png"), pixels("plain.png"), "nothing is cast");
    generate(&["--width", "192", "--output", "wide.png"], folder.path());
    assert_ne!(pixels("tiles.png"), pixels("wide.png"), "nothing is tiled");
    let near = |name: &str| {
        let (plain, other) = (pixels("plain.png"), pixels(name));
        plain.as_raw().iter().zip(other.as_raw()).all(|(a, b)| a.abs_diff(*b) <= 1)
    };
    for name in ["slicing.png", "max.png", "vae.png", "last.png"] {
        assert!(near(name), "{name} is another picture");
    }
}

#[test]
fn several_prompts_are_one_batch() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--prompt", "a green square on a white background", "--output", "b.png"];
    let printed = generate(&more, folder.path());
    assert_eq!(String::from_utf8_lossy(&printed.stdout), "b-0.png\nb-1.png\n");
}

#[test]
fn bad_input_ends_with_2_and_says_what_fits() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 10] = [
        (&["--scheduler", "warp"], "dpmsolver"),
        (&["--dtype", "int4"], "float32, float16"),
        (&["--device", "tpu"], "use cpu, cuda or cuda:N"),
        (&["--width", "100"], "divisible by 8"),
        (&["--output", "a.gif"], "written as PNG"),
        (&["--output", "nowhere/a.png"], "there is no folder nowhere"),
        (&["--num-images", "0"], "at least 1"),
        (&["--attention-slicing", "some"], "auto, max or a number"),
        (&["--attention-slicing", "1000"], "as many as the layer"),
        (&["--layerwise-casting", "int8"], "float8_e4m3fn or float8_e5m2"),
    ];
    for (more, expected) in cases {
        let output = run(&[&STAR[..], more].concat(), folder.path());
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{more:?}: {}", stderr(&output));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was written");
    let foreign = folder.path().join("foreign.png");
    image::RgbImage::new(8, 8).save(&foreign).unwrap();
    let output = run(&["generate", "--from", "foreign.png"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("carries no parameters"), "{}", stderr(&output));
}

/// A star and, over its right half, a mask, in a folder of their own.
fn drawn_star() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    generate(&["--output", "star.png"], folder.path());
    let half = |x: u32| image::Luma([if x < 64 { 0 } else { 255 }]);
    image::GrayImage::from_fn(128, 128, |x, _| half(x)).save(folder.path().join("mask.png")).unwrap();
    folder
}

#[test]
fn pictures_from_pictures_are_drawn_again_by_what_they_carry() {
    let folder = drawn_star();
    let pixels = |name: &str| image::open(folder.path().join(name)).unwrap().to_rgb8();
    let ways: [(&str, &[&str]); 4] = [
        ("redrawn", &["--image", "star.png", "--strength", "0.7"]),
        ("wide", &["--image", "star.png", "--width", "160", "--height", "96"]),
        ("painted", &["--image", "star.png", "--mask", "mask.png"]),
        ("part", &["--image", "star.png", "--mask", "mask.png", "--padding-mask-crop", "8", "--strength", "0.9"]),
    ];
    for (name, way) in ways {
        let (first, again) = (format!("{name}.png"), format!("{name}-again.png"));
        generate(&[way, &["--output", &first]].concat(), folder.path());
        let output = run(&["generate", "--from", &first, "--output", &again], folder.path());
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        assert_eq!(pixels(&first), pixels(&again), "{name}");
        assert_ne!(pixels(&first), pixels("star.png"), "{name}");
    }
    assert_eq!(pixels("redrawn.png").dimensions(), (128, 128));
    assert_eq!(pixels("wide.png").dimensions(), (160, 96));
    let left = |name: &str| image::imageops::crop_imm(&pixels(name), 0, 0, 60, 128).to_image();
    assert_eq!(left("part.png"), left("star.png"), "what the mask leaves was changed");
    let plain = run(&["generate", "--from", "redrawn.png", "--strength", "0.4", "--output", "less.png"], folder.path());
    assert!(plain.status.success(), "{}", stderr(&plain));
    assert_ne!(pixels("less.png"), pixels("redrawn.png"));
}

#[test]
fn pictures_that_do_not_fit_are_found_before_the_model_is_looked_for() {
    let folder = drawn_star();
    std::fs::write(folder.path().join("text.png"), "no picture").unwrap();
    image::GrayImage::new(128, 128).save(folder.path().join("black.png")).unwrap();
    image::RgbImage::new(64, 4).save(folder.path().join("flat.png")).unwrap();
    let cases: [(&[&str], &str); 13] = [
        (&["--mask", "mask.png"], "--mask goes with --image"),
        (&["--strength", "0.5"], "--strength goes with --image"),
        (&["--image", "star.png", "--padding-mask-crop", "4"], "--padding-mask-crop goes with --mask"),
        (&["--image", "none.png"], "none.png"),
        (&["--image", "text.png"], "text.png"),
        (&["--image", "flat.png"], "too small"),
        (&["--image", "star.png", "--mask", "none.png"], "none.png"),
        (&["--image", "star.png", "--strength", "1.2"], "between 0 and 1"),
        (&["--image", "star.png", "--strength", "0.3"], "leaves none of 3 steps"),
        (&["--image", "star.png", "--width", "100"], "divisible by 8"),
        (&["--image", "star.png", "--guidance-rescale", "0.5"], "goes without --image"),
        (&["--image", "star.png", "--mask", "black.png", "--padding-mask-crop", "4"], "black all over"),
        (&["--image", "star.png", "--mask", "flat.png", "--padding-mask-crop", "4"], "the picture's size, 128x128"),
    ];
    for (more, expected) in cases {
        let output = run(&[&STAR[..], &["--model", "nowhere"], more].concat(), folder.path());
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{more:?}: {}", stderr(&output));
    }
}

#[test]
fn offloading_changes_no_pixel_and_no_byte_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    generate(&["--output", "plain.png"], folder.path());
    let plain = std::fs::read(folder.path().join("plain.png")).unwrap();
    let cases: [&[&str]; 5] = [
        &["--offload", "model"],
        &["--offload", "sequential"],
        &["--offload", "group", "--blocks-per-group", "2"],
        &["--offload", "group", "--offload-disk"],
        &["--offload", "group", "--offload-type", "leaf", "--offload-disk"],
    ];
    for more in cases {
        generate(&[more, &["--output", "offloaded.png"]].concat(), folder.path());
        assert_eq!(std::fs::read(folder.path().join("offloaded.png")).unwrap(), plain, "{more:?}");
    }
}

#[test]
fn a_memory_report_is_printed_beside_the_pictures_name() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--memory-report", "--layerwise-casting", "float8_e4m3fn", "--vae-tiling", "--output", "a.png"];
    let output = generate(&more, folder.path());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "a.png\n");
    let report = stderr(&output);
    for expected in ["weights", "text_encoder", "unet", "last call, cpu", "measured", "estimated", "denoise", "decode"]
    {
        assert!(report.contains(expected), "{expected} is missing from:\n{report}");
    }
    for technique in ["layerwise casting", "VAE tiling"] {
        assert!(report.contains(technique), "{technique} is missing from:\n{report}");
    }
}

#[test]
fn contradictions_in_offloading_are_found_before_the_model_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 11] = [
        (&["--offload-disk"], "--offload-disk goes with --offload group"),
        (&["--offload", "model", "--stream"], "--stream goes with --offload group"),
        (&["--offload", "group", "--record-stream"], "--record-stream goes with --stream"),
        (&["--offload", "group", "--low-cpu-mem-usage"], "--low-cpu-mem-usage goes with --stream"),
        (&["--offload", "group", "--pinned-memory-limit", "9"], "--pinned-memory-limit goes with --stream"),
        (&["--offload", "group", "--stream"], "the CPU has none"),
        (&["--offload", "model", "--offload-type", "leaf"], "--offload-type goes with --offload group"),
        (&["--offload", "sequential", "--blocks-per-group", "2"], "--blocks-per-group goes with --offload group"),
        (
            &["--offload", "group", "--offload-type", "leaf", "--blocks-per-group", "2"],
            "goes with --offload-type block",
        ),
        (&["--offload", "group", "--blocks-per-group", "0"], "at least 1"),
        (&["--offload", "everything"], "model, sequential, group"),
    ];
    for (more, expected) in cases {
        let output = run(&[&STAR[..], &["--model", "nowhere"], more].concat(), folder.path());
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{more:?}: {}", stderr(&output));
    }
}

#[test]
fn a_missing_model_ends_with_3_and_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(&[&STAR[..], &["--model", "nowhere"]].concat(), folder.path());
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("nowhere"), "{}", stderr(&output));
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let output = run(&[&STAR[..], &["--model", "empty"]].concat(), folder.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("empty/model_index.json"), "{}", stderr(&output));
}

#[test]
fn a_failed_write_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("taken.png")).unwrap();
    let output = run(&[&STAR[..], &["--output", "taken.png"]].concat(), folder.path());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["taken.png"]);
}

/// Whether a process listens to SIGINT.
#[cfg(target_os = "linux")]
fn listens(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & 0b10 != 0
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_stops_between_steps_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-diffusers"));
    let arguments = ["generate", "--prompt", "a red circle", "--steps", "900", "--output", "a.png"];
    let child =
        command.args(arguments).current_dir(folder.path()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    while !listens(child.id()) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // Somewhere in its steps, or still loading on a busy machine.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("nothing was written"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn env_says_what_it_runs_on_and_why_there_is_no_cuda() {
    let output = run(&["env"], Path::new("."));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("libtorch         2.11.0"), "{text}");
    assert!(text.contains("CPU kernels"), "{text}");
    let cuda = text.lines().find(|line| line.starts_with("CUDA")).unwrap();
    assert!(cuda.contains("device(s)") || cuda.contains("not available: "), "{cuda}");
}

#[test]
fn help_is_complete_and_has_examples() {
    let output = run(&["generate", "--help"], Path::new("."));
    let text = String::from_utf8_lossy(&output.stdout);
    let options = [
        "--model",
        "--prompt",
        "--negative-prompt",
        "--steps",
        "--guidance-scale",
        "--seed",
        "--width",
        "--height",
        "--num-images",
        "--scheduler",
        "--dtype",
        "--device",
        "--variant",
        "Memory:",
        "--attention-slicing",
        "--vae-slicing",
        "--vae-tiling",
        "--layerwise-casting",
        "--channels-last",
        "--memory-report",
        "--output",
        "--from",
        "--offload",
        "--offload-type",
        "--blocks-per-group",
        "--offload-disk",
        "--stream",
        "--record-stream",
        "--low-cpu-mem-usage",
        "--pinned-memory-limit",
        "Memory:",
        "Examples:",
    ];
    for option in options {
        assert!(text.contains(option), "{option} is missing from:\n{text}");
    }
    let output = run(&["--help"], Path::new("."));
    assert!(String::from_utf8_lossy(&output.stdout).contains("Exit codes:"));
}

/// A LoRA for the bundled model, in a folder of its own.
fn written_lora() -> tempfile::TempDir {
    use tch_diffusers::{ModelMixin, utils::assets::bundled_model};
    let folder = tempfile::tempdir().unwrap();
    let unet = tch_diffusers::UNet2DConditionModel::from_pretrained(bundled_model().unwrap()).subfolder("unet").load();
    let unet = unet.unwrap();
    let mut tensors = vec![];
    for node in tch_diffusers::nn::Module::node(&unet).walk() {
        let Some(shapes) = tch_diffusers::nn::lora_shapes(&node, 2).filter(|_| node.path().ends_with("to_v")) else {
            continue;
        };
        for (name, shape) in ["lora_A", "lora_B"].into_iter().zip(shapes) {
            let ones = tch::Tensor::ones(shape, (tch::Kind::Float, tch::Device::Cpu)) * 0.2;
            tensors.push((format!("unet.{}.{name}.weight", node.path()), ones));
        }
    }
    tch::Tensor::write_safetensors(&tensors, folder.path().join("style.safetensors")).unwrap();
    folder
}

#[test]
fn loras_change_the_picture_by_their_weight_and_are_kept_with_it() {
    let folder = written_lora();
    let pixels = |name: &str| image::open(folder.path().join(name)).unwrap().to_rgb8();
    generate(&["--output", "plain.png"], folder.path());
    generate(&["--lora", "style.safetensors", "--output", "style.png"], folder.path());
    generate(&["--lora", "style.safetensors:0", "--output", "none.png"], folder.path());
    let halves = ["--lora", "style.safetensors:0.5", "--lora", "style.safetensors:0.5", "--output", "halves.png"];
    generate(&halves, folder.path());
    assert_ne!(pixels("style.png"), pixels("plain.png"));
    assert_eq!(pixels("none.png"), pixels("plain.png"));
    assert_ne!(pixels("halves.png"), pixels("plain.png"));
    let again = run(&["generate", "--from", "style.png", "--output", "again.png"], folder.path());
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(pixels("again.png"), pixels("style.png"));
}

#[test]
fn a_lora_that_cannot_be_read_is_named_before_the_model_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("broken.safetensors"), "no").unwrap();
    for (lora, code, expected) in [
        (":0.5", 2, "style.safetensors:0.8"),
        ("style.safetensors:inf", 2, "style.safetensors:0.8"),
        ("none.safetensors:0.5", 3, "none.safetensors"),
        ("broken.safetensors", 3, "broken.safetensors: not a safetensors file"),
    ] {
        let output = run(&[&STAR[..], &["--model", "nowhere", "--lora", lora]].concat(), folder.path());
        assert_eq!(output.status.code(), Some(code), "{lora}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{lora}: {}", stderr(&output));
    }
}
