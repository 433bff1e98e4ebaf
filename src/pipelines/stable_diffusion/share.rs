//! Several pipelines over one set of weights, for several threads.

use super::StableDiffusionPipeline;
use super::traced::Traced;
use crate::error::{Error, Result};
use crate::models::ModelMixin;
use crate::schedulers::SchedulerKind;

impl StableDiffusionPipeline {
    /// A second pipeline over the same weights, for another thread: a pipeline draws one picture at a time, and so a server
    /// has one for each of its threads.
    ///
    /// No weight is copied. Everything else is the second pipeline's own: its scheduler, configured as this one's is now, the
    /// techniques, which begin as they are set here, and the report of its calls. What is moved, cast or switched on in one
    /// of them later does not reach the other. Memory that a report measures on the CPU is counted by thread, on CUDA by
    /// device.
    ///
    /// # Examples
    /// ```
    /// use tch_diffusers::{StableDiffusionPipeline, utils::assets::bundled_model};
    /// let pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
    /// let threads = ["a red circle", "a blue ring"].map(|prompt| {
    ///     let pipe = pipe.share();
    ///     std::thread::spawn(move || pipe?.call(prompt).num_inference_steps(2).seed(1).run())
    /// });
    /// for thread in threads {
    ///     let output = thread.join().expect("no thread panics")?;
    ///     assert_eq!(output.images.to_rgb()?[0].dimensions(), (128, 128));
    /// }
    /// # Ok::<(), tch_diffusers::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] while offloading, layerwise casting or a hook of one's own is on, naming the model: they lend
    /// weights to one pipeline. Share first, and switch on in each. [`Error::Unsupported`] for a UNet that cannot be shared,
    /// a traced model, and a scheduler that is not the library's.
    pub fn share(&self) -> Result<Self> {
        if !self.traced.is_empty() {
            let text = "a pipeline with a traced text encoder or decoder cannot be shared: set traced models in each";
            return Err(Error::Unsupported(text.into()));
        }
        let text_encoder = self.text_encoder.share().map_err(|error| error.within("text_encoder"))?;
        let unet = self.unet.share().map_err(|error| error.within("unet"))?;
        let vae = self.vae.share().map_err(|error| error.within("vae"))?;
        let checker = self.safety_checker.as_ref().map(ModelMixin::share).transpose();
        let safety_checker = checker.map_err(|error| error.within("safety_checker"))?;
        let kind = self.scheduler.class_name().parse::<SchedulerKind>()?;
        Ok(Self {
            vae,
            text_encoder,
            tokenizer: self.tokenizer.clone(),
            unet,
            scheduler: kind.from_config(self.scheduler.config())?,
            safety_checker,
            feature_extractor: self.feature_extractor.clone(),
            requires_safety_checker: self.requires_safety_checker,
            progress_bar: self.progress_bar.clone(),
            image_processor: self.image_processor,
            model_offload: None,
            traced: Traced::default(),
            last_call: None,
        })
    }
}
