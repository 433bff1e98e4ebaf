//! The idioms of diffusion models, named once and fallible.

use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// What models say often, as one fallible call each.
pub trait TensorExt {
    /// Splits into exactly `N` parts along `dim`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the dimension does not split into that many.
    fn chunks<const N: usize>(&self, dim: i64) -> Result<[Tensor; N]>;

    /// `[batch, tokens, heads * head_dim]` to `[batch, heads, tokens, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Torch`] if the last dimension is no multiple of `heads`.
    fn split_heads(&self, heads: i64) -> Result<Tensor>;

    /// `[batch, heads, tokens, head_dim]` to `[batch, tokens, heads * head_dim]`.
    ///
    /// # Errors
    /// [`Error::Torch`] if there are not four dimensions.
    fn merge_heads(&self) -> Result<Tensor>;

    /// `self + other`, in the memory of `self` where nothing else can see it, with the same bits either way.
    ///
    /// A tensor that a hook or a view still holds is left as it is.
    ///
    /// # Errors
    /// [`Error::Torch`] if the shapes do not broadcast.
    fn add_into(self, other: &Tensor) -> Result<Tensor>;

    /// `self * other`, as [`TensorExt::add_into`] adds.
    ///
    /// # Errors
    /// [`Error::Torch`] if the shapes do not broadcast.
    fn mul_into(self, other: &Tensor) -> Result<Tensor>;

    /// Whether nothing else can see the elements: no other handle, no view.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    fn is_unshared(&self) -> Result<bool>;

    /// The elements as `f32` on the host, in row-major order.
    ///
    /// # Errors
    /// [`Error::Torch`] if they cannot be copied.
    fn to_vec(&self) -> Result<Vec<f32>>;

    /// The largest absolute difference to `other`, in float32; infinite where either holds a NaN that the other lacks.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    fn max_abs_diff(&self, other: &Tensor) -> Result<f64>;
}

impl TensorExt for Tensor {
    fn chunks<const N: usize>(&self, dim: i64) -> Result<[Tensor; N]> {
        self.f_chunk(N as i64, dim)?.try_into().map_err(|parts: Vec<_>| {
            Error::Shape(format!(
                "{:?} does not split into {N} along dimension {dim}, but into {}",
                self.size(),
                parts.len()
            ))
        })
    }

    fn split_heads(&self, heads: i64) -> Result<Tensor> {
        Ok(self.f_unflatten(-1, [heads, -1])?.f_transpose(1, 2)?)
    }

    fn merge_heads(&self) -> Result<Tensor> {
        Ok(self.f_transpose(1, 2)?.f_flatten(2, 3)?)
    }

    fn add_into(mut self, other: &Tensor) -> Result<Tensor> {
        Ok(if can_hold(&self, other)? { self.f_add_(other)? } else { self.f_add(other)? })
    }

    fn mul_into(mut self, other: &Tensor) -> Result<Tensor> {
        Ok(if can_hold(&self, other)? { self.f_mul_(other)? } else { self.f_mul(other)? })
    }

    fn is_unshared(&self) -> Result<bool> {
        super::ffi::is_unshared(self)
    }

    fn to_vec(&self) -> Result<Vec<f32>> {
        let host = self.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let mut values = vec![0f32; host.numel()];
        host.f_copy_data(&mut values, host.numel())?;
        Ok(values)
    }

    fn max_abs_diff(&self, other: &Tensor) -> Result<f64> {
        if self.size() != other.size() {
            return Err(Error::Shape(format!("{:?} and {:?} have no difference", self.size(), other.size())));
        }
        let pairs = self.to_vec()?.into_iter().zip(other.to_vec()?);
        Ok(pairs.fold(0.0, |worst, (a, b)| {
            let same = a == b || (a.is_nan() && b.is_nan());
            let difference = if same { 0.0 } else { f64::from(a - b).abs() };
            worst.max(if difference.is_nan() { f64::INFINITY } else { difference })
        }))
    }
}

/// Whether the memory of `tensor` can take the result of an operation on it and `other`, unseen and with the same bits.
fn can_hold(tensor: &Tensor, other: &Tensor) -> Result<bool> {
    let (size, addend) = (tensor.size(), other.size());
    let broadcasts = addend.iter().rev().zip(size.iter().rev()).all(|(side, own)| side == own || *side == 1);
    // A new tensor could be laid out otherwise where the two are, and layouts decide how later operations round.
    let laid_out_alike = size != addend || tensor.stride() == other.stride();
    let fits = tensor.f_kind()? == other.f_kind()? && size.len() >= addend.len() && broadcasts && laid_out_alike;
    Ok(fits && tensor.is_unshared()?)
}

/// Names of dtypes as torch spells them.
pub trait KindExt: Sized {
    /// `"float32"`, `"bfloat16"` ...
    fn torch_name(self) -> String;

    /// The dtype of that name; `float`, `half` and the `torch.` prefix are understood as well.
    ///
    /// # Errors
    /// [`Error::Argument`], with the names that can be used.
    fn from_torch_name(name: &str) -> Result<Self>;

    /// Whether it holds real floating-point numbers, of 8 bits or more.
    fn is_floating_point(&self) -> bool;
}

const KINDS: [(&str, Kind); 6] = [
    ("float32", Kind::Float),
    ("float16", Kind::Half),
    ("bfloat16", Kind::BFloat16),
    ("float64", Kind::Double),
    ("float8_e4m3fn", Kind::Float8e4m3fn),
    ("float8_e5m2", Kind::Float8e5m2),
];

