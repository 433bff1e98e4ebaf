//! What decoding takes: `AutoencoderKL::decode` of `models::autoencoders`, with shadows for tensors.

use super::blocks::{pixel_attention, resnet, upsampler};
use super::layers::{child, conv, group_norm, list};
use super::shadow::Shadow;
use crate::error::{Error, Result};
use crate::models::autoencoders::{AutoencoderKL, Tiling, tile_starts};
use crate::nn::{Module, Node};

/// Which of the VAE's techniques are at work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoding {
    pub(crate) slicing: bool,
    pub(crate) tiling: bool,
}

impl Decoding {
    /// As they are switched on.
    pub(crate) fn of(vae: &AutoencoderKL) -> Self {
        Self { slicing: vae.use_slicing(), tiling: vae.use_tiling() }
    }
}

/// `AutoencoderKL::decode` of `latents`.
pub(crate) fn decode(vae: &AutoencoderKL, latents: &Shadow, decoding: Decoding) -> Result<Shadow> {
    let (node, arena) = (vae.node(), latents.arena());
    let _visit = arena.enter(node);
    let [batch, channels, height, width] = latents.size4()?;
    if !decoding.slicing || batch <= 1 {
        return decode_sample(vae, latents, decoding);
    }
    let item = latents.view(&[1, channels, height, width]);
    let items = (0..batch).map(|_| decode_sample(vae, &item, decoding)).collect::<Result<Vec<_>>>()?;
    let [_, channels, height, width] = items.first().unwrap_or(latents).size4()?;
    Ok(arena.tensor(&[batch, channels, height, width]))
}

fn decode_sample(vae: &AutoencoderKL, latents: &Shadow, decoding: Decoding) -> Result<Shadow> {
    let [_, _, height, width] = latents.size4()?;
    let side = vae.tile_latent_min_size;
    match decoding.tiling && (height > side || width > side) {
        true => tiles(vae.node(), latents, vae.latent_tiling()),
        false => decoder(vae.node(), latents),
    }
}

/// [`Tiling::run`].
fn tiles(node: &Node, latents: &Shadow, tiling: Tiling) -> Result<Shadow> {
    if tiling.step <= 0 {
        return Err(Error::Argument(format!("tiles of {} overlap wholly", tiling.size)));
    }
    let arena = latents.arena();
    let [batch, channels, height, width] = latents.size4()?;
    let (mut above, mut rows, mut size) = (vec![], vec![], [batch, 0, 0, 0]);
    for top in tile_starts(height, tiling.step) {
        let (mut row, mut columns, mut tall) = (vec![], 0, 0);
        for left in tile_starts(width, tiling.step) {
            let tile = [batch, channels, tiling.size.min(height - top), tiling.size.min(width - left)];
            // A part of the latents is a view of them.
            let tile = decoder(node, &latents.view(&tile))?;
            let [_, outputs, tile_height, tile_width] = tile.size4()?;
            (columns, tall) = (columns + tiling.keep.min(tile_width), tiling.keep.min(tile_height));
            size[1] = outputs;
            row.push(tile);
        }
        rows.push(arena.tensor(&[batch, size[1], tall, columns]));
        (size[2], size[3]) = (size[2] + tall, columns);
        above = row;
    }
    let whole = arena.tensor(&size);
    drop((above, rows));
    Ok(whole)
}

/// `post_quant_conv` and `Decoder`.
fn decoder(node: &Node, latents: &Shadow) -> Result<Shadow> {
    let arena = latents.arena();
    let latents = match node.get("post_quant_conv") {
        Some(layer) => conv(&layer, latents, 1)?,
        None => latents.clone(),
    };
    let node = child(node, "decoder")?;
    let _visit = arena.enter(&node);
    let mut sample = middle(&child(&node, "mid_block")?, &conv(&child(&node, "conv_in")?, &latents, 1)?)?;
    for block in list(&node, "up_blocks") {
        sample = up(&block, &sample)?;
    }
    let normed = group_norm(&child(&node, "conv_norm_out")?, &sample);
    conv(&child(&node, "conv_out")?, &normed, 1)
}

fn middle(node: &Node, input: &Shadow) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let (attention, mut sample) = (node.get("attentions.0"), input.clone());
    for (number, layer) in list(node, "resnets").iter().enumerate() {
        if let Some(attention) = attention.as_ref().filter(|_| number == 1) {
            sample = pixel_attention(attention, &sample)?;
        }
        sample = resnet(layer, &sample)?;
    }
    Ok(sample)
}

fn up(node: &Node, input: &Shadow) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let layers = list(node, "resnets");
    let sample = layers.iter().try_fold(input.clone(), |sample, layer| resnet(layer, &sample))?;
    match list(node, "upsamplers").first() {
        Some(layer) => upsampler(layer, &sample, None),
        None => Ok(sample),
    }
}
