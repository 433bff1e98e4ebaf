//! The non-linearities that configurations name.

use crate::error::{Error, Result};
use crate::torch::{NumberExt, TensorExt};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use tch::Tensor;

/// A non-linearity, under the names that `act_fn` and `hidden_act` use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(x)`: `silu`, `swish`.
    #[default]
    Silu,
    /// `gelu`, by the error function.
    Gelu,
    /// `x sigmoid(1.702 x)`: `quick_gelu`, CLIP's own.
    QuickGelu,
    /// `mish`.
    Mish,
    /// `relu`.
    Relu,
}

impl Activation {
    /// Applies it to each element.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the result has no room.
    pub fn forward(self, hidden_states: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => hidden_states.f_silu()?,
            Self::Gelu => hidden_states.f_gelu("none")?,
            Self::QuickGelu => hidden_states.f_mul(&hidden_states.times(1.702)?.f_sigmoid()?)?,
            Self::Mish => hidden_states.f_mish()?,
            Self::Relu => hidden_states.f_relu()?,
        })
    }
}

impl Activation {
    /// As [`Activation::forward`], in the tensor's own memory where nothing else can see it.
    ///
    /// # Errors
    /// As [`Activation::forward`].
    pub fn forward_into(self, mut hidden_states: Tensor) -> Result<Tensor> {
        match self {
            Self::Silu if hidden_states.is_unshared()? => Ok(hidden_states.f_silu_()?),
            _ => self.forward(&hidden_states),
        }
    }
}

impl FromStr for Activation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name.to_lowercase().as_str() {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "quick_gelu" => Self::QuickGelu,
            "mish" => Self::Mish,
            "relu" => Self::Relu,
            _ => {
                return Err(Error::Unsupported(format!(
                    "activation `{name}`: supported are silu, swish, gelu, quick_gelu, mish, relu"
                )));
            }
        })
    }
}

impl TryFrom<String> for Activation {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}
