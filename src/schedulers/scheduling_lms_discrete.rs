//! A linear multistep method on the probability flow ODE, in the terms of arXiv:2206.00364.
//!
//! Mirrors `diffusers/schedulers/scheduling_lms_discrete.py` at 0.42.1, after k-diffusion's `sample_lms`.

use super::levels::{LevelOptions, Request, TrainingLevels};
use super::noise_run::{NoiseLevels, NoiseRun, pred_original_sample};
use super::quadrature::gauss_kronrod;
use super::scheduling_utils::{
    PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured, as_it_runs,
};
use super::settings::settle;
use super::step_math::{difference_quotient, sum};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use tch::Tensor;

/// How many derivatives a step combines unless [`StepOptions::order`] says otherwise.
const ORDER: usize = 4;

/// LMS: integrates the polynomial through the last derivatives (Adams and Bashforth's method with steps of any length).
#[derive(Debug)]
pub struct LMSDiscreteScheduler {
    options: LevelOptions,
    config: ConfigMap,
    levels: TrainingLevels,
    run: NoiseRun,
    /// The last derivatives, newest last.
    derivatives: Vec<Tensor>,
}

impl SchedulerMixin for LMSDiscreteScheduler {
    const CLASS_NAME: &'static str = "LMSDiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<LevelOptions>(Self::CLASS_NAME, config, &[])?;
        options
            .check(Self::CLASS_NAME, &[PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample])?;
        let levels = TrainingLevels::new(&options.betas.alphas_cumprod(false)?)?;
        let training = lay_out(&options, options.whole_training()?, &levels, &config)?;
        Ok(Self { options, config, levels, run: NoiseRun::new(training), derivatives: Vec::new() })
    }
}

fn lay_out(
    options: &LevelOptions,
    request: Request,
    training: &TrainingLevels,
    config: &ConfigMap,
) -> Result<NoiseLevels> {
    // Karras's levels end on the training's here, whatever `sigma_min` and `sigma_max` another scheduler has set.
    let none = ConfigMap::new();
    let laid_out =
        options.levels(request, training, if options.switches.use_karras_sigmas { &none } else { config })?;
    NoiseLevels::new(laid_out.timesteps.into_iter().map(|t| f64::from(t as f32)).collect(), laid_out.sigmas)
}

/// The integral over step `t` of the polynomial that is 1 at the `current`-th last level and 0 at `order` - 1 others.
fn lms_coefficient(sigmas: &[f32], order: usize, t: usize, current: usize) -> f64 {
    let derivative = |tau: f64| {
        let others = (0..order).filter(|k| *k != current);
        let factor = |k: usize| (tau as f32 - sigmas[t - k]) / (sigmas[t - current] - sigmas[t - k]);
        f64::from(others.map(factor).product::<f32>())
    };
    -gauss_kronrod(derivative, f64::from(sigmas[t + 1]), f64::from(sigmas[t]))
}

impl Scheduler for LMSDiscreteScheduler {
    as_configured!();
    as_it_runs!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let request = self.options.request(timesteps, Self::CLASS_NAME)?;
        self.run.start(lay_out(&self.options, request, &self.levels, &self.config)?);
        self.derivatives.clear();
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
        let (sigma, deviation) = (levels.sigmas[index], levels.deviations[index]);
        let order = options.order.unwrap_or(ORDER);
        if order == 0 {
            return Err(Error::Argument("`order` is 0: use 1 or more".into()));
        }
        let prediction_type = self.options.prediction_type;
        let x0 = pred_original_sample(prediction_type, model_output, sample, (sigma, deviation), sigma)?;
        self.derivatives.push(difference_quotient(sample, &x0, sigma)?);
        if self.derivatives.len() > order {
            drop(self.derivatives.remove(0));
        }
        // A run that starts in its middle weighs the derivatives that it has as if those before it were there.
        let order = order.min(index + 1);
        let mut change: Option<Tensor> = None;
        for (current, derivative) in self.derivatives.iter().rev().take(order).enumerate() {
            let term = derivative.f_mul_scalar(lms_coefficient(&levels.sigmas, order, index, current))?;
            change = Some(match change {
                Some(change) => sum(change, &term)?,
                None => term,
            });
        }
        let prev_sample = match change {
            Some(change) => sum(change, sample)?,
            None => sample.shallow_clone(),
        };
        self.run.cursor.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(x0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_steps_have_adams_and_bashforths_weights() {
        let sigmas = [4.0, 3.0, 2.0, 1.0, 0.0];
        let weights = [0, 1, 2, 3].map(|current| lms_coefficient(&sigmas, 4, 3, current) * 24.0);
        for (found, expected) in weights.into_iter().zip([-55.0, 59.0, -37.0, 9.0]) {
            assert!((found - expected).abs() < 1e-5, "{weights:?}");
        }
    }
}
