//! A transformer over the pixels of a feature map.
//!
//! Mirrors `Transformer2DModel` of `diffusers/models/transformers/transformer_2d.py` (0.42.1) for continuous input, as
//! UNets use it: Rombach et al. 2022, arXiv:2112.10752, appendix E.2.

use crate::error::Result;
use crate::models::attention::{BasicTransformerBlock, BasicTransformerBlockConfig};
use crate::nn::{Conv2d, Conv2dConfig, GroupNorm, Linear, Module, Node, Scope};
use crate::torch::TensorExt;
use tch::Tensor;

/// What a [`Transformer2DModel`] is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transformer2DConfig {
    /// Number of heads.
    pub num_attention_heads: i64,
    /// Channels of each head; the heads together have all channels of the feature map.
    pub attention_head_dim: i64,
    /// Number of blocks.
    pub num_layers: i64,
    /// Groups of the norm at the start.
    pub norm_num_groups: i64,
    /// Channels of the text's tokens; none leaves out the attention to it.
    pub cross_attention_dim: Option<i64>,
    /// Whether the tokens are projected by a linear layer instead of a convolution of kernel 1.
    pub use_linear_projection: bool,
    /// Whether the tokens look at the text only, and not at each other.
    pub only_cross_attention: bool,
    /// Whether attention in slices computes its scores in float32.
    pub upcast_attention: bool,
}

/// The map between the feature map's channels and the tokens'.
#[derive(Debug)]
enum Projection {
    Conv(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn new(scope: Scope<'_>, channels: i64, linear: bool) -> Result<Self> {
        Ok(if linear {
            Self::Linear(Linear::new(scope, channels, channels, true)?)
        } else {
            Self::Conv(Conv2d::new(scope, channels, channels, Conv2dConfig::POINTWISE)?)
        })
    }
}

/// Blocks of attention over the pixels of a feature map, added to the feature map.
#[derive(Debug)]
pub struct Transformer2DModel {
    node: Node,
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: Projection,
}

impl Transformer2DModel {
    /// Reads `norm`, `proj_in`, `transformer_blocks` and `proj_out`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, config: Transformer2DConfig) -> Result<Self> {
        let Transformer2DConfig { num_attention_heads, attention_head_dim, use_linear_projection, .. } = config;
        let channels = num_attention_heads * attention_head_dim;
        let block = BasicTransformerBlockConfig {
            only_cross_attention: config.only_cross_attention,
            upcast_attention: config.upcast_attention,
            ..BasicTransformerBlockConfig::new(num_attention_heads, attention_head_dim, config.cross_attention_dim)
        };
        let norm = GroupNorm::new(&scope / "norm", config.norm_num_groups, channels, 1e-6)?;
        let proj_in = Projection::new(&scope / "proj_in", channels, use_linear_projection)?;
        let blocks = &scope / "transformer_blocks";
        let transformer_blocks = (0..config.num_layers)
            .map(|index| BasicTransformerBlock::new(&blocks / index, block))
            .collect::<Result<_>>()?;
        let proj_out = Projection::new(&scope / "proj_out", channels, use_linear_projection)?;
        Ok(Self { node: scope.finish::<Self>(), norm, proj_in, transformer_blocks, proj_out })
    }

    /// The masks are added to the scores of the attention to the pixels and of that to the text, as
    /// [`Attention::forward`](crate::models::attention_processor::Attention::forward) says.
    ///
    /// # Shapes
    /// `hidden_states` is `[batch, channels, height, width]`, and the same comes out; `encoder_hidden_states` is
    /// `[batch, keys, cross_attention_dim]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        encoder_hidden_states: &Tensor,
        attention_mask: Option<&Tensor>,
        encoder_attention_mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.attend(hidden_states, encoder_hidden_states, [attention_mask, encoder_attention_mask], false)
    }

    /// [`Transformer2DModel::forward`], after which pixels lie row by row where `row_major` says so, and else as they came.
    pub(crate) fn attend(
        &self,
        hidden_states: &Tensor,
        encoder_hidden_states: &Tensor,
        [attention_mask, encoder_attention_mask]: [Option<&Tensor>; 2],
        row_major: bool,
    ) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states, encoder_hidden_states], |[pixels, text]| {
            let mut tokens = self.tokens(pixels)?;
            for block in &self.transformer_blocks {
                tokens = block.forward(&tokens, text, attention_mask, encoder_attention_mask)?;
            }
            Ok([self.add_to(&tokens, pixels, row_major || pixels.is_contiguous())?])
        })?;
        Ok(hidden_states)
    }

    /// `[batch, channels, height, width]` to `[batch, height * width, channels]`.
    fn tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        let hidden_states = self.norm.forward(pixels)?;
        match &self.proj_in {
            Projection::Conv(conv) => Ok(conv.forward(&hidden_states)?.f_permute([0, 2, 3, 1])?.f_flatten(1, 2)?),
            Projection::Linear(linear) => linear.forward(&hidden_states.f_permute([0, 2, 3, 1])?.f_flatten(1, 2)?),
        }
    }

    /// The way back from `tokens`, and their sum with `pixels`.
    fn add_to(&self, tokens: &Tensor, pixels: &Tensor, row_major: bool) -> Result<Tensor> {
        match &self.proj_out {
            Projection::Conv(conv) => conv.forward(&picture(tokens, pixels, row_major)?)?.add_into(pixels),
            Projection::Linear(linear) => Ok(picture(&linear.forward(tokens)?, pixels, row_major)?.f_add(pixels)?),
        }
    }
}

impl Module for Transformer2DModel {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// `[batch, height * width, channels]` as a picture of the shape of `like`, row by row or with its channels last.
// Differs from diffusers: among weights with their channels last a picture stays so, where diffusers lays it out anew at
// each transformer and back in the convolution that follows.
fn picture(tokens: &Tensor, like: &Tensor, row_major: bool) -> Result<Tensor> {
    // The shape comes from a tensor and not from its numbers, which a trace would fix for good.
    let picture = tokens.f_reshape_as(&like.f_permute([0, 2, 3, 1])?)?.f_permute([0, 3, 1, 2])?;
    Ok(if row_major { picture.f_contiguous()? } else { picture })
}
