//! What tch lacks: random generators, memory formats, mapped files, streams and pinned memory, switches, TorchScript,
//! profiles, fallible idioms, and facts about this libtorch.

mod aoti;
mod attention;
mod cuda_graph;
mod ext;
mod ffi;
mod mapped_file;
mod memory;
mod memory_format;
mod number;
mod prepack;
mod profile;
mod random;
mod stream;
mod switches;
mod trace;
mod version;
mod winograd;

pub use aoti::{
    AotiConstant, AotiContract, AotiDimension, AotiInput, AotiModel, AotiPackage, AotiSide, AotiTerms, LoadedWeights,
};
pub use attention::{SDPBackend, attention_by, scaled_dot_product_attention, sdpa_kernel, sdpa_kernels};
pub use cuda_graph::{CudaGraph, CudaGraphPool};
pub use ext::{DeviceExt, KindExt, TensorExt};
pub use mapped_file::{MappedFile, MappedTensor};
pub use memory::{MemoryTracker, is_pinned, peak_resident, resident};
pub use memory_format::MemoryFormat;
pub use number::{Number, NumberExt, baddbmm, linspace};
pub use prepack::PackedConv2d;
pub use profile::{Operator, OperatorProfile, count_synchronizations, profile};
pub use random::{Generator, randn_tensor};
pub use stream::{Event, PAGE, PinnedMemory, Stream, copy_non_blocking, record_stream, trim_host_memory, whole_pages};
pub use switches::{
    Guard, MatmulPrecision, Switch, num_interop_threads, num_threads, scoped_num_threads, set_num_interop_threads,
    set_num_threads,
};
pub use trace::{TracedModule, is_tracing};
pub use version::{cpu_capability, cuda_unavailable_reason, exit, libtorch_version};
pub use winograd::conv2d_winograd;
