//! What schedulers make of their configurations, and what they refuse.

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tch_diffusers::configuration_utils::ConfigMap;
use tch_diffusers::schedulers::{
    DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler, LCMScheduler, LMSDiscreteScheduler,
    PNDMScheduler, SCHEDULER_CONFIG_NAME, Scheduler, SchedulerKind, SchedulerMixin, StepOptions, Timesteps,
    UniPCMultistepScheduler, load_scheduler_config, scheduler_from_config, scheduler_from_pretrained,
};
use tch_diffusers::{Error, Generator, TensorExt};

fn map(value: Value) -> ConfigMap {
    value.as_object().unwrap().clone()
}

fn zeros() -> Tensor {
    Tensor::zeros([1, 4, 2, 2], (Kind::Float, Device::Cpu))
}

fn stable_diffusion() -> ConfigMap {
    map(json!({
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
        "steps_offset": 1, "trained_betas": null, "clip_sample": false,
    }))
}

#[test]
fn swapping_there_and_back_loses_nothing() {
    let first = DDIMScheduler::from_config(&stable_diffusion()).unwrap();
    let mut config = first.config().clone();
    for kind in SchedulerKind::ALL {
        config = kind.from_config(&config).unwrap().config().clone();
    }
    let back = DDIMScheduler::from_config(&config).unwrap();
    for (key, value) in stable_diffusion() {
        if !key.starts_with('_') {
            assert_eq!(back.config()[&key], value, "{key}");
        }
    }
    assert_eq!(back.config()["_class_name"], "DDIMScheduler");
}

#[test]
fn an_option_that_nobody_set_takes_the_new_classs_default() {
    let ddim = DDIMScheduler::from_config(&ConfigMap::new()).unwrap();
    assert_eq!(ddim.config()["timestep_spacing"], "leading");
    let euler = EulerDiscreteScheduler::from_config(ddim.config()).unwrap();
    assert_eq!(euler.config()["timestep_spacing"], "linspace");
    let set = DDIMScheduler::from_config(&map(json!({"timestep_spacing": "leading"}))).unwrap();
    assert_eq!(EulerDiscreteScheduler::from_config(set.config()).unwrap().config()["timestep_spacing"], "leading");
}

#[test]
fn another_solvers_name_is_translated() {
    let unipc = UniPCMultistepScheduler::from_config(&map(json!({"solver_type": "midpoint"}))).unwrap();
    assert_eq!(unipc.config()["solver_type"], "bh2");
    let dpm =
        DPMSolverMultistepScheduler::from_config(&map(json!({"algorithm_type": "deis", "solver_type": "logrho"})));
    let dpm = dpm.unwrap();
    assert_eq!(
        (&dpm.config()["algorithm_type"], &dpm.config()["solver_type"]),
        (&json!("dpmsolver++"), &json!("midpoint"))
    );
}

#[test]
fn a_saved_scheduler_is_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scheduler");
    let saved = SchedulerKind::DPMSolverMultistep.from_config(&stable_diffusion()).unwrap();
    saved.save_pretrained(&path).unwrap();
    let text = std::fs::read_to_string(path.join(SCHEDULER_CONFIG_NAME)).unwrap();
    assert!(text.contains("\"lambda_min_clipped\": -Infinity,"), "{text}");
    assert!(!text.contains("_use_default_values"), "{text}");
    let loaded = scheduler_from_pretrained(&path).unwrap();
    assert_eq!(loaded.class_name(), "DPMSolverMultistepScheduler");
    assert_eq!(loaded.config()["clip_sample"], false);
    assert_eq!(load_scheduler_config(&path).unwrap()["solver_order"], 2);
    assert!(matches!(DDIMScheduler::from_pretrained(folder.path()), Err(Error::Io { .. })));
}

