//! Weights as they were loaded, once techniques are off again.
//!
//! diffusers has no twin of this: there, a pipeline is loaded anew.

use super::LAYERWISE_CASTING_HOOK;
use crate::error::{Error, Result};
use crate::nn::{Node, Param};
use crate::torch::{KindExt, MemoryFormat};
use tch::{Kind, Tensor};

/// Ends layerwise casting at or below `module`, and gives every weight the values and the layout it was loaded with.
///
/// What 8 bits rounded is read from its file again, as long as the file's numbers are those that were rounded: a weight
/// that did not come from a file, or that was changed since, keeps the rounding. Weights that stand in the file as they
/// are used lie in its map again, where they were after loading. Moving and `to(dtype)` are not undone.
///
/// # Errors
/// [`Error::Argument`] while offloading is on; [`Error::OutOfMemory`] where a copy has no room: the weights up to there
/// are restored, and the model works.
pub fn restore_weights(module: &Node) -> Result<()> {
    super::refuse_if_offloaded(module, "weights cannot be restored")?;
    for node in module.walk() {
        let computed = node.hook(LAYERWISE_CASTING_HOOK).and_then(|hook| hook.compute_dtype());
        if let Some(kind) = computed {
            // A hook may answer for the modules below it as well.
            for (key, param) in node.params() {
                restore(&param, Some(kind)).map_err(|error| error.at(&key))?;
            }
            node.remove_hook(LAYERWISE_CASTING_HOOK);
        }
    }
    for (key, param) in module.params() {
        restore(&param, None).map_err(|error| error.at(&key))?;
    }
    Ok(())
}

/// Puts the weight in `kind`, its own if none, and in the order of its file.
fn restore(param: &Param, kind: Option<Kind>) -> Result<()> {
    let stored = param.get();
    let own = stored.f_kind()?;
    let kind = kind.filter(|_| own.is_floating_point()).unwrap_or(own);
    let is_row_major = stored.dim() != 4 || has_strides(&stored, MemoryFormat::Contiguous)?;
    if own == kind && is_row_major {
        return Ok(());
    }
    let cast = MemoryFormat::Contiguous.apply(&stored.f_to_kind(kind)?)?;
    let restored = match from_file(param, &stored, kind)? {
        Some(original) => original,
        None => cast,
    };
    drop(param.replace(restored));
    Ok(())
}

/// The weight from its file, if the file's numbers become those of `stored` when they are rounded as it was.
fn from_file(param: &Param, stored: &Tensor, kind: Kind) -> Result<Option<Tensor>> {
    let Some(origin) = param.origin() else { return Ok(None) };
    if origin.is_written()? {
        return Ok(None);
    }
    let original = origin.view()?.f_to_device(stored.device())?.f_to_kind(kind)?;
    let same = same_bits(&original.f_to_kind(stored.f_kind()?)?, stored)?;
    Ok(same.then_some(original))
}

fn same_bits(left: &Tensor, right: &Tensor) -> Result<bool> {
    if left.size() != right.size() {
        return Ok(false);
    }
    let bits = |tensor: &Tensor| -> Result<Tensor> {
        let tensor = MemoryFormat::Contiguous.contiguous(tensor)?;
        // The 8-bit formats cannot be compared; their bytes can.
        Ok(if tensor.f_kind()?.elt_size_in_bytes() == 1 { tensor.f_view_dtype(Kind::Uint8)? } else { tensor })
    };
    bits(left)?.f_equal(&bits(right)?).map_err(Error::from)
}

/// Whether a tensor of four dimensions has the very strides of `format`.
fn has_strides(tensor: &Tensor, format: MemoryFormat) -> Result<bool> {
    Ok(format.apply(tensor)?.stride() == tensor.stride())
}
