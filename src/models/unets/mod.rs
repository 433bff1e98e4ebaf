//! The UNets that predict noise.

mod compiled_unet;
mod traced_unet;
mod unet_2d_blocks;
mod unet_2d_condition;

pub use compiled_unet::CompiledUNet;
pub(crate) use compiled_unet::compile_shared;
pub use traced_unet::TracedUNet;
pub use unet_2d_blocks::{
    BlockConfig, Conditioning, CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, TransformerConfig,
    UNetMidBlock2D, UNetMidBlock2DCrossAttn, UpBlock2D, UpChannels,
};
pub use unet_2d_condition::{AddedCond, UNet2DConditionConfig, UNet2DConditionModel, UNetInputs};

use crate::error::{Error, Result};
use crate::models::To;
use crate::nn::Node;
use std::any::Any;
use std::fmt::Debug;
use tch::{Device, Kind, Tensor};

/// What a pipeline asks of its UNet: a [`UNet2DConditionModel`], or whatever takes its place.
pub trait UNet: Debug + Send + Sync {
    /// The configuration, which says what the inputs are to be.
    fn config(&self) -> &UNet2DConditionConfig;

    /// Predicts the noise, or what else the model was trained to predict.
    ///
    /// # Shapes
    /// As the sample, with `out_channels` channels.
    ///
    /// # Errors
    /// If the inputs do not fit the configuration.
    fn forward(&self, inputs: &UNetInputs<'_>) -> Result<Tensor>;

    /// The dtype that the sample is to have.
    fn dtype(&self) -> Kind;

    /// The device that the inputs are to be on: that of the weights, or that where offloading takes them.
    fn device(&self) -> Device;

    /// Moves, casts or re-lays the weights, in place.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] where there is no room, [`crate::Error::Unsupported`] where they are fixed.
    fn move_to(&self, target: To) -> Result<()>;

    /// A second UNet over the same weights, for another thread: see [`ModelMixin::share`](crate::models::ModelMixin::share).
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the UNet knows how; else as there.
    fn share(&self) -> Result<Box<dyn UNet>> {
        Err(Error::Unsupported("this kind of UNet cannot share its weights: load one for each pipeline".into()))
    }

    /// The tree of modules, for techniques that walk it; `None` for a UNet that has none, such as a traced one.
    fn tree(&self) -> Option<&Node> {
        None
    }

    /// Takes over the configuration of the UNet whose place it takes; for those that have none of their own, such as a
    /// traced one.
    fn adopt(&mut self, config: &UNet2DConditionConfig) {
        let _ = config;
    }

    /// The model behind it, which a compiled UNet has as well; `None` for a UNet that has none, such as a traced one.
    fn model(&self) -> Option<&UNet2DConditionModel> {
        None
    }

    /// The UNet itself, for those who know what it is.
    fn as_any(&self) -> &dyn Any;
}
