// Tensor operations whose arguments tch leaves out.
#include "shim.h"

#include <ATen/core/Tensor.h>

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
