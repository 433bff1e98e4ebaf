//! Where a call's noise comes from, and what else all calls are told alike.

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

/// The methods of a call, over its `arguments`, that are the same for all pipelines.
macro_rules! common_arguments {
    () => {
        /// How many pictures of each prompt; 1 by default.
        pub fn num_images_per_prompt(mut self, images: i64) -> Self {
            self.arguments.num_images_per_prompt = images;
            self
        }

        /// A generator on the CPU with this seed: the same picture each time, and the same as diffusers'.
        pub fn seed(mut self, seed: u64) -> Self {
            self.arguments.generators = Generators::Seed(seed);
            self
        }

        /// Where noise comes from; libtorch's global generator by default.
        pub fn generator(mut self, generator: &'a mut Generator) -> Self {
            self.arguments.generators = Generators::Given(std::slice::from_mut(generator));
            self
        }

        /// One generator for each picture.
        pub fn generators(mut self, generators: &'a mut [Generator]) -> Self {
            self.arguments.generators = Generators::Given(generators);
            self
        }

        /// What comes out; 8-bit pictures by default.
        pub fn output_type(mut self, output_type: OutputType) -> Self {
            self.arguments.output_type = output_type;
            self
        }
    };
}

pub(super) use common_arguments;
