//! The allocator of the program, libtorch's included.

use tch_diffusers::pipelines::Parts;

/// Tensors come and go thousands of times a step, which the system's allocator is slower at.
///
/// Its feature `no_thp` starts the process without huge pages: clearing two megabytes for each place that is touched
/// takes longer than a small model's whole run saves by them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// From how many weights on huge pages are worth their clearing.
const MANY_WEIGHTS: usize = 50_000_000;

/// Allows huge pages again for a model of some size, whose tensors fill them.
pub(crate) fn suit(pipe: &impl Parts) {
    let weights: usize = pipe.models().iter().map(|model| model.node.num_parameters()).sum();
    if weights < MANY_WEIGHTS {
        return;
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(false) {
        tracing::debug!("no huge pages: {error}");
    }
}
