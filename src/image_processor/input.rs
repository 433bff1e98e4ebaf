//! Pictures as they are given.

use crate::error::{Error, Result};
use image::{DynamicImage, GrayAlphaImage, GrayImage, RgbImage, RgbaImage};
use tch::Tensor;

/// Pictures, or a tensor of pictures.
#[derive(Debug)]
pub enum ImageInput {
    /// Pictures of 8 bits a channel: grey or in colour, with transparency or without.
    Images(Vec<DynamicImage>),
    /// `[batch, channels, height, width]` or `[channels, height, width]` with values in [0, 1]; of latents, as they are.
    Tensor(Tensor),
}

impl ImageInput {
    /// How many pictures there are.
    pub(crate) fn count(&self) -> i64 {
        match self {
            Self::Images(images) => images.len() as i64,
            Self::Tensor(tensor) => match tensor.size().as_slice() {
                [batch, _, _, _] => *batch,
                _ => 1,
            },
        }
    }

    /// Height and width, of the first of several, in pixels or in the latents' units.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no picture; [`Error::Shape`] for a tensor that is none.
    pub(crate) fn size(&self) -> Result<(i64, i64)> {
        match self {
            Self::Images(images) => match images.first() {
                Some(image) => Ok((i64::from(image.height()), i64::from(image.width()))),
                None => Err(Error::Argument("no picture was given".into())),
            },
            Self::Tensor(tensor) => match tensor.size().as_slice() {
                [.., height, width] => Ok((*height, *width)),
                size => Err(Error::Shape(format!("a tensor of shape {size:?} is no picture"))),
            },
        }
    }

    /// The channels of a tensor; none of pictures.
    pub(crate) fn tensor_channels(&self) -> Option<i64> {
        match self {
            Self::Tensor(tensor) => tensor.size().iter().rev().nth(2).copied(),
            Self::Images(_) => None,
        }
    }
}

impl From<DynamicImage> for ImageInput {
    fn from(image: DynamicImage) -> Self {
        Self::Images(vec![image])
    }
}

impl From<&DynamicImage> for ImageInput {
    fn from(image: &DynamicImage) -> Self {
        Self::Images(vec![image.clone()])
    }
}

impl From<RgbImage> for ImageInput {
    fn from(image: RgbImage) -> Self {
        DynamicImage::from(image).into()
    }
}

impl From<GrayImage> for ImageInput {
    fn from(image: GrayImage) -> Self {
        DynamicImage::from(image).into()
    }
}

impl From<RgbaImage> for ImageInput {
    fn from(image: RgbaImage) -> Self {
        DynamicImage::from(image).into()
    }
}

impl From<GrayAlphaImage> for ImageInput {
    fn from(image: GrayAlphaImage) -> Self {
        DynamicImage::from(image).into()
    }
}

impl<Image: Into<DynamicImage>> From<Vec<Image>> for ImageInput {
    fn from(images: Vec<Image>) -> Self {
        Self::Images(images.into_iter().map(Into::into).collect())
    }
}

impl<Image: Into<DynamicImage>, const N: usize> From<[Image; N]> for ImageInput {
    fn from(images: [Image; N]) -> Self {
        Self::Images(images.into_iter().map(Into::into).collect())
    }
}

impl From<&[DynamicImage]> for ImageInput {
    fn from(images: &[DynamicImage]) -> Self {
        Self::Images(images.to_vec())
    }
}

impl From<Tensor> for ImageInput {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}
