// The C interface of the emulator, which emulated.py calls by ctypes.
#include <string>

#include "checker.h"
#include "emulation.h"

#define EMULATION_EXPORT extern "C" __attribute__((visibility("default")))

EMULATION_EXPORT void emulation_set_seed(uint64_t seed) { emulation::settings.seed = seed; }
EMULATION_EXPORT void emulation_set_shared_limit(uint64_t bytes) { emulation::settings.shared_limit = bytes; }
EMULATION_EXPORT uint64_t emulation_launches() { return emulation::launches(); }
// The checker's reports since the last call, one per line; valid until the next call.
EMULATION_EXPORT const char* emulation_take_reports() {
  static std::string reports;
  reports = emulation::take_reports();
  return reports.c_str();
}
