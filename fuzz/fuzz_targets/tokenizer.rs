//! Tokenizers: one that is accepted encodes any text to the length that was asked for.
//!
//! The input is the files, a byte 0xFF between them, which is in no UTF-8 text: a prompt, then `tokenizer_config.json`,
//! `vocab.json` and `merges.txt`; or a prompt, `tokenizer_config.json` and `tokenizer.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tch_diffusers::CLIPTokenizer;

const FILES: [&str; 5] =
    ["vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"];

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.split(|byte| *byte == 0xff);
    let prompt = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let config = parts.next().unwrap_or_default();
    let rest: Vec<_> = parts.collect();
    let names = if rest.len() == 1 { &FILES[4..] } else { &FILES[..4] };
    let mut files: std::collections::BTreeMap<String, Vec<u8>> =
        names.iter().zip(rest).map(|(name, part)| ((*name).to_string(), part.to_vec())).collect();
    if !config.is_empty() {
        files.insert("tokenizer_config.json".into(), config.to_vec());
    }
    let Ok(tokenizer) = CLIPTokenizer::from_files(&files) else { return };
    if let Ok(ids) = tokenizer.encode(&prompt, 9) {
        assert_eq!(ids.len(), 9);
        let _ = tokenizer.decode(&ids);
    }
    let _ = tokenizer.encode_untruncated(&prompt);
});
