//! Adapters of a model by itself.
//!
//! Mirrors `PeftAdapterMixin` of `diffusers/loaders/peft.py` at 0.42.1.

use super::block_weights::UNetWeight;
use super::peft;
use super::save::{LoraLayers, SaveLora, save_lora_weights};
use super::{LoraOptions, LoraStateDict};
use crate::error::{Error, Result};
use crate::nn::Module;
use std::path::{Path, PathBuf};

/// What a model offers that may have low-rank adapters, beside what its pipeline does with them.
///
/// # Examples
/// ```no_run
/// use tch_diffusers::loaders::LoraOptions;
/// use tch_diffusers::loaders::lora::PeftAdapterMixin;
/// use tch_diffusers::{UNet2DConditionModel, models::ModelMixin};
/// let unet = UNet2DConditionModel::from_pretrained("stable-diffusion-v1-5/unet").load()?;
/// let name = unet.load_lora_adapter("pixel-art.safetensors", Some("unet"), &LoraOptions::default())?;
/// unet.set_adapters(&[&name], &[0.8])?;
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
pub trait PeftAdapterMixin: Module {
    /// Adds the LoRA in `source`, a safetensors file, a folder, or a repository of the Hub, which alone is active from then
    /// on. Gives its name. Keys begin with `prefix` and a point; those that do not are of other models. With no prefix they
    /// name this model's layers.
    ///
    /// # Errors
    /// As [`LoraOptions::file`], [`LoraStateDict::read_of_model`] and [`peft::load_lora_adapter`]; [`Error::Config`] if no
    /// key has the prefix. Nothing is changed then.
    // Differs from diffusers: there, a file without such keys is passed over with a warning, and the prefix is
    // `transformer` by default.
    fn load_lora_adapter(
        &self,
        source: impl AsRef<Path>,
        prefix: Option<&str>,
        options: &LoraOptions,
    ) -> Result<String> {
        let lora = LoraStateDict::read_of_model(options.file(source.as_ref())?, prefix)?;
        peft::load_model_lora(self.node(), &lora, prefix, options.adapter_name.as_deref())
    }

    /// The adapter as it is saved: its factors and its configuration.
    ///
    /// # Errors
    /// As [`LoraLayers::of`].
    fn lora_layers(&self, adapter_name: &str) -> Result<LoraLayers> {
        LoraLayers::of(self.node(), adapter_name)
    }

    /// Writes an adapter to a file in `folder`, for [`PeftAdapterMixin::load_lora_adapter`] without a prefix. Gives the file.
    ///
    /// # Errors
    /// As [`LoraLayers::of`] and [`save_lora_weights`].
    fn save_lora_adapter(&self, folder: impl AsRef<Path>, adapter_name: &str, options: &SaveLora) -> Result<PathBuf> {
        save_lora_weights(folder, &[("", &self.lora_layers(adapter_name)?)], options)
    }

    /// The names of all adapters, in the order of their loading.
    fn list_adapters(&self) -> Vec<String> {
        peft::list_adapters(self.node())
    }

    /// The adapters that take part, in the order in which their shares are added.
    fn active_adapters(&self) -> Vec<String> {
        peft::active_adapters(self.node()).unwrap_or_default()
    }

    /// Has these adapters, and no others, take part, in this order and with these weights: numbers, or
    /// [`BlockWeights`](super::BlockWeights) of a UNet.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that no adapter has, another number of weights than of names, or a block that the model
    /// has not; nothing is changed then.
    fn set_adapters<W: Into<UNetWeight> + Clone>(&self, adapter_names: &[&str], weights: &[W]) -> Result<()> {
        let names = known(self.node(), adapter_names)?;
        let weights: Vec<UNetWeight> = weights.iter().cloned().map(Into::into).collect();
        peft::set_adapter_weights(self.node(), &names, &weights)
    }

    /// Has these adapters, and no others, take part with the weights that they have.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that no adapter has.
    fn set_adapter(&self, adapter_names: &[&str]) -> Result<()> {
        peft::activate(self.node(), &known(self.node(), adapter_names)?);
        Ok(())
    }

    /// Forgets these adapters. A layer that has no other active one takes the first by name.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that no adapter has, or of one that is fused; nothing is changed then.
    fn delete_adapters(&self, adapter_names: &[&str]) -> Result<()> {
        let names = known(self.node(), adapter_names)?;
        names.iter().try_for_each(|name| peft::refuse_fused(self.node(), name))?;
        names.iter().try_for_each(|name| peft::delete_adapter(self.node(), name))
    }

    /// Has no adapter take part; fused ones are taken out of the weights. diffusers' `disable_adapters` too.
    ///
    /// # Errors
    /// As [`peft::unfuse_lora`], where adapters are fused.
    fn disable_lora(&self) -> Result<()> {
        peft::disable_lora(self.node())
    }

    /// Has the active adapters take part again. diffusers' `enable_adapters` too.
    fn enable_lora(&self) {
        peft::enable_lora(self.node());
    }

    /// Adds adapters, the active ones unless given, to the model's own weights: see [`peft::fuse_lora`].
    ///
    /// # Errors
    /// As there, and [`Error::Argument`] for a name that no adapter has.
    fn fuse_lora(&self, lora_scale: f64, safe_fusing: bool, adapter_names: Option<&[&str]>) -> Result<()> {
        let names = adapter_names.map(|names| known(self.node(), names)).transpose()?;
        peft::fuse_lora(self.node(), lora_scale, safe_fusing, names.as_deref())
    }

    /// Gives the weights the numbers that they had before adapters were fused, to the bit. Says whether there was anything
    /// to undo.
    ///
    /// # Errors
    /// As [`peft::unfuse_lora`].
    fn unfuse_lora(&self) -> Result<bool> {
        peft::unfuse_lora(self.node())
    }

    /// Forgets all adapters. Those that are fused stay in the weights for good, as in diffusers.
    fn unload_lora(&self) {
        peft::unload_lora(self.node());
    }
}

/// The names, if there are such adapters.
fn known(model: &crate::nn::Node, names: &[&str]) -> Result<Vec<String>> {
    let known = peft::list_adapters(model);
    match names.iter().find(|name| !known.iter().any(|known| known == *name)) {
        None => Ok(names.iter().map(ToString::to_string).collect()),
        Some(unknown) => Err(Error::Argument(format!("there is no adapter `{unknown}`: loaded are {known:?}"))),
    }
}
