// Streams, events and pinned host memory, through interfaces that every device implements: nothing here names CUDA's
// library at link time.
#include "shim.h"

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

struct TdsStream {
  int64_t id;
  int16_t index;
  int16_t type;
};

namespace {
c10::Stream unpacked(TdsStream stream) {
  return c10::Stream::unpack3(stream.id, static_cast<c10::DeviceIndex>(stream.index),
                              static_cast<c10::DeviceType>(stream.type));
}

TdsStream packed(c10::Stream stream) {
  auto data = stream.pack3();
  return {data.stream_id, static_cast<int16_t>(data.device_index), static_cast<int16_t>(data.device_type)};
}

c10::impl::VirtualGuardImpl guard_of(int16_t type) {
  return c10::impl::VirtualGuardImpl(static_cast<c10::DeviceType>(type));
}

c10::Event& event_at(void* event) { return *static_cast<c10::Event*>(event); }
at::Tensor& tensor_at(void* tensor) { return *static_cast<at::Tensor*>(tensor); }

// libcudart comes with libtorch_cuda, which is opened at run time if at all.
template <class Function>
Function cudart(const char* name) {
  auto* symbol = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  TORCH_CHECK_NOT_IMPLEMENTED(symbol != nullptr, "host memory cannot be pinned: libcudart lacks ", name);
  return symbol;
}
}  // namespace

// From the pool of the device of type `type` and number `index`.
SHIM int tds_stream_from_pool(int16_t type, int16_t index, TdsStream* out, char** error) {
  return guarded(error, [&] {
    c10::Device device(static_cast<c10::DeviceType>(type), static_cast<c10::DeviceIndex>(index));
    *out = packed(guard_of(type).getStreamFromGlobalPool(device, false));
  });
}

SHIM int tds_stream_current(int16_t type, int16_t index, TdsStream* out, char** error) {
  return guarded(error, [&] {
    c10::Device device(static_cast<c10::DeviceType>(type), static_cast<c10::DeviceIndex>(index));
    *out = packed(guard_of(type).getStream(device));
  });
}

// Makes `stream` its device's current one in this thread, and writes the one it was before to `out`.
SHIM int tds_stream_exchange(TdsStream stream, TdsStream* out, char** error) {
  return guarded(error, [&] { *out = packed(guard_of(stream.type).exchangeStream(unpacked(stream))); });
}

SHIM int tds_stream_synchronize(TdsStream stream, char** error) {
  return guarded(error, [&] { unpacked(stream).synchronize(); });
}

SHIM int tds_stream_query(TdsStream stream, int* out, char** error) {
  return guarded(error, [&] { *out = unpacked(stream).query(); });
}

// Not for measuring time: such events cost less.
SHIM int tds_event_new(int16_t type, void** out, char** error) {
  return guarded(error, [&] {
    guard_of(type);
    *out = new c10::Event(static_cast<c10::DeviceType>(type), c10::EventFlag::PYTORCH_DEFAULT);
  });
}

SHIM void tds_event_free(void* event) { delete static_cast<c10::Event*>(event); }

SHIM int tds_event_record(void* event, TdsStream stream, char** error) {
  return guarded(error, [&] { event_at(event).record(unpacked(stream)); });
}

SHIM int tds_event_block(void* event, TdsStream stream, char** error) {
  return guarded(error, [&] { event_at(event).block(unpacked(stream)); });
}

SHIM int tds_event_synchronize(void* event, char** error) {
  return guarded(error, [&] { event_at(event).synchronize(); });
}

SHIM int tds_event_query(void* event, int* out, char** error) {
  return guarded(error, [&] { *out = event_at(event).query(); });
}

SHIM int tds_record_stream(void* tensor, TdsStream stream, char** error) {
  return guarded(error, [&] { tensor_at(tensor).record_stream(unpacked(stream)); });
}

SHIM int tds_copy(void* to, void* from, int non_blocking, char** error) {
  return guarded(error, [&] { tensor_at(to).copy_(tensor_at(from), non_blocking != 0); });
}

// Keeps the operating system from moving the pages of `bytes` bytes at `address`, which lets a device read them itself.
SHIM int tds_pin(void* address, size_t bytes, char** error) {
  return guarded(error, [&] {
    constexpr unsigned kPortable = 1;
    constexpr int kMemoryAllocation = 2;
    auto status = cudart<int (*)(void*, size_t, unsigned)>("cudaHostRegister")(address, bytes, kPortable);
    if (status == 0) return;
    // The next call of libtorch would report it otherwise.
    cudart<int (*)()>("cudaGetLastError")();
    std::string reason = cudart<const char* (*)(int)>("cudaGetErrorString")(status);
    TORCH_CHECK_WITH(OutOfMemoryError, status != kMemoryAllocation, "no room to pin ", bytes, " bytes: ", reason);
    TORCH_CHECK(false, bytes, " bytes cannot be pinned: ", reason);
  });
}

SHIM int tds_unpin(void* address, char** error) {
  return guarded(error, [&] {
    auto status = cudart<int (*)(void*)>("cudaHostUnregister")(address);
    if (status == 0) return;
    cudart<int (*)()>("cudaGetLastError")();
    TORCH_CHECK(false, "memory cannot be unpinned: ", cudart<const char* (*)(int)>("cudaGetErrorString")(status));
  });
}

// Gives freed memory back to the operating system, where the allocator keeps it until it is told.
SHIM void tds_trim() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}
