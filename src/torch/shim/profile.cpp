// Which operators a thread runs, how often, and how long each takes by itself.
#include "shim.h"

#include <ATen/record_function.h>

#include <chrono>
#include <memory>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

namespace {
using Clock = std::chrono::steady_clock;

struct Totals {
  int64_t calls = 0;
  int64_t self_nanoseconds = 0;
};

struct Running {
  Totals* totals;
  Clock::time_point start;
  int64_t inner_nanoseconds;
};

struct Profile {
  at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
  std::unordered_map<std::string, Totals> operators;
  std::vector<Running> running;
};

thread_local Profile* profile = nullptr;

// TorchScript hands its callbacks on to threads that it starts; what runs there is no part of this thread's time.
std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  if (profile != nullptr) {
    auto& totals = profile->operators[function.name()];
    totals.calls += 1;
    profile->running.push_back({&totals, Clock::now(), 0});
  }
  return nullptr;
}

void end(const at::RecordFunction&, at::ObserverContext*) {
  if (profile == nullptr || profile->running.empty()) return;
  auto running = profile->running.back();
  profile->running.pop_back();
  auto elapsed = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - running.start).count();
  running.totals->self_nanoseconds += elapsed - running.inner_nanoseconds;
  if (!profile->running.empty()) profile->running.back().inner_nanoseconds += elapsed;
}
}  // namespace

// Watches this thread from now on; it has to be stopped there.
SHIM int tds_profile_start(void** out, char** error) {
  return guarded(error, [&] {
    TORCH_CHECK_VALUE(profile == nullptr, "this thread is being profiled already");
    auto made = std::make_unique<Profile>();
    auto callback = at::RecordFunctionCallback(&begin, &end).scopes({at::RecordScope::FUNCTION});
    made->handle = at::addThreadLocalCallback(callback);
    profile = made.get();
    *out = made.release();
  });
}

// One line an operator: calls, nanoseconds, name.
SHIM int tds_profile_read(void* pointer, char** out, char** error) {
  return guarded(error, [&] {
    std::ostringstream lines;
    for (const auto& [name, totals] : static_cast<Profile*>(pointer)->operators) {
      lines << totals.calls << ' ' << totals.self_nanoseconds << ' ' << name << '\n';
    }
    *out = strdup(lines.str().c_str());
  });
}

SHIM void tds_profile_stop(void* pointer) {
  std::unique_ptr<Profile> stopped(static_cast<Profile*>(pointer));
  profile = nullptr;
  char* message = nullptr;
  guarded(&message, [&] { at::removeCallback(stopped->handle); });
  free(message);
}
