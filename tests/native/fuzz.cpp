// SPDX-License-Identifier: Apache-2.0
// Random valid calls and hostile ones, for every variant that this CPU runs. Build with
// -fsanitize=address,undefined: arrays are heap blocks of exactly their size, so a read past one stops
// the run. Asserted besides: a valid call gives the scalar variant's y; a hostile one is refused by all
// variants or by none, each with a row that the scalar one, asked about that row alone, refuses too.
//
//   native_fuzz <iterations> <seed> [op]      the same seed gives the same calls; of all ops, or of one
#include <cmath>
#include <cstdio>
#include <set>

#include "harness.h"

using namespace sparsecore;
using namespace sparsecore::native;

namespace {

constexpr int64_t kEmulated = 8;  // one call of so many goes to emulated CUDA kernels too: they are slow

// The numbers of an array, two of a complex one's element.
void append(std::vector<float>& numbers, const Array& a) {
  const bool two = a.dtype == Dtype::c64 || a.dtype == Dtype::c128,
             wide = a.dtype == Dtype::f64 || a.dtype == Dtype::c128;
  for (int64_t i = 0; i < a.size() * (two ? 2 : 1); ++i)
    numbers.push_back(wide  ? static_cast<float>(static_cast<const double*>(a.data)[i])
                      : two ? static_cast<const float*>(a.data)[i]
                            : load_f32(a.data, a.dtype, i));
}

bool is_index(const Array& a) {
  return (!a.output || a.in_place) && (a.dtype == Dtype::i32 || a.dtype == Dtype::i64 || a.dtype == Dtype::i16 ||
                                       a.name.ends_with("bitmask") || a.name == "positions");
}

// Flips a bit, or writes an extreme, a neighbour's value or a near miss into index arrays.
void damage(Random& random, const Array& a) {
  const int64_t bytes = dtype_bytes(a.dtype), at = below(random, a.size());
  char* element = static_cast<char*>(a.data) + at * bytes;
  int64_t value = 0;
  std::memcpy(&value, element, static_cast<size_t>(bytes));
  switch (below(random, 6)) {
    case 0: value ^= int64_t{1} << below(random, 8 * bytes); break;
    case 1: value = INT64_MIN >> below(random, 63); break;
    case 2: value = INT64_MAX >> below(random, 63); break;
    case 3: value += below(random, 5) - 2; break;
    case 4: value = below(random, 1000) - 500; break;
    default:
      std::memcpy(&value, static_cast<char*>(a.data) + below(random, a.size()) * bytes, static_cast<size_t>(bytes));
  }
  std::memcpy(element, &value, static_cast<size_t>(bytes));
}

std::string describe(const Call& call) {
  std::string s;
  for (const Array& a : call.arrays) {
    s += a.name + ' ' + dtype_name(a.dtype) + " [";
    for (int64_t size : a.shape) s += std::to_string(size) + ' ';
    s += "] ";
  }
  for (const auto& [key, value] : call.integers) s += key + '=' + std::to_string(value) + ' ';
  return s;
}

struct Result {
  Outcome outcome;
  std::vector<float> numbers;  // outputs of float types
  std::string whole;          // bytes of the others, which have no rounding
};

// The bytes of the arrays that calls change in place, in order.
std::string contents(const Call& call) {
  std::string bytes;
  for (const Array& a : call.arrays)
    if (a.in_place) bytes.append(static_cast<const char*>(a.data), static_cast<size_t>(a.bytes()));
  return bytes;
}

// Poisons outputs; those that are changed in place are as they were `before`.
void reset(const Call& call, const std::string& before) {
  const char* from = before.data();
  for (const Array& a : call.arrays) {
    const size_t bytes = static_cast<size_t>(a.bytes());
    if (a.in_place) std::memcpy(a.data, std::exchange(from, from + bytes), bytes);
    else if (a.output) std::memset(a.data, kPoison, bytes);
  }
}

// Runs v on the call; returns its outputs joined.
Result run(const Variant& v, const Call& call, const std::string& before) {
  reset(call, before);
  Result result;
  result.outcome = v.run(call);
  for (const Array& a : call.arrays)
    if (a.output && (a.dtype == Dtype::i8 || a.dtype == Dtype::i16 || a.dtype == Dtype::i32 || a.dtype == Dtype::i64 ||
                     a.dtype == Dtype::f8))
      result.whole.append(static_cast<const char*>(a.data), static_cast<size_t>(a.bytes()));
    else if (a.output) append(result.numbers, a);
  return result;
}

int64_t bad_row(const Outcome& outcome) {
  const auto found = outcome.find("bad_row");
  return found == outcome.end() ? -1 : found->second;
}

bool row_is_bad(const Variant& scalar, Call call, const std::string& before, int64_t row) {
  call.integers["row"] = row;
  return bad_row(run(scalar, call, before).outcome) == row;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i] &&  // infinities
        !(std::isnan(a[i]) ? std::isnan(b[i]) : std::fabs(a[i] - b[i]) <= 0.01f * (1 + std::fabs(a[i]))))
      return false;
  return a.size() == b.size();
}

