//! Models found by what their folder says.
//!
//! Mirrors `diffusers/models/auto_model.py` at 0.42.1.

use super::autoencoders::AutoencoderKL;
use super::text_encoders::{CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel};
use super::transformers::FluxTransformer2DModel;
use super::unets::UNet2DConditionModel;
use super::{ModelLoader, ModelMixin, To};
use crate::configuration_utils::{ConfigMap, read_json};
use crate::error::{Error, Result};
use crate::nn::{Module, Node};
use serde_json::Value;
use std::path::Path;

/// Declares the models that there are, once.
macro_rules! auto_model {
    ($($(#[$doc:meta])* $model:ident),+ $(,)?) => {
        /// A model of any class there is.
        ///
        /// # Examples
        /// ```
        /// use tch_diffusers::{AutoModel, utils::assets::bundled_model};
        /// let model = AutoModel::from_pretrained(bundled_model()?).subfolder("unet").load()?;
        /// let AutoModel::UNet2DConditionModel(unet) = model else { panic!("not a UNet: {}", model.class_name()) };
        /// # drop(unet);
        /// # Ok::<(), tch_diffusers::Error>(())
        /// ```
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum AutoModel {
            $($(#[$doc])* $model(Box<$model>),)+
        }

        /// The classes there are.
        const CLASSES: &[&str] = &[$($model::CLASS_NAME),+];

        impl AutoModel {
            /// diffusers' or transformers' name of the class.
            #[must_use]
            pub fn class_name(&self) -> &'static str {
                match self {
                    $(Self::$model(_) => $model::CLASS_NAME,)+
                }
            }

            /// Moves, casts or re-lays the weights, in place.
            ///
            /// # Errors
            /// As [`ModelMixin::to`].
            pub fn to(&self, target: impl Into<To>) -> Result<()> {
                match self {
                    $(Self::$model(model) => model.to(target),)+
                }
            }

            /// Writes `config.json` and the weights to `folder`, so that diffusers reads them back.
            ///
            /// # Errors
            /// As [`ModelMixin::save_pretrained`].
            pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
                match self {
                    $(Self::$model(model) => model.save_pretrained(folder),)+
                }
            }
        }

        impl Module for AutoModel {
            fn node(&self) -> &Node {
                match self {
                    $(Self::$model(model) => model.node(),)+
                }
            }
        }

        fn load(loader: ModelLoader<AutoModel>, class_name: &str, config: &Path) -> Result<AutoModel> {
            match class_name {
                $($model::CLASS_NAME => Ok(AutoModel::$model(Box::new(loader.of_class::<$model>().load()?))),)+
                other => {
                    let (config, known) = (config.display(), CLASSES.join(", "));
                    Err(Error::Unsupported(format!("{config}: the model is a {other}; there are {known}")))
                }
            }
        }
    };
}

auto_model!(
    /// The UNet of Stable Diffusion and of SDXL.
    UNet2DConditionModel,
    /// The variational autoencoder of all of them.
    AutoencoderKL,
    /// FLUX.1's transformer.
    FluxTransformer2DModel,
    /// The text half of CLIP.
    CLIPTextModel,
    /// The text half of CLIP with its projection, SDXL's second text encoder.
    CLIPTextModelWithProjection,
    /// T5's encoder.
    T5EncoderModel,
);

impl AutoModel {
    /// Reads the model that diffusers wrote to `folder`, of the class that its `config.json` names. Options follow, as those
    /// of [`ModelMixin::from_pretrained`]; `load` reads it.
    pub fn from_pretrained(folder: impl AsRef<Path>) -> ModelLoader<Self> {
        ModelLoader::new(folder.as_ref())
    }
}

impl ModelLoader<AutoModel> {
    /// Reads `config.json` and the weights, and builds the model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a class that is not there; [`Error::Config`] where none is named; else as for the
    /// model itself.
    pub fn load(mut self) -> Result<AutoModel> {
        let (subfolder, variant) = (self.options.subfolder.as_deref(), self.options.variant.as_deref());
        let find = |stem: &str| self.options.hub.model_folder(&self.folder, subfolder, stem, variant);
        // On the Hub, the names of the files tell models of diffusers from those of transformers.
        let folder = find(UNet2DConditionModel::WEIGHTS_STEM)
            .or_else(|error| find(CLIPTextModel::WEIGHTS_STEM).map_err(|_| error))?;
        self.folder = folder;
        let path = self.options.folder(&self.folder).join("config.json");
        let config: ConfigMap = read_json(&path)?;
        let of_transformers = config.get("architectures").and_then(|classes| classes.get(0));
        let class_name = config.get("_class_name").or(of_transformers).and_then(Value::as_str).ok_or_else(|| {
            Error::Config(format!("{}: there is neither `_class_name` nor `architectures`", path.display()))
        })?;
        load(self, class_name, &path)
    }
}
