//! The configurations of Stable Diffusion 1.x and 2.x, as their repositories publish them in diffusers' format.

use super::SingleFileModel;
use crate::configuration_utils::ConfigMap;
use serde_json::{Value, json};

impl SingleFileModel {
    /// `unet/config.json`.
    #[must_use]
    pub fn unet_config(self) -> ConfigMap {
        let mut config = object(json!({
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "center_input_sample": false,
            "cross_attention_dim": 768,
            "down_block_types": [
                "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"
            ],
            "downsample_padding": 1,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": if self.inpaints() { 9 } else { 4 },
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
            "out_channels": 4,
            "sample_size": if self == Self::V2 { 96 } else { 64 },
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        }));
        if self.is_v2() {
            config.extend(object(json!({
                "attention_head_dim": [5, 10, 20, 20],
                "cross_attention_dim": 1024,
                "dual_cross_attention": false,
                "use_linear_projection": true,
            })));
        }
        if self == Self::V2 {
            config.extend(object(json!({
                "num_class_embeds": null,
                "only_cross_attention": false,
                "upcast_attention": true,
            })));
        }
        config
    }

    /// `vae/config.json`.
    #[must_use]
    pub fn vae_config(self) -> ConfigMap {
        let sample_size = match self {
            Self::Inpainting => 256,
            Self::V1 | Self::InpaintingV2 => 512,
            Self::V2 => 768,
        };
        object(json!({
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": sample_size,
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        }))
    }

    /// `text_encoder/config.json`.
    #[must_use]
    pub fn text_encoder_config(self) -> ConfigMap {
        let mut config = object(json!({
            "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "dropout": 0.0,
            "eos_token_id": 2,
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "pad_token_id": 1,
            "projection_dim": 768,
            "vocab_size": 49408,
        }));
        if self.is_v2() {
            config.extend(object(json!({
                "hidden_act": "gelu",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 23,
                "projection_dim": 512,
            })));
        }
        config
    }

    /// `scheduler/scheduler_config.json`.
    #[must_use]
    pub fn scheduler_config(self) -> ConfigMap {
        let mut config = object(json!({
            "_class_name": match self {
                Self::V1 | Self::InpaintingV2 => "PNDMScheduler",
                Self::V2 | Self::Inpainting => "DDIMScheduler",
            },
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": false,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": false,
            "skip_prk_steps": true,
            "steps_offset": 1,
            "trained_betas": null,
        }));
        if self == Self::V2 {
            config.insert("prediction_type".into(), "v_prediction".into());
        }
        config
    }

    /// Whether its repository misses a safety checker where there is none.
    #[must_use]
    pub fn requires_safety_checker(self) -> bool {
        !self.is_v2()
    }
}

fn object(value: Value) -> ConfigMap {
    match value {
        Value::Object(map) => map,
        _ => ConfigMap::new(),
    }
}
