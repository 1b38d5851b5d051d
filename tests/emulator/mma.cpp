// SPDX-License-Identifier: Apache-2.0
// Tensor-core instructions: the registers of a warp's lanes to whole matrices by the formulas of the PTX ISA (sections
// "Matrix fragments for mma.m16n8k16, m16n8k32" and "for sparse mma"), a plain product, and back. Written from those
// formulas and not from csrc/cuda/mma.h, so that one tells the other's errors. A float sum is exact in double and rounded once; the
// order and rounding of hardware's is not specified.
#include <cuda/ptx.h>

#include <cstring>

namespace emulator {
namespace {

struct Call {
  uint32_t* c;
  const uint32_t *a, *b;
  uint32_t kept;
  Input input;
  int selector;  // -1: dense
};

double element(const uint32_t* registers, int i, Input input) {
  if (input == Input::s8) return reinterpret_cast<const int8_t*>(registers)[i];
  uint16_t bits;
  std::memcpy(&bits, reinterpret_cast<const uint16_t*>(registers) + i, 2);
  return input == Input::bf16 ? sparsecore::bf16_to_f32(bits) : sparsecore::f16_to_f32(bits);
}

void multiply(const Lanes& lanes) {
  const Call& any = *lanes.of<Call>(0);
  const bool s8 = any.input == Input::s8, sparse = any.selector >= 0;
  double a[16][64] = {}, b[64][8] = {};
  const int k = (s8 ? 32 : 16) * (sparse ? 2 : 1);
  for (int lane = 0; lane < 32; ++lane) {
    const Call& call = *lanes.of<Call>(lane);
    const int groupID = lane >> 2, threadID_in_group = lane % 4;
    for (int i = 0; i < (s8 ? 16 : 8); ++i) {
      int row, column;  // of what is stored: half of the columns when sparse
      if (s8) {
        row = (i < 4 || (8 <= i && i < 12)) ? groupID : groupID + 8;
        column = i < 8 ? threadID_in_group * 4 + (i & 3) : threadID_in_group * 4 + (i & 3) + 16;
      } else {
        row = (i < 2 || (4 <= i && i < 6)) ? groupID : groupID + 8;
        column = i < 4 ? threadID_in_group * 2 + (i & 1) : threadID_in_group * 2 + (i & 1) + 8;
      }
      if (sparse) {
        // Entry of the column's four: two kept columns each, from the lane of the row's group that holds it.
        const int four = column / 2;
        int holder, shift;
        if (s8) {  // 64 columns a row: two words, in lanes 0 and 2 of the group for row g, 1 and 3 for row g + 8
          holder = (row % 8) * 4 + (row >= 8 ? 1 : 0) + (four >= 8 ? 2 : 0);
          shift = four % 8 * 4;
        } else {  // 32 columns a row: a half word in each of two lanes
          holder = (row % 8) * 4 + 2 * any.selector + (four >= 4 ? 1 : 0);
          shift = four % 4 * 4 + (row >= 8 ? 16 : 0);
        }
        const uint32_t entry = lanes.of<Call>(holder)->kept >> shift & 15;
        if ((entry & 3) >= (entry >> 2)) fault("mma.sp with metadata whose two columns do not rise");
        column = four * 4 + static_cast<int>(column % 2 == 0 ? entry & 3 : entry >> 2);
      }
      a[row][column] = element(call.a, i, any.input);
    }
    const int per = s8 ? 4 : 2;
    for (int i = 0; i < k / 4; ++i) {
      const int row = threadID_in_group * per + (i & (per - 1)) + (i / per) * (s8 ? 16 : 8);
      b[row][groupID] = element(call.b, i, any.input);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const Call& call = *lanes.of<Call>(lane);
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
      double sum = 0;
      for (int j = 0; j < k; ++j) sum += a[row][j] * b[j][column];
      if (s8) {
        int32_t c;
        std::memcpy(&c, call.c + i, 4);
        c = static_cast<int32_t>(static_cast<uint32_t>(c) + static_cast<uint32_t>(static_cast<int64_t>(sum)));
        std::memcpy(call.c + i, &c, 4);
      } else {
        float c;
        std::memcpy(&c, call.c + i, 4);
        c = static_cast<float>(c + sum);
        std::memcpy(call.c + i, &c, 4);
      }
    }
  }
}

struct Rows {
  uint32_t* r;
  const void* row;
  bool transposed;
};

}  // namespace

void mma(Input input, void* c, const uint32_t* a, const uint32_t* b, Where where) {
  Call call{static_cast<uint32_t*>(c), a, b, 0, input, -1};
  collective("mma.sync", 0xffffffffu, &call, multiply, where);
}

void mma_sparse(Input input, int selector, void* c, const uint32_t* a, const uint32_t* b, uint32_t kept, Where where) {
  Call call{static_cast<uint32_t*>(c), a, b, kept, input, selector};
  collective("mma.sp", 0xffffffffu, &call, multiply, where);
}

void ldmatrix(bool transposed, uint32_t* r, const void* row, Where where) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fault("ldmatrix of a row that is not aligned to 16 bytes");
  check_access(row, 16, false, true);
  Rows mine{r, row, transposed};
  collective(
      "ldmatrix", 0xffffffffu, &mine,
      [](const Lanes& lanes) {
        for (int lane = 0; lane < 32; ++lane)
          for (int matrix = 0; matrix < 4; ++matrix)
            for (int half = 0; half < 2; ++half) {
              const Rows& to = *lanes.of<Rows>(lane);
              int i = lane / 4, j = lane % 4 * 2 + half;
              if (to.transposed) std::swap(i, j);
              uint16_t value;
              std::memcpy(&value, static_cast<const char*>(lanes.of<Rows>(matrix * 8 + i)->row) + 2 * j, 2);
              std::memcpy(reinterpret_cast<char*>(to.r + matrix) + 2 * half, &value, 2);
            }
      },
      where);
}

}  // namespace emulator
