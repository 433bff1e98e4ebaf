//! Where the time goes: which operators of libtorch run, how often, and for how long.
//!
//! Mirrors what `torch.profiler.profile(...).key_averages()` of torch 2.11 says about one thread, and the warnings of
//! `torch.cuda.set_sync_debug_mode`.

use super::ffi::profile::{RawProfile, RawSynchronizations};
use crate::error::{Error, Result};
use std::fmt;
use std::time::{Duration, Instant};

/// One operator of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// What libtorch calls it: `aten::conv2d`.
    pub name: String,
    /// How often it ran.
    pub calls: usize,
    /// How long it ran in all, without the operators that it called.
    pub self_time: Duration,
}

/// What [`profile`] saw. Printed, it is a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorProfile {
    /// The operators, the one that took longest in front.
    pub operators: Vec<Operator>,
    /// How long everything took, what is no operator included.
    pub elapsed: Duration,
}

impl OperatorProfile {
    /// How often the operator of this name ran.
    #[must_use]
    pub fn calls(&self, name: &str) -> usize {
        self.operators.iter().find(|operator| operator.name == name).map_or(0, |operator| operator.calls)
    }

    /// How long all operators ran; the rest of `elapsed` is the program's own.
    #[must_use]
    pub fn operator_time(&self) -> Duration {
        self.operators.iter().map(|operator| operator.self_time).sum()
    }

    /// `part` as a share of `elapsed`, from 0 to 1.
    #[must_use]
    pub fn share(&self, part: Duration) -> f64 {
        part.as_secs_f64() / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl fmt::Display for OperatorProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, calls: &str, time: Duration| {
            writeln!(f, "{name:<44} {calls:>8} {:>12.3} {:>7.1}", time.as_secs_f64() * 1e3, self.share(time) * 100.0)
        };
        for operator in &self.operators {
            line(&operator.name, &operator.calls.to_string(), operator.self_time)?;
        }
        line("outside operators", "", self.elapsed.saturating_sub(self.operator_time()))?;
        write!(f, "name, calls, milliseconds, percent of {:.3} ms", self.elapsed.as_secs_f64() * 1e3)
    }
}

/// Does `work`, and says which operators it ran on this thread.
///
/// Times are those of the thread that calls an operator: on CUDA how long it takes to launch it, not to run it. Looking on
/// costs about 0.2 microseconds an operator, and nothing once it is over.
///
/// # Examples
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_diffusers::torch::profile;
/// let (negated, profile) = profile(|| Ok(Tensor::f_ones([4, 4], (Kind::Float, Device::Cpu))?.f_neg()?))?;
/// assert_eq!(negated.f_double_value(&[0, 0])?, -1.0);
/// assert_eq!((profile.calls("aten::ones"), profile.calls("aten::neg")), (1, 1));
/// println!("{profile}");
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
///
/// # Errors
/// Whatever `work` fails with; [`Error::Argument`] inside another profile of the same thread.
pub fn profile<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, OperatorProfile)> {
    let raw = RawProfile::start()?;
    let start = Instant::now();
    let done = work()?;
    let elapsed = start.elapsed();
    let mut operators = raw.read()?.lines().map(operator).collect::<Result<Vec<_>>>()?;
    operators.sort_by(|a, b| (b.self_time, &a.name).cmp(&(a.self_time, &b.name)));
    Ok((done, OperatorProfile { operators, elapsed }))
}

/// A line of the shim's: calls, nanoseconds, name.
fn operator(line: &str) -> Result<Operator> {
    let mut parts = line.splitn(3, ' ');
    let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok());
    let (calls, nanoseconds) = (number(), number());
    match (calls, nanoseconds, parts.next()) {
        (Some(calls), Some(nanoseconds), Some(name)) => Ok(Operator {
            name: name.into(),
            calls: usize::try_from(calls).unwrap_or(usize::MAX),
            self_time: Duration::from_nanos(nanoseconds),
        }),
        _ => Err(Error::Torch(format!("the profile holds a line that is none: {line:?}"))),
    }
}

/// Does `work`, and counts how often this thread waited for a CUDA device on the way: reading a number back, copying to the
/// host or from memory that is not pinned, and whatever else `torch.cuda.set_sync_debug_mode("warn")` warns of. Waiting for
/// a stream or an event on purpose is not counted.
///
/// # Errors
/// Whatever `work` fails with; [`Error::Unsupported`] where libtorch's CUDA library is not open.
pub fn count_synchronizations<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, usize)> {
    let watch = RawSynchronizations::start()?;
    let done = work()?;
    Ok((done, usize::try_from(watch.stop()).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    fn ones(side: i64) -> Tensor {
        Tensor::ones([side, side], (Kind::Float, Device::Cpu))
    }

    #[test]
    fn operators_are_counted_with_those_they_call() {
        let matrix = ones(8);
        let (_, profile) = profile(|| {
            let product = matrix.f_matmul(&matrix)?;
            Ok(product.f_add(&matrix)?.f_add(&matrix)?.f_double_value(&[0, 0])?)
        })
        .unwrap();
        assert_eq!((profile.calls("aten::matmul"), profile.calls("aten::mm"), profile.calls("aten::add")), (1, 1, 2));
        assert_eq!((profile.calls("aten::item"), profile.calls("aten::_local_scalar_dense")), (1, 1));
        assert_eq!(profile.calls("aten::conv2d"), 0);
    }

    #[test]
    fn an_operator_is_charged_for_its_own_work_alone() {
        let matrix = ones(700);
        let (_, profile) = profile(|| Ok(matrix.f_matmul(&matrix)?)).unwrap();
        let time = |name: &str| profile.operators.iter().find(|operator| operator.name == name).unwrap().self_time;
        assert_eq!(profile.operators[0].name, "aten::mm");
        assert!(time("aten::matmul") * 10 < time("aten::mm"), "{profile}");
        assert!(profile.operator_time() <= profile.elapsed, "{profile}");
        assert!(profile.to_string().contains("outside operators"));
    }

    #[test]
    fn a_profile_ends_with_its_work_even_in_an_error() {
        let failed = profile(|| Ok(ones(2).f_matmul(&ones(3))?));
        assert!(failed.unwrap_err().to_string().contains("cannot be multiplied"));
        let (inner, outer) = profile(|| Ok(profile(|| Ok(())).unwrap_err())).unwrap();
        assert!(matches!(inner, Error::Argument(_)), "{inner}");
        assert_eq!(outer.operators, []);
        let (_, again) = profile(|| Ok(ones(1))).unwrap();
        assert_eq!(again.calls("aten::ones"), 1);
    }

    #[test]
    fn other_threads_are_not_looked_at() {
        let (_, profile) = profile(|| Ok(std::thread::spawn(|| ones(4) + ones(4)).join().unwrap())).unwrap();
        assert_eq!(profile.operators, []);
    }

    #[test]
    fn without_cuda_there_is_nothing_to_wait_for() {
        if crate::torch::cuda_unavailable_reason().unwrap().is_some() {
            let error = count_synchronizations(|| Ok(())).unwrap_err();
            assert!(matches!(error, Error::Unsupported(_)), "{error}");
        }
    }
}
