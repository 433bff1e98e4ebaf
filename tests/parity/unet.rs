//! `UNet2DConditionModel` as a whole.

use crate::support::{cases, generated, json, name, record, tensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tch::{Kind, Tensor};
use tch_diffusers::models::ModelMixin;
use tch_diffusers::models::unets::{AddedCond, UNet, UNet2DConditionModel, UNetInputs};
use tch_diffusers::nn::{Hook, Module, Next, Node};
use tch_diffusers::{Error, MemoryFormat, Result, TensorExt};

fn load(case: &Path, kind: Kind) -> UNet2DConditionModel {
    let loaded = UNet2DConditionModel::from_pretrained(case).torch_dtype(kind).load();
    loaded.unwrap_or_else(|error| panic!("{}: {error}", case.display()))
}

fn case(name: &str) -> PathBuf {
    generated("unet").join(name)
}

/// A case's inputs, and what diffusers made of them.
struct Fixture {
    tensors: BTreeMap<String, Tensor>,
    residuals: Vec<Tensor>,
}

impl Fixture {
    fn read(case: &Path) -> Self {
        let mut tensors = tensors(&case.join("tensors.safetensors"));
        let residuals = (0..).map_while(|index| tensors.remove(&format!("down.{index}"))).collect();
        Self { tensors, residuals }
    }

    /// All inputs but the timestep cast to `kind`.
    fn cast(mut self, kind: Kind) -> Self {
        for (key, tensor) in &mut self.tensors {
            if key != "timestep" && tensor.kind() == Kind::Float {
                *tensor = tensor.to_kind(kind);
            }
        }
        self
    }

    fn inputs(&self) -> UNetInputs<'_> {
        let tensor = |key| self.tensors.get(key);
        let added = |text_embeds| AddedCond {
            text_embeds,
            time_ids: tensor("time_ids").expect("sizes beside the pooled text"),
        };
        let residuals = tensor("mid_block_additional_residual");
        UNetInputs {
            class_labels: tensor("class_labels"),
            timestep_cond: tensor("timestep_cond"),
            attention_mask: tensor("attention_mask"),
            encoder_attention_mask: tensor("encoder_attention_mask"),
            added_cond: tensor("text_embeds").map(added),
            down_block_additional_residuals: residuals.map(|_| &self.residuals[..]),
            mid_block_additional_residual: residuals,
            ..UNetInputs::new(
                &self.tensors["sample"],
                &self.tensors["timestep"],
                &self.tensors["encoder_hidden_states"],
            )
        }
    }
}

#[test]
fn predictions_are_those_of_diffusers() {
    let _guard = tch::no_grad_guard();
    for case in cases(&generated("unet")) {
        let fixture = Fixture::read(&case);
        let prediction = load(&case, Kind::Float).forward(&fixture.inputs()).unwrap();
        let difference = prediction.max_abs_diff(&fixture.tensors["expected"]).unwrap();
        record("unet", &name(&case), "prediction", difference, 0.0);
    }
}

#[test]
fn predictions_in_bfloat16_are_those_of_diffusers() {
    let _guard = tch::no_grad_guard();
    let mut compared = 0;
    for case in cases(&generated("unet")) {
        let fixture = Fixture::read(&case).cast(Kind::BFloat16);
        if let Some(expected) = fixture.tensors.get("expected_bfloat16") {
            let prediction = load(&case, Kind::BFloat16).forward(&fixture.inputs()).unwrap();
            assert_eq!(prediction.kind(), Kind::BFloat16);
            let difference = prediction.max_abs_diff(expected).unwrap();
            record("unet", &name(&case), "prediction in bfloat16", difference, 0.0);
            compared += 1;
        }
    }
    assert_eq!(compared, 3);
}

#[test]
fn a_pipeline_sees_the_model_through_the_trait() {
    let _guard = tch::no_grad_guard();
    let unet: Box<dyn UNet> = Box::new(load(&case("inpainting"), Kind::Float));
    let fixture = Fixture::read(&case("inpainting"));
    assert_eq!((unet.config().in_channels, unet.dtype(), unet.device()), (9, Kind::Float, tch::Device::Cpu));
    let prediction = unet.forward(&fixture.inputs()).unwrap();
    assert_eq!(prediction.max_abs_diff(&fixture.tensors["expected"]).unwrap(), 0.0);
}

