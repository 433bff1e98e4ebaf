//! One call of the pipeline: its arguments, and the denoising loop.

use super::StableDiffusionPipeline;
use super::denoise::{Callback, Denoise, StepEnd};
use super::memory_estimate::{Plan, Without};
use super::memory_report::Watch;
use super::pipeline_stable_diffusion::repeat_for_images;
use crate::configuration_utils::OneOrMany;
use crate::error::{Error, Result};
use crate::image_processor::{Images, OutputType};
use crate::models::memory::MemoryEstimate;
use crate::pipelines::Prompt;
use crate::schedulers::Timesteps;
use crate::torch::{Generator, randn_tensor};
use tch::Tensor;

/// What a call gives.
#[derive(Debug)]
pub struct StableDiffusionPipelineOutput {
    /// The pictures, in the form that was asked for.
    pub images: Images,
}

/// A call of [`StableDiffusionPipeline`] under way; its methods are named as the arguments of `__call__`.
#[must_use = "nothing is drawn before `run`"]
pub struct StableDiffusionCall<'a> {
    pipe: &'a mut StableDiffusionPipeline,
    prompt: Option<Prompt>,
    negative_prompt: Option<Prompt>,
    prompt_embeds: Option<Tensor>,
    negative_prompt_embeds: Option<Tensor>,
    height: Option<i64>,
    width: Option<i64>,
    num_inference_steps: usize,
    timesteps: Option<Vec<f64>>,
    sigmas: Option<Vec<f64>>,
    guidance_scale: f64,
    guidance_rescale: f64,
    num_images_per_prompt: i64,
    eta: f64,
    generators: Generators<'a>,
    latents: Option<Tensor>,
    clip_skip: Option<usize>,
    output_type: OutputType,
    callback: Option<Callback<'a>>,
}

/// Where a call's noise comes from.
enum Generators<'a> {
    Global,
    Seed(u64),
    Given(&'a mut [Generator]),
}

impl<'a> StableDiffusionCall<'a> {
    pub(super) fn new(pipe: &'a mut StableDiffusionPipeline, prompt: Option<Prompt>) -> Self {
        Self {
            pipe,
            prompt,
            negative_prompt: None,
            prompt_embeds: None,
            negative_prompt_embeds: None,
            height: None,
            width: None,
            num_inference_steps: 50,
            timesteps: None,
            sigmas: None,
            guidance_scale: 7.5,
            guidance_rescale: 0.0,
            num_images_per_prompt: 1,
            eta: 0.0,
            generators: Generators::Global,
            latents: None,
            clip_skip: None,
            output_type: OutputType::Image,
            callback: None,
        }
    }

    pub(super) fn prompt_embeds(mut self, prompt_embeds: Tensor) -> Self {
        self.prompt_embeds = Some(prompt_embeds);
        self
    }

    /// What the picture should not show: one text for one prompt, a list for a list. Nothing by default.
    pub fn negative_prompt(mut self, negative_prompt: impl Into<Prompt>) -> Self {
        self.negative_prompt = Some(negative_prompt.into());
        self
    }

    /// The negative prompts' embeddings, shaped like the prompts'.
    pub fn negative_prompt_embeds(mut self, embeds: Tensor) -> Self {
        self.negative_prompt_embeds = Some(embeds);
        self
    }

    /// The picture's height in pixels, a multiple of 8; the model's own by default.
    pub fn height(mut self, pixels: i64) -> Self {
        self.height = Some(pixels);
        self
    }

    /// The picture's width in pixels, a multiple of 8; the model's own by default.
    pub fn width(mut self, pixels: i64) -> Self {
        self.width = Some(pixels);
        self
    }

    /// How many denoising steps; 50 by default.
    pub fn num_inference_steps(mut self, steps: usize) -> Self {
        self.num_inference_steps = steps;
        self
    }

    /// Just these timesteps, in descending order, for schedulers that take them.
    pub fn timesteps(mut self, timesteps: &[f64]) -> Self {
        self.timesteps = Some(timesteps.to_vec());
        self
    }

    /// Just these noise levels, in descending order, for schedulers that take them.
    pub fn sigmas(mut self, sigmas: &[f64]) -> Self {
        self.sigmas = Some(sigmas.to_vec());
        self
    }

    /// How much the prompt counts; 7.5 by default, and no guidance at 1 or below.
    pub fn guidance_scale(mut self, scale: f64) -> Self {
        self.guidance_scale = scale;
        self
    }

    /// How far guidance's overexposure is corrected, 0 to 1; see [`super::rescale_noise_cfg`]. 0 by default.
    pub fn guidance_rescale(mut self, rescale: f64) -> Self {
        self.guidance_rescale = rescale;
        self
    }

    /// How many pictures of each prompt; 1 by default.
    pub fn num_images_per_prompt(mut self, images: i64) -> Self {
        self.num_images_per_prompt = images;
        self
    }

