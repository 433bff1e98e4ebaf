//! One repository at one commit.

use super::cache::{Cache, is_below, is_name};
use super::client::{Client, encoded};
use super::environment;
use super::options::HubOptions;
use super::refusal::{Asked, Refusal};
use crate::error::{Error, Result};
use crate::utils::progress::ProgressBarConfig;
use serde_json::Value;
use std::path::PathBuf;

/// A repository of which the Hub has said what it holds.
pub(super) struct Repository {
    pub(super) client: Client,
    pub(super) cache: Cache,
    pub(super) id: String,
    revision: String,
    pub(super) commit: String,
    /// The paths of its files.
    pub(super) files: Vec<String>,
    pub(super) progress_bar: ProgressBarConfig,
}

/// What is known about a repository.
pub(super) enum Found {
    /// The Hub was not asked, or does not answer: this folder of the cache is what there is.
    Cached(PathBuf),
    /// The Hub says what there is.
    Listed(Box<Repository>),
}

impl Repository {
    /// Looks for the repository `id`, on the Hub or in the cache.
    pub(super) fn find(options: &HubOptions, id: &str) -> Result<Found> {
        let revision = options.revision.clone().unwrap_or_else(|| "main".into());
        if !is_below(&revision) {
            return Err(Error::Argument(format!("{id}: no revision can be called `{revision}`")));
        }
        let root = options.cache_dir.clone().or_else(environment::cache).ok_or_else(|| {
            Error::Argument("there is no home folder to keep the Hub's files in: set HF_HOME or `cache_dir`".into())
        })?;
        let cache = Cache::new(&root, id);
        let cached = cache.cached(&revision);
        if options.offline() {
            return cached.map(Found::Cached).ok_or_else(|| {
                Error::Hub(format!(
                    "{id}: revision `{revision}` is not in the cache, {}, and the Hub is not asked: leave out \
                     `local_files_only` and HF_HUB_OFFLINE once",
                    root.display()
                ))
            });
        }
        let endpoint = options.endpoint.as_ref().map(|url| url.trim_end_matches('/').to_string());
        let endpoint = endpoint.unwrap_or_else(environment::endpoint);
        let token = options.token.clone().or_else(environment::token);
        let asked = Asked { endpoint: &endpoint, id, revision: &revision, file: None, has_token: token.is_some() };
        let explain = |refusal: Refusal| refusal.explain(&asked);
        let client = Client::new(endpoint.clone(), token.clone()).map_err(explain)?;
        // Whoever has the files already is not kept waiting.
        let tries = if cached.is_some() { 1 } else { u32::MAX };
        let url = format!("{endpoint}/api/models/{id}/revision/{}", encoded(&revision, false));
        let listing = match (client.json(&url, tries), cached) {
            (Ok(listing), _) => listing,
            (Err(refusal), Some(folder)) if refusal.is_passing() => {
                tracing::warn!("{}; going on with what is in the cache", explain(refusal));
                return Ok(Found::Cached(folder));
            }
            (Err(refusal), _) => return Err(explain(refusal)),
        };
        let (commit, files) =
            read_listing(&listing).map_err(|why| explain(Refusal::Foreign(format!("{url}: {why}"))))?;
        let progress_bar = options.shows_progress();
        let id = id.into();
        Ok(Found::Listed(Box::new(Self { client, cache, id, revision, commit, files, progress_bar })))
    }

    /// Brings all `files` here that are not yet, and notes that the revision is this commit. Gives the snapshot's folder.
    pub(super) fn fetch_all(&self, files: &[String]) -> Result<PathBuf> {
        for file in files {
            self.fetch(file)?;
        }
        // Not before: whoever goes on without the Hub then finds the last snapshot that is whole.
        self.cache.note(&self.revision, &self.commit)?;
        Ok(self.cache.snapshot(&self.commit))
    }

    pub(super) fn explain(&self, refusal: &Refusal, file: &str) -> Error {
        let has_token = self.client.has_token();
        let (endpoint, id, revision) = (&self.client.endpoint, &self.id, &self.revision);
        refusal.explain(&Asked { endpoint, id, revision, file: Some(file), has_token })
    }

    /// Where the Hub has the file.
    pub(super) fn url(&self, file: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.client.endpoint, self.id, self.commit, encoded(file, true))
    }
}

/// The commit and the files of what the Hub says about a revision.
fn read_listing(listing: &Value) -> Result<(String, Vec<String>), String> {
    let commit =
        listing.get("sha").and_then(Value::as_str).filter(|commit| is_name(commit)).ok_or("it has no `sha`")?;
    let siblings = listing.get("siblings").and_then(Value::as_array).ok_or("it has no `siblings`")?;
    let names = siblings.iter().filter_map(|file| file.get("rfilename")?.as_str());
    // What would lie outside the snapshot is none of a model's files.
    let files = names.filter(|name| is_below(name)).map(Into::into).collect();
    Ok((commit.into(), files))
}
