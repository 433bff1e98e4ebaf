//! Sizes, crops and aesthetic scores, which SDXL was trained to be told of (section 2.2 of arXiv:2307.01952).

use super::StableDiffusionXLPipeline;
use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// What SDXL is told of a picture, in pixels, height first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sizes {
    pub(super) original_size: Option<(i64, i64)>,
    pub(super) crops_coords_top_left: (i64, i64),
    pub(super) target_size: Option<(i64, i64)>,
}

impl Sizes {
    /// The numbers that the base model is told; a size that was not given is `size`.
    pub(super) fn ids(self, size: (i64, i64)) -> Vec<f64> {
        let (original, target) = (self.original_size.unwrap_or(size), self.target_size.unwrap_or(size));
        let crops = self.crops_coords_top_left;
        [original.0, original.1, crops.0, crops.1, target.0, target.1].map(|number| number as f64).to_vec()
    }

    /// The numbers that the refiner is told, with an aesthetic score in place of a target.
    pub(super) fn ids_with_score(self, size: (i64, i64), aesthetic_score: f64) -> Vec<f64> {
        let mut ids = self.ids(size);
        ids.truncate(4);
        ids.push(aesthetic_score);
        ids
    }
}

/// Rows of numbers as the UNet takes them, `[rows, numbers]`.
pub(super) fn rows(numbers: &[&[f64]], (kind, device): (Kind, Device)) -> Result<Tensor> {
    let width = numbers.first().map_or(0, |row| row.len());
    let table = Tensor::f_from_slice(&numbers.concat())?.f_view([numbers.len() as i64, width as i64])?;
    Ok(table.f_to_kind(kind)?.f_to_device(device)?)
}

impl StableDiffusionXLPipeline {
    /// Holds the UNet to how many `numbers` it is told, beside a pooled text of `pooled` channels.
    pub(super) fn check_added(&self, numbers: usize, pooled: i64) -> Result<()> {
        let config = self.unet.config();
        let (Some(each), Some(expected)) =
            (config.addition_time_embed_dim, config.projection_class_embeddings_input_dim)
        else {
            return Err(Error::Config(
                "a UNet of Stable Diffusion XL has `addition_time_embed_dim` and `projection_class_embeddings_input_dim`, \
                 but this one has not both"
                    .into(),
            ));
        };
        let given = each * numbers as i64 + pooled;
        if given == expected {
            return Ok(());
        }
        let hint = match (expected - given) / each.max(1) {
            1 => ": is `requires_aesthetics_score` in model_index.json true, where it should be false?",
            -1 => {
                ": is this a refiner, which draws from pictures, with `requires_aesthetics_score` in model_index.json?"
            }
            _ => "",
        };
        Err(Error::Config(format!(
            "the UNet's `projection_class_embeddings_input_dim` is {expected}, but {numbers} numbers and the pooled text make \
             {given}{hint}"
        )))
    }
}
