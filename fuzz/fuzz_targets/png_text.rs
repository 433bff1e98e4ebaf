//! Texts in pictures: little comes out of a small file, however it is packed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::Cursor;
use std::path::Path;
use tch_diffusers::utils::image::parse_png_text;

/// What the packed texts may come to, as UTF-8 of Latin-1, and the plain ones beside them.
const MOST: usize = 2 * (1 << 24);

fuzz_target!(|bytes: &[u8]| {
    let Ok(texts) = parse_png_text(Path::new("fuzz.png"), Cursor::new(bytes)) else { return };
    let length: usize = texts.iter().map(|(_, text)| text.len()).sum();
    assert!(length <= MOST + 2 * bytes.len(), "{length} bytes of text");
});
