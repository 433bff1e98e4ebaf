//! LoRAs beside other techniques, taken away again, and files that are none.

use crate::support::{generated, tensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::loaders::lora::{BlockWeights, LoraLayers, PeftAdapterMixin, SaveLora};
use tch_diffusers::loaders::{LoraOptions, LoraStateDict};
use tch_diffusers::models::unets::{TracedUNet, UNet2DConditionModel};
use tch_diffusers::models::{ModelMixin, To, Traceable, trace};
use tch_diffusers::nn::Module;
use tch_diffusers::pipelines::stable_diffusion::{CrossAttentionKwargs, FuseLora, LORA_LOADABLE_MODULES};
use tch_diffusers::utils::progress::ProgressBarConfig;
use tch_diffusers::{AutoencoderKL, Error, MemoryFormat, PipelineMixin, StableDiffusionPipeline, TensorExt};

fn pipeline(kind: Kind) -> StableDiffusionPipeline {
    let hidden = ProgressBarConfig { disable: true, desc: None };
    let folder = generated("lora").join("_models/sd1");
    StableDiffusionPipeline::from_pretrained(folder).torch_dtype(kind).progress_bar(hidden).load().unwrap()
}

fn file(name: &str) -> PathBuf {
    generated("lora").join("_files").join(format!("{name}.safetensors"))
}

fn with_lora(kind: Kind) -> StableDiffusionPipeline {
    let mut pipe = pipeline(kind);
    pipe.load_lora_weights(file("peft_conv"), &LoraOptions::default()).unwrap();
    pipe
}

fn draw(pipe: &mut StableDiffusionPipeline) -> Tensor {
    let call = pipe.call("a red circle").num_inference_steps(2).height(32).width(32).seed(1);
    call.output_type(OutputType::Latent).run().unwrap().images.into_tensor().unwrap()
}

fn weights(pipe: &StableDiffusionPipeline) -> Vec<(String, Tensor)> {
    let state = [pipe.unet.tree().unwrap().state_dict(), pipe.text_encoder.node().state_dict()];
    state.into_iter().flatten().map(|(key, tensor)| (key, tensor.copy())).collect()
}

fn assert_same(left: &[(String, Tensor)], right: &[(String, Tensor)]) {
    assert_eq!(left.len(), right.len());
    for ((key, own), (other_key, other)) in left.iter().zip(right) {
        assert_eq!((key, own.kind(), own.stride()), (other_key, other.kind(), other.stride()));
        assert!(own.equal(other), "{key}");
    }
}

fn equal(left: &Tensor, right: &Tensor) -> bool {
    left.max_abs_diff(right).unwrap() == 0.0
}

#[test]
fn unfusing_and_unloading_give_the_very_weights_back() {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        for channels_last in [false, true] {
            let mut pipe = pipeline(kind);
            if channels_last {
                pipe.unet.move_to(To::MemoryFormat(MemoryFormat::ChannelsLast)).unwrap();
            }
            let before = weights(&pipe);
            pipe.load_lora_weights(file("peft_conv"), &LoraOptions::default()).unwrap();
            pipe.fuse_lora(&FuseLora { lora_scale: 0.7, ..FuseLora::default() }).unwrap();
            assert_eq!(pipe.fused_loras(), ["default_0"]);
            let fused = weights(&pipe);
            assert!(fused.iter().zip(&before).any(|((_, new), (_, old))| !new.equal(old)));
            assert!(fused.iter().zip(&before).all(|((_, new), (_, old))| new.stride() == old.stride()));
            pipe.unfuse_lora(&LORA_LOADABLE_MODULES).unwrap();
            assert_same(&weights(&pipe), &before);
            assert_eq!(pipe.num_fused_loras(), 0);
            pipe.unload_lora_weights();
            assert_same(&weights(&pipe), &before);
            assert!(pipe.unet.tree().unwrap().walk().iter().all(|node| node.hook_names().is_empty()));
            assert!(pipe.get_list_adapters().is_empty() && pipe.get_active_adapters().is_empty());
        }
    }
}

