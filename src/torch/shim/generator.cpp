// torch.Generator: a stream of random numbers of its own.
#include "shim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/randn.h>

namespace {
at::Generator& generator_at(void* generator) { return *static_cast<at::Generator*>(generator); }
}  // namespace

// `device` is -1 for the CPU, else the index of the CUDA device.
SHIM int tds_generator_new(int device, uint64_t seed, void** out, char** error) {
  return guarded(error, [&] {
    auto generator =
        device < 0 ? at::detail::createCPUGenerator()
                   : at::globalContext().getAcceleratorHooksInterface(at::kCUDA).getNewGenerator(device);
    generator.set_current_seed(seed);
    *out = new at::Generator(generator);
  });
}

SHIM void tds_generator_free(void* generator) { delete static_cast<at::Generator*>(generator); }

SHIM int tds_generator_seed(void* generator, uint64_t seed, char** error) {
  return guarded(error, [&] {
    auto& inner = generator_at(generator);
    std::lock_guard<std::mutex> lock(inner.mutex());
    inner.set_current_seed(seed);
  });
}

SHIM int tds_generator_clone(void* generator, void** out, char** error) {
  return guarded(error, [&] {
    auto& inner = generator_at(generator);
    std::lock_guard<std::mutex> lock(inner.mutex());
    *out = new at::Generator(inner.clone());
  });
}

// A second handle to the generator whose `GeneratorImpl` is given; both draw from one stream.
SHIM int tds_generator_share(void* implementation, void** out, char** error) {
  return guarded(error, [&] {
    auto inner = c10::intrusive_ptr<c10::GeneratorImpl>::reclaim_copy(static_cast<c10::GeneratorImpl*>(implementation));
    *out = new at::Generator(std::move(inner));
  });
}

// -1 for the CPU, else the index of the CUDA device, and the seed last given.
SHIM int tds_generator_about(void* generator, int* device, uint64_t* seed, char** error) {
  return guarded(error, [&] {
    auto& inner = generator_at(generator);
    *device = inner.device().is_cuda() ? inner.device().index() : -1;
    std::lock_guard<std::mutex> lock(inner.mutex());
    *seed = inner.current_seed();
  });
}

// `kind` is an at::ScalarType; the result lies on the generator's device.
SHIM int tds_randn(const int64_t* size, size_t dims, void* generator, int kind, void** out, char** error) {
  return guarded(error, [&] {
    auto& inner = generator_at(generator);
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)).device(inner.device());
    *out = new at::Tensor(at::randn(at::IntArrayRef(size, dims), inner, options));
  });
}
