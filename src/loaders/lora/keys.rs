//! How the layouts of LoRA files spell their keys.
//!
//! Mirrors `convert_unet_state_dict_to_peft`, `convert_state_dict_to_diffusers` and `convert_state_dict_to_peft` of
//! `diffusers/utils/state_dict_utils.py` at 0.42.1.

use super::kohya;

/// The components that keys may be of, as pipelines of diffusers name them.
const COMPONENTS: [&str; 5] = ["unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer"];

/// What of an adapter a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// `lora_A.weight`
    Down,
    /// `lora_B.weight`
    Up,
    /// `lora_B.bias`
    UpBias,
    /// The numerator of the adapter's weight.
    Alpha,
}

impl Part {
    /// What PEFT calls it.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Down => "lora_A.weight",
            Self::Up => "lora_B.weight",
            Self::UpBias => "lora_B.bias",
            Self::Alpha => "alpha",
        }
    }
}

/// A key that is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Such as `unet`.
    pub(super) component: String,
    /// The path of the layer, such as `down_blocks.0.attentions.0.proj_in`.
    pub(super) module: String,
    pub(super) part: Part,
    /// What diffusers calls an alpha once it has converted the key, without the component; the layer's path if all is well.
    pub(super) pattern: String,
}

/// What a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    Known(Key),
    /// A number that another method has: diffusers passes it over, with a warning.
    Skipped,
    /// A part of a LoRA as far as its name goes, but not one that is known.
    Unexpected,
    /// Another method's; its name.
    Method(&'static str),
    /// Nothing of a LoRA's.
    Foreign,
}

/// Whether all keys are kohya's.
pub(super) fn are_kohyas<'a>(mut keys: impl Iterator<Item = &'a str>) -> bool {
    keys.all(|key| kohya::PREFIXES.iter().any(|(prefix, _)| key.starts_with(prefix)))
}

/// Whether the key says of which component it is.
pub(super) fn has_component(key: &str) -> bool {
    component(key).is_some()
}

fn component(key: &str) -> Option<(&str, &str)> {
    let key = key.strip_prefix("base_model.model.").unwrap_or(key);
    key.split_once('.').filter(|(component, _)| COMPONENTS.contains(component))
}

/// The key of a file in the layout of PEFT or of diffusers; `default` is the component of keys that name none.
pub(super) fn read(key: &str, default: &str) -> Spelling {
    if let Some(other) = foreign_method(key) {
        return other;
    }
    let bare = key.strip_prefix("base_model.model.").unwrap_or(key);
    let (component, rest) = component(bare).unwrap_or((default, bare));
    read_of(component, rest)
}

/// The key of a layer of `component`, which it does not name.
pub(super) fn read_of(component: &str, key: &str) -> Spelling {
    if let Some(other) = foreign_method(key) {
        return other;
    }
    let name = to_peft(component, key);
    for part in [Part::Down, Part::Up, Part::UpBias] {
        let module = name.strip_suffix(part.ending()).and_then(|module| module.strip_suffix('.'));
        if let Some(module) = module {
            let (component, module) = (component.to_string(), module.to_string());
            return Spelling::Known(Key { component, pattern: module.clone(), module, part });
        }
    }
    if name.contains("lora") { Spelling::Unexpected } else { Spelling::Foreign }
}

/// What is no plain LoRA.
pub(super) fn foreign_method(key: &str) -> Option<Spelling> {
    if key.contains("dora_scale") {
        return Some(Spelling::Skipped);
    }
    let methods = [
        ("lora_magnitude_vector", "DoRA"),
        ("lokr_", "LoKr"),
        ("hada_", "LoHa"),
        ("oft_", "OFT"),
        ("lora_mid", "LoCon with a middle factor"),
        ("lora_embedding_", "LoRA of an embedding"),
    ];
    methods.iter().find(|(mark, _)| key.contains(mark)).map(|(_, method)| Spelling::Method(method))
}

