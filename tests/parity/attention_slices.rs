//! Slice sizes, one for each attention.

use crate::support::{cases, generated, json};
use std::collections::BTreeMap;
use tch::Kind;
use tch_diffusers::configuration_utils::from_map;
use tch_diffusers::models::attention_processor::{AttentionProcessor, attn_processors};
use tch_diffusers::nn::{Module, RandomWeights};
use tch_diffusers::{Error, ModelMixin, UNet2DConditionModel};

#[test]
fn a_list_of_slice_sizes_goes_to_the_attentions_in_diffusers_order() {
    let weights = RandomWeights::new(0, Kind::Float).unwrap();
    for folder in cases(&generated("attention_slices")) {
        let config = from_map(json(&folder.join("config.json")).as_object().unwrap()).unwrap();
        let unet = UNet2DConditionModel::from_weights(config, &weights).unwrap();
        let expected = json(&folder.join("slices.json"));
        let sizes: Vec<i64> = serde_json::from_value(expected["sizes"].clone()).unwrap();
        let slices: BTreeMap<String, i64> = serde_json::from_value(expected["slices"].clone()).unwrap();
        unet.set_attention_slices(&sizes).unwrap();
        let found: BTreeMap<_, _> = attn_processors(unet.node()).into_iter().collect();
        let expected = slices.into_iter().map(|(path, size)| (path, AttentionProcessor::Sliced(size))).collect();
        assert_eq!(found, expected);
        let short = unet.set_attention_slices(&sizes[1..]).unwrap_err();
        assert!(matches!(&short, Error::Argument(text) if text.contains("slice sizes were given for")), "{short}");
        let mut many = sizes.clone();
        many[2] = 99;
        let error = unet.set_attention_slices(&many).unwrap_err().to_string();
        assert!(error.contains("heads, as many as the layer, not 99"), "{error}");
        assert_eq!(attn_processors(unet.node()).into_iter().collect::<BTreeMap<_, _>>(), found, "something was set");
    }
}
