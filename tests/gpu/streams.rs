//! Group offloading on CUDA streams.

use crate::support::generated;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::models::unets::{UNet2DConditionConfig, UNetInputs};
use tch_diffusers::nn::{Module, RandomWeights};
use tch_diffusers::torch::{
    Event, MemoryTracker, PAGE, PinnedMemory, Stream, copy_non_blocking, is_pinned, record_stream, whole_pages,
};
use tch_diffusers::{ModelMixin, PipelineMixin, StableDiffusionPipeline, TensorExt, UNet2DConditionModel};

const CUDA: Device = Device::Cuda(0);

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_copy_on_a_stream_arrives_behind_its_event() {
    let host = whole_pages(1 << 26).unwrap();
    let _ = host.shallow_clone().fill_(7);
    let pinned = PinnedMemory::pin(&host).unwrap();
    assert!(is_pinned(&host).unwrap());
    let (copies, work) = (Stream::from_pool(CUDA).unwrap(), Stream::current(CUDA).unwrap());
    assert_eq!(copies.device(), CUDA);
    assert_ne!(copies, work);
    for _ in 0..20 {
        let device = Tensor::zeros([1 << 26], (Kind::Uint8, CUDA));
        Event::record(work).unwrap().wait(copies).unwrap();
        copies.with(|| copy_non_blocking(&host, &device)).unwrap();
        record_stream(&device, copies).unwrap();
        Event::record(copies).unwrap().wait(work).unwrap();
        assert_eq!(device.sum(Kind::Int64).int64_value(&[]), 7 << 26);
        assert!(copies.is_idle().unwrap());
    }
    let event = Event::record(copies).unwrap();
    event.synchronize().unwrap();
    assert!(event.is_reached().unwrap());
    copies.synchronize().unwrap();
    drop(pinned);
    assert!(!is_pinned(&host).unwrap());
    drop(PinnedMemory::pin(&host).unwrap());
    assert_eq!(host.numel() % PAGE, 0);
}

/// The kernels are the same and so are the weights, whichever way these come.
#[test]
#[ignore = "needs a CUDA device"]
fn gpu_streams_change_no_pixel() {
    let load = || StableDiffusionPipeline::from_pretrained(generated("pipeline").join("_models/sd1")).load().unwrap();
    let draw = |pipe: &mut StableDiffusionPipeline| {
        let output = pipe.call("a red circle").num_inference_steps(3).seed(0).run().unwrap();
        output.images.to_rgb().unwrap().remove(0).into_raw()
    };
    let mut resident = load();
    resident.to(CUDA).unwrap();
    let expected = draw(&mut resident);
    let (leaf, block) = (|| GroupOffloading::leaf_level().use_stream(true), GroupOffloading::block_level(1));
    for options in [
        leaf(),
        leaf().prefetch_groups(4),
        leaf().record_stream(true),
        leaf().low_cpu_mem_usage(true),
        leaf().offload_to_disk(true),
        leaf().pinned_memory_limit(1 << 20),
        block.use_stream(true),
    ] {
        let mut pipe = load();
        pipe.enable_group_offload(&options.clone().onload_device(CUDA), &[]).unwrap();
        for _ in 0..3 {
            assert!(draw(&mut pipe) == expected, "{options:?}");
        }
        assert_eq!(pipe.vae.node().device(), Device::Cpu, "{options:?}");
        pipe.remove_all_hooks().unwrap();
        pipe.to(CUDA).unwrap();
        assert!(draw(&mut pipe) == expected, "{options:?}");
    }
}

/// A UNet of about 160 MB in float16, with so large a batch that its work takes longer than its copies.
struct Large {
    unet: UNet2DConditionModel,
    inputs: (Tensor, Tensor),
}

impl Large {
    fn new() -> Self {
        let config = serde_json::json!({
            "block_out_channels": [128, 256, 384, 384], "cross_attention_dim": 768, "attention_head_dim": 8,
        });
        let config: UNet2DConditionConfig = serde_json::from_value(config).unwrap();
        let unet = UNet2DConditionModel::from_weights(config, &RandomWeights::new(0, Kind::Float).unwrap()).unwrap();
        unet.to(Kind::Half).unwrap();
        let options = (Kind::Half, CUDA);
        Self { unet, inputs: (Tensor::ones([16, 4, 64, 64], options), Tensor::ones([16, 77, 768], options)) }
    }

    fn bytes(&self) -> i64 {
        self.unet.node().num_parameters() as i64 * 2
    }

    fn predict(&self) -> Tensor {
        let (sample, text) = &self.inputs;
        tch::no_grad(|| self.unet.forward(&UNetInputs::new(sample, &Tensor::from(10), text))).unwrap()
    }

    /// The shortest of ten forwards, in seconds.
    fn seconds(&self) -> f64 {
        let time = |_| {
            tch::Cuda::synchronize(0);
            let start = Instant::now();
            let _ = self.predict();
            tch::Cuda::synchronize(0);
            start.elapsed().as_secs_f64()
        };
        (0..10).map(time).fold(f64::INFINITY, f64::min)
    }
}

/// With most layers in memory for a moment alone: the time of the model on the device, and a third of its memory.
#[test]
#[ignore = "needs a CUDA device"]
fn gpu_copies_hide_behind_the_work() {
    let large = Large::new();
    let memory = MemoryTracker::start(CUDA).unwrap();
    large.unet.to(CUDA).unwrap();
    let (expected, resident) = (large.predict(), large.seconds());
    let activations = memory.peak().unwrap() - large.bytes();
    large.unet.to(Device::Cpu).unwrap();
    let options = GroupOffloading::leaf_level().use_stream(true).prefetch_groups(3).onload_device(CUDA);
    large.unet.enable_group_offload(&options).unwrap();
    memory.reset_peak().unwrap();
    assert_eq!(large.predict().max_abs_diff(&expected).unwrap(), 0.0);
    let streamed = large.seconds();
    let weights = memory.peak().unwrap() - activations;
    println!("resident {resident:.4} s, streamed {streamed:.4} s, {weights} of {} bytes", large.bytes());
    assert!(streamed <= 1.1 * resident, "{streamed} s, and {resident} s with the weights on the device");
    assert!(weights * 100 <= large.bytes() * 35, "{weights} of {} bytes", large.bytes());
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_hundred_forwards_leave_nothing_behind() {
    let large = Large::new();
    for record_stream in [false, true] {
        let options = GroupOffloading::leaf_level().use_stream(true).record_stream(record_stream).onload_device(CUDA);
        large.unet.enable_group_offload(&options).unwrap();
        let _ = large.predict();
        let expected = large.predict();
        tch::Cuda::synchronize(0);
        let memory = MemoryTracker::start(CUDA).unwrap();
        for run in 0..100 {
            assert_eq!(large.predict().max_abs_diff(&expected).unwrap(), 0.0, "run {run}");
        }
        tch::Cuda::synchronize(0);
        assert!(memory.current().unwrap() <= 0, "{} bytes more", memory.current().unwrap());
    }
}
