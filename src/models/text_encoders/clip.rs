//! CLIP's text models.
//!
//! Mirrors `CLIPTextModel` and `CLIPTextModelWithProjection` of `transformers/models/clip/modeling_clip.py` at 5.23.
//! Radford et al. 2021, arXiv:2103.00020.

use super::clip_config::CLIPTextConfig;
use super::clip_encoder::{CLIPEncoderLayer, CLIPTextEmbeddings, Visible};
use crate::error::{Error, Result};
use crate::loaders::KeyMap;
use crate::loaders::lora::PeftAdapterMixin;
use crate::models::ModelMixin;
use crate::nn::{LayerNorm, Linear, Module, Node, Scope};
use crate::torch::NumberExt;
use std::cell::RefCell;
use tch::{Kind, Tensor};

/// What [`CLIPTextModel::forward`] returns.
#[derive(Debug)]
pub struct CLIPTextModelOutput {
    /// The last layer's output after `final_layer_norm`, `[batch, tokens, hidden_size]`.
    pub last_hidden_state: Tensor,
    /// `last_hidden_state` at the end-of-text token, `[batch, hidden_size]`.
    pub pooler_output: Tensor,
    /// The embeddings and each layer's output, `num_hidden_layers + 1` tensors without `final_layer_norm`; `None`
    /// unless they were asked for.
    pub hidden_states: Option<Vec<Tensor>>,
}

/// The text half of CLIP.
///
/// Its weights are named as transformers 5 names them, without the `text_model.` of earlier checkpoints, which
/// [`CLIPTextModel::checkpoint_key`] takes off.
///
/// # Examples
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_diffusers::models::text_encoders::{CLIPTextConfig, CLIPTextModel};
/// use tch_diffusers::nn::{RandomWeights, Scope};
///
/// let weights = RandomWeights::new(0, Kind::Float)?;
/// let config = CLIPTextConfig { vocab_size: 1000, num_hidden_layers: 2, ..CLIPTextConfig::default() };
/// let text_encoder = CLIPTextModel::new(config, Scope::root(&weights))?;
/// let input_ids = Tensor::zeros([1, 77], (Kind::Int64, Device::Cpu));
/// let prompt_embeds = text_encoder.forward(&input_ids, None, false)?.last_hidden_state;
/// assert_eq!(prompt_embeds.size(), [1, 77, 512]);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct CLIPTextModel {
    node: Node,
    config: CLIPTextConfig,
    embeddings: CLIPTextEmbeddings,
    layers: Vec<CLIPEncoderLayer>,
    final_layer_norm: LayerNorm,
    eos_token_id: i64,
}

impl CLIPTextModel {
    /// Builds the model, its weights coming from `scope`.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Unsupported`] for a configuration that cannot be; whatever the weights fail with.
    pub fn new(config: CLIPTextConfig, scope: Scope<'_>) -> Result<Self> {
        let eos_token_id = config.eos()?;
        let embeddings = CLIPTextEmbeddings::new(&scope / "embeddings", &config)?;
        let (encoder, of_layer) = (&scope / "encoder" / "layers", config.layer()?);
        let layers = (0..config.num_hidden_layers)
            .map(|layer| CLIPEncoderLayer::new(&encoder / layer, &of_layer))
            .collect::<Result<_>>()?;
        let final_layer_norm = LayerNorm::new(&scope / "final_layer_norm", config.hidden_size, config.layer_norm_eps)?;
        Ok(Self { node: scope.finish::<Self>(), config, embeddings, layers, final_layer_norm, eos_token_id })
    }

    /// The configuration the model was built from.
    #[must_use]
    pub fn config(&self) -> &CLIPTextConfig {
        &self.config
    }

    /// What the model calls the checkpoint's `key`: the key itself, or what follows `text_model.`. `None` for
    /// `embeddings.position_ids`, which old checkpoints hold and no model needs.
    #[must_use]
    pub fn checkpoint_key(key: &str) -> Option<String> {
        let key = key.strip_prefix("text_model.").unwrap_or(key);
        (key != "embeddings.position_ids").then(|| key.into())
    }

