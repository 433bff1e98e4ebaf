//! What needs a CUDA device. Without one these tests are reported as ignored: `cargo test -- --ignored gpu` runs them.

use crate::support::generated;
use tch::{Device, Kind};
use tch_diffusers::torch::cuda_unavailable_reason;
use tch_diffusers::{Generator, StableDiffusionPipeline, TensorExt};

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_the_library_is_open_before_the_first_call() {
    assert_eq!(cuda_unavailable_reason().unwrap(), None);
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_generator_repeats_its_numbers() {
    let draw = |seed| Generator::cuda(0, seed).unwrap().randn([1000], Kind::Float).unwrap();
    assert_eq!(draw(3).max_abs_diff(&draw(3)).unwrap(), 0.0);
    assert!(draw(3).max_abs_diff(&draw(4)).unwrap() > 0.0);
    assert_eq!(draw(3).device(), Device::Cuda(0));
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_picture_is_that_of_the_cpu_but_for_rounding() {
    let folder = generated("pipeline").join("_models/sd1");
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder).load().unwrap();
    let mut draw = |device| {
        pipe.to(device).unwrap();
        let output = pipe.call("a red circle").num_inference_steps(4).seed(0).run().unwrap();
        output.images.to_rgb().unwrap().remove(0)
    };
    let (host, device) = (draw(Device::Cpu), draw(Device::Cuda(0)));
    let worst = host.as_raw().iter().zip(device.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst < Some(8), "{worst:?}");
}
