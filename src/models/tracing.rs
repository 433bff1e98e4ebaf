//! Tracing models into TorchScript modules, which run without this library's code, in Rust and in Python.
//!
//! Mirrors `torch.jit.trace` of torch 2.11, as diffusers' documentation uses it on a UNet with `return_dict=False`.

use crate::configuration_utils::OneOrMany;
use crate::error::{Error, Result};
use crate::models::ModelMixin;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::text_encoders::{CLIPTextConfig, CLIPTextModel};
use crate::models::transformers::{FluxInputs, FluxTransformer2DModel};
use crate::models::unets::{AddedCond, UNet2DConditionModel, UNetInputs};
use crate::nn::{Module, Node};
use crate::torch::{Generator, KindExt, TracedModule};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// How many tokens a text has in Stable Diffusion.
const TOKENS: i64 = 77;

/// How many tokens T5 reads of a prompt.
const T5_TOKENS: i64 = 512;

/// A model whose forward takes and returns plain tensors, so that it can be traced.
pub trait Traceable {
    /// The class that the traced module is called by.
    const CLASS_NAME: &'static str;

    /// The names of the inputs, in order.
    fn inputs(&self) -> &'static [&'static str];

    /// The model's place in the tree.
    fn root(&self) -> &Node;

    /// The weights that the forward uses, as their checkpoint names them.
    fn weights(&self) -> Vec<(String, Tensor)> {
        self.root().state_dict()
    }

    /// The configuration, as in `config.json`.
    ///
    /// # Errors
    /// Only if it cannot be written as JSON.
    fn config_json(&self) -> Result<serde_json::Value>;

    /// Inputs to trace with, on the model's device and in its dtype, always the same: `batch` items, the picture being
    /// `size` latents high and wide.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no room; [`Error::Config`] for a configuration that says too little.
    fn example_inputs(&self, batch: i64, size: [i64; 2]) -> Result<Vec<Tensor>>;

    /// Runs the model on as many tensors as [`Traceable::inputs`] names.
    ///
    /// # Errors
    /// If the inputs do not fit.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>>;
}

/// How tracing is checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceOptions {
    /// Whether the traced module has to give what the model gives; yes.
    pub check_trace: bool,
    /// How far each number may be from the model's, as a part of the largest; 1e-5.
    pub check_tolerance: f64,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self { check_trace: true, check_tolerance: 1e-5 }
    }
}

/// What a traced file says about itself.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Note {
    pub(crate) class: String,
    pub(crate) dtype: String,
    pub(crate) config: serde_json::Value,
}

/// Records what `model` does with `inputs`, and checks that the record gives the same numbers: `torch.jit.trace`.
///
/// The weights stay parameters under their checkpoint's names, so that Python loads the module, moves it, casts it and
/// reads its `state_dict()`. The batch is free, and so are height and width as long as they halve evenly wherever those of
/// the example do; a picture that does not halve evenly fixes its size, and attention in slices and tiles fix theirs.
///
/// # Examples
/// ```
/// use tch_diffusers::models::{Traceable, trace};
/// use tch_diffusers::nn::Module;
/// use tch_diffusers::{ModelMixin, UNet2DConditionModel, utils::assets::bundled_model};
/// let unet = UNet2DConditionModel::from_pretrained(bundled_model()?).subfolder("unet").load()?;
/// let inputs = unet.example_inputs(2, [32, 32])?;
/// let traced = trace(&unet, &inputs)?;
/// assert_eq!(traced.parameters()?.len(), unet.node().state_dict().len());
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
///
/// # Errors
/// As [`trace_with`].
pub fn trace<M: Traceable>(model: &M, inputs: &[Tensor]) -> Result<TracedModule> {
    trace_with(model, inputs, TraceOptions::default())
}

