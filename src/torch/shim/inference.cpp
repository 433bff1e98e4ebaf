// What a forward that records no gradients can leave out, for the thread that is in one: autograd's part of every dispatch,
// and the system's allocator.
#include "shim.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/GradMode.h>
#include <c10/core/alignment.h>

#include <atomic>
#include <memory>
#include <optional>

namespace {
using AllocateAligned = void* (*)(size_t size, size_t alignment);
using Free = void (*)(void*);
using Owns = bool (*)(const void*);

thread_local int depth = 0;

// In bytes. mimalloc reserves any size, and the kernel ends the process once the pages are written to; libtorch's allocator
// asks in a way that the kernel refuses what memory cannot hold.
constexpr size_t kLarge = size_t{1} << 30;

// libtorch's own allocator, but for threads within a scope. What is allocated so may be freed by any thread, at any time.
struct ScopedAllocator final : c10::Allocator {
  ScopedAllocator(c10::Allocator* own, AllocateAligned allocate_aligned, Free free, Owns owns)
      : own(own), allocate_aligned(allocate_aligned), free(free), owns(owns) {}

  c10::DataPtr allocate(size_t size) override {
    // A profiler counts what libtorch's allocator reports, and a lack of memory is reported by that as well.
    if (depth == 0 || size == 0 || size >= kLarge || c10::memoryProfilingEnabled()) return own->allocate(size);
    void* data = allocate_aligned(size, c10::gAlignment);
    if (data == nullptr) return own->allocate(size);
    return {data, data, free, c10::Device(c10::DeviceType::CPU)};
  }

  // oneDNN's operators, such as GELU, allocate and free by bare pointers.
  c10::DeleterFnPtr raw_deleter() const override { return free_raw; }

  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  static void free_raw(void* data);

  c10::Allocator* own;
  AllocateAligned allocate_aligned;
  Free free;
  Owns owns;
};

std::atomic<const ScopedAllocator*> installed{nullptr};

void ScopedAllocator::free_raw(void* data) {
  if (data == nullptr) return;
  const ScopedAllocator* scoped = installed.load();
  if (scoped->owns(data)) {
    scoped->free(data);
  } else {
    scoped->own->raw_deallocate(data);
  }
}

struct Scope {
  // With gradients, what is recorded is recorded as always.
  Scope() {
    depth += 1;
    if (!c10::GradMode::is_enabled()) below_autograd.emplace();
  }
  ~Scope() { depth -= 1; }

  std::optional<at::AutoDispatchBelowADInplaceOrView> below_autograd;
};
}  // namespace

// Has threads within a scope allocate by these functions; the first call counts.
SHIM int tds_scoped_allocator_install(AllocateAligned allocate_aligned, Free free, Owns owns, char** error) {
  return guarded(error, [&] {
    auto scoped = std::make_unique<ScopedAllocator>(c10::GetCPUAllocator(), allocate_aligned, free, owns);
    const ScopedAllocator* none = nullptr;
    if (!installed.compare_exchange_strong(none, scoped.get())) return;
    // For good: tensors hold on to their allocator.
    c10::SetCPUAllocator(scoped.release(), /*priority=*/1);
  });
}

SHIM void* tds_inference_enter() { return new Scope(); }

SHIM void tds_inference_leave(void* scope) { delete static_cast<Scope*>(scope); }
