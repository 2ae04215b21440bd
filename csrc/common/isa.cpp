// Selects the instruction set and the matrix unit of the CPU kernels at run time; see isa() and matrix_unit() in
// kernels.h.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace danet {
namespace {

bool is_requested(const char* name) {
  const char* requested = std::getenv("DANET_CPU_CAPABILITY");
  return requested != nullptr && std::strcmp(requested, name) == 0;
}

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
#if defined(DANET_ONLY_ISA)  // the name of the only instruction set that is built
  [[maybe_unused]] constexpr Isa baseline = Isa::kBaseline, avx2 = Isa::kAvx2, avx512 = Isa::kAvx512;
  return DANET_ONLY_ISA;
#endif
  const Isa best = best_isa();
  if (is_requested("default")) return Isa::kBaseline;
  if (is_requested("avx2") && best == Isa::kAvx512) return Isa::kAvx2;
  return best;
}

#if defined(DANET_HAS_AMX)
// Whether the processor has AMX for bfloat16, and AVX512_FP16 if the kernels for AMX are compiled with it. Without it,
// as in a virtual machine that hides it, the kernels for AVX512_BF16 are used. Linux lets a process use the tile
// registers only after it asked for them.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kBfloat16Bit = 1u << 22, kTileBit = 1u << 24;  // of EDX, leaf 7 of CPUID
  constexpr long kRequestPermission = 0x1023, kTileData = 18;       // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kBfloat16Bit) == 0 || (edx & kTileBit) == 0) return false;
#if defined(DANET_HAS_AVX512_FP16)
  constexpr unsigned kFloat16Bit = 1u << 23;
  if ((edx & kFloat16Bit) == 0) return false;
#endif
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

MatrixUnit select_matrix_unit() {
  if (is_requested("amx-emulated")) return MatrixUnit::kEmulated;
#if defined(DANET_HAS_AMX)
  // The kernels for AMX are compiled with AVX512_BF16. DANET_CPU_CAPABILITY=avx2 and default lower isa().
  if (!has_avx512_bf16() || is_requested("avx512")) return MatrixUnit::kNone;
  return !is_requested("avx512-bf16") && has_amx() ? MatrixUnit::kAmx : MatrixUnit::kAvx512Bf16;
#else
  return MatrixUnit::kNone;
#endif
}

}  // namespace

Isa isa() {
  static const Isa selected = select_isa();
  return selected;
}

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

MatrixUnit matrix_unit() {
  static const MatrixUnit selected = select_matrix_unit();
  return selected;
}

bool is_bfloat16_fast() {
#if defined(__x86_64__)
  if (matrix_unit() == MatrixUnit::kAvx512Bf16) return !__builtin_cpu_is("intel");
#endif
  return matrix_unit() != MatrixUnit::kNone;
}

}  // namespace danet
