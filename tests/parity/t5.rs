//! T5's encoder.

use crate::support::{cases, generated, name, record, tensors};
use tch_diffusers::models::ModelMixin;
use tch_diffusers::models::text_encoders::{T5Config, T5EncoderModel};
use tch_diffusers::nn::Module;
use tch_diffusers::nn::{RandomWeights, Scope};
use tch_diffusers::{Error, TensorExt};

#[test]
fn hidden_states_are_those_of_transformers() {
    let _guard = tch::no_grad_guard();
    for case in cases(&generated("t5")) {
        let given = tensors(&case.join("tensors.safetensors"));
        let kind = given["expected"].kind();
        let model = T5EncoderModel::from_pretrained(&case).torch_dtype(kind).load().unwrap();
        for (key, mask) in [("expected", None), ("expected_masked", Some(&given["attention_mask"]))] {
            let found = model.forward(&given["input_ids"], mask).unwrap();
            assert_eq!(found.kind(), kind);
            record("t5", &name(&case), key, found.max_abs_diff(&given[key]).unwrap(), 0.0);
        }
    }
}

#[test]
fn weights_are_saved_under_the_names_they_came_with() {
    let case = generated("t5").join("gated");
    let saved = tempfile::tempdir().unwrap();
    T5EncoderModel::from_pretrained(&case).load().unwrap().save_pretrained(saved.path()).unwrap();
    let (mut found, mut given) =
        (tensors(&saved.path().join("model.safetensors")), tensors(&case.join("model.safetensors")));
    // The table's second name, which transformers writes or leaves out from version to version.
    for file in [&mut found, &mut given] {
        file.remove("encoder.embed_tokens.weight");
    }
    assert_eq!(found, given);
}

#[test]
fn configurations_and_inputs_that_cannot_be_are_refused() {
    let weights = RandomWeights::new(0, tch::Kind::Float).unwrap();
    let build = |config| T5EncoderModel::new(config, Scope::root(&weights));
    let unknown = T5Config { feed_forward_proj: "gated-silu".into(), ..T5Config::default() };
    let error = build(unknown).unwrap_err();
    assert!(error.to_string().contains("gated-silu"), "{error}");
    let few = T5Config { relative_attention_num_buckets: 2, ..T5Config::default() };
    assert!(build(few).unwrap_err().to_string().contains("relative_attention_num_buckets"));

    let case = generated("t5").join("relu");
    let given = tensors(&case.join("tensors.safetensors"));
    let model = T5EncoderModel::from_pretrained(&case).load().unwrap();
    let error = model.forward(&given["input_ids"], Some(&given["attention_mask"].narrow(1, 0, 3))).unwrap_err();
    assert!(matches!(error, Error::Shape(_)), "{error}");
    assert!(model.forward(&(&given["input_ids"] + 1000), None).is_err());
    assert_eq!(model.node().path(), "");
}
