//! Nothing that goes wrong on the way changes a result or leaves weights elsewhere.

use super::{Simulated, count, hooks, predict, state, unet, ways};
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Kind, Tensor};
use tch_diffusers::hooks::{GroupOffloading, apply_group_offloading_on, remove_group_offloading};
use tch_diffusers::nn::{Hook, Module, Next, Node};
use tch_diffusers::{Error, ModelMixin, Result, TensorExt};

#[test]
fn a_device_that_fails_at_any_call_leaves_the_model_as_it_was() {
    for (way, options) in ways() {
        let unet = unet(Kind::Float);
        let expected = predict(&unet).unwrap();
        let device = Simulated::default();
        apply_group_offloading_on(unet.node(), &options, device.clone()).unwrap();
        let _ = predict(&unet).unwrap();
        let before = state(unet.node());
        let calls = |device: &Simulated| device.with(|device| device.calls);
        let start = calls(&device);
        let _ = predict(&unet).unwrap();
        let length = calls(&device) - start;
        let mut failed = 0;
        // All kinds of calls at all kinds of groups, without taking minutes.
        for at in (1..=length).step_by(1 + length / 40) {
            device.with(|device| device.fail_at = Some(device.calls + at));
            let output = predict(&unet);
            device.with(|device| device.fail_at = None);
            match output {
                Ok(output) => assert_eq!(output.max_abs_diff(&expected).unwrap(), 0.0, "{way}, call {at}"),
                Err(error) => {
                    assert!(
                        matches!(error.kind(), Error::OutOfMemory(text) if text.starts_with("injected")),
                        "{error}"
                    );
                    failed += 1;
                }
            }
            assert_eq!(state(unet.node()), before, "{way}, call {at}");
            assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0, "{way}, after call {at}");
        }
        assert!(failed > 0, "{way}: nothing failed");
    }
}

#[test]
fn a_device_that_fails_while_offloading_is_switched_on_leaves_no_hook_and_the_same_numbers() {
    for (way, options) in ways() {
        let unet = unet(Kind::BFloat16);
        let expected = predict(&unet).unwrap();
        let mut at = 1;
        loop {
            let device = Simulated::default();
            device.with(|device| device.fail_at = Some(at));
            if apply_group_offloading_on(unet.node(), &options, device.clone()).is_ok() {
                device.with(|device| device.fail_at = None);
                break;
            }
            assert_eq!((hooks(unet.node()), device.with(|device| device.pinned)), (0, 0), "{way}, call {at}");
            assert_eq!(unet.node().state_dict()[0].1.kind(), Kind::BFloat16, "{way}, call {at}");
            assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0, "{way}, call {at}");
            at += 1;
        }
        assert!(at > 1, "{way}: nothing failed");
        assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0, "{way}");
    }
}

/// Room for one group alone is enough: those that find none ahead are sent for when they are needed.
#[test]
fn a_device_without_room_for_the_next_group_is_slower_and_no_more() {
    let unet = unet(Kind::Float);
    let expected = predict(&unet).unwrap();
    let device = Simulated::default();
    apply_group_offloading_on(unet.node(), &GroupOffloading::leaf_level(), device.clone()).unwrap();
    let _ = predict(&unet).unwrap();
    // The first group's memory, and none for the second.
    #[derive(Debug)]
    struct Full(Simulated, bool);
    impl Hook for Full {
        fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
            self.0.with(|device| device.is_full = self.1);
            next.run(inputs)
        }
    }
    let roomy = unet.node().walk().into_iter().filter(|node| !node.own_params().is_empty());
    roomy.for_each(|node| node.add_outer_hook("full", Full(device.clone(), false)));
    let (output, log) = device.log(|| predict(&unet).unwrap());
    assert_eq!((output.max_abs_diff(&expected).unwrap(), count(&log, "onload")), (0.0, 1));
    device.with(|device| device.is_full = true);
    assert!(predict(&unet).is_ok(), "the hooks make room");
    unet.node().walk().iter().for_each(|node| assert_eq!(node.remove_hook("full"), !node.own_params().is_empty()));
    device.with(|device| device.is_full = true);
    let error = predict(&unet).unwrap_err();
    assert!(matches!(error.kind(), Error::OutOfMemory(_)), "{error}");
    device.with(|device| device.is_full = false);
    assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
}

/// Fails when it is called for the `at`-th time, counted over all hooks that share the counter.
#[derive(Debug)]
struct Fault(&'static AtomicUsize, usize);

impl Hook for Fault {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            call if call == self.1 => Err(Error::OutOfMemory("injected".into())),
            _ => next.run(inputs),
        }
    }
}

#[test]
fn a_failing_layer_leaves_the_weights_where_they_were() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    for (way, options) in ways() {
        let unet = unet(Kind::Float);
        let expected = predict(&unet).unwrap();
        let device = Simulated::default();
        apply_group_offloading_on(unet.node(), &options, device.clone()).unwrap();
        let _ = predict(&unet).unwrap();
        let before = state(unet.node());
        let layers: Vec<_> = unet.node().walk().into_iter().filter(|node| !node.own_params().is_empty()).collect();
        for at in (0..183).step_by(61) {
            CALLS.store(0, Ordering::Relaxed);
            layers.iter().for_each(|layer| layer.add_hook("fault", Fault(&CALLS, at)));
            let (error, log) = device.log(|| predict(&unet).unwrap_err());
            layers.iter().for_each(|layer| assert!(layer.remove_hook("fault")));
            assert!(matches!(error.kind(), Error::OutOfMemory(text) if text == "injected"), "{error}");
            assert_eq!(state(unet.node()), before, "{way}, layer {at}");
            // A recorded buffer is dropped while something is on its way to it: the allocator knows.
            assert!(device.is_idle() || way.ends_with("recorded"), "{way}, layer {at}");
            let came = count(&log, "onload") + count(&log, "prefetch");
            assert_eq!(came, count(&log, "offload") + count(&log, "cancel"), "{way}, layer {at}");
        }
        assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0, "{way}");
    }
}

#[test]
fn streams_can_be_switched_on_and_off_a_thousand_times() {
    let unet = unet(Kind::Float);
    let expected = predict(&unet).unwrap();
    let device = Simulated::default();
    let (leaf, block) = (GroupOffloading::leaf_level(), GroupOffloading::block_level(1));
    apply_group_offloading_on(unet.node(), &leaf, device.clone()).unwrap();
    let (attached, pinned) = (hooks(unet.node()), device.with(|device| device.pinned));
    for round in 0..1000 {
        apply_group_offloading_on(unet.node(), if round % 2 == 0 { &leaf } else { &block }, device.clone()).unwrap();
        if round % 2 == 0 {
            assert_eq!((hooks(unet.node()), device.with(|device| device.pinned)), (attached, pinned));
        }
        if round % 100 == 0 {
            assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
        }
        if round % 3 == 0 {
            assert!(remove_group_offloading(unet.node()).unwrap());
            assert_eq!((hooks(unet.node()), device.with(|device| device.pinned)), (0, 0));
        }
    }
    unet.disable_group_offload().unwrap();
    assert_eq!(device.with(|device| device.pinned), 0);
    assert_eq!(predict(&unet).unwrap().max_abs_diff(&expected).unwrap(), 0.0);
}
