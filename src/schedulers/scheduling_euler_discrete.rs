//! Euler's method on the probability flow ODE (arXiv:2206.00364, algorithm 2).
//!
//! Mirrors `diffusers/schedulers/scheduling_euler_discrete.py` at 0.42.1.

mod options;

use super::arrays::{interp, sqrt, through_libtorch};
use super::betas::{keep_last_sigma_finite, log_sigmas, training_sigmas};
use super::cursor::Cursor;
use super::noise_run::{NoiseLevels, NoiseRun, pred_original_sample};
use super::scheduling_utils::{
    Churn, PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured,
    as_it_runs,
};
use super::settings::settle;
use super::sigmas::{FinalSigmasType, LogSigmas, SigmaRange};
use super::step_math::{difference_quotient, sum, times};
use super::variance_preserving::velocity;
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::torch::randn_tensor;
use options::{InterpolationType, Options};
use tch::{Device, Kind, Tensor};

/// Euler's method, with fresh noise in each step where [`StepOptions::churn`] asks for it.
#[derive(Debug)]
pub struct EulerDiscreteScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    run: NoiseRun,
}

/// sigma_hat, the level after fresh noise was stirred in, and by how much it is above `sigma`, in a run of so many steps.
fn churned(sigma: f32, steps: usize, churn: Churn) -> (f64, f32) {
    let within = churn.s_tmin as f32 <= sigma && sigma <= churn.s_tmax as f32;
    let gamma = if within { (churn.s_churn / steps as f64).min(2f64.powf(0.5) - 1.0) } else { 0.0 };
    (gamma, sigma * (gamma + 1.0) as f32)
}

impl SchedulerMixin for EulerDiscreteScheduler {
    const CLASS_NAME: &'static str = "EulerDiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        if options.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported("EulerDiscreteScheduler has no `prediction_type` `flow_prediction`".into()));
        }
        options.switches.check()?;
        let mut alphas_cumprod = options.betas.alphas_cumprod(options.rescale_betas_zero_snr)?;
        if options.rescale_betas_zero_snr {
            keep_last_sigma_finite(&mut alphas_cumprod);
        }
        let mut training = NoiseLevels::training(&training_sigmas(&alphas_cumprod)?)?;
        if options.continuous() {
            training.timesteps = continuous_timesteps(&training.sigmas)?;
        }
        Ok(Self { options, config, alphas_cumprod, run: NoiseRun::new(training) })
    }
}

/// 0.25 · log(sigma), but for the last sigma.
fn continuous_timesteps(sigmas: &[f32]) -> Result<Vec<f64>> {
    let before_last = &sigmas[..sigmas.len() - 1];
    before_last.iter().map(|sigma| Ok(f64::from(0.25 * through_libtorch(*sigma, Tensor::f_log)?))).collect()
}

impl EulerDiscreteScheduler {
    /// The run that `timesteps` asks for.
    fn lay_out(&self, timesteps: Timesteps<'_>) -> Result<NoiseLevels> {
        let options = &self.options;
        options.betas.check()?;
        let training = training_sigmas(&self.alphas_cumprod)?;
        let log_sigmas = LogSigmas::Single(log_sigmas(&training));
        let mut run = match timesteps {
            Timesteps::Sigmas(sigmas) => {
                let sigmas: Vec<f32> = sigmas.iter().map(|sigma| *sigma as f32).collect();
                let before_last = sigmas.split_last().map_or(&[][..], |(_, rest)| rest);
                let timesteps = before_last.iter().map(|sigma| log_sigmas.timestep_single(*sigma));
                NoiseLevels::new(timesteps.collect::<Result<_>>()?, sigmas)?
            }
            Timesteps::Timesteps(custom) => {
                let continuous = ("timestep_type = continuous", options.continuous());
                options.switches.leave_room_for_custom_timesteps(&[continuous])?;
                self.levels(custom.to_vec(), &training, &log_sigmas)?
            }
            Timesteps::Steps(steps) => {
                let train = options.betas.num_train_timesteps;
                let spaced = options.timestep_spacing.timesteps(train, steps, options.steps_offset)?;
                self.levels(spaced, &training, &log_sigmas)?
            }
        };
        if run.timesteps.is_empty() {
            return Err(Error::Argument("a run needs one timestep, or two sigmas, or more".into()));
        }
        if options.continuous() {
            run.timesteps = continuous_timesteps(&run.sigmas)?;
        }
        for timestep in &mut run.timesteps {
            *timestep = f64::from(*timestep as f32);
        }
        Ok(run)
    }

