//! Regional compilation without packages: one recording for all twins of a block, each with its own weights.

use crate::parity;
use crate::support::{generated, tensors};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};
use tch_diffusers::configuration_utils::OneOrMany;
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::models::Traceable;
use tch_diffusers::models::attention_processor::{AttentionSlicing, set_attention_slice};
use tch_diffusers::models::compile::{CompileOptions, CompiledBlocks};
use tch_diffusers::models::transformers::FluxTransformer2DModel;
use tch_diffusers::models::unets::{UNet, UNet2DConditionConfig, UNetInputs};
use tch_diffusers::nn::{Module, Param, RandomWeights};
use tch_diffusers::torch::TracedModule;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{AutoencoderKL, Error, MemoryFormat, ModelMixin, TensorExt, UNet2DConditionModel};

fn unet() -> UNet2DConditionModel {
    UNet2DConditionModel::from_pretrained(bundled_model().unwrap()).subfolder("unet").load().unwrap()
}

fn options(dynamic: Option<bool>) -> CompileOptions {
    CompileOptions { dynamic, fullgraph: true, ..CompileOptions::default() }
}

fn predict(unet: &UNet2DConditionModel, batch: i64, size: [i64; 2]) -> Tensor {
    let inputs = unet.example_inputs(batch, size).unwrap();
    tch::no_grad(|| unet.forward(&UNetInputs::new(&inputs[0], &inputs[1], &inputs[2])).unwrap())
}

fn differ(eager: &UNet2DConditionModel, compiled: &UNet2DConditionModel, batch: i64, size: [i64; 2]) -> f64 {
    predict(compiled, batch, size).max_abs_diff(&predict(eager, batch, size)).unwrap()
}

fn counts(made: &CompiledBlocks) -> (usize, usize, usize) {
    let stats = made.stats();
    (stats.graphs, stats.recompilations, stats.eager_calls)
}

#[test]
fn twins_run_one_recording_with_their_own_weights() {
    let (eager, compiled) = (unet(), unet());
    let made = compiled.compile_repeated_blocks(&options(Some(true))).unwrap();
    assert!(made.blocks.len() > made.graphs, "{made:?}");
    assert_eq!(counts(&made), (0, 0, 0));
    // TorchScript rewrites what it runs a second time.
    for _ in 0..3 {
        assert_eq!(differ(&eager, &compiled, 2, [16, 16]), 0.0);
    }
    assert_eq!(counts(&made), (made.graphs, 0, 0));
    assert!(made.stats().compile_time.as_secs_f64() > 0.0);
    // Without their own weights twins would give the same.
    let first = |path: &String| compiled.node().get(path).unwrap().params()[0].1.get();
    assert!(first(&made.blocks[0]).max_abs_diff(&first(&made.blocks[1])).unwrap() > 0.0);
    assert!(compiled.disable_compiled_blocks() && !compiled.disable_compiled_blocks());
    assert_eq!(differ(&eager, &compiled, 2, [16, 16]), 0.0);
    assert_eq!(counts(&made), (made.graphs, 0, 0));
}

#[test]
fn another_size_is_recorded_anew_or_served_by_one_recording_for_all() {
    let eager = unet();
    let sizes = [(2, [8, 8]), (2, [16, 8]), (3, [8, 24]), (1, [8, 8]), (2, [8, 8])];
    for (dynamic, bound) in [(Some(true), 1), (None, 2), (Some(false), 8)] {
        let compiled = unet();
        let made = compiled.compile_repeated_blocks(&options(dynamic)).unwrap();
        for (batch, size) in sizes {
            for _ in 0..2 {
                assert_eq!(differ(&eager, &compiled, batch, size), 0.0, "{dynamic:?}: {batch} of {size:?}");
            }
        }
        let (graphs, recompilations, eager_calls) = counts(&made);
        assert!(graphs <= bound * made.graphs && eager_calls == 0, "{dynamic:?}: {made:?}");
        assert!(recompilations + made.graphs >= graphs, "{dynamic:?}");
        assert_eq!(recompilations == 0, dynamic == Some(true));
    }
}

