//! What CLIP's vision model takes: that of `models::image_encoders`, with shadows for tensors.

use super::layers::{child, conv, layer_norm, list};
use super::shadow::{Arena, Shadow};
use super::text::encoder_layer;
use crate::error::Result;
use crate::models::image_encoders::CLIPVisionModel;
use crate::nn::Module;
use std::rc::Rc;

/// `CLIPVisionModel::forward` of `batch` pictures.
pub(crate) fn vision_model(model: &CLIPVisionModel, arena: &Rc<Arena>, batch: i64) -> Result<Shadow> {
    let (node, config) = (model.node(), model.config());
    let _visit = arena.enter(node);
    let pixel_values = arena.tensor(&[batch, config.num_channels, config.image_size, config.image_size]);
    let embeddings = child(node, "embeddings")?;
    let embedded = {
        let _visit = arena.enter(&embeddings);
        let _patches = conv(&child(&embeddings, "patch_embedding")?, &pixel_values, config.patch_size)?;
        let joined = arena.tensor(&[batch, config.positions()?, config.hidden_size]);
        let _visit = arena.enter(&child(&embeddings, "position_embedding")?);
        joined.like()
    };
    let mut hidden_states = layer_norm(&child(node, "pre_layrnorm")?, &embedded, false)?;
    let activation = config.hidden_act.parse()?;
    for layer in list(node, "encoder.layers") {
        hidden_states = encoder_layer(&layer, &hidden_states, config.num_attention_heads, activation)?;
    }
    Ok(hidden_states)
}
