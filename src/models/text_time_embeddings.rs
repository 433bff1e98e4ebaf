//! The embedding of time, guidance and a pooled text, added up.
//!
//! Mirrors `CombinedTimestepTextProjEmbeddings`, `CombinedTimestepGuidanceTextProjEmbeddings` and
//! `PixArtAlphaTextProjection` of `diffusers/models/embeddings.py` (0.42.1).

use super::embeddings::{TimestepEmbedding, TimestepEmbeddingConfig, Timesteps};
use crate::error::{Error, Result};
use crate::nn::{Activation, Linear, Module, Node, Scope};
use tch::Tensor;

/// Sinusoids that time and guidance are turned into.
const SINUSOIDS: i64 = 256;

/// Two linear layers over a pooled text, SiLU between them.
#[derive(Debug)]
pub struct PixArtAlphaTextProjection {
    node: Node,
    linear_1: Linear,
    linear_2: Linear,
}

impl PixArtAlphaTextProjection {
    /// Reads `linear_1` and `linear_2`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, in_features: i64, hidden_size: i64) -> Result<Self> {
        let linear_1 = Linear::new(&scope / "linear_1", in_features, hidden_size, true)?;
        let linear_2 = Linear::new(&scope / "linear_2", hidden_size, hidden_size, true)?;
        Ok(Self { node: scope.finish::<Self>(), linear_1, linear_2 })
    }

    /// # Shapes
    /// `[batch, in_features]` to `[batch, hidden_size]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, caption: &Tensor) -> Result<Tensor> {
        let [embedding] = self.node.call([caption], |[caption]| {
            let hidden_states = Activation::Silu.forward(&self.linear_1.forward(caption)?)?;
            Ok([self.linear_2.forward(&hidden_states)?])
        })?;
        Ok(embedding)
    }
}

impl Module for PixArtAlphaTextProjection {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Embeds time, a pooled text and, for a model distilled to take it as an input, the guidance scale.
#[derive(Debug)]
pub struct CombinedTimestepTextProjEmbeddings {
    node: Node,
    time_proj: Timesteps,
    timestep_embedder: TimestepEmbedding,
    guidance_embedder: Option<TimestepEmbedding>,
    text_embedder: PixArtAlphaTextProjection,
}

impl CombinedTimestepTextProjEmbeddings {
    /// Reads `timestep_embedder`, `text_embedder` and, with `guidance`, `guidance_embedder`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, embedding_dim: i64, pooled_projection_dim: i64, guidance: bool) -> Result<Self> {
        let config = TimestepEmbeddingConfig::new(SINUSOIDS, embedding_dim);
        let timestep_embedder = TimestepEmbedding::new(&scope / "timestep_embedder", config)?;
        let guidance_embedder =
            guidance.then(|| TimestepEmbedding::new(&scope / "guidance_embedder", config)).transpose()?;
        let text_embedder =
            PixArtAlphaTextProjection::new(&scope / "text_embedder", pooled_projection_dim, embedding_dim)?;
        let time_proj = Timesteps::new(SINUSOIDS, true, 0.0)?;
        Ok(Self { node: scope.finish::<Self>(), time_proj, timestep_embedder, guidance_embedder, text_embedder })
    }

    /// # Shapes
    /// `timestep` and `guidance` are `[batch]`, `pooled_projection` is `[batch, pooled_projection_dim]`; the embedding is
    /// `[batch, embedding_dim]`.
    ///
    /// # Errors
    /// [`Error::Argument`] for guidance where the model has no layer for it, or none where it has.
    pub fn forward(&self, timestep: &Tensor, guidance: Option<&Tensor>, pooled_projection: &Tensor) -> Result<Tensor> {
        let embed = |embedder: &TimestepEmbedding, number: &Tensor, text: &Tensor| {
            embedder.forward(&self.time_proj.forward(number)?.f_to_kind(text.f_kind()?)?, None)
        };
        let [embedding] = match (guidance, &self.guidance_embedder) {
            (None, None) => self.node.call([timestep, pooled_projection], |[timestep, text]| {
                let time = embed(&self.timestep_embedder, timestep, text)?;
                Ok([time.f_add(&self.text_embedder.forward(text)?)?])
            }),
            (Some(guidance), Some(embedder)) => {
                self.node.call([timestep, guidance, pooled_projection], |[timestep, guidance, text]| {
                    let time = embed(&self.timestep_embedder, timestep, text)?;
                    let time = time.f_add(&embed(embedder, guidance, text)?)?;
                    Ok([time.f_add(&self.text_embedder.forward(text)?)?])
                })
            }
            (None, Some(_)) => {
                Err(self.refusal("this model takes guidance as an input (`guidance_embeds`), and none was given"))
            }
            (Some(_), None) => {
                Err(self.refusal("guidance was given to a model that takes none (`guidance_embeds` is false)"))
            }
        }?;
        Ok(embedding)
    }

    fn refusal(&self, text: &str) -> Error {
        Error::Argument(text.into()).at(self.node.path())
    }
}

impl Module for CombinedTimestepTextProjEmbeddings {
    fn node(&self) -> &Node {
        &self.node
    }
}
