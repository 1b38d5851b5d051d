// SPDX-License-Identifier: Apache-2.0
// spgemm: C = A · B, all CSR, row by row (Gustavson 1978): C[i, :] = sum over p in row i of A of
// values[p] * B[col[p], :]. A [m, k], B [k, n]. No list of partial products is made: they are summed where
// they fall (as SMASH does on an accelerator, 2021). Rows of A and B may be unsorted and hold a column twice.
// A sum runs in the order of A's row whatever the row's method and the number of threads, so C has one answer.
//
// Columns are handled as words, 64 a word. B's rows are listed once as (word, bits):
//
//   columns of a row of B   3 5 64 70 | word 0 bits {3, 5} | word 1 bits {0, 6}
//
// so that the pattern of a row of C is an OR of bits, sorted by being scanned, and
//   rank(c) = base[c / 64] + popcount(bits[c / 64] below c)
// is where column c lies in the row: sums go straight to C, and what a thread touches beside it is 12 bytes
// per 64 columns. Ways through a row, by its products and the width n (thresholds: spgemm_scratch.h):
//   words   a table of all n / 64 words; wide tables are met window by window
//   hash    a table of the row's own words, for rows so short that to scan all words would cost more
//   list    of its columns as it meets them, by a stamp for each column, then sorted; staged and dense, where short
// and through its sums:
//   dense   one sum a column, where these fit the second cache
//   staged  dense; products are first laid side by side, which spares the branch at the end of each short row
//   thick   dense, 64 columns at a time by expanding loads, where B's words hold many bits (AVX-512)
//   ranks   as above, where the matrix is wider
// The answer is the same bit for bit: every way adds fma(a, b, sum) in one order.
#pragma once
#include "core/csr.h"
#include "cpu/kernel_table.h"

