//! How much memory is taken: by tensors, and by the process.

use super::ffi::{self, HostTracker};
use crate::error::{Error, Result};
use tch::{Device, Tensor};

/// Watches how much memory tensors take on one device, from when it starts.
///
/// On the CPU it sees what its own thread asks of libtorch's allocator, workspaces of oneDNN included, and what is given
/// back of that: the twin of `torch.cuda.max_memory_allocated` that Python's torch lacks. Files mapped into memory are
/// not counted. Looking on costs 0.1 to 0.25 microseconds for each tensor that comes and goes. On CUDA it reads the allocator's own statistics, which all threads share.
///
/// # Examples
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_diffusers::torch::MemoryTracker;
/// let tracker = MemoryTracker::start(Device::Cpu)?;
/// drop(Tensor::f_zeros([1024], (Kind::Float, Device::Cpu))?);
/// assert_eq!((tracker.peak()?, tracker.current()?), (4096, 0));
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryTracker(Source);

#[derive(Debug)]
enum Source {
    Host(HostTracker),
    /// The device's number, and the bytes that were taken at the start.
    Cuda(usize, i64),
}

impl MemoryTracker {
    /// Starts to watch. On CUDA the allocator's peak is reset for this.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a device that is neither the CPU nor CUDA; [`Error::Torch`] where there is no such device.
    pub fn start(device: Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self(Source::Host(HostTracker::start()?))),
            Device::Cuda(index) => {
                if let Some(reason) = super::cuda_unavailable_reason()? {
                    return Err(Error::Unsupported(format!("memory of CUDA cannot be watched: {reason}")));
                }
                ffi::reset_peak_cuda_memory(index)?;
                Ok(Self(Source::Cuda(index, ffi::cuda_memory(index)?.0)))
            }
            other => Err(Error::Unsupported(format!("memory of {other:?} cannot be watched"))),
        }
    }

    /// Bytes taken now, above what was taken at the start; negative where more was given back since.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn current(&self) -> Result<i64> {
        Ok(self.get()?.0)
    }

    /// The most bytes that were taken at once, above what was taken at the start, since the start or since
    /// [`MemoryTracker::reset_peak`].
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn peak(&self) -> Result<i64> {
        Ok(self.get()?.1)
    }

    /// Lets the peak begin anew, at what is taken now.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn reset_peak(&self) -> Result<()> {
        match &self.0 {
            Source::Host(tracker) => tracker.reset_peak(),
            Source::Cuda(index, _) => ffi::reset_peak_cuda_memory(*index)?,
        }
        Ok(())
    }

    fn get(&self) -> Result<(i64, i64)> {
        Ok(match &self.0 {
            Source::Host(tracker) => tracker.get(),
            Source::Cuda(index, start) => {
                let (current, peak) = ffi::cuda_memory(*index)?;
                (current - start, peak - start)
            }
        })
    }
}

/// Whether a tensor lies in page-locked host memory, from where copies to a CUDA device need not wait.
///
/// # Errors
/// Only if libtorch itself fails.
pub fn is_pinned(tensor: &Tensor) -> Result<bool> {
    ffi::is_pinned(tensor)
}

/// Bytes of the process that are in memory now, those of mapped files included; `None` but on Linux.
#[must_use]
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// The most bytes of the process that were in memory at once, those of mapped files included; `None` but on Linux.
#[must_use]
pub fn peak_resident() -> Option<u64> {
    status("VmHWM:")
}

/// A line of `/proc/self/status`, in bytes.
fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn megabytes(count: i64) -> Tensor {
        Tensor::zeros([count << 20], (Kind::Uint8, Device::Cpu))
    }

    #[test]
    fn a_tracker_sees_what_its_thread_takes_and_gives_back() {
        let outside = megabytes(1);
        let tracker = MemoryTracker::start(Device::Cpu).unwrap();
        let kept = megabytes(2);
        drop(megabytes(3));
        drop(outside);
        assert_eq!((tracker.current().unwrap(), tracker.peak().unwrap()), (2 << 20, 5 << 20));
        drop(std::thread::spawn(|| megabytes(7)).join().unwrap());
        tracker.reset_peak().unwrap();
        assert_eq!(tracker.peak().unwrap(), 2 << 20);
        drop(kept);
        assert_eq!(tracker.current().unwrap(), 0);
    }

    #[test]
    fn trackers_nest_and_end_in_any_order() {
        let outer = MemoryTracker::start(Device::Cpu).unwrap();
        let first = megabytes(1);
        let inner = MemoryTracker::start(Device::Cpu).unwrap();
        drop(first);
        let second = megabytes(3);
        assert_eq!((inner.current().unwrap(), inner.peak().unwrap()), (2 << 20, 2 << 20));
        drop(outer);
        drop(second);
        assert_eq!(inner.current().unwrap(), -(1 << 20));
        drop(inner);
        let again = MemoryTracker::start(Device::Cpu).unwrap();
        drop(megabytes(4));
        assert_eq!(again.peak().unwrap(), 4 << 20);
    }

    #[test]
    fn a_device_that_is_not_there_is_refused() {
        if crate::torch::cuda_unavailable_reason().unwrap().is_some() {
            let error = MemoryTracker::start(Device::Cuda(0)).unwrap_err();
            assert!(matches!(error, Error::Unsupported(_)), "{error}");
        }
        assert!(MemoryTracker::start(Device::Mps).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_has_a_peak_above_what_it_takes_now() {
        let (now, peak) = (resident().unwrap(), peak_resident().unwrap());
        assert!(now > 1 << 20 && peak >= now, "{now} {peak}");
    }
}
