//! Low-rank adapters of the UNet and of the text encoder.
//!
//! Mirrors `StableDiffusionLoraLoaderMixin` and `LoraBaseMixin` of `diffusers/loaders/lora_pipeline.py` and `lora_base.py` at
//! 0.42.1.

use super::StableDiffusionPipeline;
use crate::error::{Error, Result};
use crate::loaders::lora::{
    BlockWeights, LoraLayers, LoraOptions, LoraStateDict, SaveLora, UNetWeight, peft, save_lora_weights,
};
use crate::nn::{Module, Node};
use std::path::{Path, PathBuf};

/// The components that adapters can be of: diffusers' `_lora_loadable_modules`.
pub const LORA_LOADABLE_MODULES: [&str; 2] = ["unet", "text_encoder"];

/// How much an adapter counts: 1 as it was trained, 0 not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterWeight {
    /// In the UNet: a number, or [`BlockWeights`].
    pub unet: UNetWeight,
    /// In the text encoder.
    pub text_encoder: f64,
}

impl From<f64> for AdapterWeight {
    /// The same everywhere.
    fn from(weight: f64) -> Self {
        Self { unet: weight.into(), text_encoder: weight }
    }
}

impl From<BlockWeights> for AdapterWeight {
    /// By blocks in the UNet, and 1 in the text encoder.
    fn from(weights: BlockWeights) -> Self {
        Self { unet: weights.into(), text_encoder: 1.0 }
    }
}

/// What a call tells attention: of diffusers' dictionary that which counts here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossAttentionKwargs {
    /// What the weights of all adapters are multiplied by in the call; 1 by default. Fused adapters keep theirs.
    pub scale: f64,
}

impl Default for CrossAttentionKwargs {
    fn default() -> Self {
        Self { scale: 1.0 }
    }
}

impl CrossAttentionKwargs {
    pub(super) fn check(&self, pipe: &StableDiffusionPipeline) -> Result<()> {
        let Self { scale } = *self;
        if !scale.is_finite() {
            return Err(Error::Argument(format!(
                "`cross_attention_kwargs`: `scale` has to be a number, but is {scale}"
            )));
        }
        if scale != 1.0 && pipe.unet.tree().is_none() {
            let text = "`cross_attention_kwargs` need a UNet with modules; this one has none";
            return Err(Error::Unsupported(text.into()));
        }
        Ok(())
    }
}

/// How adapters are fused: the arguments of diffusers' `fuse_lora`.
#[derive(Clone, Debug, PartialEq)]
pub struct FuseLora<'a> {
    /// Whose adapters; all of [`LORA_LOADABLE_MODULES`] by default.
    pub components: &'a [&'a str],
    /// What the weights of the active adapters are multiplied by; 1 by default.
    pub lora_scale: f64,
    /// Whether weights that would hold infinities or NaNs are refused; off by default.
    pub safe_fusing: bool,
    /// Which adapters; the active ones by default.
    pub adapter_names: Option<&'a [&'a str]>,
}

impl Default for FuseLora<'_> {
    fn default() -> Self {
        Self { components: &LORA_LOADABLE_MODULES, lora_scale: 1.0, safe_fusing: false, adapter_names: None }
    }
}

