//! Pinned memory takes the place of what weights had, and no more than is allowed.

use super::{Simulated, count, hooks};
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::{GroupOffloading, apply_group_offloading_on, remove_group_offloading};
use tch_diffusers::models::unets::{UNet2DConditionConfig, UNetInputs};
use tch_diffusers::nn::{Module, RandomWeights};
use tch_diffusers::{Error, ModelMixin, TensorExt, UNet2DConditionModel};

/// A UNet of Stable Diffusion's build with fewer channels, and the length of its weights in bytes.
fn unet(channels: [i64; 4]) -> (UNet2DConditionModel, usize) {
    let config = serde_json::json!({
        "block_out_channels": channels, "cross_attention_dim": 256, "attention_head_dim": 8, "sample_size": 16,
    });
    let config: UNet2DConditionConfig = serde_json::from_value(config).unwrap();
    let unet = UNet2DConditionModel::from_weights(config, &RandomWeights::new(0, Kind::Float).unwrap()).unwrap();
    let bytes = unet.node().num_parameters() * 4;
    (unet, bytes)
}

fn predict(unet: &UNet2DConditionModel) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let (sample, text) = (Tensor::ones([1, 4, 16, 16], options), Tensor::ones([1, 8, 256], options));
    tch::no_grad(|| unet.forward(&UNetInputs::new(&sample, &Tensor::from(10), &text))).unwrap()
}

#[test]
fn what_is_pinned_stays_within_the_budget() {
    let (unet, bytes) = unet([32, 64, 128, 128]);
    let expected = predict(&unet);
    let leaf = || GroupOffloading::leaf_level().use_stream(true);
    for (options, least, most) in [
        (leaf(), bytes, bytes + bytes / 10),
        (GroupOffloading::block_level(1), bytes, bytes + bytes / 10),
        (leaf().pinned_memory_limit(2 * bytes), bytes, bytes + bytes / 10),
        (leaf().pinned_memory_limit(bytes / 2), bytes / 3, bytes / 2),
        (leaf().pinned_memory_limit(bytes / 50), bytes / 100, bytes / 50),
        (GroupOffloading::block_level(1).use_stream(true).pinned_memory_limit(16384), 8192, 16384),
        (leaf().low_cpu_mem_usage(true), 1, bytes / 4),
        (leaf().low_cpu_mem_usage(true).pinned_memory_limit(65536), 16384, 65536),
    ] {
        let device = Simulated::default();
        apply_group_offloading_on(unet.node(), &options, device.clone()).unwrap();
        for _ in 0..2 {
            assert_eq!(predict(&unet).max_abs_diff(&expected).unwrap(), 0.0, "{options:?}");
        }
        let pinned = device.with(|device| device.most_pinned);
        assert!((least..=most).contains(&pinned), "{pinned} of {bytes} bytes with {options:?}");
    }
    let error = leaf().pinned_memory_limit(100).check().unwrap_err();
    assert!(matches!(&error, Error::Argument(_)), "{error}");
}

/// One of the numbers of /proc/self/status, in bytes.
fn memory(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Alone in its process, where nothing else takes memory.
#[test]
#[ignore = "run by pinned_memory_takes_the_place_of_ordinary_memory"]
fn measures_pinned_memory() {
    let (small, _) = unet([32, 32, 32, 32]);
    let _ = predict(&small);
    let (unet, bytes) = unet([64, 128, 256, 256]);
    let share = |more: usize| more as f64 / bytes as f64;
    let device = Simulated::default();
    let options = GroupOffloading::leaf_level();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    apply_group_offloading_on(unet.node(), &options, device.clone()).unwrap();
    let (peak, after) = (memory("VmHWM").saturating_sub(before), memory("VmRSS").saturating_sub(before));
    println!("switching on: {:.3} of {bytes} bytes at the most, {:.3} after", share(peak), share(after));
    // While a piece of pinned memory is filled, the weights that leave theirs for it are there twice.
    assert!(share(after) < 0.05 && share(peak) < 0.6, "{after} and {peak} of {bytes} bytes");
    let expected = predict(&unet);
    let settled = memory("VmRSS");
    for round in 0..24 {
        apply_group_offloading_on(unet.node(), &options, device.clone()).unwrap();
        if round % 6 == 0 {
            assert_eq!(predict(&unet).max_abs_diff(&expected).unwrap(), 0.0);
            remove_group_offloading(unet.node()).unwrap();
            assert_eq!(hooks(unet.node()), 0);
        }
    }
    let grown = memory("VmRSS").saturating_sub(settled);
    println!("24 rounds: {:.3} of {bytes} bytes", share(grown));
    assert!(share(grown) < 0.1, "24 rounds left {grown} bytes behind");
}

#[cfg(target_os = "linux")]
#[test]
fn pinned_memory_takes_the_place_of_ordinary_memory() {
    let arguments = ["--ignored", "--exact", "streams::memory::measures_pinned_memory", "--nocapture"];
    let output = std::process::Command::new(std::env::current_exe().unwrap()).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn without_a_limit_a_group_is_one_copy_and_within_one_it_is_as_many_as_it_needs() {
    let (unet, _) = unet([32, 32, 32, 32]);
    let device = Simulated::default();
    let copies = |options: &GroupOffloading| {
        apply_group_offloading_on(unet.node(), options, device.clone()).unwrap();
        let (_, log) = device.log(|| predict(&unet));
        (count(&log, "copy"), count(&log, "onload"), count(&log, "synchronize"))
    };
    let (whole, groups, waits) = copies(&GroupOffloading::block_level(1));
    assert_eq!((whole, waits), (groups, 0));
    let (pieces, same, waits) = copies(&GroupOffloading::block_level(1).pinned_memory_limit(1 << 16));
    assert_eq!(same, groups);
    // Each of the two buffers is filled again once the device has read it.
    assert_eq!(waits, pieces - 2);
    assert!(pieces > 10 * groups);
}

#[test]
fn an_estimate_counts_the_group_at_work_and_those_sent_for_ahead() {
    let (unet, _) = unet([32, 32, 32, 32]);
    let leaves = unet.node().walk();
    let leaves = leaves.iter().filter(|node| ["Conv2d", "Linear"].contains(&node.class()));
    let mut lengths: Vec<_> = leaves.map(|leaf| leaf.num_parameters()).collect();
    lengths.sort_unstable_by_key(|length| std::cmp::Reverse(*length));
    // A leaf's weight and bias begin at multiples of 256 bytes.
    let padding = 2 * 256;
    for ahead in [0, 2] {
        let options = GroupOffloading::leaf_level().prefetch_groups(ahead);
        apply_group_offloading_on(unet.node(), &options, Simulated::default()).unwrap();
        for (kind, size) in [(Kind::Float, 4), (Kind::Half, 2)] {
            let brought = unet.node().brought_weights(kind);
            let expected = lengths[..ahead + 2].iter().sum::<usize>() * size;
            let copied: usize = brought.iter().map(|brought| brought.copied).sum();
            assert!(
                (expected..expected + padding * (ahead + 2)).contains(&copied),
                "{kind:?}, {ahead} ahead: {copied}, {expected}"
            );
        }
    }
}