    /// DDIM's eta, 0 to 1; other schedulers pass it over. 0 by default.
    pub fn eta(mut self, eta: f64) -> Self {
        self.eta = eta;
        self
    }

    /// A generator on the CPU with this seed: the same picture each time, and the same as diffusers'.
    pub fn seed(mut self, seed: u64) -> Self {
        self.generators = Generators::Seed(seed);
        self
    }

    /// Where noise comes from; libtorch's global generator by default.
    pub fn generator(mut self, generator: &'a mut Generator) -> Self {
        self.generators = Generators::Given(std::slice::from_mut(generator));
        self
    }

    /// One generator for each picture.
    pub fn generators(mut self, generators: &'a mut [Generator]) -> Self {
        self.generators = Generators::Given(generators);
        self
    }

    /// The noise to start from, `[batch, channels, height / 8, width / 8]`, with variance 1.
    pub fn latents(mut self, latents: Tensor) -> Self {
        self.latents = Some(latents);
        self
    }

    /// How many of the text encoder's last layers are left out; none by default.
    pub fn clip_skip(mut self, layers: usize) -> Self {
        self.clip_skip = Some(layers);
        self
    }

    /// What comes out; 8-bit pictures by default.
    pub fn output_type(mut self, output_type: OutputType) -> Self {
        self.output_type = output_type;
        self
    }

    /// Called after each step; may change what it sees, or interrupt. An error ends the call.
    pub fn callback_on_step_end(mut self, callback: impl FnMut(&mut StepEnd) -> Result<()> + 'a) -> Self {
        self.callback = Some(Box::new(callback));
        self
    }

    /// Draws.
    ///
    /// # Errors
    /// [`Error::Argument`] for arguments that do not fit together; [`Error::OutOfMemory`] where a model has no room;
    /// whatever a callback fails with. The pipeline can be called again afterwards.
    pub fn run(mut self) -> Result<StableDiffusionPipelineOutput> {
        let _no_grad = tch::no_grad_guard();
        let mut watch = Watch::start(self.pipe.device());
        let output = self.draw(&mut watch);
        self.pipe.last_call = watch.finish(output.is_err());
        self.pipe.maybe_free_model_hooks();
        output
    }

    /// What the call will take on the device where it is done, with the techniques that are switched on.
    ///
    /// # Errors
    /// [`Error::Argument`] for arguments that do not fit together; [`Error::Unsupported`] for a UNet without modules.
    pub fn estimate_memory(&self) -> Result<MemoryEstimate> {
        let (height, width) = self.size()?;
        self.check(height, width)?;
        self.pipe.estimate(self.plan(height, width), Without::default())
    }

    fn plan(&self, height: i64, width: i64) -> Plan {
        Plan {
            height,
            width,
            prompts: self.batch(),
            images_per_prompt: self.num_images_per_prompt,
            guides: self.pipe.guides(self.guidance_scale),
            encodes: self.prompt.is_some(),
            decodes: self.output_type != OutputType::Latent,
            dtype: self.pipe.text_encoder_kind(),
        }
    }

    fn draw(&mut self, watch: &mut Watch) -> Result<StableDiffusionPipelineOutput> {
        let (height, width) = self.size()?;
        self.check(height, width)?;
        watch.draws(self.plan(height, width));
        let batch = self.batch() * self.num_images_per_prompt;
        let device = self.pipe.device();
        let prompt_embeds = self.embeds()?;
        let prompt_embeds = prompt_embeds.f_to_device(device)?;
        watch.end_stage();

        let mut seeded = match self.generators {
            Generators::Seed(seed) => vec![Generator::cpu(seed)?],
            _ => vec![],
        };
        let generators = match &mut self.generators {
            Generators::Given(given) => &mut **given,
            _ => &mut seeded,
        };

        self.pipe.scheduler.set_timesteps(match (&self.timesteps, &self.sigmas) {
            (Some(_), Some(_)) => return Err(Error::Argument("give either `timesteps` or `sigmas`, not both".into())),
            (Some(timesteps), None) => Timesteps::Timesteps(timesteps),
            (None, Some(sigmas)) => Timesteps::Sigmas(sigmas),
            (None, None) => Timesteps::Steps(self.num_inference_steps),
        })?;
        let factor = self.pipe.vae_scale_factor();
        let shape = [batch, self.pipe.unet.config().in_channels, height / factor, width / factor];
        // The given latents stay in place: giving them back here would puzzle the count of the call's memory.
        let latents = match &self.latents {
            Some(latents) => latents.f_to_device(device)?,
            None => randn_tensor(&shape, generators, prompt_embeds.kind(), device)?,
        };
        let latents = latents.f_mul_scalar(self.pipe.scheduler.init_noise_sigma())?;

        let denoise =
            Denoise { eta: self.eta, guidance_rescale: self.guidance_rescale, callback: self.callback.take() };
        let latents = denoise.run(self.pipe, latents, prompt_embeds, self.guidance_scale, generators)?;
        watch.end_stage();
        if self.output_type == OutputType::Latent {
            return Ok(StableDiffusionPipelineOutput { images: Images::Latent(latents) });
        }
        let latents = latents.f_div_scalar(self.pipe.vae.config().scaling_factor)?;
        let image = self.pipe.decode(&latents)?;
        let images = self.pipe.image_processor.postprocess(&image, self.output_type)?;
        watch.end_stage();
        Ok(StableDiffusionPipelineOutput { images })
    }

