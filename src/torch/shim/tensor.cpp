// Tensor operations whose arguments tch leaves out.
#include "shim.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/div.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/rsub.h>
#include <ATen/ops/sub.h>

#include <stdexcept>

// `format` is a c10::MemoryFormat: 0 contiguous, 2 channels_last.
SHIM int tds_contiguous(void* tensor, int format, void** out, char** error) {
  return guarded(error, [&] {
    auto contiguous = static_cast<at::Tensor*>(tensor)->contiguous(static_cast<c10::MemoryFormat>(format));
    *out = new at::Tensor(contiguous);
  });
}

// Python's `.to(memory_format=...)`: strides that fit two formats become those of `format`.
SHIM int tds_to_memory_format(void* tensor, int format, void** out, char** error) {
  return guarded(error, [&] {
    auto& source = *static_cast<at::Tensor*>(tensor);
    auto restrided = source.to(source.scalar_type(), false, false, static_cast<c10::MemoryFormat>(format));
    *out = new at::Tensor(restrided);
  });
}

// Whether nobody but the caller can see the tensor's elements: no other handle, no view.
SHIM int tds_is_unshared(void* tensor, int* out, char** error) {
  return guarded(error, [&] {
    auto& inner = *static_cast<at::Tensor*>(tensor);
    *out = inner.use_count() == 1 && inner.has_storage() && inner.storage().use_count() == 1;
  });
}

// `tensor` and a number, `whole` or `real`, by one of the operations below. Python's own numbers are Scalars too.
SHIM int tds_with_number(
    void* tensor, int operation, int is_whole, int64_t whole, double real, void** out, char** error) {
  return guarded(error, [&] {
    auto& self = *static_cast<at::Tensor*>(tensor);
    const at::Scalar scalar = is_whole ? at::Scalar(whole) : at::Scalar(real);
    switch (operation) {
      case 0: *out = new at::Tensor(at::mul(self, scalar)); break;
      case 1: *out = new at::Tensor(at::div(self, scalar)); break;
      case 2: *out = new at::Tensor(at::add(self, scalar)); break;
      case 3: *out = new at::Tensor(at::sub(self, scalar)); break;
      case 4: *out = new at::Tensor(at::rsub(self, scalar)); break;
      case 5: *out = new at::Tensor(self.mul_(scalar)); break;
      case 6: *out = new at::Tensor(self.div_(scalar)); break;
      case 7: *out = new at::Tensor(at::pow(self, scalar)); break;
      case 8: *out = new at::Tensor(at::gt(self, scalar)); break;
      case 9: *out = new at::Tensor(at::ge(self, scalar)); break;
      case 10: *out = new at::Tensor(at::lt(self, scalar)); break;
      case 11: *out = new at::Tensor(at::eq(self, scalar)); break;
      case 12: *out = new at::Tensor(at::clamp_max(self, scalar)); break;
      case 13: *out = new at::Tensor(at::clamp_min(self, scalar)); break;
      default: throw std::invalid_argument("no such operation");
    }
  });
}

SHIM int tds_clamp(void* tensor, double min, double max, void** out, char** error) {
  return guarded(error, [&] {
    auto& self = *static_cast<at::Tensor*>(tensor);
    *out = new at::Tensor(at::clamp(self, at::Scalar(min), at::Scalar(max)));
  });
}

SHIM int tds_baddbmm(
    void* bias, void* left, void* right, double beta, double alpha, void** out, char** error) {
  return guarded(error, [&] {
    auto& self = *static_cast<at::Tensor*>(bias);
    auto& first = *static_cast<at::Tensor*>(left);
    auto& second = *static_cast<at::Tensor*>(right);
    *out = new at::Tensor(at::baddbmm(self, first, second, beta, alpha));
  });
}

SHIM int tds_linspace(double start, double end, int64_t steps, void** out, char** error) {
  return guarded(error, [&] { *out = new at::Tensor(at::linspace(start, end, steps, at::kFloat)); });
}
