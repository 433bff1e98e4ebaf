//! Switches and traces on a CUDA device.

use crate::support::generated;
use tch::{Device, Kind, Tensor};
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::unets::{TracedUNet, UNet, UNetInputs};
use tch_diffusers::models::{To, Traceable, trace};
use tch_diffusers::torch::{SDPBackend, Switch, attention_by, count_synchronizations};
use tch_diffusers::{Generator, ModelMixin, SchedulerKind, StableDiffusionPipeline, TensorExt, UNet2DConditionModel};

fn unet() -> UNet2DConditionModel {
    let folder = generated("pipeline").join("_models/sd1");
    UNet2DConditionModel::from_pretrained(folder).subfolder("unet").load().unwrap()
}

fn predict(unet: &dyn UNet, inputs: &[Tensor]) -> Tensor {
    tch::no_grad(|| unet.forward(&UNetInputs::new(&inputs[0], &inputs[1], &inputs[2])).unwrap())
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_trace_made_on_the_cpu_is_moved_and_cast() {
    let unet = unet();
    let traced = TracedUNet::new(trace(&unet, &unet.example_inputs(2, [8, 8]).unwrap()).unwrap()).unwrap();
    for target in [To::Device(Device::Cuda(0)), To::Kind(Kind::Half)] {
        unet.to(target).unwrap();
        traced.move_to(target).unwrap();
        let inputs = unet.example_inputs(3, [16, 8]).unwrap();
        let difference = predict(&traced, &inputs).max_abs_diff(&predict(&unet, &inputs)).unwrap();
        assert!(difference < 1e-2, "{target:?}: {difference:e}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_every_attention_kernel_gives_the_same_but_for_rounding() {
    let mut generator = Generator::cuda(0, 0).unwrap();
    let [query, key, value] = [0, 1, 2].map(|_| generator.randn([2, 4, 64, 64], Kind::Half).unwrap());
    let expected = attention_by(SDPBackend::Math, &query, &key, &value, None).unwrap();
    for kernel in SDPBackend::ALL {
        let found = attention_by(kernel, &query, &key, &value, None).unwrap();
        assert!(found.max_abs_diff(&expected).unwrap() < 1e-2, "{kernel:?}");
    }
    let single = query.to_kind(Kind::Float);
    let error = attention_by(SDPBackend::FlashAttention, &single, &single, &single, None).unwrap_err().to_string();
    assert!(error.contains("Expected query, key and value to all be of dtype"), "{error}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_tf32_changes_products_while_its_guard_lives() {
    let mut generator = Generator::cuda(0, 0).unwrap();
    let matrix = generator.randn([512, 512], Kind::Float).unwrap();
    let product = || matrix.matmul(&matrix);
    let exact = product();
    let guard = Switch::MatmulAllowTf32.scoped(true).unwrap();
    assert!(product().max_abs_diff(&exact).unwrap() > 1e-3);
    drop(guard);
    assert_eq!(product().max_abs_diff(&exact).unwrap(), 0.0);
}

#[test]
#[ignore = "needs a CUDA device"]
fn gpu_waiting_for_the_device_is_counted() {
    let ones = Tensor::ones([4], (Kind::Float, Device::Cuda(0)));
    let (sum, none) = count_synchronizations(|| Ok(ones.f_sum(Kind::Float)?)).unwrap();
    let (value, one) = count_synchronizations(|| Ok(sum.f_double_value(&[])?)).unwrap();
    assert_eq!((none, value, one), (0, 4.0, 1));
}

/// The schedulers that draw noise while they step are left out: a generator of the CPU, diffusers' habit, sends it over.
#[test]
#[ignore = "needs a CUDA device"]
fn gpu_a_step_waits_for_nothing() {
    let mut pipe = StableDiffusionPipeline::from_pretrained(generated("pipeline").join("_models/sd1")).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe.to(Device::Cuda(0)).unwrap();
    let drawing = [
        SchedulerKind::DDPM,
        SchedulerKind::EulerAncestralDiscrete,
        SchedulerKind::KDPM2AncestralDiscrete,
        SchedulerKind::LCM,
    ];
    for kind in SchedulerKind::ALL.into_iter().filter(|kind| !drawing.contains(kind)) {
        pipe.scheduler = kind.from_config(pipe.scheduler.config()).unwrap();
        let mut waits = |steps| {
            let embeds = pipe.encode_prompt(&["a red circle"], 1, None).unwrap();
            let negative = pipe.encode_prompt(&[""], 1, None).unwrap();
            let call = pipe.call_embeds(embeds).negative_prompt_embeds(negative).num_inference_steps(steps);
            count_synchronizations(|| call.seed(0).output_type(OutputType::Latent).run()).unwrap().1
        };
        waits(4);
        assert_eq!(waits(9), waits(4), "{kind:?}");
    }
}
