//! Offloading: the same results, less memory, and nothing left behind.

use crate::support::{generated, tensors, transfers};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::{
    GroupOffloading, ModelOffload, apply_group_offloading, apply_sequential_offloading, remove_group_offloading,
    remove_sequential_offloading,
};
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::models::unets::{UNet2DConditionConfig, UNetInputs};
use tch_diffusers::nn::{Hook, Linear, Module, Next, Node, RandomWeights, Scope};
use tch_diffusers::torch::cuda_unavailable_reason;
use tch_diffusers::{
    Error, MemoryFormat, ModelMixin, PipelineMixin, Result, StableDiffusionPipeline, TensorExt, UNet2DConditionModel,
};

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

fn disk(options: GroupOffloading) -> GroupOffloading {
    options.onload_device(Device::Cpu).offload_to_disk(true)
}

/// Where each weight lies, and as what.
fn state(node: &Node) -> Vec<(String, usize, Device, Kind)> {
    let state = |(key, tensor): (String, Tensor)| (key, tensor.data_ptr() as usize, tensor.device(), tensor.kind());
    node.state_dict().into_iter().map(state).collect()
}

fn hooks(node: &Node) -> usize {
    node.walk().iter().map(|node| node.hook_names().len()).sum()
}

#[test]
fn weights_left_to_their_file_give_the_bits_of_weights_in_memory() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let unet = unet(kind);
        let expected = predict(&unet).unwrap();
        for options in [GroupOffloading::block_level(1), GroupOffloading::block_level(2), GroupOffloading::leaf_level()]
        {
            unet.enable_group_offload(&disk(options)).unwrap();
            assert_eq!(unet.node().dtype(), kind);
            for _ in 0..2 {
                assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
            }
            assert!(unet.node().params().iter().all(|(_, param)| param.origin().unwrap().is(&param.get()).unwrap()));
        }
        assert!(unet.disable_group_offload().unwrap());
        assert!(!unet.disable_group_offload().unwrap());
        assert_eq!(unet.node().state_dict()[0].1.kind(), kind);
        assert_eq!((predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), hooks(unet.node())), (0.0, 0));
    }
}

#[test]
fn weights_with_channels_last_are_read_back_with_channels_last() {
    let unet = unet(Kind::Float);
    unet.to(MemoryFormat::ChannelsLast).unwrap();
    let (expected, strides) =
        (predict(&unet).unwrap(), unet.node().get("conv_out").unwrap().state_dict()[0].1.stride());
    assert_eq!(strides[1], 1);
    unet.enable_group_offload(&disk(GroupOffloading::leaf_level())).unwrap();
    assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
    unet.disable_group_offload().unwrap();
    assert_eq!(unet.node().get("conv_out").unwrap().state_dict()[0].1.stride(), strides);
}

#[test]
fn weights_that_a_file_would_not_give_again_stay_where_they_are() {
    let options = disk(GroupOffloading::leaf_level());
    let refused = |node: &Node, reason: &str| {
        let before = state(node);
        let error = apply_group_offloading(node, &options).unwrap_err();
        assert!(matches!(&error, Error::Argument(text) if text.contains(reason)), "{error}");
        assert_eq!((state(node), hooks(node)), (before, 0));
    };
    let weights = RandomWeights::new(0, Kind::Float).unwrap();
    let linear = Linear::new(Scope::root(&weights), 3, 2, true).unwrap();
    refused(linear.node(), "`weight` cannot be left to its file: it did not come from a safetensors file");

    let replaced = unet(Kind::Float);
    let param = replaced.node().get("conv_out").unwrap().own_params().remove(0).1;
    drop(param.replace(param.get() * 2.0));
    refused(replaced.node(), "`conv_out.weight` cannot be left to its file: it was changed since it was loaded");

    let cast = unet(Kind::Float);
    cast.to(Kind::Float8e4m3fn).unwrap();
    refused(cast.node(), "stores it in 8 bits");

    let written = unet(Kind::Float);
    let _ = tch::no_grad(|| written.node().params()[3].1.get().fill_(1.0));
    refused(written.node(), "changed in place");
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let cpu = || GroupOffloading::leaf_level().onload_device(Device::Cpu);
    let cuda = || GroupOffloading::leaf_level().onload_device(Device::Cuda(0));
    let cases = [
        (cpu().pinned_memory_limit(1 << 30), "`pinned_memory_limit` goes with `use_stream`"),
        (cuda().use_stream(true).pinned_memory_limit(1), "has to be at least 16384 bytes"),
        (
            cuda().use_stream(true).offload_device(Device::Cuda(0)),
            "with `use_stream` the offload device has to be the CPU",
        ),
        (GroupOffloading::block_level(0), "`num_blocks_per_group` has to be at least 1"),
        (cpu().use_stream(true), "the CPU has none"),
        (cpu().record_stream(true), "`record_stream` cannot be true when `use_stream` is false"),
        (cuda().offload_to_disk(true).offload_device(Device::Cuda(0)), "the offload device has to be the CPU"),
    ];
    for (options, reason) in cases {
        let error = options.check().unwrap_err();
        assert!(matches!(&error, Error::Argument(text) if text.contains(reason)), "{error}");
    }
    if let Some(reason) = cuda_unavailable_reason().unwrap() {
        let error = cuda().use_stream(true).check().unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("`use_stream`") && text.contains(&reason)));
    }
}

