//! Several pipelines over one set of weights: the same tensors, and the same pictures from many threads at once.

use crate::support::generated;
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use std::collections::BTreeSet;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::attention_processor::AttentionSlicing;
use tch_diffusers::models::unets::{UNet, UNet2DConditionConfig, UNetInputs};
use tch_diffusers::models::{ModelMixin, To};
use tch_diffusers::nn::{Hook, Module, Next, Node, uses_winograd};
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{
    Error, MemoryFormat, PipelineMixin, Result, SchedulerKind, StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline, StableDiffusionPipeline, TensorExt, UNet2DConditionModel,
};

fn pipeline() -> StableDiffusionPipeline {
    quiet(StableDiffusionPipeline::from_pretrained(bundled_model().unwrap()).load().unwrap())
}

/// A model of few weights.
fn small() -> StableDiffusionPipeline {
    quiet(StableDiffusionPipeline::from_pretrained(generated("pipeline").join("_models/sd1")).load().unwrap())
}

fn quiet(mut pipe: StableDiffusionPipeline) -> StableDiffusionPipeline {
    pipe.progress_bar.disable = true;
    pipe
}

fn nodes(pipe: &StableDiffusionPipeline) -> [&Node; 3] {
    [pipe.text_encoder.node(), pipe.unet.tree().unwrap(), pipe.vae.node()]
}

/// The storages of all weights, by key.
fn addresses(pipe: &StableDiffusionPipeline) -> Vec<(String, usize)> {
    let weights = nodes(pipe).into_iter().flat_map(Node::state_dict);
    weights.map(|(key, weight)| (key, weight.data_ptr() as usize)).collect()
}

fn latents(pipe: &mut StableDiffusionPipeline, prompt: &str, seed: u64) -> Tensor {
    let call = pipe.call(prompt).num_inference_steps(3).height(64).width(64).seed(seed);
    call.output_type(OutputType::Latent).run().unwrap().images.into_tensor().unwrap()
}

fn slope() -> DynamicImage {
    RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 3) as u8, (y * 3) as u8, 90])).into()
}

fn mask() -> DynamicImage {
    GrayImage::from_fn(64, 64, |x, _| Luma([if x < 32 { 0 } else { 255 }])).into()
}

/// One of the three ways to draw, with a scheduler of its own.
fn picture(pipe: StableDiffusionPipeline, number: usize) -> Tensor {
    let seed = number as u64;
    let prompt = ["a red circle", "a blue ring", "a yellow star on a black background"][number % 3];
    let mut pipe = pipe;
    let kinds = [SchedulerKind::PNDM, SchedulerKind::EulerDiscrete, SchedulerKind::DDIM, SchedulerKind::UniPCMultistep];
    pipe.scheduler = kinds[number % 4].from_config(pipe.scheduler.config()).unwrap();
    let images = match number % 3 {
        0 => pipe.call(prompt).num_inference_steps(4).height(64).width(64).seed(seed).run(),
        1 => {
            let mut pipe = StableDiffusionImg2ImgPipeline::from_pipe(pipe);
            pipe.call(prompt, slope()).num_inference_steps(6).strength(0.7).seed(seed).run()
        }
        _ => {
            let mut pipe = StableDiffusionInpaintPipeline::from_pipe(pipe);
            pipe.call(prompt, slope(), mask()).height(64).width(64).num_inference_steps(4).seed(seed).run()
        }
    };
    let images = images.unwrap().images.to_rgb().unwrap();
    Tensor::from_slice(images[0].as_raw())
}

#[test]
fn eight_threads_at_once_draw_what_one_after_the_other_draws() {
    let pipe = pipeline();
    let one_by_one: Vec<_> = (0..16).map(|number| picture(pipe.share().unwrap(), number)).collect();
    let distinct: BTreeSet<Vec<u8>> = one_by_one.iter().map(|picture| Vec::try_from(picture).unwrap()).collect();
    assert_eq!(distinct.len(), 16);
    let together: Vec<Tensor> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let own = pipe.share().unwrap();
                scope.spawn(move || [thread, thread + 8].map(|number| picture(own.share().unwrap(), number)))
            })
            .collect();
        let mut pictures: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let second: Vec<_> = pictures.iter_mut().map(|[_, second]| second.shallow_clone()).collect();
        pictures.into_iter().map(|[first, _]| first).chain(second).collect()
    });
    for (number, (alone, together)) in one_by_one.iter().zip(&together).enumerate() {
        assert!(alone.f_equal(together).unwrap(), "picture {number} is another one among threads");
    }
}

