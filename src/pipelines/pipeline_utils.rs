//! What pipelines share: the index of their components, and the ways to say a prompt.
//!
//! Mirrors `diffusers/pipelines/pipeline_utils.py` and `pipeline_loading_utils.py` at 0.42.1.

use crate::configuration_utils::{ConfigMap, DIFFUSERS_VERSION, read_json};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tch::Tensor;

/// `model_index.json`: which pipeline a folder holds, and of which classes its components are.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelIndex {
    path: PathBuf,
    map: ConfigMap,
}

impl ModelIndex {
    /// Reads the index of `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is none, [`Error::Config`] if it is broken.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("model_index.json");
        let map = read_json(&path)?;
        Ok(Self { path, map })
    }

    /// The pipeline's class, such as `StableDiffusionPipeline`.
    #[must_use]
    pub fn class_name(&self) -> &str {
        self.map.get("_class_name").and_then(Value::as_str).unwrap_or_default()
    }

    /// The class of a component, such as `UNet2DConditionModel`; `None` if the pipeline has none of that name.
    #[must_use]
    pub fn component(&self, name: &str) -> Option<&str> {
        self.map.get(name)?.get(1)?.as_str()
    }

    /// What the index says of the pipeline as a whole, such as `requires_safety_checker`; none if it does not.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.map.get(name)?.as_bool()
    }

    /// Holds the component to one of the classes that are supported.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such component, [`Error::Unsupported`] if it is of another class.
    pub fn require(&self, name: &str, classes: &[&str]) -> Result<()> {
        match self.component(name) {
            Some(class) if classes.contains(&class) => Ok(()),
            Some(class) => Err(Error::Unsupported(format!(
                "{}: `{name}` is a {class}; supported is {}",
                self.path.display(),
                classes.join(" or ")
            ))),
            None => Err(Error::Config(format!("{}: there is no `{name}`", self.path.display()))),
        }
    }

    /// As [`ModelIndex::require`], for each component that was not passed in, as the flag says.
    pub(crate) fn require_all(&self, components: &[(&str, bool, &[&str])]) -> Result<()> {
        let mut read = components.iter().filter(|(_, is_passed, _)| !is_passed);
        read.try_for_each(|(name, _, classes)| self.require(name, classes))
    }

    /// As [`ModelIndex::require_all`], for components that a pipeline can be without.
    pub(crate) fn require_those_there(&self, components: &[(&str, bool, &[&str])]) -> Result<()> {
        let mut read = components.iter().filter(|(name, is_passed, _)| !is_passed && self.component(name).is_some());
        read.try_for_each(|(name, _, classes)| self.require(name, classes))
    }
}

/// The contents of a `model_index.json` for a pipeline of these components: name, library and class of each.
pub(crate) fn model_index(class_name: &str, components: &[(&str, &str, &str)]) -> ConfigMap {
    let mut map = ConfigMap::new();
    map.insert("_class_name".into(), class_name.into());
    map.insert("_diffusers_version".into(), DIFFUSERS_VERSION.into());
    for (name, library, class) in components {
        let absent = class.is_empty();
        map.insert((*name).into(), if absent { json!([null, null]) } else { json!([library, class]) });
    }
    map
}

/// `[batch, ..]` to `[batch * images, ..]`, each item's copies side by side.
pub(super) fn repeat_for_images(embeds: &Tensor, images: i64) -> Result<Tensor> {
    if images == 1 {
        return Ok(embeds.shallow_clone());
    }
    let mut size = embeds.size();
    let mut repeats = vec![1; size.len()];
    let (Some(batch), Some(second)) = (size.first_mut(), repeats.get_mut(1)) else {
        return Err(Error::Shape(format!("embeddings have at least two dimensions, got {:?}", embeds.size())));
    };
    (*batch, *second) = (*batch * images, images);
    Ok(embeds.f_repeat(&repeats)?.f_view(size.as_slice())?)
}

/// One prompt, or one for each picture of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A single text.
    One(String),
    /// A list of texts: a batch, even if it is a list of one.
    Many(Vec<String>),
}

impl Prompt {
    /// The texts, in order.
    #[must_use]
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts.iter().map(String::as_str).collect(),
        }
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::One(text.into())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::One(text)
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Self::One(text.clone())
    }
}

impl<Text: Into<String>> From<Vec<Text>> for Prompt {
    fn from(texts: Vec<Text>) -> Self {
        Self::Many(texts.into_iter().map(Into::into).collect())
    }
}

impl<Text: Into<String>, const N: usize> From<[Text; N]> for Prompt {
    fn from(texts: [Text; N]) -> Self {
        Self::Many(texts.into_iter().map(Into::into).collect())
    }
}

impl<Text: AsRef<str>> From<&[Text]> for Prompt {
    fn from(texts: &[Text]) -> Self {
        Self::Many(texts.iter().map(|text| text.as_ref().to_string()).collect())
    }
}
