//! What every scheduler offers.
//!
//! Mirrors `diffusers/schedulers/scheduling_utils.py` at 0.42.1.

use super::cursor::takes_no_custom;
use super::settings::load_scheduler_config;
use crate::configuration_utils::{ConfigMap, write_json};
use crate::error::{Error, Result};
use crate::torch::{Generator, randn_tensor};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::path::Path;
use tch::{Kind, Tensor};

/// The name of the file that schedulers are saved to.
pub const SCHEDULER_CONFIG_NAME: &str = "scheduler_config.json";

/// What the model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The noise-free sample.
    #[serde(alias = "original_sample")]
    Sample,
    /// The velocity (arXiv:2202.00512, appendix D).
    VPrediction,
    /// The direction from the noise-free sample to the noise, of a flow-matching model.
    FlowPrediction,
}

impl PredictionType {
    /// As configurations spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::Sample => "sample",
            Self::VPrediction => "v_prediction",
            Self::FlowPrediction => "flow_prediction",
        }
    }
}

/// Which timesteps to walk.
#[derive(Clone, Copy, Debug)]
pub enum Timesteps<'a> {
    /// That many, spaced as the configuration says.
    Steps(usize),
    /// Just these, in descending order.
    Timesteps(&'a [f64]),
    /// Just these noise levels, in descending order.
    Sigmas(&'a [f64]),
}

impl Timesteps<'_> {
    /// The number of steps, for a class that lays out its timesteps itself.
    pub(super) fn steps(self, class_name: &str) -> Result<usize> {
        match self {
            Self::Steps(steps) => Ok(steps),
            Self::Timesteps(_) => Err(takes_no_custom(class_name, "timesteps")),
            Self::Sigmas(_) => Err(takes_no_custom(class_name, "sigmas")),
        }
    }
}

/// What a step may be told beside the model's output.
#[derive(Debug, Default)]
pub struct StepOptions<'a> {
    /// DDIM's eta: 0 is deterministic, 1 is DDPM. Other schedulers pass it over.
    pub eta: f64,
    /// Whether DDIM derives the noise anew from the clipped sample. Other schedulers pass it over.
    pub use_clipped_model_output: bool,
    /// How much noise Euler's steps stir in. Other schedulers pass it over.
    pub churn: Churn,
    /// How many of the last derivatives LMS combines; none, the default, is 4. Other schedulers pass it over.
    pub order: Option<usize>,
    /// Where fresh noise comes from: none is libtorch's global generator, one fills the batch, or one per image.
    pub generators: &'a mut [Generator],
    /// Noise to use in place of fresh one, shaped like the sample.
    pub variance_noise: Option<&'a Tensor>,
}

impl StepOptions<'_> {
    /// The noise that was given, or else fresh noise in the shape and on the device of `like`.
    pub(super) fn noise(self, like: &Tensor, kind: Kind) -> Result<Tensor> {
        match self.variance_noise {
            Some(noise) => Ok(noise.shallow_clone()),
            None => randn_tensor(&like.size(), self.generators, kind, like.device()),
        }
    }
}

/// Fresh noise in Euler's steps (arXiv:2206.00364, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// How much noise a whole run stirs in; 0, the default, is none.
    pub s_churn: f64,
    /// The lowest sigma at which noise is stirred in, 0 by default.
    pub s_tmin: f64,
    /// The highest sigma at which noise is stirred in, infinite by default.
    pub s_tmax: f64,
    /// The scale of the noise, 1 by default.
    pub s_noise: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Self { s_churn: 0.0, s_tmin: 0.0, s_tmax: f64::INFINITY, s_noise: 1.0 }
    }
}

/// What a step gives.
#[derive(Debug)]
pub struct SchedulerOutput {
    /// The sample at the next, less noisy timestep.
    pub prev_sample: Tensor,
    /// The noise-free sample as this step sees it, from the schedulers that tell.
    pub pred_original_sample: Option<Tensor>,
}

/// A noise schedule and a solver for it.
///
/// Everything a step reads (sigmas, timesteps, coefficients) lies on the host, so that a step never waits for a device.
pub trait Scheduler: Debug + Send {
    /// diffusers' name of the class, such as `DDIMScheduler`.
    fn class_name(&self) -> &'static str;

    /// The configuration, with the keys that only other schedulers know. What `from_config` of another one takes.
    fn config(&self) -> &ConfigMap;

    /// How many calls of the model make one step.
    fn order(&self) -> usize {
        1
    }

    /// Lays out the timesteps of a run, and starts it anew.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] if there are none, too many, or if the scheduler takes no custom ones.
    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()>;