#[test]
fn what_was_fused_in_one_dtype_is_unfused_in_another() {
    let pipe = with_lora(Kind::Float);
    pipe.fuse_lora(&FuseLora::default()).unwrap();
    pipe.unet.move_to(To::Kind(Kind::BFloat16)).unwrap();
    pipe.unfuse_lora(&["unet"]).unwrap();
    let expected = pipeline(Kind::BFloat16);
    let (own, other) = (pipe.unet.tree().unwrap().state_dict(), expected.unet.tree().unwrap().state_dict());
    assert_same(&own, &other);
}

#[test]
fn unfused_weights_lie_in_their_files_again() {
    let pipe = with_lora(Kind::Float);
    let resident = |pipe: &StableDiffusionPipeline| -> i64 {
        let memory = pipe.memory_report().unwrap();
        memory.weights.iter().filter(|line| line.component == "unet").map(|line| line.resident).sum()
    };
    let loaded = resident(&pipe);
    pipe.fuse_lora(&FuseLora::default()).unwrap();
    assert!(resident(&pipe) > loaded);
    pipe.unfuse_lora(&LORA_LOADABLE_MODULES).unwrap();
    assert_eq!(resident(&pipe), loaded);
    pipe.unload_lora_weights();
    assert!(resident(&pipe) < loaded);
}

#[test]
fn offloading_changes_no_bit() {
    let expected = draw(&mut with_lora(Kind::Float));
    assert!(!equal(&expected, &draw(&mut pipeline(Kind::Float))));
    let ways: [fn(&mut StableDiffusionPipeline); 4] = [
        |pipe| pipe.enable_model_cpu_offload(Device::Cpu).unwrap(),
        |pipe| pipe.enable_sequential_cpu_offload(Device::Cpu).unwrap(),
        |pipe| pipe.enable_group_offload(&GroupOffloading::leaf_level().onload_device(Device::Cpu), &[]).unwrap(),
        |pipe| {
            let disk = GroupOffloading::block_level(1).onload_device(Device::Cpu).offload_to_disk(true);
            pipe.enable_group_offload(&disk, &[]).unwrap();
        },
    ];
    for way in ways {
        let mut after = with_lora(Kind::Float);
        way(&mut after);
        assert!(equal(&draw(&mut after), &expected));
        let mut before = pipeline(Kind::Float);
        way(&mut before);
        before.load_lora_weights(file("peft_conv"), &LoraOptions::default()).unwrap();
        assert!(equal(&draw(&mut before), &expected));
        let error = before.fuse_lora(&FuseLora::default()).unwrap_err();
        assert!(
            matches!(error.kind(), Error::Argument(_)) && error.to_string().contains("offloading is on"),
            "{error}"
        );
        before.remove_all_hooks().unwrap();
        assert!(equal(&draw(&mut before), &expected));
        before.unload_lora_weights();
        assert!(equal(&draw(&mut before), &draw(&mut pipeline(Kind::Float))));
    }
}

#[test]
fn packed_weights_and_fused_projections_change_no_bit() {
    let expected = draw(&mut with_lora(Kind::Float));
    let mut pipe = with_lora(Kind::Float);
    pipe.enable_weights_prepack().unwrap();
    pipe.fuse_qkv_projections(true, true).unwrap();
    assert!(equal(&draw(&mut pipe), &expected));
    pipe.fuse_lora(&FuseLora::default()).unwrap();
    let fused = draw(&mut pipe);
    pipe.unfuse_lora(&LORA_LOADABLE_MODULES).unwrap();
    assert!(equal(&draw(&mut pipe), &expected));
    pipe.disable_weights_prepack().unwrap();
    pipe.unfuse_qkv_projections(true, true).unwrap();
    pipe.fuse_lora(&FuseLora::default()).unwrap();
    assert!(equal(&draw(&mut pipe), &fused));
    pipe.reset().unwrap();
    assert!(equal(&draw(&mut pipe), &draw(&mut pipeline(Kind::Float))));
}

#[test]
fn layerwise_casting_casts_no_adapter_and_lets_none_be_fused() {
    let mut pipe = with_lora(Kind::Float);
    pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap();
    let cast_after = draw(&mut pipe);
    let error = pipe.fuse_lora(&FuseLora::default()).unwrap_err();
    assert!(matches!(error.kind(), Error::Unsupported(_)), "{error}");
    let mut pipe = pipeline(Kind::Float);
    pipe.enable_layerwise_casting(Kind::Float8e4m3fn, None).unwrap();
    let without = draw(&mut pipe);
    pipe.load_lora_weights(file("peft_conv"), &LoraOptions::default()).unwrap();
    let cast_before = draw(&mut pipe);
    assert!(equal(&cast_before, &cast_after) && !equal(&cast_before, &without));
}

