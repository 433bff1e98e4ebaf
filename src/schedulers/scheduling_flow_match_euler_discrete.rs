//! Euler's method along the straight paths of flow matching.
//!
//! Mirrors `diffusers/schedulers/scheduling_flow_match_euler_discrete.py` at 0.42.1; the paths are those of Lipman et al.
//! 2022, arXiv:2210.02747, and the shift that of Esser et al. 2024, arXiv:2403.03206, section 5.3.2.

use super::arrays::linspace;
use super::cursor::{Cursor, not_set};
use super::scheduling_utils::{Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured};
use super::settings::settle;
use super::sigmas::SigmaRange;
use super::step_math::{PerSample, mix, scaled, sum};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::torch::randn_tensor;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// How `mu` shifts the noise levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum TimeShiftType {
    Exponential,
    Linear,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
struct Options {
    num_train_timesteps: usize,
    shift: f64,
    use_dynamic_shifting: bool,
    base_shift: Option<f64>,
    max_shift: Option<f64>,
    base_image_seq_len: i64,
    max_image_seq_len: i64,
    invert_sigmas: bool,
    shift_terminal: Option<f64>,
    use_karras_sigmas: bool,
    use_exponential_sigmas: bool,
    use_beta_sigmas: bool,
    time_shift_type: TimeShiftType,
    stochastic_sampling: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: Some(0.5),
            max_shift: Some(1.15),
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            invert_sigmas: false,
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            time_shift_type: TimeShiftType::Exponential,
            stochastic_sampling: false,
        }
    }
}

/// Noise levels as NumPy holds them: in float64, or rounded to float32 after each operation.
///
/// Sums, differences, products and quotients of float32 numbers are the same computed in float64 and rounded once.
struct Levels {
    values: Vec<f64>,
    single: bool,
}

impl Levels {
    fn round(&self, value: f64) -> f64 {
        if self.single { f64::from(value as f32) } else { value }
    }

    fn map(&mut self, change: impl Fn(&Self, f64) -> f64) {
        self.values = self.values.iter().map(|value| change(self, *value)).collect();
    }

    /// `a / (a + (1 / t - 1))`.
    fn time_shift(&mut self, a: f64) {
        self.map(|levels, t| {
            let a = levels.round(a);
            let odds = levels.round(levels.round(1.0 / t) - 1.0);
            levels.round(a / levels.round(a + odds))
        });
    }

    /// `shift * t / (1 + (shift - 1) * t)`.
    fn shift(&mut self, shift: f64) {
        self.map(|levels, t| {
            let above = levels.round(levels.round(shift) * t);
            let below = levels.round(1.0 + levels.round(levels.round(shift - 1.0) * t));
            levels.round(above / below)
        });
    }

    /// Stretches the levels so that the last is `terminal`.
    fn stretch(&mut self, terminal: f64) {
        let Some(last) = self.values.last() else { return };
        let factor = self.round(self.round(1.0 - last) / self.round(1.0 - terminal));
        self.map(|levels, t| levels.round(1.0 - levels.round(levels.round(1.0 - t) / factor)));
    }
}

/// Flow matching's Euler: FLUX's own.
#[derive(Debug)]
pub struct FlowMatchEulerDiscreteScheduler {
    options: Options,
    config: ConfigMap,
    /// The highest and the lowest noise level that models are trained with.
    trained: [f32; 2],
    timesteps: Vec<f64>,
    sigmas: Vec<f32>,
    cursor: Cursor,
}

impl SchedulerMixin for FlowMatchEulerDiscreteScheduler {
    const CLASS_NAME: &'static str = "FlowMatchEulerDiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        let conversions = [options.use_karras_sigmas, options.use_exponential_sigmas, options.use_beta_sigmas];
        if conversions.into_iter().filter(|on| *on).count() > 1 {
            return Err(Error::Config(
                "only one of `use_beta_sigmas`, `use_exponential_sigmas`, `use_karras_sigmas` can be on".into(),
            ));
        }
        if options.num_train_timesteps == 0 {
            return Err(Error::Config("`num_train_timesteps` is at least 1".into()));
        }
        let train = options.num_train_timesteps as f32;
        let shift = |sigma: f32| match options.use_dynamic_shifting {
            true => sigma,
            false => options.shift as f32 * sigma / (1.0 + (options.shift - 1.0) as f32 * sigma),
        };
        let trained = [shift(1.0), shift(1.0 / train)];
        let (timesteps, sigmas, cursor) = Default::default();
        Ok(Self { options, config, trained, timesteps, sigmas, cursor })
    }
}

