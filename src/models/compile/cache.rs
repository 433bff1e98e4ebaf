//! The folder of compiled packages, which `python -m tch_diffusers.export_aoti` fills where it is given no `--output`.
//!
//! A package says itself what it was made for, so that one that is stale or foreign is passed over.

use super::{CompileOptions, Part, check_architecture};
use crate::error::{Error, Result};
use crate::models::ModelMixin;
use crate::torch::{AotiPackage, num_threads};
use std::path::{Path, PathBuf};

/// One file of the cache.
#[derive(Debug)]
pub struct CacheEntry {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// The package, or why it does not run here.
    pub package: Result<AotiPackage>,
}

/// Where compiled packages are kept: `TCH_DIFFUSERS_CACHE`, or else `tch-diffusers` in the user's folder for caches.
///
/// # Errors
/// [`Error::Config`] if neither is known.
pub fn cache_folder() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || std::env::home_dir().filter(|path| !path.as_os_str().is_empty());
    let caches = || variable("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
    let own = variable("TCH_DIFFUSERS_CACHE").or_else(|| Some(caches()?.join("tch-diffusers")));
    own.ok_or_else(|| Error::Config("there is no folder for the cache: set TCH_DIFFUSERS_CACHE".into()))
}

/// The packages below `folder`, by name; none where there is no such folder.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub fn cache_entries(folder: &Path) -> Result<Vec<CacheEntry>> {
    let folder = folder.join("aoti");
    let files = match std::fs::read_dir(&folder) {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(Error::io(&folder)(error)),
    };
    let mut paths = vec![];
    for file in files {
        let path = file.map_err(Error::io(&folder))?.path();
        if path.extension().is_some_and(|extension| extension == "pt2") {
            paths.push(path);
        }
    }
    paths.sort();
    let entry = |path: PathBuf| {
        let bytes = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        Ok(CacheEntry { package: AotiPackage::load(&path), bytes, path })
    };
    paths.into_iter().map(entry).collect()
}

/// Deletes the packages below `folder`, and nothing else; says how many there were.
///
/// # Errors
/// [`Error::Io`] naming the first that cannot be deleted.
pub fn clear_cache(folder: &Path) -> Result<usize> {
    let entries = cache_entries(folder)?;
    entries.iter().try_for_each(|entry| std::fs::remove_file(&entry.path).map_err(Error::io(&entry.path)))?;
    Ok(entries.len())
}

/// A package of `folder` for `model`: of its class, configuration, dtype and device, made for this libtorch and this
/// processor with as many threads as there are here, of the same part, and for any size where `options` say so. One for
/// any size comes before those for one, of which the size that will be asked for is not known yet.
pub(super) fn find<M: ModelMixin>(
    model: &M,
    options: &CompileOptions,
    part: Part<'_>,
    folder: &Path,
) -> Result<Option<AotiPackage>> {
    let (threads, on_cuda) = (num_threads()?, model.node().execution_device().is_cuda());
    let fits = |package: &AotiPackage| {
        let contract = package.contract();
        contract.num_threads == threads
            && (contract.device == "cuda") == on_cuda
            && part.is_in(contract)
            && (options.dynamic != Some(true) || contract.models.values().all(|terms| !terms.dimensions.is_empty()))
            && check_architecture(model, contract).is_ok()
    };
    let is_static = |package: &AotiPackage| package.contract().models.values().any(|terms| terms.dimensions.is_empty());
    let entries = cache_entries(folder)?.into_iter().filter_map(|entry| entry.package.ok());
    Ok(entries.filter(fits).min_by_key(is_static))
}