int64_t rounds(const std::string& op, int64_t iterations, uint64_t seed) {
  std::vector<const Variant*> usable;
  const Variant* scalar = nullptr;
  for (const Variant& v : variants()) {
    if (v.op != op) continue;
    if (v.isa == cpu::Isa::scalar && !v.cuda) scalar = &v;
    else if (!cpu::isa_missing(v.isa)) usable.push_back(&v);
    else std::printf("%-24s not run: %s\n", v.name.c_str(), cpu::isa_missing(v.isa));
  }
  int64_t hostile = 0, refused = 0;
  for (int64_t i = 0; i < iterations; ++i) {
    Random random(seed + static_cast<uint64_t>(i));
    const Sample sample = scalar->sample(random);
    const Call& call = sample.call;
    bool damaged = false;
    if (random() & 1)
      for (const Array& a : call.arrays)
        if (is_index(a) && a.size() > 0 && random() & 1)
          for (int64_t times = 1 + below(random, 3); times > 0; --times, damaged = true) damage(random, a);
    const std::string before = contents(call);
    const auto expected = run(*scalar, call, before);
    const bool refuses = bad_row(expected.outcome) >= 0;
    hostile += damaged;
    refused += refuses;
    const char* wrong = refuses && !damaged ? "scalar refuses a valid call" : nullptr;
    const Variant* who = scalar;
    for (const Variant* v : usable) {
      if (wrong) break;
      if (v->cuda && i % kEmulated != 0) continue;
      reset(call, before);
      if (v->takes && !v->takes(call)) continue;
      who = v;
      const auto actual = run(*v, call, before);
      const int64_t bad = bad_row(actual.outcome);
      if (!actual.outcome.at("intact")) wrong = "wrote outside its scratch";
      else if (refuses != (bad >= 0)) wrong = refuses ? "accepts what scalar refuses" : "refuses what scalar accepts";
      else if (refuses && !row_is_bad(*scalar, call, before, bad)) wrong = "refuses a row that is right";
      else if (!refuses && (expected.whole != actual.whole || !same(expected.numbers, actual.numbers)))
        wrong = "other result than scalar's";
    }
    if (wrong) {
      std::fprintf(stderr, "%s: %s\n  native_fuzz 1 %llu %s   (%s%s)\n", who->name.c_str(), wrong,
                   static_cast<unsigned long long>(seed + static_cast<uint64_t>(i)), op.c_str(), describe(call).c_str(),
                   damaged ? "damaged" : "valid");
      return 1;
    }
  }
  std::printf("%-24s %zu variants beside scalar, %lld calls, %lld damaged, %lld refused\n", op.c_str(), usable.size(),
              static_cast<long long>(iterations), static_cast<long long>(hostile), static_cast<long long>(refused));
  return iterations > 100 && refused == 0 && hostile > 0;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t iterations = argc > 1 ? std::atoll(argv[1]) : 1000;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const std::string only = argc > 3 ? argv[3] : "";
  std::set<std::string> done;
  int64_t failed = 0;
  for (const Variant& v : variants())
    if ((only.empty() || v.op == only) && done.insert(v.op).second) failed += rounds(v.op, iterations, seed);
  if (done.empty()) std::fprintf(stderr, "no op %s\n", only.c_str());
  return failed != 0 || done.empty();
}
