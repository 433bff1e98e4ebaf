//! Random numbers with torch's own stream: the same seed gives the same numbers as in Python.

use super::ffi::RawGenerator;
use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// A source of random numbers with a seed and a state of its own; the twin of `torch.Generator`.
///
/// # Examples
/// ```
/// use tch_diffusers::Generator;
/// let noise = Generator::cpu(0)?.randn([3], tch::Kind::Float)?;
/// // torch.randn(3, generator=torch.Generator().manual_seed(0))
/// assert_eq!(Vec::<f32>::try_from(noise)?, [1.5409961, -0.2934289, -2.1787894]);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct Generator {
    raw: RawGenerator,
    device: Device,
    seed: u64,
}

impl Generator {
    /// A generator on `device`, seeded: `torch.Generator(device).manual_seed(seed)`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a device other than the CPU and CUDA; [`Error::Torch`] where CUDA is not there.
    pub fn new(device: Device, seed: u64) -> Result<Self> {
        Ok(Self { raw: RawGenerator::new(device, seed)?, device, seed })
    }

    pub(super) fn from_raw(raw: RawGenerator, device: Device, seed: u64) -> Self {
        Self { raw, device, seed }
    }

    /// A generator on the CPU. Its numbers are the same on every machine, so it is the one to seed pictures with.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn cpu(seed: u64) -> Result<Self> {
        Self::new(Device::Cpu, seed)
    }

    /// A generator on CUDA device `index`.
    ///
    /// # Errors
    /// [`Error::Torch`] where there is no such device.
    pub fn cuda(index: usize, seed: u64) -> Result<Self> {
        Self::new(Device::Cuda(index), seed)
    }

    /// Starts the stream anew from `seed`.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn manual_seed(&mut self, seed: u64) -> Result<()> {
        self.raw.seed(seed)?;
        self.seed = seed;
        Ok(())
    }

    /// The seed last given.
    #[must_use]
    pub fn initial_seed(&self) -> u64 {
        self.seed
    }

    /// Where the numbers are made.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// A second generator that goes on from the same state.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self { raw: self.raw.duplicate()?, device: self.device, seed: self.seed })
    }

    /// Normally distributed numbers of mean 0 and variance 1, on the generator's device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Torch`] for a dtype that has no normal distribution.
    pub fn randn(&mut self, size: impl AsRef<[i64]>, kind: Kind) -> Result<Tensor> {
        self.raw.randn(size.as_ref(), kind)
    }
}

/// Normally distributed numbers on `device`, made where the generators live, then moved.
///
/// One generator fills the whole batch; several make one item of the batch each, so that every picture can be repeated
/// alone. None uses libtorch's global generator of `device`. Mirrors `diffusers/utils/torch_utils.py::randn_tensor`.
///
/// # Errors
/// [`Error::Argument`] if there are several generators, but not one per item of the batch.
pub fn randn_tensor(size: &[i64], generators: &mut [Generator], kind: Kind, device: Device) -> Result<Tensor> {
    match generators {
        [] => Ok(Tensor::f_randn(size, (kind, device))?),
        [one] => Ok(one.randn(size, kind)?.f_to_device(device)?),
        several => {
            let (batch, item) = size.split_first().unwrap_or((&0, &[]));
            if several.len() as i64 != *batch {
                return Err(Error::Argument(format!(
                    "{} generators were given for a batch of {batch}: give one, or one per image",
                    several.len()
                )));
            }
            let item = [&[1], item].concat();
            let items = several.iter_mut().map(|g| g.randn(&item, kind)).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::f_cat(&items, 0)?.f_to_device(device)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn one_generator_per_image_repeats_each_image_alone() {
        let mut both = [Generator::cpu(1).unwrap(), Generator::cpu(2).unwrap()];
        let batch = randn_tensor(&[2, 4, 8, 8], &mut both, Kind::Float, Device::Cpu).unwrap();
        let second = Generator::cpu(2).unwrap().randn([1, 4, 8, 8], Kind::Float).unwrap();
        assert_eq!(numbers(&batch.narrow(0, 1, 1)), numbers(&second));
    }

    #[test]
    fn too_few_generators_are_refused() {
        let mut two = [Generator::cpu(1).unwrap(), Generator::cpu(2).unwrap()];
        let error = randn_tensor(&[3, 4], &mut two, Kind::Float, Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("2 generators were given for a batch of 3"), "{error}");
    }

    #[test]
    fn a_duplicate_goes_on_from_the_same_state() {
        let mut first = Generator::cpu(5).unwrap();
        let _ = first.randn([7], Kind::Float).unwrap();
        let mut second = first.duplicate().unwrap();
        let (a, b) = (first.randn([20], Kind::Float).unwrap(), second.randn([20], Kind::Float).unwrap());
        assert_eq!(numbers(&a), numbers(&b));
        second.manual_seed(5).unwrap();
        assert_eq!(second.initial_seed(), 5);
    }
}
