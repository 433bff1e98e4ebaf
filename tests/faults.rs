//! A failure at every point of a forward: it comes out with the module's name, and the next picture is the right one.

use crate::support::generated;
use image::{DynamicImage, Rgb, RgbImage};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::ModelMixin;
use tch_diffusers::nn::{Hook, Module, Next, Node};
use tch_diffusers::{Error, PipelineMixin, Result, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, TensorExt};

fn pipeline() -> StableDiffusionImg2ImgPipeline {
    let folder = generated("pipeline").join("_models/sd1");
    let mut pipe = StableDiffusionImg2ImgPipeline::from_pretrained(folder).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn slope() -> DynamicImage {
    RgbImage::from_fn(16, 16, |x, y| Rgb([(x * 15) as u8, (y * 15) as u8, 90])).into()
}

/// Runs every module of every model: the text encoder, the VAE's encoder, the UNet, the VAE's decoder.
fn draw(pipe: &mut StableDiffusionImg2ImgPipeline) -> Result<Tensor> {
    let call = pipe.call("a red circle", slope()).num_inference_steps(2).strength(0.5).seed(1);
    call.output_type(OutputType::Tensor).run()?.images.into_tensor()
}

/// When the module fails.
#[derive(Clone, Copy, Debug)]
enum When {
    Before,
    After,
}

/// Fails, and counts how often it did.
#[derive(Debug)]
struct Fault(When, Arc<AtomicUsize>);

impl Hook for Fault {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        if matches!(self.0, When::After) {
            next.run(inputs)?;
        }
        self.1.fetch_add(1, Ordering::Relaxed);
        Err(Error::OutOfMemory("injected".into()))
    }
}

