//! The noise levels that the samplers of k-diffusion walk.
//!
//! HeunDiscrete, LMSDiscrete, KDPM2Discrete and KDPM2AncestralDiscrete of diffusers 0.42.1 lay out their runs alike.

use super::arrays::interp;
use super::betas::{BetaConfig, log_sigmas, training_sigmas};
use super::scheduling_utils::{PredictionType, Timesteps};
use super::sigmas::{LogSigmas, SigmaRange, SigmaSwitches};
use super::spacing::TimestepSpacing;
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The options that the four have in common.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct LevelOptions {
    #[serde(flatten)]
    pub(super) betas: BetaConfig,
    pub(super) prediction_type: PredictionType,
    #[serde(flatten)]
    pub(super) switches: SigmaSwitches,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: i64,
}

impl Default for LevelOptions {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            prediction_type: PredictionType::Epsilon,
            switches: SigmaSwitches::default(),
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
        }
    }
}

/// The training's timesteps as noise levels.
#[derive(Clone, Debug)]
pub(super) struct TrainingLevels {
    pub(super) sigmas: Vec<f32>,
    pub(super) logs: LogSigmas,
}

impl TrainingLevels {
    pub(super) fn new(alphas_cumprod: &[f32]) -> Result<Self> {
        let sigmas = training_sigmas(alphas_cumprod)?;
        let logs = LogSigmas::Single(log_sigmas(&sigmas));
        Ok(Self { sigmas, logs })
    }
}

/// Timesteps that were asked for, before the configuration puts others in their place.
pub(super) struct Request {
    pub(super) timesteps: Vec<f64>,
    /// The number that was asked for; spacing may round it.
    pub(super) steps: usize,
}

/// Timesteps, and their noise levels with the final 0.
pub(super) struct Levels {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f32>,
}

impl LevelOptions {
    /// The options with the ends of Stable Diffusion's betas, which diffusers calls sensible defaults.
    pub(super) fn with_sensible_betas() -> Self {
        let betas = BetaConfig { beta_start: 0.00085, beta_end: 0.012, ..BetaConfig::default() };
        Self { betas, ..Self::default() }
    }

    /// Refuses what diffusers refuses, and predictions beside `predictions`.
    pub(super) fn check(&self, class_name: &str, predictions: &[PredictionType]) -> Result<()> {
        self.switches.check()?;
        if !predictions.contains(&self.prediction_type) {
            let names = predictions.iter().map(|prediction| prediction.name()).collect::<Vec<_>>().join(", ");
            return Err(Error::Unsupported(format!(
                "{class_name} has no `prediction_type` {}: use one of {names}",
                self.prediction_type.name()
            )));
        }
        Ok(())
    }

    /// The request for all of the training's timesteps, which diffusers lays out before any other.
    pub(super) fn whole_training(&self) -> Result<Request> {
        self.spaced(self.betas.num_train_timesteps as usize)
    }

    /// The request for a number of steps.
    fn spaced(&self, steps: usize) -> Result<Request> {
        let spaced = self.timestep_spacing.timesteps(self.betas.num_train_timesteps, steps, self.steps_offset)?;
        Ok(Request { timesteps: spaced.into_iter().map(|t| f64::from(t as f32)).collect(), steps })
    }

    /// The request that `set_timesteps` of a class without custom timesteps is given.
    pub(super) fn request(&self, timesteps: Timesteps<'_>, class_name: &str) -> Result<Request> {
        self.betas.check()?;
        self.spaced(timesteps.steps(class_name)?)
    }

    /// The same of a class that takes custom timesteps.
    pub(super) fn request_or_custom(&self, timesteps: Timesteps<'_>, class_name: &str) -> Result<Request> {
        let Timesteps::Timesteps(custom) = timesteps else { return self.request(timesteps, class_name) };
        self.betas.check()?;
        self.switches.leave_room_for_custom_timesteps(&[])?;
        Ok(Request { timesteps: custom.iter().map(|t| f64::from(*t as f32)).collect(), steps: custom.len() })
    }

    /// The noise levels of `request`, or those that the options put in their place, between the ends of `config`.
    pub(super) fn levels(&self, request: Request, training: &TrainingLevels, config: &ConfigMap) -> Result<Levels> {
        let Request { mut timesteps, steps } = request;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|t| interp(*t, &training.sigmas)).collect();
        let (Some(first), Some(last)) = (sigmas.first(), sigmas.last()) else {
            return Err(Error::Argument("a run needs one timestep or more".into()));
        };
        let range = SigmaRange::new(config, *first, *last);
        if let Some(replaced) = self.switches.levels(range, steps) {
            timesteps = replaced.iter().map(|sigma| training.logs.timestep(*sigma)).collect::<Result<_>>()?;
            sigmas = replaced;
        }
        Ok(Levels { timesteps, sigmas: sigmas.into_iter().map(|sigma| sigma as f32).chain([0.0]).collect() })
    }
}

/// The first value once and all others twice, as a step of two calls of the model visits them.
pub(super) fn first_once_others_twice<T: Copy>(values: &[T]) -> Vec<T> {
    values.iter().flat_map(|value| [*value; 2]).skip(1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_two_calls_visits_all_levels_but_the_first_twice() {
        assert_eq!(first_once_others_twice(&[3, 2, 1]), [3, 2, 2, 1, 1]);
        assert_eq!(first_once_others_twice(&[3]), [3]);
    }

    #[test]
    fn custom_timesteps_leave_no_room_for_other_levels() {
        let options = LevelOptions {
            switches: SigmaSwitches { use_beta_sigmas: true, ..SigmaSwitches::default() },
            ..LevelOptions::default()
        };
        let error =
            options.request_or_custom(Timesteps::Timesteps(&[9.0]), "Heun").err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("custom timesteps cannot be combined with `use_beta_sigmas`"));
    }

    #[test]
    fn a_run_without_timesteps_is_refused() {
        let options = LevelOptions::default();
        let training = TrainingLevels::new(&options.betas.alphas_cumprod(false).unwrap()).unwrap();
        let none = Request { timesteps: Vec::new(), steps: 0 };
        assert!(options.levels(none, &training, &ConfigMap::new()).is_err());
    }
}
