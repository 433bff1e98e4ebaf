//! Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) and what corrects it.

use crate::error::Result;
use crate::torch::{NumberExt, TensorExt};
use tch::{Device, Kind, Tensor};

/// `uncond + scale (text - uncond)` from the two halves of `noise_pred`, and the text half.
///
/// # Shapes
/// `noise_pred` is `[2 batch, ..]`, the unconditional half first; both results are `[batch, ..]`.
pub(super) fn guide(noise_pred: &Tensor, guidance_scale: f64) -> Result<(Tensor, Tensor)> {
    let [uncond, text] = noise_pred.chunks(0)?;
    let mut guided = text.f_sub(&uncond)?;
    let _ = guided.times_(guidance_scale)?;
    let _ = guided.f_add_(&uncond)?;
    Ok((guided, text))
}

/// Brings the guided prediction's spread back to that of the text's, in part.
///
/// Section 3.4 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891): `guidance_rescale`
/// of 0 changes nothing, 1 gives the text's spread.
///
/// # Errors
/// If the shapes differ.
pub fn rescale_noise_cfg(noise_cfg: &Tensor, noise_pred_text: &Tensor, guidance_rescale: f64) -> Result<Tensor> {
    let spread = |tensor: &Tensor| -> Result<Tensor> {
        let dims: Vec<i64> = (1..tensor.dim() as i64).collect();
        Ok(tensor.f_std_dim(dims.as_slice(), true, true)?)
    };
    let rescaled = noise_cfg.f_mul(&spread(noise_pred_text)?.f_div(&spread(noise_cfg)?)?)?;
    Ok(rescaled.times(guidance_rescale)?.f_add(&noise_cfg.times(1.0 - guidance_rescale)?)?)
}

/// The guidance scale as an embedding, for models distilled to take it as an input.
///
/// # Shapes
/// `[batch, embedding_dim]` for `batch` times the same scale.
///
/// # Errors
/// Only if libtorch itself fails.
pub fn get_guidance_scale_embedding(guidance_scale: f64, batch: i64, embedding_dim: i64) -> Result<Tensor> {
    let options = (Kind::Float, Device::Cpu);
    let scale = Tensor::f_full([batch], guidance_scale - 1.0, options)?.times(1000.0)?;
    let half = embedding_dim / 2;
    let step = Tensor::f_from_slice(&[10000f32])?.f_log()?.over((half - 1) as f64)?;
    let frequencies = Tensor::f_arange(half, options)?.f_mul(&step.f_neg()?)?.f_exp()?;
    let angles = scale.f_unsqueeze(1)?.f_mul(&frequencies.f_unsqueeze(0)?)?;
    let embedding = Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], 1)?;
    Ok(if embedding_dim % 2 == 1 { embedding.f_constant_pad_nd([0, 1])? } else { embedding })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_of_one_is_the_text_alone() {
        let both = Tensor::from_slice(&[1f32, 2.0, 5.0, 9.0]).reshape([2, 2]);
        let (guided, text) = guide(&both, 1.0).unwrap();
        assert_eq!(guided.to_vec().unwrap(), [5.0, 9.0]);
        assert_eq!(text.to_vec().unwrap(), [5.0, 9.0]);
        assert_eq!(guide(&both, 3.0).unwrap().0.to_vec().unwrap(), [13.0, 23.0]);
    }

    #[test]
    fn full_rescaling_has_the_spread_of_the_text() {
        let text = Tensor::from_slice(&[0f32, 1.0, 2.0, 3.0]).reshape([1, 4]);
        let guided = text.f_mul_scalar(5.0).unwrap();
        let rescaled = rescale_noise_cfg(&guided, &text, 1.0).unwrap();
        assert!(rescaled.max_abs_diff(&text).unwrap() < 1e-6);
        assert_eq!(rescale_noise_cfg(&guided, &text, 0.0).unwrap().max_abs_diff(&guided).unwrap(), 0.0);
    }

    #[test]
    fn an_odd_embedding_ends_in_zero() {
        let embedding = get_guidance_scale_embedding(7.5, 2, 9).unwrap();
        assert_eq!(embedding.size(), [2, 9]);
        assert_eq!(embedding.to_vec().unwrap()[8], 0.0);
    }
}
