// The C interface of the emulator, which emulated.py calls by ctypes.
#include <dlfcn.h>

#include <string>

#include "checker.h"
#include "emulation.h"

#define EMULATION_EXPORT extern "C" __attribute__((visibility("default")))

EMULATION_EXPORT void emulation_set_seed(uint64_t seed) { emulation::settings.seed = seed; }
EMULATION_EXPORT void emulation_set_shared_limit(uint64_t bytes) { emulation::settings.shared_limit = bytes; }
EMULATION_EXPORT void emulation_set_multiprocessors(int count) { emulation::settings.multiprocessors = count; }
EMULATION_EXPORT void emulation_set_observer(emulation::Observer observer) { emulation::settings.observer = observer; }
// The offset of a kernel in this library, by which its symbol can be found.
EMULATION_EXPORT uint64_t emulation_offset(const void* kernel) {
  Dl_info info;
  return dladdr(kernel, &info) ? uint64_t(static_cast<const char*>(kernel) - static_cast<char*>(info.dli_fbase)) : 0;
}
EMULATION_EXPORT uint64_t emulation_launches() { return emulation::launches(); }
// The checker's reports since the last call, one per line; valid until the next call.
EMULATION_EXPORT const char* emulation_take_reports() {
  static std::string reports;
  reports = emulation::take_reports();
  return reports.c_str();
}