impl StableDiffusionPipeline {
    /// Adds the LoRA in `source` to the UNet and the text encoder: a safetensors file, a folder, or a repository of the Hub.
    /// It alone is active from then on. Gives its name.
    ///
    /// Files of PEFT's, diffusers' older and kohya's layouts are read. It goes with every other technique; a fused LoRA is
    /// taken out of the weights first.
    ///
    /// # Examples
    /// ```no_run
    /// use tch_diffusers::StableDiffusionPipeline;
    /// use tch_diffusers::loaders::LoraOptions;
    /// let mut pipe = StableDiffusionPipeline::from_pretrained("stable-diffusion-v1-5").load()?;
    /// pipe.load_lora_weights("pixel-art.safetensors", &LoraOptions::default().adapter_name("pixel"))?;
    /// pipe.load_lora_weights("toys.safetensors", &LoraOptions::default().adapter_name("toys"))?;
    /// pipe.set_adapters(&["pixel", "toys"], &[0.7, 0.4])?;
    /// # Ok::<(), tch_diffusers::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`LoraOptions::file`], [`LoraStateDict::read`] and [`peft::load_lora_adapter`]; [`Error::Config`] if there is
    /// nothing for either model; [`Error::Unsupported`] for a traced UNet or text encoder. Nothing is changed then.
    pub fn load_lora_weights(&mut self, source: impl AsRef<Path>, options: &LoraOptions) -> Result<String> {
        let lora = options.read(source.as_ref())?;
        self.load_lora_state_dict(&lora, options.adapter_name.as_deref())
    }

    /// As [`StableDiffusionPipeline::load_lora_weights`], of a LoRA that is read already.
    ///
    /// # Errors
    /// As there.
    // Differs from diffusers: there, a LoRA without weights for either model is passed over with a warning, and each model
    // counts `default_0`, `default_1` ... for itself.
    pub fn load_lora_state_dict(&mut self, lora: &LoraStateDict, adapter_name: Option<&str>) -> Result<String> {
        let found = lora.components();
        let (known, others): (Vec<_>, Vec<_>) =
            found.iter().partition(|component| LORA_LOADABLE_MODULES.contains(component));
        if known.is_empty() {
            let found = if found.is_empty() { "it is empty".into() } else { format!("it is of {}", found.join(", ")) };
            let file = lora.file().display();
            return Err(Error::Config(format!("{file}: there is nothing for unet or text_encoder: {found}")));
        }
        if !others.is_empty() {
            tracing::warn!("{}: this pipeline has no {others:?}, whose weights are passed over", lora.file().display());
        }
        if known.contains(&"text_encoder") && self.traced.encodes_prompts() {
            return Err(Error::Unsupported(
                "a LoRA cannot be added to a traced text encoder: trace it after fusing".into(),
            ));
        }
        if known.contains(&"unet") && self.unet.tree().is_none() {
            return Err(Error::Unsupported(
                "a LoRA needs a UNet with modules; this one has none: fuse the LoRA before tracing".into(),
            ));
        }
        let name = adapter_name.map_or_else(|| peft::default_adapter_name(self.adapters()), String::from);
        peft::load_lora_adapter(&self.lora_models(), lora, &name)?;
        Ok(name)
    }

    /// The models that may have adapters.
    fn lora_models(&self) -> Vec<(&'static str, &Node)> {
        let nodes = [self.unet.tree(), Some(self.text_encoder.node())];
        LORA_LOADABLE_MODULES.into_iter().zip(nodes).filter_map(|(name, node)| Some((name, node?))).collect()
    }

    /// Those of `components`.
    fn lora_models_of(&self, components: &[&str]) -> Result<Vec<(&'static str, &Node)>> {
        if let Some(unknown) = components.iter().find(|name| !LORA_LOADABLE_MODULES.contains(name)) {
            let known = LORA_LOADABLE_MODULES.join(", ");
            return Err(Error::Argument(format!("LoRAs are not of `{unknown}`: `components` can be {known}")));
        }
        if components.is_empty() {
            return Err(Error::Argument("`components` names none".into()));
        }
        Ok(self.lora_models().into_iter().filter(|(name, _)| components.contains(name)).collect())
    }

    /// The names of all adapters.
    fn adapters(&self) -> Vec<String> {
        self.lora_models().into_iter().flat_map(|(_, model)| peft::list_adapters(model)).collect()
    }

    fn check_adapters(&self, names: &[&str]) -> Result<()> {
        let known = self.adapters();
        match names.iter().find(|name| !known.iter().any(|known| known == *name)) {
            None => Ok(()),
            Some(unknown) => Err(Error::Argument(format!("there is no adapter `{unknown}`: loaded are {known:?}"))),
        }
    }

