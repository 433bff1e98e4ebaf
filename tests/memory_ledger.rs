//! The memory ledger: what is measured, what is estimated beside it, and what weights take.

use crate::support::generated;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::attention_processor::AttentionSlicing;
use tch_diffusers::models::autoencoders::AutoencoderKLConfig;
use tch_diffusers::models::unets::{UNet2DConditionConfig, UNetInputs};
use tch_diffusers::nn::{Module, RandomWeights};
use tch_diffusers::torch::MemoryTracker;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{AutoencoderKL, MemoryFormat, ModelMixin, StableDiffusionPipeline, UNet2DConditionModel};

fn load(folder: PathBuf, kind: Kind) -> StableDiffusionPipeline {
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder).torch_dtype(kind).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn small(kind: Kind) -> StableDiffusionPipeline {
    load(generated("pipeline").join("_models/sd1"), kind)
}

/// How far an estimate is off, as a part of what was measured.
fn off(estimated: i64, measured: i64) -> f64 {
    (estimated - measured) as f64 / measured as f64
}

/// A call of two steps: what was estimated before it beside what was measured, stage by stage.
fn compare(name: &str, pipe: &mut StableDiffusionPipeline, side: i64, batch: usize) -> f64 {
    let prompts = vec!["a yellow star on a blue background"; batch];
    let call = pipe.call(prompts).height(side).width(side).num_inference_steps(2).seed(0);
    let estimate = call.estimate_memory().unwrap();
    drop(call.output_type(OutputType::Tensor).run().unwrap());
    let measured = pipe.memory_report().unwrap().last_call.unwrap();
    assert_eq!(measured.stages.len(), 3);
    for stage in &measured.stages {
        let estimated = estimate.stage(&stage.name).unwrap();
        let share = off(estimated.allocated(), stage.peak);
        println!("{name:<32}{:<16}{:>12}{:>12}{:>8.1} %", stage.name, stage.peak, estimated.allocated(), 100.0 * share);
    }
    off(estimate.allocated(), measured.peak())
}

type Enable = fn(&mut StableDiffusionPipeline);

#[test]
fn a_call_takes_what_was_estimated() {
    let disk = |pipe: &mut StableDiffusionPipeline, options: GroupOffloading| {
        pipe.enable_group_offload(&options.onload_device(Device::Cpu).offload_to_disk(true), &[]).unwrap();
    };
    let _ = disk;
    let techniques: [(&str, Enable); 9] = [
        ("plain", |_| ()),
        ("attention slicing max", |pipe| pipe.enable_attention_slicing(AttentionSlicing::Max).unwrap()),
        ("attention slicing auto", |pipe| pipe.enable_attention_slicing(AttentionSlicing::Auto).unwrap()),
        ("vae slicing", |pipe| pipe.enable_vae_slicing()),
        ("vae tiling", |pipe| pipe.enable_vae_tiling()),
        ("vae slicing and tiling", |pipe| {
            pipe.enable_vae_slicing();
            pipe.enable_vae_tiling();
        }),
        ("layerwise casting", |pipe| pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap()),
        ("leaf level from files", |pipe| {
            let options = GroupOffloading::leaf_level().onload_device(Device::Cpu).offload_to_disk(true);
            pipe.enable_group_offload(&options, &[]).unwrap();
        }),
        ("channels last", |pipe| {
            pipe.unet.move_to(MemoryFormat::ChannelsLast.into()).unwrap();
        }),
    ];
    let mut worst = 0.0_f64;
    for kind in [Kind::Float, Kind::BFloat16] {
        for (name, enable) in techniques {
            for (model, side, batch) in [
                ("sd1", 64, 1),
                ("sd1", 128, 2),
                ("sd2", 64, 2),
                ("lcm", 64, 1),
                ("bundled", 128, 1),
                ("bundled", 256, 2),
            ] {
                let folder = if model == "bundled" {
                    bundled_model().unwrap()
                } else {
                    generated("pipeline").join("_models").join(model)
                };
                let mut pipe = load(folder, kind);
                enable(&mut pipe);
                let share = compare(&format!("{kind:?} {name} {model} {side} x{batch}"), &mut pipe, side, batch);
                println!("{share:>80.3}");
                worst = worst.max(share.abs());
            }
        }
    }
    println!("worst {worst}");
}

fn measured(work: impl FnOnce() -> tch_diffusers::Result<Tensor>) -> i64 {
    let tracker = MemoryTracker::start(Device::Cpu).unwrap();
    drop(tch::no_grad(work).unwrap());
    tracker.peak().unwrap()
}

#[test]
fn single_models_take_what_was_estimated() {
    let weights = RandomWeights::new(0, Kind::Float).unwrap();
    let options = (Kind::Float, Device::Cpu);
    for (channels, linear, side, batch) in
        [([64, 128, 256, 256], false, 32, 2), ([32, 64, 128, 128], true, 64, 1), ([96, 192, 384, 384], false, 24, 2)]
    {
        let config = serde_json::json!({
            "block_out_channels": channels, "cross_attention_dim": 256, "attention_head_dim": 8,
            "use_linear_projection": linear,
        });
        let config: UNet2DConditionConfig = serde_json::from_value(config).unwrap();
        let unet = UNet2DConditionModel::from_weights(config, &weights).unwrap();
        let (sample, text) = (Tensor::ones([batch, 4, side, side], options), Tensor::ones([batch, 77, 256], options));
        let time = Tensor::from(10);
        let estimate = unet.estimate_memory([batch, side, side], 77, Kind::Float).unwrap();
        let found = measured(|| unet.forward(&UNetInputs::new(&sample, &time, &text)));
        println!("unet {channels:?} {} {found} {:.3}", estimate.allocated(), off(estimate.allocated(), found));
    }
    for (channels, side, batch) in
        [(vec![32, 64, 128], 128, 1), (vec![64, 128], 256, 1), (vec![32, 32, 64, 64], 128, 3)]
    {
        let blocks = channels.len();
        let config = serde_json::json!({
            "block_out_channels": channels, "layers_per_block": 2, "sample_size": 64,
            "down_block_types": vec!["DownEncoderBlock2D"; blocks], "up_block_types": vec!["UpDecoderBlock2D"; blocks],
        });
        let config: AutoencoderKLConfig = serde_json::from_value(config).unwrap();
        let factor = config.vae_scale_factor();
        let mut vae = AutoencoderKL::from_weights(config, &weights).unwrap();
        let latents = Tensor::ones([batch, 4, side / factor, side / factor], options);
        for round in 0..4 {
            if round & 1 == 1 {
                vae.enable_slicing()
            } else {
                vae.disable_slicing()
            }
            if round & 2 == 2 {
                vae.enable_tiling()
            } else {
                vae.disable_tiling()
            }
            let estimate = vae.estimate_memory([batch, side, side], Kind::Float).unwrap();
            let found = measured(|| vae.decode(&latents));
            println!("vae {round} {} {found} {:.3}", estimate.allocated(), off(estimate.allocated(), found));
        }
    }
}
