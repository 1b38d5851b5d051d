// SPDX-License-Identifier: Apache-2.0
#include "ops/spgemm/spgemm.h"

#include <cstring>
#include <tuple>

#include "torch/memory.h"
#include "torch/parallel.h"
#include "torch/product_arguments.h"

namespace sparsecore::spgemm {
namespace {

using namespace binding;
using Optional = OptionalTensor;

constexpr CsrNames kG{"crow_indices", "col_indices", "grad", "rows of a", "n:"};

// Scratch that is not worth asking the system about.
constexpr int64_t kSmallScratch = 64 << 20;
// Of several threads, a product of so few bytes, were no column met twice, is made in one pass.
constexpr int64_t kOnePass = 4 << 20;
// A row that is this share of a thread's work, and this many products, is cut into parts.
constexpr int64_t kHeavyShare = 4, kHeavyProducts = 1 << 17;

// A product with A and B opened: checked, B listed as words, work counted, cut into tasks.
class Product {
 public:
  Args args{};
  std::vector<Task> tasks;

  Product(const Tensor& a_crow, const Tensor& a_col, const Optional& a_values, const Tensor& b_crow,
          const Tensor& b_col, const Optional& b_values, int64_t n, int64_t memory)
      : kernel_(cpu::choose(kernels())) {
    const auto [a, b] = operands(a_crow, a_col, a_values, b_crow, b_col, b_values, n);
    args.a = a;
    args.b = b;
    raise(csr_check_ends(a), a, kNamesA);
    raise(csr_check_ends(b), b, kNamesB);
    SPARSECORE_REQUIRE(memory >= 0, "memory: must be 0 or a number of bytes, not ", memory);
    memory_ = memory;
    note_kernel(kernel_.name);
    open();
  }

  // Room for the threads' scratch, of at most `memory` bytes together (0: chosen).
  void plan(bool cut_rows) {
    const int64_t most = memory_ > 0 ? memory_ / threads_ : INT64_MAX;
    int64_t bytes = kernel_.plan(args, found_.words, longest_, most);
    if (memory_ == 0 && bytes * threads_ > kSmallScratch) {
      const int64_t share = std::max(kSmallScratch, free_bytes() / 4) / threads_;
      if (bytes > share) bytes = kernel_.plan(args, found_.words, longest_, share);
    }
    scratch_bytes_ = (bytes + 63) / 64 * 64;
    scratch_ = reserve_zeros(threads_ * scratch_bytes_);
    cut(cut_rows);
  }

  // fn(task, scratch) for every task.
  template <class Fn>
  void each_task(const Fn& fn) {
    for_pieces(static_cast<int64_t>(tasks.size()), threads_, [&](int64_t i, int64_t thread) {
      fn(tasks[static_cast<size_t>(i)], aligned(scratch_) + thread * scratch_bytes_);
    });
  }

  // The pattern of C as a caller has it: its ends and lengths are right, its rows untrusted.
  CsrView like_c(const Tensor& crow, const Tensor& col, int64_t n) const {
    const CsrView c = pattern_of_c(args.a, crow, col, n);
    raise(csr_check_ends(c), c, kNamesC);
    return c;
  }

  const Kernel& kernel() const { return kernel_; }
  int64_t threads() const { return threads_; }
  bool bounded() const { return memory_ > 0; }
  int64_t products() const { return args.work[args.a.n]; }
  // No more nonzeros than this: all products, at most n a row.
  int64_t most_nonzeros() const { return most_nonzeros_; }

