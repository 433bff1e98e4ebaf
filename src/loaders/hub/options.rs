//! What `from_pretrained` may be told about the Hub.

use super::environment;
use super::files::{model_files, pipeline_files};
use super::repository::{Found, Repository};
use crate::configuration_utils::{ConfigMap, read_json};
use crate::error::{Error, Result};
use crate::utils::progress::ProgressBarConfig;
use std::fmt;
use std::path::{Path, PathBuf};

/// How models are had from the Hub, and where they are kept. What is not given is read from the environment.
///
/// # Examples
/// ```no_run
/// use tch_diffusers::StableDiffusionPipeline;
/// let pipe = StableDiffusionPipeline::from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
///     .revision("main")
///     .variant("fp16")
///     .load()?;
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HubOptions {
    /// The branch, tag or commit; `main` by default.
    pub revision: Option<String>,
    /// What lets one in where a repository is private or gated; `HF_TOKEN`, or what `hf auth login` wrote, by default.
    pub token: Option<String>,
    /// The folder of the cache; `HF_HUB_CACHE`, or `hub` in `HF_HOME`, by default.
    pub cache_dir: Option<PathBuf>,
    /// Uses what is in the cache, and asks no server. `HF_HUB_OFFLINE` does the same.
    pub local_files_only: bool,
    /// The server; `HF_ENDPOINT`, or `https://huggingface.co`, by default.
    pub endpoint: Option<String>,
    /// How downloads show that they go on. `HF_HUB_DISABLE_PROGRESS_BARS` has them show nothing.
    pub progress_bar: ProgressBarConfig,
}

impl fmt::Debug for HubOptions {
    /// All but the token, of which it says whether there is one.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HubOptions")
            .field("revision", &self.revision)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("cache_dir", &self.cache_dir)
            .field("local_files_only", &self.local_files_only)
            .field("endpoint", &self.endpoint)
            .field("progress_bar", &self.progress_bar)
            .finish()
    }
}

/// Whether `name` can be that of a repository on the Hub: `owner/name`, of letters, digits, `-`, `_` and `.`.
// Differs from diffusers: a name without an owner is a folder that is not there, not one of the Hub's oldest repositories.
#[must_use]
pub fn is_repository(name: &str) -> bool {
    let fits = |part: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        ends(part.chars().next())
            && ends(part.chars().last())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.contains("..")
            && !part.contains("--")
    };
    name.len() <= 96 && name.split_once('/').is_some_and(|(owner, name)| fits(owner) && fits(name))
}

impl HubOptions {
    /// The folder of the pipeline `name`: itself if it is one, or else the repository of that name, of which the files come
    /// that diffusers would download for `variant` without the components of `passed`. A name that is neither is given back
    /// as it is.
    ///
    /// # Errors
    /// [`Error::Hub`], saying what to do; [`Error::Argument`] if no component has files of the variant, or for a revision
    /// that none can be called; [`Error::Unsupported`] if there are only pickle files; [`Error::Io`] if the cache cannot be
    /// written.
    pub fn pipeline_folder(&self, name: &Path, variant: Option<&str>, passed: &[&str]) -> Result<PathBuf> {
        let Some(id) = self.repository(name) else { return Ok(name.to_path_buf()) };
        match Repository::find(self, id)? {
            Found::Cached(folder) => check_cached(id, folder, passed),
            Found::Listed(repository) => {
                let index: ConfigMap = read_json(&repository.fetch("model_index.json")?)?;
                let files = pipeline_files(id, &repository.files, &index, variant, passed)?;
                repository.fetch_all(&files)
            }
        }
    }

    /// As [`HubOptions::pipeline_folder`], for one model: its `config.json` and the weights called `stem`, which lie in
    /// `subfolder` if one is given. The folder is that around the subfolder.
    ///
    /// # Errors
    /// As [`HubOptions::pipeline_folder`].
    pub fn model_folder(
        &self,
        name: &Path,
        subfolder: Option<&str>,
        stem: &str,
        variant: Option<&str>,
    ) -> Result<PathBuf> {
        let Some(id) = self.repository(name) else { return Ok(name.to_path_buf()) };
        match Repository::find(self, id)? {
            Found::Cached(folder) => Ok(folder),
            Found::Listed(repository) => {
                let files = model_files(id, &repository.files, subfolder, stem, variant)?;
                repository.fetch_all(&files)
            }
        }
    }

