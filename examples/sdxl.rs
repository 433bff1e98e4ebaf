//! Stable Diffusion XL: the base model does part of the denoising, the refiner the rest.
//!
//! VAE, first text encoder and tokenizer are the bundled model's; the UNets and the second text encoder are tiny and random, so
//! that the picture is noise. `StableDiffusionXLPipeline::from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")` reads the
//! real ones.
//!
//! `cargo run --release --example sdxl`

use anyhow::bail;
use serde_json::json;
use tch::{Device, Kind};
use tch_diffusers::configuration_utils::{ConfigMap, from_map};
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::models::text_encoders::CLIPTextConfig;
use tch_diffusers::models::unets::UNet2DConditionConfig;
use tch_diffusers::nn::RandomWeights;
use tch_diffusers::pipelines::stable_diffusion_xl::StableDiffusionXLComponents;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{
    AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, ModelMixin, PipelineMixin, SchedulerKind,
    StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel,
};

/// Channels of the second text encoder.
const HIDDEN: i64 = 32;

/// A UNet that is told `numbers` sizes and scores, and reads text of `cross_attention_dim` channels.
fn unet(numbers: i64, cross_attention_dim: i64) -> tch_diffusers::Result<UNet2DConditionModel> {
    let config = json!({
        "sample_size": 16, "block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": cross_attention_dim, "attention_head_dim": [2, 4], "use_linear_projection": true,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * numbers + HIDDEN,
    });
    let config: UNet2DConditionConfig = from_map(config.as_object().unwrap_or(&ConfigMap::new()))?;
    UNet2DConditionModel::from_weights(config, &RandomWeights::new(0, Kind::Float)?)
}

/// The base model, or the refiner, which has the second text encoder alone.
fn components(is_refiner: bool) -> tch_diffusers::Result<StableDiffusionXLComponents> {
    let bundled = bundled_model()?;
    let tokenizer = || CLIPTokenizer::from_pretrained(bundled.join("tokenizer"));
    let text_encoder = CLIPTextModel::from_pretrained(bundled.join("text_encoder")).load()?;
    let (own, both) = (text_encoder.config().clone(), text_encoder.config().hidden_size + HIDDEN);
    let second = CLIPTextConfig { hidden_size: HIDDEN, projection_dim: Some(HIDDEN), ..own };
    let second = CLIPTextModelWithProjection::from_weights(second, &RandomWeights::new(1, Kind::Float)?)?;
    let betas = json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1});
    Ok(StableDiffusionXLComponents {
        vae: AutoencoderKL::from_pretrained(bundled.join("vae")).load()?,
        text_encoder: Some(text_encoder).filter(|_| !is_refiner),
        text_encoder_2: Some(second),
        tokenizer: if is_refiner { None } else { Some(tokenizer()?) },
        tokenizer_2: Some(tokenizer()?),
        unet: Box::new(if is_refiner { unet(5, HIDDEN)? } else { unet(6, both)? }),
        scheduler: SchedulerKind::EulerDiscrete.from_config(betas.as_object().unwrap_or(&ConfigMap::new()))?,
        force_zeros_for_empty_prompt: !is_refiner,
        requires_aesthetics_score: is_refiner,
    })
}

fn main() -> anyhow::Result<()> {
    let mut base = StableDiffusionXLPipeline::new(components(false)?);
    let mut refiner = StableDiffusionXLImg2ImgPipeline::new(components(true)?);
    base.enable_model_cpu_offload(Device::cuda_if_available())?;
    refiner.enable_model_cpu_offload(Device::cuda_if_available())?;

    let prompt = "a red circle on a white background";
    let call = base.call(prompt).prompt_2("a red circle").original_size(512, 512).num_inference_steps(10).seed(0);
    let Images::Latent(latents) = call.denoising_end(0.8).output_type(OutputType::Latent).run()?.images else {
        bail!("latents were asked for");
    };
    let call = refiner.call(prompt, latents).denoising_start(0.8).aesthetic_score(6.5).num_inference_steps(10);
    call.seed(0).run()?.images.to_rgb()?[0].save("sdxl.png")?;
    Ok(())
}
