//! The options of `DPMSolverSinglestepScheduler`, with diffusers' defaults.

use super::super::betas::BetaConfig;
use super::super::scheduling_dpmsolver_multistep::updates::{Algorithm, SolverType};
use super::super::scheduling_euler_discrete::one_of_the_sigmas;
use super::super::scheduling_utils::PredictionType;
use super::super::settings::maybe_infinite;
use super::super::sigmas::FinalSigmasType;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Options {
    #[serde(flatten)]
    pub(super) betas: BetaConfig,
    pub(super) solver_order: usize,
    pub(super) prediction_type: PredictionType,
    pub(super) thresholding: bool,
    pub(super) dynamic_thresholding_ratio: f64,
    pub(super) sample_max_value: f64,
    pub(super) algorithm_type: Algorithm,
    pub(super) solver_type: SolverType,
    pub(super) lower_order_final: bool,
    pub(super) use_karras_sigmas: bool,
    pub(super) use_exponential_sigmas: bool,
    pub(super) use_beta_sigmas: bool,
    pub(super) use_flow_sigmas: bool,
    pub(super) flow_shift: f64,
    pub(super) final_sigmas_type: FinalSigmasType,
    #[serde(with = "maybe_infinite")]
    pub(super) lambda_min_clipped: f64,
    pub(super) variance_type: Option<String>,
    pub(super) use_dynamic_shifting: bool,
    pub(super) time_shift_type: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            solver_order: 2,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            algorithm_type: Algorithm::DPMSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_flow_sigmas: false,
            flow_shift: 1.0,
            final_sigmas_type: FinalSigmasType::Zero,
            lambda_min_clipped: f64::NEG_INFINITY,
            variance_type: None,
            use_dynamic_shifting: false,
            time_shift_type: "exponential".into(),
        }
    }
}

impl Options {
    pub(super) fn check(&self) -> Result<()> {
        one_of_the_sigmas(&self.switches())?;
        let name = self.algorithm_type.name();
        if self.algorithm_type == Algorithm::SdeDPMSolver {
            return Err(Error::Unsupported(format!(
                "`algorithm_type` {name} of DPMSolverSinglestepScheduler: use dpmsolver, dpmsolver++ or sde-dpmsolver++"
            )));
        }
        if !(1..=3).contains(&self.solver_order) {
            return Err(Error::Unsupported(format!("`solver_order` {}: use 1, 2 or 3", self.solver_order)));
        }
        if self.algorithm_type.predicts_x0() {
            return Ok(());
        }
        if self.final_sigmas_type == FinalSigmasType::Zero {
            return Err(Error::Config(format!(
                "`final_sigmas_type` zero cannot be used with `algorithm_type` {name}: use sigma_min"
            )));
        }
        if self.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported(format!(
                "`prediction_type` flow_prediction of `algorithm_type` {name}: use dpmsolver++ or sde-dpmsolver++"
            )));
        }
        // diffusers looks for alpha at a timestep that it is not told, and fails in the first step.
        if self.thresholding {
            return Err(Error::Unsupported(format!(
                "`thresholding` of `algorithm_type` {name}: use dpmsolver++ or sde-dpmsolver++"
            )));
        }
        Ok(())
    }

    pub(super) fn switches(&self) -> [(&'static str, bool); 3] {
        [
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
        ]
    }

    /// Whether the model gives the variance in channels of its own; other schedulers have more values of the option.
    pub(super) fn learns_variance(&self) -> bool {
        matches!(self.variance_type.as_deref(), Some("learned" | "learned_range"))
    }

    /// The order of each of `steps` steps: groups that rise from 1, whose first step begins anew.
    pub(super) fn orders(&self, steps: usize) -> Vec<usize> {
        let order = self.solver_order;
        let mut orders: Vec<usize> = (0..steps).map(|step| step % order + 1).collect();
        if self.lower_order_final && order > 1 && steps.is_multiple_of(order) {
            // The last group gives way to lower ones, so that the run ends on order 1.
            let last_group = if order == 3 { &[1, 2, 1][..] } else { &[1, 1] };
            orders.truncate(steps - order);
            orders.extend(last_group);
        }
        if self.final_sigmas_type == FinalSigmasType::Zero
            && let Some(last) = orders.last_mut()
        {
            *last = 1;
        }
        orders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_rise_in_groups_and_fall_at_the_end() {
        let options = |solver_order, final_sigmas_type| Options {
            solver_order,
            final_sigmas_type,
            lower_order_final: true,
            ..Options::default()
        };
        let kept = |order| options(order, FinalSigmasType::SigmaMin);
        assert_eq!(kept(3).orders(6), [1, 2, 3, 1, 2, 1]);
        assert_eq!(kept(3).orders(7), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(kept(3).orders(8), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(kept(2).orders(4), [1, 2, 1, 1]);
        assert_eq!(kept(2).orders(5), [1, 2, 1, 2, 1]);
        assert_eq!(kept(1).orders(3), [1, 1, 1]);
        assert_eq!(options(3, FinalSigmasType::Zero).orders(8), [1, 2, 3, 1, 2, 3, 1, 1]);
    }
}
