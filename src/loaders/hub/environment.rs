//! What the environment says about the Hub.

use std::path::PathBuf;
use std::time::Duration;

/// A variable that is set to something.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Whether a variable is switched on, as `huggingface_hub` reads it.
pub(super) fn switched_on(name: &str) -> bool {
    variable(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
}

/// `HF_HUB_OFFLINE`, or transformers' older `TRANSFORMERS_OFFLINE`.
pub(super) fn offline() -> bool {
    switched_on("HF_HUB_OFFLINE") || (variable("HF_HUB_OFFLINE").is_none() && switched_on("TRANSFORMERS_OFFLINE"))
}

/// `HF_ENDPOINT`, without a slash at its end.
pub(super) fn endpoint() -> String {
    variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()).trim_end_matches('/').into()
}

/// Where the cache is: `HF_HUB_CACHE`, or else `hub` in [`home`].
pub(super) fn cache() -> Option<PathBuf> {
    let named = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    named.map(|path| expanded(&path)).or_else(|| Some(home()?.join("hub")))
}

/// The token of `HF_TOKEN`, or the one that `hf auth login` wrote, unless `HF_HUB_DISABLE_IMPLICIT_TOKEN` is on.
pub(super) fn token() -> Option<String> {
    if switched_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let named = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let written = || {
        let path = variable("HF_TOKEN_PATH").map(|path| expanded(&path)).or_else(|| Some(home()?.join("token")))?;
        std::fs::read_to_string(path).ok()
    };
    named.or_else(written).map(|token| token.trim().to_string()).filter(|token| !token.is_empty())
}

/// How long a connection may be silent.
pub(super) fn timeout() -> Duration {
    let seconds = variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|seconds| seconds.parse().ok()).filter(|&s| s > 0);
    Duration::from_secs(seconds.unwrap_or(10))
}

/// The proxy for requests to `url`, unless `NO_PROXY` names its host or the host is this machine.
pub(super) fn proxy(url: &str) -> Option<String> {
    let either = |name: &str| variable(name).or_else(|| variable(&name.to_lowercase()));
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let own = host == "localhost" || host.starts_with("127.") || host == "[::1]";
    let excepted = either("NO_PROXY").is_some_and(|list| {
        let mut names = list.split(',').map(|name| name.trim().trim_start_matches('.'));
        names.any(|name| name == "*" || (!name.is_empty() && (host == name || host.ends_with(&format!(".{name}")))))
    });
    let named = either(&format!("{}_PROXY", scheme.to_uppercase())).or_else(|| either("ALL_PROXY"));
    named.filter(|_| !own && !excepted)
}

/// `HF_HOME`, or else `huggingface` in the user's folder for caches.
fn home() -> Option<PathBuf> {
    let named = variable("HF_HOME").map(|path| expanded(&path));
    let caches = || variable("XDG_CACHE_HOME").map(|path| expanded(&path)).or_else(|| Some(user()?.join(".cache")));
    named.or_else(|| Some(caches()?.join("huggingface")))
}

fn user() -> Option<PathBuf> {
    std::env::home_dir().filter(|path| !path.as_os_str().is_empty())
}

/// `~` is the user's folder.
fn expanded(path: &str) -> PathBuf {
    match path.strip_prefix('~').map(|rest| rest.trim_start_matches('/')) {
        Some(rest) if path == "~" || path.starts_with("~/") => {
            user().map_or_else(|| path.into(), |home| home.join(rest))
        }
        _ => path.into(),
    }
}
