// The part of CUDA that our kernels use, for g++. A launch runs every CUDA thread as a fiber on the calling OS thread,
// and reports operations whose result a GPU leaves undefined. csrc/common/gpu.cuh includes this file if nvcc does not
// compile.
#pragma once

#include <math.h>

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <type_traits>

#include "types.h"

// --- language --------------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMULATION_VECTORS(T, Name)                              \
  struct alignas(2 * sizeof(T)) Name##2 {                       \
    T x, y;                                                     \
  };                                                            \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Name##4 { \
    T x, y, z, w;                                               \
  };                                                            \
  inline Name##2 make_##Name##2(T x, T y) { return {x, y}; }    \
  inline Name##4 make_##Name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATION_VECTORS(float, float)
EMULATION_VECTORS(double, double)
EMULATION_VECTORS(int, int)
EMULATION_VECTORS(unsigned, uint)
EMULATION_VECTORS(unsigned short, ushort)
#undef EMULATION_VECTORS

// --- the emulator ----------------------------------------------------------------------------------------------------

namespace emulation {

// The sizes of a launch, as in gpu::Launch.
struct LaunchSizes {
  dim3 grid, block;
  size_t shared_bytes;
  unsigned cluster;
  bool programmatic;
};
// Runs body(argument) once for every thread of the grid. Throws std::runtime_error, whose text begins with `op`, if the
// launch or the kernel is wrong. The next launch works again.
void run(const char* op, const LaunchSizes& sizes, void* stream, void (*body)(void*), void* argument);
// Waits for all launches, as the host does before it reuses their memory: a later programmatic launch cannot overlap with
// them.
void synchronize();

// Emulates a device guard: while it exists, its device is current, and launches must be on its stream().
class Device {
 public:
  Device();
  ~Device();
  Device(const Device&) = delete;
  void* stream() const { return stream_; }

 private:
  void *stream_, *outer_;
};

// A launch, as an observer gets it. `parameters` are the kernel's arguments as nvcc lays them out in constant memory.
struct LaunchRecord {
  const char* op;
  const void* kernel;
  LaunchSizes sizes;
  const void* parameters;
  size_t parameter_bytes;
};

struct Settings {
  uint64_t seed = 0;                 // order of blocks and threads: 0 ascending, 1 descending, others random
  size_t shared_limit = 227 * 1024;  // bytes per block: 227 KiB on sm_90; 99 KiB on sm_86, 89 and 120
  int multiprocessors = 4;           // multiprocessors of the device, by which kernels choose their grids
  bool has_clusters = true;          // thread block clusters, as on sm_90 and later
  bool traced = false;               // record the memory accesses of the kernels; mode "check" only
  // Called before each launch. If it returns true, the emulator does not run the kernel.
  std::function<bool(const LaunchRecord&)> observer;
};
extern Settings settings;
bool observe(const LaunchRecord& record);

// Collects the arguments of a kernel, each aligned to its type.
struct ParameterBytes {
  alignas(16) unsigned char data[4096] = {};
  size_t size = 0;

