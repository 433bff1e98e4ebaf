//! CLIP's text models against transformers'.

use crate::support::{cases, generated, json, name, record, tensors};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};
use tch_diffusers::models::ModelMixin;
use tch_diffusers::models::text_encoders::{CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection};
use tch_diffusers::nn::{Module, Node, RandomWeights, Scope, Weights};
use tch_diffusers::{Error, Generator, KindExt, Result, TensorExt};

const GROUP: &str = "clip_text_model";

/// The weights of `seed_by_name` in `cases_clip_text_model.py`: each tensor's seed is its name's CRC-32.
struct SeededByName;

impl Weights for SeededByName {
    fn get(&self, path: &str, shape: &[i64]) -> Result<Tensor> {
        let noise = Generator::cpu(u64::from(crc32(path.as_bytes())))?.randn(shape, Kind::Float)?;
        let norm = path.contains("norm") && path.ends_with("weight");
        Ok(if norm { noise.f_mul_scalar(0.1)?.f_add_scalar(1.0)? } else { noise.f_mul_scalar(0.04)? })
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _: u32| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

enum Model {
    Bare(CLIPTextModel),
    Projected(CLIPTextModelWithProjection),
}

impl Model {
    fn load(case: &Path) -> Self {
        let about = json(&case.join("case.json"));
        match about["class"].as_str().unwrap() {
            "CLIPTextModel" => Self::Bare(read(case, &about)),
            "CLIPTextModelWithProjection" => Self::Projected(read(case, &about)),
            other => panic!("{other}"),
        }
    }

    /// The model without a projection.
    fn text_model(&self) -> &CLIPTextModel {
        match self {
            Self::Bare(model) => model,
            Self::Projected(model) => model.text_model(),
        }
    }

    fn node(&self) -> &Node {
        match self {
            Self::Bare(model) => model.node(),
            Self::Projected(model) => model.node(),
        }
    }

    /// All that forward returns, under the names of the fixtures.
    fn forward(&self, input_ids: &Tensor, mask: Option<&Tensor>, states: bool) -> BTreeMap<String, Tensor> {
        let (last, pooled, hidden_states) = match self {
            Self::Bare(model) => {
                let output = model.forward(input_ids, mask, states).unwrap();
                (output.last_hidden_state, ("pooler_output", output.pooler_output), output.hidden_states)
            }
            Self::Projected(model) => {
                let output = model.forward(input_ids, mask, states).unwrap();
                (output.last_hidden_state, ("text_embeds", output.text_embeds), output.hidden_states)
            }
        };
        assert_eq!(hidden_states.is_some(), states);
        let hidden_states = hidden_states.into_iter().flatten().enumerate();
        let named = hidden_states.map(|(index, state)| (format!("hidden_states.{index}"), state));
        named.chain([("last_hidden_state".to_string(), last), (pooled.0.to_string(), pooled.1)]).collect()
    }
}

fn read<M: ModelMixin<Config = CLIPTextConfig>>(case: &Path, about: &serde_json::Value) -> M {
    let kind = Kind::from_torch_name(about["dtype"].as_str().unwrap()).unwrap();
    if about["layout"] == "seeded" {
        let config = serde_json::from_value(json(&case.join("config.json"))).unwrap();
        return M::from_weights(config, &SeededByName).unwrap();
    }
    M::from_pretrained(case).torch_dtype(kind).load().unwrap()
}

#[test]
fn every_state_equals_transformers() {
    let _guard = tch::no_grad_guard();
    for case in cases(&generated(GROUP)) {
        let model = Model::load(&case);
        let inputs = tensors(&case.join("inputs.safetensors"));
        let (input_ids, mask) = (&inputs["input_ids"], inputs.get("attention_mask"));
        let outputs = model.forward(input_ids, mask, true);
        let layers = model.text_model().config().num_hidden_layers;
        assert_eq!(outputs.len() as i64, layers + 3, "{}", name(&case));
        for (key, expected) in tensors(&case.join("expected.safetensors")) {
            let found = match key.strip_prefix("clip_skip.") {
                Some(skip) => model.text_model().clip_skip(input_ids, mask, skip.parse().unwrap()).unwrap(),
                None => outputs[&key].shallow_clone(),
            };
            assert_eq!(found.kind(), expected.kind(), "{}: {key}", name(&case));
            record(GROUP, &name(&case), &key, found.max_abs_diff(&expected).unwrap(), 0.0);
        }
    }
}

#[test]
fn states_that_nobody_asked_for_change_nothing() {
    let _guard = tch::no_grad_guard();
    let case = generated(GROUP).join("tiny_projection");
    let model = Model::load(&case);
    let ids = &tensors(&case.join("inputs.safetensors"))["input_ids"];
    let (with, without) = (model.forward(ids, None, true), model.forward(ids, None, false));
    assert_eq!(without.keys().collect::<Vec<_>>(), ["last_hidden_state", "text_embeds"]);
    for (key, tensor) in &without {
        assert_eq!(tensor.max_abs_diff(&with[key]).unwrap(), 0.0, "{key}");
    }
}

#[test]
fn the_hidden_state_counts_from_the_end_and_has_no_norm() {
    let _guard = tch::no_grad_guard();
    let case = generated(GROUP).join("tiny_mask");
    let model = Model::load(&case);
    let inputs = tensors(&case.join("inputs.safetensors"));
    let expected = tensors(&case.join("expected.safetensors"));
    for skipped in 0..=3 {
        let state = model.text_model().hidden_state(&inputs["input_ids"], Some(&inputs["attention_mask"]), skipped);
        let expected = &expected[&format!("hidden_states.{}", 3 - skipped)];
        assert_eq!(state.unwrap().max_abs_diff(expected).unwrap(), 0.0, "{skipped}");
    }
}

#[test]
fn skipped_layers_are_not_computed() {
    #[derive(Debug)]
    struct Fails;
    impl tch_diffusers::nn::Hook for Fails {
        fn around(&self, _: &Node, _: &[Tensor], _: tch_diffusers::nn::Next<'_>) -> Result<Vec<Tensor>> {
            Err(Error::Unsupported("this layer ran".into()))
        }
    }
    let case = generated(GROUP).join("tiny");
    let model = Model::load(&case);
    let ids = &tensors(&case.join("inputs.safetensors"))["input_ids"];
    model.node().get("encoder.layers.2").unwrap().add_hook("fails", Fails);
    assert!(model.text_model().clip_skip(ids, None, 1).is_ok());
    let error = model.text_model().clip_skip(ids, None, 0).unwrap_err();
    assert_eq!(error.to_string(), "encoder.layers.2: this layer ran");
}

#[test]
fn weights_are_named_as_transformers_names_them() {
    for case in ["tiny", "tiny_projection"] {
        let case = generated(GROUP).join(case);
        let names: Vec<_> = Model::load(&case).node().state_dict().into_iter().map(|(key, _)| key).collect();
        let stored = tensors(&case.join("model.safetensors"));
        assert_eq!(names.len(), stored.len());
        assert!(names.iter().all(|name| stored.contains_key(name)), "{names:?}");
    }
}

#[test]
fn both_layouts_of_keys_are_understood() {
    let bare = CLIPTextModel::checkpoint_key;
    let projected = CLIPTextModelWithProjection::checkpoint_key;
    let norm = Some("final_layer_norm.bias".to_string());
    let prefixed = Some("text_model.final_layer_norm.bias".to_string());
    for key in ["final_layer_norm.bias", "text_model.final_layer_norm.bias"] {
        assert_eq!((bare(key), projected(key)), (norm.clone(), prefixed.clone()));
    }
    for key in ["embeddings.position_ids", "text_model.embeddings.position_ids"] {
        assert_eq!((bare(key), projected(key)), (None, None));
    }
    assert_eq!(projected("text_projection.weight").as_deref(), Some("text_projection.weight"));
}

/// A model of one narrow layer, with random weights.
fn small() -> CLIPTextModel {
    let config = CLIPTextConfig {
        vocab_size: 10,
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: 4,
        eos_token_id: Some(9),
        ..CLIPTextConfig::default()
    };
    CLIPTextModel::new(config, Scope::root(&RandomWeights::new(0, Kind::Float).unwrap())).unwrap()
}

#[test]
fn ids_that_cannot_be_embedded_are_refused_with_the_reason() {
    let model = small();
    let refused = |ids: Tensor| model.forward(&ids, None, false).unwrap_err();
    for (id, shown) in [(10, "10"), (-1, "-1")] {
        let error = refused(Tensor::from_slice(&[0, id, 9]).view([1, 3]));
        assert_eq!(error.to_string(), format!("embeddings: token {shown} is outside the vocabulary of 10 tokens"));
        assert!(matches!(error.kind(), Error::Argument(_)));
    }
    let error = refused(Tensor::zeros([2, 5], (Kind::Int64, tch::Device::Cpu)));
    assert_eq!(error.to_string(), "embeddings: 5 tokens: `max_position_embeddings` lets in 4");
    assert!(matches!(error.kind(), Error::Shape(_)));
    let error = refused(Tensor::zeros([2, 0], (Kind::Int64, tch::Device::Cpu)));
    assert_eq!(error.to_string(), "embeddings: `input_ids` [2, 0] hold no token");
    let error = refused(Tensor::from_slice(&[0i64, 1]));
    assert!(matches!(error.kind(), Error::Shape(_)), "{error}");
}

#[test]
fn a_mask_of_another_shape_is_refused() {
    let ids = Tensor::zeros([2, 3], (Kind::Int64, tch::Device::Cpu));
    let mask = Tensor::ones([2, 4], (Kind::Int64, tch::Device::Cpu));
    let error = small().forward(&ids, Some(&mask), false).unwrap_err();
    assert_eq!(error.to_string(), "`attention_mask` is [2, 4], and `input_ids` are [2, 3]");
}

#[test]
fn more_layers_than_there_are_cannot_be_skipped() {
    let ids = Tensor::zeros([1, 3], (Kind::Int64, tch::Device::Cpu));
    assert!(small().clip_skip(&ids, None, 1).is_ok());
    let error = small().clip_skip(&ids, None, 2).unwrap_err();
    assert_eq!(error.to_string(), "`clip_skip` is 2, and the text encoder has 1 layers to skip from");
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let weights = RandomWeights::new(0, Kind::Float).unwrap();
    let default = CLIPTextConfig { vocab_size: 10, hidden_size: 8, num_hidden_layers: 1, ..CLIPTextConfig::default() };
    let unknown = CLIPTextConfig { hidden_act: "gelu_fast".into(), ..default.clone() };
    let error = CLIPTextModel::new(unknown, Scope::root(&weights)).unwrap_err();
    assert!(matches!(error.kind(), Error::Unsupported(text) if text.contains("gelu_fast")), "{error}");
    let unpooled = CLIPTextConfig { eos_token_id: None, ..default.clone() };
    assert!(matches!(CLIPTextModel::new(unpooled, Scope::root(&weights)), Err(Error::Config(_))));
    let unprojected = CLIPTextConfig { projection_dim: None, ..default };
    assert!(matches!(CLIPTextModelWithProjection::new(unprojected, Scope::root(&weights)), Err(Error::Config(_))));
}