#[test]
fn no_more_recordings_are_kept_than_eight_for_each_kind_of_block() {
    let (eager, compiled) = (unet(), unet());
    let made = compiled.compile_repeated_blocks(&options(Some(false))).unwrap();
    for side in 1..=12 {
        assert_eq!(differ(&eager, &compiled, 2, [side * 4, 8]), 0.0);
    }
    let (graphs, recompilations, _) = counts(&made);
    assert_eq!(graphs, 8 * made.graphs);
    assert!(recompilations >= 11 * made.graphs);
    assert_eq!(differ(&eager, &compiled, 2, [48, 8]), 0.0);
    assert_eq!(counts(&made).1, recompilations);
    assert_eq!(differ(&eager, &compiled, 2, [4, 8]), 0.0);
    assert!(counts(&made).1 > recompilations);
}

#[test]
fn weights_are_found_where_they_are() {
    let (eager, compiled) = (unet(), unet());
    let made = compiled.compile_repeated_blocks(&options(Some(true))).unwrap();
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
    let param = |unet: &UNet2DConditionModel, block: &String| -> Param {
        unet.node().get(block).unwrap().get("attn1.to_v").unwrap().own_params().remove(0).1
    };
    // Those of two twins change places.
    for unet in [&eager, &compiled] {
        let blocks = unet.node().walk().into_iter().filter(|node| node.class() == "BasicTransformerBlock");
        let shape = param(unet, &made.blocks[0]).get().size();
        let twins = blocks.map(|node| param(unet, &node.path().to_string())).filter(|twin| twin.get().size() == shape);
        let [first, second] = &twins.collect::<Vec<_>>()[..2] else { panic!("there are twins") };
        let before = predict(unet, 2, [8, 8]);
        drop(first.replace(second.replace(first.get())));
        assert!(predict(unet, 2, [8, 8]).max_abs_diff(&before).unwrap() > 0.0);
    }
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
    assert_eq!(counts(&made), (made.graphs, 0, 0));
    // Changed in place, laid out anew, cast.
    for unet in [&eager, &compiled] {
        let mut weight = param(unet, &made.blocks[1]).get();
        let _ = tch::no_grad(|| weight.g_add_scalar_(0.125));
    }
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
    assert_eq!(counts(&made), (made.graphs, 0, 0));
    for unet in [&eager, &compiled] {
        unet.to(MemoryFormat::ChannelsLast).unwrap();
    }
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
    for unet in [&eager, &compiled] {
        unet.to(Kind::BFloat16).unwrap();
    }
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
    assert_eq!(counts(&made).2, 0);
}

#[test]
fn blocks_of_other_settings_are_no_twins() {
    // As wide, with other heads: their weights look alike.
    let config = UNet2DConditionConfig {
        block_out_channels: vec![48; 3],
        attention_head_dim: OneOrMany::Many(vec![8, 8, 4]),
        ..unet().config().clone()
    };
    let load = || UNet2DConditionModel::from_weights(config.clone(), &RandomWeights::new(0, Kind::Float).unwrap());
    let (eager, compiled) = (load().unwrap(), load().unwrap());
    let made = compiled.compile_repeated_blocks(&options(Some(true))).unwrap();
    assert!(made.graphs >= 2, "{made:?}");
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
    let before = counts(&made).0;
    for unet in [&eager, &compiled] {
        set_attention_slice(unet.node(), Some(AttentionSlicing::Max)).unwrap();
    }
    // Slices are counted while they are recorded, and no batch is free then.
    for batch in [2, 1, 3] {
        assert_eq!(differ(&eager, &compiled, batch, [8, 8]), 0.0, "{batch}");
    }
    assert!(counts(&made).0 > before);
}

