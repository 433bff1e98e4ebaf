//! VaeImageProcessor on pictures of many sizes and modes: the same bytes as diffusers with Pillow.

use crate::support::{generated, json, record, tensors};
use image::{DynamicImage, GrayAlphaImage, GrayImage, RgbImage, RgbaImage};
use serde_json::Value;
use std::collections::BTreeMap;
use tch::Tensor;
use tch_diffusers::TensorExt;
use tch_diffusers::image_processor::{CropRegion, ImageInput, PreprocessOptions, VaeImageProcessor};

/// The picture of a tensor `[height, width, channels]`.
fn picture(pixels: &Tensor) -> DynamicImage {
    let [height, width, channels] = <[i64; 3]>::try_from(pixels.size()).unwrap();
    let bytes: Vec<u8> = Vec::try_from(pixels.contiguous().view(-1)).unwrap();
    let (width, height) = (width as u32, height as u32);
    match channels {
        1 => GrayImage::from_raw(width, height, bytes).unwrap().into(),
        2 => GrayAlphaImage::from_raw(width, height, bytes).unwrap().into(),
        3 => RgbImage::from_raw(width, height, bytes).unwrap().into(),
        _ => RgbaImage::from_raw(width, height, bytes).unwrap().into(),
    }
}

/// The largest difference of two pictures, which have to be of one size and mode.
fn difference(found: &DynamicImage, expected: &Tensor) -> f64 {
    let expected = picture(expected);
    assert_eq!((found.width(), found.height(), found.color()), (expected.width(), expected.height(), expected.color()));
    let pairs = found.as_bytes().iter().zip(expected.as_bytes());
    pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).fold(0.0, f64::max)
}

fn region(value: &Value) -> Option<CropRegion> {
    let [x1, y1, x2, y2]: [i64; 4] = serde_json::from_value(value.clone()).ok()?;
    Some(CropRegion { x1, y1, x2, y2 })
}

fn group(name: &str) -> (BTreeMap<String, Tensor>, Vec<Value>) {
    let folder = generated("image_processor");
    let cases = json(&folder.join(format!("{name}.json")));
    (tensors(&folder.join(format!("{name}.safetensors"))), cases.as_array().unwrap().clone())
}

#[test]
fn resized_pictures_equal_pillows() {
    let (tensors, cases) = group("resize");
    assert!(cases.len() > 200, "{} cases are too few", cases.len());
    for case in cases {
        let (text, integer) = (|key: &str| case[key].as_str().unwrap(), |key: &str| case[key].as_i64().unwrap());
        let processor =
            VaeImageProcessor { resample: text("resample").parse().unwrap(), ..VaeImageProcessor::default() };
        let mode = text("resize_mode").parse().unwrap();
        let found =
            processor.resize(&picture(&tensors[text("in")]), integer("height"), integer("width"), mode).unwrap();
        record("image processor", text("out"), "resize", difference(&found, &tensors[text("out")]), 0.0);
    }
}

#[test]
fn pictures_of_every_mode_become_the_tensors_that_diffusers_makes() {
    let (tensors, cases) = group("preprocess");
    for case in cases {
        let key = case["key"].as_str().unwrap();
        let told = |name: &str| case["options"].get(name).and_then(Value::as_bool);
        let plain = VaeImageProcessor::default();
        let processor = VaeImageProcessor {
            do_resize: told("do_resize").unwrap_or(plain.do_resize),
            do_normalize: told("do_normalize").unwrap_or(plain.do_normalize),
            do_binarize: told("do_binarize").unwrap_or(plain.do_binarize),
            do_convert_rgb: told("do_convert_rgb").unwrap_or(plain.do_convert_rgb),
            do_convert_grayscale: told("do_convert_grayscale").unwrap_or(plain.do_convert_grayscale),
            ..plain
        };
        let arguments = &case["arguments"];
        let options = PreprocessOptions {
            height: arguments["height"].as_i64(),
            width: arguments["width"].as_i64(),
            resize_mode: arguments["resize_mode"].as_str().unwrap_or("default").parse().unwrap(),
            crops_coords: region(&arguments["crops_coords"]),
        };
        let given = &tensors[&format!("{key}.in")];
        let pictures: Vec<_> = (0..given.size()[0]).map(|number| picture(&given.get(number))).collect();
        let found = processor.preprocess_with(&ImageInput::from(pictures), &options).unwrap();
        let expected = &tensors[&format!("{key}.out")];
        record("image processor", key, "preprocess", found.max_abs_diff(expected).unwrap(), 0.0);
        let strides: Vec<i64> = serde_json::from_value(case["stride"].clone()).unwrap();
        if found.size()[1] > 1 {
            assert_eq!(found.stride(), strides, "{key}");
        }
    }
}