    /// Runs the model. Tokens where `attention_mask` is zero are not looked at.
    ///
    /// # Shapes
    /// `input_ids` `[batch, tokens]` and `attention_mask` `[batch, tokens]`, both int64.
    ///
    /// # Errors
    /// [`Error::Argument`] for an id outside the vocabulary, [`Error::Shape`] for more than `max_position_embeddings`
    /// tokens or a mask of another shape, both before anything is computed.
    pub fn forward(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        output_hidden_states: bool,
    ) -> Result<CLIPTextModelOutput> {
        let recorded = RefCell::new(Vec::new());
        let [last_hidden_state, pooler_output] = self.node.call([input_ids], |[input_ids]| {
            // A hook may run the model twice.
            recorded.borrow_mut().clear();
            let record = |state: &Tensor| {
                if output_hidden_states {
                    recorded.borrow_mut().push(state.shallow_clone());
                }
            };
            let hidden_states = self.encode(input_ids, attention_mask, self.layers.len(), record)?;
            let last_hidden_state = self.final_layer_norm.forward(&hidden_states)?;
            let pooler_output = self.pool(&last_hidden_state, input_ids)?;
            Ok([last_hidden_state, pooler_output])
        })?;
        let hidden_states = output_hidden_states.then(|| recorded.into_inner());
        Ok(CLIPTextModelOutput { last_hidden_state, pooler_output, hidden_states })
    }

    /// `hidden_states[-(skipped_layers + 1)]` of [`CLIPTextModel::forward`]: what the layer before the last
    /// `skipped_layers` puts out, without `final_layer_norm`. SDXL takes it with `skipped_layers` 1. The layers skipped
    /// are not computed.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are fewer layers than are to be skipped; else as [`CLIPTextModel::forward`].
    pub fn hidden_state(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        skipped_layers: usize,
    ) -> Result<Tensor> {
        let layers = self.layers_without(skipped_layers)?;
        let [hidden_states] = self
            .node
            .call([input_ids], |[input_ids]| Ok([self.encode(input_ids, attention_mask, layers, |_| ())?]))?;
        Ok(hidden_states)
    }

    /// The prompt's embedding as `StableDiffusionPipeline.encode_prompt` makes it with `clip_skip`:
    /// [`CLIPTextModel::hidden_state`] through `final_layer_norm`. With 0 it is `last_hidden_state`.
    ///
    /// # Errors
    /// As [`CLIPTextModel::hidden_state`].
    pub fn clip_skip(&self, input_ids: &Tensor, attention_mask: Option<&Tensor>, clip_skip: usize) -> Result<Tensor> {
        let layers = self.layers_without(clip_skip)?;
        let [hidden_states] = self.node.call([input_ids], |[input_ids]| {
            let hidden_states = self.encode(input_ids, attention_mask, layers, |_| ())?;
            Ok([self.final_layer_norm.forward(&hidden_states)?])
        })?;
        Ok(hidden_states)
    }

    fn layers_without(&self, skipped: usize) -> Result<usize> {
        let layers = self.layers.len();
        layers.checked_sub(skipped).ok_or_else(|| {
            Error::Argument(format!("`clip_skip` is {skipped}, and the text encoder has {layers} layers to skip from"))
                .at(self.node.path())
        })
    }

    /// The embeddings through the first `layers` layers; `record` sees each state on the way.
    fn encode(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        layers: usize,
        record: impl Fn(&Tensor),
    ) -> Result<Tensor> {
        let mut hidden_states = self.embeddings.forward(input_ids)?;
        let mask = Visible::causal(&hidden_states, attention_mask)?;
        record(&hidden_states);
        for layer in self.layers.iter().take(layers) {
            hidden_states = layer.forward(&hidden_states, &mask)?;
            record(&hidden_states);
        }
        Ok(hidden_states)
    }

    /// Each sequence's state at its end-of-text token.
    fn pool(&self, last_hidden_state: &Tensor, input_ids: &Tensor) -> Result<Tensor> {
        let ids = input_ids.f_to_device(last_hidden_state.device())?.f_to_kind(Kind::Int)?;
        let position = match self.eos_token_id {
            // The largest id of CLIP's own vocabulary is the end of text.
            2 => ids.f_argmax(-1, false)?,
            eos => ids.is_equal_to(eos)?.f_to_kind(Kind::Int)?.f_argmax(-1, false)?,
        };
        let position = position.f_unsqueeze(-1)?.f_unsqueeze(-1)?.f_expand([-1, -1, self.config.hidden_size], false)?;
        Ok(last_hidden_state.f_gather(1, &position, false)?.f_squeeze_dim(1)?)
    }
}

impl Module for CLIPTextModel {
    fn node(&self) -> &Node {
        &self.node
    }
}

impl PeftAdapterMixin for CLIPTextModel {}

impl ModelMixin for CLIPTextModel {
    type Config = CLIPTextConfig;

