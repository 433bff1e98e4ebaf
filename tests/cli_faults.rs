//! The command line tool where something is wrong: one sentence, an exit code, no panic, and no half file.

use std::path::Path;
use std::process::{Command, Output};
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::utils::image::write_png;

const BINARY: &str = env!("CARGO_BIN_EXE_tch-diffusers");

fn run(arguments: &[&str], folder: &Path) -> Output {
    Command::new(BINARY).args(arguments).current_dir(folder).output().unwrap()
}

const STAR: [&str; 6] = ["generate", "--prompt", "a yellow star", "--output", "a.png", "--quiet"];

/// Holds an outcome to its exit code, and to one line on standard error that says `expected`.
fn ended(output: &Output, code: i32, expected: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{expected}: {text}");
    assert!(text.contains(expected), "{text} does not say {expected}");
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "more than one line: {text}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn numbers_that_nothing_can_be_drawn_with_end_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 12] = [
        (&["--guidance-scale", "nan"], "`guidance_scale` has to be a finite number"),
        (&["--guidance-scale", "inf"], "`guidance_scale`"),
        (&["--guidance-rescale", "nan"], "`guidance_rescale`"),
        (&["--eta", "nan"], "`eta`"),
        (&["--steps", "0"], "`num_inference_steps` has to be at least 1"),
        (&["--steps", "100000"], "1000"),
        (&["--width", "0"], "divisible by 8"),
        (&["--height=-64"], "divisible by 8"),
        (&["--width", "9223372036854775800"], "pixels"),
        (&["--num-images", "9223372036854775807"], "`num_images_per_prompt`"),
        (&["--clip-skip", "99"], "clip_skip"),
        (&["--device", "cuda:7"], "cuda:7"),
    ];
    for (more, expected) in cases {
        ended(&run(&[&STAR[..], more].concat(), folder.path()), 2, expected);
    }
    assert_eq!(names(folder.path()), [] as [&str; 0]);
}

/// A PNG of two pixels that carries `json` as its parameters.
fn carrying(folder: &Path, json: &str) {
    let picture = image::RgbImage::new(8, 8).into();
    write_png(&folder.join("from.png"), &picture, &[("tch-diffusers", json), ("image", "0")]).unwrap();
}

