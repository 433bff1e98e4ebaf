//! Convolutions whose weights stay in oneDNN's layout.

use crate::support::generated;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::models::unets::UNetInputs;
use tch_diffusers::nn::{Conv2d, Conv2dConfig, Module, RandomWeights, Scope, set_weights_prepack, weights_prepack};
use tch_diffusers::torch::PackedConv2d;
use tch_diffusers::{Error, MemoryFormat, ModelMixin, UNet2DConditionModel};

fn randn(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu))
}

#[test]
fn a_packed_weight_gives_the_same_bits_in_the_same_layout() {
    let cases = [
        (2, 16, 24, 3, 1, 1, 20, 17),
        (2, 3, 8, 3, 2, 1, 32, 32),
        (1, 96, 64, 3, 1, 1, 33, 40),
        (2, 40, 40, 1, 1, 0, 16, 16),
        (4, 320, 64, 3, 1, 1, 8, 8),
    ];
    for (batch, inputs, outputs, kernel, stride, padding, height, width) in cases {
        let (input, weight) = (randn(&[batch, inputs, height, width]), randn(&[outputs, inputs, kernel, kernel]));
        for bias in [None, Some(randn(&[outputs]))] {
            for format in [MemoryFormat::Contiguous, MemoryFormat::ChannelsLast] {
                let input = format.contiguous(&input).unwrap();
                let expected = input.conv2d(&weight, bias.as_ref(), [stride, stride], [padding, padding], [1, 1], 1);
                let packed = PackedConv2d::default();
                let convolve = || packed.conv2d(&input, &weight, bias.as_ref(), stride, padding).unwrap();
                let (first, anew) = convolve().expect("oneDNN convolves these");
                let (second, again) = convolve().unwrap();
                assert!(anew && !again);
                assert_eq!(packed.bytes(), 4 * outputs * inputs * kernel * kernel);
                for found in [first, second] {
                    assert_eq!(found, expected, "{batch} x {inputs} to {outputs}, {height} x {width}, {format:?}");
                    assert_eq!(found.stride(), expected.stride());
                }
            }
        }
    }
}

#[test]
fn what_changes_is_packed_anew() {
    let (input, mut weight, packed) = (randn(&[2, 16, 20, 20]), randn(&[24, 16, 3, 3]), PackedConv2d::default());
    let convolve = |input: &Tensor, weight: &Tensor| {
        let (output, anew) = packed.conv2d(input, weight, None, 1, 1).unwrap().unwrap();
        assert_eq!(output, input.conv2d(weight, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1));
        anew
    };
    assert!(convolve(&input, &weight));
    assert!(!convolve(&(&input + 1.0), &weight), "another input of the same shape");
    assert!(convolve(&input.narrow(2, 0, 12).contiguous(), &weight), "another shape");
    assert!(convolve(&input, &weight), "the first shape again");
    weight *= 2.0;
    assert!(convolve(&input, &weight), "written to in place");
    assert!(convolve(&input, &weight.copy()), "another tensor");
    drop(weight);
    assert!(convolve(&input, &randn(&[24, 16, 3, 3])), "another tensor where one may have been");
}

#[test]
fn what_others_have_to_see_or_onednn_does_not_compute_is_left_to_libtorch() {
    let packed = PackedConv2d::default();
    let refused = |input: &Tensor, weight: &Tensor| packed.conv2d(input, weight, None, 1, 1).unwrap().is_none();
    let (input, weight) = (randn(&[2, 16, 20, 20]), randn(&[24, 16, 3, 3]));
    assert!(refused(&input.to_kind(Kind::Double), &weight.to_kind(Kind::Double)));
    assert!(refused(&input, &randn(&[24, 8, 3, 3])), "channels do not match, which libtorch is to say");
    assert!(refused(&input.copy().set_requires_grad(true), &weight), "its gradient is wanted");
    assert!(!tch::no_grad(|| refused(&input.copy().set_requires_grad(true), &weight)));
    assert_eq!(packed.bytes(), 4 * 24 * 16 * 9);
}

#[test]
fn a_model_predicts_the_same_bits_at_every_size_and_after_every_change() {
    let folder = generated("pipeline").join("_models/sd1/unet");
    let load = || UNet2DConditionModel::from_pretrained(&folder).load().unwrap();
    let (unet, plain) = (load(), load());
    unet.enable_weights_prepack().unwrap();
    assert_eq!(weights_prepack(unet.node()), Some(0), "nothing is packed before a forward");
    let text = randn(&[2, 77, 32]);
    let same = |side: i64| {
        let sample = randn(&[2, 4, side, side]);
        let predict = |unet: &UNet2DConditionModel| unet.forward(&UNetInputs::new(&sample, &Tensor::from(10), &text));
        assert_eq!(predict(&unet).unwrap(), predict(&plain).unwrap(), "{side}");
    };
    [32, 32, 16, 32].into_iter().for_each(same);
    let packed = weights_prepack(unet.node()).unwrap();
    let convolutions: usize = (unet.node().state_dict().iter())
        .filter(|(_, weight)| weight.dim() == 4)
        .map(|(_, weight)| 4 * weight.numel())
        .sum();
    assert!(packed > convolutions as i64 / 2 && packed <= convolutions as i64, "{packed} of {convolutions}");
    unet.to(MemoryFormat::ChannelsLast).unwrap();
    plain.to(MemoryFormat::ChannelsLast).unwrap();
    same(32);
    unet.disable_weights_prepack();
    assert_eq!(weights_prepack(unet.node()), None);
    same(32);
}

#[test]
fn weights_that_come_and_go_are_not_packed() {
    let unet = UNet2DConditionModel::from_pretrained(generated("pipeline").join("_models/sd1/unet")).load().unwrap();
    let offloading = GroupOffloading::leaf_level().offload_to_disk(true);
    unet.enable_group_offload(&offloading).unwrap();
    let refusal = unet.enable_weights_prepack().unwrap_err();
    assert!(matches!(&refusal, Error::Argument(text) if text.contains("group offloading")), "{refusal}");
    unet.disable_group_offload().unwrap();
    unet.enable_weights_prepack().unwrap();
    let refusals = [
        unet.enable_group_offload(&offloading).unwrap_err(),
        unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap_err(),
    ];
    for refusal in refusals {
        assert!(matches!(&refusal, Error::Argument(text) if text.contains("disable_weights_prepack")), "{refusal}");
    }
    unet.disable_weights_prepack();
    unet.enable_layerwise_casting(Kind::Float8e4m3fn, None, None).unwrap();
    assert!(unet.enable_weights_prepack().is_err());
}

#[test]
fn threads_share_packed_weights() {
    let weights = RandomWeights::new(0, Kind::Float).unwrap();
    let conv = Conv2d::new(Scope::root(&weights), 16, 16, Conv2dConfig::SAME).unwrap();
    let inputs: Vec<_> = (0..4).map(|i| randn(&[2, 16, 16 + i, 20])).collect();
    let expected: Vec<_> = inputs.iter().map(|input| conv.forward(input).unwrap()).collect();
    set_weights_prepack(conv.node(), true);
    std::thread::scope(|scope| {
        for (input, expected) in inputs.into_iter().zip(expected) {
            let conv = &conv;
            scope.spawn(move || (0..50).for_each(|_| assert_eq!(conv.forward(&input).unwrap(), expected)));
        }
    });
}
