//! `compile` without packages: traces with constant weights, one for each kind of inputs.

use tch::{Device, Kind, Tensor};
use tch_diffusers::models::Traceable;
use tch_diffusers::models::compile::{CompileOptions, Mode};
use tch_diffusers::models::unets::{CompiledUNet, UNet, UNetInputs};
use tch_diffusers::nn::Module;
use tch_diffusers::utils::assets::bundled_model;
use tch_diffusers::{Error, MemoryFormat, ModelMixin, TensorExt, UNet2DConditionModel};

fn unet() -> UNet2DConditionModel {
    UNet2DConditionModel::from_pretrained(bundled_model().unwrap()).subfolder("unet").load().unwrap()
}

fn compiled(dynamic: Option<bool>) -> CompiledUNet {
    unet().compile(&CompileOptions { dynamic, ..CompileOptions::default() }).unwrap()
}

/// The largest difference between the two for `batch` pictures of `size` latents.
fn differ(unet: &UNet2DConditionModel, compiled: &CompiledUNet, batch: i64, size: [i64; 2]) -> f64 {
    let inputs = unet.example_inputs(batch, size).unwrap();
    let [sample, timestep, text] = &inputs[..] else { panic!("a UNet has three inputs") };
    let inputs = UNetInputs::new(sample, timestep, text);
    let expected = tch::no_grad(|| unet.forward(&inputs)).unwrap();
    UNet::forward(compiled, &inputs).unwrap().max_abs_diff(&expected).unwrap()
}

#[test]
fn every_size_gets_a_graph_of_its_own_and_no_more_are_kept_than_eight() {
    let (eager, compiled) = (unet(), compiled(Some(false)));
    let sizes: Vec<_> = (1..=12).map(|side| [side * 4, 8]).collect();
    for size in &sizes {
        assert_eq!(differ(&eager, &compiled, 2, *size), 0.0, "{size:?}");
    }
    let stats = compiled.stats();
    assert_eq!((stats.graphs, stats.recompilations, stats.eager_calls), (8, 11, 0));
    // The last is kept, the first is made anew.
    assert_eq!(differ(&eager, &compiled, 2, sizes[11]), 0.0);
    assert_eq!(compiled.stats().recompilations, 11);
    assert_eq!(differ(&eager, &compiled, 2, sizes[0]), 0.0);
    assert_eq!(compiled.stats().recompilations, 12);
    assert!(stats.compile_time.as_secs_f64() > 0.0);
}

#[test]
fn one_dynamic_graph_serves_all_sizes() {
    let (eager, always, later) = (unet(), compiled(Some(true)), compiled(None));
    for (batch, size) in [(2, [8, 8]), (2, [16, 8]), (3, [8, 24]), (2, [8, 8])] {
        assert_eq!(differ(&eager, &always, batch, size), 0.0, "{batch} {size:?}");
        assert_eq!(differ(&eager, &later, batch, size), 0.0, "{batch} {size:?}");
    }
    assert_eq!((always.stats().graphs, always.stats().recompilations), (1, 0));
    // The first size alone, then all others.
    assert_eq!((later.stats().graphs, later.stats().recompilations), (2, 1));
    // Pictures that do not halve evenly fix their size.
    for (size, recompilations) in [([9, 8], 1), ([9, 8], 1), ([10, 13], 2)] {
        assert_eq!(differ(&eager, &always, 2, size), 0.0, "{size:?}");
        assert_eq!(always.stats().recompilations, recompilations);
    }
}

#[test]
fn masks_and_residuals_are_part_of_the_graph() {
    let (eager, compiled) = (unet(), compiled(None));
    let inputs = eager.example_inputs(2, [8, 8]).unwrap();
    let plain = UNetInputs::new(&inputs[0], &inputs[1], &inputs[2]);
    let mask = Tensor::ones([2, 77], (Kind::Float, Device::Cpu));
    let _ = mask.narrow(1, 9, 60).zero_();
    let masked = UNetInputs { encoder_attention_mask: Some(&mask), ..plain };
    let mut predictions = vec![];
    for inputs in [plain, masked, plain, masked] {
        let expected = tch::no_grad(|| eager.forward(&inputs)).unwrap();
        let found = UNet::forward(&compiled, &inputs).unwrap();
        assert_eq!(found.max_abs_diff(&expected).unwrap(), 0.0);
        predictions.push(found);
    }
    assert!(predictions[0].max_abs_diff(&predictions[1]).unwrap() > 0.0);
    assert_eq!(compiled.stats().recompilations, 1);
}

#[test]
fn other_weights_are_compiled_anew() {
    let (eager, compiled) = (unet(), compiled(Some(true)));
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
    for model in [&eager, compiled.model()] {
        let param = model.node().get("conv_out").unwrap().own_params().remove(0).1;
        let doubled = param.get().f_mul_scalar(2.0).unwrap();
        drop(param.replace(doubled));
    }
    assert_eq!(differ(&eager, &compiled, 2, [8, 8]), 0.0);
    assert_eq!((compiled.stats().graphs, compiled.stats().recompilations), (1, 1));
    compiled.move_to(Kind::BFloat16.into()).unwrap();
    let half = unet();
    half.to(Kind::BFloat16).unwrap();
    let model = compiled.into_model();
    assert!(model.node().hook_names().is_empty() && model.node().dtype() == Kind::BFloat16);
    model.to(MemoryFormat::ChannelsLast).unwrap();
}

#[test]
fn modes_that_this_machine_lacks_say_why() {
    let options = |mode| CompileOptions { mode, ..CompileOptions::default() };
    let error = unet().compile(&options(Mode::ReduceOverhead)).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("CUDA graph"), "{error}");
    let error = unet().compile_repeated_blocks(&options(Mode::ReduceOverhead)).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("CUDA graph"), "{error}");
    let hooked = unet();
    hooked.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    let error = hooked.compile(&CompileOptions::default()).unwrap_err();
    assert!(error.to_string().contains("would pass over the hook"), "{error}");
}

/// A member that another libtorch calls differently would be missed on a GPU only.
#[test]
fn libtorch_has_what_cuda_graphs_are_made_of() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let library = maps.split_whitespace().find(|word| word.ends_with("libtorch_cpu.so")).unwrap();
    let library = std::path::Path::new(library).with_file_name("libtorch_cuda.so");
    if !library.is_file() {
        return;
    }
    let shim = include_str!("../src/torch/shim/graph.cpp");
    let names: Vec<_> = shim.split('"').filter(|text| text.starts_with("_ZN2at4cuda")).collect();
    assert_eq!(names.len(), 8);
    for name in names {
        let found = std::process::Command::new("grep").args(["-qaF", name]).arg(&library).status().unwrap();
        assert!(found.success(), "{name} is not in {}", library.display());
    }
}
