//! A compiled transformer of FLUX.1 in the place of the model itself.
//!
//! Twin of `torch.compile(transformer)` of torch 2.11.

use super::{FluxInputs, FluxTransformer, FluxTransformer2DConfig, FluxTransformer2DModel};
use crate::error::{Error, Result};
use crate::models::compile::{Compilable, CompileOptions, Compiled, FreeSides, Given};
use crate::models::{ModelMixin, To};
use crate::nn::{Module, Node};
use std::any::Any;
use tch::{Device, Kind, Tensor};

/// A [`FluxTransformer2DModel`] that runs compiled.
///
/// Traces are made for one number of tokens each, of text and picture, and with `dynamic` for any number of items. A package
/// made with `--dynamic` takes any number of tokens.
pub type CompiledFluxTransformer = Compiled<FluxTransformer2DModel>;

impl FluxTransformer2DModel {
    /// Has the model run compiled, for [`FluxPipeline::set_transformer`](crate::FluxPipeline::set_transformer).
    ///
    /// # Examples
    /// ```no_run
    /// use tch_diffusers::models::compile::{CompileOptions, Mode};
    /// use tch_diffusers::{FluxPipeline, ModelMixin, models::transformers::FluxTransformer2DModel};
    /// let folder = "black-forest-labs/FLUX.1-schnell";
    /// let transformer = FluxTransformer2DModel::from_pretrained(folder).subfolder("transformer").load()?;
    /// let options = CompileOptions { mode: Mode::MaxAutotune, ..CompileOptions::default() };
    /// let mut pipe = FluxPipeline::from_pretrained(folder).load()?;
    /// pipe.set_transformer(transformer.compile(&options)?);
    /// # Ok::<(), tch_diffusers::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a mode that the device does not have, or hooks that compiled code would pass over;
    /// [`Error::Argument`] for a package of another architecture, or none; as
    /// [`AotiPackage::load`](crate::torch::AotiPackage::load).
    pub fn compile(self, options: &CompileOptions) -> Result<CompiledFluxTransformer> {
        Compiled::new(self, options)
    }
}

/// The transformer of a pipeline, compiled over the weights that it has.
pub(crate) fn compile_shared(
    transformer: &dyn FluxTransformer,
    options: &CompileOptions,
) -> Result<Box<dyn FluxTransformer>> {
    let model = transformer.model().ok_or_else(|| {
        Error::Unsupported(
            "only a FluxTransformer2DModel can be compiled; this pipeline has another transformer".into(),
        )
    })?;
    Ok(Box::new(ModelMixin::share(model)?.compile(options)?))
}

/// The inputs that are given, by name.
fn named<'a>(inputs: &FluxInputs<'a>) -> Given<'a> {
    Given::new(&[
        ("hidden_states", Some(inputs.hidden_states)),
        ("encoder_hidden_states", Some(inputs.encoder_hidden_states)),
        ("pooled_projections", Some(inputs.pooled_projections)),
        ("timestep", Some(inputs.timestep)),
        ("img_ids", Some(inputs.img_ids)),
        ("txt_ids", Some(inputs.txt_ids)),
        ("guidance", inputs.guidance),
    ])
}

impl Compilable for FluxTransformer2DModel {
    fn run_on(&self, given: &Given<'_>) -> Result<Tensor> {
        self.predict(&FluxInputs {
            hidden_states: given.needed("hidden_states")?,
            encoder_hidden_states: given.needed("encoder_hidden_states")?,
            pooled_projections: given.needed("pooled_projections")?,
            timestep: given.needed("timestep")?,
            img_ids: given.needed("img_ids")?,
            txt_ids: given.needed("txt_ids")?,
            guidance: given.find("guidance"),
        })
    }

    /// A trace fixes the numbers of tokens, by which it parts text and picture.
    fn free_sides(&self, _: &Given<'_>) -> Option<FreeSides> {
        Some(&[
            ("hidden_states", &[0]),
            ("encoder_hidden_states", &[0]),
            ("pooled_projections", &[0]),
            ("timestep", &[0]),
            ("guidance", &[0]),
        ])
    }
}

impl FluxTransformer for CompiledFluxTransformer {
    fn config(&self) -> &FluxTransformer2DConfig {
        ModelMixin::config(Compiled::model(self))
    }

    fn forward(&self, inputs: &FluxInputs<'_>) -> Result<Tensor> {
        let outer = [inputs.hidden_states, inputs.encoder_hidden_states, inputs.pooled_projections, inputs.timestep];
        self.inside_hooks(outer, |[hidden_states, encoder_hidden_states, pooled_projections, timestep]| {
            let inputs = FluxInputs { hidden_states, encoder_hidden_states, pooled_projections, timestep, ..*inputs };
            self.run(&named(&inputs))
        })
    }

    fn dtype(&self) -> Kind {
        Compiled::model(self).node().dtype()
    }

    fn device(&self) -> Device {
        Compiled::model(self).node().execution_device()
    }

    fn move_to(&self, target: To) -> Result<()> {
        ModelMixin::to(Compiled::model(self), target)
    }

    fn tree(&self) -> Option<&Node> {
        Some(Compiled::model(self).node())
    }

    fn model(&self) -> Option<&FluxTransformer2DModel> {
        Some(Compiled::model(self))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
