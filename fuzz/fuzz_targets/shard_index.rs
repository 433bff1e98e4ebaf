//! Indices of sharded checkpoints: what is accepted names files in the index' own folder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use tch_diffusers::loaders::parse_shard_index;

fuzz_target!(|bytes: &[u8]| {
    let Ok(shards) = parse_shard_index(Path::new("model.safetensors.index.json"), bytes.to_vec()) else { return };
    assert!(!shards.is_empty());
    for (name, _) in &shards {
        let path = Path::new("folder").join(name);
        assert_eq!(path.parent(), Some(Path::new("folder")), "{name} leads out of the folder");
        assert!(name != ".." && name != "." && !name.ends_with('/'), "{name} is no file");
    }
    assert!(shards.windows(2).all(|pair| pair[0].0 < pair[1].0), "a shard twice");
});