/// As [`trace`], with options.
///
/// # Errors
/// [`Error::Argument`] for another number of inputs; [`Error::Unsupported`] for a model with hooks, which move its weights
/// while it runs; [`Error::Torch`] if the traced module gives other numbers than the model; whatever the model fails with.
pub fn trace_with<M: Traceable>(model: &M, inputs: &[Tensor], options: TraceOptions) -> Result<TracedModule> {
    if inputs.len() != model.inputs().len() {
        let (names, found) = (model.inputs().join(", "), inputs.len());
        return Err(Error::Argument(format!("a {} is traced with {names}, not with {found} tensors", M::CLASS_NAME)));
    }
    if let Some(hooked) = model.root().walk().iter().find(|node| !node.hook_names().is_empty()) {
        let (path, hooks) = (hooked.path(), hooked.hook_names().join(", "));
        return Err(Error::Unsupported(format!(
            "`{path}` has hooks ({hooks}), which change its weights while it runs: switch offloading and casting off, or \
             fuse and unload LoRAs, before tracing"
        )));
    }
    let _no_grad = tch::no_grad_guard();
    let named: Vec<_> = model.inputs().iter().copied().zip(inputs).collect();
    let note =
        Note { class: M::CLASS_NAME.into(), dtype: model.root().dtype().torch_name(), config: model.config_json()? };
    let note = serde_json::to_string(&note).map_err(|error| Error::Config(error.to_string()))?;
    let traced = TracedModule::trace(M::CLASS_NAME, &model.weights(), &named, |inputs| model.run(inputs))?;
    if options.check_trace {
        check(model, &traced, inputs, options.check_tolerance)?;
    }
    Ok(traced.with_note(note))
}

fn check<M: Traceable>(model: &M, traced: &TracedModule, inputs: &[Tensor], tolerance: f64) -> Result<()> {
    let (expected, found) = (model.run(inputs)?, traced.forward(&inputs.iter().collect::<Vec<_>>())?);
    for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
        let expected = expected.f_to_kind(Kind::Double)?;
        let difference = expected.f_sub(&found.f_to_kind(Kind::Double)?)?.f_abs()?.f_max()?.f_double_value(&[])?;
        let largest = expected.f_abs()?.f_max()?.f_double_value(&[])?;
        if difference.is_nan() || difference > tolerance * largest.max(1.0) {
            return Err(Error::Torch(format!(
                "the traced module's output {number} differs from the model's by {difference:e}, more than {tolerance:e} \
                 of {largest:e}"
            )));
        }
    }
    Ok(())
}

fn json(config: &impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(config).map_err(|error| Error::Config(error.to_string()))
}

/// Noise that is always the same.
fn noise(like: &Node, shape: &[i64]) -> Result<Tensor> {
    let noise = Generator::cpu(0)?.randn(shape, Kind::Float)?;
    Ok(noise.f_to_kind(like.dtype())?.f_to_device(like.device())?)
}

/// In the order of the published recipes, SDXL's `text_embeds` and `time_ids` after them; returns `(sample,)`.
impl Traceable for UNet2DConditionModel {
    const CLASS_NAME: &'static str = "UNet2DConditionModel";

    fn inputs(&self) -> &'static [&'static str] {
        let names = &["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"];
        match self.config().addition_embed_type {
            Some(_) => names,
            None => names.get(..3).unwrap_or(names),
        }
    }

    fn root(&self) -> &Node {
        self.node()
    }

    fn config_json(&self) -> Result<serde_json::Value> {
        json(self.config())
    }

    fn example_inputs(&self, batch: i64, [height, width]: [i64; 2]) -> Result<Vec<Tensor>> {
        let (node, config) = (self.node(), self.config());
        let dim = match &config.cross_attention_dim {
            OneOrMany::One(dim) => Some(*dim),
            OneOrMany::Many(dims) => dims.first().copied(),
        };
        let dim = dim.ok_or_else(|| Error::Config("`cross_attention_dim` is an empty list".into()))?;
        let timestep = Tensor::f_from_slice(&[601f32])?.f_to_kind(node.dtype())?.f_to_device(node.device())?;
        let sample = noise(node, &[batch, config.in_channels, height, width])?;
        let mut inputs = vec![sample, timestep, noise(node, &[batch, TOKENS, dim])?];
        if let (Some(each), Some(all)) = (config.addition_time_embed_dim, config.projection_class_embeddings_input_dim)
        {
            // The refiner is told five numbers, and its pooled text is as wide as its states; others are told six.
            let numbers = if all - 5 * each == dim { 5 } else { 6 };
            inputs.push(noise(node, &[batch, all - numbers * each])?);
            inputs.push(noise(node, &[batch, numbers])?);
        }
        Ok(inputs)
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (inputs, added_cond) = match inputs {
            [sample, timestep, text] => (UNetInputs::new(sample, timestep, text), None),
            [sample, timestep, text, text_embeds, time_ids] => {
                (UNetInputs::new(sample, timestep, text), Some(AddedCond { text_embeds, time_ids }))
            }
            _ => return Err(Error::Arity { expected: self.inputs().len(), found: inputs.len() }),
        };
        Ok(vec![self.forward(&UNetInputs { added_cond, ..inputs })?])
    }
}