impl KindExt for Kind {
    fn torch_name(self) -> String {
        if self == Self::Int {
            return "int32".into();
        }
        let known = KINDS.iter().find(|(_, kind)| *kind == self);
        known.map_or_else(|| format!("{self:?}").to_lowercase(), |(name, _)| (*name).to_string())
    }

    fn from_torch_name(name: &str) -> Result<Self> {
        let bare = name.strip_prefix("torch.").unwrap_or(name);
        let canonical = match bare {
            "float" => "float32",
            "half" => "float16",
            "double" => "float64",
            other => other,
        };
        let known = KINDS.iter().find(|(known, _)| *known == canonical).map(|(_, kind)| *kind);
        known.ok_or_else(|| {
            let names = KINDS.map(|(name, _)| name).join(", ");
            Error::Argument(format!("unknown dtype `{name}`: use one of {names}"))
        })
    }

    fn is_floating_point(&self) -> bool {
        matches!(
            self,
            Self::Half
                | Self::Float
                | Self::Double
                | Self::BFloat16
                | Self::Float8e5m2
                | Self::Float8e4m3fn
                | Self::Float8e5m2fnuz
                | Self::Float8e4m3fnuz
        )
    }
}

/// Names of devices as torch spells them.
pub trait DeviceExt: Sized {
    /// `"cpu"`, `"cuda:1"` ...
    fn torch_name(self) -> String;

    /// The device of that name; `cuda` alone is `cuda:0`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that is none, or a device that this machine has not, with the reason.
    fn from_torch_name(name: &str) -> Result<Self>;

    /// Holds a CUDA device to those that this machine has.
    ///
    /// # Errors
    /// [`Error::Argument`] for a device that is not there, with the reason.
    fn check(self) -> Result<()>;
}

impl DeviceExt for Device {
    fn check(self) -> Result<()> {
        if self.is_cuda() { Self::from_torch_name(&self.torch_name()).map(drop) } else { Ok(()) }
    }

    fn torch_name(self) -> String {
        match self {
            Self::Cuda(index) => format!("cuda:{index}"),
            other => format!("{other:?}").to_lowercase(),
        }
    }

    fn from_torch_name(name: &str) -> Result<Self> {
        let index = match name {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            other => other.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()),
        };
        let index =
            index.ok_or_else(|| Error::Argument(format!("unknown device `{name}`: use cpu, cuda or cuda:N")))?;
        if let Some(reason) = super::cuda_unavailable_reason()? {
            return Err(Error::Argument(format!("device `{name}` is not available: {reason}")));
        }
        let count = tch::Cuda::device_count();
        if index as i64 >= count {
            return Err(Error::Argument(format!(
                "device `{name}` does not exist: this machine has {count}, from cuda:0"
            )));
        }
        Ok(Self::Cuda(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_split_and_merge_back() {
        let tokens = Tensor::arange(2 * 3 * 8, (Kind::Float, Device::Cpu)).reshape([2, 3, 8]);
        let heads = tokens.split_heads(4).unwrap();
        assert_eq!(heads.size(), [2, 4, 3, 2]);
        assert_eq!(heads.merge_heads().unwrap().max_abs_diff(&tokens).unwrap(), 0.0);
    }

    #[test]
    fn adding_into_a_tensor_leaves_what_others_see_alone() {
        let ones = || Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
        let alone = ones();
        let address = alone.data_ptr();
        let sum = alone.add_into(&ones()).unwrap();
        assert_eq!((sum.data_ptr(), sum.to_vec().unwrap()), (address, vec![2.0; 6]));
        let held = ones();
        let (clone, view) = (held.shallow_clone(), ones());
        let row = view.get(0);
        assert_eq!(clone.add_into(&ones()).unwrap().to_vec().unwrap(), [2.0; 6]);
        assert_eq!(view.add_into(&ones()).unwrap().to_vec().unwrap(), [2.0; 6]);
        assert_eq!((held.to_vec().unwrap(), row.to_vec().unwrap()), (vec![1.0; 6], vec![1.0; 3]));
        let wider = Tensor::ones([4, 2, 3], (Kind::Float, Device::Cpu));
        assert_eq!(ones().add_into(&wider).unwrap().size(), [4, 2, 3]);
        let (column, row) = (ones().narrow(1, 0, 1).copy(), ones().narrow(0, 0, 1).copy());
        assert_eq!(column.add_into(&row).unwrap().size(), [2, 3]);
        let double = ones().to_kind(Kind::Double);
        assert_eq!(ones().add_into(&double).unwrap().kind(), Kind::Double);
    }

    #[test]
    fn a_nan_counts_as_a_difference() {
        let (nan, one) = (Tensor::from_slice(&[f32::NAN]), Tensor::from_slice(&[1f32]));
        assert_eq!(nan.max_abs_diff(&one).unwrap(), f64::INFINITY);
        assert_eq!(nan.max_abs_diff(&nan).unwrap(), 0.0);
    }

    #[test]
    fn dtypes_have_torchs_names() {
        for (name, kind) in KINDS {
            assert_eq!(Kind::from_torch_name(name).unwrap(), kind);
            assert_eq!(kind.torch_name(), name);
        }
        assert_eq!(Kind::from_torch_name("torch.half").unwrap(), Kind::Half);
        let error = Kind::from_torch_name("int4").unwrap_err().to_string();
        assert!(error.contains("float32, float16"), "{error}");
    }

    #[test]
    fn an_unknown_device_says_what_to_use() {
        let error = Device::from_torch_name("tpu").unwrap_err().to_string();
        assert_eq!(error, "unknown device `tpu`: use cpu, cuda or cuda:N");
    }
}
