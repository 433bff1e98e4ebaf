//! The cache's folders, as `huggingface_hub` lays them out.
//!
//! `models--owner--name/blobs/<etag>` are the files, `snapshots/<commit>/<path>` are links to them, `refs/<revision>` holds
//! the commit that a branch or tag was last, and `.locks/models--owner--name/<etag>.lock` is held while a file comes.

use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The part of the cache that belongs to one repository.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    /// That of the repository `id` in the cache at `root`.
    pub(super) fn new(root: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { folder: root.join(&name), locks: root.join(".locks").join(name) }
    }

    /// The folder of the commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where the file's bytes are.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The snapshot of `revision` as it was last seen.
    pub(super) fn cached(&self, revision: &str) -> Option<PathBuf> {
        let known = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok();
        let commit = known.map(|text| text.trim().to_string()).filter(|commit| is_name(commit));
        [commit, Some(revision.to_string()).filter(|revision| is_name(revision))]
            .into_iter()
            .flatten()
            .map(|commit| self.snapshot(&commit))
            .find(|folder| folder.is_dir())
    }

    /// Notes that `revision` is `commit` now.
    pub(super) fn note(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if std::fs::read_to_string(&path).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        create_parent(&path)?;
        replace(&path, |temporary| std::fs::write(temporary, commit))
    }

    /// Waits until no other process brings the file of this `etag`, and keeps others waiting as long as it lives.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => {
                tracing::info!("another process downloads the same file: waiting for it");
                file.lock().map_err(Error::io(&path))?;
            }
            // Some file systems know no locks. Whatever two processes do then, what comes of it is held to its length.
            Err(TryLockError::Error(error)) => tracing::debug!("{}: {error}", path.display()),
        }
        Ok(file)
    }

    /// Puts a link to the file of this `etag` into the snapshot; a copy, where there are no links.
    pub(super) fn link(&self, etag: &str, commit: &str, name: &str) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(name);
        create_parent(&path)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        let blob = self.blob(etag);
        replace(&path, |temporary| symlink(&target, temporary).or_else(|_| std::fs::copy(&blob, temporary).map(drop)))?;
        Ok(path)
    }
}

/// Whether `name` can be a file's or folder's alone.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 128 && name.chars().all(fits) && !name.starts_with('.')
}

/// Whether `path` names something below the folder it is looked for in.
pub(super) fn is_below(path: &str) -> bool {
    let plain =
        !path.is_empty() && !path.contains(['\\', '\0']) && !path.split('/').any(|part| part == "." || part.is_empty());
    plain && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

pub(super) fn create_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).map_err(Error::io(folder))
}

/// Has `make` make a file under another name, and gives it its own: whoever looks sees the old one or the new one, whole.
fn replace(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{}-{}.tmp", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
    let temporary = PathBuf::from(name);
    let _ = std::fs::remove_file(&temporary);
    let made = make(&temporary).and_then(|()| std::fs::rename(&temporary, path));
    if made.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    made.map_err(Error::io(path))
}

#[cfg(unix)]
fn symlink(target: &str, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn symlink(_: &str, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::{is_below, is_name};

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["model_index.json", "unet/config.json", "a/b/c.txt"] {
            assert!(is_below(path), "{path}");
        }
        for path in ["", "/etc/passwd", "../a", "a/../b", "a/..", ".", "./a", "a//b", "a/", "a\\..\\b"] {
            assert!(!is_below(path), "{path}");
        }
        assert!(is_name("0123456789abcdef") && !is_name("..") && !is_name("a/b") && !is_name(""));
    }
}
