//! VaeImageProcessor: the same bytes, ties and values out of range included.

use crate::support::{generated, json, record, tensors};
use image::{DynamicImage, GrayImage, RgbImage};
use tch::{Kind, Tensor};
use tch_diffusers::TensorExt;
use tch_diffusers::image_processor::{OutputType, VaeImageProcessor};

/// The bytes of a tensor.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.contiguous().view(-1)).unwrap()
}

#[test]
fn decoded_pictures_equal_diffusers_byte_for_byte() {
    let tensors = tensors(&generated("images").join("postprocess.safetensors"));
    let processor = VaeImageProcessor::new(8);
    let cases: Vec<_> = tensors.keys().filter_map(|key| key.strip_suffix(".decoded")).collect();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let decoded = &tensors[&format!("{case}.decoded")];
        let tensor = processor.postprocess(decoded, OutputType::Tensor).unwrap().into_tensor().unwrap();
        assert_eq!(tensor.kind(), decoded.kind());
        let difference = tensor.max_abs_diff(&tensors[&format!("{case}.pt")]).unwrap();
        record("images", case, "pt", difference, 0.0);
        let images = processor.postprocess(decoded, OutputType::Image).unwrap().into_images().unwrap();
        let found: Vec<u8> = images.iter().flat_map(|image| image.as_bytes().to_vec()).collect();
        let expected = bytes(&tensors[&format!("{case}.pil")]);
        assert_eq!(found.len(), expected.len());
        let difference = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        record("images", case, "pil", f64::from(difference), 0.0);
    }
}

#[test]
fn halves_round_to_the_even_neighbour() {
    let tensors = tensors(&generated("images").join("postprocess.safetensors"));
    let scaled = (&tensors["ties.pt"] * 255.0).view(-1);
    let ties = scaled.frac().eq(0.5).sum(Kind::Int64).int64_value(&[]);
    assert!(ties > 100, "{ties} ties are too few to tell");
}

#[test]
fn pictures_become_the_tensors_that_diffusers_makes() {
    let folder = generated("images");
    let (tensors, strides) = (tensors(&folder.join("preprocess.safetensors")), json(&folder.join("strides.json")));
    for case in ["colour", "grey"] {
        let pixels = &tensors[&format!("{case}.pixels")];
        let (height, width) = (pixels.size()[1] as u32, pixels.size()[2] as u32);
        let pictures = bytes(pixels);
        let pictures = pictures.chunks(pictures.len() / pixels.size()[0] as usize).map(<[u8]>::to_vec);
        let pictures: Vec<DynamicImage> = match case {
            "grey" => pictures.map(|bytes| GrayImage::from_raw(width, height, bytes).unwrap().into()).collect(),
            _ => pictures.map(|bytes| RgbImage::from_raw(width, height, bytes).unwrap().into()).collect(),
        };
        let found = VaeImageProcessor::new(8).preprocess(&pictures).unwrap();
        let difference = found.max_abs_diff(&tensors[&format!("{case}.tensor")]).unwrap();
        record("images", case, "preprocess", difference, 0.0);
        let expected: Vec<i64> = serde_json::from_value(strides[case].clone()).unwrap();
        assert_eq!(found.stride(), expected, "{case}");
    }
}
