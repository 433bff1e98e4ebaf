//! Which file a LoRA is read from, and what it is called then.
//!
//! Mirrors `_fetch_state_dict` and `_best_guess_weight_name` of `diffusers/loaders/lora_base.py` at 0.42.1.

use super::LoraStateDict;
use super::state_dict::pickle;
use crate::error::{Error, Result};
use crate::loaders::HubOptions;
use std::path::{Path, PathBuf};

/// What the file is called in a folder of diffusers'.
pub(super) const LORA_WEIGHT_NAME_SAFE: &str = "pytorch_lora_weights.safetensors";

/// What `load_lora_weights` may be told.
///
/// # Examples
/// ```
/// use tch_diffusers::loaders::LoraOptions;
/// let options = LoraOptions::default().weight_name("pixel-art.safetensors").adapter_name("pixel");
/// assert_eq!(options.adapter_name.as_deref(), Some("pixel"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoraOptions {
    /// The file in the folder or the repository; the only one that can be meant by default.
    pub weight_name: Option<String>,
    /// What the adapter is called from then on; `default_0`, `default_1` ... by default.
    pub adapter_name: Option<String>,
    /// The folder inside the given one.
    pub subfolder: Option<String>,
    /// How the file is had from the Hub, where a repository is named.
    pub hub: HubOptions,
}

impl LoraOptions {
    /// Sets [`LoraOptions::weight_name`].
    #[must_use]
    pub fn weight_name(mut self, weight_name: impl Into<String>) -> Self {
        self.weight_name = Some(weight_name.into());
        self
    }

    /// Sets [`LoraOptions::adapter_name`].
    #[must_use]
    pub fn adapter_name(mut self, adapter_name: impl Into<String>) -> Self {
        self.adapter_name = Some(adapter_name.into());
        self
    }

    /// Sets [`LoraOptions::subfolder`].
    #[must_use]
    pub fn subfolder(mut self, subfolder: impl Into<String>) -> Self {
        self.subfolder = Some(subfolder.into());
        self
    }

    /// Sets [`LoraOptions::hub`].
    #[must_use]
    pub fn hub(mut self, hub: HubOptions) -> Self {
        self.hub = hub;
        self
    }

    /// The file that `source` means: itself, the file in a folder, or that in a repository of the Hub, which comes then.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::Unsupported`] if there are pickle files only, and as
    /// [`HubOptions::pipeline_folder`].
    pub fn file(&self, source: &Path) -> Result<PathBuf> {
        if source.is_file() {
            return Ok(source.to_path_buf());
        }
        if let Some(id) = self.hub.repository(source) {
            return self.hub.file(id, |files| self.choose(source, files));
        }
        let folder = self.subfolder.as_ref().map_or_else(|| source.to_path_buf(), |inner| source.join(inner));
        if let Some(name) = &self.weight_name {
            let file = folder.join(name);
            return match file.is_file() {
                true => Ok(file),
                false => Err(Error::io(file)(std::io::ErrorKind::NotFound.into())),
            };
        }
        let entries = std::fs::read_dir(&folder).map_err(Error::io(&folder))?;
        let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(folder.join(best_guess(&folder, &names)?))
    }

    /// The path of the file among those of a repository, which are sorted.
    ///
    /// # Errors
    /// As [`LoraOptions::file`].
    pub fn choose(&self, repository: &Path, files: &[String]) -> Result<String> {
        let prefix = self.subfolder.as_ref().map_or_else(String::new, |inner| format!("{}/", inner.trim_matches('/')));
        if let Some(name) = &self.weight_name {
            return Ok(prefix + name);
        }
        let inside: Vec<_> = files.iter().filter_map(|file| file.strip_prefix(&prefix)).map(String::from).collect();
        Ok(prefix + &best_guess(repository, &inside)?)
    }

    /// Reads the LoRA that `source` means.
    ///
    /// # Errors
    /// As [`LoraOptions::file`] and [`LoraStateDict::read`].
    pub fn read(&self, source: &Path) -> Result<LoraStateDict> {
        LoraStateDict::read(self.file(source)?)
    }
}

/// The name that can be meant, of those that are sorted.
fn best_guess(folder: &Path, names: &[String]) -> Result<String> {
    let of_training = |name: &str| ["scheduler", "optimizer", "checkpoint"].iter().any(|part| name.contains(part));
    let ends = |ending: &str| names.iter().filter(|name| name.ends_with(ending) && !of_training(name)).collect();
    let found: Vec<&String> = ends(".safetensors");
    let own = found.iter().find(|name| name.ends_with(LORA_WEIGHT_NAME_SAFE));
    let Some(name) = own.or(found.first()) else {
        let pickles: Vec<&String> = ends(".bin");
        return Err(match pickles.first() {
            Some(name) => pickle(&folder.join(name)),
            None => Error::io(folder.join(LORA_WEIGHT_NAME_SAFE))(std::io::ErrorKind::NotFound.into()),
        });
    };
    if found.len() > 1 && own.is_none() {
        let others = found.len() - 1;
        tracing::warn!("{}: of {} files {name} is read: name another by `weight_name`", folder.display(), others + 1);
    }
    Ok((*name).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_can_be_meant_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let named = |name: &str| LoraOptions::default().weight_name(name).file(path);
        assert!(matches!(LoraOptions::default().file(path), Err(Error::Io { .. })));
        for (name, expected) in [
            ("a.bin", None),
            ("optimizer.safetensors", None),
            ("b.safetensors", Some("b.safetensors")),
            ("a.safetensors", Some("a.safetensors")),
            (LORA_WEIGHT_NAME_SAFE, Some(LORA_WEIGHT_NAME_SAFE)),
        ] {
            std::fs::write(path.join(name), "").unwrap();
            let found = LoraOptions::default().file(path);
            match expected {
                Some(expected) => assert_eq!(found.unwrap(), path.join(expected)),
                None => assert!(matches!(found, Err(Error::Unsupported(_))), "{name}: {found:?}"),
            }
        }
        assert_eq!(named("b.safetensors").unwrap(), path.join("b.safetensors"));
        assert!(matches!(named("c.safetensors"), Err(Error::Io { .. })));
        assert_eq!(LoraOptions::default().file(&path.join("b.safetensors")).unwrap(), path.join("b.safetensors"));
    }
}
