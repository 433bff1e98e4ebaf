//! What a package was made for, and whether tensors are that.
//!
//! The code of a package checks neither the sizes, dtypes and strides of its inputs nor the shapes of its weights: with
//! others it computes other numbers, and says nothing.

use crate::error::{Error, Result};
use crate::torch::KindExt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What `python -m tch_diffusers.export_aoti` writes into a package beside the code.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AotiContract {
    /// The version of this description; 1.
    pub format: u32,
    /// The version of libtorch that the code was made with and runs with, such as `2.11.0`.
    pub torch: String,
    /// The version of diffusers whose model was compiled.
    pub diffusers: String,
    /// The operating system and the processor's kind, such as `linux-x86_64`.
    pub platform: String,
    /// The model's class, as in `config.json`.
    pub class: String,
    /// The model's configuration.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// The dtype of the weights, such as `float32`.
    pub dtype: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// The widest instructions in use, such as `AVX2`, or the GPU's generation, such as `sm_90`.
    pub capability: String,
    /// What the processor has to be able to do.
    pub cpu_flags: Vec<String>,
    /// The threads of the process that made the package. The code takes as many as there are where it runs.
    pub num_threads: usize,
    /// The pieces of code: `model`, or one for all blocks that are made alike.
    pub models: BTreeMap<String, AotiTerms>,
    /// How long compiling took, in seconds.
    #[serde(default)]
    pub compile_seconds: f64,
}

/// What one piece of code asks for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AotiTerms {
    /// The module's class.
    pub class: String,
    /// The paths of the blocks that it computes; none for a whole model.
    pub blocks: Vec<String>,
    /// The inputs, in order.
    pub inputs: Vec<AotiInput>,
    /// The sides of inputs that may change.
    pub dimensions: BTreeMap<String, AotiDimension>,
    /// The weights, in the order in which they are bound.
    pub constants: Vec<AotiConstant>,
}

/// An input of a package: contiguous, and on the package's device.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AotiInput {
    /// Its name.
    pub name: String,
    /// Its dtype, such as `float32`.
    pub dtype: String,
    /// Its sides.
    pub shape: Vec<AotiSide>,
}

/// A side of an input.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum AotiSide {
    /// Always the same.
    Fixed(i64),
    /// As long as the dimensions of these names together, parted by `+`.
    Named(String),
}

/// A side that may change, and is the same wherever it has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AotiDimension {
    /// The least.
    pub min: i64,
    /// The most.
    pub max: i64,
    /// What it is a multiple of.
    pub multiple: i64,
}

/// A weight of a package.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AotiConstant {
    /// Its name, as the checkpoint has it below the model or the block.
    pub name: String,
    /// Its name in the code.
    pub fqn: String,
    /// Its dtype, such as `float32`.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its strides.
    pub stride: Vec<i64>,
}

impl AotiDimension {
    fn holds(&self, length: i64) -> bool {
        (self.min..=self.max).contains(&length) && self.multiple > 0 && length % self.multiple == 0
    }

    fn shown(&self, name: &str) -> String {
        match self.multiple {
            1 => format!("{name} from {} to {}", self.min, self.max),
            multiple => format!("{name} a multiple of {multiple} from {} to {}", self.min, self.max),
        }
    }
}

impl AotiTerms {
    /// Whether the code takes these inputs.
    ///
    /// # Errors
    /// [`Error::Argument`] for another number of inputs, another dtype, device or strides; [`Error::Shape`] for a size that
    /// the code was not made for.
    pub fn check_inputs(&self, inputs: &[&Tensor], device: Device) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            let names: Vec<_> = self.inputs.iter().map(|input| input.name.as_str()).collect();
            let (names, found) = (names.join(", "), inputs.len());
            return Err(Error::Argument(format!("the package takes {names}, and is given {found} tensors")));
        }
        let mut known = BTreeMap::new();
        for (input, tensor) in self.inputs.iter().zip(inputs) {
            input.check_kind(tensor)?;
            input.check_place(tensor, device)?;
            self.check_shape(input, &tensor.size(), &mut known)?;
        }
        Ok(())
    }

    fn check_shape(&self, input: &AotiInput, found: &[i64], known: &mut BTreeMap<String, i64>) -> Result<()> {
        let fits = found.len() == input.shape.len()
            && input.shape.iter().zip(found).all(|(side, &length)| match side {
                AotiSide::Fixed(expected) => *expected == length,
                AotiSide::Named(names) => self.holds(names, length, known),
            });
        if fits {
            return Ok(());
        }
        let sides = input.shape.iter().map(|side| match side {
            AotiSide::Fixed(length) => length.to_string(),
            AotiSide::Named(names) => match known.get(names) {
                Some(length) if !input.is_first(names, self) => format!("{names}={length}"),
                _ => names.clone(),
            },
        });
        let (name, sides) = (&input.name, sides.collect::<Vec<_>>().join(", "));
        let free: Vec<_> = self.dimensions.iter().map(|(name, dimension)| dimension.shown(name)).collect();
        let free = if free.is_empty() { String::new() } else { format!(", with {}", free.join(", ")) };
        Err(Error::Shape(format!("the package was exported for `{name}` of [{sides}]{free}, and is given {found:?}")))
    }

    /// Whether the side can be so long, beside those that are known.
    fn holds(&self, names: &str, length: i64, known: &mut BTreeMap<String, i64>) -> bool {
        if names.contains('+') {
            return names.split('+').map(|name| known.get(name).copied()).sum::<Option<i64>>() == Some(length);
        }
        let fits = self.dimensions.get(names).is_some_and(|dimension| dimension.holds(length));
        fits && *known.entry(names.into()).or_insert(length) == length
    }
}

