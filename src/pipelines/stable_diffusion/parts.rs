//! What techniques work on in Stable Diffusion.

use super::StableDiffusionPipeline;
use crate::error::{Error, Result};
use crate::models::unets::UNet2DConditionModel;
use crate::pipelines::shared_methods::parts_by_fields;
use crate::pipelines::{Parts, PipelineModel};

impl Parts for StableDiffusionPipeline {
    fn models(&self) -> Vec<PipelineModel> {
        let unet = self.unet.tree().map(|tree| PipelineModel::of_node::<UNet2DConditionModel>("unet", tree));
        let text_encoder = PipelineModel::new("text_encoder", &self.text_encoder);
        let vae = PipelineModel::new("vae", &self.vae);
        let checker = self.safety_checker.as_ref();
        let checker = checker.map(|checker| PipelineModel::new("safety_checker", checker).staying());
        [Some(text_encoder), unet, Some(vae), checker].into_iter().flatten().collect()
    }

    fn denoiser(&self, technique: &str) -> Result<PipelineModel> {
        let refusal = || Error::Unsupported(format!("{technique} needs a UNet with modules; this one has none"));
        let tree = self.unet.tree().ok_or_else(refusal)?;
        Ok(PipelineModel::of_node::<UNet2DConditionModel>("unet", tree))
    }

    parts_by_fields!();
}