#[test]
fn adapters_follow_their_model_to_another_dtype() {
    let (mut cast, mut loaded) = (with_lora(Kind::Float), with_lora(Kind::BFloat16));
    cast.to(Kind::BFloat16).unwrap();
    let weights = cast.unet.tree().unwrap().hook_weights();
    assert!(!weights.is_empty() && weights.iter().all(|weight| weight.get().kind() == Kind::BFloat16));
    assert!(equal(&draw(&mut cast), &draw(&mut loaded)));
}

#[test]
fn the_scale_of_a_call_ends_with_it_even_where_the_call_fails() {
    let mut pipe = with_lora(Kind::Float);
    let expected = draw(&mut pipe);
    let half = CrossAttentionKwargs { scale: 0.0 };
    let call =
        pipe.call("a red circle").num_inference_steps(2).height(32).width(32).seed(1).cross_attention_kwargs(half);
    let failing = call.callback_on_step_end(|_| Err(Error::Argument("enough".into()))).run();
    assert!(failing.is_err());
    assert!(equal(&draw(&mut pipe), &expected));
    let call =
        pipe.call("a red circle").num_inference_steps(2).height(32).width(32).seed(1).cross_attention_kwargs(half);
    let without = call.output_type(OutputType::Latent).run().unwrap().images.into_tensor().unwrap();
    assert!(equal(&without, &draw(&mut pipeline(Kind::Float))));
    let call = pipe.call("a").cross_attention_kwargs(CrossAttentionKwargs { scale: f64::NAN });
    assert!(matches!(call.run(), Err(Error::Argument(_))));
}

#[test]
fn a_traced_unet_takes_no_adapter_and_a_fused_one_can_be_traced() {
    let mut pipe = with_lora(Kind::Float);
    let expected = {
        pipe.fuse_lora(&FuseLora::default()).unwrap();
        pipe.unload_lora_weights();
        draw(&mut pipe)
    };
    let unet = pipe.unet.as_any().downcast_ref::<UNet2DConditionModel>().unwrap();
    let inputs = unet.example_inputs(2, [4, 4]).unwrap();
    let traced = trace(unet, &inputs).unwrap();
    pipe.set_unet(TracedUNet::new(traced).unwrap());
    // As other traces at their example's batch: the optimised graph may round otherwise.
    let difference = draw(&mut pipe).max_abs_diff(&expected).unwrap();
    assert!(difference <= 5e-6, "{difference}");
    let error = pipe.load_lora_weights(file("peft"), &LoraOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("before tracing"), "{error}");
    let call = pipe.call("a").cross_attention_kwargs(CrossAttentionKwargs { scale: 0.5 });
    assert!(matches!(call.run(), Err(Error::Unsupported(_))));
    let other = with_lora(Kind::Float);
    let unet = other.unet.as_any().downcast_ref::<UNet2DConditionModel>().unwrap();
    let error = trace(unet, &inputs).unwrap_err();
    assert!(error.to_string().contains("fuse and unload LoRAs"), "{error}");
}

/// The tensors of a LoRA, changed, as a file.
fn changed(folder: &Path, change: impl Fn(&mut HashMap<String, Tensor>)) -> PathBuf {
    let mut all: HashMap<_, _> = tensors(&file("peft")).into_iter().collect();
    change(&mut all);
    let path = folder.join("changed.safetensors");
    let all: Vec<_> = all.into_iter().collect();
    Tensor::write_safetensors(&all, &path).unwrap();
    path
}

