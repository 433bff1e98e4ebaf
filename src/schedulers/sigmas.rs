//! Noise levels that a run visits in place of its evenly spaced timesteps, and the way back to timesteps.
//!
//! Mirrors `_convert_to_karras`, `_convert_to_exponential`, `_convert_to_beta`, `_convert_to_lu` and `_sigma_to_t`, which
//! diffusers 0.42.1 repeats in each scheduler. NumPy computes them in float64.

use super::arrays::{linspace, symmetric_beta_ppf};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Where a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmasType {
    /// On sigma 0: the sample has no noise left.
    Zero,
    /// On the lowest sigma that the model was trained with.
    SigmaMin,
}

/// Which noise levels take the place of those of evenly spaced timesteps. Keys of a scheduler's configuration.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct SigmaSwitches {
    pub(super) use_karras_sigmas: bool,
    pub(super) use_exponential_sigmas: bool,
    pub(super) use_beta_sigmas: bool,
}

impl SigmaSwitches {
    fn on(self) -> impl Iterator<Item = &'static str> {
        let switches = [
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
        ];
        switches.into_iter().filter(|(_, on)| *on).map(|(name, _)| name)
    }

    /// Refuses more than one of them.
    pub(super) fn check(self) -> Result<()> {
        let on: Vec<_> = self.on().map(|name| format!("`{name}`")).collect();
        match on.len() {
            0 | 1 => Ok(()),
            _ => Err(Error::Config(format!("{} cannot be used together", on.join(" and ")))),
        }
    }

    /// Refuses custom timesteps where these or `others` lay out the run.
    pub(super) fn leave_room_for_custom_timesteps(self, others: &[(&'static str, bool)]) -> Result<()> {
        let others = others.iter().filter(|(_, on)| *on).map(|(name, _)| *name);
        match self.on().chain(others).next() {
            Some(name) => Err(Error::Argument(format!("custom timesteps cannot be combined with `{name}`"))),
            None => Ok(()),
        }
    }

    /// The levels of a run, if one of the switches is on.
    pub(super) fn levels(self, range: SigmaRange, steps: usize) -> Option<Vec<f64>> {
        if self.use_karras_sigmas {
            Some(range.karras(steps))
        } else if self.use_exponential_sigmas {
            Some(range.exponential(steps))
        } else if self.use_beta_sigmas {
            Some(range.beta(steps))
        } else {
            None
        }
    }
}

/// The highest and the lowest sigma of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct SigmaRange {
    pub(super) max: f64,
    pub(super) min: f64,
}

impl SigmaRange {
    /// From `first` to `last`, unless the configuration has `sigma_max` and `sigma_min`.
    ///
    /// The full map is read, as diffusers does: a scheduler that lacks the options still obeys those of another one.
    pub(super) fn new(config: &ConfigMap, first: f64, last: f64) -> Self {
        let get = |key: &str| config.get(key).and_then(serde_json::Value::as_f64);
        Self { max: get("sigma_max").unwrap_or(first), min: get("sigma_min").unwrap_or(last) }
    }

    /// Karras's levels with rho = 7 (arXiv:2206.00364, equation 5).
    pub(super) fn karras(self, steps: usize) -> Vec<f64> {
        const RHO: f64 = 7.0;
        let (min, max) = (self.min.powf(1.0 / RHO), self.max.powf(1.0 / RHO));
        linspace(0.0, 1.0, steps).into_iter().map(|ramp| (max + ramp * (min - max)).powf(RHO)).collect()
    }

    /// Levels that are evenly spaced in their logarithm.
    pub(super) fn exponential(self, steps: usize) -> Vec<f64> {
        linspace(self.max.ln(), self.min.ln(), steps).into_iter().map(f64::exp).collect()
    }

    /// Levels at the quantiles of a beta distribution with alpha = beta = 0.6 (arXiv:2407.12173).
    pub(super) fn beta(self, steps: usize) -> Vec<f64> {
        const ALPHA: f64 = 0.6;
        let quantiles = linspace(0.0, 1.0, steps).into_iter().map(|p| symmetric_beta_ppf(1.0 - p, ALPHA));
        quantiles.map(|quantile| self.min + quantile * (self.max - self.min)).collect()
    }
}

