//! libtorch's switches: what is set is read back, and a guard puts back what was there.
//!
//! They are the process's. What would change the numbers of tests beside it runs in a process of its own.

use crate::support::generated;
use std::process::Command;
use tch::{Kind, Tensor};
use tch_diffusers::models::attention_dispatch::AttentionBackend;
use tch_diffusers::models::attention_processor::{attention_backends, scaled_dot_product_attention};
use tch_diffusers::nn::Module;
use tch_diffusers::torch::{
    MatmulPrecision, SDPBackend, Switch, attention_by, num_interop_threads, num_threads, scoped_num_threads,
    sdpa_kernel, sdpa_kernels, set_num_threads,
};
use tch_diffusers::{Error, Generator, ModelMixin, PipelineMixin, StableDiffusionPipeline, TensorExt};

/// Runs the test of this name again, alone in a process.
fn alone(name: &str, test: impl FnOnce()) {
    const MARK: &str = "TCH_DIFFUSERS_ALONE";
    if std::env::var_os(MARK).is_some() {
        return test();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &format!("switches::{name}")]).env(MARK, "1").output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}{errors}");
}

#[test]
fn every_switch_is_read_back_and_put_back() {
    alone("every_switch_is_read_back_and_put_back", || {
        for switch in Switch::ALL {
            let before = switch.get().unwrap();
            for on in [true, false, true] {
                switch.set(on).unwrap();
                assert_eq!(switch.get().unwrap(), on, "{switch:?}");
                drop(switch.scoped(!on).unwrap());
                assert_eq!(switch.get().unwrap(), on, "{switch:?}");
                let guard = switch.scoped(!on).unwrap();
                assert_eq!(switch.get().unwrap(), !on, "{switch:?}");
                drop(guard);
            }
            switch.set(before).unwrap();
        }
        let others = |own: Switch| Switch::ALL.into_iter().filter(move |switch| *switch != own);
        let state = |own| others(own).map(|switch| switch.get().unwrap()).collect::<Vec<_>>();
        for switch in Switch::ALL {
            let before = state(switch);
            let _guard = switch.scoped(!switch.get().unwrap()).unwrap();
            assert_eq!(state(switch), before, "{switch:?} moves another switch");
        }
    });
}

#[test]
fn the_precision_of_products_is_the_switch_for_tf32() {
    alone("the_precision_of_products_is_the_switch_for_tf32", || {
        assert_eq!(MatmulPrecision::get().unwrap(), MatmulPrecision::Highest);
        for (precision, tf32) in
            [(MatmulPrecision::High, true), (MatmulPrecision::Medium, true), (MatmulPrecision::Highest, false)]
        {
            let guard = precision.scoped().unwrap();
            assert_eq!((MatmulPrecision::get().unwrap(), Switch::MatmulAllowTf32.get().unwrap()), (precision, tf32));
            drop(guard);
            assert_eq!(MatmulPrecision::get().unwrap(), MatmulPrecision::Highest);
        }
        assert!("low".parse::<MatmulPrecision>().unwrap_err().to_string().contains("highest, high or medium"));
    });
}

#[test]
fn flushing_takes_the_smallest_numbers_for_zero() {
    alone("flushing_takes_the_smallest_numbers_for_zero", || {
        let tiny = Tensor::from_slice(&[1e-40f32]);
        let half = |tiny: &Tensor| (tiny * 0.5).to_vec().unwrap()[0];
        assert!(half(&tiny) > 0.0);
        let guard = Switch::FlushDenormal.scoped(true).unwrap();
        assert_eq!(half(&tiny), 0.0);
        drop(guard);
        assert!(half(&tiny) > 0.0);
    });
}

#[test]
fn threads_are_counted() {
    alone("threads_are_counted", || {
        let before = num_threads().unwrap();
        let guard = scoped_num_threads(before + 2).unwrap();
        assert_eq!(num_threads().unwrap(), before + 2);
        drop(guard);
        assert_eq!(num_threads().unwrap(), before);
        assert!(matches!(set_num_threads(0), Err(Error::Argument(_))));
        assert!(num_interop_threads().unwrap() > 0);
    });
}

fn heads() -> [Tensor; 3] {
    let mut generator = Generator::cpu(0).unwrap();
    [0, 1, 2].map(|_| generator.randn([2, 4, 64, 16], Kind::Float).unwrap())
}

