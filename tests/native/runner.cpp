// SPDX-License-Identifier: Apache-2.0
// Kernel variants over a pipe, many calls per process: for user-mode emulation of other CPUs, and so
// that a kernel that reads past an array kills this process and not the tests. Every array ends at an
// inaccessible page; inputs are read-only.
//
//   > list                                             < variant <op> <name> <isa> <missing, or ->  ...  end
//   > call <name> <integers> <arrays>                  < ok <outcomes> <name value ...> and the bytes of outputs
//     <name> <value>                                     in order, or: error <message>
//     <name> <in|out> <dtype> <dimensions> <sizes...>
//     then, after one newline, the arrays' bytes in order
#include <cstdio>
#include <iostream>

#include "harness.h"

using namespace sparsecore::native;

namespace {

std::string word() {
  std::string s;
  if (!(std::cin >> s)) std::exit(0);
  return s;
}
int64_t number() { return std::stoll(word()); }

void list() {
  for (const Variant& v : variants()) {
    const char* missing = sparsecore::cpu::isa_missing(v.isa);
    std::cout << "variant " << v.op << ' ' << v.name << ' ' << isa_name(v) << ' ' << (missing ? missing : "-") << '\n';
  }
  std::cout << "end\n" << std::flush;
}

void call() {
  const std::string name = word();
  const int64_t integers = number(), arrays = number();
  Call call;
  for (int64_t i = 0; i < integers; ++i) {
    const std::string key = word();
    call.integers[key] = number();
  }
  std::vector<Fenced> memory;
  for (int64_t i = 0; i < arrays; ++i) {
    Array a;
    a.name = word();
    a.output = word() == "out";
    a.dtype = dtype_from_name(word());
    a.shape.resize(static_cast<size_t>(number()));
    for (int64_t& size : a.shape) size = number();
    memory.emplace_back(a.bytes(), sparsecore::dtype_bytes(a.dtype));
    a.data = memory.back().data();
    call.arrays.push_back(std::move(a));
  }
  std::cin.get();
  for (int64_t i = 0; i < arrays; ++i) {
    std::cin.read(static_cast<char*>(memory[i].data()), memory[i].bytes());
    if (!call.arrays[i].output) memory[i].read_only();
  }
  Outcome outcome;
  try {
    outcome = variant(name).run(call);
  } catch (const std::exception& e) {
    std::cout << "error " << e.what() << '\n' << std::flush;
    return;
  }
  for (const Fenced& m : memory) outcome["intact"] &= m.intact();
  std::cout << "ok " << outcome.size();
  for (const auto& [key, value] : outcome) std::cout << ' ' << key << ' ' << value;
  std::cout << '\n';
  for (int64_t i = 0; i < arrays; ++i)
    if (call.arrays[i].output) std::cout.write(static_cast<const char*>(memory[i].data()), memory[i].bytes());
  std::cout << std::flush;
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  for (;;) {
    const std::string verb = word();
    if (verb == "list") list();
    else if (verb == "call") call();
    else return 2;
  }
}
