//! The schedulers, behind one class that is told which one to be.

use crate::arguments::{config, to_json};
use crate::bridge::{PyGenerator, PyTensor, generators, tensors};
use crate::errors::OrRaise;
use pyo3::exceptions::PyNotImplementedError;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::Tensor;
use tch_diffusers::schedulers::{
    self, Churn, LCMScheduler, PNDMScheduler, SchedulerMixin, StepOptions, Timesteps, load_scheduler_config,
    training_alphas_cumprod, training_betas,
};
use tch_diffusers::{Result, SchedulerKind};

/// PNDM has steps of its own, LCM its own layout; the others are used through what all have.
enum Core {
    Pndm(Box<PNDMScheduler>),
    Lcm(Box<LCMScheduler>),
    Other(Box<dyn schedulers::Scheduler>),
}

impl Core {
    fn get(&self) -> &dyn schedulers::Scheduler {
        match self {
            Self::Pndm(scheduler) => scheduler.as_ref(),
            Self::Lcm(scheduler) => scheduler.as_ref(),
            Self::Other(scheduler) => scheduler.as_ref(),
        }
    }

    fn get_mut(&mut self) -> &mut dyn schedulers::Scheduler {
        match self {
            Self::Pndm(scheduler) => scheduler.as_mut(),
            Self::Lcm(scheduler) => scheduler.as_mut(),
            Self::Other(scheduler) => scheduler.as_mut(),
        }
    }
}

/// A noise schedule and a solver for it.
#[pyclass(frozen)]
pub(crate) struct Scheduler(Mutex<Core>);

impl Scheduler {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pndm<T>(&self, act: impl FnOnce(&mut PNDMScheduler) -> Result<T>) -> PyResult<T> {
        match &mut *self.lock() {
            Core::Pndm(scheduler) => act(scheduler).or_raise(),
            core => {
                let name = core.get().class_name();
                Err(PyNotImplementedError::new_err(format!("{name} has no Runge-Kutta steps")))
            }
        }
    }
}

/// What a step may be told beside output, timestep and sample.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Options {
    eta: f64,
    use_clipped_model_output: bool,
    s_churn: f64,
    s_tmin: f64,
    s_tmax: f64,
    s_noise: f64,
    order: Option<usize>,
    generators: Vec<PyGenerator>,
    variance_noise: Option<PyTensor>,
}

#[pymethods]
impl Scheduler {
    /// The scheduler called `class_name` of a configuration.
    #[staticmethod]
    fn build(class_name: &str, config_json: &str) -> PyResult<Self> {
        let (kind, config) = (class_name.parse::<SchedulerKind>().or_raise()?, config(config_json)?);
        let core = match kind {
            SchedulerKind::PNDM => Core::Pndm(Box::new(PNDMScheduler::from_config(&config).or_raise()?)),
            SchedulerKind::LCM => Core::Lcm(Box::new(LCMScheduler::from_config(&config).or_raise()?)),
            other => Core::Other(other.from_config(&config).or_raise()?),
        };
        Ok(Self(Mutex::new(core)))
    }

    /// The configuration in a folder, as JSON.
    #[staticmethod]
    fn load_config(folder: PathBuf) -> PyResult<String> {
        to_json(&load_scheduler_config(folder).or_raise()?)
    }

    /// The configuration, as JSON.
    fn config(&self) -> PyResult<String> {
        to_json(self.lock().get().config())
    }

    /// Writes the configuration to a folder.
    fn save(&self, folder: PathBuf) -> PyResult<()> {
        self.lock().get().save_pretrained(&folder).or_raise()
    }

    /// How many calls of the model make one step.
    #[getter]
    fn order(&self) -> usize {
        self.lock().get().order()
    }

    /// Lays out the timesteps of a run: a number of them, just these, or just these noise levels.
    #[pyo3(signature = (steps=None, timesteps=None, sigmas=None, mu=None))]
    fn set_timesteps(
        &self,
        steps: Option<usize>,
        timesteps: Option<Vec<f64>>,
        sigmas: Option<Vec<f64>>,
        mu: Option<f64>,
    ) -> PyResult<()> {
        let layout = match (&timesteps, &sigmas) {
            (Some(timesteps), _) => Timesteps::Timesteps(timesteps),
            (None, Some(sigmas)) => Timesteps::Sigmas(sigmas),
            (None, None) => Timesteps::Steps(steps.unwrap_or(0)),
        };
        let mut core = self.lock();
        match mu {
            Some(mu) => core.get_mut().set_timesteps_with_mu(layout, mu).or_raise(),
            None => core.get_mut().set_timesteps(layout).or_raise(),
        }
    }

