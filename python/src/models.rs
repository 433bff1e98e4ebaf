//! The models, one class each: loading, saving, and the forward. All else is the [`Node`]'s.

use crate::arguments::{config, device, kind, to_json};
use crate::bridge::{PyGenerator, PyTensor, generators, tensors};
use crate::errors::OrRaise;
use crate::node::Node;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::{Kind, Tensor};
use tch_diffusers::configuration_utils::from_map;
use tch_diffusers::loaders::{LoadOptions, SaveOptions, parse_size};
use tch_diffusers::models::compile::CompileOptions;
use tch_diffusers::models::transformers::FluxInputs;
use tch_diffusers::models::unets::{AddedCond, UNetInputs};
use tch_diffusers::models::{ModelMixin, autoencoders, text_encoders, transformers, unets};
use tch_diffusers::nn::{self, RandomWeights, Weights};
use tch_diffusers::pipelines::stable_diffusion;
use tch_diffusers::{Error, Result};

/// A model that runs one forward at a time: hooks move and cast its weights.
///
/// Whoever waits for the model has let go of the interpreter's lock, so that other threads go on.
struct Turns<M> {
    model: Mutex<M>,
    node: nn::Node,
}

impl<M: ModelMixin + Send> Turns<M> {
    fn new(model: M) -> Self {
        Self { node: model.node().clone(), model: Mutex::new(model) }
    }

    fn lock(&self) -> MutexGuard<'_, M> {
        // A model whose forward panicked is whole: forwards change no field of it.
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a forward does.
    fn run<R>(&self, forward: impl FnOnce(&M) -> Result<R>) -> Result<R> {
        forward(&self.lock())
    }

    fn node(&self) -> Node {
        Node(self.node.clone())
    }

    fn config(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| to_json(self.lock().config()))
    }

    fn save(&self, folder: PathBuf, options: &SaveOptions) -> Result<()> {
        self.lock().save_pretrained_with(folder, options)
    }
}

/// What `from_pretrained` of a model is told.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Loading {
    folder: PathBuf,
    subfolder: Option<String>,
    variant: Option<String>,
    dtype: Option<String>,
    device: String,
}

/// `max_shard_size`: a number of bytes, or a text such as "5GB".
#[derive(FromPyObject)]
enum ShardSize {
    Bytes(u64),
    Text(String),
}

impl ShardSize {
    fn bytes(self) -> PyResult<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Text(text) => parse_size(&text).or_raise(),
        }
    }
}

fn load<M: ModelMixin + Send>(py: Python<'_>, loading: Loading) -> PyResult<Turns<M>> {
    let options = LoadOptions {
        torch_dtype: loading.dtype.as_deref().map(kind).transpose()?,
        variant: loading.variant,
        subfolder: loading.subfolder,
        device: device(&loading.device)?,
        ..LoadOptions::default()
    };
    let folder = loading.folder;
    py.detach(move || M::from_pretrained(folder).options(options).load()).or_raise().map(Turns::new)
}

/// Weights out of a state dict: shared, not copied.
struct StateDict(HashMap<String, Mutex<Tensor>>);

impl Weights for StateDict {
    fn get(&self, path: &str, shape: &[i64]) -> Result<Tensor> {
        let file = PathBuf::from("state_dict");
        let Some(weight) = self.0.get(path) else {
            return Err(Error::MissingWeights { file, keys: vec![path.into()] });
        };
        let weight = weight.lock().unwrap_or_else(PoisonError::into_inner).shallow_clone();
        match weight.size() {
            found if found == shape => Ok(weight),
            found => {
                let mismatches = vec![format!("`{path}` should be {shape:?} and is {found:?}")];
                Err(Error::WeightShape { file, mismatches })
            }
        }
    }
}

/// A model of a configuration: with the weights of a state dict, or with random ones from a seed.
fn build<M: ModelMixin + Send>(
    config_json: &str,
    state_dict: Option<Vec<(String, PyTensor)>>,
    seed: u64,
) -> PyResult<Turns<M>> {
    let config: M::Config = from_map(&config(config_json)?).or_raise()?;
    let model = match state_dict {
        Some(tensors) => {
            let spelled = |(key, PyTensor(tensor))| Some((M::KEYS(String::as_str(&key))?, Mutex::new(tensor)));
            M::from_weights(config, &StateDict(tensors.into_iter().filter_map(spelled).collect()))
        }
        None => M::from_weights(config, &RandomWeights::new(seed, Kind::Float).or_raise()?),
    };
    model.or_raise().map(Turns::new)
}

