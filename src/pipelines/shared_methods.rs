//! Methods that pipelines, their loaders and their calls have alike.

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

/// The methods of a call, over its `arguments`, that are the same where a UNet denoises.
macro_rules! unet_arguments {
    () => {
        /// How many denoising steps; 50 by default.
        pub fn num_inference_steps(mut self, steps: usize) -> Self {
            self.arguments.num_inference_steps = steps;
            self
        }

        /// Just these timesteps, in descending order, for schedulers that take them.
        pub fn timesteps(mut self, timesteps: &[f64]) -> Self {
            self.arguments.timesteps = Some(timesteps.to_vec());
            self
        }

        /// Just these noise levels, in descending order, for schedulers that take them.
        pub fn sigmas(mut self, sigmas: &[f64]) -> Self {
            self.arguments.sigmas = Some(sigmas.to_vec());
            self
        }

        /// DDIM's eta, 0 to 1; other schedulers pass it over. 0 by default.
        pub fn eta(mut self, eta: f64) -> Self {
            self.arguments.eta = eta;
            self
        }
    };
}

/// Methods of a loader, each of which passes a component in. Where a component may be left out, its type is an `Option`.
macro_rules! passes_components {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {$(
        $(#[$doc])*
        pub fn $name(mut self, $name: impl Into<$type>) -> Self {
            self.passed.$name = Some($name.into());
            self
        }
    )*};
}

/// The methods of [`Parts`](super::Parts) for a pipeline with fields `vae` and `model_offload`.
macro_rules! parts_by_fields {
    () => {
        fn autoencoder(&self) -> &$crate::models::autoencoders::AutoencoderKL {
            &self.vae
        }

        fn autoencoder_mut(&mut self) -> &mut $crate::models::autoencoders::AutoencoderKL {
            &mut self.vae
        }

        fn model_offload(&self) -> Option<&$crate::hooks::ModelOffload> {
            self.model_offload.as_ref()
        }

        fn model_offload_mut(&mut self) -> &mut Option<$crate::hooks::ModelOffload> {
            &mut self.model_offload
        }
    };
}

/// What a pipeline that is another one with a call of its own, `$pipeline(Inner)`, has of that other one: its components by
/// `Deref`, ways there and back, and its way of saving.
macro_rules! is_another_pipeline {
    ($pipeline:ty, $inner:ty) => {
        impl $pipeline {
            /// Writes the pipeline to `folder`, so that diffusers reads it back.
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($inner), "::save_pretrained`].")]
            pub fn save_pretrained(&self, folder: impl AsRef<std::path::Path>) -> $crate::error::Result<()> {
                self.save_pretrained_with(folder, &$crate::loaders::SaveOptions::default())
            }

            /// As `save_pretrained`, with a limit for the size of each file of weights, or a variant in their names.
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($inner), "::save_pretrained_with`].")]
            pub fn save_pretrained_with(
                &self,
                folder: impl AsRef<std::path::Path>,
                options: &$crate::loaders::SaveOptions,
            ) -> $crate::error::Result<()> {
                self.0.save_as(Self::CLASS_NAME, folder.as_ref(), options)
            }
        }

        impl std::ops::Deref for $pipeline {
            type Target = $inner;

            fn deref(&self) -> &$inner {
                &self.0
            }
        }

        impl std::ops::DerefMut for $pipeline {
            fn deref_mut(&mut self) -> &mut $inner {
                &mut self.0
            }
        }

        impl From<$inner> for $pipeline {
            fn from(pipe: $inner) -> Self {
                Self(pipe)
            }
        }

        impl From<$pipeline> for $inner {
            fn from(pipe: $pipeline) -> Self {
                pipe.0
            }
        }
    };
}

pub(super) use {common_arguments, is_another_pipeline, parts_by_fields, passes_components, unet_arguments};
