// PTX instructions that CUDA C++ has no name for, each a function. Without nvcc they are their reference implementations in
// tests/emulation.
#pragma once

#include "gpu.cuh"

namespace danet {
namespace gpu {

#if defined(__CUDACC__)
GPU_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
#endif

// Begins to copy kBytes (4, 8 or 16) from global to shared memory, or zeros where not `valid`; both aligned to kBytes.
template <int kBytes>
GPU_DEVICE void copy_async(void* shared, const void* global, bool valid) {
#if defined(__CUDACC__)
  const int read = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(read)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(read)
                 : "memory");
#else
  emulation::copy_async(shared, global, kBytes, valid ? kBytes : 0);
#endif
}
// Closes a group of this thread's copies.
GPU_DEVICE void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::commit_copies();
#endif
}
// Waits until at most kPending of this thread's groups are on their way. Other threads' copies need a barrier after it.
template <int kPending>
GPU_DEVICE void wait_for_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulation::wait_for_copies(kPending);
#endif
}

// Four 8x8 matrices of 16-bit numbers: lane 8 * i + r gives the address of row r (16 bytes) of matrix i; a lane gets of
// each matrix elements (lane / 4, lane % 4 * 2 + {0, 1}), with kTransposed of its transpose.
template <bool kTransposed>
GPU_DEVICE void load_matrices(uint32_t (&matrices)[4], const void* shared_row) {
#if defined(__CUDACC__)
  const uint32_t row = shared_address(shared_row);
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
#else
  emulation::load_matrices<kTransposed>(matrices, shared_row);
#endif
}

// d += a * b on the tensor cores, with a 16x16 row by row, b 16x8 column by column, of Half or BFloat16, d float32. With
// g = lane / 4, t = lane % 4: a holds rows g, g + 8 (a[0], a[1]) at columns 2t, 2t + 1, and at 8 more (a[2], a[3]); b rows
// 2t, 2t + 1 (b[0]) and 8 more (b[1]) of column g; d row g (d[0], d[1]) and g + 8 at columns 2t, 2t + 1.
template <typename T>
GPU_DEVICE void multiply_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<T, Half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::multiply_m16n8k16<T>(d, a, b);
#endif
}

// The same for float32 rounded to tf32: a 16x8, b 8x8. a holds rows g, g + 8 at column t (a[0], a[1]) and t + 4 (a[2],
// a[3]); b rows t (b[0]) and t + 4 (b[1]) of column g; d as above. Operands: bits of tf32(...).
GPU_DEVICE void multiply_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::multiply_m16n8k8_tf32(d, a, b);
#endif
}
// The bits of a float32 rounded to tf32, 10 bits of mantissa, to nearest, ties away from zero.
GPU_DEVICE uint32_t tf32(float value) {
#if defined(__CUDACC__)
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  return emulation::tf32(value);
#endif
}

// 2 to the power of x, and 1 / x, each one instruction: relative errors of 2^-22, numbers below 2^-126 are zero.
GPU_DEVICE float fast_exp2(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return emulation::flushed(exp2f(emulation::flushed(x)));
#endif
}
GPU_DEVICE float fast_reciprocal(float x) {
#if defined(__CUDACC__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return emulation::flushed(1 / emulation::flushed(x));
#endif
}

// Adds four floats to global memory that others add to at the same time; p is aligned to 16 bytes.
GPU_DEVICE void atomic_add_x4(float* p, const float (&v)[4]) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
#else
  for (int i = 0; i < 4; ++i) atomicAdd(p + i, v[i]);
#endif
}

}  // namespace gpu
}  // namespace danet
