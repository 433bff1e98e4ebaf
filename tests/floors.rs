//! The house's floors: a module imports from its own floor or from below, never from above.

use std::fs;
use std::path::Path;

const FLOORS: [&[&str]; 6] = [
    &["error", "utils", "configuration_utils"],
    &["torch"],
    &["nn"],
    &["schedulers", "loaders", "hooks"],
    &["models", "image_processor"],
    &["pipelines"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

fn first_word(text: &str) -> &str {
    let text = text.trim_start();
    text.find(|c: char| !c.is_alphanumeric() && c != '_').map_or(text, |end| &text[..end])
}

/// The modules named by each `crate::x` and `crate::{x, y::z}` in `source`.
fn imports(source: &str) -> Vec<&str> {
    let mut found = vec![];
    for rest in source.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => found.push(first_word(rest)),
            Some(group) => {
                let (mut depth, mut start) = (0, 0);
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        '}' | ',' if depth == 0 => {
                            found.push(first_word(&group[start..at]));
                            start = at + 1;
                            if c == '}' {
                                break;
                            }
                        }
                        _ => (),
                    }
                }
            }
        }
    }
    found
}

/// Every import from a higher floor below `folder`; the files directly in `src` are modules of their own.
fn climbing(folder: &Path, inside: Option<usize>, found: &mut Vec<String>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let module = path.file_stem().unwrap().to_str().unwrap();
        let own = inside.or_else(|| floor(module));
        if path.is_dir() {
            climbing(&path, own, found);
        } else if let (Some(own), Some("rs")) = (own, path.extension().and_then(|extension| extension.to_str())) {
            let source = fs::read_to_string(&path).unwrap();
            let above = imports(&source).into_iter().filter(|used| floor(used).is_some_and(|floor| floor > own));
            found.extend(above.map(|used| format!("{} imports `{used}`", path.display())));
        }
    }
}

#[test]
fn imports_point_down() {
    let mut found = vec![];
    climbing(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn imports_are_read() {
    let source = "use crate::{error::{A, B}, models::C,\n  nn};\nuse crate::torch::D;";
    assert_eq!(imports(source), ["error", "models", "nn", "torch"]);
}
