//! Which files of a repository a pipeline needs.
//!
//! Mirrors `variant_compatible_siblings` of `diffusers/pipelines/pipeline_loading_utils.py` and
//! `DiffusionPipeline.download` at 0.42.1.

use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde_json::Value;

/// What files of weights are called before their variant, shard and ending.
const STEMS: [&str; 3] = ["diffusion_pytorch_model", "pytorch_model", "model"];

/// The files that a pipeline with `index` as its `model_index.json` is read from: those of its components, but of weights
/// only the safetensors files of `variant`, or the plain ones where a component has none of the variant. Components of
/// `passed` are left out. `id` is what the repository is called in errors.
///
/// # Errors
/// [`Error::Argument`] if no component has files of the variant, [`Error::Unsupported`] for a component that has pickle
/// files only.
pub fn pipeline_files(
    id: &str,
    files: &[String],
    index: &ConfigMap,
    variant: Option<&str>,
    passed: &[&str],
) -> Result<Vec<String>> {
    let is_component = |(name, value): &(&String, &Value)| {
        value.get(1).is_some_and(Value::is_string) && !passed.contains(&name.as_str())
    };
    let mut wanted = vec!["model_index.json".to_string()];
    let mut has_variant = false;
    for (component, _) in index.iter().filter(is_component) {
        let prefix = format!("{component}/");
        let inside: Vec<_> = files.iter().filter_map(|file| file.strip_prefix(&prefix)).collect();
        let chosen = match inside.iter().any(|file| is_weights(file)) {
            false => inside.iter().map(|file| (*file).to_string()).collect(),
            true => {
                let (mut chosen, of_variant) = weights(&inside, &STEMS, variant);
                has_variant |= of_variant;
                // diffusers would read the pickle file; a pipeline can do without its safety checker.
                if chosen.is_empty() && component != "safety_checker" {
                    return Err(only_pickle(id, component));
                }
                chosen.extend(inside.iter().filter(|file| **file == "config.json").map(ToString::to_string));
                chosen
            }
        };
        wanted.extend(chosen.into_iter().map(|file| prefix.clone() + &file));
    }
    match variant {
        Some(variant) if !has_variant => {
            Err(Error::Argument(format!("{id}: no component has files of variant `{variant}`")))
        }
        _ => Ok(wanted),
    }
}

/// The files of one model in `subfolder`: `config.json`, and the weights called `stem`.
///
/// # Errors
/// [`Error::Argument`] if there are none of the variant, [`Error::Unsupported`] if there are pickle files only,
/// [`Error::Hub`] if there are none at all.
pub fn model_files(
    id: &str,
    files: &[String],
    subfolder: Option<&str>,
    stem: &str,
    variant: Option<&str>,
) -> Result<Vec<String>> {
    let prefix = subfolder.map_or_else(String::new, |subfolder| format!("{}/", subfolder.trim_matches('/')));
    let inside: Vec<_> = files.iter().filter_map(|file| file.strip_prefix(&prefix)).collect();
    let (chosen, of_variant) = weights(&inside, &[stem], variant);
    if let Some(variant) = variant.filter(|_| !of_variant) {
        return Err(Error::Argument(format!("{id}: {prefix}{stem} has no files of variant `{variant}`")));
    }
    if chosen.is_empty() && inside.iter().any(|file| is_weights(file)) {
        return Err(only_pickle(id, subfolder.unwrap_or(stem)));
    }
    if chosen.is_empty() {
        return Err(Error::Hub(format!(
            "{id}: there is no {prefix}{stem}.safetensors: check the name and `subfolder`"
        )));
    }
    Ok(chosen.into_iter().chain(["config.json".to_string()]).map(|file| prefix.clone() + &file).collect())
}

fn only_pickle(id: &str, component: &str) -> Error {
    Error::Unsupported(format!(
        "{id}: `{component}` has no safetensors files; pickle files can run code and are not read: convert them with \
         `safetensors.torch.save_file(torch.load(file, weights_only=True), ...)`, or look for a newer revision"
    ))
}

/// Whether a file of a component's folder holds weights, of whatever format.
fn is_weights(file: &str) -> bool {
    let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending);
    !file.contains('/') && ["safetensors", "bin", "onnx", "pb", "flashpack"].contains(&ending)
}

/// The safetensors files and indices among `files`, and whether they are of the variant: those of the variant, or in its
/// older spelling, or else the plain ones.
fn weights(files: &[&str], stems: &[&str], variant: Option<&str>) -> (Vec<String>, bool) {
    let named = |spelling: &dyn Fn(&str) -> bool| -> Vec<String> {
        let rest = |file: &str| stems.iter().any(|stem| file.strip_prefix(stem).is_some_and(spelling));
        files.iter().filter(|file| rest(file)).map(ToString::to_string).collect()
    };
    let is_index = |file: &String| file.ends_with(".json");
    if let Some(variant) = variant {
        let of_variant = named(&|rest| {
            let shards = rest.strip_prefix(&format!(".{variant}")).and_then(|rest| rest.strip_suffix(".safetensors"));
            shards.is_some_and(is_shard_or_none) || rest == format!(".safetensors.index.{variant}.json")
        });
        let older = named(&|rest| {
            let shards = rest.strip_suffix(&format!(".{variant}.safetensors"));
            shards.is_some_and(|shards| !shards.is_empty() && is_shard_or_none(shards))
                || rest == format!(".safetensors.{variant}.index.json")
        });
        for spelled in [of_variant, older] {
            if !spelled.iter().all(is_index) {
                return (spelled, true);
            }
        }
    }
    let plain = named(&|rest| {
        rest.strip_suffix(".safetensors").is_some_and(is_shard_or_none) || rest == ".safetensors.index.json"
    });
    (if plain.iter().all(is_index) { vec![] } else { plain }, false)
}

/// `""`, or `-00001-of-00002`.
fn is_shard_or_none(text: &str) -> bool {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = text.strip_prefix('-').and_then(|text| text.split_once("-of-"));
    text.is_empty() || numbers.is_some_and(|(number, count)| is_number(number) && is_number(count))
}
