// One function per PTX instruction that CUDA C++ has no intrinsic for. Under g++ they call the reference
// implementations in tests/emulation.
#pragma once

#include "gpu.cuh"

namespace danet {
namespace gpu {

#if defined(__CUDACC__)
GPU_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
#endif

// The same pointer to global memory. The compiler does not see how it was computed. Therefore it keeps the pointer in
// registers, instead of computing it again in every iteration of a loop.
template <typename T>
GPU_DEVICE const T* opaque(const T* pointer) {
#if defined(__CUDACC__)
  asm("mov.b64 %0, %0;" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// The address of an element: `pointer` plus index * stride_bytes bytes, which must be a multiple of sizeof(T). ptxas
// combines product and sum into one instruction (IMAD.WIDE); a sum of 64 bits alone takes two.
// NOTE: without the PTX string, nvcc multiplies 64 bits and adds an instruction. If several calls have the same index
// and stride, ptxas computes one product and several sums, unless each call gets its stride from another kernel
// parameter.
template <typename T>
GPU_DEVICE const T* element(const T* pointer, uint32_t index, uint32_t stride_bytes) {
  uint64_t bytes;
#if defined(__CUDACC__)
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(bytes) : "r"(index), "r"(stride_bytes));
  __builtin_assume(__isGlobal(pointer));
#else
  bytes = uint64_t(index) * stride_bytes;
#endif
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(pointer) + bytes);
}

// Stores four values to shared memory, aligned to their total size; float: in one instruction. Stores of float4 and of
// arrays are sometimes split by the compiler.
template <typename A>
GPU_DEVICE void store_shared(A (&to)[4], A a, A b, A c, A d) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<A, float>)
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)), "f"(a), "f"(b), "f"(c), "f"(d)
                 : "memory");
  else
#endif
    to[0] = a, to[1] = b, to[2] = c, to[3] = d;
}

// Starts an asynchronous copy of kBytes (4, 8 or 16) from global to shared memory, from and to kDistance bytes after
// the addresses; writes zeros if !valid. Both addresses must be aligned to kBytes.
template <int kBytes, int kDistance = 0>
GPU_DEVICE void cp_async(void* shared, const void* global, bool valid = true) {
#if defined(__CUDACC__)
  const int read = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0 + %3], [%1 + %3], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(read), "n"(kDistance)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0 + %4], [%1 + %4], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(read), "n"(kDistance)
                 : "memory");
#else
  emulation::cp_async(
      static_cast<char*>(shared) + kDistance, static_cast<const char*>(global) + kDistance, kBytes, valid ? kBytes : 0);
#endif
}
// Commits this thread's copies since the last commit as one group.
GPU_DEVICE void cp_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::cp_async_commit();
#endif
}
// Waits until at most kPending of this thread's groups are pending. Copies of other threads also need a barrier after
// it.
template <int kPending>
GPU_DEVICE void cp_async_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulation::cp_async_wait(kPending);
#endif
}

// Loads four 8x8 matrices of 16-bit elements. Lane 8 * i + r passes the address of row r (16 bytes) of matrix i. Each
// lane receives, from each matrix (kTransposed: from its transpose), the elements (lane / 4, lane % 4 * 2 + {0, 1}).
template <bool kTransposed>
GPU_DEVICE void ldmatrix_x4(uint32_t (&matrices)[4], const void* shared_row) {
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
  emulation::ldmatrix_x4<kTransposed>(matrices, shared_row);
#endif
}

// d += a * b on the tensor cores: a [16, 16] and b [16, 8] are Half or BFloat16, d [16, 8] is float32. Elements of a
// lane, with g = groupID = lane / 4 and t = threadID_in_group = lane % 4, as the PTX manual calls them:
//   a[0]: row g, columns 2t, 2t + 1        a[1]: row g + 8, same columns
//   a[2], a[3]: rows as in a[0], a[1], columns 2t + 8, 2t + 9
//   b[0]: rows 2t, 2t + 1, column g        b[1]: rows 2t + 8, 2t + 9, column g
//   d[0], d[1]: row g, columns 2t, 2t + 1  d[2], d[3]: row g + 8, same columns
template <typename T>
GPU_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
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
  emulation::mma_m16n8k16<T>(d, a, b);
