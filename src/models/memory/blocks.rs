//! What blocks of layers take: the forwards of `models::{resnet, attention, transformers}`, with shadows for tensors.

use super::layers::{attend, child, conv, group_norm, layer_norm, linear, list, upsample};
use super::shadow::Shadow;
use crate::error::Result;
use crate::models::attention_processor::{AttentionProcessor, ProcessorSetting};
use crate::nn::Node;

/// What is as it is in the whole model.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Reckons as if attention were not sliced.
    pub(crate) without_attention_slicing: bool,
}

/// `ResnetBlock2D`, for activations that work in place.
pub(super) fn resnet(node: &Node, input: &Shadow) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let hidden_states = group_norm(&child(node, "norm1")?, input);
    let hidden_states = convolve(&child(node, "conv1")?, hidden_states)?;
    let hidden_states = second_norm(node, hidden_states)?;
    let hidden_states = convolve(&child(node, "conv2")?, hidden_states)?;
    let _shortcut = node.get("conv_shortcut").map(|shortcut| conv(&shortcut, input, 1)).transpose()?;
    Ok(hidden_states)
}

fn convolve(node: &Node, hidden_states: Shadow) -> Result<Shadow> {
    conv(node, &hidden_states, 1)
}

fn second_norm(node: &Node, hidden_states: Shadow) -> Result<Shadow> {
    let Some(projection) = node.get("time_emb_proj") else {
        return Ok(group_norm(&child(node, "norm2")?, &hidden_states));
    };
    let [batch, channels, ..] = hidden_states.size4()?;
    let arena = hidden_states.arena().clone();
    let temb = linear(&projection, &arena.tensor(&[batch, 1, channels]), false)?;
    let normed = group_norm(&child(node, "norm2")?, &hidden_states);
    // Twice as many channels are a scale and a shift.
    if temb.size3()?[2] > channels {
        let scaled = normed.like();
        drop(normed);
        return Ok(scaled.like());
    }
    Ok(normed)
}

/// `Transformer2DModel` over a picture, with text `encoder_hidden_states`.
pub(super) fn transformer(node: &Node, pixels: &Shadow, text: &Shadow, options: Options) -> Result<Shadow> {
    let _visit = pixels.arena().enter(node);
    let [batch, channels, height, width] = pixels.size4()?;
    let proj_out = child(node, "proj_out")?;
    let convolves = proj_out.class() == "Conv2d";
    let flat = [batch, height * width, channels];
    let mut strided = false;
    let mut tokens = {
        let normed = group_norm(&child(node, "norm")?, pixels);
        match convolves {
            true => {
                let projected = conv(&child(node, "proj_in")?, &normed, 1)?;
                strided = !projected.is_channels_last();
                projected.view(&flat)
            }
            false => linear(&child(node, "proj_in")?, &normed.view(&flat), !normed.is_channels_last())?,
        }
    };
    for (number, block) in list(node, "transformer_blocks").iter().enumerate() {
        tokens = transformer_block(block, &tokens, text, strided && number == 0, options)?;
    }
    let channels_last = pixels.is_channels_last();
    let picture = |tokens: &Shadow| {
        let tokens = if channels_last { tokens.clone() } else { tokens.like() };
        tokens.view(&[batch, channels, height, width]).laid_out(channels_last)
    };
    if convolves {
        return conv(&proj_out, &picture(&tokens), 1);
    }
    let projected = linear(&proj_out, &tokens, false)?;
    let _picture = picture(&projected);
    Ok(pixels.like())
}

/// `BasicTransformerBlock`. The first one of a picture gets tokens that do not lie one after the other: `strided`.
fn transformer_block(node: &Node, input: &Shadow, text: &Shadow, strided: bool, options: Options) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let mut hidden_states = {
        let normed = layer_norm(&child(node, "norm1")?, input, strided)?;
        // Only cross attention: the keys are the text's.
        let attn1 = child(node, "attn1")?;
        let context = if looks_at(&attn1, text)? { text } else { &normed };
        attention(&attn1, &normed, context, options)?
    };
    if let Some(attn2) = node.get("attn2") {
        let normed = layer_norm(&child(node, "norm2")?, &hidden_states, false)?;
        hidden_states = attention(&attn2, &normed, text, options)?;
    }
    let normed = layer_norm(&child(node, "norm3")?, &hidden_states, false)?;
    feed_forward(&child(node, "ff")?, &normed)
}

