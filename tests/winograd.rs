//! Convolutions in fewer multiplications.

use crate::support::generated;
use tch::{Device, Kind, Tensor};
use tch_diffusers::models::unets::UNetInputs;
use tch_diffusers::nn::{Conv2d, Conv2dConfig, Module, RandomWeights, Scope, set_use_winograd, uses_winograd};
use tch_diffusers::torch::conv2d_winograd;
use tch_diffusers::{MemoryFormat, ModelMixin, UNet2DConditionModel};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

fn randn(size: &[i64]) -> Tensor {
    Tensor::randn(size, FLOAT)
}

#[test]
fn pictures_of_any_size_are_convolved_as_closely_as_by_libtorch() {
    tch::manual_seed(0);
    let cases = [(1, 8, 8, 24, 24), (2, 32, 16, 17, 19), (3, 16, 40, 64, 5), (1, 64, 72, 66, 70), (2, 8, 136, 9, 63)];
    for (batch, inputs, outputs, height, width) in cases {
        let (input, weight) = (randn(&[batch, inputs, height, width]), randn(&[outputs, inputs, 3, 3]));
        for bias in [None, Some(randn(&[outputs]))] {
            let double = bias.as_ref().map(|bias| bias.to_kind(Kind::Double));
            let (exact_input, exact_weight) = (input.to_kind(Kind::Double), weight.to_kind(Kind::Double));
            let exact = exact_input.conv2d(&exact_weight, double.as_ref(), [1, 1], [1, 1], [1, 1], 1);
            let direct = input.conv2d(&weight, bias.as_ref(), [1, 1], [1, 1], [1, 1], 1);
            let close = conv2d_winograd(&input, &weight, bias.as_ref()).unwrap().unwrap();
            assert_eq!(close.size(), exact.size());
            let (ours, libtorchs) = (largest(&(close - &exact)), largest(&(direct - &exact)));
            let scale = largest(&exact);
            println!(
                "{batch} x {inputs} to {outputs}, {height} x {width}: {ours:.1e}, libtorch {libtorchs:.1e} of {scale:.1}"
            );
            assert!(ours < 1e-5 * scale, "{ours} of {scale}");
        }
    }
}

#[test]
fn a_layout_changes_no_bit_and_what_does_not_suit_is_left_to_libtorch() {
    let (input, weight) = (randn(&[2, 16, 20, 20]), randn(&[24, 16, 3, 3]));
    let plain = conv2d_winograd(&input, &weight, None).unwrap().unwrap();
    let last = |tensor: &Tensor| MemoryFormat::ChannelsLast.contiguous(tensor).unwrap();
    assert_eq!(conv2d_winograd(&last(&input), &last(&weight), None).unwrap().unwrap(), plain);

    let refused = |input: &Tensor, weight: &Tensor| conv2d_winograd(input, weight, None).unwrap().is_none();
    assert!(refused(&randn(&[2, 12, 20, 20]), &randn(&[24, 12, 3, 3])), "channels are no multiple of 8");
    assert!(refused(&randn(&[1, 16, 20, 20]), &weight), "25 tiles are too few");
    assert!(refused(&input, &randn(&[24, 16, 1, 1])), "the kernel is of 1");
    assert!(refused(&input.to_kind(Kind::Double), &weight.to_kind(Kind::Double)), "it is no float32");
    assert!(refused(&input, &randn(&[24, 8, 3, 3])), "channels do not match, which libtorch is to say");
}

#[test]
fn only_convolutions_that_keep_the_size_are_computed_so() {
    let weights = RandomWeights::new(0, Kind::Float).unwrap();
    let strided = Conv2dConfig { kernel: 3, stride: 2, padding: 1 };
    for (config, suits) in [(Conv2dConfig::SAME, true), (Conv2dConfig::POINTWISE, false), (strided, false)] {
        let conv = Conv2d::new(Scope::root(&weights), 16, 16, config).unwrap();
        let input = randn(&[2, 16, 20, 20]);
        let direct = conv.forward(&input).unwrap();
        set_use_winograd(conv.node(), true);
        assert_eq!(uses_winograd(conv.node()), suits);
        let close = conv.forward(&input).unwrap();
        assert_eq!(close == direct, !suits, "{config:?}");
        assert!(largest(&(close - &direct)) < 1e-5);
    }
}

#[test]
fn a_model_predicts_the_same_but_for_rounding_and_goes_back_to_the_bit() {
    let folder = generated("pipeline").join("_models/sd1/unet");
    let unet = UNet2DConditionModel::from_pretrained(folder).load().unwrap();
    let (sample, text) = (randn(&[2, 4, 32, 32]), randn(&[2, 77, 32]));
    let predict = || unet.forward(&UNetInputs::new(&sample, &Tensor::from(10), &text)).unwrap();
    let eager = predict();
    unet.enable_winograd();
    let close = predict();
    let difference = largest(&(&close - &eager));
    assert!(difference > 0.0 && difference < 1e-5, "{difference}");
    unet.to(MemoryFormat::ChannelsLast).unwrap();
    assert!(largest(&(predict() - &eager)) < 1e-5);
    unet.disable_winograd();
    unet.to(MemoryFormat::Contiguous).unwrap();
    assert_eq!(predict(), eager);
}