#[test]
fn tensors_of_pictures_become_the_tensors_that_diffusers_makes() {
    let tensors = tensors(&generated("image_processor").join("tensors.safetensors"));
    let cases: Vec<_> = tensors.keys().filter_map(|key| key.strip_suffix(".in")).collect();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let processor =
            if case.starts_with("mask") { VaeImageProcessor::for_masks(8) } else { VaeImageProcessor::new(8) };
        let (height, width) = match case {
            "sized" => (Some(40), Some(16)),
            "mask" => (Some(48), Some(16)),
            _ => (None, None),
        };
        let given = ImageInput::from(tensors[&format!("{case}.in")].shallow_clone());
        let options = PreprocessOptions { height, width, ..PreprocessOptions::default() };
        let found = processor.preprocess_with(&given, &options).unwrap();
        let difference = found.max_abs_diff(&tensors[&format!("{case}.out")]).unwrap();
        record("image processor", case, "preprocess a tensor", difference, 0.0);
    }
}

#[test]
fn blurred_pictures_equal_pillows() {
    let (tensors, cases) = group("blur");
    for case in cases {
        let text = |key: &str| case[key].as_str().unwrap();
        let image = picture(&tensors[text("in")]);
        let found = VaeImageProcessor::blur(&image, case["radius"].as_f64().unwrap() as f32).unwrap();
        record("image processor", text("out"), "blur", difference(&found, &tensors[text("out")]), 0.0);
    }
}

#[test]
fn the_part_around_a_mask_is_the_one_that_diffusers_finds() {
    let (tensors, cases) = group("regions");
    for case in cases {
        let integer = |key: &str| case[key].as_i64().unwrap();
        let mask = picture(&tensors[case["mask"].as_str().unwrap()]);
        let found = VaeImageProcessor::get_crop_region(&mask, integer("width"), integer("height"), integer("pad"));
        assert_eq!(found.unwrap(), region(&case["region"]).unwrap(), "{case}");
    }
}

#[test]
fn pictures_laid_over_others_equal_pillows() {
    let (tensors, cases) = group("overlay");
    for case in cases {
        let key = case["key"].as_str().unwrap();
        let given = |name: &str| picture(&tensors[&format!("{key}.{name}")]);
        let processor = VaeImageProcessor::default();
        let (mask, original, drawn) = (given("mask"), given("original"), given("drawn"));
        let found = processor.apply_overlay(&mask, &original, &drawn, region(&case["region"])).unwrap();
        record("image processor", key, "overlay", difference(&found, &tensors[&format!("{key}.out")]), 0.0);
    }
}

#[test]
fn what_cannot_be_put_together_is_refused() {
    let grey = |width, height| DynamicImage::from(GrayImage::new(width, height));
    let black = VaeImageProcessor::get_crop_region(&grey(16, 16), 8, 8, 4).unwrap_err();
    assert!(black.to_string().contains("black all over"), "{black}");
    let processor = VaeImageProcessor::default();
    let error = processor.apply_overlay(&grey(16, 8), &grey(16, 16), &grey(16, 16), None).unwrap_err();
    assert_eq!(error.to_string(), "the mask is 16x8, but the picture is 16x16");
    let error = processor.apply_overlay(&grey(16, 16), &grey(16, 16), &grey(8, 8), None).unwrap_err();
    assert!(error.to_string().contains("8x8"), "{error}");
    assert!(VaeImageProcessor::blur(&grey(8, 8), -1.0).is_err());
}
