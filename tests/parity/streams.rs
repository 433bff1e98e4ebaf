//! Group offloading on a stream: groups come and go in the order of diffusers, without the host waiting for them.

use crate::support::{Simulated, generated, json, record, tensors};
use std::path::Path;
use tch::Tensor;
use tch_diffusers::hooks::{GroupOffloading, apply_group_offloading_on};
use tch_diffusers::models::unets::UNetInputs;
use tch_diffusers::nn::Module;
use tch_diffusers::{AutoencoderKL, ModelMixin, Result, TensorExt, UNet2DConditionModel};

fn options(config: &str) -> GroupOffloading {
    match config {
        "leaf" => GroupOffloading::leaf_level(),
        _ => GroupOffloading::block_level(1).block_modules(AutoencoderKL::GROUP_OFFLOAD_BLOCK_MODULES),
    }
}

/// Coming and going, as diffusers knows it: that it was sent for, and that it went.
fn transfers(log: &[String]) -> Vec<String> {
    let known = |event: &&String| ["onload ", "prefetch ", "offload "].iter().any(|step| event.starts_with(step));
    log.iter().filter(known).map(|event| event.replace("prefetch ", "onload ")).collect()
}

fn count(log: &[String], step: &str) -> usize {
    log.iter().filter(|event| event.split(' ').next() == Some(step)).count()
}

struct Case<'a> {
    name: &'static str,
    config: &'a str,
    folder: &'a Path,
    expected: &'a [serde_json::Value],
}

impl Case<'_> {
    /// Runs the model as often as diffusers did; gives the log of the last run.
    fn run(&self, model: &impl Module, forward: impl Fn() -> Result<Tensor>, is_same_order: bool) -> Vec<String> {
        let device = Simulated::default();
        apply_group_offloading_on(model.node(), &options(self.config), device.clone()).unwrap();
        let expected_output = &tensors(&self.folder.join("tensors.safetensors"))["expected"];
        let mut last = vec![];
        for (number, expected) in self.expected.iter().enumerate() {
            let (output, log) = device.log(|| forward().unwrap());
            let events: Vec<String> = serde_json::from_value(expected["events"].clone()).unwrap();
            if is_same_order || number == 0 {
                assert_eq!(transfers(&log), events, "{} {} run {number}", self.name, self.config);
            }
            let onloads = |events: &[String]| {
                let came = events.iter().filter(|event| event.starts_with("onload")).cloned();
                came.collect::<Vec<_>>()
            };
            assert_eq!(onloads(&transfers(&log)), onloads(&events), "{} {} run {number}", self.name, self.config);
            assert!(expected["host_waits"].as_u64().unwrap() > 0);
            assert_eq!(count(&log, "synchronize"), 0, "the host waits");
            assert_eq!(count(&log, "copy"), onloads(&events).len(), "not one copy for each group");
            let quantity = format!("output, {}, run {number}", self.config);
            record("streams", self.name, &quantity, output.max_abs_diff(expected_output).unwrap(), 0.0);
            last = log;
        }
        last
    }
}

#[test]
fn groups_on_a_stream_come_and_go_in_the_order_of_diffusers() {
    let _guard = tch::no_grad_guard();
    let folder = generated("streams").join("unet");
    let given = tensors(&folder.join("tensors.safetensors"));
    for (config, expected) in json(&folder.join("streams.json")).as_object().unwrap() {
        let unet = UNet2DConditionModel::from_pretrained(&folder).load().unwrap();
        let forward = || unet.forward(&UNetInputs::new(&given["sample"], &Tensor::from(10), &given["text"]));
        let case = Case { name: "unet", config, folder: &folder, expected: expected.as_array().unwrap() };
        let log = case.run(&unet, forward, true);
        // The first one has nobody ahead of it.
        assert_eq!(count(&log, "onload"), 1, "{config}: {log:?}");
    }
}

/// diffusers learns the order of `forward` alone, so that of the leaves of a VAE, which pipelines call by `decode`, none is
/// ever sent for ahead.
#[test]
fn a_vae_sends_for_its_groups_ahead_where_diffusers_never_does() {
    let _guard = tch::no_grad_guard();
    let folder = generated("streams").join("vae_decode");
    let given = tensors(&folder.join("tensors.safetensors"));
    for (config, expected) in json(&folder.join("streams.json")).as_object().unwrap() {
        let vae = AutoencoderKL::from_pretrained(&folder).load().unwrap();
        let expected = expected.as_array().unwrap();
        let case = Case { name: "vae_decode", config, folder: &folder, expected };
        let log = case.run(&vae, || vae.decode(&given["sample"]), false);
        assert_eq!(count(&log, "onload"), 1, "{config}: {log:?}");
        if config == "leaf" {
            assert_eq!(expected[0]["events"], expected[2]["events"], "diffusers sends for groups ahead");
        }
    }
}
