//! Low-rank adapters of linear maps and convolutions (Hu et al. 2021, "LoRA", arXiv:2106.09685).
//!
//! Mirrors `Linear` and `Conv2d` of `peft/tuners/lora/layer.py` at 0.21.2. A [`LoraLayer`] hangs on the [`Node`] of a
//! [`Linear`](super::Linear) or [`Conv2d`](super::Conv2d) as a hook, so that no model knows of it.

mod fusing;

use super::conv::{Conv2dConfig, conv2d_config};
use super::linear::linear;
use super::{Hook, Next, Node, Param};
use crate::error::{Error, Result};
use crate::torch::{KindExt, NumberExt, TensorExt};
use fusing::Fused;
pub use fusing::Fusion;
use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tch::{Kind, Tensor};

/// The name that the hooks of adapters are found by.
pub const LORA_HOOK: &str = "lora";

/// One adapter's share in one layer.
#[derive(Debug)]
pub struct LoraWeights {
    /// `lora_A`: `[rank, inputs]`, of a convolution `[rank, inputs, kernel, kernel]`.
    pub down: Tensor,
    /// `lora_B`: `[outputs, rank]`, of a convolution `[outputs, rank, 1, 1]`.
    pub up: Tensor,
    /// What `lora_B` adds, `[outputs]`, if it adds anything.
    pub up_bias: Option<Tensor>,
    /// The adapter's weight is `alpha / rank` at a scale of 1.
    pub alpha: f64,
    /// Whether it is `alpha / sqrt(rank)` instead (Kalajdzievski 2023, arXiv:2312.03732).
    pub use_rslora: bool,
}

/// What a layer is that adapters can be added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Linear,
    Conv2d(Conv2dConfig),
}

impl Base {
    fn of(node: &Node) -> Option<Self> {
        match node.class() {
            "Linear" => Some(Self::Linear),
            "Conv2d" => conv2d_config(node).map(Self::Conv2d),
            _ => None,
        }
    }
}

/// The shapes of `lora_A` and `lora_B` of `rank` for the layer `node`; none for a module that adapters cannot be added to.
#[must_use]
pub fn lora_shapes(node: &Node, rank: i64) -> Option<[Vec<i64>; 2]> {
    let base = Base::of(node)?;
    let weight = node.own_params().into_iter().find(|(name, _)| name == "weight")?.1.get().size();
    match (base, weight.as_slice()) {
        (Base::Linear, &[outputs, inputs]) => Some([vec![rank, inputs], vec![outputs, rank]]),
        (Base::Conv2d(_), &[outputs, inputs, height, width]) => {
            Some([vec![rank, inputs, height, width], vec![outputs, rank, 1, 1]])
        }
        _ => None,
    }
}

/// An adapter in a layer.
#[derive(Debug)]
struct Adapter {
    name: String,
    /// Counts adapters in the order of their loading, over all layers.
    number: usize,
    down: Param,
    up: Param,
    up_bias: Option<Param>,
    rank: f64,
    alpha: f64,
    use_rslora: bool,
    scaling: f64,
    /// The scaling before it was multiplied for fusing.
    unfused_scaling: Option<f64>,
}

impl Adapter {
    /// In the order of PEFT's multiplications.
    fn scaling_at(&self, scale: f64) -> f64 {
        scale * self.alpha / if self.use_rslora { self.rank.sqrt() } else { self.rank }
    }
}

#[derive(Debug, Default)]
struct State {
    adapters: Vec<Adapter>,
    active: Vec<String>,
    disabled: bool,
    fused: Option<Fused>,
}

impl State {
    fn adapter(&self, name: &str) -> Option<&Adapter> {
        self.adapters.iter().find(|adapter| adapter.name == name)
    }
}

/// The adapters of one layer.
#[derive(Debug)]
pub struct LoraLayer {
    base: Base,
    weight: Param,
    bias: Option<Param>,
    state: Mutex<State>,
}

/// What a forward needs of an adapter.
struct Factors {
    down: Tensor,
    up: Tensor,
    up_bias: Option<Tensor>,
    scaling: f64,
}

