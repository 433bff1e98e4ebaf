//! Headers of safetensors files: what is accepted fits the file to the byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use tch_diffusers::loaders::SafetensorsHeader;

fuzz_target!(|bytes: &[u8]| {
    let size = bytes.len() as u64;
    let Ok(header) = SafetensorsHeader::parse(Path::new("fuzz.safetensors"), &mut &bytes[..], size) else { return };
    let mut end = 0;
    for tensor in &header.tensors {
        assert_eq!(tensor.data_offsets.0, end, "a gap or an overlap");
        assert!(tensor.shape.iter().all(|side| *side >= 0), "a negative side");
        assert!(tensor.numel() <= 8 * tensor.bytes().max(1) || tensor.bytes() == 0, "more elements than bits");
        end = tensor.data_offsets.1;
    }
    assert!(end <= bytes.len(), "tensors beyond the file");
});