 private:
  void open() {
    const CsrView &a = args.a, &b = args.b;
    offsets_ = reserve(8 * (a.n + 1));
    args.work = reinterpret_cast<int64_t*>(offsets_.get());
    // A first: whether B is needed as words is seen in the products. B's offsets are untrusted there, and so are sums.
    const int64_t bad_a = ranges(a, thread_count(a.nnz + a.n),
                                 [&](int64_t begin, int64_t end, int64_t) { return kernel_.open_a(args, begin, end); });
    if (bad_a < 0) add_work();
    if (bad_a < 0 && (memory_ > 0 || longest_ > kHeavyProducts || kernel_.needs_words(args))) {
      const int64_t word_bytes = (4 * b.nnz + 63) / 64 * 64, bit_bytes = (8 * b.nnz + 63) / 64 * 64;
      words_ = reserve(word_bytes + bit_bytes + static_cast<int64_t>(sizeof(WordRow)) * b.n);
      args.words = {reinterpret_cast<int32_t*>(words_.get()), reinterpret_cast<uint64_t*>(words_.get() + word_bytes),
                    reinterpret_cast<WordRow*>(words_.get() + word_bytes + bit_bytes)};
    }
    const int64_t threads = thread_count(b.nnz + b.n);
    std::vector<Found> found(static_cast<size_t>(threads) * 4);
    const int64_t bad_b = ranges(b, threads, [&](int64_t begin, int64_t end, int64_t piece) {
      return kernel_.open_b(args, begin, end, found[static_cast<size_t>(piece)]);
    });
    if (bad_b >= 0) raise(csr_check_row(b, bad_b, false), b, kNamesB);
    for (const Found& f : found) {
      found_.strict &= f.strict;
      found_.words += f.words;
    }
    args.strict = found_.strict;
    if (bad_a >= 0) raise(csr_check_row(a, bad_a, false), a, kNamesA);
    threads_ = thread_count(args.work[a.n] + a.n);
  }

  void add_work() {
    const int64_t n = args.b.k;
    uint64_t total = 0, most = 0;
    args.work[0] = 0;
    for (int64_t row = 0; row < args.a.n; ++row) {
      const int64_t products = args.work[row + 1];
      longest_ = std::max(longest_, products);
      most += static_cast<uint64_t>(std::min(products, n));
      total += static_cast<uint64_t>(products);
      args.work[row + 1] = static_cast<int64_t>(total);
    }
    most_nonzeros_ = static_cast<int64_t>(most);
  }

  // fn(begin, end, piece) over ranges of rows with like numbers of elements; -1 or a bad row.
  template <class Fn>
  int64_t ranges(const CsrView& w, int64_t threads, const Fn& fn) {
    const int64_t pieces = threads == 1 ? 1 : threads * 4;
    std::atomic<int64_t> bad{-1};
    for_pieces(pieces, threads, [&](int64_t p, int64_t) {
      const auto offset = [&](int64_t row) { return w.offset(row); };
      const int64_t begin = piece_begin(w.n, p, pieces, 2, 1, offset),
                    end = piece_begin(w.n, p + 1, pieces, 2, 1, offset);
      const int64_t row = begin < end ? fn(begin, end, p) : -1;
      if (row >= 0) bad.store(row, std::memory_order_relaxed);
    });
    return bad.load();
  }

  void cut(bool rows) {
    const int64_t m = args.a.n, total = args.work[m], words = (args.b.k + 63) / 64;
    const int64_t heavy = std::max(kHeavyProducts, total / (kHeavyShare * threads_));
    const auto add = [&](int64_t begin, int64_t end) {
      if (begin < end) tasks.push_back({begin, end});
    };
    const int64_t pieces = threads_ == 1 ? 1 : threads_ * 8;
    int64_t begin = 0;
    for (int64_t p = 1; p <= pieces; ++p) {
      const int64_t end =
          std::max(begin, piece_begin(m, p, pieces, 16, 1, [&](int64_t row) { return args.work[row]; }));
      if (rows && threads_ > 1 && args.strict && longest_ > heavy) {
        for (int64_t row = begin; row < end; ++row) {
          if (args.work[row + 1] - args.work[row] <= heavy) continue;
          add(begin, row);
          begin = row + 1;
          const int64_t parts = std::min(words, pieces);
          for (int64_t part = 0; part < parts; ++part)
            tasks.push_back({row, row + 1, words * part / parts, words * (part + 1) / parts});
        }
      }
      add(begin, end);
      begin = end;
    }
  }

