//! Keys as kohya's trainer and its kin write them: `lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight`.
//!
//! Mirrors `_convert_unet_lora_key`, `_convert_text_encoder_lora_key` and `_get_alpha_name` of
//! `diffusers/loaders/lora_conversion_utils.py` at 0.42.1.

use super::keys::{Key, Part, Spelling, foreign_method, to_peft};

/// What the keys begin with, and the component that they are of.
pub(super) const PREFIXES: [(&str, &str); 4] = [
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
];

/// Names with points where the key has but underscores, in the order in which they are looked for.
const UNET_NAMES: [(&str, &str); 24] = [
    ("input.blocks.0.0", "conv_in"),
    ("out.2", "conv_out"),
    ("input.blocks", "down_blocks"),
    ("down.blocks", "down_blocks"),
    ("middle.block", "mid_block"),
    ("mid.block", "mid_block"),
    ("output.blocks", "up_blocks"),
    ("up.blocks", "up_blocks"),
    ("transformer.blocks", "transformer_blocks"),
    ("to.q.lora", "to_q_lora"),
    ("to.k.lora", "to_k_lora"),
    ("to.v.lora", "to_v_lora"),
    ("to.out.0.lora", "to_out_lora"),
    ("proj.in", "proj_in"),
    ("proj.out", "proj_out"),
    ("emb.layers", "time_emb_proj"),
    ("conv.in", "conv_in"),
    ("conv.out", "conv_out"),
    ("time.embed.0", "time_embedding.linear_1"),
    ("time.embed.2", "time_embedding.linear_2"),
    ("label.emb.0.0", "add_embedding.linear_1"),
    ("label.emb.0.2", "add_embedding.linear_2"),
    ("time.embedding.linear.1", "time_embedding.linear_1"),
    ("time.embedding.linear.2", "time_embedding.linear_2"),
];

/// As [`UNET_NAMES`], after what has conditions.
const LYCORIS_NAMES: [(&str, &str); 3] =
    [("skip.connection", "conv_shortcut"), ("time.emb.proj", "time_emb_proj"), ("conv.shortcut", "conv_shortcut")];

const TEXT_NAMES: [(&str, &str); 7] = [
    ("text.model", "text_model"),
    ("self.attn", "self_attn"),
    ("q.proj.lora", "to_q_lora"),
    ("k.proj.lora", "to_k_lora"),
    ("v.proj.lora", "to_v_lora"),
    ("out.proj.lora", "to_out_lora"),
    ("text.projection", "text_projection"),
];

/// What the key is.
pub(super) fn read(key: &str) -> Spelling {
    if let Some(other) = foreign_method(key) {
        return other;
    }
    let prefix = PREFIXES.iter().find(|(prefix, _)| key.starts_with(prefix));
    let (Some((prefix, component)), Some((name, ending))) = (prefix, key.split_once('.')) else {
        return Spelling::Foreign;
    };
    let part = match ending {
        "lora_down.weight" => Part::Down,
        "lora_up.weight" => Part::Up,
        "alpha" => Part::Alpha,
        _ => return Spelling::Foreign,
    };
    let dotted = format!("{}.lora.down.weight", name.replace(prefix, "").replace('_', "."));
    let is_text = component.starts_with("text_encoder");
    let diffusers = if is_text { text_key(dotted) } else { unet_key(dotted) };
    let peft = to_peft(component, &diffusers);
    let ending = format!(".{}", Part::Down.ending());
    let module = peft.strip_suffix(&ending).unwrap_or(&peft).to_string();
    let pattern = if is_text { text_pattern(&diffusers) } else { unet_pattern(&diffusers) };
    Spelling::Known(Key { component: (*component).to_string(), module, part, pattern })
}

/// diffusers' old name of a UNet's key whose underscores have become points.
fn unet_key(mut name: String) -> String {
    for (old, new) in UNET_NAMES {
        name = name.replace(old, new);
    }
    if name.contains("emb") && !name.contains("time.emb.proj") {
        name = without_last_number(name);
    }
    if name.contains(".in.") {
        name = name.replace("in.layers.2", "conv1");
    }
    if name.contains(".out.") {
        name = name.replace("out.layers.3", "conv2");
    }
    if name.contains("downsamplers") || name.contains("upsamplers") {
        name = name.replace("op", "conv");
    }
    for (old, new) in LYCORIS_NAMES {
        name = name.replace(old, new);
    }
    if name.contains("transformer_blocks") {
        name = name.replace("attn1", "attn1.processor").replace("attn2", "attn2.processor");
    }
    name
}

