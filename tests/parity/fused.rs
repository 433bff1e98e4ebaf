//! Queries, keys and values as one product.

use crate::support::{cases, generated, json, name, record, tensors};
use tch::{Kind, Tensor};
use tch_diffusers::image_processor::{Images, OutputType};
use tch_diffusers::nn::Module;
use tch_diffusers::{KindExt, PipelineMixin, StableDiffusionPipeline, TensorExt, UNet2DConditionModel};

fn load(kind: Kind) -> StableDiffusionPipeline {
    let folder = generated("fused").join("_model/sd1");
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder).torch_dtype(kind).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

fn draw(pipe: &mut StableDiffusionPipeline, output_type: OutputType) -> Tensor {
    let call = pipe.call("a red circle").num_inference_steps(3).seed(0).output_type(output_type);
    match call.run().unwrap().images {
        Images::Latent(images) | Images::Tensor(images) => images,
        other => panic!("{other:?}"),
    }
}

#[test]
fn fused_projections_draw_what_diffusers_draws_with_them() {
    for folder in cases(&generated("fused")) {
        let (case, expected) = (json(&folder.join("case.json")), tensors(&folder.join("expected.safetensors")));
        let mut pipe = load(Kind::from_torch_name(case["dtype"].as_str().unwrap()).unwrap());
        let (unet, vae) = (case["unet"] == true, case["vae"] == true);
        let plain = draw(&mut pipe, OutputType::Tensor);
        pipe.fuse_qkv_projections(unet, vae).unwrap();
        for (key, output_type) in [("latent", OutputType::Latent), ("pt", OutputType::Tensor)] {
            let found = draw(&mut pipe, output_type);
            record("fused", &name(&folder), key, found.max_abs_diff(&expected[key]).unwrap(), 0.0);
        }
        let fused = draw(&mut pipe, OutputType::Tensor).max_abs_diff(&plain).unwrap();
        record("fused", &name(&folder), "pixels, to those without", fused, 0.0);
        pipe.unfuse_qkv_projections(unet, vae).unwrap();
        let again = draw(&mut pipe, OutputType::Tensor).max_abs_diff(&plain).unwrap();
        record("fused", &name(&folder), "pixels, fused and unfused", again, 0.0);
    }
}

#[test]
fn fused_weights_keep_their_names_and_values_and_follow_when_cast() {
    let mut pipe = load(Kind::Float);
    let unet = |pipe: &StableDiffusionPipeline| {
        let unet = pipe.unet.as_any().downcast_ref::<UNet2DConditionModel>().unwrap();
        unet.node().state_dict()
    };
    let before = unet(&pipe);
    pipe.fuse_qkv_projections(true, true).unwrap();
    let _ = draw(&mut pipe, OutputType::Latent);
    let after = unet(&pipe);
    for ((name, a), (other, b)) in before.iter().zip(&after) {
        assert_eq!((name, a.max_abs_diff(b).unwrap()), (other, 0.0));
    }
    let storage = |name: &str| after.iter().find(|(key, _)| key == name).map(|(_, weight)| weight.data_ptr() as usize);
    let attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
    let (query, key) = (storage(&format!("{attention}.to_q.weight")), storage(&format!("{attention}.to_k.weight")));
    assert!(key.unwrap() - query.unwrap() < 1 << 20, "the weights do not lie side by side");

    let mut half = load(Kind::BFloat16);
    half.fuse_qkv_projections(true, true).unwrap();
    pipe.to(Kind::BFloat16).unwrap();
    let (cast, loaded) = (draw(&mut pipe, OutputType::Latent), draw(&mut half, OutputType::Latent));
    assert_eq!(cast.max_abs_diff(&loaded).unwrap(), 0.0);

    let saved = tempfile::tempdir().unwrap();
    pipe.save_pretrained(saved.path()).unwrap();
    let mut read = StableDiffusionPipeline::from_pretrained(saved.path()).torch_dtype(Kind::BFloat16).load().unwrap();
    read.progress_bar.disable = true;
    read.fuse_qkv_projections(true, true).unwrap();
    assert_eq!(draw(&mut read, OutputType::Latent).max_abs_diff(&cast).unwrap(), 0.0);
}
