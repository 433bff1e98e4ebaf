//! Noise schedules: how much signal each training timestep keeps.
//!
//! Shared by all of diffusers' schedulers (0.42.1). In the papers' symbols: beta_t is the variance that step t adds,
//! alpha_t = 1 - beta_t, and alpha_bar_t, here `alphas_cumprod`, is their product (DDPM, arXiv:2006.11239).

use super::arrays;
use crate::configuration_utils::{ConfigMap, from_map};
use crate::error::{Error, Result};
use crate::torch::{NumberExt, linspace};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The shape of beta over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly spaced from `beta_start` to `beta_end` (DDPM).
    Linear,
    /// Evenly spaced in the square root (latent diffusion).
    ScaledLinear,
    /// alpha_bar is a squared cosine, betas are capped at 0.999 (arXiv:2102.09672, equation 17).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
    /// alpha_bar falls by e^(-12 t); of HeunDiscrete alone.
    Exp,
    /// The signal-to-noise ratio is Laplace-distributed (arXiv:2407.03297); of DDPM alone.
    Laplace,
    /// A sigmoid from `beta_start` to `beta_end` (GeoDiff, arXiv:2203.02923); of DDPM alone.
    Sigmoid,
}

impl BetaSchedule {
    const OF_SOME: [Self; 3] = [Self::Exp, Self::Laplace, Self::Sigmoid];
}

/// The keys of a configuration that every scheduler reads its betas from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct BetaConfig {
    pub(super) num_train_timesteps: i64,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: BetaSchedule,
    pub(super) trained_betas: Option<Vec<f64>>,
}

impl Default for BetaConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
        }
    }
}

impl BetaConfig {
    /// alpha_bar for each training timestep, rescaled to zero terminal SNR if asked.
    pub(super) fn alphas_cumprod(&self, rescale_zero_snr: bool) -> Result<Vec<f32>> {
        self.alphas_cumprod_of(rescale_zero_snr, &[])
    }

    /// The same for a scheduler that has `more` schedules than all of them have.
    pub(super) fn alphas_cumprod_of(&self, rescale_zero_snr: bool, more: &[BetaSchedule]) -> Result<Vec<f32>> {
        let known = !BetaSchedule::OF_SOME.contains(&self.beta_schedule) || more.contains(&self.beta_schedule);
        if self.trained_betas.is_none() && !known {
            let name = match self.beta_schedule {
                BetaSchedule::Exp => "exp",
                BetaSchedule::Laplace => "laplace",
                _ => "sigmoid",
            };
            return Err(Error::Unsupported(format!(
                "`beta_schedule` = \"{name}\" is of other schedulers: use linear, scaled_linear or squaredcos_cap_v2"
            )));
        }
        if self.trained_betas.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::Config("`trained_betas` is an empty list".into()));
        }
        if !(1..=1_000_000).contains(&self.num_train_timesteps) {
            return Err(Error::Config(format!("`num_train_timesteps` is {}, not 1 or more", self.num_train_timesteps)));
        }
        host(&self.rescaled(rescale_zero_snr)?.subtracted_from(1.0)?.f_cumprod(0, None)?)
    }

    /// Holds the number of trained betas to that of the training's timesteps, before a run is laid out.
    // Differs from diffusers: it fails later, in a step, or walks timesteps that the model was not trained with.
    pub(super) fn check(&self) -> Result<()> {
        match &self.trained_betas {
            Some(trained) if trained.len() as i64 != self.num_train_timesteps => Err(Error::Config(format!(
                "`trained_betas` has {} values for {} training timesteps",
                trained.len(),
                self.num_train_timesteps
            ))),
            _ => Ok(()),
        }
    }

    fn rescaled(&self, rescale_zero_snr: bool) -> Result<Tensor> {
        let betas = self.betas()?;
        if rescale_zero_snr { rescale_zero_terminal_snr(&betas) } else { Ok(betas) }
    }

    fn betas(&self) -> Result<Tensor> {
        let steps = self.num_train_timesteps;
        if let Some(trained) = &self.trained_betas {
            return single(trained);
        }
        match self.beta_schedule {
            BetaSchedule::Linear => linspace(self.beta_start, self.beta_end, steps),
            BetaSchedule::ScaledLinear => {
                let roots = linspace(self.beta_start.powf(0.5), self.beta_end.powf(0.5), steps)?;
                roots.raised_to(2i64)
            }
            BetaSchedule::SquaredcosCapV2 => single(&betas_for_alpha_bar(steps, |t| {
                ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powf(2.0)
            })),
            BetaSchedule::Exp => single(&betas_for_alpha_bar(steps, |t| (t * -12.0).exp())),
            BetaSchedule::Laplace => single(&betas_for_alpha_bar(steps, laplace_alpha_bar)),
            BetaSchedule::Sigmoid => {
                let risen = linspace(-6.0, 6.0, steps)?.f_sigmoid()?;
                risen.times(self.beta_end - self.beta_start)?.plus(self.beta_start)
            }
        }
    }
}

/// sqrt(SNR / (1 + SNR)) with log(SNR) = -1/2 sign(1/2 - t) log(1 - 2 |1/2 - t|), kept finite by a millionth.
fn laplace_alpha_bar(t: f64) -> f64 {
    let log_snr = -0.5 * 1f64.copysign(0.5 - t) * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
    let snr = log_snr.exp();
    (snr / (1.0 + snr)).sqrt()
}

