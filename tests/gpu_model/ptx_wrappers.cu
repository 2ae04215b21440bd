// A kernel for each inline PTX instruction of csrc/common/ptx.cuh. test_ptx_wrappers.py compiles them, and follows the
// kernel's parameters to the operands of the machine instruction.
#include "../../csrc/common/ptx.cuh"

using namespace danet;
using namespace danet::gpu;

template <typename T, int kCount>
struct Values {
  T values[kCount];
};
using Words4 = Values<uint32_t, 4>;
using Words2 = Values<uint32_t, 2>;
using Floats4 = Values<float, 4>;

template <typename T>
__device__ void store(T* out, const T (&values)[4]) {
  for (int i = 0; i < 4; ++i) out[i] = values[i];
}

extern "C" {

__global__ void opaque_kernel(const float** out, const float* base) { *out = opaque(base); }
__global__ void store_shared_kernel(int shared_offset, Floats4 v) {
  GPU_DYNAMIC_SHARED(char, shared);
  float (&to)[4] = *reinterpret_cast<float (*)[4]>(shared + shared_offset);
  store_shared(to, v.values[0], v.values[1], v.values[2], v.values[3]);
}

__global__ void element_kernel(const char** out, const char* base, uint32_t index, uint32_t stride) {
  *out = element(base, index, stride);
}

__global__ void cp_async_4_kernel(const char* global, int shared_offset, int valid) {
  GPU_DYNAMIC_SHARED(char, shared);
  cp_async<4>(shared + shared_offset, global, valid);
}
__global__ void cp_async_8_kernel(const char* global, int shared_offset, int valid) {
  GPU_DYNAMIC_SHARED(char, shared);
  cp_async<8>(shared + shared_offset, global, valid);
}
__global__ void cp_async_16_kernel(const char* global, int shared_offset, int valid) {
  GPU_DYNAMIC_SHARED(char, shared);
  cp_async<16>(shared + shared_offset, global, valid);
}
__global__ void cp_async_distance_kernel(const char* global, int shared_offset, int valid) {
  GPU_DYNAMIC_SHARED(char, shared);
  cp_async<16, 512>(shared + shared_offset, global, valid);
}
__global__ void cp_async_commit_kernel() { cp_async_commit(); }
__global__ void cp_async_wait_kernel() { cp_async_wait<3>(); }

__global__ void ldmatrix_kernel(uint32_t* out, int shared_offset) {
  GPU_DYNAMIC_SHARED(char, shared);
  uint32_t matrices[4];
  ldmatrix_x4<false>(matrices, shared + shared_offset);
  store(out, matrices);
}
__global__ void ldmatrix_transposed_kernel(uint32_t* out, int shared_offset) {
  GPU_DYNAMIC_SHARED(char, shared);
  uint32_t matrices[4];
  ldmatrix_x4<true>(matrices, shared + shared_offset);
  store(out, matrices);
}

__global__ void mma_half_kernel(float* out, Floats4 d, Words4 a, Words2 b) {
  mma_m16n8k16<Half>(d.values, a.values, b.values);
  store(out, d.values);
}
__global__ void mma_bfloat16_kernel(float* out, Floats4 d, Words4 a, Words2 b) {
  mma_m16n8k16<BFloat16>(d.values, a.values, b.values);
  store(out, d.values);
}
__global__ void mma_tf32_kernel(float* out, Floats4 d, Words4 a, Words2 b) {
  mma_m16n8k8_tf32(d.values, a.values, b.values);
  store(out, d.values);
}

__global__ void to_tf32_kernel(uint32_t* out, float x) { *out = to_tf32(x); }
__global__ void fast_exp2_kernel(float* out, float x) { *out = fast_exp2(x); }
__global__ void fast_reciprocal_kernel(float* out, float x) { *out = fast_reciprocal(x); }

__global__ void atomic_add_x4_kernel(float* to, Floats4 v) { atomic_add_x4(to, v.values); }

__global__ void cluster_rank_kernel(unsigned* out) { *out = cluster_rank(); }
__global__ void cluster_size_kernel(unsigned* out) { *out = cluster_size(); }
__global__ void cluster_arrive_kernel() { cluster_arrive(); }
__global__ void cluster_wait_kernel() { cluster_wait(); }
__global__ void map_shared_kernel(char** out, int shared_offset, unsigned rank) {
  GPU_DYNAMIC_SHARED(char, shared);
  *out = map_shared(shared + shared_offset, rank);
}

__global__ void wait_for_previous_launch_kernel() { wait_for_previous_launch(); }
__global__ void start_next_launch_kernel() { start_next_launch(); }

}  // extern "C"
