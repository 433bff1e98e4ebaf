//! A step of the denoising loop never waits for the device to tell it a number.
//!
//! On the CPU there is nothing to wait for, but the operators that would wait elsewhere can be counted there all the same.

use crate::support::generated;
use tch_diffusers::image_processor::OutputType;
use tch_diffusers::torch::{OperatorProfile, profile};
use tch_diffusers::{SchedulerKind, StableDiffusionPipeline, TensorExt};

/// What has to know the elements of its input before the program can go on.
const READING: [&str; 8] = [
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::equal",
    "aten::allclose",
    "aten::masked_select",
    "aten::_unique2",
    "aten::repeat_interleave",
    "aten::bincount",
];

/// The operators of a call of so many steps, from embeddings to latents.
fn loop_of(pipe: &mut StableDiffusionPipeline, steps: usize) -> OperatorProfile {
    let embeds = pipe.encode_prompt(&["a red circle"], 1, None).unwrap();
    let negative = pipe.encode_prompt(&[""], 1, None).unwrap();
    let call = pipe.call_embeds(embeds).negative_prompt_embeds(negative).num_inference_steps(steps);
    let (output, profile) = profile(|| call.seed(0).output_type(OutputType::Latent).run()).unwrap();
    assert!(output.images.into_tensor().unwrap().to_vec().unwrap().iter().all(|value| value.is_finite()));
    profile
}

/// Schedulers take roots and logarithms of single numbers through libtorch, for its rounding: tensors that they make on
/// the host, and read there. All that a step reads has to be of these.
#[test]
fn a_step_reads_no_number_that_was_not_made_on_the_host() {
    let mut pipe = StableDiffusionPipeline::from_pretrained(generated("pipeline").join("_models/sd1")).load().unwrap();
    pipe.progress_bar.disable = true;
    for kind in SchedulerKind::ALL {
        pipe.scheduler = kind.from_config(pipe.scheduler.config()).unwrap();
        let (short, long) = (loop_of(&mut pipe, 4), loop_of(&mut pipe, 9));
        let more = |name: &str| long.calls(name) - short.calls(name);
        assert!(more("aten::conv2d") > 0, "{kind:?}: the loop is not in the profile");
        // UniPC solves a system of a few numbers on the host, where libtorch reads three to see whether it could.
        let made = more("aten::scalar_tensor") + 3 * more("aten::linalg_solve");
        assert_eq!(more("aten::_local_scalar_dense"), made, "{kind:?}:\n{long}");
        for name in READING {
            assert_eq!(more(name), 0, "{kind:?}: {name}\n{long}");
        }
    }
}
