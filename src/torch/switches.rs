//! Switches of libtorch's: precision, determinism, threads.
//!
//! Mirrors `torch.backends.cuda`, `torch.backends.cudnn`, `torch.use_deterministic_algorithms`,
//! `torch.set_float32_matmul_precision`, `torch.set_flush_denormal` and `torch.set_num_threads` of torch 2.11. They hold for
//! the whole process, as there; a guard puts back what it found when it is dropped.

use super::ffi::switches as ffi;
use crate::error::{Error, Result};
use std::str::FromStr;

/// A switch that is on or off.
///
/// # Examples
/// ```
/// use tch_diffusers::torch::Switch;
/// let before = Switch::MatmulAllowTf32.get()?;
/// {
///     let _guard = Switch::MatmulAllowTf32.scoped(true)?;
///     assert!(Switch::MatmulAllowTf32.get()?);
/// }
/// assert_eq!(Switch::MatmulAllowTf32.get()?, before);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Multiplies float32 matrices in TF32 on Ampere and later: `torch.backends.cuda.matmul.allow_tf32`; off. The same
    /// switch as [`MatmulPrecision`]: on is `high`, off is `highest`.
    MatmulAllowTf32,
    /// Convolves float32 in TF32 on Ampere and later: `torch.backends.cudnn.allow_tf32`; on.
    CudnnAllowTf32,
    /// Has cuDNN try its algorithms for each new shape and keep the fastest: `torch.backends.cudnn.benchmark`; off.
    CudnnBenchmark,
    /// Only cuDNN's deterministic algorithms: `torch.backends.cudnn.deterministic`; off.
    CudnnDeterministic,
    /// Refuses operations that have no deterministic algorithm: `torch.use_deterministic_algorithms`; off.
    DeterministicAlgorithms,
    /// Adds up float16 products in float16 where cuBLAS likes to:
    /// `torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction`; on.
    AllowFp16ReducedPrecisionReduction,
    /// The same for bfloat16: `torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`; on.
    AllowBf16ReducedPrecisionReduction,
    /// Accumulates float16 products in float16 throughout: `torch.backends.cuda.matmul.allow_fp16_accumulation`; off.
    AllowFp16Accumulation,
    /// Takes numbers too small to be normal for zero, on the thread that says so: `torch.set_flush_denormal`; off.
    FlushDenormal,
}

impl Switch {
    /// All switches.
    pub const ALL: [Self; 9] = [
        Self::MatmulAllowTf32,
        Self::CudnnAllowTf32,
        Self::CudnnBenchmark,
        Self::CudnnDeterministic,
        Self::DeterministicAlgorithms,
        Self::AllowFp16ReducedPrecisionReduction,
        Self::AllowBf16ReducedPrecisionReduction,
        Self::AllowFp16Accumulation,
        Self::FlushDenormal,
    ];

    /// Whether it is on.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn get(self) -> Result<bool> {
        ffi::get(self.number())
    }

    /// Switches it on or off, for good.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the processor cannot flush denormal numbers.
    pub fn set(self, on: bool) -> Result<()> {
        ffi::set(self.number(), on)
    }

    /// Switches it on or off until the guard is dropped.
    ///
    /// # Errors
    /// As [`Switch::set`].
    pub fn scoped(self, on: bool) -> Result<Guard> {
        let before = self.get()?;
        self.set(on)?;
        Ok(Guard::new(move || self.set(before)))
    }

    /// As the shim counts.
    fn number(self) -> i32 {
        self as i32
    }
}

/// How exact products of float32 matrices are: `torch.set_float32_matmul_precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatmulPrecision {
    /// In float32.
    #[default]
    Highest,
    /// In TF32, or as three products of bfloat16.
    High,
    /// In bfloat16 where the device multiplies it faster.
    Medium,
}

const PRECISIONS: [(&str, MatmulPrecision); 3] =
    [("highest", MatmulPrecision::Highest), ("high", MatmulPrecision::High), ("medium", MatmulPrecision::Medium)];

impl MatmulPrecision {
    /// What holds now.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn get() -> Result<Self> {
        Ok(match ffi::matmul_precision()? {
            0 => Self::Highest,
            1 => Self::High,
            _ => Self::Medium,
        })
    }

    /// Has it hold, for good.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn set(self) -> Result<()> {
        ffi::set_matmul_precision(self as i32)
    }

    /// Has it hold until the guard is dropped.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn scoped(self) -> Result<Guard> {
        let before = Self::get()?;
        self.set()?;
        Ok(Guard::new(move || before.set()))
    }
}

impl FromStr for MatmulPrecision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = PRECISIONS.iter().find(|(known, _)| *known == name).map(|(_, precision)| *precision);
        known.ok_or_else(|| Error::Argument(format!("unknown precision `{name}`: use highest, high or medium")))
    }
}

/// How many threads share the work of one operation: `torch.get_num_threads`.
///
/// # Errors
/// Only if libtorch itself fails.
pub fn num_threads() -> Result<usize> {
    Ok(usize::try_from(ffi::threads(false)?).unwrap_or_default())
}

/// Has `threads` threads share the work of one operation: `torch.set_num_threads`. Sums are split among them, so their
/// last bits depend on the number.
///
/// # Errors
/// [`Error::Argument`] for none.
pub fn set_num_threads(threads: usize) -> Result<()> {
    ffi::set_threads(false, count(threads)?)
}

/// As [`set_num_threads`], until the guard is dropped.
///
/// # Errors
/// [`Error::Argument`] for none.
pub fn scoped_num_threads(threads: usize) -> Result<Guard> {
    let before = num_threads()?;
    set_num_threads(threads)?;
    Ok(Guard::new(move || set_num_threads(before)))
}

/// How many operations TorchScript may run side by side: `torch.get_num_interop_threads`.
///
/// # Errors
/// Only if libtorch itself fails.
pub fn num_interop_threads() -> Result<usize> {
    Ok(usize::try_from(ffi::threads(true)?).unwrap_or_default())
}

/// Has up to `threads` operations of a TorchScript module run side by side: `torch.set_num_interop_threads`. It can be said
/// once, before the first of them runs.
///
/// # Errors
/// [`Error::Argument`] for none, [`Error::Torch`] if it is too late.
pub fn set_num_interop_threads(threads: usize) -> Result<()> {
    ffi::set_threads(true, count(threads)?)
}

fn count(threads: usize) -> Result<i32> {
    match i32::try_from(threads) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Error::Argument(format!("{threads} is no number of threads"))),
    }
}

/// Puts a switch back when it is dropped. Guards of the same switch go the other way round than they came.
#[must_use = "the switch is put back when the guard is dropped"]
pub struct Guard(Option<Box<dyn FnOnce() -> Result<()> + Send>>);

impl Guard {
    pub(super) fn new(restore: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self(Some(Box::new(restore)))
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|restore| restore()) {
            tracing::warn!("a switch of libtorch's could not be put back: {error}");
        }
    }
}
