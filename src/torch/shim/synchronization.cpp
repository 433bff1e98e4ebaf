// Counts how often the host waits for a CUDA device, by the warnings of `torch.cuda.set_sync_debug_mode("warn")`.
#include "shim.h"

#include <dlfcn.h>

#include <memory>
#include <string>

namespace {
// c10::cuda::SyncDebugMode and the one member of c10::cuda::WarningState, which CUDA's own headers are needed to name.
enum SyncDebugMode : int { kDisabled = 0, kWarn = 1 };

SyncDebugMode& sync_debug_mode() {
  auto* state = dlsym(RTLD_DEFAULT, "_ZZN3c104cuda13warning_stateEvE14warning_state_");
  TORCH_CHECK_NOT_IMPLEMENTED(state != nullptr, "libtorch's CUDA library is not open: there is nothing to wait for");
  return *static_cast<SyncDebugMode*>(state);
}

class Counter final : public c10::WarningHandler {
 public:
  explicit Counter(c10::WarningHandler* outer) : outer_(outer) {}

  void process(const c10::Warning& warning) override {
    if (warning.msg().find("synchronizing CUDA operation") != std::string::npos) {
      ++count;
    } else {
      outer_->process(warning);
    }
  }

  int64_t count = 0;

 private:
  c10::WarningHandler* outer_;
};

struct Watch {
  Watch() : mode(sync_debug_mode()), before(mode), counter(c10::WarningUtils::get_warning_handler()), guard(&counter) {
    mode = kWarn;
  }
  ~Watch() { mode = before; }

  SyncDebugMode& mode;
  SyncDebugMode before;
  Counter counter;
  c10::WarningUtils::WarningHandlerGuard guard;
};
}  // namespace

// The mode is the process's, the counter the thread's: it has to be stopped there.
SHIM int tds_synchronizations_start(void** out, char** error) {
  return guarded(error, [&] { *out = std::make_unique<Watch>().release(); });
}

SHIM void tds_synchronizations_stop(void* pointer, int64_t* count) {
  std::unique_ptr<Watch> watch(static_cast<Watch*>(pointer));
  *count = watch->counter.count;
}
