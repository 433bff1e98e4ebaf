//! What a UNet is told beside the text: the time, the class, and SDXL's pooled text and sizes.

use super::{AddedCond, UNet2DConditionConfig, UNetInputs};
use crate::error::{Error, Result};
use crate::models::embeddings::{TimestepEmbedding, TimestepEmbeddingConfig, Timesteps};
use crate::nn::{Activation, Embedding, Scope};
use tch::Tensor;

/// The embedding of the timestep, and of everything that is added to it.
#[derive(Debug)]
pub(super) struct Conditions {
    time_proj: Timesteps,
    time_embedding: TimestepEmbedding,
    class_embedding: Option<ClassEmbedding>,
    add_embedding: Option<(Timesteps, TimestepEmbedding)>,
    time_embed_act: Option<Activation>,
    class_embeddings_concat: bool,
    act_fn: Activation,
}

/// `class_embed_type`.
#[derive(Debug)]
enum ClassEmbedding {
    Row(Embedding),
    Timestep(TimestepEmbedding),
    Identity,
    Projection(TimestepEmbedding),
}

impl Conditions {
    /// Reads `time_embedding`, `class_embedding` and `add_embedding`, as far as `config` has them.
    pub(super) fn new(scope: &Scope<'_>, config: &UNet2DConditionConfig) -> Result<Self> {
        let sinusoids = config.block_out_channels.first().copied().unwrap_or_default();
        let time_embedding = TimestepEmbeddingConfig {
            act_fn: config.act_fn,
            post_act_fn: config.timestep_post_act,
            cond_proj_dim: config.time_cond_proj_dim,
            ..TimestepEmbeddingConfig::new(sinusoids, config.time_embed_dim())
        };
        Ok(Self {
            time_proj: Timesteps::new(sinusoids, config.flip_sin_to_cos, config.freq_shift)?,
            time_embedding: TimestepEmbedding::new(scope / "time_embedding", time_embedding)?,
            class_embedding: ClassEmbedding::new(scope, sinusoids, config)?,
            add_embedding: add_embedding(scope, config)?,
            time_embed_act: config.time_embedding_act_fn,
            class_embeddings_concat: config.class_embeddings_concat,
            act_fn: config.act_fn,
        })
    }

    /// The embedding that the residual blocks take, after their activation, `[batch, temb_channels]`.
    pub(super) fn forward(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        let mut emb = self.time(inputs)?;
        if let Some(class_embedding) = &self.class_embedding {
            let class_emb = class_embedding.forward(inputs.class_labels, &self.time_proj, inputs.sample)?;
            emb = match self.class_embeddings_concat {
                true => Tensor::f_cat(&[emb, class_emb], -1)?,
                false => emb.f_add(&class_emb)?,
            };
        }
        if let Some((time_proj, embedding)) = &self.add_embedding {
            let added = inputs.added_cond.ok_or_else(|| {
                Error::Argument("`addition_embed_type` = text_time needs `text_embeds` and `time_ids`".into())
            })?;
            emb = emb.f_add(&text_time(time_proj, embedding, &added, &emb)?)?;
        }
        if let Some(act) = self.time_embed_act {
            emb = act.forward(&emb)?;
        }
        self.act_fn.forward(&emb)
    }

    fn time(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        let (sample, timestep) = (inputs.sample, inputs.timestep);
        let device = sample.device();
        let moved = (timestep.device() != device).then(|| timestep.f_to_device(device)).transpose()?;
        // One for each item, without reading how many there are: a number would be fixed for good in a trace.
        let item = sample.f_select(1, 0)?.f_select(1, 0)?.f_select(1, 0)?;
        let timesteps = moved.as_ref().unwrap_or(timestep).f_expand_as(&item)?;
        self.time_embedding.forward(&cast(&self.time_proj.forward(&timesteps)?, sample)?, inputs.timestep_cond)
    }
}