    /// As [`HubOptions::pipeline_folder`], with the configurations and the tokenizer of the pipeline, and no weights.
    ///
    /// # Errors
    /// As [`HubOptions::pipeline_folder`].
    pub fn configuration_folder(&self, name: &Path) -> Result<PathBuf> {
        let Some(id) = self.repository(name) else { return Ok(name.to_path_buf()) };
        match Repository::find(self, id)? {
            Found::Cached(folder) => Ok(folder),
            Found::Listed(repository) => {
                let is_text = |file: &&String| file.ends_with(".json") || file.ends_with("/merges.txt");
                let files: Vec<_> = repository.files.iter().filter(is_text).cloned().collect();
                repository.fetch_all(&files)
            }
        }
    }

    /// The one file of the repository `name` that `choose` picks from the paths of all, which are sorted.
    ///
    /// # Errors
    /// Whatever `choose` fails with, and as [`HubOptions::pipeline_folder`].
    pub fn file(&self, name: &str, choose: impl Fn(&[String]) -> Result<String>) -> Result<PathBuf> {
        match Repository::find(self, name)? {
            Found::Cached(folder) => Ok(folder.join(choose(&files_below(&folder)?)?)),
            Found::Listed(repository) => {
                let mut files = repository.files.clone();
                files.sort();
                let file = choose(&files)?;
                if !files.contains(&file) {
                    return Err(Error::Hub(format!("{name}: there is no {file}: check the name and `weight_name`")));
                }
                Ok(repository.fetch_all(std::slice::from_ref(&file))?.join(file))
            }
        }
    }

    /// `name`, if it is a repository's and no folder's.
    pub(crate) fn repository<'a>(&self, name: &'a Path) -> Option<&'a str> {
        name.to_str().filter(|text| !name.is_dir() && is_repository(text))
    }

    pub(super) fn offline(&self) -> bool {
        self.local_files_only || environment::offline()
    }

    pub(super) fn shows_progress(&self) -> ProgressBarConfig {
        let disable = self.progress_bar.disable || environment::switched_on("HF_HUB_DISABLE_PROGRESS_BARS");
        ProgressBarConfig { disable, ..self.progress_bar.clone() }
    }
}

/// The paths of all files below a folder of the cache, sorted.
fn files_below(folder: &Path) -> Result<Vec<String>> {
    let (mut folders, mut files) = (vec![folder.to_path_buf()], vec![]);
    while let Some(inner) = folders.pop() {
        for entry in std::fs::read_dir(&inner).map_err(Error::io(&inner))? {
            let path = entry.map_err(Error::io(&inner))?.path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.extend(path.strip_prefix(folder).ok().and_then(Path::to_str).map(String::from)),
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Holds a folder of the cache to its own index: an interrupted download leaves components out.
fn check_cached(id: &str, folder: PathBuf, passed: &[&str]) -> Result<PathBuf> {
    let index = folder.join("model_index.json");
    let lacks = |what: &str| {
        Error::Hub(format!("{id}: {what} is not in the cache, {}; allow the Hub to be asked once", folder.display()))
    };
    if !index.is_file() {
        return Err(lacks("model_index.json"));
    }
    let index: ConfigMap = read_json(&index)?;
    for (name, component) in index.iter().filter(|(name, _)| !passed.contains(&name.as_str())) {
        let is_component = component.get(1).is_some_and(serde_json::Value::is_string);
        // Neither is read where it is not there.
        let optional = ["safety_checker", "feature_extractor"].contains(&name.as_str());
        if is_component && !optional && !folder.join(name).is_dir() {
            return Err(lacks(&format!("`{name}`")));
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::{HubOptions, is_repository};

    #[test]
    fn repositories_have_an_owner_and_a_name() {
        for name in ["runwayml/stable-diffusion-v1-5", "a/b", "0_x/y.z"] {
            assert!(is_repository(name), "{name}");
        }
        for name in ["", "nowhere", "./a/b", "../b", "/a/b", "a/b/c", "a/..", "a/", "/b", "a/b c", "a--b/c", "~/x"] {
            assert!(!is_repository(name), "{name}");
        }
    }

    #[test]
    fn the_token_is_not_shown() {
        let options = HubOptions { token: Some("hf_secret".into()), ..HubOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
