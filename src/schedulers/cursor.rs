//! Where a run stands.

use crate::error::{Error, Result};

/// The index of the step to take, found by the first timestep and counted from there.
///
/// Mirrors `index_for_timestep` and `_init_step_index` of diffusers 0.42.1.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    begin: Option<usize>,
    step: Option<usize>,
}

impl Cursor {
    /// Starts at `index`, whatever the first timestep is.
    pub(super) fn begin_at(&mut self, index: usize) {
        self.begin = Some(index);
    }

    /// The index of the step to take from `timestep`.
    pub(super) fn locate(&mut self, timesteps: &[f64], timestep: f64) -> Result<usize> {
        let found = match self.step.or(self.begin) {
            Some(step) if step < timesteps.len() => step,
            Some(step) => {
                return Err(Error::Argument(format!(
                    "step {step} of a run of {}: it has ended, run `set_timesteps` for the next one",
                    timesteps.len()
                )));
            }
            None => index_for_timestep(timesteps, timestep)?,
        };
        self.step = Some(found);
        Ok(found)
    }

    /// Goes to the next step.
    pub(super) fn advance(&mut self) {
        self.step = self.step.map(|step| step + 1);
    }

    /// Where noise is to be added: for each timestep its own index, except in the middle of a run or before its start.
    pub(super) fn noise_indices(&self, timesteps: &[f64], at: &[f64]) -> Result<Vec<usize>> {
        match (self.begin, self.step) {
            (None, _) => at.iter().map(|timestep| index_for_timestep(timesteps, *timestep)).collect(),
            (Some(_), Some(index)) | (Some(index), None) => Ok(vec![index; at.len()]),
        }
    }
}

/// Where `timestep` stands in the run; of two places the second, so that a run can start in its middle without skipping.
// Differs from diffusers: its DPM-Solver and UniPC schedulers take a timestep that is not there for the last one.
fn index_for_timestep(timesteps: &[f64], timestep: f64) -> Result<usize> {
    let mut places = (0..timesteps.len()).filter(|i| timesteps[*i] as f32 == timestep as f32);
    let first = places.next();
    places.next().or(first).ok_or_else(|| {
        Error::Argument(format!("timestep {timestep} is none of this run's {} timesteps", timesteps.len()))
    })
}

/// Custom timesteps as diffusers takes them: whole, and at least one.
pub(super) fn whole_timesteps(custom: &[f64]) -> Result<Vec<f64>> {
    match custom.is_empty() {
        true => Err(Error::Argument("a run needs one timestep or more".into())),
        false => Ok(custom.iter().map(|t| t.trunc()).collect()),
    }
}

/// The error of a step without a run.
pub(super) fn not_set(class_name: &str) -> Error {
    Error::Argument(format!("{class_name} has no timesteps yet: run `set_timesteps` first"))
}

/// The error of a scheduler that lays out its timesteps itself.
pub(super) fn takes_no_custom(class_name: &str, what: &str) -> Error {
    Error::Argument(format!("`set_timesteps` of {class_name} takes no custom {what}: give a number of steps"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_equal_timesteps_the_second_is_the_start() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.locate(&[9.0, 5.0, 5.0, 1.0], 5.0).unwrap(), 2);
        cursor.advance();
        assert_eq!(cursor.locate(&[9.0, 5.0, 5.0, 1.0], 1.0).unwrap(), 3);
        cursor.advance();
        assert!(cursor.locate(&[9.0, 5.0, 5.0, 1.0], 1.0).unwrap_err().to_string().contains("it has ended"));
    }

    #[test]
    fn a_begin_index_comes_before_the_timestep() {
        let mut cursor = Cursor::default();
        cursor.begin_at(1);
        assert_eq!(cursor.noise_indices(&[9.0, 5.0], &[9.0, 9.0]).unwrap(), [1, 1]);
        assert_eq!(cursor.locate(&[9.0, 5.0], 9.0).unwrap(), 1);
    }

    #[test]
    fn a_foreign_timestep_is_named() {
        let error = Cursor::default().locate(&[9.0], 7.0).unwrap_err().to_string();
        assert_eq!(error, "timestep 7 is none of this run's 1 timesteps");
    }
}