#[test]
fn attention_kernels_are_chosen_by_one_several_or_in_order() {
    use SDPBackend::{CudnnAttention, EfficientAttention, FlashAttention, Math};
    alone("attention_kernels_are_chosen_by_one_several_or_in_order", || {
        let all = sdpa_kernels().unwrap();
        assert_eq!(all, [FlashAttention, EfficientAttention, Math, CudnnAttention]);
        {
            let _guard = sdpa_kernel(&[Math], false).unwrap();
            assert_eq!(sdpa_kernels().unwrap(), [Math]);
            let _guard = sdpa_kernel(&[Math, EfficientAttention, Math], false).unwrap();
            assert_eq!(sdpa_kernels().unwrap(), [EfficientAttention, Math]);
            let _guard = sdpa_kernel(&[Math, CudnnAttention, FlashAttention], true).unwrap();
            assert_eq!(sdpa_kernels().unwrap(), [Math, CudnnAttention, FlashAttention]);
        }
        assert_eq!(sdpa_kernels().unwrap(), all);
        assert!(matches!(sdpa_kernel(&[], true), Err(Error::Argument(_))));

        let [query, key, value] = heads();
        let free = scaled_dot_product_attention(&query, &key, &value, None).unwrap();
        let by = |kernel| attention_by(kernel, &query, &key, &value, None);
        assert_eq!(by(FlashAttention).unwrap().max_abs_diff(&free).unwrap(), 0.0);
        let exact = by(Math).unwrap().max_abs_diff(&free).unwrap();
        assert!(exact > 0.0 && exact < 1e-5, "{exact:e}: the kernel did not change");
        assert_eq!(sdpa_kernels().unwrap(), all);
    });
}

#[test]
fn a_kernel_that_cannot_do_it_says_what_is_missing() {
    alone("a_kernel_that_cannot_do_it_says_what_is_missing", || {
        let [query, key, value] = heads();
        for kernel in [SDPBackend::EfficientAttention, SDPBackend::CudnnAttention] {
            let error = attention_by(kernel, &query, &key, &value, None).unwrap_err();
            assert!(matches!(error, Error::Unsupported(_)), "{error}");
            assert!(error.to_string().contains(&format!("[{kernel:?}] can do this on Cpu: CUDA alone")), "{error}");
        }
        // Flash attention on the CPU wants as many values as keys' channels.
        let wide = Tensor::cat(&[&value, &value], -1);
        let error = attention_by(SDPBackend::FlashAttention, &query, &key, &wide, None).unwrap_err().to_string();
        assert!(error.contains("head_dim") || error.contains("last dimension"), "{error}");
        assert_eq!(sdpa_kernels().unwrap().len(), 4);
    });
}

#[test]
fn models_and_pipelines_take_an_attention_backend() {
    alone("models_and_pipelines_take_an_attention_backend", || {
        let folder = generated("pipeline").join("_models/sd1");
        let mut pipe = StableDiffusionPipeline::from_pretrained(folder).load().unwrap();
        pipe.progress_bar.disable = true;
        let mut draw = |backend: &str| {
            pipe.set_attention_backend(backend.parse().unwrap()).unwrap();
            let backends = attention_backends(pipe.vae.node());
            assert!(!backends.is_empty() && backends.iter().all(|(_, known)| known.name() == backend));
            let output = pipe.call("a red circle").num_inference_steps(2).seed(0).run()?;
            Ok::<_, Error>(output.images.to_rgb().unwrap()[0].clone())
        };
        let plain = draw("native").unwrap();
        assert_eq!(draw("_native_flash").unwrap(), plain);
        let exact = draw("_native_math").unwrap();
        let worst = exact.as_raw().iter().zip(plain.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst < Some(2), "{worst:?}");
        let error = draw("_native_cudnn").unwrap_err().to_string();
        assert!(error.starts_with("unet.down_blocks.0.attentions.0") && error.contains("CudnnAttention"), "{error}");
        assert_eq!(draw("native").unwrap(), plain);
        pipe.vae.set_attention_backend(AttentionBackend::NativeMath);
        assert!(attention_backends(pipe.vae.node()).iter().all(|(_, known)| known.name() == "_native_math"));
    });
}
