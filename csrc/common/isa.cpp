// Selects the instruction set of the CPU kernels at run time; see isa() in kernels.h.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace danet {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa select_isa() {
  Isa best = best_isa();
  const char* requested = std::getenv("DANET_CPU_CAPABILITY");
  if (requested == nullptr) return best;
  if (std::strcmp(requested, "default") == 0) return Isa::kBaseline;
  if (std::strcmp(requested, "avx2") == 0 && best == Isa::kAvx512) return Isa::kAvx2;
  return best;
}

}  // namespace

Isa isa() {
  static const Isa selected = select_isa();
  return selected;
}

}  // namespace danet
