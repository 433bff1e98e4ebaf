//! Adapters in a model: adding them, weighing them, fusing them.
//!
//! Mirrors `PeftAdapterMixin` of `diffusers/loaders/peft.py`, and `set_weights_and_activate_adapters` and its kin of
//! `diffusers/utils/peft_utils.py`, at 0.42.1. The functions take the top of any tree of modules, so that they serve
//! UNets, transformers and text encoders alike.

use super::LoraStateDict;
use super::alphas::Alphas;
use super::block_weights::UNetWeight;
use super::keys::Part;
use super::state_dict::{Component, Layer};
use crate::error::{Error, Result};
use crate::hooks::refuse_if_offloaded;
use crate::nn::{LORA_HOOK, LoraLayer, LoraWeights, Node, lora_dtype, lora_shapes};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::Tensor;

/// The layers at or below `model` that have adapters.
fn layers(model: &Node) -> Vec<(Node, Arc<LoraLayer>)> {
    let layer = |node: Node| LoraLayer::of(&node).map(|layer| (node, layer));
    model.walk().into_iter().filter_map(layer).collect()
}

/// What is added to one layer.
struct Addition {
    node: Node,
    weights: LoraWeights,
}

/// Adds to each of `models`, which come with the names of their components, its part of `lora` as the adapter `name`, which
/// alone is active there from then on. Fused adapters are taken out of the weights first. Gives the components that there
/// was a part for.
///
/// Layers of the file that a model has not are named in a warning.
///
/// # Errors
/// [`Error::MissingWeights`] for a layer with one factor alone, [`Error::WeightShape`] naming each key, what is expected and
/// what is found; [`Error::Config`] if a model has none of the layers; [`Error::Unsupported`] for a layer that is neither
/// linear nor a convolution; [`Error::Argument`] for a name that is taken. Nothing is changed then.
pub fn load_lora_adapter<'a>(models: &[(&'a str, &Node)], lora: &LoraStateDict, name: &str) -> Result<Vec<&'a str>> {
    static LOADED: AtomicUsize = AtomicUsize::new(0);
    let mut planned = vec![];
    for (component, model) in models {
        let Some(part) = lora.component(component) else { continue };
        if list_adapters(model).iter().any(|known| known == name) {
            let text = format!("adapter name `{name}` is taken: delete that adapter first, or choose another name");
            return Err(Error::Argument(text));
        }
        let additions = Plan { model, lora, component, part, alphas: part.alphas() }.additions()?;
        if !fused_loras(model).is_empty() {
            refuse_if_offloaded(model, "another LoRA cannot be loaded beside a fused one")?;
        }
        planned.push((*component, *model, additions));
    }
    let number = LOADED.fetch_add(1, Ordering::Relaxed);
    let mut loaded = vec![];
    for (component, model, additions) in planned {
        if !fused_loras(model).is_empty() {
            tracing::warn!("fused LoRAs are taken out of the weights of `{component}` before another is loaded");
            unfuse_lora(model)?;
        }
        for Addition { node, weights } in additions {
            LoraLayer::around(&node)?.add(name, number, weights);
        }
        layers(model).iter().for_each(|(_, layer)| layer.set_active(&[name.to_string()]));
        loaded.push(component);
    }
    Ok(loaded)
}

/// The additions of one file to one model.
struct Plan<'a> {
    model: &'a Node,
    lora: &'a LoraStateDict,
    component: &'a str,
    part: &'a Component,
    alphas: Alphas,
}

