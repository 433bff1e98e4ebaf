//! Pseudo numerical methods for diffusion models (arXiv:2202.09778).
//!
//! Mirrors `diffusers/schedulers/scheduling_pndm.py` at 0.42.1. The first steps may be pseudo Runge-Kutta ("prk", four
//! calls of the model each), the others are pseudo linear multistep ("plms").

use super::arrays::sqrt;
use super::betas::BetaConfig;
use super::cursor::not_set;
use super::scheduling_utils::{
    PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured,
};
use super::settings::settle;
use super::spacing::TimestepSpacing;
use super::step_math::{axpby, scaled, sum};
use super::variance_preserving::{alpha_at, noised};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::Tensor;

/// How many of the noisiest timesteps the Runge-Kutta start takes.
const PNDM_ORDER: usize = 4;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
struct Options {
    #[serde(flatten)]
    betas: BetaConfig,
    skip_prk_steps: bool,
    set_alpha_to_one: bool,
    prediction_type: PredictionType,
    timestep_spacing: TimestepSpacing,
    steps_offset: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            skip_prk_steps: false,
            set_alpha_to_one: false,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
        }
    }
}

/// PNDM: a linear multistep method of order four on the noise.
///
/// The first timestep of a multistep run is visited twice; [`Scheduler::timesteps`] shows it.
#[derive(Debug)]
pub struct PNDMScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    final_alpha_cumprod: f32,
    num_inference_steps: usize,
    timesteps: Vec<f64>,
    prk_timesteps: Vec<f64>,
    run: Run,
    /// The transfers of the run, by the timesteps they go from and to.
    transfers: BTreeMap<(i64, i64), Transfer>,
}

/// The coefficients of equation 9 between two timesteps.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    sqrt_alpha_prod_t: f32,
    sqrt_beta_prod_t: f32,
    sample: f32,
    model_output: f32,
    denominator: f32,
}

/// What a run remembers.
#[derive(Debug, Default)]
struct Run {
    counter: usize,
    /// The last predictions of the noise, newest last.
    ets: Vec<Tensor>,
    cur_sample: Option<Tensor>,
    /// The part of a Runge-Kutta step's noise that is there already.
    cur_model_output: Option<Tensor>,
}

impl SchedulerMixin for PNDMScheduler {
    const CLASS_NAME: &'static str = "PNDMScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        if !matches!(options.prediction_type, PredictionType::Epsilon | PredictionType::VPrediction) {
            return Err(Error::Unsupported(format!(
                "PNDMScheduler has no `prediction_type` {:?}: use epsilon or v_prediction",
                options.prediction_type
            )));
        }
        let alphas_cumprod = options.betas.alphas_cumprod(false)?;
        let final_alpha_cumprod = if options.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        Ok(Self {
            options,
            config,
            alphas_cumprod,
            final_alpha_cumprod,
            num_inference_steps: 0,
            timesteps: Vec::new(),
            prk_timesteps: Vec::new(),
            run: Run::default(),
            transfers: BTreeMap::new(),
        })
    }
}

impl PNDMScheduler {
    /// How many training timesteps one step goes down.
    fn stride(&self) -> i64 {
        self.options.betas.num_train_timesteps / self.num_inference_steps as i64
    }

    /// The timesteps of the Runge-Kutta steps; empty with `skip_prk_steps`.
    #[must_use]
    pub fn prk_timesteps(&self) -> &[f64] {
        &self.prk_timesteps
    }

    /// The last predictions of the noise, newest last.
    pub fn ets(&self) -> &[Tensor] {
        &self.run.ets
    }

    /// Puts other predictions in the place of the last ones, until the next [`Scheduler::set_timesteps`].
    pub fn set_ets(&mut self, ets: Vec<Tensor>) {
        self.run.ets = ets;
    }