/// Lu's levels: evenly spaced in lambda = -log(sigma) (arXiv:2206.00927).
pub(super) fn lu(log_sigma_first: f64, log_sigma_last: f64, steps: usize) -> Vec<f64> {
    let ramp = linspace(0.0, 1.0, steps).into_iter();
    ramp.map(|ramp| (log_sigma_first + ramp * (log_sigma_last - log_sigma_first)).exp()).collect()
}

/// The logarithms of the noise levels that timesteps 0, 1, 2 ... stand for.
#[derive(Clone, Debug)]
pub(super) enum LogSigmas {
    /// As NumPy holds those of the training timesteps.
    Single(Vec<f32>),
    /// As NumPy holds those of a list of Python floats.
    Double(Vec<f64>),
}

impl LogSigmas {
    /// The broken timestep at which the noise level is `sigma`, by interpolation between the neighbours.
    pub(super) fn timestep(&self, sigma: f64) -> Result<f64> {
        self.interpolate(sigma.max(1e-10).ln(), |w| w, |t| t)
    }

    /// The same for a float32 `sigma`, where NumPy stays in float32 up to the last line.
    pub(super) fn timestep_single(&self, sigma: f32) -> Result<f64> {
        self.interpolate(f64::from(super::arrays::log_f32(sigma.max(1e-10))), single, |t| t)
    }

    /// The same for a `sigma` in a tensor, where torch stays in float32 to the end.
    pub(super) fn timestep_of_tensor(&self, sigma: f32) -> Result<f64> {
        self.interpolate(f64::from(super::arrays::log_f32(sigma.max(1e-10))), single, single)
    }

    /// `round` is what happens to the weights, `finish` to what is made of them.
    fn interpolate(&self, log_sigma: f64, round: impl Fn(f64) -> f64, finish: impl Fn(f64) -> f64) -> Result<f64> {
        let length = match self {
            Self::Single(values) => values.len(),
            Self::Double(values) => values.len(),
        };
        if length < 2 {
            return Err(Error::Argument("a timestep can only be found between two sigmas or more".into()));
        }
        let at = |i: usize| match self {
            Self::Single(values) => f64::from(values[i]),
            Self::Double(values) => values[i],
        };
        // NumPy compares the rounded difference with zero, which its sign alone decides.
        let below = (0..length).rev().find(|i| log_sigma >= at(*i)).unwrap_or(0).min(length - 2);
        let (low, high) = (at(below), at(below + 1));
        let interval = match self {
            Self::Single(_) => f64::from((low - high) as f32),
            Self::Double(_) => low - high,
        };
        let w = round(round(low - log_sigma) / interval).clamp(0.0, 1.0);
        Ok(finish(finish(round(1.0 - w) * below as f64) + finish(w * (below + 1) as f64)))
    }
}

/// `x` as float32 holds it.
fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_levels_has_the_ranges_ends() {
        let range = SigmaRange::new(&ConfigMap::new(), 14.0, 0.03);
        for levels in [range.karras(5), range.exponential(5), range.beta(5), lu(14f64.ln(), 0.03f64.ln(), 5)] {
            assert!((levels[0] - 14.0).abs() < 1e-9 && (levels[4] - 0.03).abs() < 1e-9, "{levels:?}");
            assert!(levels.windows(2).all(|pair| pair[0] > pair[1]), "{levels:?}");
        }
    }

    #[test]
    fn the_configurations_ends_come_first() {
        let config = serde_json::from_str::<ConfigMap>(r#"{"sigma_min": 0.5, "sigma_max": null}"#).unwrap();
        let range = SigmaRange::new(&config, 9.0, 0.1);
        assert_eq!((range.max, range.min), (9.0, 0.5));
    }

    #[test]
    fn a_sigma_between_two_timesteps_is_between_them() {
        let sigmas = LogSigmas::Double(vec![0.0, 1.0, 2.0]);
        assert!((sigmas.timestep(1.5f64.exp()).unwrap() - 1.5).abs() < 1e-12);
        assert_eq!(sigmas.timestep(100.0).unwrap(), 2.0);
        assert_eq!(sigmas.timestep(0.0).unwrap(), 0.0);
    }
}