impl Plan<'_> {
    fn additions(&self) -> Result<Vec<Addition>> {
        let (mut found, mut missing, mut mismatches, mut unmatched) = (vec![], vec![], vec![], vec![]);
        let mut taken = BTreeSet::new();
        for (module, layer) in &self.part.layers {
            let key = |part: Part| LoraStateDict::key(self.component, module, part);
            let lacks = [(Part::Down, &layer.down), (Part::Up, &layer.up)];
            missing.extend(lacks.iter().filter(|(_, tensor)| tensor.is_none()).map(|(part, _)| key(*part)));
            let (Some(down), Some(up)) = (&layer.down, &layer.up) else { continue };
            let Some(node) = self.node(module) else {
                unmatched.push(module.as_str());
                continue;
            };
            if !taken.insert(node.path().to_string()) {
                let (file, path) = (self.lora.file().display(), node.path());
                return Err(Error::Config(format!("{file}: `{path}` is there twice, with and without `text_model.`")));
            }
            let before = mismatches.len();
            self.check(&node, module, layer, [down, up], &mut mismatches)?;
            if mismatches.len() == before {
                found.push(self.addition(node, module, layer, [down, up])?);
            }
        }
        let file = self.lora.file().to_path_buf();
        if !missing.is_empty() {
            return Err(Error::MissingWeights { file, keys: missing });
        }
        if !mismatches.is_empty() {
            return Err(Error::WeightShape { file, mismatches });
        }
        if found.is_empty() {
            let first = unmatched.first().copied().unwrap_or_default();
            let (file, class, count) = (file.display(), self.model.class(), unmatched.len());
            return Err(Error::Config(format!(
                "{file}: the {class} has none of its {count} layers, such as `{first}`: the LoRA is of another model"
            )));
        }
        if !unmatched.is_empty() {
            let (file, count) = (file.display(), unmatched.len());
            tracing::warn!("{file}: {count} layers that `{}` has not: {unmatched:?}", self.component);
        }
        Ok(found)
    }

    /// The model's layer; older files have a `text_model.` before those of a text encoder.
    fn node(&self, module: &str) -> Option<Node> {
        let node = |path: &str| self.model.get(path).filter(|node| node.class() != "ModuleList");
        node(module).or_else(|| node(module.strip_prefix("text_model.")?))
    }

    /// Holds the shapes of a layer's factors to the layer's own weight.
    fn check(
        &self,
        node: &Node,
        module: &str,
        layer: &Layer,
        [down, up]: [&Tensor; 2],
        mismatches: &mut Vec<String>,
    ) -> Result<()> {
        let own = up.size().get(1).copied().unwrap_or_default();
        let rank = self.alphas.rank(node.path()).unwrap_or(own).max(1);
        let Some([down_shape, up_shape]) = lora_shapes(node, rank) else {
            let (path, class) = (node.path(), node.class());
            let file = self.lora.file().display();
            let text = format!("{file}: `{path}` is a {class}: LoRAs are of Linear and Conv2d alone");
            return Err(Error::Unsupported(text));
        };
        let bias_shape = vec![up_shape.first().copied().unwrap_or_default()];
        let parts = [
            (Part::Down, Some(down), down_shape),
            (Part::Up, Some(up), up_shape),
            (Part::UpBias, layer.up_bias.as_ref(), bias_shape),
        ];
        for (part, tensor, expected) in parts {
            if let Some(found) = tensor.map(Tensor::size).filter(|found| *found != expected) {
                let key = LoraStateDict::key(self.component, module, part);
                mismatches.push(format!("`{key}` should be {expected:?} and is {found:?}"));
            }
        }
        Ok(())
    }

    fn addition(&self, node: Node, module: &str, layer: &Layer, [down, up]: [&Tensor; 2]) -> Result<Addition> {
        let (device, kind) = (node.device(), lora_dtype(&node, self.model));
        let rank = up.size().get(1).copied().unwrap_or(1);
        let alpha = self.alphas.of(node.path(), rank);
        if let Some(own) = self.part.own_alpha(module).filter(|own| *own != alpha) {
            tracing::warn!(
                "{}: `{module}` counts with the most common alpha, {alpha}, and not with its own, {own}, as in diffusers",
                self.lora.file().display()
            );
        }
        let take = |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_to_device(device)?.f_to_kind(kind)?) };
        let weights = LoraWeights {
            down: take(down)?,
            up: take(up)?,
            up_bias: layer.up_bias.as_ref().map(take).transpose()?,
            alpha,
            use_rslora: self.alphas.use_rslora(),
        };
        Ok(Addition { node, weights })
    }
}

