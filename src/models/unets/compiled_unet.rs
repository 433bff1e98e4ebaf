//! A compiled UNet in the place of the model itself.
//!
//! Twin of `torch.compile(unet)` of torch 2.11.

use super::{UNet, UNet2DConditionConfig, UNet2DConditionModel, UNetInputs};
use crate::error::{Error, Result};
use crate::hooks::{COMPILED_HOOK, MarkCompiled, refuse_bypassed_hooks};
use crate::models::compile::{CompileOptions, CompileStats, Graphs, Mode, Slot, params_of};
use crate::models::{ModelMixin, To};
use crate::nn::{Module, Node, Param};
use crate::torch::{AotiModel, KindExt, TracedModule};
use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// A [`UNet2DConditionModel`] that runs compiled, with the model's own weights: where those are moved, cast or replaced, the
/// compiled code follows, or says why it cannot.
///
/// Settings that change how the model computes, such as attention backends, fused projections and Winograd, are recorded by a
/// trace, and have no effect on a package.
#[derive(Debug)]
pub struct CompiledUNet {
    unet: UNet2DConditionModel,
    options: CompileOptions,
    engine: Engine,
    eager_calls: AtomicUsize,
}

#[derive(Debug)]
enum Engine {
    Graphs(Graphs),
    Package(Box<Package>),
}

#[derive(Debug)]
struct Package {
    code: AotiModel,
    /// In the order in which the code takes them.
    weights: Vec<Param>,
    compile_time: Duration,
}

impl UNet2DConditionModel {
    /// Has the model run compiled: `unet.compile(&CompileOptions { mode: Mode::MaxAutotune, .. })?`.
    ///
    /// # Examples
    /// ```
    /// use tch_diffusers::models::compile::CompileOptions;
    /// use tch_diffusers::{ModelMixin, StableDiffusionPipeline, UNet2DConditionModel, utils::assets::bundled_model};
    /// let unet = UNet2DConditionModel::from_pretrained(bundled_model()?).subfolder("unet").load()?;
    /// let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    /// pipe.set_unet(unet.compile(&CompileOptions { dynamic: Some(true), ..CompileOptions::default() })?);
    /// # Ok::<(), tch_diffusers::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a mode that the device does not have, or hooks that compiled code would pass over;
    /// [`Error::Argument`] for a package of another architecture, or none; as
    /// [`AotiPackage::load`](crate::torch::AotiPackage::load).
    pub fn compile(self, options: &CompileOptions) -> Result<CompiledUNet> {
        let device = self.node().execution_device();
        options.refuse_cuda_graphs(device)?;
        refuse_bypassed_hooks(self.node())?;
        let engine = match options.mode {
            Mode::Default | Mode::ReduceOverhead => Engine::Graphs(Graphs::default()),
            Mode::MaxAutotune | Mode::MaxAutotuneNoCudagraphs => {
                Engine::Package(Box::new(self.packaged(options, device)?))
            }
        };
        // Innermost, and it only says that something is compiled.
        self.node().add_hook(COMPILED_HOOK, MarkCompiled);
        Ok(CompiledUNet { unet: self, options: options.clone(), engine, eager_calls: AtomicUsize::new(0) })
    }

    fn packaged(&self, options: &CompileOptions, device: Device) -> Result<Package> {
        let package = options.package_for(self, false)?;
        if !package.contract().models.contains_key("model") {
            let path = package.path().display();
            return Err(Error::Argument(format!("{path} is of repeated blocks: pass it to compile_repeated_blocks")));
        }
        let code = package.model("model", device)?;
        let weights = params_of(self.node(), code.terms())?;
        code.chosen(&self.node().state_dict())?;
        let compile_time = Duration::from_secs_f64(package.contract().compile_seconds.max(0.0));
        Ok(Package { code, weights, compile_time })
    }
}

impl CompiledUNet {
    /// The model itself.
    #[must_use]
    pub fn model(&self) -> &UNet2DConditionModel {
        &self.unet
    }

    /// The model as it was, no longer compiled.
    #[must_use]
    pub fn into_model(self) -> UNet2DConditionModel {
        self.unet.node().remove_hook(COMPILED_HOOK);
        self.unet
    }

