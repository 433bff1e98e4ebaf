//! The names that such a file has for the weights, and those that the models have for them.
//!
//! Mirrors `convert_ldm_unet_checkpoint`, `convert_ldm_vae_checkpoint`, `convert_ldm_clip_checkpoint` and
//! `convert_open_clip_checkpoint` of `diffusers/loaders/single_file_utils.py` at 0.42.1.

/// Layers in each block of the UNet, with what halves or doubles the picture.
const LAYERS: usize = 3;

/// Blocks of the VAE on the way up.
pub(super) const VAE_BLOCKS: usize = 4;

/// The layer of Stable Diffusion 2.x's text encoder that nothing is taken from: diffusers leaves it out.
const UNUSED_LAYER: &str = "23";

/// The UNet's name of a key of such a file; `None` for what belongs to another model.
#[must_use]
pub fn ldm_unet_key(key: &str) -> Option<String> {
    let rest = key.strip_prefix("model.diffusion_model.")?;
    let (part, rest) = rest.split_once('.')?;
    match part {
        "time_embed" => renamed(rest, &[("0", "time_embedding.linear_1"), ("2", "time_embedding.linear_2")]),
        "out" => renamed(rest, &[("0", "conv_norm_out"), ("2", "conv_out")]),
        "middle_block" => {
            let (place, rest) = rest.split_once('.')?;
            match place {
                "0" => Some(format!("mid_block.resnets.0.{}", resnet(rest)?)),
                "1" => Some(format!("mid_block.attentions.0.{rest}")),
                "2" => Some(format!("mid_block.resnets.1.{}", resnet(rest)?)),
                _ => None,
            }
        }
        "input_blocks" => {
            let (number, place, rest) = numbered(rest)?;
            let Some(number) = number.checked_sub(1) else { return Some(format!("conv_in.{rest}")) };
            let (block, layer) = (format!("down_blocks.{}", number / LAYERS), number % LAYERS);
            match (place, rest.strip_prefix("op.")) {
                (0, Some(rest)) => Some(format!("{block}.downsamplers.0.conv.{rest}")),
                (0, None) => Some(format!("{block}.resnets.{layer}.{}", resnet(rest)?)),
                _ => Some(format!("{block}.attentions.{layer}.{rest}")),
            }
        }
        "output_blocks" => {
            let (number, place, rest) = numbered(rest)?;
            let (block, layer) = (format!("up_blocks.{}", number / LAYERS), number % LAYERS);
            match (place, rest.strip_prefix("conv.")) {
                (0, _) => Some(format!("{block}.resnets.{layer}.{}", resnet(rest)?)),
                (_, Some(rest)) => Some(format!("{block}.upsamplers.0.conv.{rest}")),
                _ => Some(format!("{block}.attentions.{layer}.{rest}")),
            }
        }
        _ => None,
    }
}

/// The VAE's name of a key of such a file; `None` for what belongs to another model.
#[must_use]
pub fn ldm_vae_key(key: &str) -> Option<String> {
    let rest = key.strip_prefix("first_stage_model.")?;
    if rest.starts_with("quant_conv.") || rest.starts_with("post_quant_conv.") {
        return Some(rest.into());
    }
    let (half, rest) = rest.split_once('.').filter(|(half, _)| ["encoder", "decoder"].contains(half))?;
    let (part, inner) = rest.split_once('.')?;
    let name = match part {
        "conv_in" | "conv_out" => rest.into(),
        "norm_out" => format!("conv_norm_out.{inner}"),
        "mid" => {
            let (place, inner) = inner.split_once('.')?;
            match place {
                "block_1" => format!("mid_block.resnets.0.{}", shortcut(inner)),
                "block_2" => format!("mid_block.resnets.1.{}", shortcut(inner)),
                "attn_1" => {
                    let names =
                        [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")];
                    format!("mid_block.attentions.0.{}", renamed(inner, &names)?)
                }
                _ => return None,
            }
        }
        "down" | "up" => {
            let (number, inner) = inner.split_once('.')?;
            let number: usize = number.parse().ok()?;
            let block = match part {
                "down" => format!("down_blocks.{number}"),
                // ldm counts from the picture, diffusers from the latents.
                _ => format!("up_blocks.{}", (VAE_BLOCKS - 1).checked_sub(number)?),
            };
            match inner.split_once('.')? {
                ("downsample", rest) => format!("{block}.downsamplers.0.{rest}"),
                ("upsample", rest) => format!("{block}.upsamplers.0.{rest}"),
                ("block", rest) => format!("{block}.resnets.{}", shortcut(rest)),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(format!("{half}.{name}"))
}

/// The text encoder's name of a key of such a file; `None` for what belongs to another model, or to none.
#[must_use]
pub fn ldm_clip_key(key: &str) -> Option<String> {
    let key = key.strip_prefix("cond_stage_model.transformer.")?;
    let key = key.strip_prefix("text_model.").unwrap_or(key);
    (key != "embeddings.position_ids").then(|| key.into())
}

/// The text encoder's name of a key of Stable Diffusion 2.x's file; `None` for what belongs to another model, or to none.
/// Queries, keys and values are one weight there, which [`OPEN_CLIP_PROJECTIONS`] take apart.
#[must_use]
pub fn ldm_open_clip_key(key: &str) -> Option<String> {
    let rest = key.strip_prefix("cond_stage_model.model.")?;
    let Some(rest) = rest.strip_prefix("transformer.resblocks.") else {
        return match rest {
            "positional_embedding" => Some("embeddings.position_embedding.weight".into()),
            "token_embedding.weight" => Some("embeddings.token_embedding.weight".into()),
            _ => renamed(rest, &[("ln_final", "final_layer_norm")]),
        };
    };
    let (layer, rest) = rest.split_once('.')?;
    let names = [
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
        ("attn", "self_attn"),
    ];
    (layer != UNUSED_LAYER).then(|| Some(format!("encoder.layers.{layer}.{}", renamed(rest, &names)?)))?
}

/// What a weight is called in Stable Diffusion 2.x's file that holds queries, keys and values below each other, and what
/// its parts are called.
pub const OPEN_CLIP_PROJECTIONS: [(&str, [&str; 3]); 2] = [
    ("in_proj_weight", ["q_proj.weight", "k_proj.weight", "v_proj.weight"]),
    ("in_proj_bias", ["q_proj.bias", "k_proj.bias", "v_proj.bias"]),
];

/// `rest` with the name it begins with replaced.
fn renamed(rest: &str, names: &[(&str, &str)]) -> Option<String> {
    names.iter().find_map(|(old, new)| Some(format!("{new}.{}", rest.strip_prefix(old)?.strip_prefix('.')?)))
}

/// `4.1.proj_in.weight` in its parts.
fn numbered(rest: &str) -> Option<(usize, usize, &str)> {
    let (number, rest) = rest.split_once('.')?;
    let (place, rest) = rest.split_once('.')?;
    Some((number.parse().ok()?, place.parse().ok()?, rest))
}

/// A weight of one of the UNet's residual blocks.
fn resnet(rest: &str) -> Option<String> {
    let names = [
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("emb_layers.1", "time_emb_proj"),
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
        ("skip_connection", "conv_shortcut"),
    ];
    renamed(rest, &names)
}

/// A weight of one of the VAE's residual blocks.
fn shortcut(rest: &str) -> String {
    rest.replace("nin_shortcut", "conv_shortcut")
}