#[test]
fn a_scheduler_is_found_by_either_name() {
    for kind in SchedulerKind::ALL {
        assert_eq!(kind.class_name().parse::<SchedulerKind>().unwrap(), kind);
        assert_eq!(kind.short_name().parse::<SchedulerKind>().unwrap(), kind);
        let named = map(json!({"_class_name": kind.class_name()}));
        assert_eq!(scheduler_from_config(&named).unwrap().class_name(), kind.class_name());
    }
    let error = "tcd".parse::<SchedulerKind>().unwrap_err().to_string();
    assert!(error.contains("`tcd`") && error.contains("euler_a (EulerAncestralDiscreteScheduler)"), "{error}");
    let error = scheduler_from_config(&ConfigMap::new()).unwrap_err().to_string();
    assert_eq!(error, "the scheduler's configuration has no `_class_name`");
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let cases = [
        ("ddim", json!({"beta_schedule": "sigmoid"}), "`beta_schedule` = \"sigmoid\""),
        ("ddim", json!({"prediction_type": "flow_prediction"}), "flow_prediction"),
        ("ddim", json!({"timestep_spacing": "even"}), "`timestep_spacing` = \"even\""),
        ("ddim", json!({"num_train_timesteps": 0}), "`num_train_timesteps` is 0"),
        ("pndm", json!({"prediction_type": "sample"}), "PNDMScheduler has no `prediction_type`"),
        (
            "euler",
            json!({"use_karras_sigmas": true, "use_beta_sigmas": true}),
            "`use_karras_sigmas` and `use_beta_sigmas`",
        ),
        ("euler", json!({"interpolation_type": "cubic"}), "`interpolation_type` = \"cubic\""),
        ("euler", json!({"beta_start": "low"}), "`beta_start` = \"low\""),
        ("euler_a", json!({"prediction_type": "sample"}), "EulerAncestralDiscreteScheduler has no `prediction_type`"),
        ("dpmsolver", json!({"algorithm_type": "dpmsolver"}), "`final_sigmas_type` zero"),
        ("dpmsolver", json!({"solver_order": 4}), "`solver_order` 4"),
        (
            "dpmsolver",
            json!({"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"}),
            "sde-dpmsolver",
        ),
        ("ddpm", json!({"variance_type": "fixed_large_log"}), "`variance_type` fixed_large_log"),
        ("ddpm", json!({"beta_schedule": "exp"}), "`beta_schedule` = \"exp\""),
        ("heun", json!({"beta_schedule": "laplace"}), "`beta_schedule` = \"laplace\""),
        ("heun", json!({"prediction_type": "flow_prediction"}), "HeunDiscreteScheduler has no `prediction_type`"),
        (
            "lms",
            json!({"use_karras_sigmas": true, "use_exponential_sigmas": true}),
            "`use_karras_sigmas` and `use_exponential_sigmas`",
        ),
        ("dpm2", json!({"prediction_type": "sample"}), "KDPM2DiscreteScheduler has no `prediction_type` sample"),
        ("dpm2_a", json!({"prediction_type": "sample"}), "use one of epsilon, v_prediction"),
        ("dpm_single", json!({"algorithm_type": "sde-dpmsolver"}), "`algorithm_type` sde-dpmsolver"),
        ("dpm_single", json!({"algorithm_type": "dpmsolver"}), "`final_sigmas_type` zero"),
        (
            "dpm_single",
            json!({"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "thresholding": true}),
            "`thresholding` of `algorithm_type` dpmsolver",
        ),
        ("deis", json!({"algorithm_type": "sde-dpmsolver++"}), "`algorithm_type` = \"sde-dpmsolver++\""),
        ("deis", json!({"solver_order": 4}), "`solver_order` 4"),
        ("lcm", json!({"prediction_type": "flow_prediction"}), "flow_prediction"),
        ("unipc", json!({"solver_p": {"_class_name": "DDIMScheduler"}}), "`solver_p`"),
        ("unipc", json!({"shift_terminal": 0.1}), "`shift_terminal` needs `use_flow_sigmas`"),
    ];
    for (name, config, expected) in cases {
        let error = name.parse::<SchedulerKind>().unwrap().from_config(&map(config)).unwrap_err();
        assert!(matches!(error, Error::Config(_) | Error::Unsupported(_)), "{name}: {error:?}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn a_step_before_set_timesteps_is_refused() {
    for kind in SchedulerKind::ALL {
        let mut scheduler = kind.from_config(&ConfigMap::new()).unwrap();
        assert!(scheduler.timesteps().is_empty());
        let walks_the_training = [
            SchedulerKind::DDPM,
            SchedulerKind::EulerDiscrete,
            SchedulerKind::EulerAncestralDiscrete,
            SchedulerKind::HeunDiscrete,
            SchedulerKind::LMSDiscrete,
            SchedulerKind::KDPM2Discrete,
            SchedulerKind::KDPM2AncestralDiscrete,
        ];
        if walks_the_training.contains(&kind) {
            // These walk the training's timesteps then.
            assert!(scheduler.step(&zeros(), 1.0, &zeros(), StepOptions::default()).is_ok());
            continue;
        }
        let error = scheduler.step(&zeros(), 1.0, &zeros(), StepOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Argument(_)), "{kind}: {error:?}");
        assert!(error.to_string().contains("run `set_timesteps` first"), "{kind}: {error}");
    }
}

#[test]
fn a_timestep_out_of_range_is_refused() {
    for kind in SchedulerKind::ALL {
        let config = map(json!({"skip_prk_steps": true}));
        let mut scheduler = kind.from_config(&config).unwrap();
        scheduler.set_timesteps(Timesteps::Steps(5)).unwrap();
        let error = scheduler.step(&zeros(), 4000.0, &zeros(), StepOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Argument(_)), "{kind}: {error:?}");
        let error = scheduler.add_noise(&zeros(), &zeros(), &[4000.0]).unwrap_err();
        assert!(error.to_string().contains("timestep 4000"), "{kind}: {error}");
    }
}

#[test]
fn a_step_after_the_last_is_refused_until_the_run_starts_anew() {
    let mut euler = EulerDiscreteScheduler::from_config(&ConfigMap::new()).unwrap();
    for _ in 0..2 {
        euler.set_timesteps(Timesteps::Steps(2)).unwrap();
        for timestep in euler.timesteps().to_vec() {
            euler.step(&zeros(), timestep, &zeros(), StepOptions::default()).unwrap();
        }
        let error = euler.step(&zeros(), 0.0, &zeros(), StepOptions::default()).unwrap_err();
        assert!(error.to_string().contains("it has ended"), "{error}");
    }
}

#[test]
fn custom_timesteps_and_sigmas_are_refused_where_diffusers_has_none() {
    let (custom, flow) = ([900.0, 500.0], map(json!({"use_flow_sigmas": true})));
    for (name, timesteps, sigmas) in [
        ("ddim", false, false),
        ("pndm", false, false),
        ("euler", true, true),
        ("euler_a", false, false),
        ("ddpm", true, false),
        ("ddim_inverse", false, false),
        ("heun", true, false),
        ("lms", false, false),
        ("dpm2", false, false),
        ("dpm2_a", false, false),
        ("dpm_single", true, false),
        ("deis", false, false),
        ("lcm", true, false),
        ("dpmsolver", true, false),
        ("unipc", false, true),
    ] {
        let config = if name == "unipc" { flow.clone() } else { ConfigMap::new() };
        let mut scheduler = name.parse::<SchedulerKind>().unwrap().from_config(&config).unwrap();
        assert_eq!(scheduler.set_timesteps(Timesteps::Timesteps(&custom)).is_ok(), timesteps, "{name}");
        assert_eq!(scheduler.set_timesteps(Timesteps::Sigmas(&[0.9, 0.5, 0.1])).is_ok(), sigmas, "{name}");
        assert!(scheduler.set_timesteps(Timesteps::Steps(0)).is_err(), "{name}");
    }
    let mut karras = EulerDiscreteScheduler::from_config(&map(json!({"use_karras_sigmas": true}))).unwrap();
    let error = karras.set_timesteps(Timesteps::Timesteps(&custom)).unwrap_err().to_string();
    assert_eq!(error, "custom timesteps cannot be combined with `use_karras_sigmas`");
    let mut ddim = DDIMScheduler::from_config(&ConfigMap::new()).unwrap();
    assert!(ddim.set_timesteps(Timesteps::Steps(1001)).unwrap_err().to_string().contains("1001"));
    assert!(ddim.set_timesteps_with_mu(Timesteps::Steps(4), 0.5).unwrap_err().to_string().contains("`mu`"));
    let mut pndm = PNDMScheduler::from_config(&ConfigMap::new()).unwrap();
    assert!(pndm.set_timesteps(Timesteps::Steps(3)).unwrap_err().to_string().contains("4 steps or more"));
}

#[test]
fn custom_timesteps_go_down_from_one_of_the_training() {
    for name in ["ddpm", "lcm"] {
        let mut scheduler = name.parse::<SchedulerKind>().unwrap().from_config(&ConfigMap::new()).unwrap();
        for (custom, expected) in [
            (&[100.0, 50.0, 51.0][..], "50 comes before 51"),
            (&[1000.0, 10.0], "not at 1000"),
            (&[], "one timestep or more"),
        ] {
            let error = scheduler.set_timesteps(Timesteps::Timesteps(custom)).unwrap_err();
            assert!(matches!(error, Error::Argument(_)), "{name}: {error:?}");
            assert!(error.to_string().contains(expected), "{name}: {error}");
        }
    }
    let mut heun = HeunDiscreteScheduler::from_config(&map(json!({"use_karras_sigmas": true}))).unwrap();
    let error = heun.set_timesteps(Timesteps::Timesteps(&[900.0])).unwrap_err().to_string();
    assert_eq!(error, "custom timesteps cannot be combined with `use_karras_sigmas`");
}

#[test]
fn schedulers_of_order_two_call_the_model_twice_a_step_but_for_the_last() {
    for name in ["heun", "dpm2", "dpm2_a"] {
        let mut scheduler = name.parse::<SchedulerKind>().unwrap().from_config(&stable_diffusion()).unwrap();
        scheduler.set_timesteps(Timesteps::Steps(5)).unwrap();
        assert_eq!((scheduler.order(), scheduler.timesteps().len()), (2, 9), "{name}");
        // A run that is left in the middle of a step does not spoil the next one.
        scheduler.step(&zeros(), scheduler.timesteps()[0], &zeros(), StepOptions::default()).unwrap();
        let sample = Generator::cpu(0).unwrap().randn([1, 4, 2, 2], Kind::Float).unwrap();
        let run = |scheduler: &mut dyn Scheduler| {
            scheduler.set_timesteps(Timesteps::Steps(5)).unwrap();
            let mut generators = [Generator::cpu(1).unwrap()];
            let mut sample = sample.shallow_clone();
            for timestep in scheduler.timesteps().to_vec() {
                let options = StepOptions { generators: &mut generators, ..Default::default() };
                sample = scheduler.step(&(&sample * 0.1), timestep, &sample, options).unwrap().prev_sample;
            }
            sample.to_vec().unwrap()
        };
        assert_eq!(run(scheduler.as_mut()), run(scheduler.fresh().unwrap().as_mut()), "{name}");
    }
}

#[test]
fn levels_that_cannot_be_split_are_refused() {
    let cosine = map(json!({"beta_schedule": "squaredcos_cap_v2"}));
    let mut ancestral = KDPM2AncestralDiscreteScheduler::from_config(&cosine).unwrap();
    let error = ancestral.set_timesteps(Timesteps::Steps(6)).unwrap_err().to_string();
    assert!(error.contains("use more steps"), "{error}");
    ancestral.set_timesteps(Timesteps::Steps(17)).unwrap();
}

#[test]
fn given_noise_takes_the_place_of_fresh_noise() {
    let noise = Generator::cpu(7).unwrap().randn([1, 4, 2, 2], Kind::Float).unwrap();
    let mut ancestral = KDPM2AncestralDiscreteScheduler::from_config(&stable_diffusion()).unwrap();
    ancestral.set_timesteps(Timesteps::Steps(3)).unwrap();
    let timesteps = ancestral.timesteps().to_vec();
    let half = ancestral.step(&zeros(), timesteps[0], &zeros(), StepOptions::default()).unwrap().prev_sample;
    let options = StepOptions { variance_noise: Some(&noise), ..Default::default() };
    let whole = ancestral.step(&zeros(), timesteps[1], &half, options).unwrap().prev_sample;
    let ratio = whole.f_div(&noise).unwrap().to_vec().unwrap();
    assert!(ratio.iter().all(|share| (share / ratio[0] - 1.0).abs() < 1e-5 && *share > 0.0), "{ratio:?}");
}

#[test]
fn the_singlestep_solver_lowers_its_final_order_by_itself() {
    let kept = map(json!({"final_sigmas_type": "sigma_min", "lower_order_final": false}));
    let mut scheduler = DPMSolverSinglestepScheduler::from_config(&kept).unwrap();
    scheduler.set_timesteps(Timesteps::Steps(4)).unwrap();
    assert_eq!(scheduler.config()["lower_order_final"], false);
    scheduler.set_timesteps(Timesteps::Steps(5)).unwrap();
    assert_eq!(scheduler.config()["lower_order_final"], true);
    assert_eq!(scheduler.fresh().unwrap().config()["lower_order_final"], true);
    let mut zero = DPMSolverSinglestepScheduler::from_config(&ConfigMap::new()).unwrap();
    zero.set_timesteps(Timesteps::Steps(4)).unwrap();
    assert_eq!(zero.fresh().unwrap().config()["lower_order_final"], true);
}

#[test]
fn learned_variances_need_as_many_channels_again() {
    let mut ddpm = DDPMScheduler::from_config(&map(json!({"variance_type": "learned_range"}))).unwrap();
    let error = ddpm.step(&zeros(), 500.0, &zeros(), StepOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Shape(_)), "{error:?}");
    assert!(error.to_string().contains("twice the sample's 4 channels, not 4"), "{error}");
}

#[test]
fn a_variance_type_that_nobody_knows_is_the_small_one_as_in_diffusers() {
    let draw = |variance: &str| {
        let mut ddpm = DDPMScheduler::from_config(&map(json!({"variance_type": variance}))).unwrap();
        let mut generators = [Generator::cpu(3).unwrap()];
        let options = StepOptions { generators: &mut generators, ..Default::default() };
        ddpm.step(&zeros(), 500.0, &zeros(), options).unwrap().prev_sample.to_vec().unwrap()
    };
    assert_eq!(draw("of_another"), draw("fixed_small"));
    assert_ne!(draw("fixed_large"), draw("fixed_small"));
}

#[test]
fn lms_combines_at_least_one_derivative() {
    let mut lms = LMSDiscreteScheduler::from_config(&ConfigMap::new()).unwrap();
    let none = StepOptions { order: Some(0), ..Default::default() };
    let error = lms.step(&zeros(), 500.0, &zeros(), none).unwrap_err().to_string();
    assert_eq!(error, "`order` is 0: use 1 or more");
}

#[test]
fn lcm_walks_the_share_that_strength_leaves() {
    let mut lcm = LCMScheduler::from_config(&ConfigMap::new()).unwrap();
    lcm.set_timesteps_of(Timesteps::Steps(4), None, 0.5).unwrap();
    assert_eq!(lcm.timesteps(), [499.0, 379.0, 259.0, 139.0]);
    lcm.set_timesteps_of(Timesteps::Timesteps(&[999.0, 500.0, 20.0]), None, 0.7).unwrap();
    assert_eq!(lcm.timesteps(), [500.0, 20.0]);
    for (steps, original, strength, expected) in [
        (51, None, 1.0, "not between 1 and 50"),
        (4, Some(1001), 1.0, "`original_inference_steps` is 1001"),
        (4, None, 1.5, "`strength` is 1.5"),
        (26, None, 0.5, "the share 0.5 of the 50"),
    ] {
        let error = lcm.set_timesteps_of(Timesteps::Steps(steps), original, strength).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn inverted_ddim_goes_back_where_ddim_came_from() {
    let config = map(json!({"clip_sample": false, "set_alpha_to_one": false, "timestep_spacing": "leading"}));
    let (mut ddim, mut inverse) =
        (DDIMScheduler::from_config(&config).unwrap(), DDIMInverseScheduler::from_config(&config).unwrap());
    let start = Generator::cpu(0).unwrap().randn([1, 4, 2, 2], Kind::Float).unwrap();
    let noise = Generator::cpu(1).unwrap().randn([1, 4, 2, 2], Kind::Float).unwrap();
    let mut sample = start.shallow_clone();
    ddim.set_timesteps(Timesteps::Steps(5)).unwrap();
    for timestep in ddim.timesteps().to_vec() {
        sample = ddim.step(&noise, timestep, &sample, StepOptions::default()).unwrap().prev_sample;
    }
    inverse.set_timesteps(Timesteps::Steps(5)).unwrap();
    assert!(inverse.timesteps().windows(2).all(|pair| pair[0] < pair[1]));
    for timestep in inverse.timesteps().to_vec() {
        sample = inverse.step(&noise, timestep, &sample, StepOptions::default()).unwrap().prev_sample;
    }
    assert!(sample.max_abs_diff(&start).unwrap() < 1e-4);
    let older = DDIMInverseScheduler::from_config(&map(json!({"set_alpha_to_zero": false}))).unwrap();
    assert_eq!(older.config()["set_alpha_to_one"], false);
    let mut linspace = DDIMInverseScheduler::from_config(&map(json!({"timestep_spacing": "linspace"}))).unwrap();
    assert!(linspace.set_timesteps(Timesteps::Steps(5)).unwrap_err().to_string().contains("leading or trailing"));
}

#[test]
fn dynamic_shifting_needs_mu() {
    let config = map(json!({"use_flow_sigmas": true, "use_dynamic_shifting": true}));
    let mut unipc = UniPCMultistepScheduler::from_config(&config).unwrap();
    assert!(unipc.set_timesteps(Timesteps::Steps(4)).unwrap_err().to_string().contains("needs `mu`"));
    unipc.set_timesteps_with_mu(Timesteps::Steps(4), 0.5).unwrap();
    assert_eq!(unipc.timesteps().len(), 4);
}

#[test]
fn noise_can_come_from_one_place_only() {
    let mut ddim = DDIMScheduler::from_config(&ConfigMap::new()).unwrap();
    ddim.set_timesteps(Timesteps::Steps(4)).unwrap();
    let (noise, mut generators) = (zeros(), [Generator::cpu(0).unwrap()]);
    let options =
        StepOptions { eta: 1.0, variance_noise: Some(&noise), generators: &mut generators, ..Default::default() };
    let error = ddim.step(&zeros(), 750.0, &zeros(), options).unwrap_err();
    assert!(matches!(error, Error::Argument(_)), "{error:?}");
}

#[test]
fn unipcs_last_step_is_finite_for_bh1_too() {
    let mut unipc = UniPCMultistepScheduler::from_config(&map(json!({"solver_type": "bh1"}))).unwrap();
    unipc.set_timesteps(Timesteps::Steps(3)).unwrap();
    let mut sample = Generator::cpu(0).unwrap().randn([1, 4, 2, 2], Kind::Float).unwrap();
    for timestep in unipc.timesteps().to_vec() {
        sample = unipc.step(&zeros(), timestep, &sample, StepOptions::default()).unwrap().prev_sample;
    }
    assert!(sample.to_vec().unwrap().iter().all(|x| x.is_finite()));
}

#[test]
fn a_fresh_scheduler_is_at_the_start() {
    for kind in SchedulerKind::ALL {
        let mut scheduler = kind.from_config(&stable_diffusion()).unwrap();
        scheduler.set_timesteps(Timesteps::Steps(3)).unwrap();
        let fresh = scheduler.fresh().unwrap();
        assert!(fresh.timesteps().is_empty());
        let (mut old, mut new) = (scheduler.config().clone(), fresh.config().clone());
        assert_eq!(
            (old.remove("_use_default_values").is_some(), new.remove("_use_default_values").is_some()),
            (true, true)
        );
        assert_eq!(old, new);
    }
}
