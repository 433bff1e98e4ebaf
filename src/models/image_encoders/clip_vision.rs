//! CLIP's vision model.
//!
//! Mirrors `CLIPVisionModel` of `transformers/models/clip/modeling_clip.py` at 5.23, on its default path (`sdpa`). Radford
//! et al. 2021, arXiv:2103.00020; Dosovitskiy et al. 2020, arXiv:2010.11929.

use super::clip_vision_config::CLIPVisionConfig;
use crate::error::{Error, Result};
use crate::loaders::KeyMap;
use crate::models::ModelMixin;
use crate::models::text_encoders::{CLIPEncoderLayer, PositionEmbedding, Visible};
use crate::nn::{Conv2d, Conv2dConfig, LayerNorm, Module, Node, Param, Scope};
use tch::Tensor;

/// What [`CLIPVisionModel::forward`] returns.
#[derive(Debug)]
pub struct CLIPVisionModelOutput {
    /// The last layer's output, `[batch, patches + 1, hidden_size]`.
    pub last_hidden_state: Tensor,
    /// Its first place, which stands for the picture, after `post_layernorm`: `[batch, hidden_size]`.
    pub pooler_output: Tensor,
}

/// A picture's patches as vectors, with one before them that is learned and stands for all.
#[derive(Debug)]
struct CLIPVisionEmbeddings {
    node: Node,
    class_embedding: Param,
    patch_embedding: Conv2d,
    position_embedding: PositionEmbedding,
    num_channels: i64,
    image_size: i64,
}

impl CLIPVisionEmbeddings {
    fn new(scope: Scope<'_>, config: &CLIPVisionConfig) -> Result<Self> {
        let &CLIPVisionConfig { hidden_size, num_channels, image_size, patch_size, .. } = config;
        let positions = config.positions()?;
        let patches = Conv2dConfig { kernel: patch_size, stride: patch_size, padding: 0 };
        let class_embedding = scope.param("class_embedding", &[hidden_size])?;
        let patch_embedding = Conv2d::without_bias(&scope / "patch_embedding", num_channels, hidden_size, patches)?;
        let position_embedding = PositionEmbedding::new(&scope / "position_embedding", positions, hidden_size)?;
        let node = scope.finish::<Self>();
        Ok(Self { node, class_embedding, patch_embedding, position_embedding, num_channels, image_size })
    }

    fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let [embeddings] = self.node.call([pixel_values], |[pixel_values]| {
            let (batch, channels, height, width) = pixel_values.size4()?;
            let (expected, side) = (self.num_channels, self.image_size);
            if [channels, height, width] != [expected, side, side] {
                let found = [channels, height, width];
                return Err(Error::Shape(format!(
                    "pictures are {found:?}, where {:?} is looked at",
                    [expected, side, side]
                )));
            }
            let class_embedding = self.class_embedding.get();
            let pixel_values = pixel_values.f_to_kind(class_embedding.kind())?;
            let patches = self.patch_embedding.forward(&pixel_values)?.f_flatten(2, -1)?.f_transpose(1, 2)?;
            let class_embedding = class_embedding.f_expand([batch, 1, -1], false)?;
            Ok([self.position_embedding.forward(&Tensor::f_cat(&[class_embedding, patches], 1)?)?])
        })?;
        Ok(embeddings)
    }
}

impl Module for CLIPVisionEmbeddings {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// The half of CLIP that looks at pictures.
///
/// Its weights are named as transformers 5 names them, without the `vision_model.` of earlier checkpoints, which
/// [`CLIPVisionModel::checkpoint_key`] takes off.
///
/// # Examples
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_diffusers::models::image_encoders::{CLIPVisionConfig, CLIPVisionModel};
/// use tch_diffusers::nn::{RandomWeights, Scope};
///
/// let weights = RandomWeights::new(0, Kind::Float)?;
/// let config = CLIPVisionConfig { num_hidden_layers: 1, ..CLIPVisionConfig::default() };
/// let model = CLIPVisionModel::new(config, Scope::root(&weights))?;
/// let pixel_values = Tensor::zeros([1, 3, 224, 224], (Kind::Float, Device::Cpu));
/// assert_eq!(model.forward(&pixel_values)?.last_hidden_state.size(), [1, 50, 768]);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct CLIPVisionModel {
    node: Node,
    config: CLIPVisionConfig,
    embeddings: CLIPVisionEmbeddings,
    pre_layrnorm: LayerNorm,
    layers: Vec<CLIPEncoderLayer>,
    post_layernorm: LayerNorm,
}

impl CLIPVisionModel {
    /// Builds the model, its weights coming from `scope`.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Unsupported`] for a configuration that cannot be; whatever the weights fail with.
    pub fn new(config: CLIPVisionConfig, scope: Scope<'_>) -> Result<Self> {
        let norm = |name: &str| LayerNorm::new(&scope / name, config.hidden_size, config.layer_norm_eps);
        let of_layer = config.layer()?;
        let embeddings = CLIPVisionEmbeddings::new(&scope / "embeddings", &config)?;
        let pre_layrnorm = norm("pre_layrnorm")?;
        let encoder = &scope / "encoder" / "layers";
        let layers = (0..config.num_hidden_layers)
            .map(|layer| CLIPEncoderLayer::new(&encoder / layer, &of_layer))
            .collect::<Result<_>>()?;
        let post_layernorm = norm("post_layernorm")?;
        Ok(Self { node: scope.finish::<Self>(), config, embeddings, pre_layrnorm, layers, post_layernorm })
    }

    /// The configuration the model was built from.
    #[must_use]
    pub fn config(&self) -> &CLIPVisionConfig {
        &self.config
    }

    /// What the model calls the checkpoint's `key`: the key itself, or what follows `vision_model.`. `None` for
    /// `embeddings.position_ids`, which old checkpoints hold and no model needs.
    #[must_use]
    pub fn checkpoint_key(key: &str) -> Option<String> {
        let key = key.strip_prefix("vision_model.").unwrap_or(key);
        (key != "embeddings.position_ids").then(|| key.into())
    }

    /// Runs the model.
    ///
    /// # Shapes
    /// `pixel_values` is `[batch, num_channels, image_size, image_size]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for pictures of another size.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<CLIPVisionModelOutput> {
        let [last_hidden_state, pooler_output] = self.node.call([pixel_values], |[pixel_values]| {
            let mut hidden_states = self.pre_layrnorm.forward(&self.embeddings.forward(pixel_values)?)?;
            for layer in &self.layers {
                hidden_states = layer.forward(&hidden_states, &Visible::All)?;
            }
            let pooled = self.post_layernorm.forward(&hidden_states.f_select(1, 0)?)?;
            Ok([hidden_states, pooled])
        })?;
        Ok(CLIPVisionModelOutput { last_hidden_state, pooler_output })
    }
}

impl Module for CLIPVisionModel {
    fn node(&self) -> &Node {
        &self.node
    }
}

impl ModelMixin for CLIPVisionModel {
    type Config = CLIPVisionConfig;

    const CLASS_NAME: &'static str = "CLIPVisionModel";
    const WEIGHTS_STEM: &'static str = "model";
    const KEYS: KeyMap = Self::checkpoint_key;

    fn from_scope(config: CLIPVisionConfig, scope: Scope<'_>) -> Result<Self> {
        Self::new(config, scope)
    }

    fn config(&self) -> &CLIPVisionConfig {
        self.config()
    }
}
