//! `tch-diffusers inspect`: what a model is made of, and whether anything of it is missing.

mod component;
mod table;

use crate::model::model_folder;
use crate::outcome::{ModelError, say};
use anyhow::{Context, bail};
use clap::Args;
use component::Component;
pub(crate) use component::weight_files;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch_diffusers::configuration_utils::{ConfigMap, read_json};

const EXAMPLES: &str = "\
Examples:
  tch-diffusers inspect bundled
  tch-diffusers inspect ./stable-diffusion-v1-5 --variant fp16
  tch-diffusers inspect stable-diffusion-v1-5/stable-diffusion-v1-5 --revision main --json
  tch-diffusers inspect ./stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors

Nothing but the files' headers is read. The exit code is 3 if something is missing or broken.";

/// Prints a model's components, classes, parameters, bytes by dtype, and missing or unexpected files and weights.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Inspect {
    /// A folder of a pipeline or a model, a safetensors file, `owner/name` on the Hub, or `bundled`
    #[arg(default_value = "bundled")]
    model: String,
    /// The spelling of the weights' files, such as fp16
    #[arg(long)]
    variant: Option<String>,
    /// The branch, tag or commit on the Hub [default: main]
    #[arg(long)]
    revision: Option<String>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    path: PathBuf,
    class: String,
    diffusers_version: Option<String>,
    parameters: u64,
    bytes: u64,
    /// In bytes.
    dtypes: BTreeMap<String, u64>,
    components: Vec<Component>,
    /// What belongs to no component.
    unexpected_files: Vec<String>,
}

impl Inspect {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let report = self.report()?;
        if self.json {
            say(serde_json::to_string_pretty(&report)?)?;
        } else {
            say(table::table(&report).trim_end())?;
        }
        let faults: usize = report.components.iter().map(Component::faults).sum();
        if faults > 0 {
            bail!(anyhow::Error::msg(format!("{faults} things are missing or broken, see above")).context(ModelError));
        }
        Ok(())
    }

    fn report(&self) -> anyhow::Result<Report> {
        let file = Path::new(&self.model);
        if file.is_file() {
            return Ok(Report::new(file, String::new(), None, vec![Component::of_file(file)]));
        }
        let folder = model_folder(&self.model, self.revision.as_deref(), self.variant.as_deref(), &[], false)?;
        let variant = self.variant.as_deref();
        let index = folder.join("model_index.json");
        if index.is_file() {
            return pipeline(&folder, &read_json(&index).context(ModelError)?, variant);
        }
        let config = folder.join("config.json");
        if !config.is_file() {
            let text = format!("{}: there is neither a model_index.json nor a config.json", folder.display());
            bail!(anyhow::Error::msg(text).context(ModelError));
        }
        let config: ConfigMap = read_json(&config).context(ModelError)?;
        let of_transformers = config.get("architectures").and_then(|classes| classes.get(0));
        let class = config.get("_class_name").or(of_transformers).and_then(|class| class.as_str()).unwrap_or_default();
        let version = text(&config, "_diffusers_version");
        let component = Component::of_folder(&folder, "", None, class, variant);
        Ok(Report::new(&folder, class.into(), version, vec![component]))
    }
}

fn text(map: &ConfigMap, key: &str) -> Option<String> {
    map.get(key).and_then(|value| value.as_str()).map(Into::into)
}

/// The report on a folder with this `model_index.json`.
fn pipeline(folder: &Path, index: &ConfigMap, variant: Option<&str>) -> anyhow::Result<Report> {
    let named = index.iter().filter_map(|(name, value)| {
        let part = |at: usize| value.get(at).and_then(|text| text.as_str());
        Some((name.as_str(), part(0)?, part(1)?))
    });
    let components: Vec<_> = named
        .map(|(name, library, class)| Component::of_folder(&folder.join(name), name, Some(library), class, variant))
        .collect();
    let class = text(index, "_class_name").unwrap_or_default();
    let mut report = Report::new(folder, class, text(index, "_diffusers_version"), components);
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = index.get(&name).is_some_and(|component| component.get(1).is_some_and(|class| class.is_string()));
        let of_model =
            path.is_dir() || path.extension().is_some_and(|ending| ending == "safetensors" || ending == "bin");
        if of_model && !known && !name.starts_with('.') {
            report.unexpected_files.push(name);
        }
    }
    report.unexpected_files.sort();
    Ok(report)
}

impl Report {
    fn new(path: &Path, class: String, diffusers_version: Option<String>, components: Vec<Component>) -> Self {
        let mut dtypes = BTreeMap::new();
        for (dtype, bytes) in components.iter().flat_map(|component| &component.dtypes) {
            *dtypes.entry(dtype.clone()).or_default() += bytes;
        }
        Self {
            path: path.into(),
            class,
            diffusers_version,
            parameters: components.iter().map(|component| component.parameters).sum(),
            bytes: components.iter().map(|component| component.bytes).sum(),
            dtypes,
            components,
            unexpected_files: vec![],
        }
    }
}
