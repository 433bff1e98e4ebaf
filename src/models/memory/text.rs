//! What CLIP's text encoder takes: that of `models::text_encoders`, with shadows for tensors.

use super::layers::{attend, child, layer_norm, linear, list};
use super::shadow::{Arena, Shadow};
use crate::error::Result;
use crate::models::attention_processor::AttentionProcessor;
use crate::models::text_encoders::CLIPTextModel;
use crate::nn::{Activation, Module, Node};
use std::rc::Rc;

/// `CLIPTextModel::forward` of `batch` sequences of `tokens` tokens.
pub(crate) fn text_encoder(model: &CLIPTextModel, arena: &Rc<Arena>, batch: i64, tokens: i64) -> Result<Shadow> {
    let (node, config) = (model.node(), model.config());
    let _visit = arena.enter(node);
    let embeddings = child(node, "embeddings")?;
    let shape = [batch, tokens, config.hidden_size];
    let mut hidden_states = {
        let _visit = arena.enter(&embeddings);
        let looked_up = {
            let _visit = arena.enter(&child(&embeddings, "token_embedding")?);
            arena.tensor(&shape)
        };
        let _visit = arena.enter(&child(&embeddings, "position_embedding")?);
        looked_up.like()
    };
    for layer in list(node, "encoder.layers") {
        hidden_states = encoder_layer(&layer, &hidden_states, config.num_attention_heads, config.activation()?)?;
    }
    layer_norm(&child(node, "final_layer_norm")?, &hidden_states, false)
}

pub(super) fn encoder_layer(node: &Node, input: &Shadow, heads: i64, activation: Activation) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let attended = {
        let normed = layer_norm(&child(node, "layer_norm1")?, input, false)?;
        self_attention(&child(node, "self_attn")?, &normed, heads)?
    };
    let hidden_states = attended.like();
    let _transformed = {
        let normed = layer_norm(&child(node, "layer_norm2")?, &hidden_states, false)?;
        mlp(&child(node, "mlp")?, &normed, activation)?
    };
    Ok(hidden_states.like())
}

fn self_attention(node: &Node, input: &Shadow, heads: i64) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let project = |name: &str| linear(&child(node, name)?, input, false);
    let (query, key, value) = (project("q_proj")?, project("k_proj")?, project("v_proj")?);
    let attended = attend(&query, &key, &value, heads, AttentionProcessor::Default)?;
    linear(&child(node, "out_proj")?, &attended, false)
}

fn mlp(node: &Node, input: &Shadow, activation: Activation) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let activated = {
        let hidden = linear(&child(node, "fc1")?, input, false)?;
        // `x sigmoid(1.702 x)`: the multiple and its sigmoid are there beside the product.
        let _steps = (activation == Activation::QuickGelu).then(|| [hidden.like(), hidden.like()]);
        hidden.like()
    };
    linear(&child(node, "fc2")?, &activated, false)
}
