//! What the pipeline does beside drawing the right picture: callbacks, components, refusals, saving.

use crate::support::generated;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::models::unets::{UNet, UNet2DConditionConfig, UNetInputs};
use tch_diffusers::models::{ModelMixin, To};
use tch_diffusers::nn::Module;
use tch_diffusers::{
    AutoencoderKL, CLIPTextModel, Error, Generator, SchedulerKind, StableDiffusionPipeline, TensorExt,
    UNet2DConditionModel,
};

fn folder() -> PathBuf {
    generated("pipeline").join("_models/sd1")
}

fn pipeline() -> StableDiffusionPipeline {
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder()).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn latents(pipe: &mut StableDiffusionPipeline) -> Tensor {
    let call = pipe.call("a red circle").num_inference_steps(3).seed(1).output_type(OutputType::Latent);
    call.run().unwrap().images.into_tensor().unwrap()
}

#[test]
fn models_and_pipelines_cross_threads() {
    fn send_and_sync<T: Send + Sync>() {}
    fn send<T: Send>() {}
    send_and_sync::<UNet2DConditionModel>();
    send_and_sync::<AutoencoderKL>();
    send_and_sync::<CLIPTextModel>();
    send::<StableDiffusionPipeline>();
}

#[test]
fn a_callback_sees_every_step_and_can_change_it() {
    let mut pipe = pipeline();
    let plain = latents(&mut pipe);
    let mut seen = vec![];
    let zeroed = pipe
        .call("a red circle")
        .num_inference_steps(3)
        .seed(1)
        .output_type(OutputType::Latent)
        .callback_on_step_end(|end| {
            seen.push((end.step, end.timestep));
            end.latents = end.latents.f_zeros_like()?;
            Ok(())
        })
        .run()
        .unwrap();
    let zeroed = zeroed.images.into_tensor().unwrap();
    assert_eq!(seen.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 1, 2, 3], "PNDM takes one step more");
    assert!(seen.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    assert_eq!(zeroed.to_vec().unwrap().iter().filter(|value| **value != 0.0).count(), 0);
    assert!(plain.max_abs_diff(&zeroed).unwrap() > 0.0);
}

#[test]
fn an_interrupted_call_leaves_out_the_steps_that_remain() {
    let mut pipe = pipeline();
    let mut steps = 0;
    let call = pipe.call("a red circle").num_inference_steps(20).seed(1).callback_on_step_end(|end| {
        steps += 1;
        end.interrupt = end.step == 4;
        Ok(())
    });
    assert!(matches!(call.run().unwrap().images, Images::Image(_)));
    assert_eq!(steps, 5);
}

#[test]
fn guidance_can_be_switched_off_on_the_way() {
    let mut pipe = pipeline();
    let call = pipe.call("a red circle").num_inference_steps(4).seed(1).callback_on_step_end(|end| {
        if end.step == 1 {
            end.guidance_scale = 0.0;
            end.prompt_embeds = end.prompt_embeds.chunks::<2>(0)?[1].shallow_clone();
        }
        Ok(())
    });
    call.run().unwrap();
}

#[test]
fn an_error_in_a_callback_ends_the_call_and_the_pipeline_goes_on() {
    let mut pipe = pipeline();
    let before = latents(&mut pipe);
    let failing = pipe.call("a red circle").callback_on_step_end(|_| Err(Error::Argument("enough".into())));
    assert_eq!(failing.run().unwrap_err().to_string(), "enough");
    assert_eq!(latents(&mut pipe).max_abs_diff(&before).unwrap(), 0.0);
}

/// A UNet of the user's own.
#[derive(Debug)]
struct Halved(UNet2DConditionModel);

impl UNet for Halved {
    fn config(&self) -> &UNet2DConditionConfig {
        self.0.config()
    }

    fn forward(&self, inputs: &UNetInputs<'_>) -> tch_diffusers::Result<Tensor> {
        Ok(self.0.forward(inputs)?.f_mul_scalar(0.5)?)
    }

    fn dtype(&self) -> Kind {
        self.0.node().dtype()
    }

    fn device(&self) -> Device {
        self.0.node().device()
    }

