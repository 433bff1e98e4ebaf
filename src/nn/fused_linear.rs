//! Several affine maps of one input as one product.

use super::linear::{Linear, linear};
use super::{Module, Param};
use crate::error::{Error, Result};
use crate::torch::{TensorExt, is_tracing};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::Tensor;

/// Weights of several [`Linear`]s one below the other, so that one product does the work of all.
///
/// The maps' own weights become views of it: they take no more memory than before, keep their names, and can be moved, cast
/// and replaced as ever, for what was put together is put together anew where they are no views of it any more.
#[derive(Debug, Default)]
pub struct FusedLinear(Mutex<Option<Fused>>);

#[derive(Debug)]
struct Fused {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl FusedLinear {
    /// What each of `maps` makes of `input`, by one product. The maps have as many outputs each.
    ///
    /// Where hooks are around a map, and while a trace records, each map does its own work.
    ///
    /// # Errors
    /// If the last dimension is not the maps' `inputs`, or where the weights have no room.
    pub fn forward<const N: usize>(&self, maps: [&Linear; N], input: &Tensor) -> Result<[Tensor; N]> {
        if is_tracing() || maps.iter().any(|map| !map.node().hook_names().is_empty()) {
            let outputs = maps.iter().map(|map| map.forward(input)).collect::<Result<Vec<_>>>()?;
            return outputs.try_into().map_err(|outputs: Vec<_>| Error::Arity { expected: N, found: outputs.len() });
        }
        let (weight, bias) = self.weights(&maps)?;
        linear(input, &weight, bias)?.chunks::<N>(-1)
    }

    fn weights(&self, maps: &[&Linear]) -> Result<(Tensor, Option<Tensor>)> {
        let mut fused = self.lock();
        let weights: Vec<_> = maps.iter().map(|map| map.weight()).collect();
        let biases: Vec<_> = maps.iter().filter_map(|map| map.bias()).collect();
        let fresh = fused.as_ref().is_some_and(|fused| {
            are_views(&weights, &fused.weight) && fused.bias.as_ref().is_none_or(|bias| are_views(&biases, bias))
        });
        let current = match fused.take() {
            Some(current) if fresh => current,
            _ => Fused { weight: stack(&weights)?, bias: (!biases.is_empty()).then(|| stack(&biases)).transpose()? },
        };
        let handles = (current.weight.shallow_clone(), current.bias.as_ref().map(Tensor::shallow_clone));
        *fused = Some(current);
        Ok(handles)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Fused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tensors one below the other; they become views of the result.
fn stack(params: &[&Param]) -> Result<Tensor> {
    let tensors: Vec<_> = params.iter().map(|param| param.get()).collect();
    let stacked = Tensor::f_cat(&tensors, 0)?;
    let mut start = 0;
    let mut views = vec![];
    for tensor in &tensors {
        let rows = tensor.size().first().copied().unwrap_or(0);
        views.push(stacked.f_narrow(0, start, rows)?);
        start += rows;
    }
    for (param, view) in params.iter().zip(views) {
        drop(param.replace(view));
    }
    Ok(stacked)
}

/// Whether the parameters hold what `stacked` holds, one after the other.
fn are_views(params: &[&Param], stacked: &Tensor) -> bool {
    let mut address = stacked.data_ptr() as usize;
    let bytes = stacked.kind().elt_size_in_bytes();
    params.iter().all(|param| {
        let tensor = param.get();
        let expected = address;
        address += tensor.numel() * bytes;
        tensor.data_ptr() as usize == expected && tensor.kind() == stacked.kind() && tensor.is_contiguous()
    })
}