#[test]
fn files_that_are_no_loras_are_refused_with_file_and_key_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let query = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let (down, up) = (format!("{query}.lora_A.weight"), format!("{query}.lora_B.weight"));
    let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    type Change<'a> = Box<dyn Fn(&mut HashMap<String, Tensor>) + 'a>;
    let cases: Vec<(Change<'_>, Vec<String>)> = vec![
        (Box::new(|all| drop(all.remove(&up))), vec!["missing 1 of".into(), up.clone()]),
        (
            Box::new(|all| drop(all.insert(down.clone(), ones(&[4, 31])))),
            vec![down.clone(), "should be [4, 32] and is [4, 31]".into()],
        ),
        (
            Box::new(|all| drop(all.insert(up.clone(), ones(&[32, 5])))),
            vec![down.clone(), "should be [5, 32] and is [4, 32]".into()],
        ),
        (
            Box::new(|all| drop(all.insert("unet.conv_in.weight".into(), ones(&[1])))),
            vec!["`unet.conv_in.weight` is no weight of a LoRA".into()],
        ),
        (
            Box::new(|all| drop(all.insert(format!("{query}.lora_magnitude_vector"), ones(&[32])))),
            vec!["is of DoRA".into()],
        ),
        (
            Box::new(|all| drop(all.insert(down.clone(), ones(&[4, 32]).to_kind(Kind::Int)))),
            vec![down.clone(), "should be of a floating-point dtype".into()],
        ),
        (
            Box::new(|all| {
                drop(all.insert("unet.conv_norm_out.lora_A.weight".into(), ones(&[4, 32])));
                drop(all.insert("unet.conv_norm_out.lora_B.weight".into(), ones(&[32, 4])));
            }),
            vec!["`conv_norm_out` is a GroupNorm".into()],
        ),
        (
            Box::new(|all| {
                let renamed = all.drain().map(|(key, tensor)| (key.replace("_blocks", "_stages"), tensor));
                let renamed: Vec<_> = renamed.collect();
                all.extend(renamed);
            }),
            vec!["has none of its".into(), "another model".into()],
        ),
        (
            Box::new(|all| {
                let renamed: Vec<_> = all.drain().map(|(key, it)| (key.replace("unet.", "transformer."), it)).collect();
                all.extend(renamed);
            }),
            vec!["nothing for unet or text_encoder: it is of transformer".into()],
        ),
        (Box::new(HashMap::clear), vec!["it is empty".into()]),
    ];
    let mut pipe = pipeline(Kind::Float);
    let before = draw(&mut pipe);
    for (change, words) in cases {
        let path = changed(folder.path(), change);
        let error = pipe.load_lora_weights(&path, &LoraOptions::default()).unwrap_err().to_string();
        assert!(error.contains("changed.safetensors"), "{error}");
        for word in words {
            assert!(error.contains(&word), "{word}: {error}");
        }
        assert!(pipe.get_list_adapters().is_empty());
    }
    assert!(equal(&draw(&mut pipe), &before));
}

#[test]
fn pickle_files_broken_files_and_broken_metadata_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_lora_weights.bin");
    std::fs::write(&path, "pickle").unwrap();
    for source in [path.as_path(), folder.path()] {
        let error = LoraOptions::default().read(source).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("convert it"), "{error}");
    }
    let path = folder.path().join("cut.safetensors");
    let bytes = std::fs::read(file("peft")).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(LoraStateDict::read(&path), Err(Error::Config(_))));
    let tensors: Vec<_> = tensors(&file("peft")).into_iter().collect();
    for (metadata, words) in [("{", "lora_adapter_metadata"), (r#"{"unet.r": "x"}"#, "`unet.r` should be a number")] {
        let error = LoraStateDict::from_tensors(Path::new("given"), &tensors, Some(metadata)).unwrap_err();
        assert!(error.to_string().contains(words) && error.to_string().contains("given"), "{error}");
    }
    let metadata = r#"{"unet.r": 8, "unet.lora_alpha": 4}"#;
    let lora = LoraStateDict::from_tensors(Path::new("given"), &tensors, Some(metadata)).unwrap();
    let error = pipeline(Kind::Float).load_lora_state_dict(&lora, None).unwrap_err();
    assert!(matches!(&error, Error::WeightShape { .. }) && error.to_string().contains("should be [8,"), "{error}");
}