#[test]
fn a_shared_pipeline_has_the_very_weights_and_goes_its_own_way_with_them() {
    let mut pipe = pipeline();
    let plain = latents(&mut pipe, "a red circle", 1);
    let mut second = pipe.share().unwrap();
    assert!(addresses(&pipe).len() > 300);
    assert_eq!(addresses(&second), addresses(&pipe));
    let redraws = StableDiffusionImg2ImgPipeline::from_pipe(pipe.share().unwrap());
    assert_eq!(addresses(&redraws.share().unwrap()), addresses(&pipe));
    let inpaints = StableDiffusionInpaintPipeline::from_pipe(redraws);
    assert_eq!(addresses(&inpaints.share().unwrap()), addresses(&pipe));

    second.scheduler = SchedulerKind::DDIM.from_config(second.scheduler.config()).unwrap();
    second.to(Kind::BFloat16).unwrap();
    second.vae.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    assert_ne!(addresses(&second), addresses(&pipe));
    assert_eq!(latents(&mut pipe, "a red circle", 1).max_abs_diff(&plain).unwrap(), 0.0);
    let mut third = pipe.share().unwrap();
    third.enable_group_offload(&GroupOffloading::leaf_level().offload_to_disk(true), &[]).unwrap();
    let _ = latents(&mut third, "a blue ring", 2);
    assert_eq!(latents(&mut pipe, "a red circle", 1).max_abs_diff(&plain).unwrap(), 0.0);
    drop(pipe);
    let before = latents(&mut third, "a red circle", 1);
    assert_eq!(before.max_abs_diff(&plain).unwrap(), 0.0, "the first pipeline took weights with it");
}

#[test]
fn a_shared_pipeline_begins_with_the_schedule_and_the_techniques_of_the_first() {
    let mut pipe = small();
    pipe.scheduler = SchedulerKind::EulerAncestralDiscrete.from_config(pipe.scheduler.config()).unwrap();
    pipe.enable_attention_slicing(AttentionSlicing::Max).unwrap();
    pipe.enable_vae_tiling();
    pipe.vae.tile_latent_min_size = 7;
    pipe.enable_winograd().unwrap();
    pipe.to(MemoryFormat::ChannelsLast).unwrap();
    pipe.enable_weights_prepack().unwrap();
    let plain = latents(&mut pipe, "a red circle", 1);
    let mut second = pipe.share().unwrap();
    assert_eq!(second.scheduler.class_name(), "EulerAncestralDiscreteScheduler");
    assert_eq!(second.scheduler.config(), pipe.scheduler.config());
    assert_eq!(second.attn_processors(), pipe.attn_processors());
    assert!(second.vae.use_tiling() && second.vae.tile_latent_min_size == 7);
    let conv = |pipe: &StableDiffusionPipeline| pipe.unet.tree().unwrap().get("conv_in").unwrap();
    assert!(uses_winograd(&conv(&second)));
    assert_eq!(latents(&mut second, "a red circle", 1).max_abs_diff(&plain).unwrap(), 0.0);
    second.reset().unwrap();
    assert!(uses_winograd(&conv(&pipe)) && !uses_winograd(&conv(&second)));
    assert_eq!(latents(&mut pipe, "a red circle", 1).max_abs_diff(&plain).unwrap(), 0.0);
}

/// A hook that does nothing.
#[derive(Debug)]
struct Idle;

impl Hook for Idle {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        next.run(inputs)
    }
}

/// A UNet that does not say how it is shared.
#[derive(Debug)]
struct Foreign(UNet2DConditionModel);

impl UNet for Foreign {
    fn config(&self) -> &UNet2DConditionConfig {
        self.0.config()
    }

    fn forward(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        self.0.forward(inputs)
    }

    fn dtype(&self) -> Kind {
        self.0.node().dtype()
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn move_to(&self, target: To) -> Result<()> {
        ModelMixin::to(&self.0, target)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[test]
fn what_lends_weights_to_one_pipeline_is_refused_by_name() {
    type Switch = fn(&mut StableDiffusionPipeline);
    let switches: [(Switch, &str); 6] = [
        (
            |pipe| pipe.enable_model_cpu_offload(Device::Cpu).unwrap(),
            "text_encoder: weights cannot be shared while model",
        ),
        (|pipe| pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap(), "sequential offloading"),
        (|pipe| pipe.enable_group_offload(&GroupOffloading::leaf_level(), &["text_encoder"]).unwrap(), "unet: "),
        (|pipe| pipe.enable_group_offload(&GroupOffloading::block_level(1), &[]).unwrap(), "group offloading"),
        (
            |pipe| pipe.vae.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap(),
            "vae: weights cannot be shared while layerwise casting",
        ),
        (
            |pipe| pipe.vae.node().get("decoder.conv_in").unwrap().add_hook("idle", Idle),
            "vae.decoder.conv_in: the hook `idle`",
        ),
    ];
    for (switch, expected) in switches {
        let mut pipe = small();
        switch(&mut pipe);
        let error = pipe.share().unwrap_err();
        assert!(matches!(error.kind(), Error::Argument(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error} does not say {expected}");
        let _ = latents(&mut pipe, "a red circle", 1);
    }
    let mut pipe = small();
    pipe.enable_model_cpu_offload(Device::Cpu).unwrap();
    pipe.remove_all_hooks().unwrap();
    let second = pipe.share().unwrap();
    assert_eq!(addresses(&second), addresses(&pipe));
    let unet = UNet2DConditionModel::from_pretrained(generated("pipeline").join("_models/sd1/unet")).load().unwrap();
    pipe.set_unet(Foreign(unet));
    let error = pipe.share().unwrap_err();
    assert!(matches!(error.kind(), Error::Unsupported(_)) && error.to_string().starts_with("unet: "), "{error}");
}
