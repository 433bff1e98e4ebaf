//! What the Hub's refusals mean, and what to do about each.

use crate::error::Error;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The server answered, but not with what was asked for.
    Status {
        /// The HTTP status.
        status: u16,
        /// `X-Error-Code`, the Hub's own word for it.
        code: String,
        /// `X-Error-Message`.
        message: String,
    },
    /// There was no answer.
    Unreachable(String),
    /// The answer was none of the Hub's.
    Foreign(String),
}

impl Refusal {
    /// Whether asking again can help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Unreachable(_) => true,
            Self::Foreign(_) => false,
        }
    }

    /// The error, with what to do about it. `asked` is what was asked for: the repository, the revision and perhaps a file.
    pub(super) fn explain(&self, asked: &Asked<'_>) -> Error {
        let Asked { endpoint, id, revision, file, has_token } = asked;
        let text = match self {
            Self::Unreachable(why) => format!(
                "{endpoint} cannot be reached ({why}): check the network, the proxy and HF_ENDPOINT; what is in the cache \
                 can be used with `local_files_only` or HF_HUB_OFFLINE=1"
            ),
            Self::Foreign(why) => {
                format!("{endpoint} does not answer as the Hub does ({why}): check HF_ENDPOINT and the proxy")
            }
            Self::Status { status, code, message } => match (*status, code.as_str()) {
                (401 | 403, "GatedRepo") => format!(
                    "the repository is gated ({status}): ask for access at {endpoint}/{id}, and set HF_TOKEN to a token of \
                     the account that has it"
                ),
                (404, "RevisionNotFound") => {
                    format!(
                        "the repository has no revision `{revision}` ({status}): {endpoint}/{id}/tree/main shows which it has"
                    )
                }
                (404, "EntryNotFound") => {
                    let file = file.unwrap_or("the file");
                    format!("the repository has no `{file}` in revision `{revision}` ({status})")
                }
                (401, _) | (404, "RepoNotFound") if *has_token => format!(
                    "the Hub shows the token that was sent no such repository ({status}): check the name, and that the token \
                     is valid and may read it"
                ),
                (401, _) | (404, "RepoNotFound") => format!(
                    "the Hub shows no such repository ({status}): check the name; if it is private or gated, set HF_TOKEN; if \
                     a folder was meant, there is none of that name"
                ),
                (403, _) => format!("the Hub refuses ({status}): {message}; the token may lack the right to read it"),
                (404, _) => format!("not found ({status}): {message}; check the name and HF_ENDPOINT"),
                (429, _) => {
                    format!("the Hub is asked too often ({status}): wait a little; with a token the limit is higher")
                }
                (500.., _) => format!(
                    "the Hub is in trouble ({status}, asked several times): try again later; what is in the cache can be used \
                     with `local_files_only` or HF_HUB_OFFLINE=1"
                ),
                _ => format!("the Hub answers {status}: {message}"),
            },
        };
        let what = file.map_or_else(|| (*id).to_string(), |file| format!("{id}: {file}"));
        Error::Hub(format!("{what}: {text}"))
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) endpoint: &'a str,
    pub(super) id: &'a str,
    pub(super) revision: &'a str,
    pub(super) file: Option<&'a str>,
    pub(super) has_token: bool,
}
