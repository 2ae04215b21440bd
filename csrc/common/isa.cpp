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

Isa chosen_isa() {
  Isa best = best_isa();
  const char* asked = std::getenv("DANET_CPU_CAPABILITY");
  if (asked == nullptr) return best;
  if (std::strcmp(asked, "default") == 0) return Isa::kBaseline;
  if (std::strcmp(asked, "avx2") == 0 && best == Isa::kAvx512) return Isa::kAvx2;
  return best;
}

}  // namespace

Isa isa() {
  static const Isa chosen = chosen_isa();
  return chosen;
}

}  // namespace danet