namespace sparsecore::spgemm {

// Rows of B as words. Rows that one open_b listed lie side by side, so that what is touched, and read again and
// again, is 12 bytes a word and not an element.
struct WordRow {
  int64_t first, count;
};
struct Words {
  int32_t* word;
  uint64_t* bits;
  WordRow* rows;
};

// Rows [begin, end) of C; or one row's words [word_begin, word_end), where word_end > 0.
struct Task {
  int64_t begin, end;
  int64_t word_begin = 0, word_end = 0;
  int64_t at = 0;     // where its nonzeros begin in col and values
  int64_t count = 0;  // and how many there are
};

// How the sums of a product are kept; plan() chooses.
enum class Sums : int32_t { ranks, dense, staged, thick };

struct Args {
  CsrView a, b;  // values may be null: the pattern alone. One index type and one value type for all.
  Words words;
  bool strict;  // columns rise strictly in every row of B; open_b clears it
  bool sorted;  // rows of C rise; else hash leaves them as it met them
  Sums sums;
  int64_t window;  // words a table holds at most
  int64_t most_hashed;  // products of the longest row that is hashed
  int64_t* work;  // [m + 1]: 0, then products of each row, then of the rows before each
  void* crow;  // C: [m + 1], counts of each row and then offsets
  bool counted;  // fill finds counts or offsets in crow; else it writes counts
  void* col;  // [nnz]
  void* values;  // [nnz] or null
  int64_t nnz;  // of C
};

// For the gradients: A and B opened, G of C's shape, untrusted.
struct Gradients {
  CsrView a, b, g;
  void* out;  // values of A's pattern, or of B's
};

// What the passes over A and B find.
struct Found {
  bool strict = true;
  int64_t words = 0;
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Checks rows of A and counts their products into work[row + 1]; B's offsets may be wild. Returns -1 or a bad row.
  int64_t (*open_a)(const Args&, int64_t begin, int64_t end);
  // Whether the ways that work leads to read B's words; else args.words may be null, where no row is cut.
  bool (*needs_words)(const Args&);
  // Checks rows [begin, end) of B and lists their words, if there is room for these. Returns -1 or a bad row.
  int64_t (*open_b)(const Args&, int64_t begin, int64_t end, Found&);
  // Sets sums, window and most_hashed, for at most `bytes` of scratch (no bound without words); returns the scratch's
  // bytes. Needs `words` listed in all, and the longest row's products.
  int64_t (*plan)(Args&, int64_t words, int64_t longest, int64_t bytes);
  // Nonzeros of C's rows into crow[row + 1], and the task's. scratch: zeros at first, then only given back.
  void (*count)(const Args&, Task&, void* scratch);
  // From counts of rows and tasks to offsets, and each task's `at`; returns nnz(C). Offsets that the index
  // type can't hold are left unwritten.
  int64_t (*offsets)(const Args&, Task* tasks, int64_t count);
  // Columns from task.at on, and values if there are any; the task's count.
  void (*fill)(const Args&, Task&, void* scratch);
  // Values for columns that are given and untrusted. Returns -1, or a row whose columns do not rise, lie
  // outside [0, n) or lack one that the product has; scratch is then no longer
  // fit for use.
  int64_t (*values)(const Args&, const Task&, void* scratch);
  // Gradients, see spgemm_masked.h: of rows [begin, end) of A or of B. scratch: n zeros of the values' type.
  // Returns -1, or a bad row of G; scratch is then no longer fit for use.
  int64_t (*for_a)(const Gradients&, int64_t begin, int64_t end, void* scratch);
  int64_t (*for_b)(const Gradients&, int64_t begin, int64_t end, void* scratch);
};

cpu::KernelTable<Kernel> kernels();

// ---- On CUDA: phases, queued on a stream (a cudaStream_t) whose device holds every array. A launch reads nothing on
// the host, allocates nothing and may be captured; only who allocates C reads `nnz` between `count` and `columns`.
enum class DevicePhase {
  count,    // checks A and B; c.crow, `found`
  columns,  // c.col
  values,   // c.values
};

using DeviceCount = unsigned long long;  // as atomics have it
constexpr DeviceCount kNoRow = ~DeviceCount{0};
constexpr int kDeviceLevels = 4;  // rows by their work

// What the phases find, in the device's memory.
struct DeviceFound {
  DeviceCount bad_offsets[3];  // the first row of A, of B, of a C that is given, whose offsets fall or leave the array
  DeviceCount bad_columns[2];  // the first row of A, of B with a column out of range, if no offsets are bad
  DeviceCount bad_ends;  // bit 0: A's offsets begin or end wrong, bit 1: B's, bit 2: C's
  DeviceCount falls, starts;  // columns of B that do not rise over the one before; of these, first ones of a row
  DeviceCount nnz, longest;  // of C, of a row of C
  DeviceCount rows[2][kDeviceLevels];  // rows by products, by nonzeros of C
};

struct DeviceArgs {
  CsrView a, b;  // values may be null but for `values`: f32, bf16, f16 (sums in f32) or f64
  CsrView c;  // written, and read by the phases after. c.k: n
  DeviceFound* found;
  void* scratch;  // [device_scratch_bytes(m)], 8-byte aligned
  // Rows of C with more nonzeros than shared memory takes: `table_count` tables of table_slots slots (a power of 2),
  // device_table_bytes each, 8-byte aligned; without, or where these are too small, a part of the columns after the other.
  void* tables;
  int64_t table_slots, table_count;
  int64_t blocks;  // most of a launch
  bool sorted;  // rows of C rise; else short ones may not
  bool ordered;  // sums in the order of A's row, the same bits for any order of threads; else by atomics, as they come
  // `values` for a C that a caller has, without `count` before. Untrusted: a row of C whose own, A's or B's arrays are
  // broken is NaN, and all of C where offsets fall. given: rows of C rise, and NaN is what lacks a column of the product;
  // masked: only the product's elements at C's columns are asked for, in any order, and repeated ones are given each.
  bool given, masked;
};

int64_t device_scratch_bytes(int64_t m);
int64_t device_table_bytes(Dtype value, int64_t slots);
int64_t device_table_slots(int64_t nonzeros);  // for a row of so many; 0: it needs no table
int64_t device_free_bytes();
// Null, or the error's text.
const char* launch(DevicePhase, const DeviceArgs&, void* stream);

}  // namespace sparsecore::spgemm