#[test]
fn parameters_come_in_the_order_of_diffusers() {
    for case in cases(&generated("unet")) {
        let found: Vec<_> = load(&case, Kind::Float).node().params().into_iter().map(|(key, _)| key).collect();
        let expected: Vec<String> = serde_json::from_value(json(&case.join("parameters.json"))).unwrap();
        assert_eq!(found, expected, "{}", name(&case));
    }
}

#[test]
fn a_saved_model_has_the_same_weights_and_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let unet = load(&case("rare_options"), Kind::Float);
    unet.save_pretrained(folder.path()).unwrap();
    let again = load(folder.path(), Kind::Float);
    assert_eq!(again.config(), unet.config());
    let (before, after) = (unet.node().state_dict(), again.node().state_dict());
    assert_eq!(before.len(), after.len());
    for ((key, before), (key_after, after)) in before.iter().zip(&after) {
        assert_eq!(key, key_after);
        assert_eq!(before.max_abs_diff(after).unwrap(), 0.0, "{key}");
    }
}

/// Every key of diffusers' `config.json`, with its value: whole numbers may be written as 1 or 1.0.
#[test]
fn a_saved_configuration_has_the_values_of_diffusers() {
    let same = |a: &serde_json::Value, b: &serde_json::Value| a == b || (a.is_number() && a.as_f64() == b.as_f64());
    for case in cases(&generated("unet")) {
        let folder = tempfile::tempdir().unwrap();
        load(&case, Kind::Float).save_pretrained(folder.path()).unwrap();
        let (written, expected) = (json(&folder.path().join("config.json")), json(&case.join("config.json")));
        for (key, value) in expected.as_object().unwrap() {
            let found = written.get(key).unwrap_or_else(|| panic!("{}: no `{key}`", name(&case)));
            assert!(same(found, value), "{}: `{key}` is {found} instead of {value}", name(&case));
        }
    }
}

/// Convolutions with channels last are other kernels, which sum in another order: 3.0e-6 is what was seen.
#[test]
fn channels_last_flows_through() {
    let _guard = tch::no_grad_guard();
    for case in ["sd1", "sd2"].map(case) {
        let mut fixture = Fixture::read(&case);
        let last = MemoryFormat::ChannelsLast.apply(&fixture.tensors["sample"]).unwrap();
        fixture.tensors.insert("sample".into(), last);
        let unet = load(&case, Kind::Float);
        unet.to(MemoryFormat::ChannelsLast).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for node in unet.node().walk().iter().filter(|node| node.class() == "Transformer2DModel") {
            node.add_hook("strides", Strides(seen.clone()));
        }
        let prediction = unet.forward(&fixture.inputs()).unwrap();
        let difference = prediction.max_abs_diff(&fixture.tensors["expected"]).unwrap();
        record("unet", &name(&case), "prediction with channels last", difference, 1e-5);
        let seen = seen.lock().unwrap();
        assert!(!seen.is_empty());
        assert!(seen.iter().all(|(size, stride)| stride[1] == 1 || size[2] * size[3] == 1), "{seen:?}");
    }
}

type SeenStrides = Arc<Mutex<Vec<(Vec<i64>, Vec<i64>)>>>;

/// Notes the shape and strides of what a module gives.
#[derive(Debug)]
struct Strides(SeenStrides);

impl Hook for Strides {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        let outputs = next.run(inputs)?;
        self.0.lock().unwrap().extend(outputs.iter().map(|output| (output.size(), output.stride())));
        Ok(outputs)
    }
}

/// Passes everything on, and counts what comes in and goes out.
#[derive(Debug)]
struct Count(Arc<Mutex<Vec<(String, usize, usize)>>>);

impl Hook for Count {
    fn around(&self, node: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        let outputs = next.run(inputs)?;
        self.0.lock().unwrap().push((node.path().to_string(), inputs.len(), outputs.len()));
        Ok(outputs)
    }
}

