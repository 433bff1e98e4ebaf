//! Whole runs of every scheduler, with a stand-in for the model, against diffusers' own.

use crate::support;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};
use tch_diffusers::configuration_utils::ConfigMap;
use tch_diffusers::schedulers::{Churn, SCHEDULER_CONFIG_NAME, Scheduler, SchedulerKind, StepOptions, Timesteps};
use tch_diffusers::{Generator, KindExt, TensorExt};

/// What is compared, and how far it may be off: not at all. Both are the same float operations in the same order.
const BOUND: f64 = 0.0;

struct Case {
    name: String,
    scheduler: Box<dyn Scheduler>,
    run: Value,
    results: BTreeMap<String, Tensor>,
    noise: Tensor,
}

impl Case {
    fn read(folder: &Path, inputs: &BTreeMap<String, Tensor>) -> (Self, Vec<usize>) {
        let json = support::json(&folder.join("case.json"));
        let config: ConfigMap = json["config"].as_object().unwrap().clone();
        let kind: SchedulerKind = json["class"].as_str().unwrap().parse().unwrap();
        let run = json["run"].clone();
        let dtype = Kind::from_torch_name(run["dtype"].as_str().unwrap_or("float32")).unwrap();
        let case = Self {
            name: support::name(folder),
            scheduler: kind.from_config(&config).unwrap_or_else(|error| panic!("{}: {error}", folder.display())),
            run,
            results: support::tensors(&folder.join("results.safetensors")),
            noise: inputs["noise"].to_kind(dtype),
        };
        let counts = json["counts"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap() as usize);
        (case, counts.collect())
    }

    fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        Some(self.run[key].as_array()?.iter().map(|number| number.as_f64().unwrap()).collect())
    }

    fn number(&self, key: &str, default: f64) -> f64 {
        self.run[key].as_f64().unwrap_or(default)
    }

    fn set_timesteps(&mut self, steps: usize) {
        let (timesteps, sigmas) = (self.numbers("timesteps"), self.numbers("sigmas"));
        let asked = match (&timesteps, &sigmas) {
            (Some(timesteps), _) => Timesteps::Timesteps(timesteps),
            (_, Some(sigmas)) => Timesteps::Sigmas(sigmas),
            _ => Timesteps::Steps(steps),
        };
        match self.run["mu"].as_f64() {
            Some(mu) => self.scheduler.set_timesteps_with_mu(asked, mu).unwrap(),
            None => self.scheduler.set_timesteps(asked).unwrap(),
        }
    }

    fn compare(&self, quantity: &str, found: &Tensor) {
        let expected = &self.results[quantity];
        let difference = found.max_abs_diff(expected).unwrap();
        assert_eq!(found.kind(), expected.kind(), "{}: {quantity}", self.name);
        support::record("schedulers", &self.name, quantity, difference, BOUND);
    }

    fn noising(&mut self, steps: usize) {
        let (originals, noise) = (self.noise.get(6), self.noise.get(7));
        let at = [self.scheduler.timesteps()[1], self.scheduler.timesteps()[3]];
        if self.results.contains_key(&format!("{steps}.noised")) {
            self.compare(&format!("{steps}.noised"), &self.scheduler.add_noise(&originals, &noise, &at).unwrap());
        }
        if self.results.contains_key(&format!("{steps}.noised_begin")) {
            self.scheduler.set_begin_index(2);
            let noised = self.scheduler.add_noise(&originals, &noise, &at).unwrap();
            self.compare(&format!("{steps}.noised_begin"), &noised);
            self.set_timesteps(steps);
        }
        if self.results.contains_key(&format!("{steps}.velocity")) {
            let velocity = self.scheduler.get_velocity(&originals, &noise, &at).unwrap();
            self.compare(&format!("{steps}.velocity"), &velocity);
        }
    }

    fn trajectory(&mut self, steps: usize) {
        let timesteps = self.scheduler.timesteps().to_vec();
        self.compare(&format!("{steps}.timesteps"), &Tensor::from_slice(&timesteps));
        let init = self.scheduler.init_noise_sigma();
        self.compare(&format!("{steps}.init"), &Tensor::from(init as f32));

        let count = self.number("generators", 1.0) as u64;
        let mut generators: Vec<_> = (0..count).map(|i| Generator::cpu(5 + i).unwrap()).collect();
        let mut sample = self.noise.get(0) * init;
        let (mut scaled, mut samples) = (Vec::new(), Vec::new());
        for (i, timestep) in timesteps.into_iter().enumerate() {
            let input = self.scheduler.scale_model_input(&sample, timestep).unwrap();
            let mut output = &input * 0.3 + self.noise.get(i as i64 % 8);
            if self.scheduler.config().get("variance_type").is_some_and(|kind| kind.to_string().contains("learned")) {
                output = Tensor::cat(&[output, self.noise.get((i as i64 + 1) % 8).sigmoid()], 1);
            }
            let options = StepOptions {
                eta: self.number("eta", 0.0),
                use_clipped_model_output: self.run["use_clipped_model_output"].as_bool().unwrap_or(false),
                churn: Churn {
                    s_churn: self.number("s_churn", 0.0),
                    s_tmin: self.number("s_tmin", 0.0),
                    s_tmax: self.number("s_tmax", f64::INFINITY),
                    s_noise: self.number("s_noise", 1.0),
                },
                order: self.run["order"].as_u64().map(|order| order as usize),
                generators: &mut generators,
                variance_noise: None,
            };
            sample = self.scheduler.step(&output, timestep, &sample, options).unwrap().prev_sample;
            scaled.push(input);
            samples.push(sample.shallow_clone());
        }
        self.compare(&format!("{steps}.scaled"), &Tensor::stack(&scaled, 0));
        self.compare(&format!("{steps}.samples"), &Tensor::stack(&samples, 0));
    }
}