    /// The noise levels at `timesteps`, or those that the configuration puts in their place.
    fn levels(&self, timesteps: Vec<f64>, training: &[f32], log_sigmas: &LogSigmas) -> Result<NoiseLevels> {
        let options = &self.options;
        let mut timesteps: Vec<f64> = timesteps.into_iter().map(|t| f64::from(t as f32)).collect();
        let steps = timesteps.len();
        let mut sigmas: Vec<f64> = match options.interpolation_type {
            InterpolationType::Linear => timesteps.iter().map(|t| interp(*t, training)).collect(),
            InterpolationType::LogLinear => log_linear(log_sigmas, steps)?,
        };
        let (Some(first), Some(last)) = (sigmas.first(), sigmas.last()) else { return Ok(NoiseLevels::default()) };
        let range = SigmaRange::new(&self.config, *first, *last);
        if let Some(replaced) = options.switches.levels(range, steps) {
            timesteps = replaced.iter().map(|sigma| log_sigmas.timestep(*sigma)).collect::<Result<_>>()?;
            sigmas = replaced;
        }
        let final_sigma = match options.final_sigmas_type {
            FinalSigmasType::Zero => 0.0,
            FinalSigmasType::SigmaMin => training[0],
        };
        NoiseLevels::new(timesteps, sigmas.into_iter().map(|sigma| sigma as f32).chain([final_sigma]).collect())
    }
}

/// Noise levels that are evenly spaced in the logarithm from the highest to the lowest training timestep's.
fn log_linear(log_sigmas: &LogSigmas, steps: usize) -> Result<Vec<f64>> {
    let LogSigmas::Single(logs) = log_sigmas else { return Ok(Vec::new()) };
    let (first, last) = (f64::from(logs[logs.len() - 1]), f64::from(logs[0]));
    let levels = Tensor::f_linspace(first, last, steps as i64 + 1, (Kind::Float, Device::Cpu))?.f_exp()?;
    Ok(crate::torch::TensorExt::to_vec(&levels)?.into_iter().map(f64::from).collect())
}

impl Scheduler for EulerDiscreteScheduler {
    as_configured!();
    as_it_runs!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        self.run.start(self.lay_out(timesteps)?);
        Ok(())
    }

    fn init_noise_sigma(&self) -> f64 {
        self.run.init_noise_sigma(self.options.timestep_spacing)
    }

    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        self.run.scale_model_input(sample, timestep)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        let index = self.run.locate(timestep)?;
        let levels = self.run.levels();
        let kind = model_output.f_kind()?;
        let mut sample = sample.f_to_kind(Kind::Float)?;
        let sigma = levels.sigmas[index];
        let (gamma, sigma_hat) = churned(sigma, levels.sigmas.len() - 1, options.churn);
        if gamma > 0.0 {
            let noise = randn_tensor(&model_output.size(), options.generators, kind, model_output.device())?;
            let epsilon = noise.f_mul_scalar(options.churn.s_noise)?;
            let stirred = times(&epsilon, sqrt(sigma_hat * sigma_hat - sigma * sigma)?)?;
            sample = sample.f_add(&stirred)?;
        }
        let x0 = pred_original_sample(
            self.options.prediction_type,
            model_output,
            &sample,
            (sigma, levels.deviations[index]),
            sigma_hat,
        )?;
        let mut derivative = difference_quotient(&sample, &x0, sigma_hat)?;
        let dt = levels.sigmas[index + 1] - sigma_hat;
        let prev_sample = sum(derivative.f_mul_scalar_(f64::from(dt))?, &sample)?.f_to_kind(kind)?;
        self.run.cursor.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(x0) })
    }

    fn get_velocity(&self, sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        // diffusers looks alpha_bar up by the place in the run, not by the timestep.
        let places = Cursor::default().noise_indices(&self.run.levels().timesteps, timesteps)?;
        let places: Vec<f64> = places.into_iter().map(|place| place as f64).collect();
        velocity(&self.alphas_cumprod, sample, noise, &places)
    }
}