#endif
}

// The same for float32 rounded to tf32 (the operands are results of to_tf32): a [16, 8], b [8, 8]. Elements of a lane:
//   a[0]: row g, column t        a[1]: row g + 8, column t        a[2], a[3]: same rows, column t + 4
//   b[0]: row t, column g        b[1]: row t + 4, column g        d as above
GPU_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::mma_m16n8k8_tf32(d, a, b);
#endif
}
// Rounds to tf32 (10 mantissa bits), to nearest, ties away from zero; returns the bits.
GPU_DEVICE uint32_t to_tf32(float value) {
#if defined(__CUDACC__)
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  return emulation::to_tf32(value);
#endif
}

// 2^x and 1 / x in one instruction each: relative error 2^-22; subnormal operands and results count as zero.
GPU_DEVICE float fast_exp2(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return emulation::flush_subnormal(exp2f(emulation::flush_subnormal(x)));
#endif
}
GPU_DEVICE float fast_reciprocal(float x) {
#if defined(__CUDACC__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return emulation::flush_subnormal(1 / emulation::flush_subnormal(x));
#endif
}

// exp(a). Half types T use the fast approximation, whose error is far below their precision.
template <typename T>
GPU_DEVICE Compute<T> exponential(Compute<T> a) {
  if constexpr (sizeof(T) == 2)
    return fast_exp2(a * 1.44269504f);
  else
    return std::exp(a);
}

// Adds four floats atomically to global memory; p must be aligned to 16 bytes. One instruction from sm_90 on.
GPU_DEVICE void atomic_add_x4(float* p, const float (&v)[4]) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
#else
  for (int i = 0; i < 4; ++i) atomicAdd(p + i, v[i]);
#endif
}

// --- thread block clusters: before sm_90, every block is a cluster of its own ---------------------------------------

// The number of this block in its cluster, and the number of blocks of the cluster.
GPU_DEVICE unsigned cluster_rank() {
  unsigned rank = 0;
#if !defined(__CUDACC__)
  rank = emulation::cluster_rank();
#elif __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
GPU_DEVICE unsigned cluster_size() {
  unsigned size = 1;
#if !defined(__CUDACC__)
  size = emulation::cluster_size();
#elif __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}

// The barrier of the cluster, which each thread calls in two steps. Accesses of all threads of the cluster before
// cluster_arrive() happen before accesses after cluster_wait(). A block may access the shared memory of another one
// only after a first barrier, because that block may not have started, and before a last one, because it may exit.
#if defined(__CUDACC__)
GPU_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
GPU_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
#else
inline void cluster_arrive() { emulation::cluster_arrive(); }
inline void cluster_wait(EMULATION_SITE) { emulation::cluster_wait(file, line); }
#endif

// The address that `shared`, an address in this block's shared memory, has in block `rank` of the cluster.
template <typename T>
GPU_DEVICE T* map_shared(T* shared, unsigned rank) {
#if !defined(__CUDACC__)
  shared = static_cast<T*>(emulation::map_shared(shared, rank));
#elif __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %0, %1;" : "+l"(shared) : "r"(rank));
#endif
  return shared;
}

// --- programmatic dependent launch: see Launch::programmatic; no effect before sm_90 ---------------------------------

// Waits until all earlier launches have ended and their results are visible.
GPU_DEVICE void wait_for_previous_launch() {
#if !defined(__CUDACC__)
  emulation::wait_for_previous_launch();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next launch start, if it is programmatic, as soon as all blocks have called this function or have exited.
GPU_DEVICE void start_next_launch() {
#if !defined(__CUDACC__)
  emulation::start_next_launch();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace gpu
}  // namespace danet
