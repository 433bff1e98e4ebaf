//! What this libtorch is, what it can see of the machine, and how a program leaves it.

use super::ffi;
use crate::error::Result;
use std::io::Write;

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

/// Ends the process at once with `status` (0 to 255), after flushing standard output and standard error.
///
/// A program that returns from `main` takes libtorch's operator tables apart first, entry by entry: a tenth of a second
/// that nobody needs. No destructor runs, so files and threads have to be done with before.
pub fn exit(status: u8) -> ! {
    // Nothing can be told to anyone any more if standard output or error is gone.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    ffi::exit_at_once(status.into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_search_for_cuda_was_made_before_the_first_test() {
        let reason = super::cuda_unavailable_reason().unwrap();
        assert!(!reason.as_ref().is_some_and(|reason| reason.contains("not opened yet")), "{reason:?}");
    }
}
