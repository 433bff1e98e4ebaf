//! `StableDiffusionSafetyChecker`: what a picture shows, held against what it should not.
//!
//! Mirrors `diffusers/pipelines/stable_diffusion/safety_checker.py` at 0.42.1.

use crate::configuration_utils::ConfigMap;
use crate::error::Result;
use crate::loaders::KeyMap;
use crate::models::ModelMixin;
use crate::models::image_encoders::{CLIPVisionConfig, CLIPVisionModel};
use crate::nn::{Linear, Module, Node, Param, Scope};
use crate::torch::NumberExt;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// How many concepts there are that no picture should show.
const CONCEPTS: i64 = 17;

/// How many concepts there are at which the others are looked at more strictly.
const SPECIAL_CARE: i64 = 3;

/// By how much more strictly.
const ADJUSTMENT: f32 = 0.01;

/// `config.json` of a safety checker: `CLIPConfig` of transformers 5.23, as far as pictures are concerned.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct SafetyCheckerConfig {
    /// Width of the embeddings that are compared; 512 by default.
    pub projection_dim: i64,
    /// The vision model.
    pub vision_config: Option<CLIPVisionConfig>,
    /// The vision model as old files have it once more, which counts before the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision_config_dict: Option<CLIPVisionConfig>,
    /// Keys that mean nothing here: kept, and written back.
    #[serde(flatten)]
    pub other: ConfigMap,
}

impl Default for SafetyCheckerConfig {
    fn default() -> Self {
        let mut other = ConfigMap::new();
        other.insert("model_type".into(), "clip".into());
        Self { projection_dim: 512, vision_config: None, vision_config_dict: None, other }
    }
}

impl SafetyCheckerConfig {
    /// The vision model's own configuration.
    #[must_use]
    pub fn vision(&self) -> CLIPVisionConfig {
        self.vision_config_dict.clone().or_else(|| self.vision_config.clone()).unwrap_or_default()
    }
}

/// What was found in one picture: how far its likeness to each concept is above the concept's threshold, in thousandths.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SafetyScores {
    /// Of the concepts at which the others are looked at more strictly.
    pub special_scores: Vec<f32>,
    /// Of the concepts that no picture should show.
    pub concept_scores: Vec<f32>,
}

impl SafetyScores {
    /// Whether a concept is above its threshold that no picture should show.
    #[must_use]
    pub fn has_nsfw_concept(&self) -> bool {
        self.concept_scores.iter().any(|score| *score > 0.0)
    }
}

/// Looks at pictures by CLIP, and says which of them show what they should not.
#[derive(Debug)]
pub struct StableDiffusionSafetyChecker {
    node: Node,
    config: SafetyCheckerConfig,
    vision_model: CLIPVisionModel,
    visual_projection: Linear,
    concept_embeds: Param,
    special_care_embeds: Param,
    concept_embeds_weights: Param,
    special_care_embeds_weights: Param,
}

impl StableDiffusionSafetyChecker {
    /// The vision model inside.
    #[must_use]
    pub fn vision_model(&self) -> &CLIPVisionModel {
        &self.vision_model
    }

    /// What the model calls the checkpoint's `key`. Checkpoints from before transformers 5.6 say `vision_model.` twice.
    #[must_use]
    pub fn checkpoint_key(key: &str) -> Option<String> {
        match key.strip_prefix("vision_model.") {
            Some(rest) => CLIPVisionModel::checkpoint_key(rest).map(|rest| format!("vision_model.{rest}")),
            None => Some(key.into()),
        }
    }

    /// What is found in each picture.
    ///
    /// # Shapes
    /// `clip_input` is `[batch, 3, image_size, image_size]`, as a
    /// [`CLIPImageProcessor`](crate::image_processor::CLIPImageProcessor) makes it.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for pictures of another size.
    pub fn scores(&self, clip_input: &Tensor) -> Result<Vec<SafetyScores>> {
        let [special, concepts, special_weights, weights] = self.node.call([clip_input], |[clip_input]| {
            let pooled = self.vision_model.forward(clip_input)?.pooler_output;
            let image_embeds = self.visual_projection.forward(&pooled)?;
            Ok([
                cosine_distance(&image_embeds, &self.special_care_embeds.get())?,
                cosine_distance(&image_embeds, &self.concept_embeds.get())?,
                // An offloaded checker's weights are gone after this.
                self.special_care_embeds_weights.get(),
                self.concept_embeds_weights.get(),
            ])
        })?;
        let rows = |likeness: &Tensor, columns: i64| -> Result<Vec<Vec<f32>>> {
            let values = on_host(likeness)?;
            Ok(values.chunks(columns.max(1) as usize).map(<[f32]>::to_vec).collect())
        };
        let (special, concepts) = (rows(&special, SPECIAL_CARE)?, rows(&concepts, CONCEPTS)?);
        let (special_weights, weights) = (on_host(&special_weights)?, on_host(&weights)?);
        let pictures = special.iter().zip(&concepts);
        Ok(pictures.map(|(special, concepts)| judge(special, &special_weights, concepts, &weights)).collect())
    }

