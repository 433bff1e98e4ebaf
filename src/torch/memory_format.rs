//! How a tensor's elements are ordered in memory.

use super::ffi;
use crate::error::{Error, Result};
use std::str::FromStr;
use tch::Tensor;

/// The order of a tensor's elements in memory; its shape stays the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryFormat {
    /// Row-major, the last dimension densest: `torch.contiguous_format`.
    #[default]
    Contiguous,
    /// Channels densest (NHWC), for tensors of four dimensions: `torch.channels_last`.
    ChannelsLast,
}

impl MemoryFormat {
    /// `tensor` in this format, copied only where it is not in it already.
    ///
    /// A tensor without four dimensions has no channels to put last and comes back as it is.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the copy has no room.
    pub fn apply(self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            Self::Contiguous => Ok(tensor.f_contiguous()?),
            Self::ChannelsLast if tensor.dim() == 4 => ffi::contiguous(tensor, 2),
            Self::ChannelsLast => Ok(tensor.shallow_clone()),
        }
    }
}

impl FromStr for MemoryFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "contiguous_format" => Ok(Self::Contiguous),
            "channels_last" => Ok(Self::ChannelsLast),
            other => {
                Err(Error::Argument(format!("unknown memory format `{other}`: use contiguous_format or channels_last")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn channels_last_has_the_strides_of_the_guide() {
        let weight = Tensor::zeros([4, 320, 3, 3], (Kind::Float, Device::Cpu));
        assert_eq!(weight.stride(), [2880, 9, 3, 1]);
        let last = MemoryFormat::ChannelsLast.apply(&weight).unwrap();
        assert_eq!(last.stride(), [2880, 1, 960, 320]);
        assert_eq!(MemoryFormat::Contiguous.apply(&last).unwrap().stride(), [2880, 9, 3, 1]);
    }

    #[test]
    fn a_matrix_has_no_channels_to_put_last() {
        let matrix = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        assert_eq!(MemoryFormat::ChannelsLast.apply(&matrix).unwrap().data_ptr(), matrix.data_ptr());
    }
}
