# SPDX-License-Identifier: Apache-2.0
# Target sparsecore_kernels: everything in csrc/ that does not know torch, as a static library with
# include root csrc/. Usable without the rest of the build (cross-compiling, sanitizers).
# A file's suffix decides its ISA: x_avx2.cpp gets the flags of avx2 and is left out on other processors.

include(${CMAKE_CURRENT_LIST_DIR}/isa.cmake)

set(csrc ${CMAKE_CURRENT_LIST_DIR}/../csrc)
cmake_path(NORMAL_PATH csrc)
file(GLOB sources CONFIGURE_DEPENDS ${csrc}/core/*.cpp ${csrc}/cpu/*.cpp ${csrc}/ops/*/*.cpp)
list(FILTER sources EXCLUDE REGEX "/op(_[a-z]+)?\\.cpp$")
list(JOIN SPARSECORE_KNOWN_ISAS "|" known)
list(FILTER sources EXCLUDE REGEX "_(${known})\\.cpp$")

foreach(isa IN LISTS SPARSECORE_ISAS)
  file(GLOB isa_sources CONFIGURE_DEPENDS ${csrc}/cpu/*_${isa}.cpp ${csrc}/ops/*/*_${isa}.cpp)
  set_source_files_properties(${isa_sources} PROPERTIES COMPILE_OPTIONS "${SPARSECORE_FLAGS_${isa}}")
  list(APPEND sources ${isa_sources})
endforeach()

add_library(sparsecore_kernels STATIC ${sources})
target_include_directories(sparsecore_kernels PUBLIC ${csrc})
target_compile_features(sparsecore_kernels PUBLIC cxx_std_20)
# No contraction: a fused multiply-add is where a kernel writes one, and the scalar kernels have none.
target_compile_options(sparsecore_kernels PRIVATE
  -fno-exceptions -fno-rtti -ffp-contract=off -fno-math-errno -Wall -Wextra)
set_target_properties(sparsecore_kernels PROPERTIES
  POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