/// `a.1.b.2.c` becomes `a.1.b.c`.
fn without_last_number(name: String) -> String {
    let Some(end) = name.rfind(|c: char| c.is_ascii_digit()) else { return name };
    let start = name[..end].rfind(|c: char| !c.is_ascii_digit());
    match start.filter(|&start| name[start..].starts_with('.')) {
        Some(start) => name[..start].to_string() + &name[end + 1..],
        None => name,
    }
}

fn text_key(mut name: String) -> String {
    for (old, new) in TEXT_NAMES {
        name = name.replace(old, new);
    }
    let is_projection = name.contains("self_attn") || name.contains("text_projection");
    if !is_projection && name.contains("mlp") { name.replace(".lora.", ".lora_linear_layer.") } else { name }
}

/// The name under which diffusers looks for the layer of an alpha. That of an attention is no layer's.
fn unet_pattern(diffusers: &str) -> String {
    diffusers.split(".lora.").next().unwrap_or_default().to_string()
}

/// As [`unet_pattern`], for text encoders: those of an attention are no layers', and others begin with `text_model.`.
fn text_pattern(diffusers: &str) -> String {
    let stem = diffusers.split(".lora.").next().unwrap_or_default().split(".down.").next().unwrap_or_default();
    stem.rsplit_once('.').map_or("", |(module, _)| module).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(key: &str) -> (String, String, Part) {
        match read(key) {
            Spelling::Known(key) => (key.component, key.module, key.part),
            other => panic!("{key}: {other:?}"),
        }
    }

    #[test]
    fn underscores_become_the_points_of_the_layers() {
        for (key, component, layer) in [
            (
                "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q",
                "unet",
                "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
            ),
            (
                "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
                "unet",
                "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
            ),
            (
                "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_0_proj",
                "unet",
                "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj",
            ),
            ("lora_unet_down_blocks_1_attentions_0_proj_in", "unet", "down_blocks.1.attentions.0.proj_in"),
            ("lora_unet_down_blocks_1_resnets_0_conv_shortcut", "unet", "down_blocks.1.resnets.0.conv_shortcut"),
            ("lora_unet_down_blocks_1_resnets_0_time_emb_proj", "unet", "down_blocks.1.resnets.0.time_emb_proj"),
            ("lora_unet_up_blocks_0_upsamplers_0_conv", "unet", "up_blocks.0.upsamplers.0.conv"),
            ("lora_unet_down_blocks_0_downsamplers_0_op", "unet", "down_blocks.0.downsamplers.0.conv"),
            ("lora_unet_time_embedding_linear_2", "unet", "time_embedding.linear_2"),
            ("lora_unet_conv_in", "unet", "conv_in"),
            ("lora_unet_conv_out", "unet", "conv_out"),
            (
                "lora_te_text_model_encoder_layers_11_self_attn_out_proj",
                "text_encoder",
                "text_model.encoder.layers.11.self_attn.out_proj",
            ),
            ("lora_te2_text_model_encoder_layers_3_mlp_fc1", "text_encoder_2", "text_model.encoder.layers.3.mlp.fc1"),
        ] {
            for (ending, part) in
                [("lora_down.weight", Part::Down), ("lora_up.weight", Part::Up), ("alpha", Part::Alpha)]
            {
                let expected = (component.to_string(), layer.to_string(), part);
                assert_eq!(module(&format!("{key}.{ending}")), expected, "{key}");
            }
        }
        assert_eq!(read("lora_unet_conv_in.lora_left.weight"), Spelling::Foreign);
    }

    #[test]
    fn the_last_number_goes_only_where_it_stands_alone() {
        assert_eq!(without_last_number("a.1.emb.2.lora".into()), "a.1.emb.lora");
        assert_eq!(without_last_number("time_embedding.linear_1.lora".into()), "time_embedding.linear_1.lora");
        assert_eq!(without_last_number("none".into()), "none");
    }
}
