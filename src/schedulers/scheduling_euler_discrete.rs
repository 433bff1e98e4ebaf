//! Euler's method on the probability flow ODE (arXiv:2206.00364, algorithm 2).
//!
//! Mirrors `diffusers/schedulers/scheduling_euler_discrete.py` at 0.42.1.

mod options;

use super::arrays::{interp, sqrt, through_libtorch};
use super::betas::{keep_last_sigma_finite, log_sigmas, training_sigmas};
use super::cursor::Cursor;
use super::scheduling_ddim::alphas_at;
use super::scheduling_utils::{
    Churn, PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps,
};
use super::settings::settle;
use super::sigmas::{FinalSigmasType, LogSigmas, SigmaRange};
use super::spacing::TimestepSpacing;
use super::step_math::{PerSample, difference_quotient, mix, onto, scaled, sum, times};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::torch::{NumberExt, linspace, randn_tensor};
use options::{InterpolationType, Options};
use tch::{Kind, Tensor};

/// Euler's method, with fresh noise in each step where [`StepOptions::churn`] asks for it.
#[derive(Debug)]
pub struct EulerDiscreteScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    training: Run,
    /// Empty timesteps before `set_timesteps`.
    run: Run,
    cursor: Cursor,
}

/// The noise levels of a run, one more than timesteps.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f32>,
    /// sqrt(sigma² + 1): the standard deviation of a sample at each level.
    pub(super) deviations: Vec<f32>,
}

impl Run {
    pub(super) fn new(timesteps: Vec<f64>, sigmas: Vec<f32>) -> Result<Self> {
        let deviations = sigmas.iter().map(|sigma| sqrt(sigma * sigma + 1.0)).collect::<Result<_>>()?;
        Ok(Self { timesteps, sigmas, deviations })
    }

    /// All training timesteps, downwards.
    pub(super) fn training(training_sigmas: &[f32]) -> Result<Self> {
        let timesteps = (0..training_sigmas.len()).rev().map(|t| t as f64).collect();
        Self::new(timesteps, training_sigmas.iter().rev().copied().chain([0.0]).collect())
    }

    /// sigma_hat, the level after fresh noise was stirred in.
    fn churned(&self, sigma: f32, churn: Churn) -> (f64, f32) {
        let within = churn.s_tmin as f32 <= sigma && sigma <= churn.s_tmax as f32;
        let steps = (self.sigmas.len() - 1) as f64;
        let gamma = if within { (churn.s_churn / steps).min(2f64.powf(0.5) - 1.0) } else { 0.0 };
        (gamma, sigma * (gamma + 1.0) as f32)
    }

    pub(super) fn init_noise_sigma(&self, spacing: TimestepSpacing) -> f64 {
        let levels = if spacing == TimestepSpacing::Leading { &self.deviations } else { &self.sigmas };
        f64::from(levels.iter().copied().fold(0.0, f32::max))
    }

    /// x + sigma · noise, at those steps.
    pub(super) fn add_noise(&self, steps: &[usize], original_samples: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let sigmas: Vec<f32> = steps.iter().map(|step| self.sigmas[*step]).collect();
        let sigmas = PerSample::new(&sigmas, original_samples)?.into_tensor().f_to_device(noise.device())?;
        onto(original_samples, noise.f_mul(&sigmas)?)
    }
}

/// The noise-free sample that a prediction of `prediction_type` stands for, in float32.
pub(super) fn pred_original_sample(
    prediction_type: PredictionType,
    output: &Tensor,
    sample: &Tensor,
    (sigma, deviation): (f32, f32),
    sigma_hat: f32,
) -> Result<Tensor> {
    match prediction_type {
        PredictionType::Sample => Ok(output.shallow_clone()),
        PredictionType::VPrediction => {
            let variance = sigma * sigma + 1.0;
            let direct = times(output, -sigma / deviation)?;
            onto(&direct, sample.over(f64::from(variance))?)
        }
        _ => onto(sample, scaled(-sigma_hat, output)?),
    }
}

