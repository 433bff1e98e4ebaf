//! What image-to-image and inpainting do beside drawing the right picture: components, callbacks, refusals, saving.

use crate::support::generated;
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::{ImageInput, Images, OutputType, VaeImageProcessor};
use tch_diffusers::nn::Module;
use tch_diffusers::{
    Error, Generator, PipelineMixin, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline,
    StableDiffusionPipeline, TensorExt,
};

fn folder(model: &str) -> PathBuf {
    generated("inpaint").join("_models").join(model)
}

fn pipeline(model: &str) -> StableDiffusionPipeline {
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder(model)).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn slope(width: u32, height: u32) -> DynamicImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 3) as u8, 90])).into()
}

/// White on the right.
fn mask(width: u32, height: u32) -> DynamicImage {
    GrayImage::from_fn(width, height, |x, _| Luma([if x < width / 2 { 0 } else { 255 }])).into()
}

/// The picture's latents, as a generator of seed 1 draws them.
fn encoded(pipe: &StableDiffusionPipeline) -> Tensor {
    let mut generator = Generator::cpu(1).unwrap();
    let image = VaeImageProcessor::default().preprocess(&[slope(64, 64)]).unwrap();
    let own = pipe.vae.encode(&image).unwrap().sample(std::slice::from_mut(&mut generator)).unwrap();
    own * pipe.vae.config().scaling_factor
}

fn redrawn(pipe: &mut StableDiffusionImg2ImgPipeline) -> Tensor {
    let call = pipe.call("a red circle", slope(64, 64)).num_inference_steps(4).seed(1);
    call.output_type(OutputType::Latent).run().unwrap().images.into_tensor().unwrap()
}

fn inpainted(pipe: &mut StableDiffusionInpaintPipeline) -> Tensor {
    let call = pipe.call("a red circle", slope(64, 64), mask(64, 64)).num_inference_steps(4).seed(1);
    call.output_type(OutputType::Latent).run().unwrap().images.into_tensor().unwrap()
}

#[test]
fn a_pipeline_from_another_one_has_its_weights_and_not_copies_of_them() {
    let pipe = pipeline("sd1");
    let addresses = |pipe: &StableDiffusionPipeline| {
        let weights = [pipe.vae.node().state_dict(), pipe.text_encoder.node().state_dict()];
        weights.into_iter().flatten().map(|(_, weight)| weight.data_ptr() as usize).collect::<Vec<_>>()
    };
    let before = addresses(&pipe);
    assert!(before.len() > 100);
    let redraws = StableDiffusionImg2ImgPipeline::from_pipe(pipe);
    assert_eq!(addresses(&redraws), before);
    let inpaints = StableDiffusionInpaintPipeline::from_pipe(redraws);
    assert_eq!(addresses(&inpaints), before);
    assert_eq!(addresses(&StableDiffusionPipeline::from_pipe(inpaints)), before);
}

#[test]
fn what_is_switched_on_stays_on_in_a_pipeline_from_another_one_and_works_there() {
    let plain = redrawn(&mut pipeline("sd1").into());
    let painted = inpainted(&mut pipeline("sd1").into());
    let switches: [fn(&mut StableDiffusionPipeline); 4] = [
        |pipe| pipe.enable_model_cpu_offload(Device::Cpu).unwrap(),
        |pipe| pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap(),
        |pipe| pipe.enable_group_offload(&GroupOffloading::leaf_level(), &[]).unwrap(),
        |pipe| pipe.enable_weights_prepack().unwrap(),
    ];
    for (number, switch) in switches.into_iter().enumerate() {
        let mut pipe = pipeline("sd1");
        switch(&mut pipe);
        let mut redraws = StableDiffusionImg2ImgPipeline::from_pipe(pipe);
        assert_eq!(redrawn(&mut redraws).max_abs_diff(&plain).unwrap(), 0.0, "{number}");
        let mut inpaints = StableDiffusionInpaintPipeline::from_pipe(redraws);
        assert_eq!(inpainted(&mut inpaints).max_abs_diff(&painted).unwrap(), 0.0, "{number}");
    }
}

