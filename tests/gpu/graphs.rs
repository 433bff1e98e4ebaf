//! CUDA graphs, and models that run as such.

use crate::support::generated;
use std::cell::Cell;
use tch::{Device, Kind, Tensor};
use tch_diffusers::models::Traceable;
use tch_diffusers::models::compile::{CompileOptions, Mode};
use tch_diffusers::models::unets::{CompiledUNet, UNet, UNetInputs};
use tch_diffusers::nn::Module;
use tch_diffusers::torch::CudaGraphPool;
use tch_diffusers::{Error, ModelMixin, PipelineMixin, StableDiffusionPipeline, TensorExt, UNet2DConditionModel};

const CUDA: Device = Device::Cuda(0);

fn ones(side: i64) -> Tensor {
    Tensor::ones([side, side], (Kind::Float, CUDA))
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_graph_repeats_its_work_on_what_is_there() {
    let pool = CudaGraphPool::new(CUDA).unwrap();
    let input = ones(64);
    let runs = Cell::new(0);
    let (graph, output) = pool
        .capture(|| {
            runs.set(runs.get() + 1);
            Ok(input.f_matmul(&input)?.f_add_scalar(1.0)?)
        })
        .unwrap();
    assert_eq!(runs.get(), 4);
    for factor in [1.0, 2.0, 3.0] {
        let _ = input.shallow_clone().fill_(factor);
        graph.replay().unwrap();
        assert_eq!(output.double_value(&[5, 7]), 64.0 * factor * factor + 1.0);
    }
    assert_eq!(runs.get(), 4);
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_graphs_share_a_pool_and_outlive_each_other() {
    let pool = CudaGraphPool::new(CUDA).unwrap();
    let capture = |factor: f64| {
        let input = ones(256);
        let (graph, output) = pool.capture(|| Ok(input.f_matmul(&input)?.f_mul_scalar(factor)?)).unwrap();
        (graph, input, output)
    };
    let (first, second) = (capture(2.0), capture(3.0));
    for ((graph, _, output), expected) in [(&first, 512.0), (&second, 768.0), (&first, 512.0)] {
        graph.replay().unwrap();
        assert_eq!(output.double_value(&[0, 0]), expected);
    }
    drop(first);
    second.0.replay().unwrap();
    assert_eq!(second.2.double_value(&[9, 9]), 768.0);
    drop(second);
    // The pool is gone with its last graph, and begins anew.
    let third = capture(4.0);
    third.0.replay().unwrap();
    assert_eq!(third.2.double_value(&[0, 0]), 1024.0);
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_graph_draws_other_numbers_each_time() {
    let pool = CudaGraphPool::new(CUDA).unwrap();
    let (graph, noise) = pool.capture(|| Ok(Tensor::f_randn([1000], (Kind::Float, CUDA))?)).unwrap();
    let draw = || {
        graph.replay().unwrap();
        noise.copy()
    };
    let (first, second) = (draw(), draw());
    assert!(first.max_abs_diff(&second).unwrap() > 0.0);
    tch::manual_seed(3);
    let again = draw();
    tch::manual_seed(3);
    assert_eq!(draw().max_abs_diff(&again).unwrap(), 0.0);
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_capture_that_fails_says_why_and_leaves_everything_as_it_was() {
    let pool = CudaGraphPool::new(CUDA).unwrap();
    let input = ones(64);
    let good = || pool.capture(|| Ok(input.f_matmul(&input)?)).unwrap();
    let (before, product) = good();
    for _ in 0..3 {
        // Reading a number waits for the device.
        let error = pool.capture(|| Ok(input.f_sum(Kind::Float)?.f_double_value(&[])?)).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("cannot be captured")), "{error}");
        // Fails by itself, after some work.
        let run = Cell::new(0);
        let error = pool.capture(|| {
            run.set(run.get() + 1);
            let sum = input.f_add_scalar(1.0)?;
            if run.get() == 4 { Err(Error::Shape("on purpose".into())) } else { Ok(sum) }
        });
        assert!(error.unwrap_err().to_string().contains("on purpose"));
        // Ordinary work, work of this stream, the graph from before, and a new one.
        assert_eq!(input.sum(Kind::Float).double_value(&[]), 4096.0);
        let _ = product.shallow_clone().zero_();
        before.replay().unwrap();
        assert_eq!(product.double_value(&[0, 0]), 64.0);
        let (after, other) = good();
        after.replay().unwrap();
        assert_eq!(other.double_value(&[0, 0]), 64.0);
    }
}

fn unet(kind: Kind) -> UNet2DConditionModel {
    let unet = UNet2DConditionModel::from_pretrained(generated("pipeline").join("_models/sd1")).subfolder("unet");
    unet.torch_dtype(kind).device(CUDA).load().unwrap()
}

fn differ(eager: &UNet2DConditionModel, compiled: &CompiledUNet, batch: i64, size: [i64; 2]) -> f64 {
    let inputs = eager.example_inputs(batch, size).unwrap();
    let inputs = UNetInputs::new(&inputs[0], &inputs[1], &inputs[2]);
    let expected = tch::no_grad(|| eager.forward(&inputs)).unwrap();
    // The first forward records, the second captures, the third replays.
    let [first, second, third] = [0; 3].map(|_| UNet::forward(compiled, &inputs).unwrap());
    // The result of one forward is not overwritten by the next.
    assert_eq!(second.max_abs_diff(&third).unwrap(), 0.0);
    [first, third].iter().map(|found| found.max_abs_diff(&expected).unwrap()).fold(0.0, f64::max)
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_compiled_unet_is_the_model_but_for_rounding_at_every_size() {
    for (kind, bound) in [(Kind::Float, 1e-4), (Kind::Half, 2e-2)] {
        for mode in [Mode::Default, Mode::ReduceOverhead] {
            let options = CompileOptions { mode, fullgraph: true, ..CompileOptions::default() };
            let (eager, compiled) = (unet(kind), unet(kind).compile(&options).unwrap());
            for (batch, size) in [(2, [8, 8]), (2, [16, 8]), (1, [8, 24]), (2, [8, 8])] {
                let difference = differ(&eager, &compiled, batch, size);
                assert!(difference <= bound, "{kind:?}, {mode:?}, {batch} of {size:?}: {difference:e}");
            }
            assert!(compiled.stats().eager_calls == 0 && compiled.stats().graphs > 0, "{:?}", compiled.stats());
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_no_more_graphs_are_kept_than_eight() {
    let options = CompileOptions { mode: Mode::ReduceOverhead, dynamic: Some(true), ..CompileOptions::default() };
    let (eager, compiled) = (unet(Kind::Float), unet(Kind::Float).compile(&options).unwrap());
    for side in (1..=12).chain([1]) {
        assert!(differ(&eager, &compiled, 2, [side * 8, 8]) <= 1e-4, "{side}");
    }
    assert_eq!((compiled.stats().graphs, compiled.stats().recompilations), (8, 12));
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_weights_that_moved_or_were_replaced_are_captured_anew() {
    let options = CompileOptions { mode: Mode::ReduceOverhead, fullgraph: true, ..CompileOptions::default() };
    let (eager, compiled) = (unet(Kind::Float), unet(Kind::Float).compile(&options).unwrap());
    assert!(differ(&eager, &compiled, 2, [8, 8]) <= 1e-4);
    for model in [&eager, compiled.model()] {
        let param = model.node().get("conv_out").unwrap().own_params().remove(0).1;
        let doubled = param.get().f_mul_scalar(2.0).unwrap();
        drop(param.replace(doubled));
    }
    assert!(differ(&eager, &compiled, 2, [8, 8]) <= 1e-4);
    compiled.move_to(Device::Cpu.into()).unwrap();
    // What is freed meanwhile is given to others.
    let others: Vec<_> = (1..100).map(|side| ones(side * 10).f_mul_scalar(f64::NAN).unwrap()).collect();
    compiled.move_to(CUDA.into()).unwrap();
    drop(others);
    assert!(differ(&eager, &compiled, 2, [8, 8]) <= 1e-4);
    assert_eq!((compiled.stats().graphs, compiled.stats().recompilations), (1, 2));
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_pipeline_draws_with_graphs_and_under_model_offloading() {
    let load = || StableDiffusionPipeline::from_pretrained(generated("pipeline").join("_models/sd1")).load().unwrap();
    let draw = |pipe: &mut StableDiffusionPipeline| {
        let output = pipe.call("a red circle").num_inference_steps(4).seed(0).run().unwrap();
        output.images.to_rgb().unwrap().remove(0).into_raw()
    };
    let options = CompileOptions { mode: Mode::ReduceOverhead, fullgraph: true, ..CompileOptions::default() };
    let (mut eager, mut compiled, mut offloaded) = (load(), load(), load());
    for pipe in [&mut eager, &mut compiled] {
        pipe.to(CUDA).unwrap();
    }
    compiled.compile_unet(&options).unwrap();
    offloaded.enable_model_cpu_offload(CUDA).unwrap();
    offloaded.compile_unet(&options).unwrap();
    let expected = draw(&mut eager);
    for pipe in [&mut compiled, &mut offloaded] {
        for _ in 0..2 {
            let worst = draw(pipe).iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst < Some(3), "{worst:?}");
        }
    }
}