impl SchedulerMixin for EulerDiscreteScheduler {
    const CLASS_NAME: &'static str = "EulerDiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        if options.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported("EulerDiscreteScheduler has no `prediction_type` `flow_prediction`".into()));
        }
        one_of_the_sigmas(&[
            ("use_karras_sigmas", options.use_karras_sigmas),
            ("use_exponential_sigmas", options.use_exponential_sigmas),
            ("use_beta_sigmas", options.use_beta_sigmas),
        ])?;
        let mut alphas_cumprod = options.betas.alphas_cumprod(options.rescale_betas_zero_snr)?;
        if options.rescale_betas_zero_snr {
            keep_last_sigma_finite(&mut alphas_cumprod);
        }
        let mut training = Run::training(&training_sigmas(&alphas_cumprod)?)?;
        if options.continuous() {
            training.timesteps = continuous_timesteps(&training.sigmas)?;
        }
        Ok(Self { options, config, alphas_cumprod, training, run: Run::default(), cursor: Cursor::default() })
    }
}

/// # Errors
/// [`Error::Config`], naming them, if more than one is set.
pub(super) fn one_of_the_sigmas(switches: &[(&str, bool)]) -> Result<()> {
    let set: Vec<_> = switches.iter().filter(|(_, set)| *set).map(|(name, _)| format!("`{name}`")).collect();
    if set.len() > 1 {
        return Err(Error::Config(format!("{} cannot be used together", set.join(" and "))));
    }
    Ok(())
}

/// 0.25 · log(sigma), but for the last sigma.
fn continuous_timesteps(sigmas: &[f32]) -> Result<Vec<f64>> {
    let before_last = &sigmas[..sigmas.len() - 1];
    before_last.iter().map(|sigma| Ok(f64::from(0.25 * through_libtorch(*sigma, Tensor::f_log)?))).collect()
}

impl EulerDiscreteScheduler {
    /// The run that `timesteps` asks for.
    fn lay_out(&self, timesteps: Timesteps<'_>) -> Result<Run> {
        let options = &self.options;
        options.betas.check()?;
        let training = training_sigmas(&self.alphas_cumprod)?;
        let log_sigmas = LogSigmas::Single(log_sigmas(&training));
        let mut run = match timesteps {
            Timesteps::Sigmas(sigmas) => {
                let sigmas: Vec<f32> = sigmas.iter().map(|sigma| *sigma as f32).collect();
                let before_last = sigmas.split_last().map_or(&[][..], |(_, rest)| rest);
                let timesteps = before_last.iter().map(|sigma| log_sigmas.timestep_single(*sigma));
                Run::new(timesteps.collect::<Result<_>>()?, sigmas)?
            }
            Timesteps::Timesteps(custom) => {
                self.refuse_custom_timesteps()?;
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

    fn refuse_custom_timesteps(&self) -> Result<()> {
        let options = &self.options;
        let conflicts = [
            ("use_karras_sigmas", options.use_karras_sigmas),
            ("use_exponential_sigmas", options.use_exponential_sigmas),
            ("use_beta_sigmas", options.use_beta_sigmas),
            ("timestep_type = continuous", options.continuous()),
        ];
        match conflicts.iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(Error::Argument(format!("custom timesteps cannot be combined with `{name}`"))),
            None => Ok(()),
        }
    }

    /// The noise levels at `timesteps`, or those that the configuration puts in their place.
    fn levels(&self, timesteps: Vec<f64>, training: &[f32], log_sigmas: &LogSigmas) -> Result<Run> {
        let options = &self.options;
        let mut timesteps: Vec<f64> = timesteps.into_iter().map(|t| f64::from(t as f32)).collect();
        let steps = timesteps.len();
        let mut sigmas: Vec<f64> = match options.interpolation_type {
            InterpolationType::Linear => timesteps.iter().map(|t| interp(*t, training)).collect(),
            InterpolationType::LogLinear => log_linear(log_sigmas, steps)?,
        };
        let (Some(first), Some(last)) = (sigmas.first(), sigmas.last()) else { return Ok(Run::default()) };
        let range = SigmaRange::new(&self.config, *first, *last);
        let replaced = if options.use_karras_sigmas {
            Some(range.karras(steps))
        } else if options.use_exponential_sigmas {
            Some(range.exponential(steps))
        } else if options.use_beta_sigmas {
            Some(range.beta(steps))
        } else {
            None
        };
        if let Some(replaced) = replaced {
            timesteps = replaced.iter().map(|sigma| log_sigmas.timestep(*sigma)).collect::<Result<_>>()?;
            sigmas = replaced;
        }
        let final_sigma = match options.final_sigmas_type {
            FinalSigmasType::Zero => 0.0,
            FinalSigmasType::SigmaMin => training[0],
        };
        Run::new(timesteps, sigmas.into_iter().map(|sigma| sigma as f32).chain([final_sigma]).collect())
    }
}

/// Noise levels that are evenly spaced in the logarithm from the highest to the lowest training timestep's.
fn log_linear(log_sigmas: &LogSigmas, steps: usize) -> Result<Vec<f64>> {
    let LogSigmas::Single(logs) = log_sigmas else { return Ok(Vec::new()) };
    let (first, last) = (f64::from(logs[logs.len() - 1]), f64::from(logs[0]));
    let levels = linspace(first, last, steps as i64 + 1)?.f_exp()?;
    Ok(crate::torch::TensorExt::to_vec(&levels)?.into_iter().map(f64::from).collect())
}

impl Scheduler for EulerDiscreteScheduler {
    fn class_name(&self) -> &'static str {
        Self::CLASS_NAME
    }

    fn config(&self) -> &ConfigMap {
        &self.config
    }

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        self.run = self.lay_out(timesteps)?;
        self.cursor = Cursor::default();
        Ok(())
    }

