//! Adapters as part of their layers' own weights, and the weights as they were.

use super::{Adapter, Base, LoraLayer, State};
use crate::error::{Error, Result};
use crate::nn::Param;
use crate::torch::{KindExt, MappedTensor, MemoryFormat, NumberExt};
use tch::{Device, Kind, Tensor};

/// What is known of a layer whose weight holds adapters.
#[derive(Debug)]
pub(super) struct Fused {
    names: Vec<String>,
    weight: Original,
    bias: Option<Original>,
}

/// A weight without adapters.
///
/// PEFT subtracts what it added, and keeps what rounding made of it.
#[derive(Debug)]
enum Original {
    /// The tensor: a second copy in memory, unless it lies in the map of a file.
    Kept(Tensor),
    /// To be read from the weight's file again.
    InFile,
}

impl Original {
    /// What there is to keep of the weight as it is.
    fn of(param: &Param) -> Result<Self> {
        let weight = param.get();
        let Some(origin) = param.origin() else { return Ok(Self::Kept(weight)) };
        if origin.is(&weight)? || origin.is_written()? {
            return Ok(Self::Kept(weight));
        }
        let same = as_in(origin, &weight)?.f_equal(&weight)?;
        origin.release()?;
        Ok(if same { Self::InFile } else { Self::Kept(weight) })
    }

    /// The weight without adapters, where `current` is with them, in the dtype that it is in now.
    fn restored(&self, param: &Param) -> Result<Tensor> {
        let current = param.get();
        match (self, param.origin()) {
            (Self::InFile, Some(origin)) => as_in(origin, &current),
            (Self::InFile, None) => Err(Error::Config("the weight's file is not known any more".into())),
            (Self::Kept(weight), _) => like(weight, &current),
        }
    }
}

fn as_in(origin: &MappedTensor, current: &Tensor) -> Result<Tensor> {
    like(&origin.view()?, current)
}

/// `weight` with the device, the dtype and the order of elements of `current`.
fn like(weight: &Tensor, current: &Tensor) -> Result<Tensor> {
    // By the strides alone: a kernel of one pixel counts as contiguous in either order.
    let format = match current.size()[..] {
        [_, c, h, w] if current.stride() == [c * h * w, 1, w * c, c] => MemoryFormat::ChannelsLast,
        _ => MemoryFormat::Contiguous,
    };
    format.apply(&weight.f_to_device(current.device())?.f_to_kind(current.f_kind()?)?)
}

/// What [`LoraLayer::fusion`] found a layer's weights to be with its adapters; [`LoraLayer::fuse`] puts it in place.
#[derive(Debug)]
pub struct Fusion {
    names: Vec<String>,
    weight: Tensor,
    bias: Option<Tensor>,
    /// What is without adapters, for a layer that had none fused yet.
    originals: Option<(Original, Option<Original>)>,
}

impl LoraLayer {
    /// The adapters in the layer's own weight.
    #[must_use]
    pub fn fused(&self) -> Vec<String> {
        self.state().fused.as_ref().map_or_else(Vec::new, |fused| fused.names.clone())
    }

    /// The layer's weight with the adapters of these names added that are not yet, or with the active ones; none if there
    /// are none to add. The weights of active adapters are multiplied by `lora_scale` before. Nothing is changed yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for numbers that are not finite, where `safe_fusing` looks for them; [`Error::Unsupported`] for
    /// a weight in 8 bits, or an adapter with a bias for a layer without; [`Error::OutOfMemory`].
    pub fn fusion(&self, names: Option<&[String]>, lora_scale: f64, safe_fusing: bool) -> Result<Option<Fusion>> {
        let state = self.state();
        let fused = state.fused.as_ref().map_or(&[][..], |fused| &fused.names);
        let names = names.unwrap_or(&state.active).iter().filter(|name| !fused.contains(name));
        let adapters: Vec<_> = names.filter_map(|name| state.adapter(name)).collect();
        if adapters.is_empty() {
            return Ok(None);
        }
        let (weight, bias) = (self.weight.get(), self.bias.as_ref().map(Param::get));
        if weight.f_kind()?.elt_size_in_bytes() == 1 {
            let kind = weight.f_kind()?.torch_name();
            let why = format!("LoRAs cannot be fused into weights of {kind}: switch layerwise casting off first");
            return Err(Error::Unsupported(why));
        }
        let (mut weight, mut bias) = (copied(&weight)?, bias);
        let mut bias_changed = false;
        for adapter in &adapters {
            let scaling = scaling_for(&state, adapter, lora_scale);
            drop(weight.f_add_(&self.delta(adapter, scaling)?)?);
            if let Some(up_bias) = &adapter.up_bias {
                let own = bias.as_ref().ok_or_else(|| {
                    Error::Unsupported("a LoRA with a bias cannot be fused into a layer without one".into())
                })?;
                let mut changed = copied(own)?;
                drop(changed.f_add_(&up_bias.get().f_to_device(changed.device())?.times(scaling)?)?);
                (bias, bias_changed) = (Some(changed), true);
            }
            if safe_fusing && !is_finite(&weight, bias.as_ref())? {
                let name = &adapter.name;
                return Err(Error::Argument(format!(
                    "adapter `{name}` seems broken: the fused weights are not all finite"
                )));
            }
        }
        let names = adapters.iter().map(|adapter| adapter.name.clone()).collect();
        // A fused bias is kept with each fusion, since another may change it that this one leaves alone.
        let keep = || {
            let bias = self.bias.as_ref().map(Original::of).transpose()?;
            Ok::<_, Error>((Original::of(&self.weight)?, bias))
        };
        let originals = state.fused.is_none().then(keep).transpose()?;
        Ok(Some(Fusion { names, weight, bias: bias.filter(|_| bias_changed), originals }))
    }

