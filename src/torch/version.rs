//! What this libtorch is and what it can see of the machine.

use super::ffi;
use crate::error::Result;

/// The version of libtorch that this crate was built against, such as `2.11.0`.
///
/// # Errors
/// Only if libtorch itself fails.
pub fn libtorch_version() -> Result<String> {
    ffi::libtorch_version()
}

/// The widest instruction set that libtorch's own kernels use here: `AVX512`, `AVX2`, `DEFAULT` ...
///
/// Twin of `torch.backends.cpu.get_cpu_capability()`.
///
/// # Errors
/// Only if libtorch itself fails.
pub fn cpu_capability() -> Result<String> {
    ffi::cpu_capability()
}

/// Why CUDA cannot be used, in words for a person; `None` where it can.
///
/// # Errors
/// Only if libtorch itself fails.
pub fn cuda_unavailable_reason() -> Result<Option<String>> {
    let refusal = ffi::cuda_refusal()?;
    Ok(if !refusal.is_empty() {
        Some(refusal)
    } else if tch::Cuda::is_available() {
        None
    } else {
        Some("libtorch_cuda is open, but reports no usable device".into())
    })
}