impl FlowMatchEulerDiscreteScheduler {
    fn lay_out(&mut self, asked: Timesteps<'_>, mu: Option<f64>) -> Result<()> {
        let options = &self.options;
        let train = options.num_train_timesteps as f64;
        let rounded = |values: &[f64]| values.iter().map(|value| f64::from(*value as f32)).collect::<Vec<_>>();
        let single = !matches!(asked, Timesteps::Steps(_));
        let values = match asked {
            Timesteps::Steps(steps) => {
                let [first, last] = self.trained.map(|sigma| f64::from(sigma) * train);
                linspace(first, last, steps).into_iter().map(|timestep| timestep / train).collect()
            }
            Timesteps::Timesteps(timesteps) => {
                rounded(&rounded(timesteps).into_iter().map(|timestep| timestep / train).collect::<Vec<_>>())
            }
            Timesteps::Sigmas(sigmas) => rounded(sigmas),
        };
        if values.is_empty() {
            return Err(Error::Argument("a run has at least one step".into()));
        }
        let mut levels = Levels { values, single };
        match (options.use_dynamic_shifting, mu) {
            (true, None) => {
                return Err(Error::Argument(
                    "`mu` is needed where `use_dynamic_shifting` is on: run `set_timesteps_with_mu`".into(),
                ));
            }
            (true, Some(mu)) => levels.time_shift(match options.time_shift_type {
                TimeShiftType::Exponential => mu.exp(),
                TimeShiftType::Linear => mu,
            }),
            (false, _) => levels.shift(options.shift),
        }
        if let Some(terminal) = options.shift_terminal.filter(|terminal| *terminal != 0.0) {
            levels.stretch(terminal);
        }
        let steps = levels.values.len();
        let [first, last] = [levels.values[0], levels.values[steps - 1]];
        let range = SigmaRange::new(&self.config, first, last);
        if options.use_karras_sigmas {
            levels.values = range.karras(steps);
        } else if options.use_exponential_sigmas {
            levels.values = range.exponential(steps);
        } else if options.use_beta_sigmas {
            levels.values = range.beta(steps);
        }

        let mut sigmas: Vec<f32> = levels.values.into_iter().map(|sigma| sigma as f32).collect();
        let of_training = |sigmas: &[f32]| sigmas.iter().map(|sigma| f64::from(sigma * train as f32)).collect();
        let mut timesteps: Vec<f64> = match asked {
            Timesteps::Timesteps(timesteps) => rounded(timesteps),
            _ => of_training(&sigmas),
        };
        if options.invert_sigmas {
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - *sigma);
            timesteps = of_training(&sigmas);
        }
        sigmas.push(if options.invert_sigmas { 1.0 } else { 0.0 });
        (self.timesteps, self.sigmas, self.cursor) = (timesteps, sigmas, Cursor::default());
        Ok(())
    }
}

impl Scheduler for FlowMatchEulerDiscreteScheduler {
    as_configured!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        self.lay_out(timesteps, None)
    }

    fn set_timesteps_with_mu(&mut self, timesteps: Timesteps<'_>, mu: f64) -> Result<()> {
        self.lay_out(timesteps, Some(mu))
    }

    fn set_begin_index(&mut self, index: usize) {
        self.cursor.begin_at(index);
    }

    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// The sample itself: diffusers' class has no such method, for nothing is scaled.
    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        let index = self.cursor.locate(&self.timesteps, timestep)?;
        let (sigma, next) = (self.sigmas[index], self.sigmas[index + 1]);
        let kind = model_output.f_kind()?;
        let sample = sample.f_to_kind(Kind::Float)?;
        let prev_sample = if self.options.stochastic_sampling {
            let x0 = sum(scaled(-sigma, model_output)?, &sample)?;
            let noise = match options.variance_noise {
                Some(noise) => noise.shallow_clone(),
                None => randn_tensor(&sample.size(), options.generators, Kind::Float, sample.device())?,
            };
            sum(scaled(1.0 - next, &x0)?, &scaled(next, &noise)?)?
        } else {
            sum(scaled(next - sigma, model_output)?, &sample)?
        };
        self.cursor.advance();
        Ok(SchedulerOutput { prev_sample: prev_sample.f_to_kind(kind)?, pred_original_sample: None })
    }

    /// diffusers' `scale_noise`: `sigma * noise + (1 - sigma) * sample`.
    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let indices = self.cursor.noise_indices(&self.timesteps, timesteps)?;
        let sigmas: Vec<f32> = indices.into_iter().map(|index| self.sigmas[index]).collect();
        let sigma = PerSample::new(&sigmas, original_samples)?.into_tensor();
        let rest = sigma.f_rsub_scalar(1.0)?;
        mix(&sigma, noise, &rest, original_samples)
    }
}
