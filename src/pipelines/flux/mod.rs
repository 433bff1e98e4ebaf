//! FLUX.1 (Black Forest Labs 2024, <https://bfl.ai/announcing-black-forest-labs>).

mod arguments;
mod call;
mod denoise;
mod latents;
mod loading;
mod pipeline_flux;
mod text;

pub use call::{FluxCall, FluxPipelineOutput};
pub use denoise::FluxStepEnd;
pub use latents::calculate_shift;
pub use loading::{FluxLoader, PassedFluxComponents};
pub use pipeline_flux::{FluxComponents, FluxPipeline};
