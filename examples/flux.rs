//! A pipeline of FLUX.1's kind, put together, saved, found by its folder, and run with its models offloaded in turn.
//!
//! Text encoder and VAE are the bundled model's; transformer and T5 are tiny and random, so that the picture is noise.
//! `FluxPipeline::from_pretrained("black-forest-labs/FLUX.1-schnell")` reads the real ones.
//!
//! `cargo run --release --example flux`

use serde_json::json;
use tch::{Device, Kind};
use tch_diffusers::models::text_encoders::T5Config;
use tch_diffusers::models::transformers::FluxTransformer2DConfig;
use tch_diffusers::nn::RandomWeights;
use tch_diffusers::pipelines::flux::FluxComponents;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{
    AutoencoderKL, CLIPTextModel, CLIPTokenizer, DiffusionPipeline, FluxPipeline, FluxTransformer2DModel, ModelMixin,
    PipelineMixin, SchedulerKind, T5EncoderModel, T5Tokenizer,
};

/// A vocabulary of letters.
fn letters() -> serde_json::Value {
    let special = ["<pad>", "</s>", "<unk>"].map(|token| json!([token, 0.0]));
    let letters = ('a'..='z').map(|letter| json!([letter, -3.0]));
    let vocab: Vec<_> = special.into_iter().chain([json!(["▁", -2.0])]).chain(letters).collect();
    json!({"model": {"type": "Unigram", "vocab": vocab}})
}

fn main() -> anyhow::Result<()> {
    let bundled = bundled_model()?;
    let vae = AutoencoderKL::from_pretrained(bundled.join("vae")).load()?;
    let text_encoder = CLIPTextModel::from_pretrained(bundled.join("text_encoder")).load()?;
    std::fs::create_dir_all("letters")?;
    std::fs::write("letters/tokenizer.json", letters().to_string())?;
    let tokenizer_2 = T5Tokenizer::from_pretrained("letters")?;

    let weights = RandomWeights::new(0, Kind::Float)?;
    let (d_model, vocab_size) = (32, tokenizer_2.vocab_size() as i64);
    let t5 = T5Config { vocab_size, d_model, d_kv: 8, d_ff: 64, num_layers: 2, num_heads: 4, ..T5Config::default() };
    let transformer = FluxTransformer2DConfig {
        in_channels: 4 * vae.config().latent_channels,
        num_layers: 2,
        num_single_layers: 2,
        attention_head_dim: 16,
        num_attention_heads: 4,
        joint_attention_dim: d_model,
        pooled_projection_dim: text_encoder.config().hidden_size,
        guidance_embeds: true,
        axes_dims_rope: vec![4, 6, 6],
        ..FluxTransformer2DConfig::default()
    };
    let shifting = json!({"use_dynamic_shifting": true, "shift": 3.0});
    let config = shifting.as_object().cloned().unwrap_or_default();
    let made = FluxPipeline::new(FluxComponents {
        vae,
        text_encoder: Some(text_encoder),
        text_encoder_2: Some(T5EncoderModel::from_weights(t5, &weights)?),
        tokenizer: Some(CLIPTokenizer::from_pretrained(bundled.join("tokenizer"))?),
        tokenizer_2: Some(tokenizer_2),
        transformer: Box::new(FluxTransformer2DModel::from_weights(transformer, &weights)?),
        scheduler: SchedulerKind::FlowMatchEulerDiscrete.from_config(&config)?,
    });
    made.save_pretrained("flux-tiny")?;

    let mut pipe = DiffusionPipeline::from_pretrained("flux-tiny").load()?;
    pipe.enable_model_cpu_offload(Device::cuda_if_available())?;
    println!("{}", pipe.class_name());
    if let DiffusionPipeline::Flux(mut pipe) = pipe {
        let call = pipe.call("a red circle").prompt_2("a red circle on a white background").height(64).width(96);
        let output = call.num_inference_steps(4).guidance_scale(3.5).max_sequence_length(64).seed(0).run()?;
        output.images.to_rgb()?[0].save("flux.png")?;
    }
    Ok(())
}
