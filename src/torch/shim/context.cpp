// What this libtorch is and what it runs on.
#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/Context.h>
#include <torch/headeronly/version.h>

SHIM int tds_libtorch_version(char** out, char** error) {
  return guarded(error, [&] { *out = strdup(TORCH_VERSION); });
}

// "AVX2", "AVX512", "DEFAULT" ...: the widest kernels that libtorch picks on this processor.
SHIM int tds_cpu_capability(char** out, char** error) {
  return guarded(error, [&] { *out = strdup(at::get_cpu_capability().c_str()); });
}
