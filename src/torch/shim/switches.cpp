// Switches of the whole process: precision, determinism, threads, and the kernels of attention.
#include "shim.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <cfloat>
#include <optional>
#include <string>
#include <vector>

namespace {
// The order of `Switch` in switches.rs.
enum Switch : int {
  kMatmulTf32,
  kCudnnTf32,
  kCudnnBenchmark,
  kCudnnDeterministic,
  kDeterministicAlgorithms,
  kFp16Reduction,
  kBf16Reduction,
  kFp16Accumulation,
  kFlushDenormal,
};

// libtorch has no getter, and the processor's flag has another name on each: half of the smallest normal number says it.
bool flushes_denormals() {
  volatile float smallest = FLT_MIN;
  volatile float half = smallest * 0.5f;
  return half == 0.0f;
}

bool allows(at::CuBLASReductionOption option) {
  return option == at::CuBLASReductionOption::AllowReducedPrecisionWithSplitK;
}

// What libtorch warns about while it lives: the reasons against each kernel.
class Collector final : public c10::WarningHandler {
 public:
  explicit Collector(std::string& text) : text_(text) {}
  void process(const c10::Warning& warning) override {
    auto message = warning.msg();
    message = message.substr(0, message.find(" (Triggered internally"));
    text_ += "\n" + message;
  }

 private:
  std::string& text_;
};
}  // namespace

SHIM int tds_switch_get(int which, int* out, char** error) {
  return guarded(error, [&] {
    auto& context = at::globalContext();
    switch (which) {
      case kMatmulTf32: *out = context.allowTF32CuBLAS(); break;
      case kCudnnTf32: *out = context.allowTF32CuDNN(); break;
      case kCudnnBenchmark: *out = context.benchmarkCuDNN(); break;
      case kCudnnDeterministic: *out = context.deterministicCuDNN(); break;
      case kDeterministicAlgorithms: *out = context.deterministicAlgorithms(); break;
      case kFp16Reduction: *out = allows(context.allowFP16ReductionCuBLAS()); break;
      case kBf16Reduction: *out = allows(context.allowBF16ReductionCuBLAS()); break;
      case kFp16Accumulation: *out = context.allowFP16AccumulationCuBLAS(); break;
      case kFlushDenormal: *out = flushes_denormals(); break;
      default: TORCH_CHECK_VALUE(false, "there is no switch ", which);
    }
  });
}

SHIM int tds_switch_set(int which, int on, char** error) {
  return guarded(error, [&] {
    auto& context = at::globalContext();
    switch (which) {
      case kMatmulTf32: context.setAllowTF32CuBLAS(on); break;
      case kCudnnTf32: context.setAllowTF32CuDNN(on); break;
      case kCudnnBenchmark: context.setBenchmarkCuDNN(on); break;
      case kCudnnDeterministic: context.setDeterministicCuDNN(on); break;
      case kDeterministicAlgorithms: context.setDeterministicAlgorithms(on, /*warn_only=*/false); break;
      case kFp16Reduction: context.setAllowFP16ReductionCuBLAS(on); break;
      case kBf16Reduction: context.setAllowBF16ReductionCuBLAS(on); break;
      case kFp16Accumulation: context.setAllowFP16AccumulationCuBLAS(on); break;
      case kFlushDenormal:
        TORCH_CHECK_NOT_IMPLEMENTED(at::Context::setFlushDenormal(on), "this processor cannot flush denormal numbers");
        break;
      default: TORCH_CHECK_VALUE(false, "there is no switch ", which);
    }
  });
}

// 0 highest, 1 high, 2 medium.
SHIM int tds_matmul_precision_get(int* out, char** error) {
  return guarded(error, [&] { *out = static_cast<int>(at::globalContext().float32MatmulPrecision()); });
}

SHIM int tds_matmul_precision_set(int precision, char** error) {
  static const char* names[] = {"highest", "high", "medium"};
  return guarded(error, [&] {
    TORCH_CHECK_VALUE(precision >= 0 && precision < 3, "there is no precision ", precision);
    at::globalContext().setFloat32MatmulPrecision(names[precision]);
  });
}

SHIM int tds_threads_get(int interop, int* out, char** error) {
  return guarded(error, [&] { *out = interop ? at::get_num_interop_threads() : at::get_num_threads(); });
}

SHIM int tds_threads_set(int interop, int threads, char** error) {
  return guarded(error, [&] { interop ? at::set_num_interop_threads(threads) : at::set_num_threads(threads); });
}

// `backend` is an at::SDPBackend.
SHIM int tds_sdp_get(int backend, int* out, char** error) {
  return guarded(error, [&] {
    auto& context = at::globalContext();
    switch (static_cast<at::SDPBackend>(backend)) {
      case at::SDPBackend::math: *out = context.userEnabledMathSDP(); break;
      case at::SDPBackend::flash_attention: *out = context.userEnabledFlashSDP(); break;
      case at::SDPBackend::efficient_attention: *out = context.userEnabledMemEfficientSDP(); break;
      case at::SDPBackend::cudnn_attention: *out = context.userEnabledCuDNNSDP(); break;
      case at::SDPBackend::overrideable: *out = context.userEnabledOverrideableSDP(); break;
      default: TORCH_CHECK_VALUE(false, "there is no attention backend ", backend);
    }
  });
}

SHIM int tds_sdp_set(int backend, int on, char** error) {
  return guarded(error, [&] {
    auto& context = at::globalContext();
    switch (static_cast<at::SDPBackend>(backend)) {
      case at::SDPBackend::math: context.setSDPUseMath(on); break;
      case at::SDPBackend::flash_attention: context.setSDPUseFlash(on); break;
      case at::SDPBackend::efficient_attention: context.setSDPUseMemEfficient(on); break;
      case at::SDPBackend::cudnn_attention: context.setSDPUseCuDNN(on); break;
      case at::SDPBackend::overrideable: context.setSDPUseOverrideable(on); break;
      default: TORCH_CHECK_VALUE(false, "there is no attention backend ", backend);
    }
  });
}

// As many as `BACKENDS` in ffi/switches.rs.
static_assert(at::num_sdp_backends == 5);

// `order` has room for at::num_sdp_backends numbers.
SHIM int tds_sdp_order_get(int64_t* order, char** error) {
  return guarded(error, [&] {
    for (auto backend : at::globalContext().sDPPriorityOrder()) *order++ = static_cast<int64_t>(backend);
  });
}

// libtorch takes any numbers here: the caller passes a permutation.
SHIM int tds_sdp_order_set(const int64_t* order, char** error) {
  return guarded(error, [&] {
    at::globalContext().setSDPPriorityOrder(std::vector<int64_t>(order, order + at::num_sdp_backends));
  });
}

// Attention whose error says what each kernel lacks. `mask` may be null.
SHIM int tds_sdp_attention(void* query, void* key, void* value, void* mask, void** out, char** error) {
  std::string reasons;
  int status = guarded(error, [&] {
    Collector collector(reasons);
    c10::WarningUtils::WarningHandlerGuard guard(&collector);
    auto tensor = [](void* pointer) -> at::Tensor& { return *static_cast<at::Tensor*>(pointer); };
    std::optional<at::Tensor> bias;
    if (mask != nullptr) bias = tensor(mask);
    *out = new at::Tensor(at::scaled_dot_product_attention(tensor(query), tensor(key), tensor(value), bias));
  });
  if (status != kOk && !reasons.empty() && *error != nullptr) {
    auto* whole = strdup((*error + reasons).c_str());
    free(*error);
    *error = whole;
  }
  return status;
}
