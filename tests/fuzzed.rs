//! What fuzzing starts from, read once by each reader: the harness of `fuzz/` reaches what it is meant to reach.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use tch_diffusers::CLIPTokenizer;
use tch_diffusers::loaders::{LoraStateDict, SafetensorsHeader, parse_shard_index};
use tch_diffusers::utils::image::parse_png_text;

#[test]
fn a_header_in_memory_is_held_to_the_length_that_is_said() {
    let header = br#"{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    let parse = |bytes: &[u8], size: usize| SafetensorsHeader::parse(Path::new("w"), &mut &*bytes, size as u64);
    assert_eq!(parse(&bytes, bytes.len()).unwrap().tensors[0].shape, [2]);
    for size in [0, 7, 8, bytes.len() - 1, bytes.len() + 1] {
        assert!(parse(&bytes, size).is_err(), "{size}");
    }
    // A file that is shorter than was said, as one that is cut while it is read.
    assert!(parse(&bytes[..20], bytes.len()).is_err());
}

#[test]
fn an_index_in_memory_names_files_of_its_folder_alone() {
    let parse = |text: &str| parse_shard_index(Path::new("index.json"), text.as_bytes().to_vec());
    let shards =
        parse(r#"{"weight_map": {"b": "2.safetensors", "a": "1.safetensors", "c": "1.safetensors"}}"#).unwrap();
    assert_eq!(shards.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["1.safetensors", "2.safetensors"]);
    for text in [r#"{"weight_map": {"a": "../1"}}"#, r#"{"weight_map": {}}"#, "[]", "", "\u{feff}{}"] {
        assert!(parse(text).unwrap_err().to_string().contains("index.json"), "{text}");
    }
}

#[test]
fn a_tokenizer_in_memory_is_the_one_in_its_folder() {
    let folder = tch_diffusers::utils::assets::bundled_model().unwrap().join("tokenizer");
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let files: BTreeMap<String, Vec<u8>> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect();
    let (whole, memory) =
        (CLIPTokenizer::from_pretrained(&folder).unwrap(), CLIPTokenizer::from_files(&files).unwrap());
    let text = "a yellow star, on a black background!";
    assert_eq!(memory.encode(text, 24).unwrap(), whole.encode(text, 24).unwrap());
    assert_eq!(memory.model_max_length().unwrap(), whole.model_max_length().unwrap());
    assert!(memory.save_pretrained(tempfile::tempdir().unwrap().path()).is_err());
    assert!(CLIPTokenizer::from_files(&BTreeMap::new()).is_err());
}

#[test]
fn a_picture_in_memory_gives_its_texts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let picture = image::RgbImage::new(2, 2).into();
    tch_diffusers::utils::image::write_png(&path, &picture, &[("prompt", "\u{e9}toile")]).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let texts = parse_png_text(Path::new("a.png"), Cursor::new(&bytes)).unwrap();
    assert_eq!(texts, [("prompt".to_string(), "\u{e9}toile".to_string())]);
    for length in 0..bytes.len() {
        drop(parse_png_text(Path::new("a.png"), Cursor::new(&bytes[..length])));
    }
}

#[test]
fn a_lora_in_memory_is_the_one_in_its_file() {
    for name in ["peft_conv", "kohya_half", "metadata"] {
        let file = crate::support::generated("lora").join("_files").join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&file).unwrap();
        let (whole, memory) = (LoraStateDict::read(&file).unwrap(), LoraStateDict::parse(&file, &bytes).unwrap());
        assert_eq!(format!("{whole:?}"), format!("{memory:?}"), "{name}");
        for length in [0, 7, 100, bytes.len() - 1] {
            assert!(LoraStateDict::parse(&file, &bytes[..length]).is_err(), "{name}: {length}");
        }
    }
}