    /// Height and width in pixels; the model's own where none is given.
    fn size(&self) -> Result<(i64, i64)> {
        if let (Some(height), Some(width)) = (self.height, self.width) {
            return Ok((height, width));
        }
        let factor = self.pipe.vae_scale_factor();
        // Differs from diffusers: there, a height without a width is passed over, and the other way round.
        let (height, width) = match &self.pipe.unet.config().sample_size {
            Some(OneOrMany::One(side)) => (*side, *side),
            Some(OneOrMany::Many(sides)) if sides.len() == 2 => (sides[0], sides[1]),
            _ => return Err(Error::Argument("the UNet has no `sample_size`: give `height` and `width`".into())),
        };
        Ok((self.height.unwrap_or(height * factor), self.width.unwrap_or(width * factor)))
    }

    /// How many prompts there are.
    fn batch(&self) -> i64 {
        match (&self.prompt, &self.prompt_embeds) {
            (Some(prompt), _) => prompt.texts().len() as i64,
            (None, Some(embeds)) => embeds.size().first().copied().unwrap_or(0),
            (None, None) => 0,
        }
    }

    fn check(&self, height: i64, width: i64) -> Result<()> {
        let refuse = |text: String| Err(Error::Argument(text));
        if height <= 0 || width <= 0 || height % 8 != 0 || width % 8 != 0 {
            return refuse(format!("`height` and `width` have to be divisible by 8, but are {height} and {width}"));
        }
        if self.batch() == 0 {
            return refuse("there is no prompt".into());
        }
        if self.num_images_per_prompt < 1 {
            return refuse(format!(
                "`num_images_per_prompt` has to be at least 1, but is {}",
                self.num_images_per_prompt
            ));
        }
        if self.negative_prompt.is_some() && self.negative_prompt_embeds.is_some() {
            return refuse("give either `negative_prompt` or `negative_prompt_embeds`, not both".into());
        }
        if let (Some(embeds), Some(negative)) = (&self.prompt_embeds, &self.negative_prompt_embeds)
            && embeds.size() != negative.size()
        {
            let (embeds, negative) = (embeds.size(), negative.size());
            return refuse(format!("`prompt_embeds` is {embeds:?}, but `negative_prompt_embeds` is {negative:?}"));
        }
        match (&self.prompt, &self.negative_prompt) {
            (Some(Prompt::One(_)), Some(Prompt::Many(_))) | (Some(Prompt::Many(_)), Some(Prompt::One(_))) => {
                refuse("`negative_prompt` has to be a text where `prompt` is one, and a list where it is a list".into())
            }
            (_, Some(negative)) if negative.texts().len() as i64 != self.batch() => {
                refuse(format!("there are {} negative prompts for {} prompts", negative.texts().len(), self.batch()))
            }
            _ => Ok(()),
        }
    }

    /// What the UNet is given: the prompts' embeddings, and before them, with guidance, the negative prompts'.
    fn embeds(&self) -> Result<Tensor> {
        let (pipe, images) = (&*self.pipe, self.num_images_per_prompt);
        let prompt_embeds = match (&self.prompt, &self.prompt_embeds) {
            (Some(prompt), None) => pipe.encode_prompt(&prompt.texts(), images, self.clip_skip)?,
            (None, Some(embeds)) => repeat_for_images(&embeds.f_to_kind(pipe.text_encoder_kind())?, images)?,
            _ => return Err(Error::Argument("give either a prompt or its embeddings, not both".into())),
        };
        if !pipe.guides(self.guidance_scale) {
            return Ok(prompt_embeds);
        }
        let negative = match (&self.negative_prompt_embeds, &self.negative_prompt) {
            (Some(embeds), _) => repeat_for_images(&embeds.f_to_kind(prompt_embeds.kind())?, images)?,
            (None, Some(negative)) => pipe.encode_prompt(&negative.texts(), images, None)?,
            (None, None) => pipe.encode_prompt(&vec![""; self.batch() as usize], images, None)?,
        };
        Ok(Tensor::f_cat(&[negative, prompt_embeds], 0)?)
    }
}
