//! The memory ledger on a device.

use crate::support::generated;
use tch::{Device, Kind, Tensor};
use tch_diffusers::torch::MemoryTracker;
use tch_diffusers::{PipelineMixin, StableDiffusionPipeline};

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_tracker_sees_what_the_device_takes() {
    let megabytes = |count: i64| Tensor::zeros([count << 20], (Kind::Uint8, Device::Cuda(0)));
    let outside = megabytes(1);
    let tracker = MemoryTracker::start(Device::Cuda(0)).unwrap();
    let kept = megabytes(2);
    drop(megabytes(3));
    assert_eq!((tracker.current().unwrap(), tracker.peak().unwrap()), (2 << 20, 5 << 20));
    tracker.reset_peak().unwrap();
    drop((kept, outside));
    assert_eq!((tracker.current().unwrap(), tracker.peak().unwrap()), (-(1 << 20), 2 << 20));
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_the_report_names_the_device_and_what_offloading_keeps_from_it() {
    let folder = generated("pipeline").join("_models/sd1");
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder).load().unwrap();
    let draw = |pipe: &mut StableDiffusionPipeline| {
        let _ = pipe.call("a red circle").num_inference_steps(2).seed(0).run().unwrap();
        pipe.memory_report().unwrap()
    };
    pipe.enable_model_cpu_offload(Device::Cuda(0)).unwrap();
    let offloaded = draw(&mut pipe);
    assert!(offloaded.weights.iter().all(|line| line.device == "cpu"));
    assert!(offloaded.savings.iter().all(|saving| saving.technique == "model offloading"));
    assert_eq!(offloaded.last_call.unwrap().device, "cuda:0");
    pipe.reset().unwrap();
    pipe.to(Device::Cuda(0)).unwrap();
    let resident = draw(&mut pipe);
    assert!(resident.weights.iter().all(|line| line.device == "cuda:0" && line.resident > 0));
    assert!(resident.last_call.unwrap().peak() > 0);
}
