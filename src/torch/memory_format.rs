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
    /// `tensor` with the strides of this format, copied only where it has others: Python's `.to(memory_format=...)`.
    ///
    /// Where a dimension of size 1 leaves open which format the tensor is in, it gets this format's strides all the same;
    /// kernels are picked by strides. A tensor without four dimensions has no channels to put last and comes back as it is.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the copy has no room.
    pub fn apply(self, tensor: &Tensor) -> Result<Tensor> {
        self.number(tensor).map_or_else(|| Ok(tensor.shallow_clone()), |format| ffi::to_memory_format(tensor, format))
    }

    /// `tensor` in this format, copied only where its elements lie in another order: Python's
    /// `.contiguous(memory_format=...)`.
    ///
    /// Where a dimension of size 1 leaves open which format the tensor is in, its strides stay as they are.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the copy has no room.
    pub fn contiguous(self, tensor: &Tensor) -> Result<Tensor> {
        self.number(tensor).map_or_else(|| Ok(tensor.shallow_clone()), |format| ffi::contiguous(tensor, format))
    }

    /// The number of the `c10::MemoryFormat`, if a tensor of such dimensions can be in it.
    fn number(self, tensor: &Tensor) -> Option<i32> {
        match self {
            Self::Contiguous => Some(0),
            Self::ChannelsLast => (tensor.dim() == 4).then_some(2),
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
