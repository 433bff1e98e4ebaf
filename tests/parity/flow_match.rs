//! Runs of flow matching's Euler, with a stand-in for the model.

use crate::support::{cases, generated, json, name, record, tensors};
use serde_json::{Value, json};
use tch::Tensor;
use tch_diffusers::configuration_utils::ConfigMap;
use tch_diffusers::schedulers::{FlowMatchEulerDiscreteScheduler, Scheduler, SchedulerMixin, StepOptions, Timesteps};
use tch_diffusers::{Error, Generator, TensorExt};

fn scheduler(config: &Value) -> tch_diffusers::Result<FlowMatchEulerDiscreteScheduler> {
    let config: ConfigMap = config.as_object().unwrap().clone();
    FlowMatchEulerDiscreteScheduler::from_config(&config)
}

fn numbers(value: &Value) -> Option<Vec<f64>> {
    Some(value.as_array()?.iter().map(|number| number.as_f64().unwrap()).collect())
}

#[test]
fn runs_are_those_of_diffusers() {
    for case in cases(&generated("flow_match")) {
        let (about, expected) = (json(&case.join("case.json")), tensors(&case.join("tensors.safetensors")));
        let mut scheduler = scheduler(&about["config"]).unwrap();
        let (sigmas, timesteps) = (numbers(&about["run"]["sigmas"]), numbers(&about["run"]["timesteps"]));
        let asked = match (&sigmas, &timesteps) {
            (Some(sigmas), _) => Timesteps::Sigmas(sigmas),
            (_, Some(timesteps)) => Timesteps::Timesteps(timesteps),
            _ => Timesteps::Steps(about["steps"].as_u64().unwrap() as usize),
        };
        match about["run"]["mu"].as_f64() {
            Some(mu) => scheduler.set_timesteps_with_mu(asked, mu).unwrap(),
            None => scheduler.set_timesteps(asked).unwrap(),
        }
        let compare = |quantity: &str, found: &Tensor| {
            let expected = &expected[quantity];
            assert_eq!(found.kind(), expected.kind(), "{quantity}");
            record("flow_match", &name(&case), quantity, found.max_abs_diff(expected).unwrap(), 0.0);
        };
        let timesteps = scheduler.timesteps().to_vec();
        let single: Vec<f32> = timesteps.iter().map(|timestep| *timestep as f32).collect();
        compare("timesteps", &Tensor::from_slice(&single));
        compare("sigmas", &Tensor::from_slice(scheduler.sigmas()));

        let noise = &expected["noise"];
        let at = [timesteps[1], timesteps[3]];
        compare("noised", &scheduler.add_noise(&noise.get(0), &noise.get(1), &at).unwrap());
        let (mut sample, mut generator) = (noise.get(0), Generator::cpu(7).unwrap());
        for (i, timestep) in timesteps.into_iter().enumerate() {
            let output = noise.get(i as i64 + 1) * 0.7 + &sample * 0.2;
            let generators = std::slice::from_mut(&mut generator);
            let options = StepOptions { generators, ..StepOptions::default() };
            sample = scheduler.step(&output, timestep, &sample, options).unwrap().prev_sample;
            compare(&format!("sample_{i}"), &sample);
        }
    }
}

#[test]
fn what_cannot_be_laid_out_is_refused() {
    let two = json!({ "use_karras_sigmas": true, "use_beta_sigmas": true });
    assert!(matches!(scheduler(&two), Err(Error::Config(_))));
    let mut dynamic = scheduler(&json!({ "use_dynamic_shifting": true })).unwrap();
    let error = dynamic.set_timesteps(Timesteps::Steps(4)).unwrap_err();
    assert!(error.to_string().contains("`mu` is needed"), "{error}");
    let mut plain = scheduler(&json!({})).unwrap();
    assert!(plain.set_timesteps(Timesteps::Steps(0)).is_err());
    let sample = Tensor::from_slice(&[1f32]);
    let error = plain.step(&sample, 1000.0, &sample, StepOptions::default()).unwrap_err();
    assert!(error.to_string().contains("set_timesteps"), "{error}");
}