#[test]
fn hooks_see_the_skip_connections_and_change_nothing() {
    let _guard = tch::no_grad_guard();
    let case = case("layers_list");
    let fixture = Fixture::read(&case);
    let unet = load(&case, Kind::Float);
    let seen = Arc::new(Mutex::new(Vec::new()));
    for node in unet.node().walk() {
        node.add_hook("count", Count(seen.clone()));
    }
    let prediction = unet.forward(&fixture.inputs()).unwrap();
    assert_eq!(prediction.max_abs_diff(&fixture.tensors["expected"]).unwrap(), 0.0);
    let seen = seen.lock().unwrap();
    let arity =
        |path: &str| seen.iter().find(|(known, ..)| known == path).map(|(_, inputs, outputs)| (*inputs, *outputs));
    assert_eq!(arity(""), Some((3, 1)));
    assert_eq!(arity("down_blocks.1"), Some((3, 4)));
    assert_eq!(arity("down_blocks.2"), Some((2, 2)));
    assert_eq!(arity("mid_block"), Some((3, 1)));
    assert_eq!(arity("up_blocks.1"), Some((3 + 4, 1)));
    assert_eq!(arity("up_blocks.1.attentions.3.transformer_blocks.0.attn2"), Some((2, 1)));
}

#[test]
fn wrong_shapes_name_the_module() {
    let _guard = tch::no_grad_guard();
    let unet = load(&case("sd2"), Kind::Float);
    let message = |sample: &[i64], text: &[i64]| {
        let cpu = (Kind::Float, tch::Device::Cpu);
        let (sample, text) = (Tensor::zeros(sample, cpu), Tensor::zeros(text, cpu));
        unet.forward(&UNetInputs::new(&sample, &Tensor::from(1), &text)).unwrap_err().to_string()
    };
    let channels = message(&[1, 5, 8, 8], &[1, 7, 24]);
    assert!(channels.starts_with("conv_in: "), "{channels}");
    let text = message(&[1, 4, 8, 8], &[1, 7, 25]);
    assert!(text.starts_with("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k: "), "{text}");
    let batch = message(&[2, 4, 8, 8], &[1, 7, 24]);
    assert_eq!(batch, "`encoder_hidden_states` is [2, keys, channels] for this sample, got [1, 7, 24]");
    let flat = message(&[4, 8, 8], &[1, 7, 24]);
    assert_eq!(flat, "`sample` is [batch, channels, height, width], got [4, 8, 8]");
}

#[test]
fn missing_conditions_are_arguments() {
    let _guard = tch::no_grad_guard();
    for (case, text) in [("sdxl", "`text_embeds` and `time_ids`"), ("class_rows", "`class_labels`")] {
        let fixture = Fixture::read(&self::case(case));
        let inputs = UNetInputs { added_cond: None, class_labels: None, ..fixture.inputs() };
        let error = load(&self::case(case), Kind::Float).forward(&inputs).unwrap_err();
        assert!(matches!(error.kind(), Error::Argument(message) if message.contains(text)), "{error}");
    }
    let fixture = Fixture::read(&case("lcm"));
    let error = load(&case("inpainting"), Kind::Float)
        .forward(&UNetInputs {
            timestep_cond: fixture.inputs().timestep_cond,
            ..Fixture::read(&case("inpainting")).inputs()
        })
        .unwrap_err();
    assert!(error.to_string().contains("`time_cond_proj_dim`"), "{error}");
}

#[test]
fn residuals_of_a_controlnet_are_counted() {
    let _guard = tch::no_grad_guard();
    let fixture = Fixture::read(&case("controlnet"));
    let unet = load(&case("controlnet"), Kind::Float);
    let fewer = UNetInputs { down_block_additional_residuals: Some(&fixture.residuals[1..]), ..fixture.inputs() };
    let error = unet.forward(&fewer).unwrap_err().to_string();
    assert_eq!(error, "`down_block_additional_residuals` has 5 tensors for 6 skip connections");
    let half = UNetInputs { mid_block_additional_residual: None, ..fixture.inputs() };
    assert!(matches!(unet.forward(&half).unwrap_err().kind(), Error::Argument(_)));
}