fn models(pipe: &StableDiffusionPipeline) -> [(&'static str, Node); 3] {
    let unet = pipe.unet.tree().unwrap();
    [("text_encoder", pipe.text_encoder.node().clone()), ("unet", unet.clone()), ("vae", pipe.vae.node().clone())]
}

/// Has each module fail in turn, or one of `every`, and gives the paths of those that run.
fn fail_everywhere(pipe: &mut StableDiffusionImg2ImgPipeline, when: When, every: usize) -> BTreeSet<String> {
    let right = draw(pipe).unwrap();
    let mut failed = BTreeSet::new();
    for (model, tree) in models(pipe) {
        for node in tree.walk().into_iter().step_by(every) {
            let count = Arc::new(AtomicUsize::new(0));
            node.add_hook("fault", Fault(when, count.clone()));
            let outcome = draw(pipe);
            assert!(node.remove_hook("fault"));
            let path = [model, node.path()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".");
            if count.load(Ordering::Relaxed) == 0 {
                // A container of modules does nothing itself.
                assert!(outcome.is_ok() && node.own_params().is_empty(), "{path} has weights and did not run");
                continue;
            }
            let error = outcome.unwrap_err();
            assert_eq!(error.to_string(), format!("{path}: injected"), "{when:?}");
            assert!(matches!(error.kind(), Error::OutOfMemory(_)), "{error:?}");
            let next = draw(pipe).unwrap();
            assert_eq!(next.max_abs_diff(&right).unwrap(), 0.0, "another picture after {path} failed, {when:?}");
            failed.insert(path);
        }
    }
    failed
}

#[test]
fn each_module_in_turn_fails_by_its_name_and_the_next_picture_is_right() {
    let mut pipe = pipeline();
    let failed = fail_everywhere(&mut pipe, When::Before, 1);
    assert!(fail_everywhere(&mut pipe, When::After, 5).is_subset(&failed));
    for part in ["text_encoder.encoder.layers.1.mlp.fc1", "unet.mid_block", "unet.conv_out", "unet"] {
        assert!(failed.contains(part), "{part} did not fail: {failed:#?}");
    }
    for part in ["vae.encoder.conv_in", "vae.quant_conv", "vae.post_quant_conv", "vae.decoder.conv_out"] {
        assert!(failed.contains(part), "{part} did not fail: {failed:#?}");
    }
    let with_weights = models(&pipe).into_iter().flat_map(|(_, tree)| tree.walk());
    assert!(failed.len() >= with_weights.filter(|node| !node.own_params().is_empty()).count());
}

/// What is at work around the modules that fail.
type Switch = fn(&mut StableDiffusionImg2ImgPipeline);

#[test]
fn a_failure_under_offloading_or_casting_leaves_the_next_picture_right() {
    let switches: [(&str, Switch); 6] = [
        ("model", |pipe| pipe.enable_model_cpu_offload(Device::Cpu).unwrap()),
        ("sequential", |pipe| pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap()),
        ("leaf", |pipe| pipe.enable_group_offload(&GroupOffloading::leaf_level(), &[]).unwrap()),
        ("block", |pipe| pipe.enable_group_offload(&GroupOffloading::block_level(1), &[]).unwrap()),
        ("disk", |pipe| {
            let options = GroupOffloading::leaf_level().offload_to_disk(true);
            pipe.enable_group_offload(&options, &[]).unwrap();
        }),
        ("casting", |pipe| {
            for (_, node) in models(pipe) {
                let kind = Kind::Float8e4m3fn;
                let skip = tch_diffusers::hooks::SkipModules { pattern: Some(&["norm"]), classes: None };
                tch_diffusers::hooks::apply_layerwise_casting(&node, kind, Kind::Float, skip).unwrap();
            }
        }),
    ];
    for (number, (name, switch)) in switches.into_iter().enumerate() {
        let mut pipe = pipeline();
        switch(&mut pipe);
        let before: Vec<_> = stored(&pipe);
        // Other modules each time: all of them take minutes.
        let failed = fail_everywhere(&mut pipe, When::After, 7 + number);
        assert!(failed.len() > 20, "{name}: {failed:?}");
        assert_eq!(stored(&pipe), before, "{name}: weights lie elsewhere, or in another dtype");
    }
}

/// Dtype and number of elements of every weight as it waits.
fn stored(pipe: &StableDiffusionPipeline) -> Vec<(String, Kind, usize)> {
    let weights = models(pipe).into_iter().flat_map(|(_, tree)| tree.state_dict());
    weights.map(|(key, weight)| (key, weight.kind(), weight.numel())).collect()
}

#[test]
fn an_error_in_a_callback_comes_out_as_it_is_under_offloading_too() {
    let switches: [Switch; 4] = [
        |_| (),
        |pipe| pipe.enable_model_cpu_offload(Device::Cpu).unwrap(),
        |pipe| pipe.enable_group_offload(&GroupOffloading::leaf_level(), &[]).unwrap(),
        |pipe| pipe.vae.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap(),
    ];
    for switch in switches {
        let mut pipe = pipeline();
        switch(&mut pipe);
        let right = draw(&mut pipe).unwrap();
        for step in [0, 1] {
            let call = pipe.call("a red circle", slope()).num_inference_steps(4).strength(0.5).seed(1);
            let failing = call.callback_on_step_end(|end| match end.step {
                number if number == step => Err(Error::Argument("enough".into())),
                _ => Ok(()),
            });
            assert_eq!(failing.run().unwrap_err().to_string(), "enough");
            assert_eq!(draw(&mut pipe).unwrap().max_abs_diff(&right).unwrap(), 0.0);
        }
    }
}

/// Panics in the middle of a forward.
#[derive(Debug)]
struct Panic;

impl Hook for Panic {
    fn around(&self, _: &Node, _: &[Tensor], _: Next<'_>) -> Result<Vec<Tensor>> {
        panic!("injected");
    }
}

#[test]
fn a_panic_in_a_hook_or_a_callback_leaves_the_next_picture_right() {
    let switches: [Switch; 5] = [
        |_| (),
        |pipe| pipe.enable_model_cpu_offload(Device::Cpu).unwrap(),
        |pipe| pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap(),
        |pipe| pipe.enable_group_offload(&GroupOffloading::leaf_level(), &[]).unwrap(),
        |pipe| pipe.vae.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap(),
    ];
    for switch in switches {
        let mut pipe = pipeline();
        switch(&mut pipe);
        let right = draw(&mut pipe).unwrap();
        for (_, tree) in models(&pipe) {
            let nodes = tree.walk();
            let node = &nodes[nodes.len() / 2];
            node.add_hook("panic", Panic);
            let outcome = catch_unwind(AssertUnwindSafe(|| draw(&mut pipe)));
            assert!(node.remove_hook("panic"));
            assert!(outcome.is_err() || node.own_params().is_empty(), "{} did not run", node.path());
            assert_eq!(draw(&mut pipe).unwrap().max_abs_diff(&right).unwrap(), 0.0, "after {}", node.path());
        }
        let call = || {
            let call = pipe.call("a red circle", slope()).num_inference_steps(2).seed(1);
            call.callback_on_step_end(|_| panic!("injected")).run()
        };
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
        assert_eq!(draw(&mut pipe).unwrap().max_abs_diff(&right).unwrap(), 0.0);
    }
}
