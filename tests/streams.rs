//! Group offloading with a lane for copies, on a simulated device whose copies are as late as they may be.

mod faults;
mod memory;
mod order;

use crate::support::{Simulated, generated, tensors};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::{GroupOffloading, apply_group_offloading_on, remove_group_offloading};
use tch_diffusers::models::unets::UNetInputs;
use tch_diffusers::nn::{Hook, Linear, Module, Next, Node, RandomWeights, Scope};
use tch_diffusers::{Error, MemoryFormat, ModelMixin, Result, TensorExt, UNet2DConditionModel};

fn case() -> PathBuf {
    generated("offloading").join("unet")
}

fn unet(kind: Kind) -> UNet2DConditionModel {
    UNet2DConditionModel::from_pretrained(case()).torch_dtype(kind).load().unwrap()
}

fn predict(unet: &UNet2DConditionModel) -> Result<Tensor> {
    let given = tensors(&case().join("tensors.safetensors"));
    let kind = unet.node().dtype();
    let (sample, text) = (given["sample"].to_kind(kind), given["text"].to_kind(kind));
    tch::no_grad(|| unet.forward(&UNetInputs::new(&sample, &Tensor::from(10), &text)))
}

/// Where each weight lies, and as what.
fn state(node: &Node) -> Vec<(String, usize, Kind)> {
    node.state_dict().into_iter().map(|(key, tensor)| (key, tensor.data_ptr() as usize, tensor.kind())).collect()
}

fn hooks(node: &Node) -> usize {
    node.walk().iter().map(|node| node.hook_names().len()).sum()
}

fn count(log: &[String], step: &str) -> usize {
    log.iter().filter(|event| event.split(' ').next() == Some(step)).count()
}

/// Each way of copying, by name.
fn ways() -> Vec<(&'static str, GroupOffloading)> {
    let leaf = GroupOffloading::leaf_level;
    vec![
        ("blocks", GroupOffloading::block_level(1)),
        ("pairs of blocks", GroupOffloading::block_level(2)),
        ("leaves", leaf()),
        ("leaves, four ahead", leaf().prefetch_groups(4)),
        ("leaves, none ahead", leaf().prefetch_groups(0)),
        ("leaves, recorded", leaf().use_stream(true).record_stream(true)),
        ("leaves, passing through", leaf().low_cpu_mem_usage(true)),
        ("blocks, passing through", GroupOffloading::block_level(1).low_cpu_mem_usage(true)),
        ("leaves, some pinned", leaf().use_stream(true).pinned_memory_limit(40 << 10)),
        ("blocks in pieces", GroupOffloading::block_level(1).use_stream(true).pinned_memory_limit(16 << 10)),
        ("leaves in files", leaf().offload_to_disk(true)),
        ("blocks in files", GroupOffloading::block_level(1).offload_to_disk(true).prefetch_groups(2)),
    ]
}

#[test]
fn copied_weights_give_the_bits_of_resident_ones() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let unet = unet(kind);
        let expected = predict(&unet).unwrap();
        for (way, options) in ways() {
            let device = Simulated::default();
            apply_group_offloading_on(unet.node(), &options, device.clone()).unwrap();
            assert_eq!(unet.node().dtype(), kind, "{way}");
            let before = state(unet.node());
            for run in 0..3 {
                let output = predict(&unet).unwrap();
                assert_eq!(output.max_abs_diff(&expected).unwrap(), 0.0, "{way}, run {run}");
                assert!(device.is_idle(), "{way}: copies that nobody waited for");
                assert_eq!(state(unet.node()), before, "{way}");
            }
            assert!(remove_group_offloading(unet.node()).unwrap());
            assert_eq!((hooks(unet.node()), device.with(|device| device.pinned)), (0, 0), "{way}");
            assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0, "{way}");
        }
    }
}

/// Notes the strides of its module's weight while the module runs.
#[derive(Debug)]
struct Strides(std::sync::Arc<std::sync::Mutex<Vec<i64>>>);

impl Hook for Strides {
    fn around(&self, node: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        *self.0.lock().unwrap() = node.own_params()[0].1.get().stride();
        next.run(inputs)
    }
}