/// As `forward` has them, `guidance` last where the model takes it; returns `(sample,)`. How many tokens text and picture have
/// is fixed by the places in the example.
impl Traceable for FluxTransformer2DModel {
    const CLASS_NAME: &'static str = "FluxTransformer2DModel";

    fn inputs(&self) -> &'static [&'static str] {
        let names = &[
            "hidden_states",
            "encoder_hidden_states",
            "pooled_projections",
            "timestep",
            "img_ids",
            "txt_ids",
            "guidance",
        ];
        if self.config().guidance_embeds { names } else { names.get(..6).unwrap_or(names) }
    }

    fn root(&self) -> &Node {
        self.node()
    }

    fn config_json(&self) -> Result<serde_json::Value> {
        json(self.config())
    }

    /// `size` is that of the latents, which are packed two by two.
    fn example_inputs(&self, batch: i64, [height, width]: [i64; 2]) -> Result<Vec<Tensor>> {
        let (node, config) = (self.node(), self.config());
        let (kind, device) = (node.dtype(), node.device());
        let pixels = height / 2 * (width / 2);
        let places = |tokens: i64| noise(node, &[tokens, config.axes_dims_rope.len() as i64]);
        let times = |number: f64, kind: Kind| Tensor::f_full([batch], number, (kind, device));
        let mut inputs = vec![
            noise(node, &[batch, pixels, config.in_channels])?,
            noise(node, &[batch, T5_TOKENS, config.joint_attention_dim])?,
            noise(node, &[batch, config.pooled_projection_dim])?,
            times(0.6, kind)?,
            places(pixels)?,
            places(T5_TOKENS)?,
        ];
        if config.guidance_embeds {
            inputs.push(times(3.5, Kind::Float)?);
        }
        Ok(inputs)
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (expected, found) = (self.inputs().len(), inputs.len());
        let [hidden_states, encoder_hidden_states, pooled_projections, timestep, img_ids, txt_ids, guidance @ ..] =
            inputs
        else {
            return Err(Error::Arity { expected, found });
        };
        Ok(vec![self.forward(&FluxInputs {
            hidden_states,
            encoder_hidden_states,
            pooled_projections,
            timestep,
            img_ids,
            txt_ids,
            guidance: guidance.first(),
        })?])
    }
}

fn one(inputs: &[Tensor]) -> Result<&Tensor> {
    match inputs {
        [only] => Ok(only),
        _ => Err(Error::Arity { expected: 1, found: inputs.len() }),
    }
}

/// Returns `(last_hidden_state, pooler_output)`. The number of tokens is fixed, 77 for Stable Diffusion.
impl Traceable for CLIPTextModel {
    const CLASS_NAME: &'static str = "CLIPTextModel";

    fn inputs(&self) -> &'static [&'static str] {
        &["input_ids"]
    }

    fn root(&self) -> &Node {
        self.node()
    }

    fn config_json(&self) -> Result<serde_json::Value> {
        json(self.config())
    }

    fn example_inputs(&self, batch: i64, _: [i64; 2]) -> Result<Vec<Tensor>> {
        let &CLIPTextConfig { vocab_size, max_position_embeddings: tokens, .. } = self.config();
        let ids = Tensor::f_arange(batch * tokens, (Kind::Int64, self.node().device()))?.f_remainder(vocab_size)?;
        Ok(vec![ids.f_view([batch, tokens])?])
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let output = self.forward(one(inputs)?, None, false)?;
        Ok(vec![output.last_hidden_state, output.pooler_output])
    }
}

/// The half of a VAE that pipelines use, for tracing: latents to a picture.
#[derive(Clone, Copy, Debug)]
pub struct VaeDecoder<'a>(pub &'a AutoencoderKL);

/// Returns `(sample,)`, as `decode` does. The encoder's weights are left out.
impl Traceable for VaeDecoder<'_> {
    const CLASS_NAME: &'static str = "AutoencoderKLDecoder";

    fn inputs(&self) -> &'static [&'static str] {
        &["z"]
    }

    fn root(&self) -> &Node {
        self.0.node()
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        let used = |key: &str| key.starts_with("decoder.") || key.starts_with("post_quant_conv.");
        self.0.node().state_dict().into_iter().filter(|(key, _)| used(key)).collect()
    }

    fn config_json(&self) -> Result<serde_json::Value> {
        json(self.0.config())
    }

    fn example_inputs(&self, batch: i64, [height, width]: [i64; 2]) -> Result<Vec<Tensor>> {
        Ok(vec![noise(self.0.node(), &[batch, self.0.config().latent_channels, height, width])?])
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![self.0.decode(one(inputs)?)?])
    }
}
