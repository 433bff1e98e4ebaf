// Opens libtorch_cuda.so at run time, so that one binary serves machines with and without CUDA.
//
// A linker drops a library none of whose symbols a program names, so naming it on the command line is not enough; and
// libtorch remembers for the life of the process whether CUDA was there at its first question, so the library has to
// be open before the first call of tch.
#include "shim.h"

#include <ATen/Context.h>
#include <dlfcn.h>

#include <string>

namespace {
// Beside libtorch_cpu.so.
std::string cuda_library() {
  Dl_info info;
  auto* symbol = reinterpret_cast<void*>(static_cast<at::Context& (*)()>(&at::globalContext));
  if (dladdr(symbol, &info) == 0) return "libtorch_cuda.so";
  std::string path(info.dli_fname);
  return path.substr(0, path.rfind('/') + 1) + "libtorch_cuda.so";
}

// Made at its first use: `tds_cuda_open` may run before this file's own variables are set up.
std::string& refusal() {
  static std::string text = "the library was not opened yet";
  return text;
}
}  // namespace

// Without a driver nothing is opened, and the machine pays neither the time nor the memory.
SHIM void tds_cuda_open() {
  if (getenv("TCH_DIFFUSERS_NO_CUDA") != nullptr) {
    refusal() = "TCH_DIFFUSERS_NO_CUDA is set";
  } else if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    refusal() = "no NVIDIA driver: libcuda.so.1 cannot be opened";
  } else if (dlopen(cuda_library().c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    refusal() = dlerror();
  } else {
    refusal().clear();
  }
}

// Empty when libtorch_cuda.so is open, else the reason why it is not.
SHIM int tds_cuda_refusal(char** out, char** error) {
  return guarded(error, [&] { *out = strdup(refusal().c_str()); });
}
