//! Groups that come in another order than before.

use super::{count, predict, unet};
use crate::support::{Simulated, generated};
use std::collections::HashSet;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::{GroupOffloading, apply_group_offloading_on};
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::nn::{Hook, Module, Next, Node};
use tch_diffusers::{AutoencoderKL, ModelMixin, PipelineMixin, Result, StableDiffusionPipeline, TensorExt};

fn vae() -> AutoencoderKL {
    AutoencoderKL::from_pretrained(generated("offloading").join("vae_decode")).load().unwrap()
}

fn noise(shape: [i64; 4]) -> Tensor {
    Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).sin().reshape(shape)
}

/// How many groups are on the device or on their way at the same time, at most.
fn most_at_once(log: &[String]) -> usize {
    let (mut now, mut most) = (HashSet::new(), 0);
    for event in log {
        match event.split_once(' ') {
            Some(("onload" | "prefetch", group)) => assert!(now.insert(group.to_string()), "{group} came twice"),
            Some(("offload" | "cancel", group)) => assert!(now.remove(group), "{group} went twice"),
            _ => (),
        }
        most = most.max(now.len());
    }
    most
}

#[test]
fn one_group_is_on_its_way_while_another_is_at_work() {
    let unet = unet(Kind::Float);
    for (options, most) in [
        (GroupOffloading::leaf_level(), 2),
        (GroupOffloading::leaf_level().prefetch_groups(3), 4),
        // The layers outside of blocks stay for the whole forward.
        (GroupOffloading::block_level(1), 3),
    ] {
        let device = Simulated::default();
        apply_group_offloading_on(unet.node(), &options, device.clone()).unwrap();
        let (_, first) = device.log(|| predict(&unet).unwrap());
        assert_eq!(count(&first, "prefetch"), 0, "nothing is known yet");
        let (_, log) = device.log(|| predict(&unet).unwrap());
        assert_eq!((count(&log, "onload"), count(&log, "cancel")), (1, 0));
        assert_eq!(most_at_once(&log), most, "{options:?}");
        // The ring's buffers are made longer until they fit, and then used again and again.
        assert!(count(&log, "allocate") * 4 < count(&log, "copy") || most == 3, "{log:?}");
    }
}

#[test]
fn encoding_and_decoding_have_an_order_each() {
    let vae = vae();
    let (picture, latents) = (noise([1, 3, 16, 16]), noise([1, 4, 4, 4]));
    let run = |encode: bool| match encode {
        true => vae.encode(&picture).unwrap().mean().shallow_clone(),
        false => vae.decode(&latents).unwrap(),
    };
    let expected = [run(false), run(true)];
    for options in [GroupOffloading::leaf_level(), GroupOffloading::block_level(1)] {
        let options = options.block_modules(AutoencoderKL::GROUP_OFFLOAD_BLOCK_MODULES);
        let device = Simulated::default();
        apply_group_offloading_on(vae.node(), &options, device.clone()).unwrap();
        for (number, encode) in [true, false, true, false, false, true].into_iter().enumerate() {
            let (output, log) = device.log(|| run(encode));
            assert_eq!(output.max_abs_diff(&expected[usize::from(encode)]).unwrap(), 0.0);
            // Which of the two it is shows with its first group.
            if number >= 2 {
                assert_eq!((count(&log, "onload"), count(&log, "cancel")), (1, 0), "run {number}: {log:?}");
            }
        }
    }
}

#[test]
fn tiles_repeat_the_order_of_the_first_one() {
    let mut vae = vae();
    // In a file weights may begin anywhere, and kernels of the CPU round by where they begin.
    vae.node().params().iter().for_each(|(_, param)| drop(param.replace(param.get().copy())));
    let latents = noise([1, 4, 10, 10]);
    let whole = vae.decode(&latents).unwrap();
    vae.enable_tiling();
    let tiled = vae.decode(&latents).unwrap();
    let device = Simulated::default();
    apply_group_offloading_on(vae.node(), &GroupOffloading::leaf_level(), device.clone()).unwrap();
    let (output, log) = device.log(|| vae.decode(&latents).unwrap());
    assert_eq!(output.max_abs_diff(&tiled).unwrap(), 0.0);
    let groups = log.iter().filter(|event| event.starts_with("wait ")).collect::<HashSet<_>>().len();
    let onloads = count(&log, "onload");
    assert!(onloads < groups + 2, "{onloads} of {groups} groups were waited for by the second tile and later");
    // Other tiles, and none: another order each time, none of which is the one that was expected.
    for tiling in [true, false, true, false] {
        if tiling {
            vae.enable_tiling()
        } else {
            vae.disable_tiling()
        }
        let output = vae.decode(&latents).unwrap();
        assert_eq!(output.max_abs_diff(if tiling { &tiled } else { &whole }).unwrap(), 0.0);
        let more = noise([1, 4, 14, 6]);
        let _ = vae.decode(&more).unwrap();
        assert!(device.is_idle());
    }
}

