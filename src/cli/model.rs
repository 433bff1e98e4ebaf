//! Which model a command works with.

use crate::outcome::ModelError;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use tch_diffusers::loaders::HubOptions;
use tch_diffusers::utils::{assets::bundled_model, progress::ProgressBarConfig};

/// Where the model called `name` lies: the bundled one, a folder, or a repository of the Hub, whose files are downloaded if
/// they are not in the cache, but for those of the components `without`.
pub(crate) fn model_folder(
    name: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    without: &[&str],
    quiet: bool,
) -> anyhow::Result<PathBuf> {
    if name == "bundled" {
        return bundled_model().context(ModelError);
    }
    let progress_bar = ProgressBarConfig { disable: quiet, desc: None };
    let hub = HubOptions { revision: revision.map(Into::into), progress_bar, ..HubOptions::default() };
    let folder = hub.pipeline_folder(Path::new(name), variant, without).context(ModelError)?;
    if !folder.is_dir() {
        bail!(anyhow::Error::msg(format!("{}: there is no such folder", folder.display())).context(ModelError));
    }
    Ok(folder)
}