    /// Whether each picture shows what it should not, and the pictures, of which these are zero now: grey in the VAE's
    /// values from -1 to 1, and black where the values are not brought to 0 to 1 any more.
    ///
    /// # Shapes
    /// `images` is `[batch, ..]`; `clip_input` as in [`StableDiffusionSafetyChecker::scores`].
    ///
    /// # Errors
    /// As [`StableDiffusionSafetyChecker::scores`].
    pub fn forward(&self, clip_input: &Tensor, images: &Tensor) -> Result<(Tensor, Vec<bool>)> {
        let has_nsfw_concepts: Vec<bool> =
            self.scores(clip_input)?.iter().map(SafetyScores::has_nsfw_concept).collect();
        if !has_nsfw_concepts.contains(&true) {
            return Ok((images.shallow_clone(), has_nsfw_concepts));
        }
        tracing::warn!(
            "one or more pictures may show what is not safe for work, and are black in their place: \
             try another prompt or another seed"
        );
        // Differs from diffusers: there, the tensor that was given is written to.
        let images = images.f_alias_copy()?;
        for (index, has_nsfw_concept) in has_nsfw_concepts.iter().enumerate() {
            if *has_nsfw_concept {
                let _ = images.f_select(0, index as i64)?.f_zero_()?;
            }
        }
        Ok((images, has_nsfw_concepts))
    }
}

impl Module for StableDiffusionSafetyChecker {
    fn node(&self) -> &Node {
        &self.node
    }
}

impl ModelMixin for StableDiffusionSafetyChecker {
    type Config = SafetyCheckerConfig;

    const CLASS_NAME: &'static str = "StableDiffusionSafetyChecker";
    const WEIGHTS_STEM: &'static str = "model";
    const KEYS: KeyMap = Self::checkpoint_key;

    fn from_scope(config: SafetyCheckerConfig, scope: Scope<'_>) -> Result<Self> {
        let (vision, dim) = (config.vision(), config.projection_dim);
        let concept_embeds = scope.param("concept_embeds", &[CONCEPTS, dim])?;
        let special_care_embeds = scope.param("special_care_embeds", &[SPECIAL_CARE, dim])?;
        let concept_embeds_weights = scope.param("concept_embeds_weights", &[CONCEPTS])?;
        let special_care_embeds_weights = scope.param("special_care_embeds_weights", &[SPECIAL_CARE])?;
        let hidden_size = vision.hidden_size;
        let vision_model = CLIPVisionModel::new(vision, &scope / "vision_model")?;
        let visual_projection = Linear::new(&scope / "visual_projection", hidden_size, dim, false)?;
        Ok(Self {
            node: scope.finish::<Self>(),
            config,
            vision_model,
            visual_projection,
            concept_embeds,
            special_care_embeds,
            concept_embeds_weights,
            special_care_embeds_weights,
        })
    }

    fn config(&self) -> &SafetyCheckerConfig {
        &self.config
    }
}

/// The cosine of the angle between each row of the one and each of the other.
fn cosine_distance(image_embeds: &Tensor, text_embeds: &Tensor) -> Result<Tensor> {
    Ok(normalized(image_embeds)?.f_mm(&normalized(text_embeds)?.f_tr()?)?)
}

/// Each row with a length of 1.
fn normalized(rows: &Tensor) -> Result<Tensor> {
    let length = rows.f_norm_scalaropt_dim(2, [1].as_slice(), true)?.no_less_than(1e-12)?;
    Ok(rows.f_div(&length.f_expand_as(rows)?)?)
}

fn on_host(tensor: &Tensor) -> Result<Vec<f32>> {
    let values = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut numbers = vec![0_f32; values.numel()];
    values.f_copy_data(&mut numbers, values.numel())?;
    Ok(numbers)
}

fn judge(special: &[f32], special_weights: &[f32], concepts: &[f32], weights: &[f32]) -> SafetyScores {
    let mut adjustment = 0.0;
    let mut special_scores = Vec::with_capacity(special.len());
    for (cosine, threshold) in special.iter().zip(special_weights) {
        let score = in_thousandths(cosine - threshold + adjustment);
        if score > 0.0 {
            adjustment = ADJUSTMENT;
        }
        special_scores.push(score);
    }
    let above = |(cosine, threshold): (&f32, &f32)| in_thousandths(cosine - threshold + adjustment);
    SafetyScores { special_scores, concept_scores: concepts.iter().zip(weights).map(above).collect() }
}

/// As numpy rounds a float32, halves to the even neighbour: a score below half of a thousandth is none.
fn in_thousandths(score: f32) -> f32 {
    (score * 1000.0).round_ties_even() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_special_concept_makes_the_others_count_more() {
        let (concepts, weights) = ([0.205, 0.0], [0.21, 0.3]);
        let calm = judge(&[0.1; 3], &[0.2; 3], &concepts, &weights);
        assert!(!calm.has_nsfw_concept());
        let careful = judge(&[0.1, 0.25, 0.195], &[0.2; 3], &concepts, &weights);
        assert!(careful.has_nsfw_concept());
        assert_eq!(careful.special_scores, [-0.1, 0.05, 0.005]);
        assert_eq!(careful.concept_scores, [0.005, -0.29]);
    }

    #[test]
    fn less_than_half_of_a_thousandth_is_nothing() {
        let judged = |cosine| judge(&[0.0], &[1.0], &[cosine], &[0.2]).has_nsfw_concept();
        assert!(!judged(0.2004) && judged(0.2006) && !judged(f32::NAN));
    }

    #[test]
    fn old_configurations_say_the_vision_model_twice() {
        let text = r#"{"projection_dim": 8, "vision_config": {"hidden_size": 4, "patch_size": 2},
            "vision_config_dict": {"hidden_size": 6}}"#;
        let config: SafetyCheckerConfig = serde_json::from_str(text).unwrap();
        let vision = config.vision();
        assert_eq!((vision.hidden_size, vision.patch_size), (6, 32));
        let key = |key| StableDiffusionSafetyChecker::checkpoint_key(key);
        assert_eq!(key("vision_model.vision_model.pre_layrnorm.bias").unwrap(), "vision_model.pre_layrnorm.bias");
        assert_eq!(key("concept_embeds").unwrap(), "concept_embeds");
        assert!(key("vision_model.vision_model.embeddings.position_ids").is_none());
    }
}
