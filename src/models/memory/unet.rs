//! What a UNet's forward takes: that of `models::unets`, with shadows for tensors.

use super::blocks::{Options, downsampler, resnet, transformer, upsampler};
use super::layers::{child, conv, group_norm, linear, list};
use super::shadow::Shadow;
use crate::error::Result;
use crate::nn::Node;

/// `UNet2DConditionModel` on `sample` and `text`.
pub(crate) fn unet(node: &Node, sample: &Shadow, text: &Shadow, options: Options) -> Result<Shadow> {
    let _visit = sample.arena().enter(node);
    let _temb = time_embedding(node, sample)?;
    let mut hidden_states = conv(&child(node, "conv_in")?, sample, 1)?;
    let mut skips = vec![hidden_states.clone()];
    for block in list(node, "down_blocks") {
        skips.extend(down(&block, &hidden_states, text, options)?);
        hidden_states = skips.last().unwrap_or(&hidden_states).clone();
    }
    if let Some(block) = node.get("mid_block") {
        hidden_states = mid(&block, &hidden_states, text, options)?;
    }
    for block in list(node, "up_blocks") {
        let count = list(&block, "resnets").len();
        let taken = skips.split_off(skips.len().saturating_sub(count));
        let below = skips.last().map(Shadow::size4).transpose()?.map(|[_, _, height, width]| [height, width]);
        hidden_states = up(&block, &hidden_states, &taken, text, below, options)?;
    }
    let normed = group_norm(&child(node, "conv_norm_out")?, &hidden_states);
    conv(&child(node, "conv_out")?, &normed, 1)
}

/// The sinusoids and the two layers above them; small, and there for the whole forward.
fn time_embedding(node: &Node, sample: &Shadow) -> Result<Shadow> {
    let [batch, ..] = sample.size4()?;
    let embedding = child(node, "time_embedding")?;
    let _visit = sample.arena().enter(&embedding);
    let sinusoids = sample.arena().tensor(&[batch, 1, 1]);
    let hidden = linear(&child(&embedding, "linear_1")?, &sinusoids, false)?;
    linear(&child(&embedding, "linear_2")?, &hidden, false)
}

fn down(node: &Node, input: &Shadow, text: &Shadow, options: Options) -> Result<Vec<Shadow>> {
    let _visit = input.arena().enter(node);
    let attentions = list(node, "attentions");
    let mut outputs: Vec<Shadow> = vec![];
    for (number, layer) in list(node, "resnets").iter().enumerate() {
        let hidden_states = resnet(layer, outputs.last().unwrap_or(input))?;
        outputs.push(match attentions.get(number) {
            Some(attention) => transformer(attention, &hidden_states, text, options)?,
            None => hidden_states,
        });
    }
    for layer in list(node, "downsamplers") {
        outputs.push(downsampler(&layer, outputs.last().unwrap_or(input))?);
    }
    Ok(outputs)
}

fn mid(node: &Node, input: &Shadow, text: &Shadow, options: Options) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let (attentions, mut hidden_states) = (list(node, "attentions"), input.clone());
    for (number, layer) in list(node, "resnets").iter().enumerate() {
        if let Some(attention) = number.checked_sub(1).and_then(|number| attentions.get(number)) {
            let attended = transformer(attention, &hidden_states, text, options)?;
            hidden_states = resnet(layer, &attended)?;
        } else {
            hidden_states = resnet(layer, &hidden_states)?;
        }
    }
    Ok(hidden_states)
}

fn up(
    node: &Node,
    input: &Shadow,
    skips: &[Shadow],
    text: &Shadow,
    size: Option<[i64; 2]>,
    options: Options,
) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let (attentions, mut hidden_states) = (list(node, "attentions"), input.clone());
    for (number, (layer, skip)) in list(node, "resnets").iter().zip(skips.iter().rev()).enumerate() {
        let ([batch, channels, height, width], [_, more, ..]) = (hidden_states.size4()?, skip.size4()?);
        let both = input.arena().tensor(&[batch, channels + more, height, width]);
        let both = both.laid_out(hidden_states.is_channels_last() && skip.is_channels_last());
        hidden_states = resnet(layer, &both)?;
        drop(both);
        if let Some(attention) = attentions.get(number) {
            hidden_states = transformer(attention, &hidden_states, text, options)?;
        }
    }
    match list(node, "upsamplers").first() {
        Some(layer) => upsampler(layer, &hidden_states, size),
        None => Ok(hidden_states),
    }
}