    /// The adapters of each model that has some, in the order of their loading.
    #[must_use]
    pub fn get_list_adapters(&self) -> Vec<(&'static str, Vec<String>)> {
        let adapters = self.lora_models().into_iter().map(|(name, model)| (name, peft::list_adapters(model)));
        adapters.filter(|(_, adapters)| !adapters.is_empty()).collect()
    }

    /// The adapters that take part, in the order in which their shares are added. Where models differ, the text encoder's,
    /// as in diffusers.
    #[must_use]
    pub fn get_active_adapters(&self) -> Vec<String> {
        let models = self.lora_models();
        models.into_iter().rev().find_map(|(_, model)| peft::active_adapters(model)).unwrap_or_default()
    }

    /// Has these adapters, and no others, take part, in this order and with these weights: numbers, or an
    /// [`AdapterWeight`] for each. Fused adapters stay as they are in the weights.
    ///
    /// # Examples
    /// ```no_run
    /// use tch_diffusers::loaders::lora::BlockWeights;
    /// # let mut pipe = tch_diffusers::StableDiffusionPipeline::from_pretrained("stable-diffusion-v1-5").load()?;
    /// pipe.set_adapters(&["pixel", "toys"], &[0.7, 0.4])?;
    /// pipe.set_adapters(&["pixel"], &[BlockWeights::default().down(0.2).mid(0.5).up([(1, [0.9, 0.4, 0.1].into())])])?;
    /// # Ok::<(), tch_diffusers::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that no adapter has, another number of weights than of names, or a block that the UNet
    /// has not; nothing is changed then.
    pub fn set_adapters<W: Into<AdapterWeight> + Clone>(&self, adapter_names: &[&str], weights: &[W]) -> Result<()> {
        if adapter_names.len() != weights.len() {
            let (names, found) = (adapter_names.len(), weights.len());
            return Err(Error::Argument(format!("{found} weights were given for {names} adapters")));
        }
        self.check_adapters(adapter_names)?;
        let weights: Vec<AdapterWeight> = weights.iter().cloned().map(Into::into).collect();
        let names: Vec<_> = adapter_names.iter().map(ToString::to_string).collect();
        // The UNet comes first, the only one of them that can refuse.
        for (component, model) in self.lora_models() {
            let own = |weight: &AdapterWeight| match component {
                "unet" => weight.unet.clone(),
                _ => weight.text_encoder.into(),
            };
            peft::set_adapter_weights(model, &names, &weights.iter().map(own).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// The adapter as it is saved, by the components that it has layers in.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that no adapter has.
    pub fn lora_layers(&self, adapter_name: &str) -> Result<Vec<(&'static str, LoraLayers)>> {
        self.check_adapters(&[adapter_name])?;
        let has = |model: &Node| peft::list_adapters(model).iter().any(|known| known == adapter_name);
        let models = self.lora_models().into_iter().filter(|(_, model)| has(model));
        models.map(|(component, model)| Ok((component, LoraLayers::of(model, adapter_name)?))).collect()
    }

    /// Writes a LoRA to a file in `folder`, which is made if there is none, so that diffusers reads it: `layers` by the
    /// components of [`LORA_LOADABLE_MODULES`], as [`StableDiffusionPipeline::lora_layers`] takes them out of a pipeline.
    /// Gives the file.
    ///
    /// # Examples
    /// ```no_run
    /// use tch_diffusers::{StableDiffusionPipeline, loaders::lora::SaveLora};
    /// # let mut pipe = StableDiffusionPipeline::from_pretrained("stable-diffusion-v1-5").load()?;
    /// StableDiffusionPipeline::save_lora_weights("pixel", &pipe.lora_layers("pixel")?, &SaveLora::default())?;
    /// # Ok::<(), tch_diffusers::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] for another component; and as [`save_lora_weights`].
    pub fn save_lora_weights(
        folder: impl AsRef<Path>,
        layers: &[(&str, LoraLayers)],
        options: &SaveLora,
    ) -> Result<PathBuf> {
        if let Some((unknown, _)) = layers.iter().find(|(name, _)| !LORA_LOADABLE_MODULES.contains(name)) {
            let known = LORA_LOADABLE_MODULES.join(", ");
            return Err(Error::Argument(format!("LoRAs are not of `{unknown}`: components are {known}")));
        }
        let parts: Vec<_> = layers.iter().map(|(component, layers)| (*component, layers)).collect();
        save_lora_weights(folder, &parts, options)
    }

    /// Forgets these adapters. A model that has no other active one takes the first by name.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that no adapter has, or of one that is fused; nothing is changed then.
    pub fn delete_adapters(&self, adapter_names: &[&str]) -> Result<()> {
        self.check_adapters(adapter_names)?;
        if let Some(fused) = self.fused_loras().iter().find(|fused| adapter_names.contains(&fused.as_str())) {
            return Err(Error::Argument(format!(
                "adapter `{fused}` is fused: call unfuse_lora first, or unload_lora_weights to keep it in the weights"
            )));
        }
        for (_, model) in self.lora_models() {
            adapter_names.iter().try_for_each(|name| peft::delete_adapter(model, name))?;
        }
        Ok(())
    }

    /// Has no adapter take part; fused ones are taken out of the weights.
    ///
    /// # Errors
    /// As [`peft::unfuse_lora`], where adapters are fused.
    pub fn disable_lora(&self) -> Result<()> {
        let within = |(name, model): (&str, &Node)| peft::disable_lora(model).map_err(|error| error.within(name));
        self.lora_models().into_iter().try_for_each(within)
    }

    /// Has the active adapters take part again.
    pub fn enable_lora(&self) {
        self.lora_models().into_iter().for_each(|(_, model)| peft::enable_lora(model));
    }

    /// Adds adapters to the models' own weights, so that a step costs no more than without them. See [`peft::fuse_lora`] for
    /// the memory.
    ///
    /// # Errors
    /// As there, and [`Error::Argument`] for components or adapters that there are none of. What was fused before the model
    /// that failed stays fused.
    pub fn fuse_lora(&self, options: &FuseLora<'_>) -> Result<()> {
        let models = self.lora_models_of(options.components)?;
        self.check_adapters(options.adapter_names.unwrap_or_default())?;
        let names = options.adapter_names.map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
        models.into_iter().try_for_each(|(component, model)| {
            peft::fuse_lora(model, options.lora_scale, options.safe_fusing, names.as_deref())
                .map_err(|error| error.within(component))
        })
    }

    /// Gives the weights of `components` the numbers that they had before adapters were fused, to the bit:
    /// `unfuse_lora(&LORA_LOADABLE_MODULES)`.
    ///
    /// # Errors
    /// As [`peft::unfuse_lora`], and [`Error::Argument`] for a component that has no LoRAs.
    pub fn unfuse_lora(&self, components: &[&str]) -> Result<()> {
        let within = |(name, model): (&str, &Node)| peft::unfuse_lora(model).map_err(|error| error.within(name));
        self.lora_models_of(components)?.into_iter().try_for_each(|it| within(it).map(drop))
    }

    /// The names of the adapters that are fused into some model, sorted.
    #[must_use]
    pub fn fused_loras(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.lora_models().into_iter().flat_map(|(_, model)| peft::fused_loras(model)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// How many adapters are fused.
    #[must_use]
    pub fn num_fused_loras(&self) -> usize {
        self.fused_loras().len()
    }

    /// Forgets all adapters: the models are what they were before, to the bit. Those that are fused stay in the weights for
    /// good, as in diffusers; call [`StableDiffusionPipeline::unfuse_lora`] first to have them out.
    pub fn unload_lora_weights(&self) {
        self.lora_models().into_iter().for_each(|(_, model)| peft::unload_lora(model));
    }
}
