//! A safety checker beside the bundled model, which has none: this one has random weights, so that it judges at random.
//! Models of the Hub that have one are looked at without further ado.
//!
//! `cargo run --release --example safety_checker`

use tch::Kind;
use tch_diffusers::image_processor::{CLIPImageProcessor, ImageSize};
use tch_diffusers::models::image_encoders::CLIPVisionConfig;
use tch_diffusers::nn::RandomWeights;
use tch_diffusers::pipelines::stable_diffusion::SafetyCheckerConfig;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{ModelMixin, StableDiffusionPipeline, StableDiffusionSafetyChecker};

fn main() -> anyhow::Result<()> {
    let vision_config = CLIPVisionConfig {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        image_size: 64,
        patch_size: 16,
        ..CLIPVisionConfig::default()
    };
    let config = SafetyCheckerConfig { vision_config: Some(vision_config), ..SafetyCheckerConfig::default() };
    let checker = StableDiffusionSafetyChecker::from_weights(config, &RandomWeights::new(5, Kind::Float)?)?;
    let side = ImageSize::Side(64);
    let extractor = CLIPImageProcessor { size: side, crop_size: side, ..CLIPImageProcessor::default() };

    let loader = StableDiffusionPipeline::from_pretrained(bundled_model()?);
    let mut pipe = loader.safety_checker(Some(checker)).feature_extractor(extractor).load()?;
    let call = pipe.call("a red star on a black background").num_images_per_prompt(2);
    let output = call.num_inference_steps(8).seed(2).run()?;
    println!("not safe: {:?}", output.nsfw_content_detected);

    pipe.safety_checker = None;
    let output = pipe.call("a red star on a black background").num_inference_steps(8).seed(2).run()?;
    println!("nobody looked: {:?}", output.nsfw_content_detected);
    output.images.to_rgb()?[0].save("star.png")?;
    Ok(())
}