#[test]
fn masks_never_get_lost_in_a_recording() {
    let (eager, compiled) = (unet(), unet());
    let lenient = CompileOptions { fullgraph: false, ..options(None) };
    let made = compiled.compile_repeated_blocks(&lenient).unwrap();
    let inputs = eager.example_inputs(2, [8, 8]).unwrap();
    let mask = |from| {
        let mask = Tensor::ones([2, 77], (Kind::Float, Device::Cpu));
        let _ = mask.narrow(1, from, 60).zero_();
        mask
    };
    let plain = UNetInputs::new(&inputs[0], &inputs[1], &inputs[2]);
    for mask in [mask(9), mask(3), mask(9)] {
        let masked = UNetInputs { encoder_attention_mask: Some(&mask), ..plain };
        let run = |unet: &UNet2DConditionModel| tch::no_grad(|| unet.forward(&masked).unwrap());
        assert_eq!(run(&compiled).max_abs_diff(&run(&eager)).unwrap(), 0.0);
    }
    assert_eq!(counts(&made).2, 3 * made.blocks.len());
    compiled.compile_repeated_blocks(&options(None)).unwrap();
    let mask = mask(9);
    let masked = UNetInputs { encoder_attention_mask: Some(&mask), ..plain };
    for _ in 0..2 {
        let error = compiled.forward(&masked).unwrap_err();
        assert!(matches!(error.kind(), Error::Unsupported(_)) && error.to_string().contains("masks"), "{error}");
    }
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
}

#[test]
fn errors_of_a_block_stay_its_own() {
    let compiled = unet();
    let made = compiled.compile_repeated_blocks(&options(None)).unwrap();
    let inputs = compiled.example_inputs(2, [8, 8]).unwrap();
    let narrow = inputs[2].narrow(2, 0, 9).contiguous();
    let error = compiled.forward(&UNetInputs::new(&inputs[0], &inputs[1], &narrow)).unwrap_err();
    assert!(error.to_string().contains("attn2"), "{error}");
    assert_eq!(counts(&made).0, 0);
    assert_eq!(differ(&unet(), &compiled, 2, [8, 8]), 0.0);
}

#[test]
fn group_offloading_by_blocks_brings_the_weights() {
    let (eager, compiled) = (unet(), unet());
    let made = compiled.compile_repeated_blocks(&options(None)).unwrap();
    let groups = GroupOffloading::block_level(1).onload_device(Device::Cpu).offload_to_disk(true);
    compiled.enable_group_offload(&groups).unwrap();
    for size in [[8, 8], [16, 8], [8, 8]] {
        assert_eq!(differ(&eager, &compiled, 2, size), 0.0);
    }
    assert_eq!(counts(&made).2, 0);
    assert!(compiled.disable_group_offload().unwrap());
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
    // Leaves have hooks of their own, which a recording passes over.
    let leaves = GroupOffloading::leaf_level().onload_device(Device::Cpu);
    compiled.enable_group_offload(&leaves).unwrap();
    let inputs = compiled.example_inputs(2, [8, 8]).unwrap();
    let error = compiled.forward(&UNetInputs::new(&inputs[0], &inputs[1], &inputs[2])).unwrap_err();
    assert!(error.to_string().contains("would pass over the hook `group_offloading`"), "{error}");
}