    fn set_begin_index(&mut self, index: usize) {
        self.cursor.begin_at(index);
    }

    fn timesteps(&self) -> &[f64] {
        &self.run.timesteps
    }

    fn sigmas(&self) -> &[f32] {
        if self.run.sigmas.is_empty() { &self.training.sigmas } else { &self.run.sigmas }
    }

    fn init_noise_sigma(&self) -> f64 {
        let run = if self.run.sigmas.is_empty() { &self.training } else { &self.run };
        run.init_noise_sigma(self.options.timestep_spacing)
    }

    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        let run = if self.run.timesteps.is_empty() { &self.training } else { &self.run };
        let deviation = run.deviations[self.cursor.locate(&run.timesteps, timestep)?];
        sample.over(f64::from(deviation))
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        // Without a run, a step walks the training's timesteps, as in diffusers.
        let run = if self.run.timesteps.is_empty() { &self.training } else { &self.run };
        let index = self.cursor.locate(&run.timesteps, timestep)?;
        let kind = model_output.f_kind()?;
        let mut sample = sample.f_to_kind(Kind::Float)?;
        let sigma = run.sigmas[index];
        let (gamma, sigma_hat) = run.churned(sigma, options.churn);
        if gamma > 0.0 {
            let noise = randn_tensor(&model_output.size(), options.generators, kind, model_output.device())?;
            let epsilon = noise.times(options.churn.s_noise)?;
            let stirred = times(&epsilon, sqrt(sigma_hat * sigma_hat - sigma * sigma)?)?;
            sample = sample.f_add(&stirred)?;
        }
        let x0 = pred_original_sample(
            self.options.prediction_type,
            model_output,
            &sample,
            (sigma, run.deviations[index]),
            sigma_hat,
        )?;
        let mut derivative = difference_quotient(&sample, &x0, sigma_hat)?;
        let dt = run.sigmas[index + 1] - sigma_hat;
        let prev_sample = sum(derivative.times_(f64::from(dt))?, &sample)?.f_to_kind(kind)?;
        self.cursor.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(x0) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let run = if self.run.timesteps.is_empty() { &self.training } else { &self.run };
        run.add_noise(&self.cursor.noise_indices(&run.timesteps, timesteps)?, original_samples, noise)
    }

    fn get_velocity(&self, sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let run = if self.run.timesteps.is_empty() { &self.training } else { &self.run };
        // diffusers looks alpha_bar up by the place in the run, not by the timestep.
        let places = Cursor::default().noise_indices(&run.timesteps, timesteps)?;
        let places: Vec<f64> = places.into_iter().map(|place| place as f64).collect();
        let (signal, sigma) = alphas_at(&self.alphas_cumprod, &places, sample)?.signal_and_noise()?;
        mix(&signal, noise, &sigma.f_neg()?, sample)
    }

    fn fresh(&self) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(Self::from_config(&self.config)?))
    }
}