    /// Lays out the timesteps of a run whose noise levels are shifted by `mu`, from flow-matching pipelines.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] if the scheduler takes no `mu`, or as of [`Scheduler::set_timesteps`].
    fn set_timesteps_with_mu(&mut self, timesteps: Timesteps<'_>, mu: f64) -> Result<()> {
        let _ = timesteps;
        Err(Error::Argument(format!("`set_timesteps` of {} takes no `mu` (it was given {mu})", self.class_name())))
    }

    /// Starts the run at its `index`-th timestep, for pipelines that start from a noised picture.
    ///
    /// Schedulers that find their way by the timestep alone pass it over.
    fn set_begin_index(&mut self, index: usize) {
        let _ = index;
    }

    /// The timesteps of the run, in the order of their use; empty before [`Scheduler::set_timesteps`].
    fn timesteps(&self) -> &[f64];

    /// The noise levels of the run, one more than timesteps; empty for schedulers that have none, and for some before
    /// [`Scheduler::set_timesteps`].
    fn sigmas(&self) -> &[f32] {
        &[]
    }

    /// What pure noise of variance 1 is multiplied by to start a run: 1, unless a scheduler says otherwise.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The sample as the model wants to see it at `timestep`: as it is, unless a scheduler says otherwise.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] if the timestep is none of the run's.
    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        let _ = timestep;
        Ok(sample.shallow_clone())
    }

    /// Goes from `timestep` to the next one.
    ///
    /// `model_output` is what the model predicted for `sample` at `timestep`; all three shapes are the same.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] before [`Scheduler::set_timesteps`], after the run's last step, or if the timestep is
    /// none of the run's (of the training's, for the schedulers that find their way by the timestep alone).
    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput>;

    /// `original_samples` with `noise` mixed in as it is at `timesteps`, one for each sample.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] if the timesteps do not fit.
    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor>;

    /// The velocity that a model of [`PredictionType::VPrediction`] is trained to predict.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] from the schedulers that have none in diffusers.
    fn get_velocity(&self, sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let _ = (sample, noise, timesteps);
        Err(Error::Unsupported(format!("{} has no `get_velocity`", self.class_name())))
    }

    /// Writes `scheduler_config.json` into `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if it cannot be written.
    fn save_pretrained(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut config = self.config().clone();
        config.retain(|key, _| key != "_use_default_values");
        write_json(&folder.join(SCHEDULER_CONFIG_NAME), &config)
    }

    /// A second scheduler of the same configuration, at the start of a run.
    ///
    /// # Errors
    /// If the configuration does not fit any more.
    fn fresh(&self) -> Result<Box<dyn Scheduler>>;
}

/// The methods of a [`Scheduler`] that come from its `config` and from [`SchedulerMixin`].
macro_rules! as_configured {
    () => {
        fn class_name(&self) -> &'static str {
            Self::CLASS_NAME
        }

        fn config(&self) -> &ConfigMap {
            &self.config
        }

        fn fresh(&self) -> Result<Box<dyn Scheduler>> {
            Ok(Box::new(Self::from_config(&self.config)?))
        }
    };
}

/// The methods of a [`Scheduler`] that come from its `run`, which knows where it stands.
macro_rules! as_it_runs {
    () => {
        fn set_begin_index(&mut self, index: usize) {
            self.run.begin_at(index);
        }

        fn timesteps(&self) -> &[f64] {
            self.run.timesteps()
        }

        fn sigmas(&self) -> &[f32] {
            self.run.sigmas()
        }

        fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
            self.run.add_noise(original_samples, noise, timesteps)
        }
    };
}

pub(super) use {as_configured, as_it_runs};

/// How a scheduler comes into being.
pub trait SchedulerMixin: Scheduler + Sized {
    /// diffusers' name of the class.
    const CLASS_NAME: &'static str;

    /// The scheduler of this configuration, which may be another scheduler's.
    ///
    /// Missing keys take the class's defaults. Keys that the class does not know are kept, so that going to another
    /// scheduler and back loses nothing.
    ///
    /// # Errors
    /// [`crate::Error::Config`] or [`crate::Error::Unsupported`], naming the option that does not fit.
    fn from_config(config: &ConfigMap) -> Result<Self>;

    /// The scheduler of the `scheduler_config.json` in `folder`.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the file is not there, or as of [`SchedulerMixin::from_config`].
    fn from_pretrained(folder: impl AsRef<Path>) -> Result<Self> {
        Self::from_config(&load_scheduler_config(folder)?)
    }
}