#[test]
fn a_whole_model_records_its_compiled_blocks_with_it() {
    let (eager, other) = (unet(), unet());
    other.compile_repeated_blocks(&options(None)).unwrap();
    let whole = other.compile(&CompileOptions { dynamic: Some(true), ..options(None) }).unwrap();
    for batch in [2, 3] {
        let inputs = eager.example_inputs(batch, [8, 8]).unwrap();
        for factor in [1.0, 2.0] {
            let sample = inputs[0].f_mul_scalar(factor).unwrap();
            let inputs = UNetInputs::new(&sample, &inputs[1], &inputs[2]);
            let expected = tch::no_grad(|| eager.forward(&inputs).unwrap());
            assert_eq!(UNet::forward(&whole, &inputs).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
        }
    }
}

#[test]
fn the_blocks_of_flux_are_recorded_once_for_all() {
    for case in ["dev", "schnell"] {
        let folder = generated("flux").join(case);
        if !folder.is_dir() {
            continue;
        }
        let given = tensors(&folder.join("tensors.safetensors"));
        let kind = given["hidden_states"].kind();
        let model = FluxTransformer2DModel::from_pretrained(&folder).torch_dtype(kind).load().unwrap();
        let made = model.compile_repeated_blocks(&options(None)).unwrap();
        assert_eq!(made.graphs, 2, "{made:?}");
        for _ in 0..3 {
            assert_eq!(velocity(&model, &given).max_abs_diff(&given["expected"]).unwrap(), 0.0);
        }
        // The first of the single blocks is given tensors of their own, and the others parts of one.
        let (graphs, recompilations, eager_calls) = counts(&made);
        assert!(graphs <= 3 && recompilations == graphs - 2 && eager_calls == 0, "{case}: {graphs} {recompilations}");
        // Other places of the picture's tokens, and then fewer of them.
        let moved = changed(&given, "img_ids", |ids| ids.f_add_scalar(1.0).unwrap());
        let ids = |ids: &Tensor| ids.narrow(0, 0, ids.size()[0] / 2).contiguous();
        let fewer = changed(&moved, "img_ids", ids);
        let fewer = changed(&fewer, "hidden_states", |x| x.narrow(1, 0, x.size()[1] / 2).contiguous());
        let groups = GroupOffloading::block_level(1).onload_device(Device::Cpu);
        for given in [&moved, &fewer] {
            let found = velocity(&model, given);
            model.enable_group_offload(&groups).unwrap();
            let offloaded = velocity(&model, given);
            model.disable_group_offload().unwrap();
            let plain = FluxTransformer2DModel::from_pretrained(&folder).torch_dtype(kind).load().unwrap();
            let expected = velocity(&plain, given);
            assert_eq!(found.max_abs_diff(&expected).unwrap(), 0.0);
            assert_eq!(offloaded.max_abs_diff(&expected).unwrap(), 0.0);
        }
        assert_eq!(counts(&made), (2 * graphs, 2 * graphs - 2, 0), "{case}");
    }
}

fn changed(
    given: &BTreeMap<String, Tensor>,
    key: &str,
    change: impl Fn(&Tensor) -> Tensor,
) -> BTreeMap<String, Tensor> {
    let copy = |(name, tensor): (&String, &Tensor)| match name == key {
        true => (name.clone(), change(tensor)),
        false => (name.clone(), tensor.shallow_clone()),
    };
    given.iter().map(copy).collect()
}

fn velocity(model: &FluxTransformer2DModel, given: &BTreeMap<String, Tensor>) -> Tensor {
    parity::flux::forward(model, given).unwrap()
}

#[test]
fn the_residual_blocks_of_a_vae_are_recorded_and_winograd_is_left_alone() {
    let load = || AutoencoderKL::from_pretrained(bundled_model().unwrap()).subfolder("vae").load().unwrap();
    let (eager, compiled) = (load(), load());
    let made = compiled.compile_repeated_blocks(&options(None)).unwrap();
    assert!(made.blocks.len() > made.graphs && made.blocks.iter().any(|path| path.starts_with("decoder.")));
    let latents = |size: [i64; 2]| Tensor::randn([1, 4, size[0], size[1]], (Kind::Float, Device::Cpu));
    let differ = |latents: &Tensor| {
        let decode = |vae: &AutoencoderKL| tch::no_grad(|| vae.decode(latents).unwrap());
        decode(&compiled).max_abs_diff(&decode(&eager)).unwrap()
    };
    for size in [[8, 8], [8, 16], [12, 8]] {
        assert_eq!(differ(&latents(size)), 0.0, "{size:?}");
    }
    assert_eq!(counts(&made).2, 0);
    let lenient = CompileOptions { fullgraph: false, ..options(None) };
    let made = compiled.compile_repeated_blocks(&lenient).unwrap();
    for vae in [&eager, &compiled] {
        vae.enable_winograd();
    }
    assert_eq!(differ(&latents([8, 8])), 0.0);
    assert!(counts(&made).2 > 0);
    for vae in [&eager, &compiled] {
        vae.disable_winograd();
        vae.enable_weights_prepack().unwrap();
    }
    assert_eq!(differ(&latents([8, 8])), 0.0);
}

#[test]
fn tensors_that_a_trace_fixes_are_counted() {
    let (given, other) = (Tensor::ones([2], (Kind::Float, Device::Cpu)), Tensor::ones([2], (Kind::Float, Device::Cpu)));
    let count = |named: &[(&str, &Tensor)]| {
        let trace = TracedModule::trace("Sum", &[], named, |x| Ok(vec![(&x[0] + &other) * 2.0]));
        trace.unwrap().num_tensor_constants().unwrap()
    };
    assert_eq!(count(&[("x", &given), ("y", &other)]), 0);
    assert_eq!(count(&[("x", &given)]), 1);
}
