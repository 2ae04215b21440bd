// Small kernels that test the emulator: each runs correctly or with one seeded bug, which the emulator must find.
#include "seeded.h"

#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/common/ptx.cuh"
#include "checker.h"

namespace danet {
namespace {

template <typename T>
struct Buffer {  // heap memory of the exact size, so that ASan finds overruns
  explicit Buffer(int count, T value = T()) : count(count), data(static_cast<T*>(std::malloc(count * sizeof(T)))) {
    for (int i = 0; i < count; ++i) data[i] = value;
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  const int count;
  T* const data;
};

template <typename... Parameters, typename... Arguments>
void start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Arguments... arguments) {
  emulation::Device device;
  gpu::launch("seeded", kernel, {grid, block, shared, device.stream()}, arguments...);
}

template <typename... Parameters, typename... Arguments>
void start_clusters(void (*kernel)(Parameters...), unsigned grid, unsigned cluster, Arguments... arguments) {
  emulation::Device device;
  gpu::launch("seeded", kernel, {grid, 32, 0, device.stream(), cluster}, arguments...);
}

// --- shared memory and barriers --------------------------------------------------------------------------------------

__global__ void reversed(int* out, bool bug) {
  GPU_SHARED(values, int[64]);
  values[threadIdx.x] = int(threadIdx.x);
  if (!bug) __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void loop(int* out, bool bug) {
  GPU_SHARED(value, int[64]);
  int sum = 0;
  for (int i = 0; i < 4; ++i) {
    value[threadIdx.x] = i;
    __syncthreads();
    sum += value[(threadIdx.x + 1) % 64];
    if (!bug) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

__global__ void partly_written(float* out, bool bug) {
  GPU_SHARED(values, float[64]);
  if (threadIdx.x < (bug ? 63 : 64)) values[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x ^ 1];
}

__global__ void static_overrun(int* out, bool bug) {
  GPU_SHARED(first, int[32]);
  GPU_SHARED(second, int[32]);
  const unsigned i = threadIdx.x;
  first[i] = second[i] = int(i);
  __syncthreads();
  out[i] = (&first[0])[bug ? i + 1 : i] + second[i] - int(i);
}

__global__ void dynamic_overrun(int* out, bool bug) {
  GPU_DYNAMIC_SHARED(int, values);
  values[bug ? threadIdx.x + 1 : threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void diverged_barrier(int* out, bool bug) {
  if (!bug)
    __syncthreads();
  else if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void exit_before_barrier(int* out, bool bug) {
  out[threadIdx.x] = 1;
  if (bug && threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void deadlocked(int* out, bool bug) {
  out[threadIdx.x] = 1;
  if (bug && threadIdx.x < 16) __syncwarp();
  __syncthreads();
}

__global__ void votes(int* out, bool bug) {
  const int i = int(threadIdx.x);
  bool right = __syncthreads_count(i % 4 == 0) == 16 && __syncthreads_or(i == 63) && !__syncthreads_or(0);
  right &= __syncthreads_and(1) && !__syncthreads_and(i != 63);
  out[i] = right != bug;
}

// --- global memory ---------------------------------------------------------------------------------------------------

__global__ void sum(int* out, bool bug) {  // over threads and blocks
  if (bug)
    *out += 1;
  else
    atomicAdd(out, 1);
}

__global__ void atomic_and_plain(int* out, int* sum, bool bug) {
  atomicAdd(sum, 1);
  if (!bug) __syncthreads();
  out[threadIdx.x] = threadIdx.x == 0 ? *sum == 32 : 1;
}

__global__ void overrun(const float* in, float* out, int count, bool reads, bool writes) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  const float value = i < count || reads ? in[i] : 1.0f;
  if (i < count || writes) out[i] = value;
}

// The last block that arrives sums the results of all blocks.
__global__ void last_block(int* out, int* parts, unsigned* count, bool bug) {
  GPU_SHARED(last, bool);
  if (threadIdx.x < 4) parts[blockIdx.x * 4 + threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (!bug) __threadfence();
    last = atomicAdd(count, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x != 1) return;
  *out = 0;
  for (unsigned i = 0; i < 4 * gridDim.x; ++i) *out += parts[i];
}
// The same with warp synchronization only.
__global__ void last_warp(int* out, int* parts, unsigned* count, bool bug) {
  parts[blockIdx.x * 32 + threadIdx.x] = 1;
  if (!bug) __syncwarp();
  unsigned before = 0;
  if (threadIdx.x == 0) {
    __threadfence();
    before = atomicAdd(count, 1u);
  }
  before = __shfl_sync(~0u, before, 0);
  __syncwarp();
  int mine = 0;
  if (before == gridDim.x - 1)
    for (unsigned i = threadIdx.x; i < 32 * gridDim.x; i += 32) mine += parts[i ^ 1];
  mine = gpu::sum_lanes<32>(mine);
  if (before == gridDim.x - 1 && threadIdx.x == 0) *out = mine;
}

__global__ void first_come(int* out, int* ticket, bool bug) {
  if (threadIdx.x != 0) return;
  const int number = atomicAdd(ticket, 1);
  out[bug ? number : int(blockIdx.x)] = int(blockIdx.x);
}

template <typename T>
__global__ void neighbours(T* out, bool bug) {  // writes to different elements of one word are no race
  out[threadIdx.x] = T(1);
  if (bug && threadIdx.x == 7) out[8] = T(1);
}

template <typename T>
__global__ void packets(const T* in, T* out, int offset) {
  using Packet = gpu::Packet<T>;
  const auto* from = reinterpret_cast<const Packet*>(in + offset);
  reinterpret_cast<Packet*>(out)[threadIdx.x] = from[threadIdx.x];
}

// --- warps -----------------------------------------------------------------------------------------------------------

__global__ void warp_exchange(int* out, bool bug) {
  GPU_SHARED(values, int[64]);
  const unsigned i = threadIdx.x;
  values[i] = int(i);
  const unsigned half = i % 32 < 16 ? 0xffff : 0xffff0000;
  if (!bug) __syncwarp(half);
  const int other = values[i ^ 1];
  __syncwarp();
  values[i] = other;
  __syncwarp();
  out[i] = values[i ^ (bug ? 1 : 31)] - int(i ^ 31 ^ 1) + int(i);
}

template <int kLanes>
GPU_DEVICE int max_of_lanes(int value) {
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const int other = __shfl_xor_sync(~0u, value, step);
    value = other > value ? other : value;
  }
  return value;
}

__global__ void shuffles(int* out, bool bug) {
  const int lane = int(threadIdx.x % 32);
  bool right = __shfl_sync(~0u, lane, 35) == 3 && __shfl_xor_sync(~0u, double(lane), 5) == (lane ^ 5);
  right &= __shfl_down_sync(~0u, lane, 3, 8) == (lane % 8 < 5 ? lane + 3 : lane);
  right &= __shfl_up_sync(~0u, lane, 3) == (lane < 3 ? lane : lane - 3);
  right &= __ballot_sync(~0u, lane % 2) == 0xaaaaaaaa && __any_sync(~0u, lane == 3) && !__all_sync(~0u, lane == 3);
  right &= gpu::sum_lanes<32>(lane) == 496 && max_of_lanes<8>(lane) == (lane | 7);
  if (lane < 16) right &= __shfl_sync(0xffffu, lane, bug ? 20 : 2) == 2;
  out[threadIdx.x] = right;
}

__global__ void shuffle_exited(int* out, bool bug) {
  out[threadIdx.x] = 1;
  if (bug && threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
}

__global__ void shuffle_diverged(int* out, bool bug) {
  if (!bug)
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
  else if (threadIdx.x < 16)
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
  else
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 2);
}

// __syncwarp and votes do not wait for lanes that have exited or do not exist.
__global__ void part_of_warp(int* out, bool bug) {
  if (threadIdx.x == 39) return;
  __syncwarp();
  out[threadIdx.x] = __ballot_sync(~0u, 1) == (threadIdx.x < 32 ? ~0u : 0x7fu) && !bug;
}

// --- asynchronous copies, matrices -----------------------------------------------------------------------------------

enum CopyBug { kNoBug, kWait, kNoBarrier, kTouched, kUnwaited, kAlignment, kTail };

// Sums `count` values with double buffering; count is not a multiple of the 4 * 32 values per step.
__global__ void copies(const float* in, float* out, int count, int bug) {
  GPU_SHARED(buffer, float[2][128 + 4]);
  const int steps = (count + 127) / 128, i = int(threadIdx.x);
  auto fetch = [&](int step) {
    const int at = step * 128 + 4 * i;
    const bool valid = at < count;
    float* to = &buffer[step % 2][4 * i + (bug == kAlignment)];
    if (valid || bug != kTail) gpu::cp_async<16>(to, valid ? in + at : in, valid);
  };
  if (steps > 0) fetch(0);
  gpu::cp_async_commit();
  float sum = 0.0f;
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    gpu::cp_async_commit();
    if (bug == kWait)
      gpu::cp_async_wait<2>();
    else if (bug != kUnwaited)
      gpu::cp_async_wait<1>();
    if (bug != kNoBarrier) __syncthreads();
    if (bug == kTouched && step + 1 < steps) buffer[(step + 1) % 2][4 * i] = 0.0f;
    if (bug != kUnwaited)
      for (int k = 0; k < 4; ++k) sum += buffer[step % 2][(4 * i + k + 8) % 128];
    __syncthreads();
  }
  if (bug != kUnwaited) gpu::cp_async_wait<0>();
  sum = gpu::sum_lanes<32>(sum);
  if (i == 0) *out = sum;
}

enum MatrixBug { kMatrixAlignment = 1, kOrder, kNoSync };

// out[16][8] = a[16][16] * b[16][8]
template <typename T>
__global__ void product(const T* a, const T* b, float* out, int bug) {
  GPU_SHARED(rows, T[16][16 + 8]);
  GPU_SHARED(columns, T[16][8 + 8]);
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 16 * 16; i += 32) rows[i / 16][i % 16] = a[i];
  for (int i = lane; i < 16 * 8; i += 32) columns[i / 8][i % 8] = b[i], columns[i / 8][8 + i % 8] = T{0};
  if (bug != kNoSync) __syncwarp();
  uint32_t left[4], right[4];
  gpu::ldmatrix_x4<false>(left, &rows[lane % 16][lane / 16 * 8 + (bug == kMatrixAlignment)]);
  gpu::ldmatrix_x4<true>(right, &columns[lane % 16][lane / 16 * 8]);
  if (bug == kOrder) std::swap(left[1], left[2]);
  float d[4] = {};
  gpu::mma_m16n8k16<T>(d, left, {right[0], right[1]});
  for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// out[16][8] = a[16][8] * b[8][8]
__global__ void product_tf32(const float* a, const float* b, float* out, int bug) {
  const int g = int(threadIdx.x) / 4, t = int(threadIdx.x) % 4;
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) left[i] = gpu::to_tf32(a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
  for (int i = 0; i < 2; ++i) right[i] = gpu::to_tf32(b[(t + i * 4) * 8 + g]);
  if (bug == kOrder) std::swap(right[0], right[1]);
  float d[4] = {};
  gpu::mma_m16n8k8_tf32(d, left, right);
  for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

// --- clusters -------------------------------------------------------------------------------------------------------

enum ClusterBug { kNoFirstBarrier = 1, kNoLastBarrier, kBothWrite, kTwoArrivals, kNoArrival, kRank, kRemoteCopy, kMixed };

// Every thread sums the values that the threads of its number have in all blocks of the cluster.
__global__ void cluster_sum(int* out, int bug) {
  GPU_SHARED(value, int[32]);
  GPU_SHARED(sum, int[32]);
  const unsigned i = threadIdx.x, rank = gpu::cluster_rank(), size = gpu::cluster_size();
  value[i] = int(blockIdx.x);
  if (bug == kBothWrite) gpu::map_shared(value, (rank + 1) % size)[i] = int(blockIdx.x / size * size);
  if (bug == kRemoteCopy) gpu::cp_async<4>(gpu::map_shared(value + i, (rank + 1) % size), out, true);
  if (bug == kMixed && rank == 1 && i == 0) __syncthreads();
  if (bug != kNoFirstBarrier) {
    if (bug != kNoArrival) gpu::cluster_arrive();
    if (bug == kTwoArrivals) gpu::cluster_arrive();
    gpu::cluster_wait();
  }
  sum[i] = 0;
  for (unsigned r = 0; r < size; ++r) sum[i] += *gpu::map_shared(&value[i], bug == kRank ? r + 1 : r);
  if (bug != kNoLastBarrier) {
    gpu::cluster_arrive();
    gpu::cluster_wait();
  }
  out[blockIdx.x * 32 + i] = sum[i];
}

// The blocks of a cluster take turns to write the shared memory of the first one.
__global__ void cluster_turns(int* out, bool bug) {
  GPU_SHARED(value, int[32]);
  const unsigned rank = gpu::cluster_rank(), size = gpu::cluster_size();
  int* first = gpu::map_shared(value, 0);
  for (unsigned turn = 0; turn < size; ++turn) {
    gpu::cluster_arrive();
    if (turn == 0 && rank == 0) value[threadIdx.x ^ 1] = 0;  // read by others after the next barrier only
    gpu::cluster_wait();
    if (turn > 0 && (rank == turn || (bug && rank == turn - 1))) first[threadIdx.x] += 1;
  }
  gpu::cluster_arrive();
  gpu::cluster_wait();
  if (rank == 0) out[blockIdx.x / size * 32 + threadIdx.x] = value[threadIdx.x];
}

// --- programmatic dependent launch ----------------------------------------------------------------------------------

enum LaunchBug { kReadsEarly = 1, kWritesEarly, kNeverWaits, kNoBarrierAfterWait, kStartsEarly };

__global__ void produce(int* values) {
  gpu::start_next_launch();
  values[threadIdx.x] = 1;
}

// Adds the values of the previous launch; only one thread waits for it.
__global__ void consume(const int* values, int* out, int bug) {
  int sum = bug == kReadsEarly ? values[threadIdx.x ^ 1] : 0;
  if (bug == kWritesEarly) const_cast<int*>(values)[threadIdx.x] = 1;
  if (threadIdx.x == 0 && bug != kNeverWaits) gpu::wait_for_previous_launch();
  if (bug != kNoBarrierAfterWait) __syncthreads();
  if (bug != kReadsEarly) sum = values[threadIdx.x ^ 1];
  gpu::start_next_launch();
  out[threadIdx.x] = sum;
}

// Starts the next launch before or after it has waited for the previous one.
__global__ void between(bool starts_early) {
  if (starts_early) gpu::start_next_launch();
  gpu::wait_for_previous_launch();
  if (!starts_early) gpu::start_next_launch();
}

__global__ void reads_at_once(const int* values, int* out) {
  out[threadIdx.x] = values[threadIdx.x];
  gpu::wait_for_previous_launch();
}

// --- launches --------------------------------------------------------------------------------------------------------

__global__ void large_static(int* out, bool bug) {
  GPU_SHARED(some, int[1024]);
  some[threadIdx.x] = 1;
  if (bug) {
    GPU_SHARED(more, int[12 * 1024]);
    more[threadIdx.x] = 1;
  }
  out[threadIdx.x] = 1;
}

__global__ void asserted(int* out, bool bug) {
  assert(!bug);
  out[threadIdx.x] = 1;
}
__global__ void trapped(int* out, bool bug) {
  if (bug) __trap();
  out[threadIdx.x] = 1;
}
__global__ void one(int* out, bool) { out[threadIdx.x] = 1; }
__global__ void one_per_block(int* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
}

// --- cases: each runs a kernel and returns whether its results are correct -------------------------------------------

template <typename Right>
bool all(int count, const Right& right) {
  for (int i = 0; i < count; ++i)
    if (!right(i)) return false;
  return true;
}

using IntKernel = void (*)(int*, bool);
std::function<bool(bool)> ones(IntKernel kernel, int threads, size_t shared = 0, int grid = 1) {
  return [=](bool bug) {
    Buffer<int> out(threads);
    start(kernel, grid, threads, shared, out.data, bug);
    return all(threads, [&](int i) { return out.data[i] == 1; });
  };
}

std::function<bool(bool)> copied(int bug_kind) {
  return [=](bool bug) {
    Buffer<float> in(420, 1.0f), out(1);
    start(copies, 1, 32, 0, in.data, out.data, 420, bug ? bug_kind : kNoBug);
    return out.data[0] == 420.0f;
  };
}

template <typename T>
T rounded(float value) {
  return gpu::from_compute<T>(value);
}
template <typename T, int k, typename Kernel>
bool multiplied(Kernel kernel, int bug) {
  Buffer<T> a(16 * k), b(k * 8);
  Buffer<float> out(16 * 8, -1.0f);
  for (int i = 0; i < 16 * k; ++i) a.data[i] = rounded<T>(float(i * 7 % 31 - 15));
  for (int i = 0; i < k * 8; ++i) b.data[i] = rounded<T>(float(i * 11 % 29 - 14));
  start(kernel, 1, 32, 0, a.data, b.data, out.data, bug);
  return all(16 * 8, [&](int at) {
    float sum = 0.0f;
    for (int i = 0; i < k; ++i)
      sum += gpu::to_compute(a.data[at / 8 * k + i]) * gpu::to_compute(b.data[i * 8 + at % 8]);
    return sum == out.data[at];
  });
}
template <typename T>
std::function<bool(bool)> matrices(int kind) {
  return [=](bool bug) { return multiplied<T, 16>(product<T>, bug ? kind : 0); };
}

bool conversions(bool bug) {
  using namespace emulation;
  bool right = !bug;
  for (uint32_t i = 0; i < 65536; ++i) {
    const Half half{uint16_t(i)};
    const BFloat16 wide{uint16_t(i)};
    const float h = to_float(half), w = to_float(wide);
    right &= h != h ? to_float(to_half(h)) != to_float(to_half(h)) : to_half(h).bits == i;
    right &= w != w ? to_float(to_bfloat16(w)) != to_float(to_bfloat16(w)) : to_bfloat16(w).bits == i;
    if ((i & 0x7fff) >= 0x7bff || i & 0x8000) continue;
    // Halfway between two values, the even one is chosen.
    const float next = to_float(Half{uint16_t(i + 1)}), middle = (h + next) / 2;
    right &= to_half(middle).bits == i + i % 2 && to_half(nextafterf(middle, next)).bits == i + 1;
    right &= to_half(nextafterf(middle, h)).bits == i;
  }
  right &= to_half(65519.0f).bits == 0x7bff && to_half(65520.0f).bits == 0x7c00 && to_half(1e-9f).bits == 0;
  right &= to_bfloat16(1.00390625f).bits == 0x3f80 && to_bfloat16(1.01171875f).bits == 0x3f82;
  right &= gpu::fast_exp2(-126.0f) == 0x1p-126f && gpu::fast_exp2(-126.5f) == 0 && gpu::fast_exp2(INFINITY) == INFINITY;
  right &= gpu::fast_reciprocal(4.0f) == 0.25f && gpu::fast_reciprocal(0x1p127f) == 0;
  right &= to_tf32(1.00048828125f) == 0x3f802000 && to_tf32(-1.0004882f) == 0xbf800000;
  return right;
}

}  // namespace

std::vector<SeededCase> seeded_cases() {
  auto run_cluster = [](int kind) {
    return [=](bool bug) {
      Buffer<int> out(8 * 32);
      start_clusters(cluster_sum, 8, 4, out.data, bug ? kind : 0);
      return all(8 * 32, [&](int i) { return out.data[i] == (i / 128 ? 22 : 6); });
    };
  };
  auto run_launches = [](int kind) {
    return [=](bool bug) {
      Buffer<int> values(64), out(64);
      emulation::Device device;
      gpu::launch("seeded", produce, {1, 64, 0, device.stream()}, values.data);
      if (kind == kStartsEarly) {
        gpu::launch("seeded", between, {1, 64, 0, device.stream(), 1, true}, bug);
        gpu::launch("seeded", reads_at_once, {1, 64, 0, device.stream(), 1, true}, values.data, out.data);
      } else {
        gpu::launch("seeded", consume, {1, 64, 0, device.stream(), 1, true}, values.data, out.data, bug ? kind : 0);
      }
      return all(64, [&](int i) { return out.data[i] == 1; });
    };
  };
  auto run_global = [](bool reads, bool writes) {
    return [=](bool bug) {
      Buffer<float> in(100, 1.0f), out(100);
      start(overrun, 4, 32, 0, in.data, out.data, 100, bug && reads, bug && writes);
      return all(100, [&](int i) { return out.data[i] == 1.0f; });
    };
  };
  auto run_sum = [](int grid, int block) {
    return [=](bool bug) {
      Buffer<int> out(1);
      start(sum, grid, block, 0, out.data, bug);
      return *out.data == grid * block;
    };
  };
  auto with_counter = [](auto kernel, int threads, int expected) {
    return [=](bool bug) {
      Buffer<int> out(1), parts(6 * 32);
      Buffer<unsigned> count(1);
      start(kernel, 6, threads, 0, out.data, parts.data, count.data, bug);
      return *out.data == expected;
    };
  };
  return {
      {"missing_barrier",
       [](bool bug) {
         Buffer<int> out(64);
         start(reversed, 1, 64, 0, out.data, bug);
         return all(64, [&](int i) { return out.data[i] == 63 - i; });
       }},
      {"loop_barrier",
       [](bool bug) {
         Buffer<int> out(64);
         start(loop, 1, 64, 0, out.data, bug);
         return all(64, [&](int i) { return out.data[i] == 6; });
       }},
      {"uninitialised",
       [](bool bug) {
         Buffer<float> out(64);
         start(partly_written, 1, 64, 0, out.data, bug);
         return all(64, [&](int i) { return out.data[i] == 1.0f; });
       }},
      {"static_overrun",
       [](bool bug) {
         Buffer<int> out(32);
         start(static_overrun, 1, 32, 0, out.data, bug);
         return all(32, [&](int i) { return out.data[i] == i; });
       }},
      {"dynamic_overrun", ones(dynamic_overrun, 32, 128)},
      {"diverged_barrier", ones(diverged_barrier, 64)},
      {"exit_before_barrier", ones(exit_before_barrier, 64)},
      {"deadlock", ones(deadlocked, 64)},
      {"block_votes", ones(votes, 64)},
      {"race_of_threads", run_sum(1, 64)},
      {"race_of_blocks", run_sum(5, 1)},
      {"atomic_and_plain",
       [](bool bug) {
         Buffer<int> out(32), sum(1);
         start(atomic_and_plain, 1, 32, 0, out.data, sum.data, bug);
         return all(32, [&](int i) { return out.data[i] == 1; });
       }},
      {"global_read_overrun", run_global(true, false)},
      {"global_write_overrun", run_global(false, true)},
      {"last_block", with_counter(last_block, 32, 24)},
      {"last_warp", with_counter(last_warp, 32, 6 * 32)},
      {"order",
       [](bool bug) {
         Buffer<int> out(8), ticket(1);
         start(first_come, 8, 32, 0, out.data, ticket.data, bug);
         return all(8, [&](int i) { return out.data[i] == i; });
       }},
      {"byte_neighbours",
       [](bool bug) {
         Buffer<uint8_t> out(64);
         start(neighbours<uint8_t>, 1, 64, 0, out.data, bug);
         return all(64, [&](int i) { return out.data[i] == 1; });
       }},
      {"half_neighbours",
       [](bool bug) {
         Buffer<uint16_t> out(64);
         start(neighbours<uint16_t>, 1, 64, 0, out.data, bug);
         return all(64, [&](int i) { return out.data[i] == 1; });
       }},
      {"misaligned_packet",
       [](bool bug) {
         Buffer<float> in(132, 1.0f), out(128);
         start(packets<float>, 1, 32, 0, in.data, out.data, bug ? 2 : 4);
         return all(128, [&](int i) { return out.data[i] == 1.0f; });
       }},
      {"missing_syncwarp",
       [](bool bug) {
         Buffer<int> out(64);
         start(warp_exchange, 1, 64, 0, out.data, bug);
         return all(64, [&](int i) { return out.data[i] == i; });
       }},
      {"shuffle_mask", ones(shuffles, 64)},
      {"shuffle_exited", ones(shuffle_exited, 32)},
      {"shuffle_diverged", ones(shuffle_diverged, 32)},
      {"part_of_warp",
       [](bool bug) {
         Buffer<int> out(40);
         start(part_of_warp, 1, 40, 0, out.data, bug);
         return all(39, [&](int i) { return out.data[i] == 1; });
       }},
      {"copy_wait", copied(kWait)},
      {"copy_barrier", copied(kNoBarrier)},
      {"copy_touched", copied(kTouched)},
      {"copy_unwaited", copied(kUnwaited)},
      {"copy_alignment", copied(kAlignment)},
      {"copy_tail", copied(kTail)},
      {"matrix_alignment", matrices<Half>(kMatrixAlignment)},
      {"matrix_order", matrices<Half>(kOrder)},
      {"matrix_order_bfloat16", matrices<BFloat16>(kOrder)},
      {"matrix_order_tf32", [](bool bug) { return multiplied<float, 8>(product_tf32, bug ? kOrder : 0); }},
      {"matrix_sync", matrices<Half>(kNoSync)},
      {"cluster_start", run_cluster(kNoFirstBarrier)},
      {"cluster_exit", run_cluster(kNoLastBarrier)},
      {"cluster_race", run_cluster(kBothWrite)},
      {"cluster_two_arrivals", run_cluster(kTwoArrivals)},
      {"cluster_no_arrival", run_cluster(kNoArrival)},
      {"cluster_rank", run_cluster(kRank)},
      {"cluster_copy", run_cluster(kRemoteCopy)},
      {"cluster_deadlock", run_cluster(kMixed)},
      {"cluster_turns",
       [](bool bug) {
         Buffer<int> out(2 * 32);
         start_clusters(cluster_turns, 8, 4, out.data, bug);
         return all(2 * 32, [&](int i) { return out.data[i] == 3; });
       }},
      {"cluster_size",
       [](bool bug) {
         Buffer<int> out(6);
         start_clusters(one_per_block, bug ? 6 : 4, 4, out.data);
         return out.data[0] == 1;
       }},
      {"no_clusters",
       [](bool bug) {
         Buffer<int> out(4);
         emulation::settings.has_clusters = false;
         try {
           start_clusters(one_per_block, 4, bug ? 2 : 1, out.data);
         } catch (...) {
           emulation::settings.has_clusters = true;
           throw;
         }
         emulation::settings.has_clusters = true;
         return out.data[0] == 1;
       }},
      {"launch_read", run_launches(kReadsEarly)},
      {"launch_write", run_launches(kWritesEarly)},
      {"launch_no_wait", run_launches(kNeverWaits)},
      {"launch_barrier", run_launches(kNoBarrierAfterWait)},
      {"launch_chain", run_launches(kStartsEarly)},
      {"large_dynamic", [](bool bug) { return ones(one, 32, (bug ? 228 : 227) * 1024)(bug); }},
      {"large_static", ones(large_static, 32)},
      {"block_size", [](bool bug) { return ones(one, bug ? 1025 : 1024)(bug); }},
      {"grid_size", [](bool bug) { return ones(one, 1, 0, bug ? 0 : 1)(bug); }},
      {"no_device",
       [](bool bug) {
         Buffer<int> out(1);
         auto device = std::make_unique<emulation::Device>();
         const gpu::Launch how{1, 1, 0, device->stream()};
         if (bug) device.reset();
         gpu::launch("seeded", one, how, out.data, bug);
         return out.data[0] == 1;
       }},
      {"other_stream",
       [](bool bug) {
         Buffer<int> out(1);
         emulation::Device device;
         gpu::launch("seeded", one, {1, 1, 0, bug ? nullptr : device.stream()}, out.data, bug);
         return out.data[0] == 1;
       }},
      {"assert", ones(asserted, 32)},
      {"trap", ones(trapped, 32)},
      {"conversions", conversions},
  };
}

}  // namespace danet