/// The parts of a model's class that are the same for all.
macro_rules! model_class {
    ($(#[$doc:meta])* $name:ident, $model:ty, { $($methods:tt)* }) => {
        $(#[$doc])*
        #[pyclass(frozen)]
        pub(crate) struct $name(Turns<$model>);

        #[pymethods]
        impl $name {
            /// Reads the model that diffusers wrote to a folder.
            #[staticmethod]
            fn load(py: Python<'_>, loading: Loading) -> PyResult<Self> {
                load(py, loading).map(Self)
            }

            /// Builds the model from a configuration, with the weights given or with random ones.
            #[staticmethod]
            #[pyo3(signature = (config, state_dict=None, seed=0))]
            fn build(config: &str, state_dict: Option<Vec<(String, PyTensor)>>, seed: u64) -> PyResult<Self> {
                build(config, state_dict, seed).map(Self)
            }

            /// The configuration, as JSON.
            fn config(&self, py: Python<'_>) -> PyResult<String> {
                self.0.config(py)
            }

            /// The top of the tree of modules.
            fn node(&self) -> Node {
                self.0.node()
            }

            /// A second model over the same weights, for another thread.
            fn share(&self, py: Python<'_>) -> PyResult<Self> {
                py.detach(|| self.0.lock().share()).or_raise().map(Turns::new).map(Self)
            }

            /// Writes the model to a folder, so that diffusers reads it back.
            #[pyo3(signature = (folder, max_shard_size=None, variant=None))]
            fn save(
                &self,
                py: Python<'_>,
                folder: PathBuf,
                max_shard_size: Option<ShardSize>,
                variant: Option<String>,
            ) -> PyResult<()> {
                let max_shard_size = max_shard_size.map(ShardSize::bytes).transpose()?;
                py.detach(|| self.0.save(folder, &SaveOptions { max_shard_size, variant })).or_raise()
            }

            /// Has the blocks that the model repeats run compiled.
            #[pyo3(signature = (mode, fullgraph=false, dynamic=None))]
            fn compile_repeated_blocks(
                &self,
                py: Python<'_>,
                mode: &str,
                fullgraph: bool,
                dynamic: Option<bool>,
            ) -> PyResult<()> {
                let mode = mode.parse().or_raise()?;
                let options = CompileOptions { mode, fullgraph, dynamic, ..CompileOptions::default() };
                py.detach(|| self.0.lock().compile_repeated_blocks(&options)).or_raise().map(drop)
            }

            $($methods)*
        }
    };
}

/// What a UNet may be told beside sample, timestep and text.
#[derive(Default, FromPyObject)]
#[pyo3(from_item_all)]
struct Conditions {
    class_labels: Option<PyTensor>,
    timestep_cond: Option<PyTensor>,
    attention_mask: Option<PyTensor>,
    encoder_attention_mask: Option<PyTensor>,
    text_embeds: Option<PyTensor>,
    time_ids: Option<PyTensor>,
    down_block_additional_residuals: Option<Vec<PyTensor>>,
    mid_block_additional_residual: Option<PyTensor>,
}

model_class!(
    /// The UNet of Stable Diffusion.
    UNet2DConditionModel,
    unets::UNet2DConditionModel,
    {
        /// Predicts the noise.
        #[pyo3(signature = (sample, timestep, encoder_hidden_states, conditions=None))]
        fn forward(
            &self,
            py: Python<'_>,
            sample: PyTensor,
            timestep: PyTensor,
            encoder_hidden_states: PyTensor,
            conditions: Option<Conditions>,
        ) -> PyResult<PyTensor> {
            let (sample, timestep, text) = (sample.0, timestep.0, encoder_hidden_states.0);
            let conditions = conditions.unwrap_or_default();
            let bare = |tensor: Option<PyTensor>| tensor.map(|PyTensor(tensor)| tensor);
            let class_labels = bare(conditions.class_labels);
            let timestep_cond = bare(conditions.timestep_cond);
            let attention_mask = bare(conditions.attention_mask);
            let encoder_attention_mask = bare(conditions.encoder_attention_mask);
            let added = bare(conditions.text_embeds).zip(bare(conditions.time_ids));
            let down = conditions.down_block_additional_residuals.map(tensors);
            let mid = bare(conditions.mid_block_additional_residual);
            let forward = move || {
                let inputs = UNetInputs {
                    class_labels: class_labels.as_ref(),
                    timestep_cond: timestep_cond.as_ref(),
                    attention_mask: attention_mask.as_ref(),
                    encoder_attention_mask: encoder_attention_mask.as_ref(),
                    added_cond: added.as_ref().map(|(text_embeds, time_ids)| AddedCond { text_embeds, time_ids }),
                    down_block_additional_residuals: down.as_deref(),
                    mid_block_additional_residual: mid.as_ref(),
                    ..UNetInputs::new(&sample, &timestep, &text)
                };
                self.0.run(|unet| unet.forward(&inputs))
            };
            py.detach(forward).or_raise().map(PyTensor)
        }
    }
);
model_class!(
    /// The variational autoencoder of Stable Diffusion.
    AutoencoderKL,
    autoencoders::AutoencoderKL,
    {
        /// Encodes pictures.
        fn encode(&self, py: Python<'_>, x: PyTensor) -> PyResult<DiagonalGaussianDistribution> {
            let x = x.0;
            let distribution = py.detach(move || self.0.run(|vae| vae.encode(&x))).or_raise()?;
            Ok(DiagonalGaussianDistribution(Mutex::new(distribution)))
        }

        /// Decodes latents.
        fn decode(&self, py: Python<'_>, z: PyTensor) -> PyResult<PyTensor> {
            let z = z.0;
            py.detach(move || self.0.run(|vae| vae.decode(&z))).or_raise().map(PyTensor)
        }

        /// Whether the items of a batch go one at a time.
        #[getter]
        fn use_slicing(&self, py: Python<'_>) -> bool {
            py.detach(|| self.0.lock().use_slicing())
        }

        /// Has the items of a batch go one at a time, or all at once.
        fn set_slicing(&self, py: Python<'_>, on: bool) {
            py.detach(|| {
                let mut vae = self.0.lock();
                if on { vae.enable_slicing() } else { vae.disable_slicing() }
            });
        }

        /// Whether large pictures go in tiles.
        #[getter]
        fn use_tiling(&self, py: Python<'_>) -> bool {
            py.detach(|| self.0.lock().use_tiling())
        }

        /// Has large pictures go in tiles, or whole.
        fn set_tiling(&self, py: Python<'_>, on: bool) {
            py.detach(|| {
                let mut vae = self.0.lock();
                if on { vae.enable_tiling() } else { vae.disable_tiling() }
            });
        }

        /// Side of a tile of a picture, side of a tile of latents, and the part that a tile shares with the next.
        fn tiles(&self, py: Python<'_>) -> (i64, i64, f64) {
            py.detach(|| {
                let vae = self.0.lock();
                (vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor)
            })
        }

        /// Sets what [`AutoencoderKL::tiles`] says.
        fn set_tiles(&self, py: Python<'_>, sample: i64, latent: i64, overlap: f64) {
            py.detach(|| {
                let mut vae = self.0.lock();
                (vae.tile_sample_min_size, vae.tile_latent_min_size) = (sample, latent);
                vae.tile_overlap_factor = overlap;
            });
        }
    }
);
model_class!(
    /// The text half of CLIP.
    CLIPTextModel,
    text_encoders::CLIPTextModel,
    {
        /// The last hidden state, the pooled one and, if asked for, all hidden states.
        #[pyo3(signature = (input_ids, attention_mask=None, output_hidden_states=false))]
        fn forward(
            &self,
            py: Python<'_>,
            input_ids: PyTensor,
            attention_mask: Option<PyTensor>,
            output_hidden_states: bool,
        ) -> PyResult<(PyTensor, PyTensor, Option<Vec<PyTensor>>)> {
            let (ids, mask) = (input_ids.0, attention_mask.map(|PyTensor(mask)| mask));
            let forward = move || self.0.run(|model| model.forward(&ids, mask.as_ref(), output_hidden_states));
            let output = py.detach(forward).or_raise()?;
            let hidden_states = output.hidden_states.map(|states| states.into_iter().map(PyTensor).collect());
            Ok((PyTensor(output.last_hidden_state), PyTensor(output.pooler_output), hidden_states))
        }

        /// The embeddings of a prompt without some of the last layers.
        #[pyo3(signature = (input_ids, attention_mask=None, clip_skip=0))]
        fn clip_skip(
            &self,
            py: Python<'_>,
            input_ids: PyTensor,
            attention_mask: Option<PyTensor>,
            clip_skip: usize,
        ) -> PyResult<PyTensor> {
            let (ids, mask) = (input_ids.0, attention_mask.map(|PyTensor(mask)| mask));
            py.detach(move || self.0.run(|model| model.clip_skip(&ids, mask.as_ref(), clip_skip))).or_raise().map(PyTensor)
        }
    }
);
model_class!(
    /// CLIP's text model and a linear map of the pooled state.
    CLIPTextModelWithProjection,
    text_encoders::CLIPTextModelWithProjection,
    {
        /// The pooled state through the map, the last hidden state and, if asked for, all hidden states.
        #[pyo3(signature = (input_ids, attention_mask=None, output_hidden_states=false))]
        fn forward(
            &self,
            py: Python<'_>,
            input_ids: PyTensor,
            attention_mask: Option<PyTensor>,
            output_hidden_states: bool,
        ) -> PyResult<(PyTensor, PyTensor, Option<Vec<PyTensor>>)> {
            let (ids, mask) = (input_ids.0, attention_mask.map(|PyTensor(mask)| mask));
            let forward = move || self.0.run(|model| model.forward(&ids, mask.as_ref(), output_hidden_states));
            let output = py.detach(forward).or_raise()?;
            let hidden_states = output.hidden_states.map(|states| states.into_iter().map(PyTensor).collect());
            Ok((PyTensor(output.text_embeds), PyTensor(output.last_hidden_state), hidden_states))
        }
    }
);
model_class!(
    /// The safety checker of Stable Diffusion.
    StableDiffusionSafetyChecker,
    stable_diffusion::StableDiffusionSafetyChecker,
    {
        /// Whether each picture shows what it should not.
        fn check(&self, py: Python<'_>, clip_input: PyTensor) -> PyResult<Vec<bool>> {
            let clip_input = clip_input.0;
            let scores = py.detach(move || self.0.run(|checker| checker.scores(&clip_input))).or_raise()?;
            Ok(scores.iter().map(stable_diffusion::SafetyScores::has_nsfw_concept).collect())
        }
    }
);

model_class!(
    /// The encoder half of T5.
    T5EncoderModel,
    text_encoders::T5EncoderModel,
    {
        /// The last hidden state.
        #[pyo3(signature = (input_ids, attention_mask=None))]
        fn forward(&self, py: Python<'_>, input_ids: PyTensor, attention_mask: Option<PyTensor>) -> PyResult<PyTensor> {
            let (ids, mask) = (input_ids.0, attention_mask.map(|PyTensor(mask)| mask));
            py.detach(move || self.0.run(|model| model.forward(&ids, mask.as_ref()))).or_raise().map(PyTensor)
        }
    }
);

/// What a transformer of FLUX.1 takes.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Flux {
    hidden_states: PyTensor,
    encoder_hidden_states: PyTensor,
    pooled_projections: PyTensor,
    timestep: PyTensor,
    img_ids: PyTensor,
    txt_ids: PyTensor,
    guidance: Option<PyTensor>,
}

model_class!(
    /// The transformer of FLUX.1.
    FluxTransformer2DModel,
    transformers::FluxTransformer2DModel,
    {
        /// Predicts the velocity.
        fn forward(&self, py: Python<'_>, inputs: Flux) -> PyResult<PyTensor> {
            let [hidden_states, encoder_hidden_states, pooled_projections, timestep, img_ids, txt_ids] = [
                inputs.hidden_states,
                inputs.encoder_hidden_states,
                inputs.pooled_projections,
                inputs.timestep,
                inputs.img_ids,
                inputs.txt_ids,
            ]
            .map(|PyTensor(tensor)| tensor);
            let guidance = inputs.guidance.map(|PyTensor(guidance)| guidance);
            let forward = move || {
                let inputs = FluxInputs {
                    hidden_states: &hidden_states,
                    encoder_hidden_states: &encoder_hidden_states,
                    pooled_projections: &pooled_projections,
                    timestep: &timestep,
                    img_ids: &img_ids,
                    txt_ids: &txt_ids,
                    guidance: guidance.as_ref(),
                };
                self.0.run(|transformer| transformer.forward(&inputs))
            };
            py.detach(forward).or_raise().map(PyTensor)
        }
    }
);

/// What the autoencoder's encoder gives.
#[pyclass(frozen)]
pub(crate) struct DiagonalGaussianDistribution(Mutex<autoencoders::DiagonalGaussianDistribution>);

impl DiagonalGaussianDistribution {
    fn lock(&self) -> MutexGuard<'_, autoencoders::DiagonalGaussianDistribution> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl DiagonalGaussianDistribution {
    /// The mean.
    #[getter]
    fn mean(&self) -> PyTensor {
        PyTensor(self.lock().mean().shallow_clone())
    }

    /// The natural logarithm of the variance.
    #[getter]
    fn logvar(&self) -> PyTensor {
        PyTensor(self.lock().logvar().shallow_clone())
    }

    /// The standard deviation.
    #[getter]
    fn std(&self) -> PyTensor {
        PyTensor(self.lock().std().shallow_clone())
    }

    /// Latents drawn at random.
    fn sample(&self, generators_of: Vec<PyGenerator>) -> PyResult<PyTensor> {
        self.lock().sample(&mut generators(generators_of)).or_raise().map(PyTensor)
    }
}

/// The node of a model, for the functions of `hooks`.
pub(crate) fn cloned(node: &Node) -> nn::Node {
    node.0.clone()
}
