// SPDX-License-Identifier: Apache-2.0
// A set of numbers below 2^32 - 1 in shared or global memory, open addressing with linear probes: a number lies in the
// first slot from its own on that it found empty. Threads enter numbers at once; which of two gets which slot is
// theirs to race for, that each number has one slot is not.
//
//   key [slots]   kEmpty where there is none; slots: a power of 2, more than there are numbers
#pragma once
#include "cuda/atomic.h"

namespace sparsecore::cuda {

constexpr unsigned kEmpty = 0xffffffffu;

struct Hash {
  unsigned* key;
  unsigned slots;

  // The slot of `number`, which takes an empty one if it has none (then `fresh` is set); -1 if all are others'.
  SPARSECORE_DEVICE int enter(unsigned number, bool& fresh) const {
    unsigned at = first(number);
    for (unsigned tries = 0; tries < slots; ++tries, at = (at + 1) & (slots - 1)) {
      unsigned there = atomic_load(key + at);  // most numbers come again: a load costs less than a swap
      if (there == kEmpty) {
        there = atomic_swap_if(key + at, kEmpty, number);
        fresh = there == kEmpty;
        if (fresh) return static_cast<int>(at);
      }
      if (there == number) return static_cast<int>(at);
    }
    return -1;
  }

  // The slot of `number`, or -1. Nobody enters numbers meanwhile.
  SPARSECORE_DEVICE int find(unsigned number) const {
    unsigned at = first(number);
    for (unsigned tries = 0; tries < slots; ++tries, at = (at + 1) & (slots - 1)) {
      if (key[at] == number) return static_cast<int>(at);
      if (key[at] == kEmpty) return -1;
    }
    return -1;
  }

 private:
  SPARSECORE_DEVICE unsigned first(unsigned number) const {
    number *= 0x9e3779b1u;
    return (number ^ number >> 15) & (slots - 1);
  }
};

}  // namespace sparsecore::cuda
