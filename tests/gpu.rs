//! What needs a CUDA device. Without one these tests are reported as ignored: `cargo test -- --ignored gpu` runs them.

mod graphs;
mod memory;
mod speed;
mod streams;

use crate::support::generated;
use tch::{Device, Kind};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::nn::Module;
use tch_diffusers::torch::cuda_unavailable_reason;
use tch_diffusers::{Generator, PipelineMixin, StableDiffusionPipeline, TensorExt};

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

/// The kernels are the same and so are the weights, wherever these wait.
#[test]
#[ignore = "needs a CUDA device"]
fn gpu_offloading_changes_no_pixel_and_leaves_the_weights_on_the_cpu() {
    let load = || StableDiffusionPipeline::from_pretrained(generated("pipeline").join("_models/sd1")).load().unwrap();
    let draw = |pipe: &mut StableDiffusionPipeline| {
        let output = pipe.call("a red circle").num_inference_steps(3).seed(0).run().unwrap();
        output.images.to_rgb().unwrap().remove(0).into_raw()
    };
    let (cuda, mut resident) = (Device::Cuda(0), load());
    resident.to(cuda).unwrap();
    let expected = draw(&mut resident);
    assert!(resident.enable_sequential_cpu_offload(cuda).unwrap_err().to_string().contains("move the pipeline"));
    type Enable = fn(&mut StableDiffusionPipeline, Device) -> tch_diffusers::Result<()>;
    let techniques: [Enable; 5] = [
        StableDiffusionPipeline::enable_model_cpu_offload,
        StableDiffusionPipeline::enable_sequential_cpu_offload,
        |pipe, cuda| pipe.enable_group_offload(&GroupOffloading::block_level(2).onload_device(cuda), &[]),
        |pipe, cuda| pipe.enable_group_offload(&GroupOffloading::leaf_level().onload_device(cuda), &["vae"]),
        |pipe, cuda| {
            let options = GroupOffloading::leaf_level().onload_device(cuda).offload_to_disk(true).non_blocking(true);
            pipe.enable_group_offload(&options, &[])
        },
    ];
    for (number, enable) in techniques.iter().enumerate() {
        let mut pipe = load();
        enable(&mut pipe, cuda).unwrap();
        assert_eq!(pipe.device(), cuda, "technique {number}");
        for _ in 0..2 {
            assert!(draw(&mut pipe) == expected, "technique {number}");
        }
        assert_eq!(pipe.text_encoder.node().device(), Device::Cpu, "technique {number}");
        pipe.remove_all_hooks().unwrap();
        pipe.to(cuda).unwrap();
        assert!(draw(&mut pipe) == expected, "technique {number}");
    }
}