#[test]
fn less_strength_leaves_more_of_the_picture() {
    let mut pipe = StableDiffusionImg2ImgPipeline::from(pipeline("sd1"));
    let mut distance = |strength: f64| {
        let call = pipe.call("a red circle", slope(64, 64)).strength(strength).num_inference_steps(10).seed(1);
        let latents = call.output_type(OutputType::Latent).run().unwrap().images.into_tensor().unwrap();
        (latents - encoded(&pipe)).abs().mean(Kind::Float).double_value(&[])
    };
    let (little, much) = (distance(0.1), distance(0.9));
    assert!(little < much, "{little} is no less than {much}");
}

#[test]
fn what_is_not_masked_comes_back_as_it_was() {
    let mut pipe = StableDiffusionInpaintPipeline::from(pipeline("sd1"));
    let mut masks = vec![];
    let call = pipe.call("a red circle", slope(64, 64), mask(64, 64)).num_inference_steps(3).seed(1);
    let call = call.output_type(OutputType::Latent).callback_on_step_end(|end| {
        masks.push(end.mask.as_ref().map(Tensor::size));
        assert!(end.masked_image_latents.is_none());
        Ok(())
    });
    let latents = call.run().unwrap().images.into_tensor().unwrap();
    assert!(masks.iter().all(|size| size.as_deref() == Some(&[1, 1, 8, 8])) && masks.len() > 2);
    let own = encoded(&pipe);
    let left = |tensor: &Tensor| tensor.narrow(3, 0, 4);
    assert_eq!(left(&latents).max_abs_diff(&left(&own)).unwrap(), 0.0);
    assert!(latents.max_abs_diff(&own).unwrap() > 0.1);
}

#[test]
fn a_callback_can_change_the_mask_that_a_unet_sees() {
    let mut pipe = StableDiffusionInpaintPipeline::from(pipeline("nine"));
    let plain = inpainted(&mut pipe);
    let call = pipe.call("a red circle", slope(64, 64), mask(64, 64)).num_inference_steps(4).seed(1);
    let call = call.output_type(OutputType::Latent).callback_on_step_end(|end| {
        assert_eq!(end.masked_image_latents.as_ref().unwrap().size(), [1, 4, 8, 8]);
        end.mask = Some(end.mask.as_ref().unwrap().f_zeros_like()?);
        Ok(())
    });
    let changed = call.run().unwrap().images.into_tensor().unwrap();
    assert!(changed.max_abs_diff(&plain).unwrap() > 0.0);
}

#[test]
fn a_padded_part_leaves_the_rest_of_the_picture_to_the_pixel() {
    let mut pipe = StableDiffusionInpaintPipeline::from(pipeline("sd1"));
    let picture = slope(120, 90);
    let hole = GrayImage::from_fn(120, 90, |x, y| Luma([if (70..90).contains(&x) && y > 60 { 255 } else { 0 }]));
    let call = pipe.call("a red circle", &picture, hole.clone()).num_inference_steps(2).seed(1);
    let drawn = call.padding_mask_crop(8).run().unwrap().images.to_rgb().unwrap().remove(0);
    let before = picture.to_rgb8();
    assert_eq!(drawn.dimensions(), (120, 90));
    let changed = |white: u8| {
        let pixels = drawn.enumerate_pixels().filter(|(x, y, _)| hole.get_pixel(*x, *y).0[0] == white);
        pixels.filter(|(x, y, pixel)| before.get_pixel(*x, *y) != *pixel).count()
    };
    assert_eq!(changed(0), 0);
    assert!(changed(255) > 100);
}

#[test]
fn the_encoding_of_the_picture_is_a_part_of_the_memory_report() {
    let mut pipe = StableDiffusionImg2ImgPipeline::from(pipeline("sd1"));
    pipe.call("a red circle", slope(64, 64)).num_inference_steps(3).seed(1).run().unwrap();
    let report = pipe.memory_report().unwrap();
    let names: Vec<_> = report.last_call.unwrap().stages.into_iter().map(|stage| stage.name).collect();
    assert_eq!(names, ["encode prompt", "encode image", "denoise", "decode"]);
}

#[test]
fn saved_pipelines_carry_their_class_and_any_of_them_is_read_from_any_folder() {
    let saved = tempfile::tempdir().unwrap();
    let pipe = StableDiffusionInpaintPipeline::from(pipeline("sd1"));
    pipe.save_pretrained(saved.path()).unwrap();
    let index = std::fs::read_to_string(saved.path().join("model_index.json")).unwrap();
    assert!(index.contains("\"StableDiffusionInpaintPipeline\""), "{index}");
    let redraws = StableDiffusionImg2ImgPipeline::from_pretrained(saved.path()).load().unwrap();
    redraws.save_pretrained(saved.path().join("again")).unwrap();
    let index = std::fs::read_to_string(saved.path().join("again/model_index.json")).unwrap();
    assert!(index.contains("\"StableDiffusionImg2ImgPipeline\""), "{index}");
    StableDiffusionPipeline::from_pretrained(saved.path().join("again")).load().unwrap();
}