  const Kernel& kernel_;
  Memory offsets_{nullptr, &std::free}, words_{nullptr, &std::free}, scratch_{nullptr, &std::free};
  Found found_;
  int64_t memory_ = 0, most_nonzeros_ = 0, longest_ = 0, threads_ = 1, scratch_bytes_ = 0;
};

struct Output {
  Tensor crow, col;
  Optional values;
};

// Columns and values of C once crow has its offsets.
void allocate(Args& args, Output& c, const Optional& like) {
  check_nonzeros(args.a, args.nnz);
  c.col = empty(args.a.index, {args.nnz});
  args.col = c.col.mutable_data_ptr();
  large_pages(args.col, args.nnz * dtype_bytes(args.a.index), 0);
  if (!like) return;
  c.values = empty_like_dtype(*like, {args.nnz});
  args.values = c.values->mutable_data_ptr();
  large_pages(args.values, args.nnz * dtype_bytes(args.a.value), 0);
}

// Tasks are filled into room for all that they can hold and moved together, and the room, cut to size, becomes C: no
// pass counts, and pages past C are not touched.
class Room {
 public:
  Room(const Product& product, const Args& args, bool values)
      : index_(dtype_bytes(args.a.index)), value_(values ? dtype_bytes(args.a.value) : 0) {
    const bool alone = product.threads() == 1;
    const int64_t most = alone ? product.most_nonzeros() : product.products(), each = index_ + value_;
    if (!can_adopt() || product.bounded() || (index_ == 4 && most > std::numeric_limits<int32_t>::max())) return;
    if (most > kOnePass / each && !(alone && most <= free_bytes() / 2 / each)) return;
    keep_heap(most * each);
    columns_ = try_reserve(most * index_);
    values_ = try_reserve(most * value_);
    if (!*this) {
      columns_.reset();
      return;
    }
    if (!alone) return;  // tasks lie apart, and each would begin large pages
    bytes_ = {most * index_, most * value_};
    large_pages(columns_.get(), bytes_.first, kBegun);
    large_pages(values_.get(), bytes_.second, kBegun);
  }

  explicit operator bool() const { return columns_ && values_; }

  Output fill(Product& product, Tensor crow, const Optional& like) {
    Args& args = product.args;
    args.col = columns_.get();
    args.values = like ? values_.get() : nullptr;
    product.each_task([&](Task& t, void* scratch) {
      t.at = args.work[t.begin];
      product.kernel().fill(args, t, scratch);
    });
    args.nnz = product.kernel().offsets(args, product.tasks.data(), static_cast<int64_t>(product.tasks.size()));
    for (const Task& t : product.tasks) {
      move(columns_, t, args.work[t.begin], index_);
      move(values_, t, args.work[t.begin], value_);
    }
    small_pages(columns_.get(), bytes_.first);
    small_pages(values_.get(), bytes_.second);
    Output c{crow, adopt(std::move(columns_), args.nnz, index_, dtype_code(crow)), {}};
    if (like) c.values = adopt(std::move(values_), args.nnz, value_, dtype_code(*like));
    return c;
  }

 private:
  static void move(const Memory& memory, const Task& t, int64_t from, int64_t each) {
    if (t.at != from) std::memmove(memory.get() + t.at * each, memory.get() + from * each, t.count * each);
  }

  static constexpr int64_t kBegun = 4 << 20;  // bytes of an array in small pages: the last large one adds half at most