    const CLASS_NAME: &'static str = "CLIPTextModel";
    const WEIGHTS_STEM: &'static str = "model";
    const KEYS: KeyMap = Self::checkpoint_key;

    fn from_scope(config: CLIPTextConfig, scope: Scope<'_>) -> Result<Self> {
        Self::new(config, scope)
    }

    fn config(&self) -> &CLIPTextConfig {
        self.config()
    }
}

/// What [`CLIPTextModelWithProjection::forward`] returns.
#[derive(Debug)]
pub struct CLIPTextModelWithProjectionOutput {
    /// The pooled state through `text_projection`, `[batch, projection_dim]`.
    pub text_embeds: Tensor,
    /// The last layer's output after `final_layer_norm`, `[batch, tokens, hidden_size]`.
    pub last_hidden_state: Tensor,
    /// As [`CLIPTextModelOutput::hidden_states`].
    pub hidden_states: Option<Vec<Tensor>>,
}

/// [`CLIPTextModel`] and a linear map of the pooled state: SDXL's second text encoder, and SD 3's first two.
#[derive(Debug)]
pub struct CLIPTextModelWithProjection {
    node: Node,
    text_model: CLIPTextModel,
    text_projection: Linear,
}

impl CLIPTextModelWithProjection {
    /// Builds the model, its weights coming from `scope`.
    ///
    /// # Errors
    /// As [`CLIPTextModel::new`], and [`Error::Config`] without a `projection_dim`.
    pub fn new(config: CLIPTextConfig, scope: Scope<'_>) -> Result<Self> {
        let projection_dim = config
            .projection_dim
            .ok_or_else(|| Error::Config("`projection_dim` is null: there is nothing to project to".into()))?;
        let hidden_size = config.hidden_size;
        let text_model = CLIPTextModel::new(config, &scope / "text_model")?;
        let text_projection = Linear::new(&scope / "text_projection", hidden_size, projection_dim, false)?;
        Ok(Self { node: scope.finish::<Self>(), text_model, text_projection })
    }

    /// The configuration the model was built from.
    #[must_use]
    pub fn config(&self) -> &CLIPTextConfig {
        self.text_model.config()
    }

    /// The model without the projection, for [`CLIPTextModel::hidden_state`] and [`CLIPTextModel::clip_skip`].
    #[must_use]
    pub fn text_model(&self) -> &CLIPTextModel {
        &self.text_model
    }

    /// What the model calls the checkpoint's `key`; the twin of [`CLIPTextModel::checkpoint_key`], for here the names
    /// do begin with `text_model.`.
    #[must_use]
    pub fn checkpoint_key(key: &str) -> Option<String> {
        if key.starts_with("text_projection.") {
            return Some(key.into());
        }
        let inner = ["embeddings.", "encoder.", "final_layer_norm."].iter().any(|name| key.starts_with(name));
        let key = if inner { format!("text_model.{key}") } else { key.into() };
        (key != "text_model.embeddings.position_ids").then_some(key)
    }

    /// Runs the model; arguments, shapes and errors are [`CLIPTextModel::forward`]'s.
    ///
    /// # Errors
    /// As [`CLIPTextModel::forward`].
    pub fn forward(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        output_hidden_states: bool,
    ) -> Result<CLIPTextModelWithProjectionOutput> {
        let recorded = RefCell::new(None);
        let [text_embeds, last_hidden_state] = self.node.call([input_ids], |[input_ids]| {
            let output = self.text_model.forward(input_ids, attention_mask, output_hidden_states)?;
            recorded.replace(output.hidden_states);
            Ok([self.text_projection.forward(&output.pooler_output)?, output.last_hidden_state])
        })?;
        let hidden_states = recorded.into_inner();
        Ok(CLIPTextModelWithProjectionOutput { text_embeds, last_hidden_state, hidden_states })
    }
}

impl Module for CLIPTextModelWithProjection {
    fn node(&self) -> &Node {
        &self.node
    }
}

impl ModelMixin for CLIPTextModelWithProjection {
    type Config = CLIPTextConfig;

    const CLASS_NAME: &'static str = "CLIPTextModelWithProjection";
    const WEIGHTS_STEM: &'static str = "model";
    const KEYS: KeyMap = Self::checkpoint_key;

    fn from_scope(config: CLIPTextConfig, scope: Scope<'_>) -> Result<Self> {
        Self::new(config, scope)
    }

    fn config(&self) -> &CLIPTextConfig {
        self.config()
    }
}