    /// What was compiled so far.
    #[must_use]
    pub fn stats(&self) -> CompileStats {
        let eager_calls = self.eager_calls.load(Ordering::Relaxed);
        match &self.engine {
            Engine::Graphs(graphs) => CompileStats { eager_calls, ..graphs.stats() },
            Engine::Package(package) => {
                CompileStats { graphs: 1, recompilations: 0, eager_calls, compile_time: package.compile_time }
            }
        }
    }

    fn run_package(&self, package: &Package, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        let given = named(inputs);
        let known = &package.code.terms().inputs;
        if let Some((name, _)) = given.iter().find(|(name, _)| known.iter().all(|input| input.name != *name)) {
            return Err(Error::Shape(format!("the package takes no `{name}`")));
        }
        let tensors = known.iter().map(|input| {
            let found = given.iter().find(|(name, _)| *name == input.name);
            let (name, tensor) = found.ok_or_else(|| Error::Argument(format!("the package needs `{}`", input.name)))?;
            prepared(name, tensor, Kind::from_torch_name(&input.dtype)?)
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let weights: Vec<_> = package.weights.iter().map(Param::get).collect();
        let made = package.code.run_with(&weights, &tensors.iter().collect::<Vec<_>>())?;
        made.into_iter().next().ok_or(Error::Arity { expected: 1, found: 0 })
    }

    fn run_graph(&self, graphs: &Graphs, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        let given = named(inputs);
        let graph = graphs.of(self.unet.node(), |any| self.kinds(&given, any), |_| self.trace(&given))?;
        let tensors: Vec<_> = given.iter().map(|(_, tensor)| *tensor).collect();
        graph.forward(&tensors)?.into_iter().next().ok_or(Error::Arity { expected: 1, found: 0 })
    }

    /// Which graphs would do for these inputs, the last of which is to be made if there is none. `any` says that there is one
    /// for other inputs.
    fn kinds(&self, given: &[(String, &Tensor)], any: bool) -> Result<Vec<Vec<Slot>>> {
        let exact = given.iter().map(|(name, tensor)| Slot::exact(name, tensor)).collect::<Result<Vec<_>>>()?;
        let factor = 1 << self.unet.config().block_out_channels.len().saturating_sub(1);
        // A picture that does not halve evenly fixes its size in a trace, and so do masks and residuals.
        let sample = given.first().map(|(_, tensor)| tensor.size()).unwrap_or_default();
        let halves = sample.len() == 4 && sample[2..].iter().all(|side| side % factor == 0);
        if self.options.dynamic == Some(false) || !halves || given.len() > 3 {
            return Ok(vec![exact]);
        }
        let free = exact.iter().cloned().map(|slot| match slot.name.as_str() {
            "sample" => slot.free(&[0, 2, 3]),
            "encoder_hidden_states" => slot.free(&[0]),
            _ => slot,
        });
        let free = free.collect();
        Ok(match self.options.dynamic {
            Some(true) => vec![free],
            // The first size gets a graph of its own.
            _ if !any => vec![free, exact],
            _ => vec![exact, free],
        })
    }

    fn trace(&self, given: &[(String, &Tensor)]) -> Result<TracedModule> {
        let names: Vec<_> = given.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
        let weights = self.unet.node().state_dict();
        let residuals = given.iter().filter(|(name, _)| name.starts_with(RESIDUAL)).count();
        let run = |tensors: &[Tensor]| {
            let found = |wanted: &str| names.iter().position(|(name, _)| *name == wanted).and_then(|i| tensors.get(i));
            let needed = |wanted: &str| found(wanted).ok_or(Error::Arity { expected: 3, found: tensors.len() });
            let added = found("text_embeds").zip(found("time_ids"));
            let first = names.iter().position(|(name, _)| name.starts_with(RESIDUAL)).unwrap_or_default();
            let residuals = tensors.get(first..first + residuals).filter(|residuals| !residuals.is_empty());
            let inputs = UNetInputs {
                class_labels: found("class_labels"),
                timestep_cond: found("timestep_cond"),
                attention_mask: found("attention_mask"),
                encoder_attention_mask: found("encoder_attention_mask"),
                added_cond: added.map(|(text_embeds, time_ids)| super::AddedCond { text_embeds, time_ids }),
                down_block_additional_residuals: residuals,
                mid_block_additional_residual: found("mid_block_additional_residual"),
                ..UNetInputs::new(needed("sample")?, needed("timestep")?, needed("encoder_hidden_states")?)
            };
            Ok(vec![self.unet.predict(&inputs)?])
        };
        TracedModule::trace(UNet2DConditionModel::CLASS_NAME, &weights, &names, run)?.freeze()
    }
}

/// The UNet of a pipeline, compiled over the weights that it has.
pub(crate) fn compile_shared(unet: &dyn UNet, options: &CompileOptions) -> Result<Box<dyn UNet>> {
    let model = unet.model().ok_or_else(|| {
        Error::Unsupported("only a UNet2DConditionModel can be compiled; this pipeline has another UNet".into())
    })?;
    Ok(Box::new(ModelMixin::share(model)?.compile(options)?))
}

const RESIDUAL: &str = "down_block_additional_residual.";

/// The inputs that are given, by name.
fn named<'a>(inputs: &UNetInputs<'a>) -> Vec<(String, &'a Tensor)> {
    let added = inputs.added_cond;
    let known = [
        ("sample", Some(inputs.sample)),
        ("timestep", Some(inputs.timestep)),
        ("encoder_hidden_states", Some(inputs.encoder_hidden_states)),
        ("class_labels", inputs.class_labels),
        ("timestep_cond", inputs.timestep_cond),
        ("attention_mask", inputs.attention_mask),
        ("encoder_attention_mask", inputs.encoder_attention_mask),
        ("text_embeds", added.map(|added| added.text_embeds)),
        ("time_ids", added.map(|added| added.time_ids)),
        ("mid_block_additional_residual", inputs.mid_block_additional_residual),
    ];
    let known = known.into_iter().filter_map(|(name, tensor)| Some((name.to_string(), tensor?)));
    let residuals = inputs.down_block_additional_residuals.unwrap_or_default().iter().enumerate();
    known.chain(residuals.map(|(index, tensor)| (format!("{RESIDUAL}{index}"), tensor))).collect()
}

/// The tensor as packages take it: contiguous, and a timestep without dimensions.
fn prepared(name: &str, tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    if name != "timestep" {
        return Ok(tensor.f_contiguous()?);
    }
    let timestep = match tensor.size()[..] {
        [1] => tensor.f_squeeze()?,
        _ => tensor.shallow_clone(),
    };
    // The model computes with the same numbers in float32, whatever they come in.
    Ok(timestep.f_to_kind(kind)?)
}

impl UNet for CompiledUNet {
    fn config(&self) -> &UNet2DConditionConfig {
        self.unet.config()
    }

