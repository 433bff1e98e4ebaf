//! T5's tokenizer, from every layout of its files.

use super::clip_tokenizer::{ids, rows, strings};
use crate::support::{cases, generated, json, name, record};
use serde_json::Value;
use std::path::Path;
use tch_diffusers::Error;
use tch_diffusers::models::text_encoders::T5Tokenizer;

const GROUP: &str = "t5_tokenizer";

fn read(case: &Path) -> (T5Tokenizer, Value) {
    (T5Tokenizer::from_pretrained(case).unwrap(), json(&case.join("expected.json")))
}

/// Counts the texts for which `found` is not what transformers says, after naming them.
fn differences<T: PartialEq + std::fmt::Debug>(
    case: &Path,
    expected: &Value,
    of: impl Fn(&Value) -> T,
    found: impl Fn(usize, &str) -> T,
) -> f64 {
    let texts = strings(&json(&generated(GROUP).join("strings.json")));
    let expected = expected.as_array().unwrap();
    assert_eq!(texts.len(), expected.len());
    let different = texts.iter().zip(expected).enumerate().filter(|(index, (text, expected))| {
        let (found, expected) = (found(*index, text), of(expected));
        if found != expected {
            eprintln!("{}: {text:?}\n found    {found:?}\n expected {expected:?}", name(case));
        }
        found != expected
    });
    different.count() as f64
}

#[test]
fn ids_and_texts_equal_transformers() {
    for case in cases(&generated(GROUP)) {
        let (tokenizer, expected) = read(&case);
        let wrong =
            differences(&case, &expected["untruncated"], ids, |_, text| tokenizer.encode_untruncated(text).unwrap());
        record(GROUP, &name(&case), "texts with other ids", wrong, 0.0);
        let wrong = differences(&case, &expected["encoded"], ids, |_, text| tokenizer.encode(text, 12).unwrap());
        record(GROUP, &name(&case), "texts with other ids, cut or padded to 12", wrong, 0.0);
        let decode = |index: usize, _: &str| tokenizer.decode(&ids(&expected["untruncated"][index])).unwrap();
        let wrong = differences(&case, &expected["decoded"], |text| text.as_str().unwrap().to_string(), decode);
        record(GROUP, &name(&case), "ids with another text", wrong, 0.0);
    }
}

#[test]
fn batches_equal_transformers() {
    for case in cases(&generated(GROUP)) {
        let (tokenizer, expected) = read(&case);
        let (mut wrong, mut cut) = (0, 0);
        for batch in expected["batches"].as_array().unwrap() {
            let length = batch["length"].as_u64().unwrap() as usize;
            let found = tokenizer.encode_batch(&strings(&batch["prompts"]), length).unwrap();
            let matrix = |key: &str| batch[key].as_array().unwrap().iter().map(ids).collect::<Vec<_>>();
            wrong += usize::from(rows(&found.input_ids) != matrix("ids"));
            wrong += usize::from(rows(&found.attention_mask) != matrix("mask"));
            cut += usize::from(found.removed_text.is_some());
        }
        assert!(cut > 0, "{}: no batch was cut", name(&case));
        record(GROUP, &name(&case), "batches with other ids or mask", wrong as f64, 0.0);
    }
}

#[test]
fn special_tokens_equal_transformers() {
    for case in cases(&generated(GROUP)) {
        let (tokenizer, expected) = read(&case);
        let specials = &expected["specials"];
        assert_eq!(specials["eos_token"][0], tokenizer.eos_token());
        assert_eq!(specials["eos_token"][1], tokenizer.eos_token_id());
        assert_eq!(specials["pad_token"][0], tokenizer.pad_token());
        assert_eq!(specials["pad_token"][1], tokenizer.pad_token_id());
        assert_eq!(specials["unk_token"][0], tokenizer.unk_token());
        assert_eq!(specials["unk_token"][1].as_i64(), tokenizer.token_to_id(tokenizer.unk_token()));
        assert_eq!(expected["vocab_size"], tokenizer.vocab_size(), "{}", name(&case));
        let limit = tokenizer.model_max_length().map(|limit| limit as u64);
        assert_eq!(expected["model_max_length"].as_u64(), limit, "{}", name(&case));
    }
}

#[test]
fn what_was_cut_is_quoted() {
    let (tokenizer, _) = read(&generated(GROUP).join("spiece"));
    let whole = "a red circle on the blue background";
    let kept = tokenizer.encode_untruncated("a red circle").unwrap().len();
    let found = tokenizer.encode_batch(&[whole], kept).unwrap();
    assert_eq!(found.removed_text.unwrap(), ["on the blue background"]);
    assert_eq!(tokenizer.encode("a", 1).unwrap(), [tokenizer.eos_token_id()]);
    assert!(matches!(tokenizer.encode("a", 0), Err(Error::Argument(text)) if text.contains("`max_length`")));
    assert!(matches!(tokenizer.decode(&[-1]), Err(Error::Argument(_))));
}

#[test]
fn a_saved_tokenizer_reads_back() {
    for case in ["spiece", "hub"] {
        let (tokenizer, _) = read(&generated(GROUP).join(case));
        let saved = tempfile::tempdir().unwrap();
        tokenizer.save_pretrained(saved.path()).unwrap();
        let again = T5Tokenizer::from_pretrained(saved.path()).unwrap();
        let text = "ｆｕｌｌ 猫 <extra_id_3> é";
        assert_eq!(again.encode_untruncated(text).unwrap(), tokenizer.encode_untruncated(text).unwrap());
    }
}

#[test]
fn broken_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = || T5Tokenizer::from_pretrained(folder.path()).unwrap_err();
    let write = |file: &str, bytes: &[u8]| std::fs::write(folder.path().join(file), bytes).unwrap();
    assert!(matches!(error(), Error::Io { path, .. } if path.ends_with("spiece.model")));
    let sound = std::fs::read(generated(GROUP).join("spiece/spiece.model")).unwrap();
    for broken in [&sound[..sound.len() / 2], b"not a model"] {
        write("spiece.model", broken);
        assert!(matches!(error(), Error::Tokenizer(text) if text.contains("spiece.model")));
    }
    let at = |part: &[u8]| sound.windows(part.len()).position(|window| window == part).unwrap();
    // The normaliser's trie begins after its name and the field's head; its first unit leads astray then.
    let mut astray = sound.clone();
    let trie = at(b"nmt_nfkc") + 8 + 4 + 4;
    astray[trie..trie + 4].fill(0xff);
    write("spiece.model", &astray);
    assert!(matches!(error(), Error::Tokenizer(text) if text.contains("precompiled_charsmap")), "{}", error());
    write("spiece.model", &sound);
    write("tokenizer.json", br#"{"model": {"vocab": [["a", 0.0]]}}"#);
    assert!(matches!(error(), Error::Tokenizer(_)));
    write("tokenizer.json", br#"{"model": {"vocab": {"a": 0}}}"#);
    assert!(matches!(error(), Error::Config(text) if text.contains("tokenizer.json: `model.vocab`")));
}
