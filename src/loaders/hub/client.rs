//! Requests to the Hub.
//!
//! Differs from diffusers: files come by plain HTTP, which the Hub offers beside its Xet protocol. The crate `hf-hub` is
//! not used: it brings an asynchronous runtime and the Xet client, does not go on where a download was cut, and does not
//! hold a file to its length.

use super::environment;
use super::refusal::Refusal;
use std::io::Read;
use std::time::Duration;

/// How often a request is tried, and what is waited before the second time, three times as long before each further one.
const TRIES: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(300);

/// How many redirects in a row are followed.
const REDIRECTS: usize = 10;

/// How large the listing of a repository may be, in bytes.
const MAX_LISTING: u64 = 1 << 26;

/// The Hub at an endpoint. It holds a token, and so has no `Debug`.
pub(super) struct Client {
    agent: ureq::Agent,
    pub(super) endpoint: String,
    token: Option<String>,
}

/// Which redirects are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// Those that stay on the server: a repository that was renamed.
    Own,
    /// All of them: to where the bytes are.
    All,
}

impl Client {
    pub(super) fn new(endpoint: String, token: Option<String>) -> Result<Self, Refusal> {
        let mut builder = ureq::AgentBuilder::new()
            .redirects(0)
            .timeout_connect(Duration::from_secs(10))
            .timeout_read(environment::timeout())
            .user_agent(concat!("tch-diffusers/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = environment::proxy(&endpoint) {
            let proxy =
                ureq::Proxy::new(&proxy).map_err(|error| Refusal::Unreachable(format!("the proxy: {error}")))?;
            builder = builder.proxy(proxy);
        }
        Ok(Self { agent: builder.build(), endpoint, token })
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The answer's JSON.
    pub(super) fn json(&self, url: &str, tries: u32) -> Result<serde_json::Value, Refusal> {
        let response = retried(tries.min(TRIES), || {
            let response = self.send("GET", url, None, Follow::All)?;
            let mut bytes = vec![];
            let read = response.into_reader().take(MAX_LISTING).read_to_end(&mut bytes);
            read.map(|_| bytes).map_err(|error| Refusal::Unreachable(error.to_string()))
        })?;
        serde_json::from_slice(&response).map_err(|error| Refusal::Foreign(format!("{url}: {error}")))
    }

    /// The headers that the Hub itself has for a file.
    pub(super) fn head(&self, url: &str) -> Result<ureq::Response, Refusal> {
        retried(TRIES, || self.send("HEAD", url, None, Follow::Own))
    }

    /// A file's bytes, from byte `from` on.
    pub(super) fn get(&self, url: &str, from: u64) -> Result<ureq::Response, Refusal> {
        self.send("GET", url, Some(from).filter(|&from| from > 0), Follow::All)
    }

    fn send(&self, method: &str, url: &str, from: Option<u64>, follow: Follow) -> Result<ureq::Response, Refusal> {
        let mut url = url.to_string();
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.request(method, &url).set("Accept-Encoding", "identity");
            // A token is for the Hub alone, not for where it sends one.
            if let Some(token) = self.token.as_ref().filter(|_| authority(&url) == authority(&self.endpoint)) {
                request = request.set("Authorization", &format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.set("Range", &format!("bytes={from}-"));
            }
            let response = match request.call() {
                Ok(response) => response,
                Err(ureq::Error::Status(status, response)) => return Err(refused(status, &response)),
                Err(ureq::Error::Transport(error)) => return Err(Refusal::Unreachable(error.to_string())),
            };
            if !matches!(response.status(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let Some(next) = response.header("Location").and_then(|location| joined(&url, location)) else {
                return Err(Refusal::Foreign(format!("{url}: a redirect to nowhere")));
            };
            if follow == Follow::Own && authority(&next) != authority(&url) {
                return Ok(response);
            }
            url = next;
        }
        Err(Refusal::Foreign(format!("{url}: more than {REDIRECTS} redirects")))
    }
}

/// Tries again where that can help.
fn retried<T>(tries: u32, mut ask: impl FnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let mut tried = 1;
    loop {
        match ask() {
            Err(refusal) if refusal.is_passing() && tried < tries => {
                tracing::info!("{refusal:?}: asking again");
                wait(tried);
                tried += 1;
            }
            done => return done,
        }
    }
}

/// Waits before the try after the first `tried`; longer each time.
pub(super) fn wait(tried: u32) {
    std::thread::sleep(FIRST_WAIT * 3u32.pow(tried.clamp(1, TRIES) - 1));
}

fn refused(status: u16, response: &ureq::Response) -> Refusal {
    let header = |name| response.header(name).unwrap_or_default().to_string();
    Refusal::Status { status, code: header("X-Error-Code"), message: header("X-Error-Message") }
}

/// Host and port of a URL, with its scheme.
fn authority(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Where a redirect from `url` leads.
fn joined(url: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_string());
    }
    location.starts_with('/').then(|| format!("{}{location}", authority(url)))
}

/// A path or a revision as a part of a URL; `/` stays if `keeps_slashes`.
pub(super) fn encoded(text: &str, keeps_slashes: bool) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => url.push(byte.into()),
            b'/' if keeps_slashes => url.push('/'),
            _ => url += &format!("%{byte:02X}"),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::{authority, encoded, joined};

    #[test]
    fn redirects_are_joined_to_where_they_come_from() {
        let url = "https://hub.example:8443/a/b?c=d/e";
        assert_eq!(authority(url), "https://hub.example:8443");
        assert_eq!(authority("https://hub.example"), "https://hub.example");
        assert_eq!(joined(url, "/x/y").as_deref(), Some("https://hub.example:8443/x/y"));
        assert_eq!(joined(url, "http://other/z").as_deref(), Some("http://other/z"));
        assert_eq!(joined(url, "ftp://other/z"), None);
    }

    #[test]
    fn what_stands_in_a_url_is_spelled_for_it() {
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encoded("unet/a b%.json", true), "unet/a%20b%25.json");
    }
}