fn refused(error: &Error, expected: &str) {
    assert!(matches!(error.kind(), Error::Argument(_)), "{error:?}");
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn arguments_of_image_to_image_that_do_not_fit_are_refused_and_the_pipeline_goes_on() {
    let mut pipe = StableDiffusionImg2ImgPipeline::from(pipeline("sd1"));
    let before = redrawn(&mut pipe);
    for strength in [-0.1, 1.5, f64::NAN] {
        refused(&pipe.call("x", slope(64, 64)).strength(strength).run().unwrap_err(), "between 0 and 1");
    }
    let none_left = pipe.call("x", slope(64, 64)).strength(0.1).num_inference_steps(5).run().unwrap_err();
    refused(&none_left, "leaves none of 5 steps");
    refused(&pipe.call("x", slope(7, 64)).run().unwrap_err(), "divisible by 8");
    refused(&pipe.call("x", Vec::<DynamicImage>::new()).run().unwrap_err(), "no picture");
    refused(&pipe.call("x", mask(64, 64)).run().unwrap_err(), "convert it");
    refused(&pipe.call("x", DynamicImage::new_rgba8(64, 64)).run().unwrap_err(), "convert it");
    refused(&pipe.call("x", [slope(64, 64), slope(64, 64)]).run().unwrap_err(), "2 of `image` cannot serve 1");
    refused(&pipe.call(["x"; 3], [slope(64, 64), slope(64, 64)]).run().unwrap_err(), "cannot serve 3");
    let flat = ImageInput::from(Tensor::zeros([64], (Kind::Float, Device::Cpu)));
    assert!(matches!(pipe.call("x", flat).run().unwrap_err(), Error::Shape(_)));
    let mut two = [Generator::cpu(0).unwrap(), Generator::cpu(1).unwrap()];
    let call = pipe.call(["x"; 3], slope(64, 64)).generators(&mut two);
    refused(&call.run().unwrap_err(), "2 generators were given for");
    assert_eq!(redrawn(&mut pipe).max_abs_diff(&before).unwrap(), 0.0);
}

#[test]
fn arguments_of_inpainting_that_do_not_fit_are_refused_and_the_pipeline_goes_on() {
    let mut pipe = StableDiffusionInpaintPipeline::from(pipeline("nine"));
    let before = inpainted(&mut pipe);
    let (image, hole) = (|| slope(64, 64), || mask(64, 64));
    refused(&pipe.call("x", image(), hole()).strength(2.0).run().unwrap_err(), "between 0 and 1");
    refused(&pipe.call("x", image(), hole()).height(60).run().unwrap_err(), "divisible by 8");
    refused(&pipe.call("x", image(), [hole(), hole()]).run().unwrap_err(), "2 of `mask_image` cannot serve 1");
    let six = pipe.call(["x"; 6], [image(), image()], [hole(), hole(), hole()]);
    refused(&six.run().unwrap_err(), "3 masks for 2 pictures");
    let latents = Tensor::zeros([1, 4, 8, 8], (Kind::Float, Device::Cpu));
    refused(&pipe.call("x", latents, hole()).run().unwrap_err(), "masked_image_latents");
    let padded = |image: DynamicImage, hole: DynamicImage, pipe: &mut StableDiffusionInpaintPipeline| {
        pipe.call("x", image, hole).padding_mask_crop(4).run().unwrap_err()
    };
    refused(&padded(image(), mask(32, 64), &mut pipe), "a mask of the picture's size, 64x64");
    refused(&padded(image(), DynamicImage::new_luma8(64, 64), &mut pipe), "black all over");
    let latent = pipe.call("x", image(), hole()).padding_mask_crop(4).output_type(OutputType::Latent);
    refused(&latent.run().unwrap_err(), "output type pil");
    assert_eq!(inpainted(&mut pipe).max_abs_diff(&before).unwrap(), 0.0);
    assert!(matches!(pipe.call("x", image(), hole()).run().unwrap().images, Images::Image(_)));
}