    fn forward(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        refuse_bypassed_hooks(self.unet.node())?;
        let outer = [inputs.sample, inputs.timestep, inputs.encoder_hidden_states];
        let [prediction] = self.unet.node().call(outer, |[sample, timestep, encoder_hidden_states]| {
            let inputs = UNetInputs { sample, timestep, encoder_hidden_states, ..*inputs };
            let made = match &self.engine {
                Engine::Graphs(graphs) => self.run_graph(graphs, &inputs),
                Engine::Package(package) => self.run_package(package, &inputs),
            };
            match made {
                Err(error) if !self.options.fullgraph && matches!(error.kind(), Error::Shape(_)) => {
                    tracing::debug!(target: "tch_diffusers::compile", "{error}: the model itself runs");
                    self.eager_calls.fetch_add(1, Ordering::Relaxed);
                    Ok([self.unet.predict(&inputs)?])
                }
                made => Ok([made?]),
            }
        })?;
        Ok(prediction)
    }

    fn dtype(&self) -> Kind {
        self.unet.node().dtype()
    }

    fn device(&self) -> Device {
        self.unet.node().execution_device()
    }

    fn move_to(&self, target: To) -> Result<()> {
        ModelMixin::to(&self.unet, target)
    }

    fn tree(&self) -> Option<&Node> {
        Some(self.unet.node())
    }

    fn model(&self) -> Option<&UNet2DConditionModel> {
        Some(&self.unet)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
