//! Where a call's noise comes from.

use crate::error::Result;
use crate::torch::Generator;

/// What a call was told.
#[derive(Default)]
pub(super) enum Generators<'a> {
    /// libtorch's global generator.
    #[default]
    Global,
    /// One on the CPU with this seed.
    Seed(u64),
    /// These: one, or one for each picture.
    Given(&'a mut [Generator]),
}

impl Generators<'_> {
    /// The generators; `seeded` keeps one that is made.
    pub(super) fn resolve<'s>(&'s mut self, seeded: &'s mut Vec<Generator>) -> Result<&'s mut [Generator]> {
        match self {
            Self::Given(given) => Ok(given),
            Self::Seed(seed) => {
                seeded.push(Generator::cpu(*seed)?);
                Ok(seeded)
            }
            Self::Global => Ok(&mut []),
        }
    }
}
