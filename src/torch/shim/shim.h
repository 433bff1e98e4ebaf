// C ABI over the parts of libtorch that tch does not reach.
//
// Every function returns a status and, on failure, writes a message made by strdup to *error:
// no C++ exception and no thread-local "last error" crosses the border.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define SHIM extern "C" __attribute__((visibility("default")))

enum Status : int { kOk = 0, kError = 1, kOutOfMemory = 2, kNotImplemented = 3, kValue = 4 };

template <class Body>
static int guarded(char** error, Body&& body) noexcept {
  try {
    body();
    return kOk;
  } catch (const c10::OutOfMemoryError& e) {
    *error = strdup(e.what_without_backtrace());
    return kOutOfMemory;
  } catch (const c10::NotImplementedError& e) {
    *error = strdup(e.what_without_backtrace());
    return kNotImplemented;
  } catch (const c10::ValueError& e) {
    *error = strdup(e.what_without_backtrace());
    return kValue;
  } catch (const c10::Error& e) {
    *error = strdup(e.what_without_backtrace());
    return kError;
  } catch (const std::bad_alloc&) {
    *error = strdup("the host is out of memory");
    return kOutOfMemory;
  } catch (const std::exception& e) {
    *error = strdup(e.what());
    return kError;
  } catch (...) {
    *error = strdup("an exception of unknown type");
    return kError;
  }
}
