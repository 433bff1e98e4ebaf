//! The options of `EulerDiscreteScheduler`, with diffusers' defaults.

use super::super::betas::BetaConfig;
use super::super::scheduling_utils::PredictionType;
use super::super::sigmas::{FinalSigmasType, SigmaSwitches};
use super::super::spacing::TimestepSpacing;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum InterpolationType {
    Linear,
    LogLinear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TimestepType {
    Discrete,
    Continuous,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Options {
    #[serde(flatten)]
    pub(super) betas: BetaConfig,
    pub(super) prediction_type: PredictionType,
    pub(super) interpolation_type: InterpolationType,
    #[serde(flatten)]
    pub(super) switches: SigmaSwitches,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) timestep_type: TimestepType,
    pub(super) steps_offset: i64,
    pub(super) rescale_betas_zero_snr: bool,
    pub(super) final_sigmas_type: FinalSigmasType,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            prediction_type: PredictionType::Epsilon,
            interpolation_type: InterpolationType::Linear,
            switches: SigmaSwitches::default(),
            sigma_min: None,
            sigma_max: None,
            timestep_spacing: TimestepSpacing::Linspace,
            timestep_type: TimestepType::Discrete,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            final_sigmas_type: FinalSigmasType::Zero,
        }
    }
}

impl Options {
    /// The timesteps given to the model are a function of sigma, as in Stable Video Diffusion.
    pub(super) fn continuous(&self) -> bool {
        self.timestep_type == TimestepType::Continuous && self.prediction_type == PredictionType::VPrediction
    }
}