fn every_case_of(kind: SchedulerKind, at_least: usize) {
    let _no_grad = tch::no_grad_guard();
    let group = support::generated("schedulers");
    let inputs = support::tensors(&group.join("inputs.safetensors"));
    let prefix = format!("{}-", kind.class_name().trim_end_matches("Scheduler"));
    let folders: Vec<_> =
        support::cases(&group).into_iter().filter(|folder| support::name(folder).starts_with(&prefix)).collect();
    assert!(folders.len() >= at_least, "{} cases of {kind}", folders.len());
    let failures: Vec<_> = folders
        .iter()
        .filter_map(|folder| {
            let (mut case, counts) = Case::read(folder, &inputs);
            let run = std::panic::AssertUnwindSafe(|| {
                for steps in counts {
                    case.set_timesteps(steps);
                    case.noising(steps);
                    case.trajectory(steps);
                }
            });
            std::panic::catch_unwind(run).is_err().then(|| support::name(folder))
        })
        .collect();
    assert!(failures.is_empty(), "{} of {}: {failures:#?}", failures.len(), folders.len());
}

#[test]
fn every_number_of_steps_is_laid_out_as_in_diffusers() {
    let folder = support::generated("schedulers").join("schedules");
    let expected = support::tensors(&folder.join("schedules.safetensors"));
    for (i, case) in support::json(&folder.join("cases.json")).as_array().unwrap().iter().enumerate() {
        let kind: SchedulerKind = case["class"].as_str().unwrap().parse().unwrap();
        let config = case["config"].as_object().unwrap();
        let (mut timesteps, mut levels) = (Vec::new(), Vec::new());
        let mut scheduler = kind.from_config(config).unwrap();
        for steps in 1..=40 {
            scheduler.set_timesteps(Timesteps::Steps(steps)).unwrap();
            let at = Tensor::from_slice(scheduler.timesteps());
            let (zeros, ones) = (at.zeros_like().to_kind(Kind::Float), at.ones_like().to_kind(Kind::Float));
            levels.push(scheduler.add_noise(&zeros, &ones, scheduler.timesteps()).unwrap());
            timesteps.push(at);
        }
        for (quantity, found) in [("timesteps", timesteps), ("levels", levels)] {
            let difference = Tensor::cat(&found, 0).max_abs_diff(&expected[&format!("{i}.{quantity}")]).unwrap();
            support::record("schedulers", &format!("schedule {i} of {kind}"), quantity, difference, BOUND);
        }
    }
}

#[test]
fn configurations_are_saved_byte_for_byte_as_in_diffusers() {
    let folder = support::generated("schedulers").join("schedules");
    let config = support::json(&folder.join("config.json"));
    let saved = tempfile::tempdir().unwrap();
    for kind in SchedulerKind::ALL {
        kind.from_config(config.as_object().unwrap()).unwrap().save_pretrained(saved.path()).unwrap();
        let found = std::fs::read_to_string(saved.path().join(SCHEDULER_CONFIG_NAME)).unwrap();
        let expected = std::fs::read_to_string(folder.join(format!("{kind}.json"))).unwrap();
        assert_eq!(found, expected, "{kind}");
    }
}

#[test]
fn ddim_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::DDIM, 25);
}

#[test]
fn pndm_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::PNDM, 8);
}

#[test]
fn euler_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::EulerDiscrete, 25);
}

#[test]
fn euler_ancestral_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::EulerAncestralDiscrete, 8);
}

#[test]
fn dpm_solver_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::DPMSolverMultistep, 25);
}

#[test]
fn unipc_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::UniPCMultistep, 25);
}

#[test]
fn ddpm_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::DDPM, 25);
}

#[test]
fn ddim_inverse_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::DDIMInverse, 10);
}

#[test]
fn lcm_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::LCM, 10);
}

#[test]
fn heun_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::HeunDiscrete, 25);
}

#[test]
fn lms_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::LMSDiscrete, 25);
}

#[test]
fn kdpm2_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::KDPM2Discrete, 18);
}

#[test]
fn kdpm2_ancestral_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::KDPM2AncestralDiscrete, 18);
}

#[test]
fn singlestep_dpm_solver_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::DPMSolverSinglestep, 25);
}

#[test]
fn deis_walks_as_in_diffusers() {
    every_case_of(SchedulerKind::DEISMultistep, 20);
}
