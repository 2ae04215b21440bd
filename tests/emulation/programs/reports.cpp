// Reads the settings of a program that `python -m emulation.program` runs, and prints the checker's reports at its end.
#include <cstdio>
#include <cstdlib>

#include "checker.h"
#include "emulation.h"

namespace {

struct Reports {
  Reports() {
    if (const char* seed = std::getenv("EMULATION_SEED")) emulation::settings.seed = std::strtoull(seed, nullptr, 10);
    std::atexit([] {
      const auto reports = emulation::reports();
      for (const auto& report : reports) std::fprintf(stderr, "report: %s\n", report.text().c_str());
      std::fflush(nullptr);
      if (!reports.empty()) std::_Exit(1);
    });
  }
} const reports;

}  // namespace