#[test]
fn a_picture_with_hostile_parameters_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let whole = r#"{"model": "bundled", "prompts": ["a"], "negative_prompt": null, "steps": 2, "guidance_scale": 7.5,
        "guidance_rescale": 0.0, "eta": 0.0, "seed": 1, "width": 64, "height": 64, "num_images": 1, "scheduler": null,
        "clip_skip": null, "dtype": "float32", "device": "cpu", "variant": null}"#;
    carrying(folder.path(), whole);
    let drawn = run(&["generate", "--from", "from.png", "--output", "a.png", "--quiet"], folder.path());
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    std::fs::remove_file(folder.path().join("a.png")).unwrap();
    let deep = "[".repeat(1_000_000);
    let cases = [
        (whole.replace(r#"["a"]"#, "[]"), "no prompt"),
        (whole.replace(r#""num_images": 1"#, r#""num_images": -5"#), "`num_images_per_prompt`"),
        (whole.replace(r#""steps": 2"#, r#""steps": 18446744073709551615"#), "18446744073709551615"),
        (whole.replace(r#""steps": 2"#, r#""steps": -2"#), "broken parameters"),
        (whole.replace(r#""guidance_scale": 7.5"#, r#""guidance_scale": 1e999"#), "broken parameters"),
        (whole.replace(r#""width": 64"#, r#""width": 7"#), "divisible by 8"),
        (whole.replace(r#""dtype": "float32""#, r#""dtype": "int9""#), "int9"),
        (whole.replace(r#""seed": 1"#, r#""seed": "one""#), "broken parameters"),
        ("{".into(), "broken parameters"),
        (deep, "broken parameters"),
    ];
    for (json, expected) in cases {
        carrying(folder.path(), &json);
        let output = run(&["generate", "--from", "from.png", "--output", "a.png", "--quiet"], folder.path());
        ended(&output, 2, expected);
    }
    assert_eq!(names(folder.path()), ["from.png"]);
}

fn chunk(kind: &[u8], content: &[u8]) -> Vec<u8> {
    let checked = [kind, content].concat();
    [&(content.len() as u32).to_be_bytes()[..], &checked, &crc(&checked).to_be_bytes()].concat()
}

/// The cyclic redundancy check of PNG.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1)))
    })
}

/// A PNG that says it is of this size, and holds next to nothing.
fn png(width: u32, height: u32, more: &[u8]) -> Vec<u8> {
    let size = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let parts = [chunk(b"IHDR", &size), more.to_vec(), chunk(b"IDAT", &[120, 156, 1, 0]), chunk(b"IEND", &[])];
    [b"\x89PNG\r\n\x1a\n".to_vec(), parts.concat()].concat()
}

/// A JPEG that says it is of this size, and ends there.
fn jpeg(width: u16, height: u16) -> Vec<u8> {
    let (width, height) = (width.to_be_bytes(), height.to_be_bytes());
    let frame = [8, height[0], height[1], width[0], width[1], 3, 1, 17, 0, 2, 17, 0, 3, 17, 0];
    let scan = [3, 1, 0, 2, 0, 3, 0, 0, 63, 0];
    [&[255, 216, 255, 192, 0, 17][..], &frame, &[255, 218, 0, 12], &scan, &[0, 255, 217]].concat()
}

#[test]
fn pictures_that_are_huge_or_cannot_be_read_end_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("bomb.png", &png(2_000_000_000, 2_000_000_000, &[]));
    write("wide.png", &png(100_000, 100_000, &[]));
    write("none.png", &png(0, 64, &[]));
    write("cut.png", &png(64, 64, &[])[..40]);
    write("bomb.jpg", &jpeg(65_535, 65_535));
    write("cut.jpg", &jpeg(64, 64)[..20]);
    write("empty.png", &[]);
    std::fs::create_dir(folder.path().join("folder.png")).unwrap();
    image::RgbImage::new(64, 64).save(folder.path().join("whole.png")).unwrap();
    for name in ["bomb.png", "wide.png", "none.png", "cut.png", "bomb.jpg", "cut.jpg", "empty.png", "folder.png"] {
        let image = run(&[&STAR[..], &["--image", name]].concat(), folder.path());
        ended(&image, 2, name);
        let mask = run(&[&STAR[..], &["--image", "whole.png", "--mask", name]].concat(), folder.path());
        ended(&mask, 2, name);
        let from = run(&["generate", "--from", name, "--output", "a.png"], folder.path());
        ended(&from, 2, name);
    }
}

#[test]
fn a_text_that_unpacks_to_gigabytes_is_refused_while_it_is_unpacked() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let mut packed = b"tch-diffusers\0\0".to_vec();
    let mut encoder = flate2::write::ZlibEncoder::new(&mut packed, flate2::Compression::best());
    for _ in 0..256 {
        encoder.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap();
    assert!(packed.len() < 1 << 20);
    let bytes = png(2, 1, &chunk(b"zTXt", &packed));
    std::fs::write(folder.path().join("text.png"), bytes).unwrap();
    let error = tch_diffusers::utils::image::read_png_text(&folder.path().join("text.png")).unwrap_err();
    assert!(error.to_string().contains("text.png"), "{error}");
    ended(&run(&["generate", "--from", "text.png", "--output", "a.png"], folder.path()), 2, "text.png");
}

/// The program in a shell where no file may grow beyond so many blocks of 512 bytes, as on a disk that is full.
#[cfg(unix)]
fn run_full(blocks: usize, arguments: &str, folder: &Path) -> Output {
    // Without the signal, a write fails as it does where there is no room.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {BINARY} {arguments}");
    Command::new("sh").args(["-c", &script]).current_dir(folder).output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_half_picture_and_the_old_one_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.png"), "the old one").unwrap();
    let output = run_full(2, "generate --prompt 'a star' --steps 1 --output a.png --quiet", folder.path());
    ended(&output, 1, "a.png");
    assert_eq!(names(folder.path()), ["a.png"]);
    assert_eq!(std::fs::read(folder.path().join("a.png")).unwrap(), b"the old one");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_half_weights() {
    let folder = tempfile::tempdir().unwrap();
    let model = bundled_model().unwrap().display().to_string();
    for more in ["", "--max-shard-size 100KB", "--dtype float16"] {
        let output = run_full(64, &format!("convert {model} out {more}"), folder.path());
        ended(&output, 1, "out");
        let mut left = vec![folder.path().join("out")];
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let name = path.to_string_lossy();
            assert!(!name.ends_with(".tmp"), "{name} is left");
            if name.ends_with(".safetensors") {
                tch_diffusers::loaders::SafetensorsHeader::read(&path).unwrap();
            }
        }
        std::fs::remove_dir_all(folder.path().join("out")).unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_or_closed_standard_output_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let model = bundled_model().unwrap().display().to_string();
    for arguments in [format!("inspect {model}"), format!("inspect {model} --json"), "env".into()] {
        let script = format!("exec {BINARY} {arguments} > /dev/full");
        let output = Command::new("sh").args(["-c", &script]).current_dir(folder.path()).output().unwrap();
        ended(&output, 1, "standard output");
    }
    let script =
        format!("exec {BINARY} generate --prompt a --steps 1 --width 64 --height 64 --output a.png > /dev/full");
    let output = Command::new("sh").args(["-c", &script]).current_dir(folder.path()).output().unwrap();
    ended(&output, 1, "standard output");
    assert_eq!(names(folder.path()), ["a.png"], "the picture was drawn");
    let script = format!("{BINARY} generate --prompt a --steps 0 --output a.png 2> /dev/full; exit $?");
    let output = Command::new("sh").args(["-c", &script]).current_dir(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "an error that nobody can read is an error still");
}
