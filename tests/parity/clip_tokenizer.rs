//! CLIP's tokenizer against transformers'.

use crate::support::{cases, generated, json, name, record};
use serde_json::Value;
use std::path::Path;
use tch::{Kind, Tensor};
use tch_diffusers::Error;
use tch_diffusers::models::text_encoders::CLIPTokenizer;

const GROUP: &str = "clip_tokenizer";

pub(super) fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

pub(super) fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_string()).collect()
}

/// The rows of a matrix of ids.
pub(super) fn rows(tensor: &Tensor) -> Vec<Vec<i64>> {
    assert_eq!(tensor.kind(), Kind::Int64);
    tensor.try_into().unwrap()
}

fn read(case: &Path) -> (CLIPTokenizer, Value) {
    (CLIPTokenizer::from_pretrained(case).unwrap(), json(&case.join("expected.json")))
}

/// Counts the texts for which `found` is not what transformers says, after naming them.
fn differences<T: PartialEq + std::fmt::Debug>(
    case: &Path,
    expected: &[Value],
    of: impl Fn(&Value) -> T,
    found: impl Fn(usize, &str) -> T,
) -> f64 {
    let texts = strings(&json(&generated(GROUP).join("strings.json")));
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
        let all = |key: &str| expected[key].as_array().unwrap().clone();
        let untruncated = all("untruncated");
        let wrong = differences(&case, &untruncated, ids, |_, text| tokenizer.encode_untruncated(text).unwrap());
        record(GROUP, &name(&case), "texts with other ids", wrong, 0.0);
        let wrong = differences(&case, &all("encoded"), ids, |_, text| tokenizer.encode(text, 12).unwrap());
        record(GROUP, &name(&case), "texts with other ids, cut or padded to 12", wrong, 0.0);
        let decode = |index: usize, _: &str| tokenizer.decode(&ids(&untruncated[index])).unwrap();
        let wrong = differences(&case, &all("decoded"), |text| text.as_str().unwrap().to_string(), decode);
        record(GROUP, &name(&case), "ids with another text", wrong, 0.0);
    }
}

#[test]
fn batches_and_the_text_cut_off_equal_diffusers() {
    for case in cases(&generated(GROUP)) {
        let (tokenizer, expected) = read(&case);
        let (mut wrong, mut cut) = (0, 0);
        for batch in expected["batches"].as_array().unwrap() {
            let found = tokenizer.encode_batch(&strings(&batch["prompts"]), 77).unwrap();
            let matrix = |key: &str| batch[key].as_array().unwrap().iter().map(ids).collect::<Vec<_>>();
            let removed = (!batch["removed_text"].is_null()).then(|| strings(&batch["removed_text"]));
            cut += usize::from(removed.is_some());
            let same = rows(&found.input_ids) == matrix("input_ids")
                && rows(&found.attention_mask) == matrix("attention_mask")
                && found.removed_text == removed;
            if !same {
                eprintln!("{}: {:?}\n{:?}\n{removed:?}", name(&case), batch["prompts"], found.removed_text);
            }
            wrong += usize::from(!same);
        }
        assert!(cut > 0, "{}: no batch was cut", name(&case));
        record(GROUP, &name(&case), "batches with other ids, mask or removed text", wrong as f64, 0.0);
    }
}

#[test]
fn special_tokens_equal_transformers() {
    for case in cases(&generated(GROUP)) {
        let (tokenizer, expected) = read(&case);
        for (role, token) in [
            ("bos_token", tokenizer.bos_token()),
            ("eos_token", tokenizer.eos_token()),
            ("pad_token", tokenizer.pad_token()),
            ("unk_token", tokenizer.unk_token()),
        ] {
            assert_eq!(expected[role], token, "{}: {role}", name(&case));
        }
        for (role, id) in [
            ("bos_token_id", tokenizer.bos_token_id()),
            ("eos_token_id", tokenizer.eos_token_id()),
            ("pad_token_id", tokenizer.pad_token_id()),
        ] {
            assert_eq!(expected[role], id, "{}: {role}", name(&case));
        }
        assert_eq!(expected["vocab_size"], tokenizer.vocab_size(), "{}", name(&case));
        let limit = tokenizer.model_max_length().ok();
        assert_eq!(expected["model_max_length"].as_u64(), limit.map(|limit| limit as u64), "{}", name(&case));
    }
}