/// Fails when its module is called for the `at`-th time, counted over all modules that share the counter.
#[derive(Debug)]
struct Fault {
    calls: &'static AtomicUsize,
    at: usize,
}

impl Hook for Fault {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        match self.calls.fetch_add(1, Ordering::Relaxed) {
            call if call == self.at => Err(Error::OutOfMemory("injected".into())),
            _ => next.run(inputs),
        }
    }
}

/// Lets the `at`-th call of a layer fail.
fn predict_with_fault(unet: &UNet2DConditionModel, at: usize) {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    CALLS.store(0, Ordering::Relaxed);
    let layers: Vec<_> = unet.node().walk().into_iter().filter(|node| !node.own_params().is_empty()).collect();
    layers.iter().for_each(|layer| layer.add_hook("fault", Fault { calls: &CALLS, at }));
    let error = predict(unet).unwrap_err();
    assert!(matches!(error.kind(), Error::OutOfMemory(text) if text == "injected"), "{error}");
    layers.iter().for_each(|layer| assert!(layer.remove_hook("fault")));
}

#[test]
fn a_failing_forward_leaves_the_weights_as_they_were() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let unet = unet(kind);
        let expected = predict(&unet).unwrap();
        let level = || GroupOffloading::block_level(2).onload_device(Device::Cpu);
        for options in [level(), disk(level()), disk(GroupOffloading::leaf_level())] {
            unet.enable_group_offload(&options).unwrap();
            let before = state(unet.node());
            for at in (0..183).step_by(23) {
                let ((), seen) = transfers(|| predict_with_fault(&unet, at));
                assert_eq!(state(unet.node()), before, "fault at {at}");
                let count = |action: &str| seen.iter().filter(|seen| seen.starts_with(action)).count();
                assert_eq!(count("onload"), count("offload"), "fault at {at}");
            }
            assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
        }
    }
}

#[test]
fn a_cast_between_two_calls_is_followed() {
    let (unet, expected) = (unet(Kind::Float), predict(&unet(Kind::BFloat16)).unwrap());
    unet.enable_group_offload(&disk(GroupOffloading::leaf_level())).unwrap();
    unet.to(Kind::BFloat16).unwrap();
    assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
}

#[test]
fn offloading_can_be_switched_a_thousand_times() {
    let unet = unet(Kind::Float);
    let (expected, before) = (predict(&unet).unwrap(), state(unet.node()));
    let leaf = disk(GroupOffloading::leaf_level());
    unet.enable_group_offload(&leaf).unwrap();
    let attached = hooks(unet.node());
    for _ in 0..1000 {
        unet.enable_group_offload(&leaf).unwrap();
        assert_eq!(hooks(unet.node()), attached);
        unet.disable_group_offload().unwrap();
        apply_sequential_offloading(unet.node(), Device::Cpu).unwrap();
        assert!(remove_sequential_offloading(unet.node()));
        ModelOffload::new(&[("unet", unet.node())], Device::Cpu).unwrap().remove();
        assert_eq!(hooks(unet.node()), 0);
    }
    assert_eq!(state(unet.node()), before);
    assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
}

#[test]
fn one_offloading_at_a_time() {
    let unet = unet(Kind::Float);
    let group = GroupOffloading::leaf_level().onload_device(Device::Cpu);
    let refused = |result: Result<()>, reason: &str| {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::Argument(text) if text.contains(reason)), "{error}");
    };
    unet.enable_group_offload(&group).unwrap();
    refused(apply_sequential_offloading(unet.node(), Device::Cpu), "while group offloading is on");
    refused(unet.to(Device::Cpu), "the model cannot be moved while group offloading is on");
    remove_group_offloading(unet.node()).unwrap();
    apply_sequential_offloading(unet.node(), Device::Cpu).unwrap();
    refused(unet.enable_group_offload(&group), "while sequential offloading is on");
    refused(ModelOffload::new(&[("unet", unet.node())], Device::Cpu).map(drop), "while sequential offloading is on");
    remove_sequential_offloading(unet.node());
    unet.to(Device::Cpu).unwrap();
}