#[test]
fn names_weights_and_components_are_checked() {
    let mut pipe = with_lora(Kind::Float);
    let argument = |result: tch_diffusers::Result<()>, words: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Argument(_)) && error.to_string().contains(words), "{error}");
    };
    argument(pipe.set_adapters(&["default_0"], &[1.0, 2.0]), "2 weights were given for 1 adapters");
    argument(pipe.set_adapters(&["other"], &[1.0]), "no adapter `other`: loaded are");
    argument(pipe.delete_adapters(&["other"]), "no adapter `other`");
    argument(pipe.unfuse_lora(&["vae"]), "`components` can be unet, text_encoder");
    argument(pipe.fuse_lora(&FuseLora { components: &[], ..FuseLora::default() }), "names none");
    argument(
        pipe.fuse_lora(&FuseLora { adapter_names: Some(&["other"]), ..FuseLora::default() }),
        "no adapter `other`",
    );
    let again = LoraOptions::default().adapter_name("default_0");
    argument(pipe.load_lora_weights(file("second"), &again).map(drop), "`default_0` is taken");
    pipe.fuse_lora(&FuseLora::default()).unwrap();
    argument(pipe.delete_adapters(&["default_0"]), "is fused");
    pipe.disable_lora().unwrap();
    assert_eq!(pipe.num_fused_loras(), 0);
    let error = pipe.fuse_lora(&FuseLora::default()).unwrap_err();
    assert!(
        matches!(error.kind(), Error::Argument(_)) && error.to_string().contains("call enable_lora first"),
        "{error}"
    );
    assert!(equal(&draw(&mut pipe), &draw(&mut pipeline(Kind::Float))));
}

#[test]
fn safe_fusing_finds_numbers_that_are_not_finite_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight";
    let path = changed(folder.path(), |all| {
        let infinite = all[key].full_like(f64::INFINITY);
        drop(all.insert(key.into(), infinite));
    });
    let mut pipe = pipeline(Kind::Float);
    let before = weights(&pipe);
    pipe.load_lora_weights(&path, &LoraOptions::default()).unwrap();
    let error = pipe.fuse_lora(&FuseLora { safe_fusing: true, ..FuseLora::default() }).unwrap_err();
    assert!(error.to_string().contains("not all finite") && error.to_string().contains("attn1.to_q"), "{error}");
    assert_same(&weights(&pipe), &before);
}

#[test]
fn the_file_may_change_once_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = changed(folder.path(), |_| ());
    let mut pipe = pipeline(Kind::Float);
    pipe.load_lora_weights(&path, &LoraOptions::default()).unwrap();
    let before = draw(&mut pipe);
    std::fs::write(&path, "").unwrap();
    assert!(equal(&draw(&mut pipe), &before));
}

#[test]
fn layers_that_the_model_has_not_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = changed(folder.path(), |all| {
        let more: Vec<_> =
            all.iter().map(|(key, it)| (key.replace("down_blocks.0", "down_blocks.7"), it.copy())).collect();
        all.extend(more);
    });
    let mut pipe = pipeline(Kind::Float);
    pipe.load_lora_weights(&path, &LoraOptions::default()).unwrap();
    let mut plain = pipeline(Kind::Float);
    plain.load_lora_weights(file("peft"), &LoraOptions::default()).unwrap();
    assert!(equal(&draw(&mut pipe), &draw(&mut plain)));
}

fn unet(pipe: &StableDiffusionPipeline) -> &UNet2DConditionModel {
    pipe.unet.as_any().downcast_ref().unwrap()
}

#[test]
fn a_saved_lora_is_read_again_to_the_bit_with_its_alphas() {
    for name in ["peft_conv", "kohya_mixed", "kohya_half", "metadata", "rslora", "only_text"] {
        let folder = tempfile::tempdir().unwrap();
        let mut first = pipeline(Kind::Float);
        first.load_lora_weights(file(name), &LoraOptions::default().adapter_name("a")).unwrap();
        first.set_adapters(&["a"], &[0.3]).unwrap();
        let layers = first.lora_layers("a").unwrap();
        let saved = StableDiffusionPipeline::save_lora_weights(folder.path(), &layers, &SaveLora::default()).unwrap();
        assert_eq!(saved, folder.path().join("pytorch_lora_weights.safetensors"));
        let mut second = pipeline(Kind::Float);
        second.load_lora_weights(folder.path(), &LoraOptions::default().adapter_name("b")).unwrap();
        let again = second.lora_layers("b").unwrap();
        assert_eq!(layers.len(), again.len(), "{name}");
        for ((component, old), (other, new)) in layers.iter().zip(&again) {
            assert_eq!((component, &old.metadata), (other, &new.metadata), "{name}");
            assert_same(&old.state_dict, &new.state_dict);
        }
        // The weight of `set_adapters` is the pipeline's, not the file's.
        first.set_adapters(&["a"], &[1.0]).unwrap();
        assert!(equal(&draw(&mut first), &draw(&mut second)), "{name}");
    }
}

