// The matrix instructions: ldmatrix and mma.
#include "scheduler.h"

namespace emulation {

using namespace scheduler;

namespace {

struct LdmatrixOperands {
  uint32_t* to;
  const void* row;
  bool transposed;
  const void* pc;
};

void read_matrices(uint32_t, void* const* operands) {
  const int first = execution.thread / kLanes * kLanes;
  for (int i = 0; i < 4; ++i) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const LdmatrixOperands& from = *static_cast<LdmatrixOperands*>(operands[8 * i + row]);
      std::memcpy(matrix[row], from.row, sizeof matrix[row]);
      // Record the read for two of the lanes that receive elements of this row: at least one of them did not write it.
      const int one = from.transposed ? row / 2 : row * 4, two = from.transposed ? row / 2 + 4 : row * 4 + 1;
      checker::access(from.row, 16, Access::kRead, from.pc, first + one);
      checker::access(from.row, 16, Access::kRead, from.pc, first + two);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const LdmatrixOperands& mine = *static_cast<LdmatrixOperands*>(operands[lane]);
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t low = mine.transposed ? matrix[column][row] : matrix[row][column];
      const uint32_t high = mine.transposed ? matrix[column + 1][row] : matrix[row][column + 1];
      mine.to[i] = low | high << 16;
    }
  }
}

struct MmaOperands {
  float* d;
  const uint32_t *a, *b;
};
template <typename T>
float unpack_half(uint32_t pair, int i) {
  return to_float(T{uint16_t(pair >> 16 * i)});
}

// d[16][8] += a[16][k] * b[k][8]; every element is rounded once.
template <int k>
void multiply(const float (&a)[16][k], const float (&b)[k][8], void* const* operands) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float& d = static_cast<MmaOperands*>(operands[row % 8 * 4 + column / 2])->d[row / 8 * 2 + column % 2];
      double sum = d;
      for (int i = 0; i < k; ++i) sum += double(a[row][i]) * double(b[i][column]);
      d = float(sum);
    }
}

template <typename T>
void multiply_halves(uint32_t, void* const* operands) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const MmaOperands& mine = *static_cast<MmaOperands*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 2; ++j) a[g + i % 2 * 8][2 * t + j + i / 2 * 8] = unpack_half<T>(mine.a[i], j);
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) b[2 * t + j + i * 8][g] = unpack_half<T>(mine.b[i], j);
  }
  multiply(a, b, operands);
}

void multiply_tf32s(uint32_t, void* const* operands) {
  float a[16][8], b[8][8];
  auto value = [](uint32_t bits) { return bits_as<float>(bits & ~0x1fffu); };  // the bits that the tensor cores use
  for (int lane = 0; lane < kLanes; ++lane) {
    const MmaOperands& mine = *static_cast<MmaOperands*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = value(mine.a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = value(mine.b[i]);
  }
  multiply(a, b, operands);
}

// For instructions that require all 32 lanes. The source position is a dummy: all callers are in ptx.cuh.
void wait_for_full_warp(const char* name, void* operand, void (*exchange)(uint32_t, void* const*), const void* pc) {
  if (execution.thread < 0 || warps[execution.thread / kLanes].lanes != ~0u)
    fail(std::string(name) + " in a warp with exited or missing lanes", pc);
  wait_for_lanes({name, "ptx.cuh", 0, pc, ~0u, operand, exchange});
}

}  // namespace

void ldmatrix_x4(uint32_t* matrices, const void* shared_row, bool transposed) {
  const void* pc = EMULATION_CALLER;
  if (!is_aligned(shared_row, 16)) fail("misaligned ldmatrix_x4", pc);
  if (!in_own_array(shared_row, 16)) fail("ldmatrix_x4 of an address outside the shared arrays", pc);
  LdmatrixOperands operand{matrices, shared_row, transposed, pc};
  wait_for_full_warp("ldmatrix_x4", &operand, read_matrices, pc);
}
void multiply_half(float* d, const uint32_t* a, const uint32_t* b) {
  MmaOperands operand{d, a, b};
  wait_for_full_warp("mma_m16n8k16", &operand, multiply_halves<danet::Half>, EMULATION_CALLER);
}
void multiply_bfloat16(float* d, const uint32_t* a, const uint32_t* b) {
  MmaOperands operand{d, a, b};
  wait_for_full_warp("mma_m16n8k16", &operand, multiply_halves<danet::BFloat16>, EMULATION_CALLER);
}
void multiply_tf32(float* d, const uint32_t* a, const uint32_t* b) {
  MmaOperands operand{d, a, b};
  wait_for_full_warp("mma_m16n8k8_tf32", &operand, multiply_tf32s, EMULATION_CALLER);
}

}  // namespace emulation