    /// One of the four stages of a pseudo Runge-Kutta step: [`Scheduler::step`] takes them by itself.
    ///
    /// # Errors
    /// [`Error::Argument`] before [`Scheduler::set_timesteps`], and without Runge-Kutta timesteps.
    pub fn step_prk(&mut self, model_output: &Tensor, timestep: f64, sample: &Tensor) -> Result<Tensor> {
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        let stage = self.run.counter % 4;
        let (timestep, prev_timestep) = self
            .prk_transfer(self.run.counter, timestep as i64)
            .ok_or_else(|| Error::Argument(format!("step {} is no Runge-Kutta step of this run", self.run.counter)))?;
        // The weights 1/6, 1/3, 1/3, 1/6 of Runge and Kutta's method (equation 13).
        let weight = if matches!(stage, 0 | 3) { 1.0 / 6.0 } else { 1.0 / 3.0 };
        let weighted = model_output.f_mul_scalar(weight)?;
        if stage == 0 {
            self.run.ets.push(model_output.shallow_clone());
            self.run.cur_sample = Some(sample.shallow_clone());
        }
        let gathered = match self.run.cur_model_output.take() {
            Some(gathered) => sum(gathered, &weighted)?,
            None => weighted,
        };
        let output = if stage == 3 {
            gathered
        } else {
            self.run.cur_model_output = Some(gathered);
            model_output.shallow_clone()
        };
        let cur_sample = self.run.cur_sample.as_ref().unwrap_or(sample);
        let prev_sample = self.get_prev_sample(cur_sample, timestep, prev_timestep, &output)?;
        self.run.counter += 1;
        Ok(prev_sample)
    }

    /// A pseudo linear multistep step: [`Scheduler::step`] takes it by itself.
    ///
    /// # Errors
    /// [`Error::Argument`] before [`Scheduler::set_timesteps`], and with fewer predictions than it combines unless
    /// `skip_prk_steps` is set.
    pub fn step_plms(&mut self, model_output: &Tensor, timestep: f64, sample: &Tensor) -> Result<Tensor> {
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        if !self.options.skip_prk_steps && self.run.ets.len() < 3 {
            return Err(Error::Argument(
                "a multistep run of PNDMScheduler comes after its Runge-Kutta steps unless `skip_prk_steps` is set"
                    .into(),
            ));
        }
        let (timestep, prev_timestep) = self.plms_transfer(self.run.counter, timestep as i64);
        // The first timestep's second visit only completes its first step.
        if self.run.counter != 1 {
            let surplus = self.run.ets.len().saturating_sub(3);
            self.run.ets.drain(..surplus);
            self.run.ets.push(model_output.shallow_clone());
        }
        let mut sample = sample.shallow_clone();
        if self.run.counter == 0 {
            self.run.cur_sample = Some(sample.shallow_clone());
        } else if self.run.counter == 1 {
            sample = self.run.cur_sample.take().unwrap_or(sample);
        }
        let output = combine(&self.run.ets, model_output, self.run.counter)?;
        let prev_sample = self.get_prev_sample(&sample, timestep, prev_timestep, &output)?;
        self.run.counter += 1;
        Ok(prev_sample)
    }

    /// Equation 9, the transfer from `timestep` to `prev_timestep`.
    fn get_prev_sample(&self, sample: &Tensor, timestep: i64, prev: i64, output: &Tensor) -> Result<Tensor> {
        let transfer = match self.transfers.get(&(timestep, prev)) {
            Some(transfer) => *transfer,
            None => self.transfer(timestep, prev)?,
        };
        let epsilon = if self.options.prediction_type == PredictionType::VPrediction {
            axpby(transfer.sqrt_alpha_prod_t, output, transfer.sqrt_beta_prod_t, sample)?
        } else {
            output.shallow_clone()
        };
        let mut away = scaled(transfer.model_output, &epsilon)?;
        sum(scaled(transfer.sample, sample)?, &away.f_div_scalar_(f64::from(transfer.denominator))?)
    }

    fn transfer(&self, timestep: i64, prev: i64) -> Result<Transfer> {
        let alpha_prod_t = alpha_at(&self.alphas_cumprod, timestep)?;
        let alpha_prod_t_prev =
            if prev >= 0 { alpha_at(&self.alphas_cumprod, prev)? } else { self.final_alpha_cumprod };
        let (beta_prod_t, beta_prod_t_prev) = (1.0 - alpha_prod_t, 1.0 - alpha_prod_t_prev);
        let geometric = sqrt(alpha_prod_t * beta_prod_t * alpha_prod_t_prev)?;
        Ok(Transfer {
            sqrt_alpha_prod_t: sqrt(alpha_prod_t)?,
            sqrt_beta_prod_t: sqrt(beta_prod_t)?,
            sample: sqrt(alpha_prod_t_prev / alpha_prod_t)?,
            model_output: -(alpha_prod_t_prev - alpha_prod_t),
            denominator: alpha_prod_t * sqrt(beta_prod_t_prev)? + geometric,
        })
    }

