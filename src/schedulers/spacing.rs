//! Which of the training timesteps a run visits (arXiv:2305.08891, table 2).

use super::arrays::{arange_down, linspace};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a run's timesteps are spread over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Evenly, with both ends.
    Linspace,
    /// Evenly from 0 upwards, then `steps_offset` higher; the last training timestep is not reached.
    Leading,
    /// Evenly from the last training timestep downwards.
    Trailing,
}

/// More steps than any training has timesteps: beyond it, laying them out fills the memory.
const MOST_STEPS: usize = 1_000_000;

impl TimestepSpacing {
    /// `steps` timesteps in descending order; those of [`TimestepSpacing::Linspace`] are not rounded.
    pub(super) fn timesteps(self, train: i64, steps: usize, offset: i64) -> Result<Vec<f64>> {
        check(steps)?;
        Ok(match self {
            Self::Linspace => reversed(linspace(0.0, (train - 1) as f64, steps)),
            Self::Leading => leading(ratio(train, steps)?, steps, offset),
            Self::Trailing => trailing(train, train, steps),
        })
    }

    /// `steps` timesteps in descending order for multistep solvers, below training timestep `last`.
    ///
    /// They lay out one more, and leave out the lowest.
    pub(super) fn solver_timesteps(self, train: i64, last: i64, steps: usize, offset: i64) -> Result<Vec<f64>> {
        check(steps)?;
        let mut timesteps = match self {
            Self::Linspace => {
                let even = reversed(linspace(0.0, (last - 1) as f64, steps + 1));
                even.into_iter().map(f64::round_ties_even).collect()
            }
            Self::Leading => leading(ratio(last, steps + 1)?, steps + 1, offset),
            Self::Trailing => return Ok(trailing(train, last, steps)),
        };
        timesteps.pop();
        Ok(timesteps)
    }
}

/// Holds a number of steps to what can be laid out.
pub(super) fn check(steps: usize) -> Result<()> {
    if (1..=MOST_STEPS).contains(&steps) {
        return Ok(());
    }
    Err(Error::Argument(format!("`num_inference_steps` is {steps}: use 1 to {MOST_STEPS}")))
}

// Differs from diffusers: its Euler, DPM-Solver and UniPC schedulers walk timestep 0 again and again where there are more
// steps than training timesteps.
fn ratio(train: i64, steps: usize) -> Result<i64> {
    let ratio = train / steps as i64;
    if ratio == 0 {
        return Err(Error::Argument(format!(
            "{steps} timesteps cannot be spaced as `leading` over {train} training timesteps"
        )));
    }
    Ok(ratio)
}

fn leading(ratio: i64, steps: usize, offset: i64) -> Vec<f64> {
    (0..steps as i64).rev().map(|i| (i * ratio + offset) as f64).collect()
}

fn trailing(train: i64, last: i64, steps: usize) -> Vec<f64> {
    let ratio = train as f64 / steps as f64;
    arange_down(last as f64, ratio).into_iter().map(|t| t.round_ties_even() - 1.0).collect()
}

fn reversed(mut values: Vec<f64>) -> Vec<f64> {
    values.reverse();
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spacings_are_those_of_the_papers_table() {
        assert_eq!(TimestepSpacing::Leading.timesteps(1000, 4, 1).unwrap(), [751.0, 501.0, 251.0, 1.0]);
        assert_eq!(TimestepSpacing::Trailing.timesteps(1000, 4, 0).unwrap(), [999.0, 749.0, 499.0, 249.0]);
        assert_eq!(TimestepSpacing::Linspace.timesteps(1000, 4, 0).unwrap(), [999.0, 666.0, 333.0, 0.0]);
        assert_eq!(TimestepSpacing::Linspace.solver_timesteps(1000, 1000, 4, 0).unwrap(), [999.0, 749.0, 500.0, 250.0]);
    }

    #[test]
    fn no_steps_and_too_many_steps_are_refused() {
        assert!(TimestepSpacing::Linspace.timesteps(1000, 0, 0).is_err());
        let error = TimestepSpacing::Leading.timesteps(10, 11, 0).unwrap_err().to_string();
        assert_eq!(error, "11 timesteps cannot be spaced as `leading` over 10 training timesteps");
    }
}
