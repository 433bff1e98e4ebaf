// How much memory libtorch's allocators hand out: on the host by listening to them, on a device by their own statistics.
#include "shim.h"

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/profiler/orchestration/observer.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {
namespace profiler = torch::profiler::impl;
constexpr auto kSlot = c10::DebugInfoKind::PROFILER_STATE;

struct Tracker {
  int64_t base;
  int64_t peak;
};

// What a thread allocated since its first tracker began. libtorch takes whatever lies in this slot for a profiler, so it is
// one: a profiler that is switched off, but for its interest in memory.
struct Listener : profiler::ProfilerStateBase {
  explicit Listener(c10::MemoryReportingInfoBase* outer)
      : ProfilerStateBase(profiler::ProfilerConfig(profiler::ProfilerState::Disabled)), outer(outer) {}

  profiler::ActiveProfilerType profilerType() override { return profiler::ActiveProfilerType::NONE; }
  bool memoryProfilingEnabled() const override { return true; }

  void reportMemoryUsage(void* pointer, int64_t size, size_t allocated, size_t reserved, c10::Device device) override {
    if (outer != nullptr && outer->memoryProfilingEnabled()) {
      outer->reportMemoryUsage(pointer, size, allocated, reserved, device);
    }
    if (!device.is_cpu()) return;
    std::lock_guard<std::mutex> lock(mutex);
    if (size > 0) {
      live[pointer] = size;
      current += size;
      for (auto* tracker : trackers) tracker->peak = std::max(tracker->peak, current);
    } else if (auto found = live.find(pointer); found != live.end()) {
      current -= found->second;
      live.erase(found);
    }
  }

  c10::MemoryReportingInfoBase* outer;
  std::mutex mutex;
  std::unordered_map<void*, int64_t> live;
  std::vector<Tracker*> trackers;
  int64_t current = 0;
};

thread_local std::shared_ptr<Listener> listener;
}  // namespace

// Counts what this thread allocates on the host from now on. The tracker stays on its thread.
SHIM int tds_memory_track(void** out, char** error) {
  return guarded(error, [&] {
    if (!listener) {
      auto* outer = static_cast<c10::MemoryReportingInfoBase*>(c10::ThreadLocalDebugInfo::get(kSlot));
      auto made = std::make_shared<Listener>(outer);
      c10::ThreadLocalDebugInfo::_push(kSlot, made);
      listener = made;
    }
    std::lock_guard<std::mutex> lock(listener->mutex);
    auto tracker = std::make_unique<Tracker>(Tracker{listener->current, listener->current});
    listener->trackers.push_back(tracker.get());
    *out = tracker.release();
  });
}

SHIM void tds_memory_untrack(void* pointer) {
  std::unique_ptr<Tracker> tracker(static_cast<Tracker*>(pointer));
  if (!listener) return;
  auto& trackers = listener->trackers;
  {
    std::lock_guard<std::mutex> lock(listener->mutex);
    trackers.erase(std::remove(trackers.begin(), trackers.end(), tracker.get()), trackers.end());
    if (!trackers.empty()) return;
  }
  char* message = nullptr;
  guarded(&message, [] { c10::ThreadLocalDebugInfo::_pop(kSlot); });
  free(message);
  listener.reset();
}

// Bytes above what there was when the tracker began: now, and at most since then or since the peak was reset.
SHIM void tds_memory_tracked(void* pointer, int64_t* current, int64_t* peak) {
  auto* tracker = static_cast<Tracker*>(pointer);
  std::lock_guard<std::mutex> lock(listener->mutex);
  *current = listener->current - tracker->base;
  *peak = tracker->peak - tracker->base;
}

SHIM void tds_memory_reset_peak(void* pointer) {
  std::lock_guard<std::mutex> lock(listener->mutex);
  static_cast<Tracker*>(pointer)->peak = listener->current;
}

// Bytes that tensors of the CUDA device `index` take, now and at most since the peak was reset.
SHIM int tds_cuda_memory(int index, int64_t* allocated, int64_t* peak, char** error) {
  return guarded(error, [&] {
    auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(index));
    const auto& bytes = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
    *allocated = bytes.current;
    *peak = bytes.peak;
  });
}

SHIM int tds_cuda_reset_peak_memory(int index, char** error) {
  return guarded(error, [&] {
    c10::getDeviceAllocator(c10::kCUDA)->resetPeakStats(static_cast<c10::DeviceIndex>(index));
  });
}

SHIM int tds_is_pinned(void* tensor, int* out, char** error) {
  return guarded(error, [&] { *out = static_cast<at::Tensor*>(tensor)->is_pinned(); });
}
