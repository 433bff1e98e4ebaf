// Convolutions whose weights stay in oneDNN's own layout between calls.
//
// libtorch lays a weight out anew for each convolution that oneDNN computes, which takes as long as half of the convolution
// itself where channels are many and pixels few. These are the operators that its own graph passes replace convolutions by:
// the same kernels on the same layouts, so the same bits.
#include "shim.h"

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/ConvUtils.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace {
// A tensor as it was: the same one, and not written to since.
class Seen {
 public:
  explicit Seen(const at::Tensor& tensor)
      : tensor_(tensor.getIntrusivePtr()), defined_(tensor.defined()), version_(version(tensor)) {}

  bool is(const at::Tensor& tensor) const {
    if (tensor.defined() != defined_) return false;
    return !defined_ || (tensor_._unsafe_get_target() == tensor.unsafeGetTensorImpl() && version(tensor) == version_);
  }

 private:
  static int64_t version(const at::Tensor& tensor) {
    return !tensor.defined() || tensor.is_inference() ? 0 : tensor._version();
  }

  // Keeps no weight in memory; as long as it is there, no other tensor takes the address.
  c10::weak_intrusive_ptr<c10::TensorImpl, at::UndefinedTensorImpl> tensor_;
  bool defined_;
  int64_t version_;
};

struct Geometry {
  std::vector<int64_t> stride, padding, dilation{1, 1};
};

struct Packed {
  Seen weight, bias;
  Geometry geometry;
  std::vector<int64_t> size;
  bool channels_last;
  int64_t bytes = 0;
  // One of them, or none where oneDNN is not what libtorch convolves by.
  c10::IValue plain;
  at::Tensor last;
};

bool lies_channels_last(const at::Tensor& input, const at::Tensor& weight) {
  constexpr auto kLast = at::MemoryFormat::ChannelsLast;
  return input.suggest_memory_format() == kLast || weight.suggest_memory_format() == kLast;
}

// What has to be seen by others, as a trace or by autograd, is left to the operator they know.
bool is_watched(const at::Tensor& input, const at::Tensor& weight) {
  return torch::jit::tracer::isTracing() || (at::GradMode::is_enabled() && (input.requires_grad() || weight.requires_grad()));
}

bool is_onednns(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias, const Geometry& geometry) {
  if (!input.is_cpu() || !weight.is_cpu() || input.dim() != 4 || weight.dim() != 4) return false;
  if (input.numel() == 0 || input.size(1) != weight.size(1) || input.scalar_type() != weight.scalar_type()) return false;
  const std::vector<c10::SymInt> stride(geometry.stride.begin(), geometry.stride.end());
  const std::vector<c10::SymInt> padding(geometry.padding.begin(), geometry.padding.end());
  const std::vector<c10::SymInt> ones{1, 1}, zeros{0, 0};
  const auto offset = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  return at::native::select_conv_backend(input, weight, offset, stride, padding, ones, false, zeros, 1, std::nullopt) ==
         at::native::ConvBackend::Mkldnn;
}

c10::OperatorHandle operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

c10::IValue optional(const at::Tensor& tensor) { return tensor.defined() ? c10::IValue(tensor) : c10::IValue(); }

Packed* pack(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias, Geometry geometry) {
  const bool last = lies_channels_last(input, weight), suits = is_onednns(input, weight, bias, geometry);
  auto packed = std::make_unique<Packed>(
      Packed{Seen(weight), Seen(bias), std::move(geometry), input.sizes().vec(), last, 0, {}, {}});
  if (!suits) return packed.release();
  packed->bytes = weight.numel() * weight.element_size();
  const auto& [stride, padding, dilation] = packed->geometry;
  const at::NoGradGuard no_grad;
  if (last) {
    packed->last = at::mkldnn_reorder_conv2d_weight(weight.contiguous().to_mkldnn(), padding, stride, dilation, 1, packed->size);
  } else {
    static const auto prepack = operation("mkldnn_prepacked::conv2d_prepack");
    c10::Stack stack{weight, optional(bias), stride, padding, dilation, int64_t{1}, packed->size, "none"};
    prepack.callBoxed(&stack);
    packed->plain = std::move(stack.at(0));
  }
  return packed.release();
}

at::Tensor run(const Packed& packed, const at::Tensor& input, const at::Tensor& bias) {
  const auto& [stride, padding, dilation] = packed.geometry;
  c10::Stack stack;
  if (packed.channels_last) {
    static const auto convolve = operation("mkldnn::_convolution_pointwise");
    const c10::List<std::optional<at::Scalar>> none;
    stack = {input, packed.last, optional(bias), padding, stride, dilation, int64_t{1}, "none", none, c10::IValue()};
    convolve.callBoxed(&stack);
  } else {
    static const auto convolve = operation("mkldnn_prepacked::conv2d_run");
    stack = {input, packed.plain};
    convolve.callBoxed(&stack);
  }
  return std::move(stack.at(0)).toTensor();
}

at::Tensor tensor_or_none(void* tensor) { return tensor == nullptr ? at::Tensor() : *static_cast<at::Tensor*>(tensor); }
}  // namespace

// Packs `weight` for inputs of the shape of `input`; `bias` may be null. `*out` stays null where a trace or autograd watches.
SHIM int tds_conv2d_pack(void* input, void* weight, void* bias, int64_t stride, int64_t padding, void** out, char** error) {
  return guarded(error, [&] {
    const auto &pictures = *static_cast<at::Tensor*>(input), &kernels = *static_cast<at::Tensor*>(weight);
    *out = is_watched(pictures, kernels)
               ? nullptr
               : pack(pictures, kernels, tensor_or_none(bias), Geometry{{stride, stride}, {padding, padding}});
  });
}

// Whether these tensors are those, or of the shape of those, that were packed for.
SHIM int tds_conv2d_packed_fits(void* packed, void* input, void* weight, void* bias, int* out, char** error) {
  return guarded(error, [&] {
    const auto& known = *static_cast<Packed*>(packed);
    const auto &pictures = *static_cast<at::Tensor*>(input), &kernels = *static_cast<at::Tensor*>(weight);
    *out = known.weight.is(kernels) && known.bias.is(tensor_or_none(bias)) && pictures.sizes() == known.size &&
           lies_channels_last(pictures, kernels) == known.channels_last && pictures.is_cpu() &&
           pictures.scalar_type() == kernels.scalar_type() && !is_watched(pictures, kernels);
  });
}

// The convolution of an input that fits; `*out` stays null where libtorch convolves by something else than oneDNN.
SHIM int tds_conv2d_packed_run(void* packed, void* input, void* bias, void** out, char** error) {
  return guarded(error, [&] {
    const auto& known = *static_cast<Packed*>(packed);
    *out = known.bytes == 0 ? nullptr
                            : new at::Tensor(run(known, *static_cast<at::Tensor*>(input), tensor_or_none(bias)));
  });
}

SHIM int64_t tds_conv2d_packed_bytes(void* packed) { return static_cast<Packed*>(packed)->bytes; }

SHIM void tds_conv2d_packed_free(void* packed) { delete static_cast<Packed*>(packed); }
