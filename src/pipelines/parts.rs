//! What techniques need to know of a pipeline.

use crate::error::Result;
use crate::hooks::ModelOffload;
use crate::models::ModelMixin;
use crate::models::autoencoders::AutoencoderKL;
use crate::nn::Node;

/// One of a pipeline's models, as techniques see it.
#[derive(Clone, Debug)]
pub struct PipelineModel {
    /// The component's name, such as `text_encoder`.
    pub name: &'static str,
    /// The model's tree.
    pub node: Node,
    /// The children that block-level group offloading cuts into blocks of their own.
    pub(super) block_modules: &'static [&'static str],
    /// What layerwise casting leaves as it is.
    pub(super) skip_casting: &'static [&'static str],
    /// Whether it stays on the device where one model at a time, or one layer, is brought there.
    pub(super) stays: bool,
}

impl PipelineModel {
    /// The model `model`, which is called `name`.
    pub fn new<M: ModelMixin>(name: &'static str, model: &M) -> Self {
        Self::of_node::<M>(name, model.node())
    }

    /// A model at `node` that is treated as one of class `M`.
    pub fn of_node<M: ModelMixin>(name: &'static str, node: &Node) -> Self {
        Self {
            name,
            node: node.clone(),
            block_modules: M::GROUP_OFFLOAD_BLOCK_MODULES,
            skip_casting: M::SKIP_LAYERWISE_CASTING_PATTERNS,
            stays: false,
        }
    }

    /// The same, staying on the device while other models are offloaded one by one: diffusers' `_exclude_from_cpu_offload`.
    /// Group offloading takes it all the same.
    #[must_use]
    pub fn staying(self) -> Self {
        Self { stays: true, ..self }
    }

    /// The length of all weights, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let weights = self.node.params();
        let weights = weights.iter().map(|(_, param)| param.get());
        weights.map(|weight| weight.numel() * weight.kind().elt_size_in_bytes()).sum()
    }
}

/// The parts of a pipeline that techniques work on.
pub trait Parts {
    /// The models that have modules, in the order of their use: diffusers' `model_cpu_offload_seq`.
    fn models(&self) -> Vec<PipelineModel>;

    /// The model that predicts noise or velocity, for a `technique` that works on its modules.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if it has none.
    fn denoiser(&self, technique: &str) -> Result<PipelineModel>;

    /// The autoencoder.
    fn autoencoder(&self) -> &AutoencoderKL;

    /// The autoencoder, to be changed.
    fn autoencoder_mut(&mut self) -> &mut AutoencoderKL;

    /// The model offloading that is on.
    fn model_offload(&self) -> Option<&ModelOffload>;

    /// Where the model offloading is kept.
    fn model_offload_mut(&mut self) -> &mut Option<ModelOffload>;
}