    fn move_to(&self, target: To) -> tch_diffusers::Result<()> {
        ModelMixin::to(&self.0, target)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[test]
fn components_can_be_passed_in_and_replaced() {
    let plain = latents(&mut pipeline());
    let unet = || UNet2DConditionModel::from_pretrained(folder()).subfolder("unet").load().unwrap();
    let vae = AutoencoderKL::from_pretrained(folder().join("vae")).load().unwrap();
    let loader = StableDiffusionPipeline::from_pretrained(folder()).unet(unet()).vae(vae);
    let mut passed = loader.load().unwrap();
    passed.progress_bar.disable = true;
    assert_eq!(latents(&mut passed).max_abs_diff(&plain).unwrap(), 0.0);
    passed.set_unet(Halved(unet()));
    assert!(latents(&mut passed).max_abs_diff(&plain).unwrap() > 0.0);
    let saved = tempfile::tempdir().unwrap();
    let error = passed.save_pretrained(saved.path()).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
}

#[test]
fn schedulers_swap_back_and_forth_without_loss() {
    let mut pipe = pipeline();
    let before = latents(&mut pipe);
    let config = pipe.scheduler.config().clone();
    for kind in [SchedulerKind::UniPCMultistep, SchedulerKind::EulerDiscrete, SchedulerKind::PNDM] {
        pipe.scheduler = kind.from_config(pipe.scheduler.config()).unwrap();
        let _ = latents(&mut pipe);
    }
    for (key, value) in &config {
        assert_eq!(pipe.scheduler.config().get(key), Some(value), "{key}");
    }
    assert_eq!(latents(&mut pipe).max_abs_diff(&before).unwrap(), 0.0);
}

#[test]
fn a_saved_pipeline_draws_the_same() {
    let mut pipe = pipeline();
    let saved = tempfile::tempdir().unwrap();
    pipe.save_pretrained(saved.path()).unwrap();
    let mut again = StableDiffusionPipeline::from_pretrained(saved.path()).load().unwrap();
    again.progress_bar.disable = true;
    // A matrix product's last bits depend on where a weight begins in memory, and the files' headers differ in length.
    assert!(latents(&mut again).max_abs_diff(&latents(&mut pipe)).unwrap() < 1e-4);
    let weights = |pipe: &StableDiffusionPipeline| {
        let unet = pipe.unet.as_any().downcast_ref::<UNet2DConditionModel>().unwrap();
        [unet.node().state_dict(), pipe.vae.node().state_dict(), pipe.text_encoder.node().state_dict()].concat_tensors()
    };
    for ((key, ours), (other, theirs)) in weights(&pipe).iter().zip(&weights(&again)) {
        assert_eq!((key, ours.max_abs_diff(theirs).unwrap()), (other, 0.0));
    }
}

trait ConcatTensors {
    fn concat_tensors(self) -> Vec<(String, Tensor)>;
}

impl<const N: usize> ConcatTensors for [Vec<(String, Tensor)>; N] {
    fn concat_tensors(self) -> Vec<(String, Tensor)> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused_and_the_pipeline_goes_on() {
    let mut pipe = pipeline();
    let refused = |error: Error, expected: &str| {
        assert!(matches!(error, Error::Argument(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused(pipe.call("x").height(100).width(64).run().unwrap_err(), "divisible by 8");
    refused(pipe.call("x").height(-8).width(64).run().unwrap_err(), "divisible by 8");
    refused(pipe.call(Vec::<String>::new()).run().unwrap_err(), "no prompt");
    refused(pipe.call("x").negative_prompt(["y"]).run().unwrap_err(), "a list where it is a list");
    refused(pipe.call(["x", "y"]).negative_prompt(["z"]).run().unwrap_err(), "1 negative prompts for 2 prompts");
    refused(pipe.call("x").num_images_per_prompt(0).run().unwrap_err(), "at least 1");
    refused(pipe.call("x").num_inference_steps(0).run().unwrap_err(), "");
    refused(pipe.call("x").timesteps(&[9.0]).sigmas(&[1.0]).run().unwrap_err(), "not both");
    let mut two = [Generator::cpu(0).unwrap(), Generator::cpu(1).unwrap()];
    refused(pipe.call(["x"; 3]).generators(&mut two).run().unwrap_err(), "2 generators were given for a batch of 3");
    let embeds = Tensor::zeros([1, 77, 32], (Kind::Float, Device::Cpu));
    let other = Tensor::zeros([1, 70, 32], (Kind::Float, Device::Cpu));
    let call = pipe.call_embeds(embeds).negative_prompt_embeds(other);
    refused(call.run().unwrap_err(), "[1, 77, 32]");
    let _ = latents(&mut pipe);
}

#[test]
fn embeddings_of_a_wrong_width_name_the_module() {
    let mut pipe = pipeline();
    let embeds = || Tensor::zeros([1, 77, 33], (Kind::Float, Device::Cpu));
    let error = pipe.call_embeds(embeds()).negative_prompt_embeds(embeds()).run().unwrap_err();
    assert!(error.to_string().starts_with("unet.down_blocks.0.attentions.0"), "{error}");
}

#[test]
fn a_folder_of_another_kind_is_refused_by_name() {
    let copy = tempfile::tempdir().unwrap();
    let index = std::fs::read_to_string(folder().join("model_index.json")).unwrap();
    let load = |index: String| {
        std::fs::write(copy.path().join("model_index.json"), index).unwrap();
        StableDiffusionPipeline::from_pretrained(copy.path()).load().unwrap_err()
    };
    let error = load(index.replace("StableDiffusionPipeline", "FluxPipeline"));
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("FluxPipeline"), "{error}");
    let error = load(index.replace("AutoencoderKL", "AutoencoderTiny"));
    assert!(error.to_string().contains("`vae` is a AutoencoderTiny"), "{error}");
    let error = load("{".into());
    assert!(matches!(error, Error::Config(_)) && error.to_string().contains("model_index.json"), "{error}");
    let error = StableDiffusionPipeline::from_pretrained(folder()).variant("fp16").load().unwrap_err();
    assert!(matches!(error, Error::Argument(_)) && error.to_string().contains("`fp16`"), "{error}");
}

#[test]
fn casting_and_laying_out_reach_every_model() {
    let mut pipe = pipeline();
    pipe.to(Kind::BFloat16).unwrap();
    assert_eq!(latents(&mut pipe).kind(), Kind::BFloat16);
    pipe.to(Kind::Float).unwrap();
    pipe.to(tch_diffusers::MemoryFormat::ChannelsLast).unwrap();
    let weight = |node: &tch_diffusers::nn::Node| node.get("conv_in").unwrap().own_params()[0].1.get();
    let unet = pipe.unet.as_any().downcast_ref::<UNet2DConditionModel>().unwrap();
    assert_eq!(weight(unet.node()).stride(), [36, 1, 12, 4]);
    let _ = latents(&mut pipe);
}