#[test]
fn weights_with_channels_last_arrive_with_channels_last() {
    for disk in [false, true] {
        let unet = unet(Kind::Float);
        unet.to(MemoryFormat::ChannelsLast).unwrap();
        let expected = predict(&unet).unwrap();
        let conv = unet.node().get("conv_out").unwrap();
        let (strides, seen) = (conv.state_dict()[0].1.stride(), std::sync::Arc::default());
        assert_eq!(strides[1], 1);
        conv.add_hook("strides", Strides(std::sync::Arc::clone(&seen)));
        let options = GroupOffloading::leaf_level().offload_to_disk(disk);
        apply_group_offloading_on(unet.node(), &options, Simulated::default()).unwrap();
        assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
        assert_eq!(*seen.lock().unwrap(), strides);
        remove_group_offloading(unet.node()).unwrap();
        assert_eq!(conv.state_dict()[0].1.stride(), strides);
    }
}

#[test]
fn weights_cast_for_each_layer_travel_in_their_eight_bits() {
    let unet = unet(Kind::BFloat16);
    let device = Simulated::default();
    let copied = |options: &GroupOffloading| {
        apply_group_offloading_on(unet.node(), options, device.clone()).unwrap();
        let _ = predict(&unet).unwrap();
        device.with(|device| std::mem::take(&mut device.copied))
    };
    let options = GroupOffloading::block_level(1);
    let plain = copied(&options);
    remove_group_offloading(unet.node()).unwrap();
    unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    let expected = predict(&unet).unwrap();
    let cast = copied(&options);
    // Norms and biases keep their 16 bits, and each weight begins at a multiple of 256 bytes.
    assert!(cast * 10 < plain * 8, "{cast} of {plain} bytes");
    for (way, options) in [("blocks", options), ("leaves", GroupOffloading::leaf_level())] {
        apply_group_offloading_on(unet.node(), &options, device.clone()).unwrap();
        for _ in 0..2 {
            assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0, "{way}");
        }
    }
    assert!(unet.node().state_dict().iter().any(|(_, weight)| weight.kind() == Kind::Float8e4m3fn));
}

#[test]
fn a_cast_or_a_change_between_two_calls_is_followed() {
    for (way, options) in ways() {
        let (unet, other) = (unet(Kind::Float), unet(Kind::BFloat16));
        let device = Simulated::default();
        apply_group_offloading_on(unet.node(), &options, device.clone()).unwrap();
        let _ = predict(&unet).unwrap();
        unet.to(Kind::BFloat16).unwrap();
        for _ in 0..2 {
            assert_eq!(predict(&unet).unwrap().max_abs_diff(&predict(&other).unwrap()).unwrap(), 0.0, "{way}");
        }
        for model in [&unet, &other] {
            let _ = tch::no_grad(|| model.node().get("conv_out").unwrap().own_params()[0].1.get().fill_(0.5));
        }
        assert_eq!(predict(&unet).unwrap().max_abs_diff(&predict(&other).unwrap()).unwrap(), 0.0, "{way}");
    }
}

/// A module that gives a part of its own weight, as an embedding of positions may.
#[test]
fn what_a_module_gives_of_its_weight_outlives_the_weight() {
    let weights = RandomWeights::new(0, Kind::Float).unwrap();
    let root = Scope::root(&weights);
    let (first, second) =
        (Linear::new(&root / "first", 8, 8, false).unwrap(), Linear::new(&root / "second", 8, 8, false).unwrap());
    let node = root.finish::<Linear>();
    let run = || {
        node.call([&Tensor::zeros([1, 8], (Kind::Float, Device::Cpu))], |[x]| {
            let [part] = first.node().call([x], |_| Ok([first.node().own_params()[0].1.get().narrow(0, 2, 3)]))?;
            let _ = second.forward(x)?;
            Ok([part])
        })
    };
    let [expected] = run().unwrap().map(|part| part.copy());
    apply_group_offloading_on(&node, &GroupOffloading::leaf_level(), Simulated::default()).unwrap();
    for _ in 0..3 {
        assert_eq!(run().unwrap()[0].max_abs_diff(&expected).unwrap(), 0.0);
    }
}

#[test]
fn without_cuda_a_stream_is_refused_before_anything_is_touched() {
    if tch_diffusers::torch::cuda_unavailable_reason().unwrap().is_none() {
        return;
    }
    let unet = unet(Kind::Float);
    let before = state(unet.node());
    let options = GroupOffloading::leaf_level().onload_device(Device::Cuda(0)).use_stream(true);
    let error = unet.enable_group_offload(&options).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(text) if text.contains("`use_stream`: streams need")), "{error}");
    assert_eq!((state(unet.node()), hooks(unet.node())), (before, 0));
}
