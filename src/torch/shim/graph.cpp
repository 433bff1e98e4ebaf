// CUDA graphs, without a header of CUDA's and without linking libtorch_cuda: its class is reached by the names of its
// members, which torch-sys ties to one version of libtorch as it does everything else.
#include "shim.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <utility>

namespace {
using PoolId = std::pair<unsigned long long, unsigned long long>;

// at::cuda::CUDAGraph takes 104 bytes in libtorch 2.11.
constexpr size_t kBytes = 4096;
constexpr std::align_val_t kAlignment{64};

// Of cudaStreamCaptureMode: what other threads do meanwhile does not disturb a capture.
constexpr int kThreadLocal = 1;
// Of cudaStreamCaptureStatus.
constexpr int kActive = 1;
constexpr int kInvalidated = 2;

template <class Function>
Function symbol(const char* name) {
  auto* found = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  TORCH_CHECK_NOT_IMPLEMENTED(found != nullptr, "CUDA graphs need libtorch's CUDA library: there is no ", name);
  return found;
}

struct Members {
  void (*construct)(void*, bool) = symbol<decltype(construct)>("_ZN2at4cuda9CUDAGraphC1Eb");
  void (*destruct)(void*) = symbol<decltype(destruct)>("_ZN2at4cuda9CUDAGraphD1Ev");
  void (*begin)(void*, PoolId, int) =
      symbol<decltype(begin)>("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
  void (*end)(void*) = symbol<decltype(end)>("_ZN2at4cuda9CUDAGraph11capture_endEv");
  void (*replay)(void*) = symbol<decltype(replay)>("_ZN2at4cuda9CUDAGraph6replayEv");
  void (*reset)(void*) = symbol<decltype(reset)>("_ZN2at4cuda9CUDAGraph5resetEv");
  void (*draw_from)(void*, const at::Generator&) =
      symbol<decltype(draw_from)>("_ZN2at4cuda9CUDAGraph24register_generator_stateERKNS_9GeneratorE");
  PoolId (*pool)() = symbol<decltype(pool)>("_ZN2at4cuda17graph_pool_handleEv");
};

const Members& members() {
  static const Members found;
  return found;
}

struct Graph {
  void* memory;
  c10::Device device;
  // Whether the allocator refers to it, and it may not be freed.
  bool referred = false;
};

Graph& graph_at(void* graph) { return *static_cast<Graph*>(graph); }

class Silence final : public c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

void* current_stream(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

void check(int status, const char* what) {
  if (status == 0) return;
  std::string reason = symbol<const char* (*)(int)>("cudaGetErrorString")(status);
  TORCH_CHECK(false, what, ": ", reason);
}
}  // namespace

// Writes the two numbers of a pool of memory that no graph has yet.
SHIM int tds_graph_pool(uint64_t* pool, char** error) {
  return guarded(error, [&] { std::tie(pool[0], pool[1]) = members().pool(); });
}

SHIM int tds_graph_new(int16_t index, void** out, char** error) {
  return guarded(error, [&] {
    c10::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
    c10::DeviceGuard guard(device);
    auto freed = [](void* memory) { ::operator delete(memory, kAlignment); };
    std::unique_ptr<void, decltype(freed)> memory(::operator new(kBytes, kAlignment), freed);
    members().construct(memory.get(), /*keep_graph=*/false);
    *out = new Graph{memory.release(), device};
  });
}

SHIM void tds_graph_free(void* pointer) {
  std::unique_ptr<Graph> graph(static_cast<Graph*>(pointer));
  if (graph->referred) return;
  members().destruct(graph->memory);
  ::operator delete(graph->memory, kAlignment);
}

// From here on what the current stream is given is recorded. It may not be its device's default stream.
SHIM int tds_graph_begin(void* pointer, const uint64_t* pool, char** error) {
  return guarded(error, [&] {
    auto& graph = graph_at(pointer);
    c10::DeviceGuard guard(graph.device);
    members().draw_from(graph.memory, at::globalContext().defaultGenerator(graph.device));
    graph.referred = true;
    members().begin(graph.memory, PoolId{pool[0], pool[1]}, kThreadLocal);
  });
}

SHIM int tds_graph_end(void* pointer, char** error) {
  return guarded(error, [&] {
    auto& graph = graph_at(pointer);
    c10::DeviceGuard guard(graph.device);
    members().end(graph.memory);
    graph.referred = false;
  });
}

// Ends a capture that failed, on its stream, so that the stream and the allocator go on as before it.
//
// libtorch tells the allocator that a capture is over only where CUDA ends it well. A capture that CUDA gave up is ended
// here, and an empty one in its place is what libtorch sees end.
SHIM int tds_graph_abandon(void* pointer, char** error) {
  return guarded(error, [&] {
    auto& graph = graph_at(pointer);
    c10::DeviceGuard guard(graph.device);
    Silence silence;
    c10::WarningUtils::WarningHandlerGuard silent(&silence);
    auto* stream = current_stream(graph.device);
    auto forget_error = symbol<int (*)()>("cudaGetLastError");
    forget_error();
    int status = 0;
    check(symbol<int (*)(void*, int*)>("cudaStreamIsCapturing")(stream, &status), "a capture cannot be ended");
    if (status == kInvalidated) {
      void* broken = nullptr;
      symbol<int (*)(void*, void**)>("cudaStreamEndCapture")(stream, &broken);
      if (broken != nullptr) symbol<int (*)(void*)>("cudaGraphDestroy")(broken);
      forget_error();
    }
    if (status != kActive) {
      check(symbol<int (*)(void*, int)>("cudaStreamBeginCapture")(stream, kThreadLocal), "a capture cannot be ended");
    }
    members().end(graph.memory);
    graph.referred = false;
    members().reset(graph.memory);
  });
}

SHIM int tds_graph_replay(void* pointer, char** error) {
  return guarded(error, [&] { members().replay(graph_at(pointer).memory); });
}
