// SPDX-License-Identifier: Apache-2.0
// Which instruction sets this process may use, and which one a caller has forced.
#pragma once
#include <cstdint>

namespace sparsecore::cpu {

// avx2:   AVX2, FMA, F16C, BMI1/2, POPCNT (Haswell, Zen and later)
// avx512: F, BW, DQ, VL, VBMI, VBMI2, VNNI (Ice Lake, Zen 4 and later; older AVX-512 has no 8- and
//         16-bit expand and runs avx2)
// neon:   ARMv8-A
enum class Isa : int32_t { scalar, neon, avx2, avx512 };

const char* isa_name(Isa isa);
bool isa_from_name(const char* name, Isa& isa);  // false: no such name
const char* isa_missing(Isa isa);                // null when this CPU runs it, else what it lacks

// Forced by SPARSECORE_ISA at load or by force_isa later. A forced ISA is used by every op that has a
// kernel for it; an op that has none runs its scalar one. `-1` in force_isa lifts it.
int32_t forced_isa();
void force_isa(int32_t isa);

}  // namespace sparsecore::cpu
