//! Latents as FLUX.1's transformer sees them: a token for each square of two by two.

use crate::configuration_utils::ConfigMap;
use crate::error::Result;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// `mu`, by which noise levels are shifted, for a picture of `image_seq_len` tokens: on the line through `base_shift` at
/// `base_seq_len` tokens and `max_shift` at `max_seq_len`.
///
/// # Examples
/// ```
/// use tch_diffusers::pipelines::flux::calculate_shift;
/// assert_eq!(calculate_shift(256, 256.0, 4096.0, 0.5, 1.15), 0.5);
/// ```
#[must_use]
pub fn calculate_shift(
    image_seq_len: i64,
    base_seq_len: f64,
    max_seq_len: f64,
    base_shift: f64,
    max_shift: f64,
) -> f64 {
    let m = (max_shift - base_shift) / (max_seq_len - base_seq_len);
    let b = base_shift - m * base_seq_len;
    image_seq_len as f64 * m + b
}

/// [`calculate_shift`] with the numbers of a scheduler's configuration.
pub(super) fn shift_of(config: &ConfigMap, image_seq_len: i64) -> f64 {
    let number = |key: &str, default| config.get(key).and_then(Value::as_f64).unwrap_or(default);
    let (base, max) = (number("base_image_seq_len", 256.0), number("max_image_seq_len", 4096.0));
    calculate_shift(image_seq_len, base, max, number("base_shift", 0.5), number("max_shift", 1.15))
}

/// `[batch, channels, height, width]` to `[batch, height / 2 * width / 2, channels * 4]`; both sides are even.
pub(super) fn pack(latents: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = latents.size4()?;
    let squares = latents.f_view([batch, channels, height / 2, 2, width / 2, 2])?.f_permute([0, 2, 4, 1, 3, 5])?;
    Ok(squares.f_reshape([batch, (height / 2) * (width / 2), channels * 4])?)
}

/// The way back from [`pack`], to latents of `height` x `width`.
pub(super) fn unpack(latents: &Tensor, height: i64, width: i64) -> Result<Tensor> {
    let (batch, _, channels) = latents.size3()?;
    let squares = latents.f_view([batch, height / 2, width / 2, channels / 4, 2, 2])?.f_permute([0, 3, 1, 4, 2, 5])?;
    Ok(squares.f_reshape([batch, channels / 4, height, width])?)
}

/// The places of `rows` x `columns` tokens, row by row: 0, the row, the column.
pub(super) fn image_ids(rows: i64, columns: i64, kind: Kind, device: Device) -> Result<Tensor> {
    let options = (Kind::Float, device);
    let count = |number: i64| Tensor::f_arange(number, options);
    let row = count(rows)?.f_unsqueeze(1)?.f_expand([rows, columns], false)?;
    let column = count(columns)?.f_unsqueeze(0)?.f_expand([rows, columns], false)?;
    let places = Tensor::f_stack(&[Tensor::f_zeros([rows, columns], options)?, row, column], -1)?;
    Ok(places.f_view([rows * columns, 3])?.f_to_kind(kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::TensorExt;

    #[test]
    fn a_token_is_a_square_of_two_by_two() {
        let latents = Tensor::arange(2 * 3 * 4 * 6, (Kind::Float, Device::Cpu)).view([2, 3, 4, 6]);
        let packed = pack(&latents).unwrap();
        assert_eq!(packed.size(), [2, 6, 12]);
        assert_eq!(packed.get(0).get(1).to_vec().unwrap()[..4], [2.0, 3.0, 8.0, 9.0]);
        assert_eq!(unpack(&packed, 4, 6).unwrap(), latents);
    }

    #[test]
    fn places_go_row_by_row() {
        let places = image_ids(2, 3, Kind::Float, Device::Cpu).unwrap();
        assert_eq!(places.get(4).to_vec().unwrap(), [0.0, 1.0, 1.0]);
    }
}