/// Leaves its module out.
#[derive(Debug)]
struct Skip;

impl Hook for Skip {
    fn around(&self, _: &Node, inputs: &[Tensor], _: Next<'_>) -> Result<Vec<Tensor>> {
        Ok(inputs[..1].iter().map(Tensor::shallow_clone).collect())
    }
}

#[test]
fn a_branch_that_is_left_out_and_taken_again_is_followed() {
    let unet = unet(Kind::Float);
    let device = Simulated::default();
    let whole = predict(&unet).unwrap();
    let skipped = unet.node().get("mid_block.attentions.0").unwrap();
    skipped.add_hook("skip", Skip);
    let shorter = predict(&unet).unwrap();
    skipped.remove_hook("skip");
    assert!(whole.max_abs_diff(&shorter).unwrap() > 0.0);
    apply_group_offloading_on(unet.node(), &GroupOffloading::leaf_level(), device.clone()).unwrap();
    for (number, skip) in [false, true, true, false, true, false].into_iter().enumerate() {
        if skip {
            skipped.add_outer_hook("skip", Skip);
        }
        let (output, log) = device.log(|| predict(&unet).unwrap());
        skipped.remove_hook("skip");
        let expected = if skip { &shorter } else { &whole };
        assert_eq!(output.max_abs_diff(expected).unwrap(), 0.0, "run {number}");
        // Where the way parts, one group is sent for in vain.
        assert!(count(&log, "cancel") <= 1, "run {number}");
        let onloads = count(&log, "onload");
        match number {
            0 => assert!(onloads > 100),
            1 => assert!((2..10).contains(&onloads), "{onloads}"),
            _ => assert!(onloads <= 2, "run {number}: {onloads}"),
        }
    }
}

#[test]
fn a_block_that_is_run_by_itself_brings_its_weights() {
    let unet = unet(Kind::Float);
    let conv = unet.node().get("conv_in").unwrap();
    let device = Simulated::default();
    apply_group_offloading_on(unet.node(), &GroupOffloading::leaf_level(), device.clone()).unwrap();
    let _ = predict(&unet).unwrap();
    let probe = || conv.call([&noise([1, 4, 8, 8])], |[x]| Ok([x * conv.own_params()[0].1.get().sum(Kind::Float)]));
    let (output, log) = device.log(probe);
    assert!(output.unwrap()[0].isfinite().all().int64_value(&[]) == 1);
    assert_eq!(log.iter().filter(|event| event.ends_with("conv_in")).count(), 3, "{log:?}");
    assert_eq!(count(&log, "prefetch"), 0, "what comes next is known for whole forwards alone");
}

#[test]
fn a_pipeline_of_models_on_streams_draws_the_same_picture() {
    let folder = generated("pipeline").join("_models").join("sd1");
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder).load().unwrap();
    pipe.progress_bar.disable = true;
    let draw = |pipe: &mut StableDiffusionPipeline| {
        let call = pipe.call("a cat").num_inference_steps(2).seed(3).output_type(OutputType::Tensor);
        match call.run().unwrap().images {
            Images::Tensor(pixels) => pixels,
            _ => unreachable!("tensors were asked for"),
        }
    };
    let expected = draw(&mut pipe);
    let device = Simulated::default();
    for options in [GroupOffloading::leaf_level(), GroupOffloading::block_level(1).low_cpu_mem_usage(true)] {
        for node in [pipe.text_encoder.node(), pipe.unet.tree().unwrap(), pipe.vae.node()] {
            apply_group_offloading_on(node, &options, device.clone()).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(draw(&mut pipe).max_abs_diff(&expected).unwrap(), 0.0);
        }
        pipe.remove_all_hooks().unwrap();
        assert_eq!(device.with(|device| device.pinned), 0);
    }
}