fn pipeline() -> StableDiffusionPipeline {
    let folder = generated("pipeline").join("_models").join("sd1");
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn draw(pipe: &mut StableDiffusionPipeline) -> Tensor {
    let call = pipe.call("a cat").num_inference_steps(2).seed(3).output_type(OutputType::Tensor);
    match call.run().unwrap().images {
        Images::Tensor(pixels) => pixels,
        _ => unreachable!("tensors were asked for"),
    }
}

#[test]
fn model_offload_has_one_model_at_a_time_on_the_device() {
    let mut pipe = pipeline();
    let expected = draw(&mut pipe);
    pipe.enable_model_cpu_offload(Device::Cpu).unwrap();
    let order = ["text_encoder", "unet", "vae"].map(|name| [format!("onload {name}"), format!("offload {name}")]);
    for _ in 0..2 {
        let (pixels, seen) = transfers(|| draw(&mut pipe));
        assert_eq!(pixels.max_abs_diff(&expected).unwrap(), 0.0);
        assert_eq!(seen, order.concat());
    }
    let latents = Tensor::zeros([1, 4, 4, 4], (Kind::Float, Device::Cpu));
    let (decoded, seen) = transfers(|| pipe.vae.decode(&latents));
    assert!(decoded.is_ok());
    assert_eq!(seen, ["onload vae"]);
    let ((), seen) = transfers(|| pipe.maybe_free_model_hooks());
    assert_eq!(seen, ["offload vae"]);
    let error = pipe.to(Device::Cpu).unwrap_err().to_string();
    assert_eq!(error, "the pipeline cannot be moved while model offloading is on: switch it off first");
    pipe.remove_all_hooks().unwrap();
    assert_eq!(transfers(|| draw(&mut pipe)).1, [""; 0]);
}

#[test]
fn every_group_of_a_pipeline_comes_and_goes() {
    let mut pipe = pipeline();
    let expected = draw(&mut pipe);
    let options = disk(GroupOffloading::leaf_level());
    pipe.enable_group_offload(&options, &["vae"]).unwrap();
    let groups: Vec<_> = [pipe.text_encoder.node(), pipe.unet.tree().unwrap()]
        .into_iter()
        .flat_map(|node| options.groups(node).unwrap())
        .map(|group| format!("onload {}", group.id))
        .collect();
    let (pixels, seen) = transfers(|| draw(&mut pipe));
    assert_eq!(pixels.max_abs_diff(&expected).unwrap(), 0.0);
    let missing: Vec<_> = groups.iter().filter(|group| !seen.contains(group)).collect();
    assert!(missing.is_empty(), "never came: {missing:?}");
    let strangers: Vec<_> = seen.iter().filter(|seen| seen.starts_with("onload") && !groups.contains(seen)).collect();
    assert!(strangers.is_empty(), "came, though excluded: {strangers:?}");
    let error = pipe.enable_group_offload(&options, &["safety"]).unwrap_err().to_string();
    assert_eq!(error, "the pipeline has no model `safety`: it has text_encoder, unet, vae");
}

#[test]
fn sequential_offload_brings_each_layer_for_its_own_forward() {
    let mut pipe = pipeline();
    let expected = draw(&mut pipe);
    pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap();
    let (pixels, seen) = transfers(|| draw(&mut pipe));
    assert_eq!(pixels.max_abs_diff(&expected).unwrap(), 0.0);
    let position = |event: &str| seen.iter().position(|seen| seen == event).unwrap_or_else(|| panic!("no {event}"));
    assert_eq!(position("offload conv_in"), position("onload conv_in") + 1);
    assert!(position("onload embeddings.token_embedding") < position("onload conv_in"));
}

/// One of the numbers of /proc/self/status, in bytes.
fn memory(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// How far resident memory, mapped pages included, rises above what it is now while `work` is done, in bytes.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    let done = work();
    (done, memory("VmHWM").saturating_sub(before))
}

/// A UNet of Stable Diffusion's build with fewer channels, written to `folder`; gives its size in bytes.
fn save_unet(folder: &Path, channels: [i64; 4]) -> usize {
    let config = serde_json::json!({
        "block_out_channels": channels, "cross_attention_dim": 256, "attention_head_dim": 8, "sample_size": 16,
    });
    let config: UNet2DConditionConfig = serde_json::from_value(config).unwrap();
    let weights = RandomWeights::new(0, Kind::Float).unwrap();
    let unet = UNet2DConditionModel::from_weights(config, &weights).unwrap();
    unet.save_pretrained(folder).unwrap();
    unet.node().num_parameters() * 4
}

fn predict_noise(unet: &UNet2DConditionModel) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let (sample, text) = (Tensor::ones([1, 4, 16, 16], options), Tensor::ones([1, 8, 256], options));
    tch::no_grad(|| unet.forward(&UNetInputs::new(&sample, &Tensor::from(10), &text))).unwrap()
}