/// beta_t = min(1 - alpha_bar(t + 1) / alpha_bar(t), 0.999), for alpha_bar over the training's time from 0 to 1.
fn betas_for_alpha_bar(steps: i64, alpha_bar: impl Fn(f64) -> f64) -> Vec<f64> {
    const MAX_BETA: f64 = 0.999;
    let alpha_bar = |i: i64| alpha_bar(i as f64 / steps as f64);
    (0..steps).map(|i| (1.0 - alpha_bar(i + 1) / alpha_bar(i)).min(MAX_BETA)).collect()
}

/// Shifts and scales sqrt(alpha_bar) so that the last is 0 and the first stays (arXiv:2305.08891, algorithm 1).
fn rescale_zero_terminal_snr(betas: &Tensor) -> Result<Tensor> {
    let alphas_bar_sqrt = host(&betas.subtracted_from(1.0)?.f_cumprod(0, None)?.f_sqrt()?)?;
    let (first, last) = (alphas_bar_sqrt[0], alphas_bar_sqrt[alphas_bar_sqrt.len() - 1]);
    let scale = first / (first - last);
    let alphas_bar: Vec<f32> = alphas_bar_sqrt.iter().map(|root| ((root - last) * scale).powi(2)).collect();
    let alphas = std::iter::once(alphas_bar[0]).chain(alphas_bar.windows(2).map(|pair| pair[1] / pair[0]));
    let betas: Vec<f32> = alphas.map(|alpha| 1.0 - alpha).collect();
    Ok(Tensor::f_from_slice(&betas)?)
}

/// sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t): the noise level of each timestep where the signal has scale 1.
pub(super) fn training_sigmas(alphas_cumprod: &[f32]) -> Result<Vec<f32>> {
    let variances: Vec<f32> = alphas_cumprod.iter().map(|alpha_bar| (1.0 - alpha_bar) / alpha_bar).collect();
    host(&Tensor::f_from_slice(&variances)?.f_sqrt()?)
}

/// Puts the last alpha_bar a little above zero, so that the last sigma is not infinite.
pub(super) fn keep_last_sigma_finite(alphas_cumprod: &mut [f32]) {
    if let Some(last) = alphas_cumprod.last_mut() {
        *last = 2f32.powi(-24);
    }
}

/// log of each sigma, as `np.log` rounds it.
pub(super) fn log_sigmas(sigmas: &[f32]) -> Vec<f32> {
    sigmas.iter().map(|sigma| arrays::log_f32(*sigma)).collect()
}

fn single(values: &[f64]) -> Result<Tensor> {
    let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
    Ok(Tensor::f_from_slice(&values)?)
}

fn host(values: &Tensor) -> Result<Vec<f32>> {
    crate::torch::TensorExt::to_vec(values)
}

/// The part of a configuration that the noise schedule follows from.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Schedule {
    #[serde(flatten)]
    betas: BetaConfig,
    rescale_betas_zero_snr: bool,
}

fn schedule(config: &ConfigMap) -> Result<Schedule> {
    let mut set = config.clone();
    set.retain(|_, value| !value.is_null());
    from_map(&set)
}

/// The betas of a scheduler's configuration, one for each timestep of the training: diffusers' attribute `betas`.
///
/// # Errors
/// [`Error::Config`], naming the option that does not fit.
pub fn training_betas(config: &ConfigMap) -> Result<Vec<f32>> {
    let schedule = schedule(config)?;
    host(&schedule.betas.rescaled(schedule.rescale_betas_zero_snr)?)
}

/// The share of signal at each timestep of the training, of a scheduler's configuration: diffusers' attribute
/// `alphas_cumprod`.
///
/// # Errors
/// As [`training_betas`].
pub fn training_alphas_cumprod(config: &ConfigMap) -> Result<Vec<f32>> {
    let schedule = schedule(config)?;
    schedule.betas.alphas_cumprod_of(schedule.rescale_betas_zero_snr, &BetaSchedule::OF_SOME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_terminal_snr_leaves_no_signal_and_keeps_the_first() {
        let config = BetaConfig { beta_schedule: BetaSchedule::ScaledLinear, ..Default::default() };
        let (plain, rescaled) = (config.alphas_cumprod(false).unwrap(), config.alphas_cumprod(true).unwrap());
        assert_eq!(rescaled[999], 0.0);
        assert!((plain[0] - rescaled[0]).abs() < 1e-6);
        assert!(plain[999] > 0.0);
    }

    #[test]
    fn a_schedule_of_some_schedulers_is_refused_by_the_others() {
        let config = BetaConfig { beta_schedule: BetaSchedule::Sigmoid, ..Default::default() };
        let error = config.alphas_cumprod(false).unwrap_err().to_string();
        assert!(error.starts_with("`beta_schedule` = \"sigmoid\" is of other schedulers"), "{error}");
        assert_eq!(config.alphas_cumprod_of(false, &[BetaSchedule::Sigmoid]).unwrap().len(), 1000);
    }

    #[test]
    fn trained_betas_of_the_wrong_number_are_refused() {
        let config = BetaConfig { trained_betas: Some(vec![0.1; 3]), ..Default::default() };
        let error = config.check().unwrap_err().to_string();
        assert_eq!(error, "`trained_betas` has 3 values for 1000 training timesteps");
    }
}