/// PEFT's spelling of a key without its component.
pub(super) fn to_peft(component: &str, key: &str) -> String {
    let key = key.replace(".processor.", ".");
    let tables: &[&[(&str, &str)]] =
        if component.starts_with("text_encoder") { &[&OLD_TEXT, &TEXT] } else { &[&DENOISER] };
    for (old, new) in tables.iter().copied().flatten() {
        if key.contains(old) {
            return key.replace(old, new);
        }
    }
    key
}

const DENOISER: [(&str, &str); 10] = [
    (".to_out_lora.up", ".to_out.0.lora_B"),
    (".to_out_lora.down", ".to_out.0.lora_A"),
    (".to_q_lora.down", ".to_q.lora_A"),
    (".to_q_lora.up", ".to_q.lora_B"),
    (".to_k_lora.down", ".to_k.lora_A"),
    (".to_k_lora.up", ".to_k.lora_B"),
    (".to_v_lora.down", ".to_v.lora_A"),
    (".to_v_lora.up", ".to_v.lora_B"),
    (".lora.up", ".lora_B"),
    (".lora.down", ".lora_A"),
];

const OLD_TEXT: [(&str, &str); 8] = [
    (".to_q_lora.up", ".q_proj.lora_B"),
    (".to_q_lora.down", ".q_proj.lora_A"),
    (".to_k_lora.up", ".k_proj.lora_B"),
    (".to_k_lora.down", ".k_proj.lora_A"),
    (".to_v_lora.up", ".v_proj.lora_B"),
    (".to_v_lora.down", ".v_proj.lora_A"),
    (".to_out_lora.up", ".out_proj.lora_B"),
    (".to_out_lora.down", ".out_proj.lora_A"),
];

const TEXT: [(&str, &str); 4] = [
    (".lora_linear_layer.up", ".lora_B"),
    (".lora_linear_layer.down", ".lora_A"),
    (".lora.up", ".lora_B"),
    (".lora.down", ".lora_A"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn known(key: &str) -> (String, String, Part) {
        match read(key, "unet") {
            Spelling::Known(key) => (key.component, key.module, key.part),
            other => panic!("{key}: {other:?}"),
        }
    }

    #[test]
    fn every_layout_leads_to_the_same_layers() {
        let block = "down_blocks.0.attentions.1.transformer_blocks.0";
        let query = (String::from("unet"), format!("{block}.attn1.to_q"), Part::Down);
        assert_eq!(known(&format!("unet.{block}.attn1.to_q.lora_A.weight")), query);
        assert_eq!(known(&format!("unet.{block}.attn1.to_q.lora.down.weight")), query);
        assert_eq!(known(&format!("unet.{block}.attn1.processor.to_q_lora.down.weight")), query);
        assert_eq!(known(&format!("{block}.attn1.processor.to_q_lora.down.weight")), query);
        assert_eq!(known(&format!("base_model.model.{block}.attn1.to_q.lora_A.weight")), query);
        let out = known(&format!("unet.{block}.attn2.processor.to_out_lora.up.weight"));
        assert_eq!(out, (String::from("unet"), format!("{block}.attn2.to_out.0"), Part::Up));
        let layer = "text_model.encoder.layers.3";
        let value = (String::from("text_encoder"), format!("{layer}.self_attn.v_proj"), Part::Up);
        assert_eq!(known(&format!("text_encoder.{layer}.self_attn.v_proj.lora_B.weight")), value);
        assert_eq!(known(&format!("text_encoder.{layer}.self_attn.v_proj.lora_linear_layer.up.weight")), value);
        assert_eq!(known(&format!("text_encoder.{layer}.self_attn.to_v_lora.up.weight")), value);
    }

    #[test]
    fn what_is_no_lora_is_told_apart() {
        assert_eq!(read("unet.conv_in.weight", "unet"), Spelling::Foreign);
        assert_eq!(read("unet.conv_in.lora_C.weight", "unet"), Spelling::Unexpected);
        assert_eq!(read("unet.conv_in.lora_magnitude_vector", "unet"), Spelling::Method("DoRA"));
        assert_eq!(read("unet.conv_in.lokr_w1", "unet"), Spelling::Method("LoKr"));
        assert_eq!(read("lora_unet_conv_in.dora_scale", "unet"), Spelling::Skipped);
    }
}