/// The names of the adapters in `model`, in the order of their loading.
#[must_use]
pub fn list_adapters(model: &Node) -> Vec<String> {
    let adapters = layers(model).into_iter().flat_map(|(_, layer)| layer.adapters());
    let mut names = vec![];
    for (_, name) in adapters.collect::<BTreeMap<_, _>>() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The names of the adapters that are active in `model`; none if it has no adapters.
#[must_use]
pub fn active_adapters(model: &Node) -> Option<Vec<String>> {
    layers(model).first().map(|(_, layer)| layer.active())
}

/// As [`load_lora_adapter`], of a LoRA that was read for one model, with this prefix. Gives the adapter's name.
pub(super) fn load_model_lora(
    model: &Node,
    lora: &LoraStateDict,
    prefix: Option<&str>,
    adapter_name: Option<&str>,
) -> Result<String> {
    let name = adapter_name.map_or_else(|| default_adapter_name(list_adapters(model)), String::from);
    let component = prefix.unwrap_or_default();
    if load_lora_adapter(&[(component, model)], lora, &name)?.is_empty() {
        let (file, class) = (lora.file().display(), model.class());
        let why = prefix.map_or_else(|| "it is empty".into(), |prefix| format!("no key begins with `{prefix}.`"));
        return Err(Error::Config(format!("{file}: there is nothing for the {class}: {why}")));
    }
    Ok(name)
}

/// diffusers' name for an adapter that is given none, which is not among those that are `taken`.
#[must_use]
pub fn default_adapter_name(mut taken: Vec<String>) -> String {
    taken.sort();
    taken.dedup();
    let free = |number: &usize| !taken.contains(&format!("default_{number}"));
    format!("default_{}", (taken.len()..).find(free).unwrap_or_default())
}

/// Has the adapters of these names, and no others, take part in forwards, in this order and with the weights that they have.
pub fn activate(model: &Node, names: &[String]) {
    layers(model).iter().for_each(|(_, layer)| layer.set_active(names));
}

/// As [`set_adapters`], with a weight for each name, which may be one by blocks.
///
/// # Errors
/// [`Error::Argument`] for another number of weights than of names, or as [`UNetWeight::resolve`]; nothing is changed then.
pub fn set_adapter_weights(model: &Node, names: &[String], weights: &[UNetWeight]) -> Result<()> {
    if names.len() != weights.len() {
        let (names, found) = (names.len(), weights.len());
        return Err(Error::Argument(format!("{found} weights were given for {names} adapters")));
    }
    let weights = weights.iter().map(|weight| weight.resolve(model)).collect::<Result<Vec<_>>>()?;
    set_adapters(model, names, |number, path| weights.get(number).map_or(1.0, |weight| weight.at(path)));
    Ok(())
}

/// Has the adapters of these names, and no others, take part in forwards, in this order. `weight` says by how much, for a
/// name's number and the path of a layer; names that `model` has no adapter of are passed over.
pub fn set_adapters(model: &Node, names: &[String], weight: impl Fn(usize, &str) -> f64) {
    for (node, layer) in layers(model) {
        layer.set_active(names);
        for (number, name) in names.iter().enumerate() {
            layer.set_scale(name, weight(number, node.path()));
        }
    }
}

/// Forgets an adapter. Where no other was active, the first by name is from then on.
///
/// # Errors
/// [`Error::Argument`] for an adapter that is fused.
// Differs from diffusers: there, a fused adapter is forgotten and stays in the weights.
pub fn delete_adapter(model: &Node, name: &str) -> Result<()> {
    refuse_fused(model, name)?;
    for (node, layer) in layers(model) {
        if !layer.delete(name) && layer.fused().is_empty() {
            node.remove_hook(LORA_HOOK);
        }
    }
    Ok(())
}

pub(super) fn refuse_fused(model: &Node, name: &str) -> Result<()> {
    match fused_loras(model).iter().any(|fused| fused == name) {
        false => Ok(()),
        true => Err(Error::Argument(format!(
            "adapter `{name}` is fused: call unfuse_lora first, or unload_lora_weights to keep it in the weights"
        ))),
    }
}

/// Has all adapters take no part in forwards; fused ones are taken out of the weights.
///
/// # Errors
/// As [`unfuse_lora`], where adapters are fused.
pub fn disable_lora(model: &Node) -> Result<()> {
    if !fused_loras(model).is_empty() {
        unfuse_lora(model)?;
    }
    layers(model).iter().for_each(|(_, layer)| layer.set_disabled(true));
    Ok(())
}

/// Has the active adapters take part again.
pub fn enable_lora(model: &Node) {
    layers(model).iter().for_each(|(_, layer)| layer.set_disabled(false));
}

/// Adds the adapters of these names, or the active ones, to the model's own weights, so that they cost no time. The weights
/// of active ones are multiplied by `lora_scale` before. With `safe_fusing` the result is looked through for numbers that
/// are not finite.
///
/// Each changed weight takes memory of its own; what it was before stays in the map of its file where it lies in one or can
/// be read from it again, and is kept beside it otherwise. Layers where one adapter is fused pass over those that are not.
///
/// # Errors
/// [`Error::Argument`] while offloading is on or adapters are disabled, or for numbers that are not finite;
/// [`Error::Unsupported`] for weights in 8 bits; [`Error::OutOfMemory`]. Nothing is changed then.
pub fn fuse_lora(model: &Node, lora_scale: f64, safe_fusing: bool, names: Option<&[String]>) -> Result<()> {
    let layers = layers(model);
    if layers.is_empty() {
        return Ok(());
    }
    refuse_if_offloaded(model, "LoRAs cannot be fused")?;
    if layers.iter().any(|(_, layer)| layer.is_disabled()) {
        return Err(Error::Argument("LoRAs cannot be fused while they are disabled: call enable_lora first".into()));
    }
    let _no_grad = tch::no_grad_guard();
    let fusion = |(node, layer): &(Node, Arc<LoraLayer>)| {
        layer.fusion(names, lora_scale, safe_fusing).map_err(|error| error.at(node.path()))
    };
    let fusions = layers.iter().map(fusion).collect::<Result<Vec<_>>>()?;
    for ((_, layer), fusion) in layers.iter().zip(fusions) {
        layer.fuse(fusion, lora_scale);
    }
    Ok(())
}

/// Gives the model's weights the numbers that they had before they were fused with adapters, to the bit. Says whether there
/// was anything to undo.
///
/// # Errors
/// [`Error::Argument`] while offloading is on; [`Error::OutOfMemory`]: the layers up to there are unfused.
pub fn unfuse_lora(model: &Node) -> Result<bool> {
    let layers = layers(model);
    if layers.iter().any(|(_, layer)| !layer.fused().is_empty()) {
        refuse_if_offloaded(model, "LoRAs cannot be unfused")?;
    }
    let mut unfused = false;
    for (node, layer) in layers {
        unfused |= layer.unfuse().map_err(|error| error.at(node.path()))?;
    }
    Ok(unfused)
}

/// The names of the adapters that are in the model's weights, sorted.
#[must_use]
pub fn fused_loras(model: &Node) -> Vec<String> {
    let mut names: Vec<_> = layers(model).into_iter().flat_map(|(_, layer)| layer.fused()).collect();
    names.sort();
    names.dedup();
    names
}

/// Forgets all adapters. Those that are fused stay in the weights for good, as in diffusers.
pub fn unload_lora(model: &Node) {
    for (node, _) in layers(model) {
        node.remove_hook(LORA_HOOK);
    }
}