impl ClassEmbedding {
    fn new(scope: &Scope<'_>, sinusoids: i64, config: &UNet2DConditionConfig) -> Result<Option<Self>> {
        let time_embed_dim = config.time_embed_dim();
        let scope = || scope / "class_embedding";
        Ok(Some(match (config.class_embed_type.as_deref(), config.num_class_embeds) {
            (None, None) => return Ok(None),
            (None, Some(classes)) => Self::Row(Embedding::new(scope(), classes, time_embed_dim)?),
            (Some("timestep"), _) => {
                let act_fn = config.act_fn;
                let config =
                    TimestepEmbeddingConfig { act_fn, ..TimestepEmbeddingConfig::new(sinusoids, time_embed_dim) };
                Self::Timestep(TimestepEmbedding::new(scope(), config)?)
            }
            (Some("identity"), _) => Self::Identity,
            (Some("projection"), _) => {
                let inputs = required("projection_class_embeddings_input_dim", config)?;
                let config = TimestepEmbeddingConfig::new(inputs, time_embed_dim);
                Self::Projection(TimestepEmbedding::new(scope(), config)?)
            }
            (Some(other), _) => {
                return Err(Error::Unsupported(format!(
                    "`class_embed_type` = {other} is not supported; timestep, identity and projection are"
                )));
            }
        }))
    }

    fn forward(&self, labels: Option<&Tensor>, time_proj: &Timesteps, sample: &Tensor) -> Result<Tensor> {
        let labels = labels.ok_or_else(|| Error::Argument("this UNet needs `class_labels`".into()))?;
        let embedding = match self {
            Self::Row(embedding) => embedding.forward(labels)?,
            Self::Timestep(embedding) => embedding.forward(&cast(&time_proj.forward(labels)?, sample)?, None)?,
            Self::Identity => labels.shallow_clone(),
            Self::Projection(embedding) => embedding.forward(labels, None)?,
        };
        cast(&embedding, sample)
    }
}

/// The layers of `addition_embed_type`.
fn add_embedding(scope: &Scope<'_>, config: &UNet2DConditionConfig) -> Result<Option<(Timesteps, TimestepEmbedding)>> {
    match config.addition_embed_type.as_deref() {
        None => Ok(None),
        Some("text_time") => {
            let sinusoids = required("addition_time_embed_dim", config)?;
            let inputs = required("projection_class_embeddings_input_dim", config)?;
            let time_proj = Timesteps::new(sinusoids, config.flip_sin_to_cos, config.freq_shift)?;
            let embedding = TimestepEmbeddingConfig::new(inputs, config.time_embed_dim());
            Ok(Some((time_proj, TimestepEmbedding::new(scope / "add_embedding", embedding)?)))
        }
        Some(other) => {
            Err(Error::Unsupported(format!("`addition_embed_type` = {other} is not supported; text_time is")))
        }
    }
}

/// SDXL's pooled text, and the sinusoids of its sizes beside it (Podell et al. 2023, arXiv:2307.01952, section 2.2).
fn text_time(
    time_proj: &Timesteps,
    embedding: &TimestepEmbedding,
    added: &AddedCond<'_>,
    emb: &Tensor,
) -> Result<Tensor> {
    let sizes = time_proj.forward(&added.time_ids.f_flatten(0, -1)?)?;
    // One row for each item, without reading how many items and numbers there are: that would be fixed for good in a trace.
    let sinusoids = sizes.size2()?.1;
    let as_numbers = added.time_ids.f_unsqueeze(-1)?.f_expand([-1, -1, sinusoids], false)?;
    let sizes = sizes.f_reshape_as(&as_numbers)?.f_flatten(1, -1)?;
    embedding.forward(&cast(&Tensor::f_cat(&[added.text_embeds, &sizes], -1)?, emb)?, None)
}

/// A number that the configuration must hold.
fn required(key: &str, config: &UNet2DConditionConfig) -> Result<i64> {
    let value = match key {
        "addition_time_embed_dim" => config.addition_time_embed_dim,
        _ => config.projection_class_embeddings_input_dim,
    };
    value.ok_or_else(|| Error::Config(format!("`{key}` is missing")))
}

/// The embedding in the dtype of `like`: sinusoids are always float32. A trace records whose dtype it is, and so can be
/// cast later.
fn cast(embedding: &Tensor, like: &Tensor) -> Result<Tensor> {
    Ok(embedding.f_type_as(like)?)
}