/// Whether an attention at the place of self-attention takes the text's channels, and not the tokens'.
fn looks_at(attention: &Node, text: &Shadow) -> Result<bool> {
    let inputs = |name: &str| Ok(child(attention, name)?.own_params().first().map(|(_, param)| param.get().size()));
    let (query, key): (Result<_>, Result<_>) = (inputs("to_q"), inputs("to_k"));
    let (query, key) = (query?, key?);
    let channels = |size: &Option<Vec<i64>>| size.as_ref().and_then(|size| size.last().copied());
    Ok(channels(&query) != channels(&key) && channels(&key) == Some(text.size3()?[2]))
}

/// `Attention` of the tokens `hidden_states` to those of `context`.
fn attention(node: &Node, hidden_states: &Shadow, context: &Shadow, options: Options) -> Result<Shadow> {
    let _visit = hidden_states.arena().enter(node);
    let query = linear(&child(node, "to_q")?, hidden_states, false)?;
    let key = linear(&child(node, "to_k")?, context, false)?;
    let value = linear(&child(node, "to_v")?, context, false)?;
    let (heads, processor) = processor(node, options);
    let attended = attend(&query, &key, &value, heads, processor)?;
    linear(&child(node, "to_out.0")?, &attended, false)
}

fn processor(node: &Node, options: Options) -> (i64, AttentionProcessor) {
    match node.setting::<ProcessorSetting>() {
        None => (1, AttentionProcessor::Default),
        Some(setting) if options.without_attention_slicing => (setting.heads, AttentionProcessor::Default),
        Some(setting) => (setting.heads, setting.get()),
    }
}

/// `FeedForward`: GEGLU holds both halves, the gate's GELU and the product at once.
fn feed_forward(node: &Node, input: &Shadow) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let project = child(node, "net.0")?;
    let hidden_states = {
        let _visit = input.arena().enter(&project);
        let projected = linear(&child(&project, "proj")?, input, false)?;
        let [batch, tokens, channels] = projected.size3()?;
        let width = if project.class() == "GEGLU" { channels / 2 } else { channels };
        let activated = input.arena().tensor(&[batch, tokens, width]);
        if width < channels { activated.like() } else { activated }
    };
    linear(&child(node, "net.2")?, &hidden_states, false)
}

/// `Attention` of the VAE's pixels to each other.
pub(super) fn pixel_attention(node: &Node, residual: &Shadow) -> Result<Shadow> {
    let _visit = residual.arena().enter(node);
    let [batch, channels, height, width] = residual.size4()?;
    // The sum takes the layout of the attention's output, which with one picture is taken for row-major.
    let channels_last = batch > 1;
    let normed = group_norm(&child(node, "group_norm")?, residual).view(&[batch, height * width, channels]);
    let _pixels = {
        let project = |name: &str| linear(&child(node, name)?, &normed, true);
        let (query, key, value) = (project("to_q")?, project("to_k")?, project("to_v")?);
        let (heads, processor) = processor(node, Options::default());
        linear(&child(node, "to_out.0")?, &attend(&query, &key, &value, heads, processor)?, false)?
    };
    Ok(residual.like().laid_out(channels_last))
}

/// `Upsample2D` with its convolution.
pub(super) fn upsampler(node: &Node, input: &Shadow, size: Option<[i64; 2]>) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let larger = upsample(input, size)?;
    match node.get("conv") {
        Some(layer) => conv(&layer, &larger, 1),
        None => Ok(larger),
    }
}

/// `Downsample2D` with its convolution.
pub(super) fn downsampler(node: &Node, input: &Shadow) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    conv(&child(node, "conv")?, input, 2)
}
