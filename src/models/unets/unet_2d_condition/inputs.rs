//! What a UNet's forward takes.

use tch::Tensor;

/// What a UNet predicts from: [`UNetInputs::new`] holds what all take, the other fields may be set after it.
///
/// # Examples
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_diffusers::models::unets::UNetInputs;
/// let cpu = (Kind::Float, Device::Cpu);
/// let (sample, text) = (Tensor::f_zeros([1, 4, 64, 64], cpu)?, Tensor::f_zeros([1, 77, 768], cpu)?);
/// let timestep = Tensor::from(981);
/// let inputs = UNetInputs { class_labels: None, ..UNetInputs::new(&sample, &timestep, &text) };
/// # Ok::<(), tch::TchError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct UNetInputs<'a> {
    /// The noisy latents, `[batch, in_channels, height, width]`.
    pub sample: &'a Tensor,
    /// The timestep, `[]` for all or `[batch]`, an integer or a real number.
    pub timestep: &'a Tensor,
    /// The text, `[batch, keys, cross_attention_dim]`.
    pub encoder_hidden_states: &'a Tensor,
    /// The class, as `class_embed_type` and `num_class_embeds` have it.
    pub class_labels: Option<&'a Tensor>,
    /// What is added to the timestep's sinusoids, `[batch, time_cond_proj_dim]`.
    pub timestep_cond: Option<&'a Tensor>,
    /// 1 for the pixels that the pixels look at and 0 for the others, `[batch, height * width]`.
    pub attention_mask: Option<&'a Tensor>,
    /// 1 for the tokens of the text that the pixels look at and 0 for the others, `[batch, keys]`.
    pub encoder_attention_mask: Option<&'a Tensor>,
    /// What `addition_embed_type` = `text_time` takes: diffusers' `added_cond_kwargs`.
    pub added_cond: Option<AddedCond<'a>>,
    /// A ControlNet's additions to the skip connections, in the order of the way down.
    pub down_block_additional_residuals: Option<&'a [Tensor]>,
    /// A ControlNet's addition to what the middle gives.
    pub mid_block_additional_residual: Option<&'a Tensor>,
}

/// SDXL's pooled text and sizes.
#[derive(Clone, Copy, Debug)]
pub struct AddedCond<'a> {
    /// The pooled text, `[batch, channels]`.
    pub text_embeds: &'a Tensor,
    /// Sizes and crops in pixels, and the refiner's aesthetic score, `[batch, numbers]`.
    pub time_ids: &'a Tensor,
}

impl<'a> UNetInputs<'a> {
    /// The inputs that every UNet takes.
    #[must_use]
    pub fn new(sample: &'a Tensor, timestep: &'a Tensor, encoder_hidden_states: &'a Tensor) -> Self {
        Self {
            sample,
            timestep,
            encoder_hidden_states,
            class_labels: None,
            timestep_cond: None,
            attention_mask: None,
            encoder_attention_mask: None,
            added_cond: None,
            down_block_additional_residuals: None,
            mid_block_additional_residual: None,
        }
    }
}
