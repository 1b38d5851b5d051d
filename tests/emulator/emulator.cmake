# SPDX-License-Identifier: Apache-2.0
# Target emulator, and add_emulated(<target> <kernel files>): CUDA kernel files as they are, compiled as C++ for it.
# After cmake/kernels.cmake, which sets `csrc`.

set(emulator ${CMAKE_CURRENT_LIST_DIR})
add_library(emulator OBJECT ${emulator}/emulator.cpp ${emulator}/memory.cpp ${emulator}/mma.cpp ${emulator}/on_device.cpp)
target_include_directories(emulator PUBLIC ${emulator}/include ${emulator} ${csrc})  # in this order
target_compile_features(emulator PUBLIC cxx_std_20)
target_compile_options(emulator PRIVATE -Wall -Wextra)
if(CMAKE_CXX_FLAGS MATCHES -fsanitize=address)
  # It is told of fibers' stacks and of shared memory, but does not look at the scheduler: calls take half the time.
  target_compile_options(emulator PRIVATE -O2 -fno-sanitize=all)
  target_compile_definitions(emulator PRIVATE EMULATOR_UNDER_ASAN)
endif()
set_target_properties(emulator PROPERTIES POSITION_INDEPENDENT_CODE ON)

function(add_emulated target)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
  add_library(${target} OBJECT ${ARGN})
  target_include_directories(${target} PRIVATE ${emulator}/include ${emulator} ${csrc})
  target_compile_features(${target} PRIVATE cxx_std_20)
  # nvcc contracts a * b + c, which the bound of errors covers either way. -O1 keeps accesses as they are written.
  target_compile_options(${target} PRIVATE -x c++ -O1 -fno-extern-tls-init -fno-tree-sra -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-variable)
  if(NOT CMAKE_CXX_FLAGS MATCHES -fsanitize=address) # which checks accesses itself, but can't both
    target_compile_options(${target} PRIVATE -fsanitize=thread -Wno-tsan)
  endif()
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
endfunction()
