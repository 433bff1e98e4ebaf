//! What a forward that records no gradients can leave out.

use super::ffi::RawScope;

/// While it lives, its thread's operators pass autograd by, if gradients were switched off when it began: the same bits in
/// less time. It stays on its thread.
///
/// # Examples
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_diffusers::torch::InferenceScope;
/// let weight = Tensor::f_ones([2], (Kind::Float, Device::Cpu))?.f_set_requires_grad(true)?;
/// let recorded = {
///     let _scope = InferenceScope::enter();
///     weight.f_add(&weight)?
/// };
/// assert!(recorded.requires_grad());
/// let _no_grad = tch::no_grad_guard();
/// let _scope = InferenceScope::enter();
/// assert!(!weight.f_add(&weight)?.requires_grad());
/// # Ok::<(), tch::TchError>(())
/// ```
#[derive(Debug)]
#[must_use = "the scope ends where it is dropped"]
pub struct InferenceScope(#[expect(dead_code, reason = "it is dropped")] RawScope);

impl InferenceScope {
    /// Enters a scope; scopes may lie in one another.
    pub fn enter() -> Self {
        Self(RawScope::enter())
    }
}

/// Has threads within an [`InferenceScope`] allocate by mimalloc, where tensors come and go faster; for programs that cannot
/// choose their allocator, such as Python. The first call counts, for as long as the process lives.
///
/// # Errors
/// Only if libtorch itself fails.
#[cfg(feature = "scoped-allocator")]
pub fn install_scoped_allocator() -> crate::error::Result<()> {
    super::ffi::install_allocator()
}