  int64_t index_, value_;
  std::pair<int64_t, int64_t> bytes_{0, 0};  // in large pages
  Memory columns_{nullptr, &std::free}, values_{nullptr, &std::free};
};

// C whole, or its columns alone.
Output multiply(const Tensor& a_crow, const Tensor& a_col, const Optional& a_values, const Tensor& b_crow,
                const Tensor& b_col, const Optional& b_values, int64_t n, bool sorted, int64_t memory) {
  Product product(a_crow, a_col, a_values, b_crow, b_col, b_values, n, memory);
  Args& args = product.args;
  args.sorted = sorted;
  Room room(product, args, a_values.has_value());
  product.plan(!room);
  Output c{empty(args.a.index, {args.a.n + 1}), {}, {}};
  args.crow = c.crow.mutable_data_ptr();
  if (room) return room.fill(product, c.crow, a_values);
  args.counted = true;
  product.each_task([&](Task& t, void* scratch) { product.kernel().count(args, t, scratch); });
  args.nnz = product.kernel().offsets(args, product.tasks.data(), static_cast<int64_t>(product.tasks.size()));
  allocate(args, c, a_values);
  product.each_task([&](Task& t, void* scratch) { product.kernel().fill(args, t, scratch); });
  small_pages(args.col, args.nnz * dtype_bytes(args.a.index));
  if (a_values) small_pages(args.values, args.nnz * dtype_bytes(args.a.value));
  return c;
}

std::tuple<Tensor, Tensor, Tensor> spgemm(const Tensor& a_crow, const Tensor& a_col, const Tensor& a_values,
                                          const Tensor& b_crow, const Tensor& b_col, const Tensor& b_values, int64_t n,
                                          bool sorted, int64_t memory, bool /*deterministic: always*/) {
  const Output c = multiply(a_crow, a_col, a_values, b_crow, b_col, b_values, n, sorted, memory);
  return {c.crow, c.col, *c.values};
}

std::tuple<Tensor, Tensor> pattern(const Tensor& a_crow, const Tensor& a_col, const Tensor& b_crow, const Tensor& b_col,
                                   int64_t n, int64_t memory) {
  const Output c = multiply(a_crow, a_col, std::nullopt, b_crow, b_col, std::nullopt, n, true, memory);
  return {c.crow, c.col};
}

Tensor values(const Tensor& a_crow, const Tensor& a_col, const Tensor& a_values, const Tensor& b_crow,
              const Tensor& b_col, const Tensor& b_values, const Tensor& crow, const Tensor& col, int64_t n,
              int64_t memory, bool /*deterministic: always*/) {
  Product product(a_crow, a_col, a_values, b_crow, b_col, b_values, n, memory);
  Args& args = product.args;
  const CsrView c = product.like_c(crow, col, n);
  args.nnz = c.nnz;
  args.crow = const_cast<void*>(c.crow);
  args.col = const_cast<void*>(c.col);
  product.plan(true);
  const Tensor sums = empty_like_dtype(a_values, {c.nnz});
  args.values = sums.mutable_data_ptr();
  std::atomic<int64_t> bad{-1};
  product.each_task([&](Task& t, void* scratch) {
    if (bad.load(std::memory_order_relaxed) >= 0) return;
    const int64_t row = product.kernel().values(args, t, scratch);
    if (row >= 0) bad.store(row, std::memory_order_relaxed);
  });
  if (bad.load() >= 0) {
    raise(csr_check_row(c, bad.load()), c, kNamesC);
    SPARSECORE_REQUIRE(false, "col_indices: row ", bad.load(), " lacks a column that the product has");
  }
  return sums;
}

// The gradient of a_values (`of_a`) or b_values; grad lies at crow and col.
Tensor gradient(bool of_a, const Tensor& a_crow, const Tensor& a_col, const Tensor& a_values, const Tensor& b_crow,
                const Tensor& b_col, const Tensor& b_values, const Tensor& crow, const Tensor& col, const Tensor& grad,
                int64_t n) {
  Product product(a_crow, a_col, a_values, b_crow, b_col, b_values, n, 0);
  const Args& args = product.args;
  CsrView g = product.like_c(crow, col, n);
  g.values = values_of(grad, g, kG, g.value);
  SPARSECORE_REQUIRE(g.value == args.a.value, "grad: dtype must be that of a_values, ", dtype_name(args.a.value),
                     ", not ", dtype_name(g.value));
  const CsrView& of = of_a ? args.a : args.b;
  const Tensor out = empty_like_dtype(grad, {of.nnz});
  const Gradients gradients{args.a, args.b, g, out.mutable_data_ptr()};
  const int64_t threads = thread_count(product.products() + g.nnz),
                pieces = of_a && threads > 1 ? threads * 8 : threads;
  const int64_t scratch_bytes = (n * dtype_bytes(g.value) + 63) / 64 * 64;
  const Memory scratch = reserve_zeros(threads * scratch_bytes);
  std::atomic<int64_t> bad{-1};
  for_pieces(pieces, threads, [&](int64_t p, int64_t thread) {
    const auto before = [&](int64_t row) { return of_a ? args.work[row] : of.offset(row); };
    const int64_t begin = piece_begin(of.n, p, pieces, 4, 1, before);
    const int64_t end = piece_begin(of.n, p + 1, pieces, 4, 1, before);
    if (bad.load(std::memory_order_relaxed) >= 0 || begin >= end) return;
    const auto run = of_a ? product.kernel().for_a : product.kernel().for_b;
    const int64_t row = run(gradients, begin, end, aligned(scratch) + thread * scratch_bytes);
    if (row >= 0) bad.store(row, std::memory_order_relaxed);
  });
  if (bad.load() >= 0) raise(csr_check_row(g, bad.load(), false), g, kNamesC);
  return out;
}

Tensor gradient_a(const Tensor& a_crow, const Tensor& a_col, const Tensor& a_values, const Tensor& b_crow,
                  const Tensor& b_col, const Tensor& b_values, const Tensor& crow, const Tensor& col,
                  const Tensor& grad, int64_t n) {
  return gradient(true, a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, grad, n);
}

Tensor gradient_b(const Tensor& a_crow, const Tensor& a_col, const Tensor& a_values, const Tensor& b_crow,
                  const Tensor& b_col, const Tensor& b_values, const Tensor& crow, const Tensor& col,
                  const Tensor& grad, int64_t n) {
  return gradient(false, a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, grad, n);
}

const bool registered = register_kernels("spgemm", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
#define SPGEMM_OPERANDS                                                                                          \
  "(Tensor a_crow_indices, Tensor a_col_indices, Tensor a_values, Tensor b_crow_indices, Tensor b_col_indices, " \
  "Tensor b_values, "
#define SPGEMM_PRODUCT \
  SPGEMM_OPERANDS "int n, bool sorted=True, int memory=0, bool deterministic=True) -> (Tensor, Tensor, Tensor)"
#define SPGEMM_VALUES \
  SPGEMM_OPERANDS "Tensor crow_indices, Tensor col_indices, int n, int memory=0, bool deterministic=True) -> Tensor"
  m.def("spgemm" SPGEMM_PRODUCT);
  // Without an autograd formula: a call that needs no gradient skips its trip through Python.
  m.def("_spgemm" SPGEMM_PRODUCT);
  m.def(
      "spgemm_pattern(Tensor a_crow_indices, Tensor a_col_indices, Tensor b_crow_indices, Tensor b_col_indices, "
      "int n, int memory=0) -> (Tensor, Tensor)");
  m.def("spgemm_values" SPGEMM_VALUES);
  m.def("_spgemm_values" SPGEMM_VALUES);
  m.def("spgemm_grad_a" SPGEMM_OPERANDS "Tensor crow_indices, Tensor col_indices, Tensor grad, int n) -> Tensor");
  m.def("spgemm_grad_b" SPGEMM_OPERANDS "Tensor crow_indices, Tensor col_indices, Tensor grad, int n) -> Tensor");
  // On CUDA, where gradients are made of it: the product's elements at given columns, which may lack some of them.
  m.def("_spgemm_masked" SPGEMM_OPERANDS "Tensor crow_indices, Tensor col_indices, int n) -> Tensor");
#undef SPGEMM_VALUES
#undef SPGEMM_PRODUCT
#undef SPGEMM_OPERANDS
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("spgemm", TORCH_BOX(&spgemm));
  m.impl("_spgemm", TORCH_BOX(&spgemm));
  m.impl("spgemm_pattern", TORCH_BOX(&pattern));
  m.impl("spgemm_values", TORCH_BOX(&values));
  m.impl("_spgemm_values", TORCH_BOX(&values));
  m.impl("spgemm_grad_a", TORCH_BOX(&gradient_a));
  m.impl("spgemm_grad_b", TORCH_BOX(&gradient_b));
}

}  // namespace sparsecore::spgemm
