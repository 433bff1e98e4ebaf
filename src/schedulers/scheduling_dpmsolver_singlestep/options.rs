//! The options of `DPMSolverSinglestepScheduler`, with diffusers' defaults.

use super::super::scheduling_dpmsolver_multistep::options::DPMSolverOptions;
use super::super::scheduling_dpmsolver_multistep::updates::Algorithm;
use super::super::sigmas::FinalSigmasType;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Options {
    #[serde(flatten)]
    pub(super) dpm: DPMSolverOptions,
    pub(super) lower_order_final: bool,
}

impl Options {
    pub(super) fn check(&self) -> Result<()> {
        let algorithm = self.dpm.algorithm_type;
        let name = algorithm.name();
        if algorithm == Algorithm::SdeDPMSolver {
            return Err(Error::Unsupported(format!(
                "`algorithm_type` {name} of DPMSolverSinglestepScheduler: use dpmsolver, dpmsolver++ or sde-dpmsolver++"
            )));
        }
        self.dpm.check()?;
        // diffusers looks for alpha at a timestep that it is not told, and fails in the first step.
        if self.dpm.solver.thresholding && !algorithm.predicts_x0() {
            return Err(Error::Unsupported(format!(
                "`thresholding` of `algorithm_type` {name}: use dpmsolver++ or sde-dpmsolver++"
            )));
        }
        Ok(())
    }

    /// The order of each of `steps` steps: groups that rise from 1, whose first step begins anew.
    pub(super) fn orders(&self, steps: usize) -> Vec<usize> {
        let order = self.dpm.solver.solver_order;
        let mut orders: Vec<usize> = (0..steps).map(|step| step % order + 1).collect();
        if self.lower_order_final && order > 1 && steps.is_multiple_of(order) {
            // The last group gives way to lower ones, so that the run ends on order 1.
            let last_group = if order == 3 { &[1, 2, 1][..] } else { &[1, 1] };
            orders.truncate(steps - order);
            orders.extend(last_group);
        }
        if self.dpm.final_sigmas_type == FinalSigmasType::Zero
            && let Some(last) = orders.last_mut()
        {
            *last = 1;
        }
        orders
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::solver_run::SolverOptions;
    use super::*;

    #[test]
    fn orders_rise_in_groups_and_fall_at_the_end() {
        let options = |solver_order, final_sigmas_type| {
            let solver = SolverOptions { solver_order, ..SolverOptions::default() };
            let dpm = DPMSolverOptions { solver, final_sigmas_type, ..DPMSolverOptions::default() };
            Options { dpm, lower_order_final: true }
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