impl AotiInput {
    /// Whether no input before this one has the dimension.
    fn is_first(&self, dimension: &str, terms: &AotiTerms) -> bool {
        let has = |input: &&AotiInput| input.shape.iter().any(|side| *side == AotiSide::Named(dimension.into()));
        terms.inputs.iter().find(has).is_some_and(|first| first.name == self.name)
    }

    fn check_kind(&self, tensor: &Tensor) -> Result<()> {
        match tensor.f_kind()?.torch_name() {
            found if found == self.dtype => Ok(()),
            found => {
                Err(Error::Argument(format!("the package takes `{}` in {}, not in {found}", self.name, self.dtype)))
            }
        }
    }

    fn check_place(&self, tensor: &Tensor, device: Device) -> Result<()> {
        let (name, size, stride) = (&self.name, tensor.size(), tensor.stride());
        if tensor.device() != device {
            let found = tensor.device();
            return Err(Error::Argument(format!("the package takes `{name}` on {device:?}, not on {found:?}")));
        }
        if !same_strides(&size, &stride, &contiguous(&size)) {
            return Err(Error::Argument(format!(
                "the package takes `{name}` contiguous, and is given {size:?} with the strides {stride:?}"
            )));
        }
        Ok(())
    }
}

impl AotiConstant {
    /// What is wrong with the weight's shape, in words.
    pub(super) fn wrong_shape(&self, weight: &Tensor) -> Option<String> {
        let found = weight.size();
        (found != self.shape).then(|| format!("`{}` should be {:?} and is {found:?}", self.name, self.shape))
    }

    /// # Errors
    /// [`Error::Argument`] for another dtype, device or strides; the shape has to fit.
    pub(super) fn check(&self, weight: &Tensor, device: Device) -> Result<()> {
        let refuse = |why: String| Err(Error::Argument(format!("the package takes the weight `{}` {why}", self.name)));
        let (kind, place, stride) = (weight.f_kind()?.torch_name(), weight.device(), weight.stride());
        if kind != self.dtype {
            return refuse(format!("in {}, not in {kind}: cast the model with to(dtype)", self.dtype));
        }
        if place != device {
            return refuse(format!("on {device:?}, not on {place:?}"));
        }
        if !same_strides(&self.shape, &stride, &self.stride) {
            let advice = match is_channels_last(&self.shape, &self.stride) {
                true => {
                    "lay the model out with to(MemoryFormat::ChannelsLast), or export with --memory-format contiguous"
                }
                false => "lay the model out with to(MemoryFormat::Contiguous)",
            };
            return refuse(format!("with the strides {:?}, not {stride:?}: {advice}", self.stride));
        }
        Ok(())
    }
}

impl AotiContract {
    /// The dtype of the weights.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that is none.
    pub fn kind(&self) -> Result<Kind> {
        Kind::from_torch_name(&self.dtype)
    }

    /// # Errors
    /// [`Error::Config`] for a version that is not known, [`Error::Unsupported`] for what does not run here.
    pub(super) fn check(&self, path: &Path, here: &Here) -> Result<()> {
        let refuse = |what: &str, made: &str, here: &str| {
            let path = path.display();
            Err(Error::Unsupported(format!(
                "{path} was exported for {what} {made}, and this is {here}: export it anew"
            )))
        };
        if self.torch != here.torch {
            return refuse("torch", &self.torch, &here.torch);
        }
        if self.platform != here.platform {
            return refuse("the platform", &self.platform, &here.platform);
        }
        let missing: Vec<_> = self.cpu_flags.iter().filter(|flag| !here.cpu_flags.contains(flag)).collect();
        if let [first, ..] = missing[..] {
            let path = path.display();
            return Err(Error::Unsupported(format!(
                "{path} was exported for a processor with {first} and {} more instructions that this one lacks: export it \
                 anew",
                missing.len() - 1
            )));
        }
        Ok(())
    }
}

/// What packages have to fit.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) torch: String,
    pub(super) platform: String,
    pub(super) cpu_flags: Vec<String>,
}

impl Here {
    pub(super) fn look() -> Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
        let flags = flags.and_then(|line| line.split(':').nth(1)).unwrap_or_default();
        Ok(Self {
            torch: crate::torch::libtorch_version()?,
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            cpu_flags: flags.split_whitespace().map(String::from).collect(),
        })
    }
}

fn contiguous(size: &[i64]) -> Vec<i64> {
    let mut strides: Vec<_> =
        size.iter().rev().scan(1, |next, side| Some(std::mem::replace(next, *next * side))).collect();
    strides.reverse();
    strides
}

fn is_channels_last(size: &[i64], stride: &[i64]) -> bool {
    matches!((size, stride), ([_, c, h, w], [s0, s1, s2, s3])
        if same_strides(size, &[*s0, *s1, *s2, *s3], &[c * h * w, 1, w * c, *c]))
}

/// Whether elements lie at the same places: the strides of sides of 1 say nothing.
pub(super) fn same_strides(size: &[i64], left: &[i64], right: &[i64]) -> bool {
    left.len() == size.len()
        && right.len() == size.len()
        && size.iter().zip(left.iter().zip(right)).all(|(side, (left, right))| *side == 1 || left == right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_of_sides_of_one_say_nothing() {
        assert_eq!(contiguous(&[2, 3, 4]), [12, 4, 1]);
        assert!(same_strides(&[32, 64, 1, 1], &[64, 1, 1, 1], &[64, 1, 64, 64]));
        assert!(!same_strides(&[2, 3], &[3, 1], &[1, 2]) && !same_strides(&[2, 3], &[3, 1], &[3]));
        assert!(is_channels_last(&[2, 3, 4, 5], &[60, 1, 15, 3]) && !is_channels_last(&[2, 3, 4, 5], &[60, 20, 5, 1]));
    }
}
