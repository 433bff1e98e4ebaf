//! Checkpoints of Stable Diffusion as their authors publish them: all models in one file, under other names.
//!
//! Mirrors `infer_diffusers_model_type` of `diffusers/loaders/single_file_utils.py` at 0.42.1, and what is done there with
//! models of Stable Diffusion 1.x and 2.x. Only names change: a weight stays a view of the file.

mod configs;
mod keys;
mod original;

pub use keys::{OPEN_CLIP_PROJECTIONS, ldm_clip_key, ldm_open_clip_key, ldm_unet_key, ldm_vae_key};
pub use original::{OriginalCheckpoint, original_state_dict};

use super::{Checkpoint, SafetensorsHeader};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// Which Stable Diffusion a file holds: those whose configurations the library knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SingleFileModel {
    /// Stable Diffusion 1.x: `v1`.
    V1,
    /// Inpainting with 1.5, by a UNet of 9 channels: `inpainting`.
    Inpainting,
    /// Stable Diffusion 2.x, as that of 768 pixels that predicts velocities: `v2`. A file of 512 pixels, whose name has
    /// `base` or `512` in it, looks the same and predicts noise: whoever loads it has to say so, as with diffusers.
    V2,
    /// Inpainting with 2.x: `inpainting_v2`.
    InpaintingV2,
}

impl SingleFileModel {
    /// Where diffusers takes the configurations and the tokenizer of such a file from; here it is the tokenizer alone.
    #[must_use]
    pub fn repository(self) -> &'static str {
        match self {
            Self::V1 => "stable-diffusion-v1-5/stable-diffusion-v1-5",
            Self::Inpainting => "stable-diffusion-v1-5/stable-diffusion-inpainting",
            Self::V2 => "stabilityai/stable-diffusion-2-1",
            Self::InpaintingV2 => "stabilityai/stable-diffusion-2-inpainting",
        }
    }

    /// Whether it is one of 2.x.
    pub(super) fn is_v2(self) -> bool {
        matches!(self, Self::V2 | Self::InpaintingV2)
    }

    /// Whether its UNet sees a mask.
    pub(super) fn inpaints(self) -> bool {
        matches!(self, Self::Inpainting | Self::InpaintingV2)
    }
}

/// A file with a whole Stable Diffusion in it, by its header.
#[derive(Clone, Debug, PartialEq)]
pub struct SingleFile {
    path: PathBuf,
    header: SafetensorsHeader,
}

/// Holds a file to what can be read: all of Stable Diffusion 1.x or 2.x, as safetensors.
///
/// # Errors
/// [`Error::Unsupported`] saying what the file is instead, as far as can be told; as [`SafetensorsHeader::read`].
pub fn check_single_file(path: &Path) -> Result<SingleFile> {
    let refuse = |why: &str| Err(Error::Unsupported(format!("{}: {why}", path.display())));
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if ["ckpt", "bin", "pt", "pth"].contains(&ending) {
        return refuse(
            "pickle files can run code and are not read; convert it with \
             `safetensors.torch.save_file(torch.load(file, weights_only=True)[\"state_dict\"], ...)`",
        );
    }
    if ending == "gguf" {
        return refuse("GGUF files are not supported");
    }
    let file = SingleFile { path: path.to_path_buf(), header: SafetensorsHeader::read(path)? };
    if file.has("conditioner.embedders.") {
        return refuse("this is a checkpoint of Stable Diffusion XL; supported are Stable Diffusion 1.x and 2.x");
    }
    let text = if file.is_open_clip() { "cond_stage_model.model." } else { "cond_stage_model.transformer." };
    let parts = ["model.diffusion_model.", "first_stage_model.", text];
    match parts.iter().find(|part| !file.has(part)) {
        Some(part) => refuse(&format!("no checkpoint of Stable Diffusion 1.x or 2.x: it has no `{part}`...")),
        None => Ok(file),
    }
}

impl SingleFile {
    fn has(&self, start: &str) -> bool {
        self.header.tensors.iter().any(|tensor| tensor.name.starts_with(start))
    }

    fn shape(&self, key: &str) -> Option<&[i64]> {
        self.header.tensors.iter().find(|tensor| tensor.name == key).map(|tensor| tensor.shape.as_slice())
    }

    /// Whether the text encoder is named as OpenCLIP names it: that of Stable Diffusion 2.x.
    #[must_use]
    pub fn is_open_clip(&self) -> bool {
        self.has("cond_stage_model.model.")
    }

    /// Which Stable Diffusion it is.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet that sees something else than latents, or latents and a mask.
    pub fn model_type(&self) -> Result<SingleFileModel> {
        let attends_to = self
            .shape("model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight")
            .and_then(<[i64]>::last);
        let is_v2 = attends_to == Some(&1024);
        match self.shape("model.diffusion_model.input_blocks.0.0.weight") {
            Some([_, 4, ..]) if is_v2 => Ok(SingleFileModel::V2),
            Some([_, 4, ..]) => Ok(SingleFileModel::V1),
            Some([_, 9, ..]) if is_v2 => Ok(SingleFileModel::InpaintingV2),
            Some([_, 9, ..]) => Ok(SingleFileModel::Inpainting),
            found => Err(Error::Unsupported(format!(
                "{}: its UNet begins with weights {:?}: configurations are known for 4 and for 9 channels; name a folder with \
                 others",
                self.path.display(),
                found.unwrap_or_default()
            ))),
        }
    }

    /// The weights of one of the models under its own keys: `unet`, `vae` or `text_encoder`.
    ///
    /// # Errors
    /// [`Error::Argument`] for another name; as [`Checkpoint::open`] and [`Checkpoint::split_rows`].
    pub fn checkpoint(&self, model: &str, kind: Option<Kind>, device: Device) -> Result<Checkpoint> {
        let files = std::slice::from_ref(&self.path);
        match model {
            "unet" => Checkpoint::open(files, ldm_unet_key, kind, device),
            "vae" => Checkpoint::open(files, ldm_vae_key, kind, device),
            "text_encoder" if self.is_open_clip() => OPEN_CLIP_PROJECTIONS
                .iter()
                .try_fold(Checkpoint::open(files, ldm_open_clip_key, kind, device)?, |checkpoint, (whole, parts)| {
                    checkpoint.split_rows(whole, parts)
                }),
            "text_encoder" => Checkpoint::open(files, ldm_clip_key, kind, device),
            other => Err(Error::Argument(format!("a single file has no `{other}`: it has unet, vae and text_encoder"))),
        }
    }

    /// The dtype of the weights, if all have the same.
    #[must_use]
    pub fn dtype(&self) -> Option<Kind> {
        let known = |dtype: &str| match dtype {
            "F32" => Some(Kind::Float),
            "F16" => Some(Kind::Half),
            "BF16" => Some(Kind::BFloat16),
            _ => None,
        };
        let mut kinds = self.header.tensors.iter().filter(|tensor| self.is_weight(&tensor.name));
        let first = known(&kinds.next()?.dtype)?;
        kinds.all(|tensor| known(&tensor.dtype) == Some(first)).then_some(first)
    }

    /// Whether one of the models has it.
    fn is_weight(&self, key: &str) -> bool {
        let text = if self.is_open_clip() { ldm_open_clip_key(key) } else { ldm_clip_key(key) };
        text.or_else(|| ldm_unet_key(key)).or_else(|| ldm_vae_key(key)).is_some()
    }
}
