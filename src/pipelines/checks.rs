//! What the arguments of every call are held to.

use crate::error::{Error, Result};
use crate::torch::KindExt;
use tch::Tensor;

/// The most pixels that a call's pictures may have together: beyond it no memory holds them, and numbers overflow.
const MOST_PIXELS: i64 = 1 << 40;

/// Holds the number of pictures of each prompt to what it may be.
pub(super) fn check_images_per_prompt(images: i64) -> Result<()> {
    if images >= 1 {
        return Ok(());
    }
    Err(Error::Argument(format!("`num_images_per_prompt` has to be at least 1, but is {images}")))
}

/// Holds the pictures' sides to multiples of `multiple`, and all the `pictures` to what memory can hold.
pub(super) fn check_sides(height: i64, width: i64, multiple: i64, pictures: i64) -> Result<()> {
    if height <= 0 || width <= 0 || height % multiple != 0 || width % multiple != 0 {
        return Err(Error::Argument(format!(
            "`height` and `width` have to be above 0 and divisible by {multiple}, but are {height} and {width}"
        )));
    }
    check_pixels(height, width, pictures)
}

/// Holds the pictures to what memory can hold.
pub(super) fn check_pixels(height: i64, width: i64, pictures: i64) -> Result<()> {
    let pixels = height.checked_mul(width).and_then(|pixels| pixels.checked_mul(pictures));
    if pixels.is_some_and(|pixels| pixels <= MOST_PIXELS) {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "{pictures} pictures of {width}x{height} have more than {MOST_PIXELS} pixels: lower `height`, `width` or \
         `num_images_per_prompt`"
    )))
}

/// Refuses numbers with which every pixel would be NaN.
// Differs from diffusers: there, the picture is black then.
pub(super) fn check_finite(numbers: &[(&str, f64)]) -> Result<()> {
    match numbers.iter().find(|(_, number)| !number.is_finite()) {
        Some((name, number)) => Err(Error::Argument(format!("`{name}` has to be a finite number, but is {number}"))),
        None => Ok(()),
    }
}

/// Refuses runs of no steps, and those with timesteps or sigmas that are no numbers.
pub(super) fn check_run(steps: usize, timesteps: Option<&[f64]>, sigmas: Option<&[f64]>) -> Result<()> {
    for (name, own) in [("timesteps", timesteps), ("sigmas", sigmas)] {
        if let Some(number) = own.unwrap_or_default().iter().find(|number| !number.is_finite()) {
            return Err(Error::Argument(format!("`{name}` has to hold finite numbers, but has {number}")));
        }
    }
    if timesteps.is_none() && sigmas.is_none() && steps == 0 {
        return Err(Error::Argument("`num_inference_steps` has to be at least 1, but is 0".into()));
    }
    Ok(())
}

/// Holds `latents` to `shape`, that of `pictures` of this height and width, and to numbers that can be drawn from.
// Differs from diffusers: there, latents of another height or width are drawn in their own.
pub(super) fn check_latents(latents: &Tensor, shape: &[i64], height: i64, width: i64, pictures: i64) -> Result<()> {
    let found = latents.size();
    if found != shape {
        return Err(Error::Argument(format!(
            "`latents` has to be {shape:?} for {pictures} pictures of {width}x{height}, but is {found:?}"
        )));
    }
    let kind = latents.f_kind()?;
    if kind.is_floating_point() {
        return Ok(());
    }
    Err(Error::Argument(format!("`latents` has to be of a floating-point dtype, but is {}", kind.torch_name())))
}
