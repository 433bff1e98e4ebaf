//! The one error of the crate.
//!
//! Its kinds are named by what a caller can do about them. libtorch's own text is kept, its C++ frames are not:
//! they go to the debug log.

use std::path::{Path, PathBuf};

/// `Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused the operation.
    #[error("{0}")]
    Torch(String),

    /// The device has no room left. Offload, cast, slice or shrink the batch, then call again.
    #[error("{0}")]
    OutOfMemory(String),

    /// A tensor has a shape that the module cannot take.
    #[error("{0}")]
    Shape(String),

    /// An argument of the call is outside what it may be.
    #[error("{0}")]
    Argument(String),

    /// A configuration file, or a configuration made by hand, does not fit.
    #[error("{0}")]
    Config(String),

    /// diffusers has it, this library does not (yet).
    #[error("{0}")]
    Unsupported(String),

    /// The checkpoint lacks weights that the model needs.
    #[error("{}: missing {} of the model's weights: {}", file.display(), keys.len(), abbreviate(keys))]
    MissingWeights {
        /// The file that was read.
        file: PathBuf,
        /// The keys that were looked for, as the model names them.
        keys: Vec<String>,
    },

    /// The checkpoint's weights have other shapes than the model's.
    #[error("{}: weights of another shape than the model's: {}", file.display(), abbreviate(mismatches))]
    WeightShape {
        /// The file that was read.
        file: PathBuf,
        /// One sentence a weight: key, shape expected, shape found.
        mismatches: Vec<String>,
    },

    /// The tokenizer's files are broken, or the text cannot be tokenized.
    #[error("tokenizer: {0}")]
    Tokenizer(String),

    /// The Hub, or the way there, failed; the message says what to do.
    #[error("{0}")]
    Hub(String),

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A hook handed a module another number of tensors than it takes or returns.
    #[error("a hook passed {found} tensors where the module has {expected}")]
    Arity {
        /// How many the module takes or returns.
        expected: usize,
        /// How many the hook passed.
        found: usize,
    },

    /// `source` happened inside the module at `path`.
    #[error("{path}: {source}")]
    At {
        /// The dotted path of the innermost module that failed, such as `unet.down_blocks.0.resnets.1.conv1`.
        path: String,
        /// The error itself.
        source: Box<Error>,
    },
}

impl Error {
    /// Names the innermost module that failed; modules further out keep that name.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        match self {
            Self::At { .. } => self,
            source if path.is_empty() => source,
            source => Self::At { path: path.into(), source: Box::new(source) },
        }
    }

    /// Puts `component` before the module's path, as in `unet.conv_in`.
    #[must_use]
    pub fn within(self, component: &str) -> Self {
        match self {
            Self::At { path, source } => Self::At { path: format!("{component}.{path}"), source },
            source => Self::At { path: component.into(), source: Box::new(source) },
        }
    }

    /// Names the file that a [`Error::Config`] or [`Error::Unsupported`] is about; other kinds name theirs already.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Config(text) => Self::Config(format!("{}: {text}", path.display())),
            Self::Unsupported(text) => Self::Unsupported(format!("{}: {text}", path.display())),
            other => other,
        }
    }

    /// The error without the path of the module it happened in.
    #[must_use]
    pub fn kind(&self) -> &Self {
        match self {
            Self::At { source, .. } => source.kind(),
            kind => kind,
        }
    }

    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }
}

/// The first few of `items`, and how many more there are.
fn abbreviate(items: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = items.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        let text = match error {
            tch::TchError::Torch(text) => text,
            tch::TchError::Shape(text) => return Self::Shape(text),
            other => return Self::Torch(other.to_string()),
        };
        tracing::debug!(target: "tch_diffusers::libtorch", "{text}");
        let message = text.split("\nException raised from").next().unwrap_or(&text).trim_end().to_string();
        // A dispatcher that finds no kernel lists all backends, over pages.
        if let Some((refusal, _)) =
            message.split_once(" backend. This could be because").filter(|_| message.starts_with("Could not run"))
        {
            return Self::Unsupported(format!(
                "{refusal} backend: it is not part of this libtorch, or was not started"
            ));
        }
        // libtorch's CPU allocator words it as "can't allocate memory", the CUDA one as "out of memory".
        if message.contains("out of memory") || message.contains("can't allocate memory") {
            Self::OutOfMemory(message)
        } else {
            Self::Torch(message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn the_innermost_module_is_named_once() {
        let error = Error::Shape("bad".into()).at("conv_in").at("down_blocks.0").within("unet");
        assert_eq!(error.to_string(), "unet.conv_in: bad");
        assert!(matches!(error.kind(), Error::Shape(_)));
    }

    #[test]
    fn libtorch_frames_are_cut() {
        let (a, b) = (
            Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu)),
            Tensor::zeros([5, 7], (Kind::Float, tch::Device::Cpu)),
        );
        let error = Error::from(a.f_matmul(&b).unwrap_err());
        assert_eq!(error.to_string(), "mat1 and mat2 shapes cannot be multiplied (2x3 and 5x7)");
    }

    #[test]
    fn long_lists_are_abbreviated() {
        let keys = (0..9).map(|i| format!("k{i}")).collect();
        let error = Error::MissingWeights { file: "unet/model.safetensors".into(), keys };
        assert_eq!(
            error.to_string(),
            "unet/model.safetensors: missing 9 of the model's weights: k0, k1, k2, k3, k4 and 4 more"
        );
    }
}