#[test]
fn there_is_no_room_for_less_than_the_special_tokens() {
    let (tokenizer, _) = read(&generated(GROUP).join("tiny_hub"));
    assert_eq!(tokenizer.encode("hello", 2).unwrap(), [tokenizer.bos_token_id(), tokenizer.eos_token_id()]);
    for length in [0, 1, usize::MAX] {
        let error = tokenizer.encode("hello", length).unwrap_err();
        assert!(matches!(&error, Error::Argument(text) if text.contains("`max_length`")), "{error}");
    }
    assert!(matches!(tokenizer.encode_batch(&[""; 0], 77), Err(Error::Argument(_))));
    assert!(matches!(tokenizer.decode(&[-1]), Err(Error::Argument(_))));
}

#[test]
fn broken_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
    let error = || CLIPTokenizer::from_pretrained(folder.path()).unwrap_err();
    assert!(matches!(error(), Error::Io { path, .. } if path.ends_with("vocab.json")));
    write("vocab.json", r#"{"a": 0, "b": "one"}"#);
    assert!(matches!(error(), Error::Config(text) if text.contains("vocab.json")));
    write("vocab.json", r#"{"a": 0, "b": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}"#);
    assert!(matches!(error(), Error::Io { path, .. } if path.ends_with("merges.txt")));
    write("merges.txt", "#version: 0.2\na b c\n");
    assert!(error().to_string().contains("merges.txt: line 2 is no pair"), "{}", error());
    write("merges.txt", "#version: 0.2\na b\n");
    assert!(matches!(error(), Error::Tokenizer(text) if text.contains("ab")));
    write("merges.txt", &format!("{} b\n", "a".repeat(100)));
    assert!(matches!(error(), Error::Tokenizer(text) if text.contains("is not in the vocabulary")));
    write("merges.txt", "");
    assert_eq!(CLIPTokenizer::from_pretrained(folder.path()).unwrap().pad_token_id(), 3);
    write("tokenizer_config.json", r#"{"padding_side": "middle"}"#);
    assert!(matches!(error(), Error::Tokenizer(text) if text.contains("it can be left or right")));
}

#[test]
fn a_vocabulary_of_clips_size_is_read_in_no_time() {
    // As many tokens and merges as CLIP's: all pairs of 221 letters, in the order of their ids.
    let letters: Vec<char> = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='ġ').take(220).collect();
    let pairs: Vec<_> = letters.iter().flat_map(|a| letters.iter().map(move |b| (*a, *b))).collect();
    let mut tokens: Vec<String> = letters.iter().map(char::to_string).collect();
    tokens.extend(letters.iter().map(|letter| format!("{letter}</w>")));
    tokens.extend(pairs.iter().map(|(a, b)| format!("{a}{b}")));
    tokens.extend(["<|startoftext|>", "<|endoftext|>"].map(String::from));
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let merges = pairs.iter().fold("#version: 0.2\n".to_string(), |text, (a, b)| text + &format!("{a} {b}\n"));
    let hub = tempfile::tempdir().unwrap();
    std::fs::write(hub.path().join("vocab.json"), serde_json::to_string(&vocab).unwrap()).unwrap();
    std::fs::write(hub.path().join("merges.txt"), merges).unwrap();
    let saved = tempfile::tempdir().unwrap();
    let merges: Vec<_> = pairs.iter().map(|(a, b)| [a.to_string(), b.to_string()]).collect();
    let whole = serde_json::json!({"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": merges}});
    std::fs::write(saved.path().join("tokenizer.json"), whole.to_string()).unwrap();
    for folder in [hub.path(), saved.path()] {
        let start = std::time::Instant::now();
        let tokenizer = CLIPTokenizer::from_pretrained(folder).unwrap();
        let loaded = start.elapsed();
        assert_eq!(tokenizer.vocab_size(), vocab.len());
        let start = std::time::Instant::now();
        let ids = tokenizer.encode("a photo of an astronaut riding a horse on mars", 77).unwrap();
        eprintln!("{} tokens read in {loaded:?}, a prompt encoded in {:?}", vocab.len(), start.elapsed());
        assert_eq!(ids.len(), 77);
        // About 30 ms on an idle core; other tests run beside this one.
        assert!(loaded < std::time::Duration::from_secs(1), "{loaded:?}");
    }
}
