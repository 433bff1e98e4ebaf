//! A compiled UNet in the place of the model itself.
//!
//! Twin of `torch.compile(unet)` of torch 2.11.

use super::{AddedCond, UNet, UNet2DConditionConfig, UNet2DConditionModel, UNetInputs};
use crate::error::{Error, Result};
use crate::models::compile::{Compilable, CompileOptions, Compiled, FreeSides, Given};
use crate::models::{ModelMixin, To};
use crate::nn::{Module, Node};
use std::any::Any;
use tch::{Device, Kind, Tensor};

/// A [`UNet2DConditionModel`] that runs compiled.
pub type CompiledUNet = Compiled<UNet2DConditionModel>;

impl UNet2DConditionModel {
    /// Has the model run compiled: `unet.compile(&CompileOptions { mode: Mode::MaxAutotune, .. })?`.
    ///
    /// # Examples
    /// ```
    /// use tch_diffusers::models::compile::CompileOptions;
    /// use tch_diffusers::{ModelMixin, StableDiffusionPipeline, UNet2DConditionModel, utils::assets::bundled_model};
    /// let unet = UNet2DConditionModel::from_pretrained(bundled_model()?).subfolder("unet").load()?;
    /// let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    /// pipe.set_unet(unet.compile(&CompileOptions { dynamic: Some(true), ..CompileOptions::default() })?);
    /// # Ok::<(), tch_diffusers::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a mode that the device does not have, or hooks that compiled code would pass over;
    /// [`Error::Argument`] for a package of another architecture, or none; as
    /// [`AotiPackage::load`](crate::torch::AotiPackage::load).
    pub fn compile(self, options: &CompileOptions) -> Result<CompiledUNet> {
        Compiled::new(self, options)
    }
}

/// The UNet of a pipeline, compiled over the weights that it has.
pub(crate) fn compile_shared(unet: &dyn UNet, options: &CompileOptions) -> Result<Box<dyn UNet>> {
    let model = unet.model().ok_or_else(|| {
        Error::Unsupported("only a UNet2DConditionModel can be compiled; this pipeline has another UNet".into())
    })?;
    Ok(Box::new(ModelMixin::share(model)?.compile(options)?))
}

const RESIDUAL: &str = "down_block_additional_residual.";

/// The inputs that are given, by name.
fn named<'a>(inputs: &UNetInputs<'a>) -> Given<'a> {
    let added = inputs.added_cond;
    let known = [
        ("sample", Some(inputs.sample)),
        ("timestep", Some(inputs.timestep)),
        ("encoder_hidden_states", Some(inputs.encoder_hidden_states)),
        ("class_labels", inputs.class_labels),
        ("timestep_cond", inputs.timestep_cond),
        ("attention_mask", inputs.attention_mask),
        ("encoder_attention_mask", inputs.encoder_attention_mask),
        ("text_embeds", added.map(|added| added.text_embeds)),
        ("time_ids", added.map(|added| added.time_ids)),
        ("mid_block_additional_residual", inputs.mid_block_additional_residual),
    ];
    Given::new(&known).with_list(RESIDUAL, inputs.down_block_additional_residuals)
}

impl Compilable for UNet2DConditionModel {
    fn run_on(&self, given: &Given<'_>) -> Result<Tensor> {
        let added = given.find("text_embeds").zip(given.find("time_ids"));
        let residuals = given.list(RESIDUAL);
        self.predict(&UNetInputs {
            class_labels: given.find("class_labels"),
            timestep_cond: given.find("timestep_cond"),
            attention_mask: given.find("attention_mask"),
            encoder_attention_mask: given.find("encoder_attention_mask"),
            added_cond: added.map(|(text_embeds, time_ids)| AddedCond { text_embeds, time_ids }),
            down_block_additional_residuals: (!residuals.is_empty()).then_some(&residuals),
            mid_block_additional_residual: given.find("mid_block_additional_residual"),
            ..UNetInputs::new(
                given.needed("sample")?,
                given.needed("timestep")?,
                given.needed("encoder_hidden_states")?,
            )
        })
    }

    /// A picture that does not halve evenly fixes its size in a trace, and so do masks and residuals.
    fn free_sides(&self, given: &Given<'_>) -> Option<FreeSides> {
        let factor = 1 << self.config().block_out_channels.len().saturating_sub(1);
        let sample = given.find("sample")?.size();
        let halves = sample.len() == 4 && sample[2..].iter().all(|side| side % factor == 0);
        let known = ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"];
        let free: FreeSides =
            &[("sample", &[0, 2, 3]), ("encoder_hidden_states", &[0]), ("text_embeds", &[0]), ("time_ids", &[0])];
        (halves && given.are_among(&known)).then_some(free)
    }

    /// A timestep has no dimensions.
    fn prepared(&self, name: &str, tensor: &Tensor, kind: Kind) -> Result<Tensor> {
        if name != "timestep" {
            return Ok(tensor.f_contiguous()?);
        }
        let timestep = match tensor.size()[..] {
            [1] => tensor.f_squeeze()?,
            _ => tensor.shallow_clone(),
        };
        // The model computes with the same numbers in float32, whatever they come in.
        Ok(timestep.f_to_kind(kind)?)
    }
}

impl UNet for CompiledUNet {
    fn config(&self) -> &UNet2DConditionConfig {
        self.model().config()
    }

    fn forward(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        let outer = [inputs.sample, inputs.timestep, inputs.encoder_hidden_states];
        self.inside_hooks(outer, |[sample, timestep, encoder_hidden_states]| {
            self.run(&named(&UNetInputs { sample, timestep, encoder_hidden_states, ..*inputs }))
        })
    }

    fn dtype(&self) -> Kind {
        self.model().node().dtype()
    }

    fn device(&self) -> Device {
        self.model().node().execution_device()
    }

    fn move_to(&self, target: To) -> Result<()> {
        ModelMixin::to(self.model(), target)
    }

    fn tree(&self) -> Option<&Node> {
        Some(self.model().node())
    }

    fn model(&self) -> Option<&UNet2DConditionModel> {
        Some(Compiled::model(self))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
