//! `config.json` of every model and scheduler: a model that is accepted is built, of weights that take no memory.
//!
//! The first byte says whose configuration the rest is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Device, Kind, Tensor};
use tch_diffusers::configuration_utils::{ConfigMap, from_map, parse_json};
use tch_diffusers::models::{ModelMixin, text_encoders::T5EncoderModel};
use tch_diffusers::nn::Weights;
use tch_diffusers::schedulers::{Timesteps, scheduler_from_config};
use tch_diffusers::{AutoencoderKL, CLIPTextModel, Error, Result, UNet2DConditionModel};

/// How many weights a model gets before it is given up: enough for one of two blocks.
const WEIGHTS: usize = 200;

/// Weights of any shape, one number each in memory.
#[derive(Debug, Default)]
struct Expanded(AtomicUsize);

impl Weights for Expanded {
    fn get(&self, _: &str, shape: &[i64]) -> Result<Tensor> {
        if self.0.fetch_add(1, Ordering::Relaxed) > WEIGHTS {
            return Err(Error::Config("enough".into()));
        }
        Ok(Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?.f_expand(shape, false)?)
    }
}

fn build<M: ModelMixin>(map: &ConfigMap) {
    if let Ok(config) = from_map::<M::Config>(map) {
        let _ = M::from_weights(config, &Expanded::default());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let Ok(map) = parse_json::<ConfigMap>(Path::new("config.json"), rest.to_vec()) else { return };
    match first % 5 {
        0 => build::<UNet2DConditionModel>(&map),
        1 => build::<AutoencoderKL>(&map),
        2 => build::<CLIPTextModel>(&map),
        3 => build::<T5EncoderModel>(&map),
        _ => {
            if let Ok(mut scheduler) = scheduler_from_config(&map) {
                let _ = scheduler.set_timesteps(Timesteps::Steps(3));
            }
        }
    }
});