    /// Lays out a run of LCM over a share of the timesteps that the model was distilled with.
    #[pyo3(signature = (steps=None, timesteps=None, original_inference_steps=None, strength=1.0))]
    fn set_timesteps_of(
        &self,
        steps: Option<usize>,
        timesteps: Option<Vec<f64>>,
        original_inference_steps: Option<i64>,
        strength: f64,
    ) -> PyResult<()> {
        let layout = match &timesteps {
            Some(timesteps) => Timesteps::Timesteps(timesteps),
            None => Timesteps::Steps(steps.unwrap_or(0)),
        };
        match &mut *self.lock() {
            Core::Lcm(lcm) => lcm.set_timesteps_of(layout, original_inference_steps, strength).or_raise(),
            core => {
                let name = core.get().class_name();
                Err(PyNotImplementedError::new_err(format!("{name} was not distilled from other timesteps")))
            }
        }
    }

    /// Starts the run at a timestep further on.
    fn set_begin_index(&self, index: usize) {
        self.lock().get_mut().set_begin_index(index);
    }

    /// The timesteps of the run; empty before `set_timesteps`.
    #[getter]
    fn timesteps(&self) -> Vec<f64> {
        self.lock().get().timesteps().to_vec()
    }

    /// The noise levels of the run, or of the training before there is one; empty for schedulers without.
    #[getter]
    fn sigmas(&self) -> Vec<f32> {
        self.lock().get().sigmas().to_vec()
    }

    /// What pure noise is multiplied by to start a run.
    #[getter]
    fn init_noise_sigma(&self) -> f64 {
        self.lock().get().init_noise_sigma()
    }

    /// The betas of the training.
    fn betas(&self) -> PyResult<Vec<f32>> {
        training_betas(self.lock().get().config()).or_raise()
    }

    /// Their cumulative alphas.
    fn alphas_cumprod(&self) -> PyResult<Vec<f32>> {
        training_alphas_cumprod(self.lock().get().config()).or_raise()
    }

    /// The sample as the model wants to see it.
    fn scale_model_input(&self, py: Python<'_>, sample: PyTensor, timestep: f64) -> PyResult<PyTensor> {
        let sample = sample.0;
        let scale = move || self.lock().get_mut().scale_model_input(&sample, timestep);
        py.detach(scale).or_raise().map(PyTensor)
    }

    /// Goes from `timestep` to the next: the sample there, and the noise-free one from the schedulers that tell.
    fn step(
        &self,
        py: Python<'_>,
        model_output: PyTensor,
        timestep: f64,
        sample: PyTensor,
        options: Options,
    ) -> PyResult<(PyTensor, Option<PyTensor>)> {
        let (output, sample) = (model_output.0, sample.0);
        let mut drawn_from = generators(options.generators);
        let variance_noise = options.variance_noise.map(|PyTensor(noise)| noise);
        let Options { eta, use_clipped_model_output, s_churn, s_tmin, s_tmax, s_noise, order, .. } = options;
        let step = move || {
            let options = StepOptions {
                eta,
                use_clipped_model_output,
                churn: Churn { s_churn, s_tmin, s_tmax, s_noise },
                order,
                generators: &mut drawn_from,
                variance_noise: variance_noise.as_ref(),
            };
            self.lock().get_mut().step(&output, timestep, &sample, options)
        };
        let given = py.detach(step).or_raise()?;
        Ok((PyTensor(given.prev_sample), given.pred_original_sample.map(PyTensor)))
    }

    /// Samples with noise mixed in as it is at the timesteps.
    fn add_noise(&self, original_samples: PyTensor, noise: PyTensor, timesteps: Vec<f64>) -> PyResult<PyTensor> {
        self.lock().get().add_noise(&original_samples.0, &noise.0, &timesteps).or_raise().map(PyTensor)
    }

    /// The velocity that a model is trained to predict.
    fn get_velocity(&self, sample: PyTensor, noise: PyTensor, timesteps: Vec<f64>) -> PyResult<PyTensor> {
        self.lock().get().get_velocity(&sample.0, &noise.0, &timesteps).or_raise().map(PyTensor)
    }

    /// PNDM's Runge-Kutta timesteps.
    fn prk_timesteps(&self) -> PyResult<Vec<f64>> {
        self.pndm(|scheduler| Ok(scheduler.prk_timesteps().to_vec()))
    }

    /// PNDM's Runge-Kutta step.
    fn step_prk(&self, model_output: PyTensor, timestep: f64, sample: PyTensor) -> PyResult<PyTensor> {
        self.pndm(|scheduler| scheduler.step_prk(&model_output.0, timestep, &sample.0)).map(PyTensor)
    }

    /// PNDM's multistep step.
    fn step_plms(&self, model_output: PyTensor, timestep: f64, sample: PyTensor) -> PyResult<PyTensor> {
        self.pndm(|scheduler| scheduler.step_plms(&model_output.0, timestep, &sample.0)).map(PyTensor)
    }

    /// PNDM's last predictions, the newest last.
    fn ets(&self) -> PyResult<Vec<PyTensor>> {
        self.pndm(|scheduler| Ok(scheduler.ets().iter().map(Tensor::shallow_clone).map(PyTensor).collect()))
    }

    /// Puts others in their place.
    fn set_ets(&self, ets: Vec<PyTensor>) -> PyResult<()> {
        self.pndm(|scheduler| {
            scheduler.set_ets(tensors(ets));
            Ok(())
        })
    }
}
