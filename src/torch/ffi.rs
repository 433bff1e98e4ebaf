//! The border to the C++ shim: declarations, and one safe function per call. The only unsafe code of the crate.
#![allow(unsafe_code)]

pub(super) mod aoti;
pub(super) mod graph;
mod memory;
pub(super) mod number;
pub(super) mod prepack;
pub(super) mod profile;
pub(super) mod stream;

pub(super) use memory::{HostTracker, cuda_memory, is_pinned, reset_peak_cuda_memory};

use super::random::Generator;
use crate::error::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use tch::{Device, Kind, Tensor};

pub(super) mod jit;
pub(super) mod switches;

type Message = *mut *mut c_char;

unsafe extern "C" {
    fn tds_generator_new(device: c_int, seed: u64, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_generator_free(generator: *mut c_void);
    fn tds_generator_seed(generator: *mut c_void, seed: u64, error: Message) -> c_int;
    fn tds_generator_clone(generator: *mut c_void, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_generator_share(implementation: *mut c_void, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_generator_about(generator: *mut c_void, device: *mut c_int, seed: *mut u64, error: Message) -> c_int;
    fn tds_randn(
        size: *const i64,
        dims: usize,
        generator: *mut c_void,
        kind: c_int,
        out: *mut *mut c_void,
        error: Message,
    ) -> c_int;
    fn tds_contiguous(tensor: *mut c_void, format: c_int, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_to_memory_format(tensor: *mut c_void, format: c_int, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_conv2d_winograd(
        input: *mut c_void,
        weight: *mut c_void,
        bias: *mut c_void,
        out: *mut *mut c_void,
        error: Message,
    ) -> c_int;
    fn tds_is_unshared(tensor: *mut c_void, out: *mut c_int, error: Message) -> c_int;
    fn tds_libtorch_version(out: Message, error: Message) -> c_int;
    fn tds_cpu_capability(out: Message, error: Message) -> c_int;
    fn tds_cuda_open();
    fn tds_cuda_refusal(out: Message, error: Message) -> c_int;
    fn free(pointer: *mut c_void);
    fn _exit(status: c_int) -> !;
    #[cfg(target_os = "linux")]
    fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    #[cfg(target_os = "linux")]
    fn getpagesize() -> c_int;
}

/// Runs before `main`, and so before the first call of tch: see `shim/cuda.cpp`.
extern "C" fn open_cuda() {
    // SAFETY: takes nothing, and is called once, before any thread is started.
    unsafe { tds_cuda_open() }
}

#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
static OPEN_CUDA: extern "C" fn() = open_cuda;

/// Ends the process without running what libtorch registered to run at its end.
pub(super) fn exit_at_once(status: c_int) -> ! {
    // SAFETY: takes a number; the caller has flushed what it wrote.
    unsafe { _exit(status) }
}

/// A string made by `strdup` in the shim.
fn take_string(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the shim hands over a string that ends in NUL and that nobody else holds.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        free(text.cast());
        owned
    }
}

/// Turns the shim's status and message into a `Result`.
fn checked(call: impl FnOnce(Message) -> c_int) -> Result<()> {
    let mut message = std::ptr::null_mut();
    let status = call(&mut message);
    let message = take_string(message);
    match status {
        0 => Ok(()),
        2 => Err(Error::OutOfMemory(message)),
        3 => Err(Error::Unsupported(message)),
        4 => Err(Error::Argument(message)),
        // Its words say whether memory was lacking.
        _ => Err(tch::TchError::Torch(message).into()),
    }
}

fn string(call: impl FnOnce(Message, Message) -> c_int) -> Result<String> {
    let mut text = std::ptr::null_mut();
    checked(|error| call(&mut text, error))?;
    Ok(take_string(text))
}

/// The tensor that `call` writes to its out-pointer.
fn tensor(call: impl FnOnce(*mut *mut c_void, Message) -> c_int) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    checked(|error| call(&mut out, error))?;
    // SAFETY: on success the shim has put a new at::Tensor there, which is what tch wraps and frees.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// An `at::Generator`.
#[derive(Debug)]
pub(super) struct RawGenerator(*mut c_void);

// SAFETY: an at::Generator is a counted pointer to a state behind its own mutex, which every call here takes.
unsafe impl Send for RawGenerator {}
// SAFETY: as above.
unsafe impl Sync for RawGenerator {}

impl RawGenerator {
    pub(super) fn new(device: Device, seed: u64) -> Result<Self> {
        let device = match device {
            Device::Cpu => -1,
            Device::Cuda(index) => c_int::try_from(index).unwrap_or(c_int::MAX),
            other => {
                return Err(Error::Unsupported(format!("a generator lives on the CPU or on CUDA, not on {other:?}")));
            }
        };
        let mut out = std::ptr::null_mut();
        // SAFETY: `out` outlives the call.
        checked(|error| unsafe { tds_generator_new(device, seed, &mut out, error) })?;
        Ok(Self(out))
    }

    /// Where the generator draws, and the seed last given to it.
    fn about(&self) -> Result<(Device, u64)> {
        let (mut device, mut seed) = (-1, 0);
        // SAFETY: the pointer is a live at::Generator, and the others outlive the call.
        checked(|error| unsafe { tds_generator_about(self.0, &mut device, &mut seed, error) })?;
        Ok((usize::try_from(device).map_or(Device::Cpu, Device::Cuda), seed))
    }

    pub(super) fn seed(&self, seed: u64) -> Result<()> {
        // SAFETY: the pointer is a live at::Generator.
        checked(|error| unsafe { tds_generator_seed(self.0, seed, error) })
    }

    pub(super) fn duplicate(&self) -> Result<Self> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the pointer is a live at::Generator and `out` outlives the call.
        checked(|error| unsafe { tds_generator_clone(self.0, &mut out, error) })?;
        Ok(Self(out))
    }

    pub(super) fn randn(&self, size: &[i64], kind: Kind) -> Result<Tensor> {
        // The numbers of c10::ScalarType.
        let scalar_type = match kind {
            Kind::Half => 5,
            Kind::Float => 6,
            Kind::Double => 7,
            Kind::BFloat16 => 15,
            other => return Err(Error::Unsupported(format!("dtype {other:?} has no normal distribution"))),
        };
        // SAFETY: the pointer is a live at::Generator and `size` is read during the call only.
        tensor(|out, error| unsafe { tds_randn(size.as_ptr(), size.len(), self.0, scalar_type, out, error) })
    }
}

impl Drop for RawGenerator {
    fn drop(&mut self) {
        // SAFETY: made by `new at::Generator`, freed once.
        unsafe { tds_generator_free(self.0) }
    }
}

impl Generator {
    /// The generator whose `c10::GeneratorImpl` lies at `address`, as `torch.Generator._cdata` says it in Python: numbers
    /// drawn from either are drawn from both.
    ///
    /// # Safety
    /// A live `GeneratorImpl` has to lie there.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub unsafe fn share(address: usize) -> Result<Self> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the caller vouches for the address; `out` outlives the call.
        checked(|error| unsafe { tds_generator_share(address as *mut c_void, &mut out, error) })?;
        let raw = RawGenerator(out);
        let (device, seed) = raw.about()?;
        Ok(Self::from_raw(raw, device, seed))
    }
}

/// `tensor` laid out in memory format number `format`.
pub(super) fn contiguous(source: &Tensor, format: c_int) -> Result<Tensor> {
    // SAFETY: tch's pointer is an at::Tensor, alive while `source` is borrowed.
    tensor(|out, error| unsafe { tds_contiguous(source.as_ptr().cast_mut().cast(), format, out, error) })
}

/// A convolution by Winograd's minimal filtering; none where that does not suit the tensors.
pub(super) fn conv2d_winograd(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
    let pointer = |tensor: &Tensor| tensor.as_ptr().cast_mut().cast::<c_void>();
    let bias = bias.map_or(std::ptr::null_mut(), pointer);
    let mut out = std::ptr::null_mut();
    // SAFETY: tch's pointers are at::Tensors, alive while they are borrowed; the bias may be null.
    checked(|error| unsafe { tds_conv2d_winograd(pointer(input), pointer(weight), bias, &mut out, error) })?;
    // SAFETY: what the shim has put there is a new at::Tensor, which is what tch wraps and frees.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out.cast()) }))
}

/// `tensor` with the strides of memory format number `format`.
pub(super) fn to_memory_format(source: &Tensor, format: c_int) -> Result<Tensor> {
    // SAFETY: tch's pointer is an at::Tensor, alive while `source` is borrowed.
    tensor(|out, error| unsafe { tds_to_memory_format(source.as_ptr().cast_mut().cast(), format, out, error) })
}

/// Whether nobody but the caller can see the elements of `tensor`.
pub(super) fn is_unshared(tensor: &Tensor) -> Result<bool> {
    let mut unshared = 0;
    // SAFETY: tch's pointer is an at::Tensor, alive while `tensor` is borrowed; `unshared` outlives the call.
    checked(|error| unsafe { tds_is_unshared(tensor.as_ptr().cast_mut().cast(), &mut unshared, error) })?;
    Ok(unshared != 0)
}

/// The version of libtorch's headers that this crate was built with.
pub(super) fn libtorch_version() -> Result<String> {
    // SAFETY: only writes its out-pointers.
    string(|out, error| unsafe { tds_libtorch_version(out, error) })
}

/// The widest instruction set that libtorch's kernels use on this processor.
pub(super) fn cpu_capability() -> Result<String> {
    // SAFETY: only writes its out-pointers.
    string(|out, error| unsafe { tds_cpu_capability(out, error) })
}

/// Why libtorch's CUDA library is not open, or an empty string.
pub(super) fn cuda_refusal() -> Result<String> {
    // SAFETY: only writes its out-pointers.
    string(|out, error| unsafe { tds_cuda_refusal(out, error) })
}

/// Drops the pages that hold `length` bytes from `offset` on of `map`, which has to be a whole file's private map that
/// nobody wrote to: the next look at them reads the file again.
#[cfg(target_os = "linux")]
pub(super) fn release_pages(map: &Tensor, offset: usize, length: usize) -> std::io::Result<()> {
    const MADV_DONTNEED: c_int = 4;
    // SAFETY: takes nothing and cannot fail.
    let page = unsafe { getpagesize() } as usize;
    let start = map.data_ptr() as usize + offset;
    let first = start / page * page;
    let length = (start + length).next_multiple_of(page) - first;
    // SAFETY: the pages belong to the map, which `map` keeps alive and which begins at a page. Their content is the
    // file's, so dropping them changes no value that anybody sees.
    match unsafe { madvise(first as *mut c_void, length, MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Elsewhere the system decides by itself which pages of a map it keeps.
#[cfg(not(target_os = "linux"))]
pub(super) fn release_pages(_: &Tensor, _: usize, _: usize) -> std::io::Result<()> {
    Ok(())
}