    /// Puts what [`LoraLayer::fusion`] found in place. Active adapters keep being multiplied by `lora_scale`, which shows
    /// where nothing is fused, until [`LoraLayer::unfuse`].
    pub fn fuse(&self, fusion: Option<Fusion>, lora_scale: f64) {
        let mut state = self.state();
        let State { adapters, active, fused, .. } = &mut *state;
        if lora_scale != 1.0 {
            for adapter in adapters.iter_mut().filter(|adapter| active.contains(&adapter.name)) {
                adapter.unfused_scaling.get_or_insert(adapter.scaling);
                adapter.scaling *= lora_scale;
            }
        }
        let Some(Fusion { names, weight, bias, originals }) = fusion else { return };
        drop(self.weight.replace(weight));
        if let (Some(own), Some(bias)) = (&self.bias, bias) {
            drop(own.replace(bias));
        }
        if let Some((weight, bias)) = originals {
            *fused = Some(Fused { names: vec![], weight, bias });
        }
        if let Some(fused) = fused {
            fused.names.extend(names);
        }
        if let Some(Err(error)) = self.weight.origin().map(MappedTensor::release) {
            tracing::debug!(target: "tch_diffusers::nn", "{error}");
        }
    }

    /// Gives the layer the weight it had before, to the bit, and its adapters the weights of theirs.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the weight has no room; the adapters stay fused then.
    // Differs from diffusers: there, what was added is subtracted, which is not exact, and `lora_scale` keeps multiplying.
    pub fn unfuse(&self) -> Result<bool> {
        let mut state = self.state();
        if let Some(fused) = &state.fused {
            let weight = fused.weight.restored(&self.weight)?;
            let bias = self.bias.as_ref().zip(fused.bias.as_ref());
            let bias = bias.map(|(param, original)| original.restored(param)).transpose()?;
            drop(self.weight.replace(weight));
            if let (Some(own), Some(bias)) = (&self.bias, bias) {
                drop(own.replace(bias));
            }
        }
        for adapter in &mut state.adapters {
            adapter.scaling = adapter.unfused_scaling.take().unwrap_or(adapter.scaling);
        }
        Ok(state.fused.take().is_some())
    }

    /// What the adapter adds to the layer's weight: PEFT's `get_delta_weight`.
    fn delta(&self, adapter: &Adapter, scaling: f64) -> Result<Tensor> {
        let device = self.weight.get().device();
        let (mut down, mut up) = (adapter.down.get().f_to_device(device)?, adapter.up.get().f_to_device(device)?);
        let kind = up.f_kind()?;
        let upcast = device == Device::Cpu && matches!(kind, Kind::Half | Kind::BFloat16);
        if upcast {
            (down, up) = (down.f_to_kind(Kind::Float)?, up.f_to_kind(Kind::Float)?);
        }
        let delta = match self.base {
            Base::Linear => up.f_matmul(&down)?.times(scaling)?,
            Base::Conv2d(config) if config.kernel == 1 => {
                let matrix = |tensor: &Tensor| tensor.f_squeeze_dim(3)?.f_squeeze_dim(2);
                let product = matrix(&up)?.f_matmul(&matrix(&down)?)?;
                product.f_unsqueeze(2)?.f_unsqueeze(3)?.times(scaling)?
            }
            Base::Conv2d(_) => {
                let product = down.f_transpose(0, 1)?.f_conv2d(&up, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1)?;
                product.f_transpose(0, 1)?.times(scaling)?
            }
        };
        Ok(if upcast { delta.f_to_kind(kind)? } else { delta })
    }
}

/// The adapter's weight while fusing with `lora_scale`, which counts for the active ones.
fn scaling_for(state: &State, adapter: &Adapter, lora_scale: f64) -> f64 {
    match lora_scale != 1.0 && state.active.contains(&adapter.name) {
        true => adapter.scaling * lora_scale,
        false => adapter.scaling,
    }
}

/// A copy with the same order of elements.
fn copied(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

fn is_finite(weight: &Tensor, bias: Option<&Tensor>) -> Result<bool> {
    let finite = |tensor: &Tensor| -> Result<bool> { Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0) };
    Ok(finite(weight)? && bias.map_or(Ok(true), finite)?)
}