  template <typename T>
  void add(const T& argument) {
    static_assert(std::is_trivially_copyable_v<T>);
    size = (size + alignof(T) - 1) / alignof(T) * alignof(T);
    assert(size + sizeof argument <= sizeof data);
    std::memcpy(data + size, &argument, sizeof argument);
    size += sizeof argument;
  }
};
uint64_t launches();  // number of launches so far

// threadIdx etc. of the running thread.
struct Indices {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
extern Indices indices;

// The source position of a wait. NOTE: identifies a wait instead of the code address, because the compiler may
// duplicate a call.
#define EMULATION_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

int lane();
// Waits for all threads of the block; returns the number of threads whose `predicate` was true.
int wait_for_block(bool predicate, const char* file, int line);
void wait_for_warp(uint32_t mask, const char* file, int line);
void fence();
// Returns the value of lane `source`, or with `own` the lane's own value (for a source outside its segment of the
// warp).
uint64_t shuffle(uint32_t mask, uint64_t value, int source, bool own, const char* file, int line);
uint32_t ballot(uint32_t mask, bool predicate, const char* file, int line);
[[noreturn]] void trap(const char* file, int line);

// Thread block clusters: see csrc/common/ptx.cuh
unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive();
void cluster_wait(const char* file, int line);
void* map_shared(void* shared, unsigned rank);

// Programmatic dependent launch: see csrc/common/ptx.cuh
void wait_for_previous_launch();
void start_next_launch();

// Where a static shared variable lies in the shared memory of every block of the cluster that used it last.
struct SharedVariable {
  uint32_t first_block = 0;
  size_t offset = 0;
};
void* shared_variable(SharedVariable& variable, size_t bytes, size_t alignment);
void* dynamic_shared();
template <typename T>
struct TypeIdentity {
  using type = T;
};
#define EMULATION_SHARED(name, ...)                                               \
  static ::emulation::SharedVariable name##_variable;                             \
  auto& name = *static_cast<typename ::emulation::TypeIdentity<__VA_ARGS__>::type*>(      \
      ::emulation::shared_variable(name##_variable, sizeof(__VA_ARGS__), alignof(__VA_ARGS__)))

// --- PTX instructions: see csrc/common/ptx.cuh -----------------------------------------------------------------------

void cp_async(void* shared, const void* global, int bytes, int bytes_read);
void cp_async_commit();
void cp_async_wait(int pending);

void ldmatrix_x4(uint32_t* matrices, const void* shared_row, bool transposed);
template <bool kTransposed>
void ldmatrix_x4(uint32_t (&matrices)[4], const void* shared_row) {
  ldmatrix_x4(matrices, shared_row, kTransposed);
}

void multiply_half(float* d, const uint32_t* a, const uint32_t* b);
void multiply_bfloat16(float* d, const uint32_t* a, const uint32_t* b);
void multiply_tf32(float* d, const uint32_t* a, const uint32_t* b);
template <typename T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, danet::Half> || std::is_same_v<T, danet::BFloat16>);
  std::is_same_v<T, danet::Half> ? multiply_half(d, a, b) : multiply_bfloat16(d, a, b);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { multiply_tf32(d, a, b); }

// --- conversions -----------------------------------------------------------------------------------------------------

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float to_float(danet::BFloat16 value) { return bits_as<float>(uint32_t(value.bits) << 16); }
inline float to_float(danet::Half value) {
  // A multiplication rebases the exponent, which also normalizes subnormals; infinity and NaN need its top bits set.
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  uint32_t bits = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
  if (magnitude >= 0x0f800000) bits |= 0x7f800000;
  return bits_as<float>(bits | uint32_t(value.bits & 0x8000) << 16);
}
inline danet::BFloat16 to_bfloat16(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  if (value != value) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline danet::Half to_half(float value) {
  const uint32_t bits = bits_as<uint32_t>(value), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds beyond 65504
  if (magnitude < 0x38800000) {                                   // subnormal: the addition rounds
    const float sum = bits_as<float>(magnitude) + 0.5f;
    return {uint16_t(sign | (bits_as<uint32_t>(sum) - 0x3f000000))};
  }
  return {uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13))};
}
inline uint32_t to_tf32(float value) {
  return value != value ? 0x7fffffff : (bits_as<uint32_t>(value) + 0x1000) & ~0x1fffu;
}

// Flushes subnormal values to zero, keeping the sign.
inline float flush_subnormal(float value) { return fabsf(value) < 0x1p-126f ? copysignf(0.0f, value) : value; }

}  // namespace emulation

// --- CUDA's names ----------------------------------------------------------------------------------------------------

inline const uint3& threadIdx = emulation::indices.thread;
inline const uint3& blockIdx = emulation::indices.block;
inline const dim3& blockDim = emulation::indices.block_size;
inline const dim3& gridDim = emulation::indices.grid_size;
inline constexpr int warpSize = 32;

inline void __syncthreads(EMULATION_SITE) { emulation::wait_for_block(false, file, line); }
inline int __syncthreads_count(int predicate, EMULATION_SITE) {
  return emulation::wait_for_block(predicate != 0, file, line);
}
inline int __syncthreads_or(int predicate, EMULATION_SITE) {
  return emulation::wait_for_block(predicate != 0, file, line) != 0;
}
inline int __syncthreads_and(int predicate, EMULATION_SITE) {
  return emulation::wait_for_block(predicate == 0, file, line) == 0;
}
inline void __syncwarp(uint32_t mask = ~0u, EMULATION_SITE) { emulation::wait_for_warp(mask, file, line); }
inline void __threadfence() { emulation::fence(); }
inline void __threadfence_block() {}
#define __trap() ::emulation::trap(__FILE__, __LINE__)

namespace emulation {
template <typename T>
T shuffle_as(uint32_t mask, T value, int source, bool own, const char* file, int line) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(mask, bits, source, own, file, line);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace emulation

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, EMULATION_SITE) {
  const int first = emulation::lane() & ~(width - 1);
  return emulation::shuffle_as(mask, value, first | (source & (width - 1)), false, file, line);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, EMULATION_SITE) {
  const int first = emulation::lane() & ~(width - 1), source = emulation::lane() ^ bits;
  return emulation::shuffle_as(mask, value, source, source >= first + width, file, line);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned step, int width = 32, EMULATION_SITE) {
  const int first = emulation::lane() & ~(width - 1), source = emulation::lane() + int(step);
  return emulation::shuffle_as(mask, value, source, source >= first + width, file, line);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned step, int width = 32, EMULATION_SITE) {
  const int first = emulation::lane() & ~(width - 1), source = emulation::lane() - int(step);
  return emulation::shuffle_as(mask, value, source, source < first, file, line);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMULATION_SITE) {
  return emulation::ballot(mask, predicate != 0, file, line);
}
inline int __any_sync(uint32_t mask, int predicate, EMULATION_SITE) {
  return emulation::ballot(mask, predicate != 0, file, line) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, EMULATION_SITE) {
  return emulation::ballot(mask, predicate == 0, file, line) == 0;
}

float atomicAdd(float* p, float value);
double atomicAdd(double* p, double value);
int atomicAdd(int* p, int value);
unsigned atomicAdd(unsigned* p, unsigned value);
unsigned long long atomicAdd(unsigned long long* p, unsigned long long value);
int atomicMax(int* p, int value);
unsigned atomicMax(unsigned* p, unsigned value);
int atomicMin(int* p, int value);
unsigned atomicMin(unsigned* p, unsigned value);
int atomicExch(int* p, int value);
unsigned atomicExch(unsigned* p, unsigned value);
int atomicCAS(int* p, int expected, int value);
unsigned atomicCAS(unsigned* p, unsigned expected, unsigned value);
unsigned long long atomicCAS(unsigned long long* p, unsigned long long expected, unsigned long long value);

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint_as_float(unsigned x) { return emulation::bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return emulation::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return emulation::bits_as<float>(x); }
inline int __float_as_int(float x) { return emulation::bits_as<int>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
// As on the device: NaN becomes 0, values out of range saturate.
inline int emulation_to_int(double x) {
  return x != x ? 0 : x >= 0x1p31 ? INT32_MAX : x < -0x1p31 ? INT32_MIN : int(x);
}
inline unsigned emulation_to_unsigned(double x) { return x >= 0x1p32 ? UINT32_MAX : x > 0 ? unsigned(x) : 0; }
inline int __float2int_rd(float x) { return emulation_to_int(floorf(x)); }
inline int __float2int_ru(float x) { return emulation_to_int(ceilf(x)); }
inline int __float2int_rn(float x) { return emulation_to_int(nearbyintf(x)); }
inline int __float2int_rz(float x) { return emulation_to_int(truncf(x)); }
inline int __double2int_rd(double x) { return emulation_to_int(floor(x)); }
inline unsigned __float2uint_rd(float x) { return emulation_to_unsigned(floorf(x)); }
inline unsigned __double2uint_rd(double x) { return emulation_to_unsigned(floor(x)); }

#define EMULATION_MIN_MAX(T)                               \
  inline T min(T a, T b) { return b < a ? b : a; }         \
  inline T max(T a, T b) { return a < b ? b : a; }
EMULATION_MIN_MAX(int)
EMULATION_MIN_MAX(unsigned)
EMULATION_MIN_MAX(long)
EMULATION_MIN_MAX(unsigned long)
EMULATION_MIN_MAX(long long)
EMULATION_MIN_MAX(unsigned long long)
#undef EMULATION_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
