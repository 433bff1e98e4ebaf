//! What the tests share: diffusers' own results, and the table of differences to them.

mod checkpoint;
mod hub_server;
mod simulated;
mod transfers;

pub(crate) use checkpoint::Checkpoint;
pub(crate) use hub_server::{COMMIT, Fault, HubServer};
use serde_json::Value;
pub(crate) use simulated::Simulated;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tch::Tensor;
pub(crate) use transfers::transfers;

/// The folder of what `tests/fixtures/make.py` wrote for `group`; `TCH_DIFFUSERS_FIXTURES` says where else to look.
pub(crate) fn generated(group: &str) -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/generated");
    let folder = std::env::var_os("TCH_DIFFUSERS_FIXTURES").map_or_else(here, PathBuf::from).join(group);
    assert!(folder.is_dir(), "{} is missing: run `make fixtures`", folder.display());
    folder
}

/// The folders directly below `folder`, sorted: one for each case. Those that begin with `_` are shared by cases.
pub(crate) fn cases(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<_> = entries.filter(|path| path.is_dir() && !name(path).starts_with('_')).collect();
    cases.sort();
    assert!(!cases.is_empty(), "{} holds no cases", folder.display());
    cases
}

/// The name of a case's folder.
pub(crate) fn name(case: &Path) -> String {
    case.file_name().unwrap().to_string_lossy().into_owned()
}

/// All tensors of a safetensors file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let read = Tensor::read_safetensors(path);
    read.unwrap_or_else(|error| panic!("{}: {error}", path.display())).into_iter().collect()
}

/// A JSON file.
pub(crate) fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Writes one line of the parity table, and holds `difference` to `bound`.
pub(crate) fn record(group: &str, case: &str, quantity: &str, difference: f64, bound: f64) {
    static TABLE: Mutex<()> = Mutex::new(());
    let guard = TABLE.lock().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/parity");
    std::fs::create_dir_all(&folder).unwrap();
    let line = serde_json::json!({
        "group": group, "case": case, "quantity": quantity, "difference": difference, "bound": bound,
    });
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("table.jsonl")).unwrap();
    writeln!(file, "{line}").unwrap();
    drop(guard);
    assert!(difference <= bound, "{group}/{case}: {quantity} differs by {difference:e}, more than {bound:e}");
}