impl LoraLayer {
    /// The adapters of the layer `node`, with none if there were none yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a module that is neither a linear map nor a convolution.
    pub fn around(node: &Node) -> Result<Arc<Self>> {
        if let Some(layer) = Self::of(node) {
            return Ok(layer);
        }
        let refuse = || {
            let (path, class) = (node.path(), node.class());
            Error::Unsupported(format!("`{path}` is a {class}: LoRAs are of Linear and Conv2d alone"))
        };
        let mut params = node.own_params().into_iter();
        let base = Base::of(node).ok_or_else(refuse)?;
        let (_, weight) = params.find(|(name, _)| name == "weight").ok_or_else(refuse)?;
        let bias = params.find(|(name, _)| name == "bias").map(|(_, bias)| bias);
        let layer = Arc::new(Self { base, weight, bias, state: Mutex::default() });
        node.add_hook(LORA_HOOK, LoraHook(layer.clone()));
        Ok(layer)
    }

    /// The adapters of the layer `node`, if it has any.
    #[must_use]
    pub fn of(node: &Node) -> Option<Arc<Self>> {
        let hook = node.hook(LORA_HOOK)?;
        hook.as_any()?.downcast_ref::<LoraHook>().map(|hook| hook.0.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an adapter, which is not active yet. `number` says after which others it was loaded.
    pub fn add(&self, name: &str, number: usize, weights: LoraWeights) {
        let LoraWeights { down, up, up_bias, alpha, use_rslora } = weights;
        let rank = down.size().first().copied().unwrap_or(1) as f64;
        let param = |tensor| Param::new(tensor, None);
        let up_bias = up_bias.map(param);
        let (down, up) = (param(down), param(up));
        let (name, scaling, unfused_scaling) = (name.to_string(), 0.0, None);
        let mut adapter =
            Adapter { name, number, down, up, up_bias, rank, alpha, use_rslora, scaling, unfused_scaling };
        adapter.scaling = adapter.scaling_at(1.0);
        let mut state = self.state();
        state.adapters.retain(|known| known.name != adapter.name);
        state.adapters.push(adapter);
    }

    /// The adapters, by the number of their loading.
    #[must_use]
    pub fn adapters(&self) -> Vec<(usize, String)> {
        self.state().adapters.iter().map(|adapter| (adapter.number, adapter.name.clone())).collect()
    }

    /// The names that are active, in the order in which their shares are added; some may be of other layers' adapters.
    #[must_use]
    pub fn active(&self) -> Vec<String> {
        self.state().active.clone()
    }

    /// Has the adapters of these names, as far as there are such, take part in forwards.
    pub fn set_active(&self, names: &[String]) {
        self.state().active = names.to_vec();
    }

    /// Sets the weight of the adapter, if there is one of this name: its share is multiplied by `scale * alpha / rank`.
    pub fn set_scale(&self, name: &str, scale: f64) {
        if let Some(adapter) = self.state().adapters.iter_mut().find(|adapter| adapter.name == name) {
            adapter.scaling = adapter.scaling_at(scale);
            adapter.unfused_scaling = None;
        }
    }

    /// Has no adapter take part in forwards, or the active ones again.
    pub fn set_disabled(&self, disabled: bool) {
        self.state().disabled = disabled;
    }

    /// Whether [`LoraLayer::set_disabled`] keeps all adapters out.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.state().disabled
    }

    /// Forgets an adapter. If no other was active, the first by name is from then on, as in PEFT. Says whether there are
    /// adapters left.
    pub fn delete(&self, name: &str) -> bool {
        let mut state = self.state();
        state.adapters.retain(|adapter| adapter.name != name);
        if state.active.iter().any(|active| active == name) {
            state.active.retain(|active| active != name);
            if state.active.is_empty() {
                state.active = state.adapters.iter().map(|adapter| adapter.name.clone()).min().into_iter().collect();
            }
        }
        !state.adapters.is_empty()
    }

    /// What the adapter of this name is made of, if there is one. Nothing is copied.
    #[must_use]
    pub fn weights_of(&self, name: &str) -> Option<LoraWeights> {
        self.state().adapter(name).map(|adapter| LoraWeights {
            down: adapter.down.get(),
            up: adapter.up.get(),
            up_bias: adapter.up_bias.as_ref().map(Param::get),
            alpha: adapter.alpha,
            use_rslora: adapter.use_rslora,
        })
    }

    /// The weights of all adapters, which go where the layer's go.
    fn weights(&self) -> Vec<Param> {
        let params =
            |adapter: &Adapter| [Some(adapter.down.clone()), Some(adapter.up.clone()), adapter.up_bias.clone()];
        self.state().adapters.iter().flat_map(params).flatten().collect()
    }

    /// The active adapters in their order; none where they are off, or part of the layer's own weight.
    fn factors(&self) -> Vec<Factors> {
        let state = self.state();
        if state.disabled || state.fused.is_some() {
            return vec![];
        }
        let scale = LORA_SCALE.get();
        let factors = |adapter: &Adapter| Factors {
            down: adapter.down.get(),
            up: adapter.up.get(),
            up_bias: adapter.up_bias.as_ref().map(Param::get),
            scaling: adapter.scaling * scale,
        };
        state.active.iter().filter_map(|name| state.adapter(name)).map(factors).collect()
    }

    /// `output + up(down(input)) * scaling` for each adapter.
    fn adapt(&self, input: &Tensor, output: Tensor, factors: Vec<Factors>) -> Result<Tensor> {
        let (kind, device) = (output.f_kind()?, output.device());
        let (mut input, mut output) = (input.f_to_device(device)?, output);
        for Factors { down, up, up_bias, scaling } in factors {
            let here = |tensor: Tensor| tensor.f_to_device(device);
            let (down, up, up_bias) = (here(down)?, here(up)?, up_bias.map(here).transpose()?);
            input = input.f_to_kind(down.f_kind()?)?;
            let share = match self.base {
                Base::Linear => linear(&linear(&input, &down, None)?, &up, up_bias)?,
                Base::Conv2d(Conv2dConfig { stride, padding, .. }) => input
                    .f_conv2d(&down, None::<&Tensor>, [stride, stride], [padding, padding], [1, 1], 1)?
                    .f_conv2d(&up, up_bias, [1, 1], [0, 0], [1, 1], 1)?,
            };
            output = output.add_into(&share.times(scaling)?)?;
        }
        Ok(output.f_to_kind(kind)?)
    }
}

/// The dtype that adapters of `node` are kept in: that which it computes in, or `model`'s where it is stored in 8 bits.
#[must_use]
pub fn lora_dtype(node: &Node, model: &Node) -> Kind {
    match node.dtype() {
        stored if stored.elt_size_in_bytes() == 1 || !stored.is_floating_point() => model.dtype(),
        own => own,
    }
}

#[derive(Debug)]
struct LoraHook(Arc<LoraLayer>);

impl Hook for LoraHook {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        let factors = self.0.factors();
        let mut outputs = next.run(inputs)?;
        if factors.is_empty() {
            return Ok(outputs);
        }
        let found = outputs.len();
        match (inputs, outputs.pop()) {
            ([input], Some(output)) => Ok(vec![self.0.adapt(input, output, factors)?]),
            _ => Err(Error::Arity { expected: 1, found }),
        }
    }

    fn weights(&self) -> Vec<Param> {
        self.0.weights()
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

thread_local! {
    static LORA_SCALE: Cell<f64> = const { Cell::new(1.0) };
}

/// Sets what the weights of all adapters are multiplied by in the forwards of this thread, and gives what it was before: a
/// [`LoraScale`] for those who cannot keep one.
pub fn replace_lora_scale(scale: f64) -> f64 {
    LORA_SCALE.replace(scale)
}

/// While it lives, the weights of all adapters are multiplied in the forwards of this thread.
#[derive(Debug)]
#[must_use = "the scale lasts as long as this does"]
pub struct LoraScale {
    before: f64,
    of_this_thread: PhantomData<*const ()>,
}

impl LoraScale {
    /// Multiplies by `scale`; 1 changes nothing. Of one inside another the inner one counts.
    // Differs from diffusers: there, the adapters' own weights are multiplied, and divided again after the forward, which
    // is not exact, and forgets the weights of `set_adapters` at a scale of 0.
    pub fn new(scale: f64) -> Self {
        Self { before: replace_lora_scale(scale), of_this_thread: PhantomData }
    }
}

impl Drop for LoraScale {
    fn drop(&mut self) {
        replace_lora_scale(self.before);
    }
}