#[test]
fn what_cannot_be_saved_is_refused_and_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = with_lora(Kind::Float);
    let save = |layers: &[(&str, LoraLayers)], options: &SaveLora| {
        StableDiffusionPipeline::save_lora_weights(folder.path(), layers, options)
    };
    let named = SaveLora { weight_name: Some("mine.safetensors".into()), ..SaveLora::default() };
    let path = save(&pipe.lora_layers("default_0").unwrap(), &named).unwrap();
    assert_eq!(path, folder.path().join("mine.safetensors"));
    let before = std::fs::read(&path).unwrap();
    let complex = vec![("conv_in.lora_A.weight".to_string(), Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu)))];
    for (layers, words) in [
        (vec![], "no layers"),
        (vec![("unet", LoraLayers::default())], "no layers"),
        (vec![("vae", LoraLayers::default())], "not of `vae`"),
        (vec![("unet", LoraLayers { state_dict: complex, metadata: None })], "cannot hold dtype"),
    ] {
        let error = save(&layers, &named).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(pipe.lora_layers("other").unwrap_err().to_string().contains("no adapter `other`"));
    let layers = pipe.lora_layers("default_0").unwrap();
    let error = StableDiffusionPipeline::save_lora_weights(&path, &layers, &SaveLora::default()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn weights_by_blocks_that_the_unet_has_not_are_refused_and_change_nothing() {
    let mut pipe = with_lora(Kind::Float);
    let before = draw(&mut pipe);
    let weights = BlockWeights::default;
    for (weights, words) in [
        (weights().down([(1, 0.5.into())]), "`down.block_1` is no block with attention: those are block_0"),
        (weights().up([(7, 0.5.into())]), "`up.block_7` is no block with attention: those are block_1"),
        (weights().up([0.1, 0.2, 0.3]), "`up.block_1` has 2 attentions, and 3 weights"),
        (weights().down([(0, [0.1, 0.2].into())]), "`down.block_0` has 1 attention, and 2 weights"),
    ] {
        let error = pipe.set_adapters(&["default_0"], &[weights]).unwrap_err();
        assert!(matches!(error, Error::Argument(_)) && error.to_string().contains(words), "{error}");
    }
    assert!(equal(&draw(&mut pipe), &before));
    pipe.set_adapters(&["default_0"], &[weights().down(1.0).mid(1.0).up([1.0])]).unwrap();
    assert!(equal(&draw(&mut pipe), &before));
    pipe.set_adapters(&["default_0"], &[weights().mid(0.0)]).unwrap();
    assert!(!equal(&draw(&mut pipe), &before));
    let vae = AutoencoderKL::from_pretrained(generated("lora").join("_models/sd1/vae")).load().unwrap();
    let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let tensors = [("decoder.conv_in.lora_A.weight", [2, 4, 3, 3]), ("decoder.conv_in.lora_B.weight", [32, 2, 1, 1])];
    let tensors: Vec<_> = tensors.iter().map(|(key, shape)| (key.to_string(), ones(shape))).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vae.safetensors");
    Tensor::write_safetensors(&tensors, &path).unwrap();
    vae.load_lora_adapter(&path, None, &LoraOptions::default()).unwrap();
    let error = vae.set_adapters(&["default_0"], &[weights().down(0.5)]).unwrap_err().to_string();
    assert!(error.contains("the AutoencoderKL has no down blocks with attention"), "{error}");
}

#[test]
fn a_model_by_itself_does_what_its_pipeline_does() {
    let (mut expected, mut pipe) = (pipeline(Kind::Float), pipeline(Kind::Float));
    let plain = draw(&mut pipe);
    let folder = tempfile::tempdir().unwrap();
    let path = changed(folder.path(), |_| ());
    expected.load_lora_weights(&path, &LoraOptions::default()).unwrap();
    let name = unet(&pipe).load_lora_adapter(&path, Some("unet"), &LoraOptions::default()).unwrap();
    assert_eq!((name.as_str(), unet(&pipe).active_adapters()), ("default_0", vec!["default_0".to_string()]));
    let adapted = draw(&mut expected);
    assert!(equal(&draw(&mut pipe), &adapted) && !equal(&adapted, &plain));
    expected.set_adapters(&["default_0"], &[0.4]).unwrap();
    unet(&pipe).set_adapters(&["default_0"], &[0.4]).unwrap();
    let weighed = draw(&mut expected);
    assert!(equal(&draw(&mut pipe), &weighed) && !equal(&adapted, &weighed));
    unet(&pipe).disable_lora().unwrap();
    assert!(equal(&draw(&mut pipe), &plain));
    unet(&pipe).enable_lora();
    assert!(equal(&draw(&mut pipe), &weighed));
    let saved = unet(&pipe).save_lora_adapter(folder.path().join("own"), "default_0", &SaveLora::default()).unwrap();
    let second = LoraOptions::default().adapter_name("second");
    unet(&pipe).load_lora_adapter(&saved, None, &second).unwrap();
    assert!(equal(&draw(&mut pipe), &adapted));
    unet(&pipe).set_adapter(&["default_0"]).unwrap();
    assert!(equal(&draw(&mut pipe), &weighed), "the weight is forgotten");
    unet(&pipe).delete_adapters(&["second"]).unwrap();
    assert_eq!(unet(&pipe).list_adapters(), ["default_0"]);
    unet(&pipe).fuse_lora(1.0, true, None).unwrap();
    expected.fuse_lora(&FuseLora::default()).unwrap();
    assert!(equal(&draw(&mut pipe), &draw(&mut expected)));
    assert!(unet(&pipe).delete_adapters(&["default_0"]).unwrap_err().to_string().contains("is fused"));
    assert!(unet(&pipe).unfuse_lora().unwrap());
    unet(&pipe).unload_lora();
    assert!(equal(&draw(&mut pipe), &plain) && unet(&pipe).list_adapters().is_empty());
    let error = unet(&pipe).load_lora_adapter(&path, Some("transformer"), &LoraOptions::default()).unwrap_err();
    assert!(error.to_string().contains("no key begins with `transformer.`"), "{error}");
    let error = unet(&pipe).load_lora_adapter(&path, None, &LoraOptions::default()).unwrap_err();
    assert!(error.to_string().contains("has none of its"), "{error}");
    assert!(unet(&pipe).set_adapter(&["default_0"]).unwrap_err().to_string().contains("no adapter `default_0`"));
    assert!(unet(&pipe).lora_layers("default_0").is_err());
}

#[test]
fn what_is_there_twice_in_two_spellings_is_refused() {
    let pipe = pipeline(Kind::Float);
    let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let layer = "encoder.layers.0.self_attn.q_proj";
    let mut tensors = vec![];
    for prefix in ["text_encoder.", "text_encoder.text_model."] {
        tensors.push((format!("{prefix}{layer}.lora_A.weight"), ones(&[2, 32])));
        tensors.push((format!("{prefix}{layer}.lora_B.weight"), ones(&[32, 2])));
    }
    let lora = LoraStateDict::from_tensors(Path::new("given"), &tensors, None).unwrap();
    let mut pipe = pipe;
    let error = pipe.load_lora_state_dict(&lora, None).unwrap_err().to_string();
    assert!(error.contains(&format!("given: `{layer}` is there twice")), "{error}");
    let read = |tensors: &[(&str, f64)]| {
        let tensors: Vec<_> = tensors.iter().map(|(key, value)| (key.to_string(), ones(&[]) * *value)).collect();
        LoraStateDict::from_tensors(Path::new("given"), &tensors, None).unwrap_err().to_string()
    };
    let error = read(&[("lora_te_a_self_attn_q_proj.alpha", 1.0), ("lora_te1_a_self_attn_q_proj.alpha", 2.0)]);
    assert!(error.contains("lora_te1_a_self_attn_q_proj.alpha` is there twice"), "{error}");
    let error = read(&[("lora_unet_conv_in.alpha", f64::NAN)]);
    assert!(error.contains("`lora_unet_conv_in.alpha` should be a number and is NaN"), "{error}");
}
