//! From diffusers' models to the one file that their authors would have published.
//!
//! Mirrors `scripts/convert_diffusers_to_original_stable_diffusion.py` of diffusers.

use super::keys::{OPEN_CLIP_PROJECTIONS, VAE_BLOCKS, ldm_clip_key, ldm_open_clip_key, ldm_unet_key, ldm_vae_key};
use crate::error::{Error, Result};
use crate::loaders::KeyMap;
use std::collections::BTreeMap;
use tch::Tensor;

/// What tells the text encoder of Stable Diffusion 2.x from that of 1.x: it is deeper.
const DEEP: &str = "encoder.layers.22.layer_norm2.bias";

/// The last layers of models that such files hold: four blocks, two layers on the way down and three on the way up.
const LAST: [(&str, [&str; 2]); 2] = [
    ("unet", ["down_blocks.3.resnets.1.conv1.weight", "up_blocks.3.resnets.2.conv1.weight"]),
    ("vae", ["encoder.down_blocks.3.resnets.1.conv1.weight", "decoder.up_blocks.3.resnets.2.conv1.weight"]),
];

/// Blocks of the UNet each way, and the layers in each of them.
const UNET_BLOCKS: usize = 4;
const LAYERS_DOWN: usize = 2;
const LAYERS_UP: usize = 3;

/// The weights of Stable Diffusion's models, by the keys that the models have for them.
#[derive(Debug)]
pub struct OriginalCheckpoint {
    /// The UNet's.
    pub unet: Vec<(String, Tensor)>,
    /// The VAE's.
    pub vae: Vec<(String, Tensor)>,
    /// The text encoder's, without `text_model.`.
    pub text_encoder: Vec<(String, Tensor)>,
}

/// The weights under the names, and in the shapes, of a single file of Stable Diffusion 1.x or 2.x, sorted.
///
/// # Errors
/// [`Error::Unsupported`] naming a weight that no such file has: the models have to have four blocks of two layers each.
pub fn original_state_dict(models: OriginalCheckpoint) -> Result<Vec<(String, Tensor)>> {
    let is_open_clip = models.text_encoder.iter().any(|(key, _)| key == DEEP);
    let mut weights = BTreeMap::new();
    for (key, weight) in models.unet {
        weights.insert(original("unet", &key, original_unet_key, ldm_unet_key)?, weight);
    }
    for (key, weight) in models.vae {
        let name = original("vae", &key, original_vae_key, ldm_vae_key)?;
        // The authors' attention is made of convolutions of one pixel.
        let is_map = name.contains(".mid.attn_1.") && weight.dim() == 2;
        let weight = if is_map { weight.f_unsqueeze(-1)?.f_unsqueeze(-1)? } else { weight };
        weights.insert(name, weight);
    }
    match is_open_clip {
        true => open_clip(models.text_encoder, &mut weights)?,
        false => {
            for (key, weight) in models.text_encoder {
                weights.insert(original("text_encoder", &key, original_clip_key, ldm_clip_key)?, weight);
            }
        }
    }
    for ((model, keys), name) in LAST.iter().zip([original_unet_key as KeyMap, original_vae_key]) {
        if let Some(key) = keys.iter().find(|key| name(key).is_none_or(|name| !weights.contains_key(&name))) {
            return Err(Error::Unsupported(format!(
                "the {model} has no `{key}`: without four blocks of two layers it has no place in a single file of Stable \
                 Diffusion 1.x or 2.x"
            )));
        }
    }
    Ok(weights.into_iter().collect())
}

/// The file's name of `key`, which has to lead back to it.
fn original(model: &str, key: &str, name: KeyMap, back: KeyMap) -> Result<String> {
    let found = name(key).filter(|name| back(name).as_deref() == Some(key));
    found.ok_or_else(|| {
        Error::Unsupported(format!(
            "`{key}` of the {model} has no place in a single file of Stable Diffusion 1.x or 2.x"
        ))
    })
}

/// Queries, keys and values of each layer become one weight.
fn open_clip(text_encoder: Vec<(String, Tensor)>, weights: &mut BTreeMap<String, Tensor>) -> Result<()> {
    let mut projections: BTreeMap<String, [Option<Tensor>; 3]> = BTreeMap::new();
    for (key, weight) in text_encoder {
        let part = OPEN_CLIP_PROJECTIONS.iter().find_map(|(whole, parts)| {
            let number = parts.iter().position(|part| key.ends_with(&format!(".{part}")))?;
            Some((format!("{}{whole}", key.strip_suffix(parts[number])?), number))
        });
        match part {
            Some((whole, number)) => projections.entry(whole).or_default()[number] = Some(weight),
            None => {
                weights.insert(original("text_encoder", &key, original_open_clip_key, ldm_open_clip_key)?, weight);
            }
        }
    }
    for (key, parts) in projections {
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        if parts.len() != 3 {
            return Err(Error::Config(format!("`{key}` of the text_encoder lacks queries, keys or values")));
        }
        let name = original("text_encoder", &key, original_open_clip_key, ldm_open_clip_key)?;
        weights.insert(name, Tensor::f_cat(&parts, 0)?);
    }
    Ok(())
}