    /// The timesteps that the step at `counter` goes from and to, when the model saw `timestep`.
    fn transfer_at(&self, counter: usize, timestep: i64) -> (i64, i64) {
        self.prk_transfer(counter, timestep).unwrap_or_else(|| self.plms_transfer(counter, timestep))
    }

    fn prk_transfer(&self, counter: usize, timestep: i64) -> Option<(i64, i64)> {
        let half = if counter.is_multiple_of(2) { self.stride() / 2 } else { 0 };
        Some((*self.prk_timesteps.get(counter / 4 * 4)? as i64, timestep - half))
    }

    fn plms_transfer(&self, counter: usize, timestep: i64) -> (i64, i64) {
        match counter {
            1 => (timestep + self.stride(), timestep),
            _ => (timestep, timestep - self.stride()),
        }
    }
}

/// The Adams-Bashforth combination of the last predictions (equation 12), or of as many as there are.
fn combine(ets: &[Tensor], output: &Tensor, counter: usize) -> Result<Tensor> {
    Ok(match ets {
        [only] if counter == 1 => output.f_add(only)?.f_div_scalar_(2.0)?,
        [_] if counter == 0 => output.shallow_clone(),
        [e2, e1] => axpby(3.0, e1, -1.0, e2)?.f_div_scalar_(2.0)?,
        [e3, e2, e1] => sum(axpby(23.0, e1, -16.0, e2)?, &scaled(5.0, e3)?)?.f_div_scalar_(12.0)?,
        [.., e4, e3, e2, e1] => {
            // Not `f_mul_scalar_`: that would round 1/24 to the dtype.
            let first = sum(axpby(55.0, e1, -59.0, e2)?, &scaled(37.0, e3)?)?;
            sum(first, &scaled(-9.0, e4)?)?.f_mul_scalar(1.0 / 24.0)?
        }
        _ => {
            return Err(Error::Argument("a multistep run of PNDMScheduler was not started at its first step".into()));
        }
    })
}

/// The Runge-Kutta timesteps: each of the noisiest ones, and between them the middles, twice.
fn prk_timesteps(ascending: &[f64], half_stride: i64) -> Vec<f64> {
    let noisiest = &ascending[ascending.len() - PNDM_ORDER..];
    let mut halves: Vec<f64> = noisiest.iter().flat_map(|t| [*t, *t + half_stride as f64]).collect();
    halves.pop();
    let doubled: Vec<f64> = halves.into_iter().flat_map(|t| [t, t]).collect();
    doubled[1..doubled.len() - 1].iter().rev().copied().collect()
}

impl Scheduler for PNDMScheduler {
    as_configured!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let steps = timesteps.steps(Self::CLASS_NAME)?;
        self.options.betas.check()?;
        let train = self.options.betas.num_train_timesteps;
        let spaced = self.options.timestep_spacing.timesteps(train, steps, self.options.steps_offset)?;
        let mut ascending: Vec<f64> = spaced.into_iter().map(f64::round_ties_even).collect();
        ascending.reverse();
        let length = ascending.len();
        let (prk, plms) = if self.options.skip_prk_steps {
            // The second noisiest timestep comes twice: its first visit only completes the very first step.
            let twice = length.saturating_sub(2)..length - 1;
            (Vec::new(), [&ascending[..length - 1], &ascending[twice], &ascending[length - 1..]].concat())
        } else if length < PNDM_ORDER {
            return Err(Error::Argument(format!(
                "PNDMScheduler needs {PNDM_ORDER} steps or more unless `skip_prk_steps` is set, not {steps}"
            )));
        } else {
            (prk_timesteps(&ascending, train / steps as i64 / 2), ascending[..length - 3].to_vec())
        };
        self.timesteps = prk.iter().copied().chain(plms.into_iter().rev()).collect();
        self.prk_timesteps = prk;
        self.num_inference_steps = steps;
        self.run = Run::default();
        let pairs = self.timesteps.iter().enumerate().map(|(counter, t)| self.transfer_at(counter, *t as i64));
        let transfers = pairs.map(|(from, to)| Ok(((from, to), self.transfer(from, to)?)));
        self.transfers = transfers.collect::<Result<_>>()?;
        Ok(())
    }

    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        _options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        let prev_sample = if self.run.counter < self.prk_timesteps.len() {
            self.step_prk(model_output, timestep, sample)?
        } else {
            self.step_plms(model_output, timestep, sample)?
        };
        Ok(SchedulerOutput { prev_sample, pred_original_sample: None })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        noised(&self.alphas_cumprod, original_samples, noise, timesteps)
    }
}
