//! Techniques that save memory, several at a time: the same bits as without offloading, a reason where they do not go
//! together, and nothing left behind by a forward that fails.

use crate::support::generated;
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::{GroupOffloading, LAYERWISE_CASTING_HOOK};
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::models::attention_processor::AttentionSlicing;
use tch_diffusers::nn::{Hook, Module, Next, Node};
use tch_diffusers::{Error, MemoryFormat, PipelineMixin, Result, StableDiffusionPipeline};

fn load() -> StableDiffusionPipeline {
    let folder = generated("pipeline").join("_models/sd1");
    let mut pipe = StableDiffusionPipeline::from_pretrained(folder).load().unwrap();
    pipe.progress_bar.disable = true;
    pipe
}

/// Two pictures, large enough for tiles.
fn draw(pipe: &mut StableDiffusionPipeline) -> Result<Tensor> {
    let call = pipe.call(["a red circle", "a yellow star"]).height(96).width(128);
    call.num_inference_steps(2).seed(5).output_type(OutputType::Tensor).run()?.images.into_tensor()
}

fn group(options: GroupOffloading, to_disk: bool) -> GroupOffloading {
    options.onload_device(Device::Cpu).offload_to_disk(to_disk)
}

type Enable = fn(&mut StableDiffusionPipeline) -> Result<()>;

const OFFLOADING: [(&str, Enable); 6] = [
    ("model", |pipe| pipe.enable_model_cpu_offload(Device::Cpu)),
    ("sequential", |pipe| pipe.enable_sequential_cpu_offload(Device::Cpu)),
    ("blocks", |pipe| pipe.enable_group_offload(&group(GroupOffloading::block_level(1), false), &[])),
    ("leaves", |pipe| pipe.enable_group_offload(&group(GroupOffloading::leaf_level(), false), &[])),
    ("blocks from files", |pipe| pipe.enable_group_offload(&group(GroupOffloading::block_level(2), true), &[])),
    ("leaves from files", |pipe| pipe.enable_group_offload(&group(GroupOffloading::leaf_level(), true), &[])),
];

const OTHERS: [(&str, Enable); 4] = [
    ("nothing else", |_| Ok(())),
    ("slices and tiles", |pipe| {
        pipe.enable_vae_slicing();
        pipe.enable_vae_tiling();
        pipe.enable_attention_slicing(AttentionSlicing::Auto)
    }),
    ("channels last", |pipe| {
        pipe.enable_vae_tiling();
        pipe.unet.move_to(MemoryFormat::ChannelsLast.into())
    }),
    ("casting, slices and tiles", |pipe| {
        pipe.enable_vae_tiling();
        pipe.enable_attention_slicing(AttentionSlicing::Max)?;
        pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None)
    }),
];

fn state(pipe: &StableDiffusionPipeline) -> Vec<(usize, Device, Kind, Vec<i64>)> {
    let nodes = [pipe.text_encoder.node(), pipe.unet.tree().unwrap(), pipe.vae.node()];
    let weights = nodes.into_iter().flat_map(Node::state_dict);
    weights.map(|(_, it)| (it.data_ptr() as usize, it.device(), it.kind(), it.stride())).collect()
}

/// Fails where it hangs.
#[derive(Debug)]
struct Fail;

impl Hook for Fail {
    fn around(&self, _: &Node, _: &[Tensor], _: Next<'_>) -> Result<Vec<Tensor>> {
        Err(Error::OutOfMemory("injected".into()))
    }
}

#[test]
fn every_combination_equals_the_run_without_offloading() {
    for (other, enable) in OTHERS {
        let mut resident = load();
        enable(&mut resident).unwrap();
        let expected = draw(&mut resident).unwrap();
        for (offloading, offload) in OFFLOADING {
            let mut pipe = load();
            enable(&mut pipe).unwrap();
            let casts = pipe.unet.tree().unwrap().get("conv_in").unwrap().hook(LAYERWISE_CASTING_HOOK).is_some();
            if casts && offloading.ends_with("files") {
                let error = offload(&mut pipe).unwrap_err();
                let reason = "layerwise casting stores it in 8 bits, which a file of more bits does not give";
                assert!(matches!(error.kind(), Error::Argument(text) if text.contains(reason)), "{error}");
                assert!(draw(&mut pipe).unwrap().equal(&expected), "{offloading} was refused, with {other}");
                continue;
            }
            offload(&mut pipe).unwrap();
            for _ in 0..2 {
                assert!(draw(&mut pipe).unwrap().equal(&expected), "{offloading} with {other}");
            }
            pipe.reset().unwrap();
        }
    }
}

#[test]
fn casting_after_leaving_weights_to_files_casts_what_is_stored() {
    let mut pipe = load();
    let options = group(GroupOffloading::leaf_level(), true);
    pipe.enable_group_offload(&options, &[]).unwrap();
    pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap();
    let mut resident = load();
    resident.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap();
    assert!(draw(&mut pipe).unwrap().equal(&draw(&mut resident).unwrap()));
}

#[test]
fn a_failing_forward_leaves_everything_as_it_was() {
    for (offloading, offload) in OFFLOADING {
        let mut pipe = load();
        pipe.enable_vae_tiling();
        if !offloading.ends_with("files") {
            pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap();
        }
        offload(&mut pipe).unwrap();
        let (expected, before) = (draw(&mut pipe).unwrap(), state(&pipe));
        let modules = [
            pipe.text_encoder.node().get("encoder.layers.0.mlp.fc1"),
            pipe.unet.tree().unwrap().get("down_blocks.0.resnets.0.conv2"),
            pipe.unet.tree().unwrap().get("up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"),
            pipe.vae.node().get("decoder.conv_out"),
        ];
        for module in modules {
            let module = module.unwrap();
            module.add_hook("fail", Fail);
            let error = draw(&mut pipe).unwrap_err();
            assert!(matches!(error.kind(), Error::OutOfMemory(text) if text == "injected"), "{error}");
            module.remove_hook("fail");
            assert_eq!(state(&pipe), before, "{offloading}, at {}", module.path());
        }
        let wrong = Tensor::zeros([1, 77, 5], (Kind::Float, Device::Cpu));
        let call = pipe.call_embeds(wrong).guidance_scale(1.0).num_inference_steps(1);
        assert!(matches!(call.run().unwrap_err().kind(), Error::Torch(_) | Error::Shape(_)));
        assert_eq!(state(&pipe), before, "{offloading}, after a wrong shape");
        assert!(draw(&mut pipe).unwrap().equal(&expected), "{offloading}");
    }
}
