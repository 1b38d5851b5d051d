# SPDX-License-Identifier: Apache-2.0
# One row per CPU ISA: file suffix, processors that have it, compiler flags.
# Defines SPARSECORE_KNOWN_ISAS, of them SPARSECORE_ISAS (the target processor's), SPARSECORE_FLAGS_<isa>.

function(sparsecore_isa suffix processors)
  set(SPARSECORE_KNOWN_ISAS ${SPARSECORE_KNOWN_ISAS} ${suffix} PARENT_SCOPE)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(${processors})$")
    set(SPARSECORE_ISAS ${SPARSECORE_ISAS} ${suffix} PARENT_SCOPE)
    set(SPARSECORE_FLAGS_${suffix} ${ARGN} PARENT_SCOPE)
  endif()
endfunction()

set(avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt)
set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 -mavx512vnni
    -mprefer-vector-width=512)

sparsecore_isa(scalar ".*")
sparsecore_isa(avx2 "x86_64|AMD64" ${avx2})
sparsecore_isa(avx512 "x86_64|AMD64" ${avx512})
sparsecore_isa(neon "aarch64|arm64")