fn original_unet_key(key: &str) -> Option<String> {
    let plain = [
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("mid_block.attentions.0.", "middle_block.1."),
    ];
    let plain = plain.iter().find_map(|(own, name)| Some(format!("{name}{}", key.strip_prefix(own)?)));
    let name = plain.or_else(|| of_block(key))?;
    Some(format!("model.diffusion_model.{name}"))
}

/// A weight of one of the UNet's blocks.
fn of_block(key: &str) -> Option<String> {
    let (side, rest) = key.split_once('.')?;
    if side == "mid_block" {
        let (layer, rest) = rest.strip_prefix("resnets.")?.split_once('.')?;
        let place = match layer {
            "0" => 0,
            "1" => 2,
            _ => return None,
        };
        return Some(format!("middle_block.{place}.{}", of_resnet(rest)?));
    }
    let (block, rest) = rest.split_once('.')?;
    let (kind, rest) = rest.split_once('.')?;
    let (layer, rest) = rest.split_once('.')?;
    let (block, layer): (usize, usize) = (block.parse().ok()?, layer.parse().ok()?);
    if block >= UNET_BLOCKS || layer >= if side == "down_blocks" { LAYERS_DOWN } else { LAYERS_UP } {
        return None;
    }
    let first = block * LAYERS_UP;
    let number = first + layer;
    match (side, kind) {
        ("down_blocks", "resnets") => Some(format!("input_blocks.{}.0.{}", number + 1, of_resnet(rest)?)),
        ("down_blocks", "attentions") => Some(format!("input_blocks.{}.1.{rest}", number + 1)),
        ("down_blocks", "downsamplers") => {
            Some(format!("input_blocks.{}.0.op.{}", first + 3, rest.strip_prefix("conv.")?))
        }
        ("up_blocks", "resnets") => Some(format!("output_blocks.{number}.0.{}", of_resnet(rest)?)),
        ("up_blocks", "attentions") => Some(format!("output_blocks.{number}.1.{rest}")),
        // The first block has no attention before it.
        ("up_blocks", "upsamplers") => {
            Some(format!("output_blocks.{}.{}.{rest}", first + 2, if block == 0 { 1 } else { 2 }))
        }
        _ => None,
    }
}

fn of_resnet(rest: &str) -> Option<String> {
    let names = [
        ("norm1.", "in_layers.0."),
        ("conv1.", "in_layers.2."),
        ("time_emb_proj.", "emb_layers.1."),
        ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."),
        ("conv_shortcut.", "skip_connection."),
    ];
    names.iter().find_map(|(own, name)| Some(format!("{name}{}", rest.strip_prefix(own)?)))
}

fn original_vae_key(key: &str) -> Option<String> {
    const START: &str = "first_stage_model";
    if key.starts_with("quant_conv.") || key.starts_with("post_quant_conv.") {
        return Some(format!("{START}.{key}"));
    }
    let (half, rest) = key.split_once('.')?;
    let rest = rest.replace("conv_shortcut", "nin_shortcut");
    let plain = [
        ("conv_norm_out.", "norm_out."),
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
        ("mid_block.attentions.0.to_q.", "mid.attn_1.q."),
        ("mid_block.attentions.0.to_k.", "mid.attn_1.k."),
        ("mid_block.attentions.0.to_v.", "mid.attn_1.v."),
        ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
    ];
    if let Some(name) = plain.iter().find_map(|(own, name)| Some(format!("{name}{}", rest.strip_prefix(own)?))) {
        return Some(format!("{START}.{half}.{name}"));
    }
    let Some((side, inner)) = rest.split_once("_blocks.") else { return Some(format!("{START}.{half}.{rest}")) };
    let (block, inner) = inner.split_once('.')?;
    let block: usize = block.parse().ok()?;
    let block = if side == "up" { (VAE_BLOCKS - 1).checked_sub(block)? } else { block };
    let inner = match inner.split_once('.')? {
        ("resnets", rest) => format!("block.{rest}"),
        ("downsamplers", rest) => format!("downsample.{}", rest.strip_prefix("0.")?),
        ("upsamplers", rest) => format!("upsample.{}", rest.strip_prefix("0.")?),
        _ => return None,
    };
    Some(format!("{START}.{half}.{side}.{block}.{inner}"))
}

fn original_clip_key(key: &str) -> Option<String> {
    Some(format!("cond_stage_model.transformer.text_model.{key}"))
}

fn original_open_clip_key(key: &str) -> Option<String> {
    let name = match key {
        "embeddings.token_embedding.weight" => "token_embedding.weight".into(),
        "embeddings.position_embedding.weight" => "positional_embedding".into(),
        _ => match key.strip_prefix("encoder.layers.") {
            Some(rest) => {
                let (layer, rest) = rest.split_once('.')?;
                let names = [
                    ("layer_norm1.", "ln_1."),
                    ("layer_norm2.", "ln_2."),
                    ("mlp.fc1.", "mlp.c_fc."),
                    ("mlp.fc2.", "mlp.c_proj."),
                    ("self_attn.", "attn."),
                ];
                let rest = names.iter().find_map(|(own, name)| Some(format!("{name}{}", rest.strip_prefix(own)?)))?;
                format!("transformer.resblocks.{layer}.{rest}")
            }
            None => format!("ln_final.{}", key.strip_prefix("final_layer_norm.")?),
        },
    };
    Some(format!("cond_stage_model.model.{name}"))
}