/// The shortest of three forwards.
fn seconds(unet: &UNet2DConditionModel) -> f64 {
    let time = |_| {
        let start = std::time::Instant::now();
        let _ = predict_noise(unet);
        start.elapsed().as_secs_f64()
    };
    (0..3).map(time).fold(f64::INFINITY, f64::min)
}

/// Alone in its process, where nothing else takes memory.
#[test]
#[ignore = "run by weights_left_to_their_file_do_not_fill_memory"]
fn measures_memory() {
    let (small, large) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save_unet(small.path(), [32, 32, 32, 32]);
    let size = save_unet(large.path(), [64, 128, 256, 256]);
    let load = |folder: &Path| UNet2DConditionModel::from_pretrained(folder).load().unwrap();
    // What libtorch sets up in its first forward is not to be counted.
    let _ = predict_noise(&load(small.path()));
    let unet = load(large.path());
    let share = |bytes: usize| bytes as f64 / size as f64;
    let mut outputs = vec![];
    let levels = [("leaf", GroupOffloading::leaf_level(), 0.25), ("block", GroupOffloading::block_level(1), 0.5)];
    for (level, options, bound) in levels {
        unet.enable_group_offload(&disk(options)).unwrap();
        let (output, bytes) = peak(|| predict_noise(&unet));
        println!("{level}: {:.3} of {size} bytes, {:.3} s", share(bytes), seconds(&unet));
        assert!(share(bytes) < bound, "{level} took {bytes} bytes of {size}");
        outputs.push(output);
    }
    let before = memory("VmRSS");
    for _ in 0..20 {
        outputs.push(predict_noise(&unet));
        unet.enable_group_offload(&disk(GroupOffloading::leaf_level())).unwrap();
    }
    let grown = memory("VmRSS").saturating_sub(before);
    assert!(share(grown) < 0.1, "20 forwards left {grown} bytes behind");
    unet.disable_group_offload().unwrap();
    let (resident, bytes) = peak(|| predict_noise(&unet));
    println!("resident: {:.3} of {size} bytes, {:.3} s", share(bytes), seconds(&unet));
    assert!(share(bytes) > 0.95, "{bytes} of {size} bytes: the weights were not counted");
    assert!(outputs.iter().all(|output| output.max_abs_diff(&resident).unwrap() == 0.0));
    drop(unet);
    casts_what_it_reads(large.path(), size);
}

/// A file in half the bytes, computed in float32: loading casts nothing, and a forward one layer at a time.
fn casts_what_it_reads(folder: &Path, size: usize) {
    UNet2DConditionModel::from_pretrained(folder)
        .torch_dtype(Kind::BFloat16)
        .load()
        .unwrap()
        .save_pretrained(folder)
        .unwrap();
    let loader = || UNet2DConditionModel::from_pretrained(folder).torch_dtype(Kind::Float);
    let ((unet, output), bytes) = peak(|| {
        let unet = loader().group_offload(disk(GroupOffloading::leaf_level())).load().unwrap();
        let output = predict_noise(&unet);
        (unet, output)
    });
    println!("cast for each forward: {:.3} of {size} bytes", bytes as f64 / size as f64);
    assert!(bytes < size * 3 / 10, "loading and a forward took {bytes} bytes of {size}");
    assert_eq!((unet.node().dtype(), output.kind()), (Kind::Float, Kind::Float));
    let resident = predict_noise(&loader().load().unwrap());
    assert_eq!(output.max_abs_diff(&resident).unwrap(), 0.0);
    unet.disable_group_offload().unwrap();
    assert!(unet.node().state_dict().iter().all(|(_, weight)| weight.kind() == Kind::Float));
    assert_eq!(predict_noise(&unet).max_abs_diff(&resident).unwrap(), 0.0);
}

#[cfg(target_os = "linux")]
#[test]
fn weights_left_to_their_file_do_not_fill_memory() {
    let arguments = ["--ignored", "--exact", "offloading::measures_memory", "--nocapture"];
    let output = std::process::Command::new(std::env::current_exe().unwrap()).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
