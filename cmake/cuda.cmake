# SPDX-License-Identifier: Apache-2.0
# Target sparsecore_cuda: libsparsecore_cuda.so, every op's CUDA kernels (csrc/ops/*/*.cu, by nvcc) and their bindings
# (csrc/ops/*/op_cuda.cpp, by the C++ compiler), loaded by a torch with CUDA. Needs nvcc, and neither a GPU nor torch's
# CUDA build: kernels do not know torch, and bindings use the stable headers that every torch has. Defines
# SPARSECORE_CUDA_FOUND and, for built_with.py, SPARSECORE_NVCC ("" without). Binaries of nvcc 13 ask for a driver of
# CUDA 13.

set(SPARSECORE_CUDA AUTO CACHE STRING "Build CUDA kernels: AUTO (where nvcc is found), ON, OFF")
# Machine code for A100, H100 and B100; other cards from compute capability 12 on compile the last row when loaded.
set(SPARSECORE_CUDA_TARGETS "80-real;90a-real;100a-real;120-virtual" CACHE STRING "CMAKE_CUDA_ARCHITECTURES")
set(oldest_nvcc 12.8) # knows 100a and 120

set(SPARSECORE_NVCC "")
set(SPARSECORE_CUDA_FOUND OFF)
if(NOT SPARSECORE_CUDA STREQUAL "OFF")
  find_program(SPARSECORE_NVCC_PATH nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
               PATH_SUFFIXES bin)
  if(SPARSECORE_NVCC_PATH)
    execute_process(COMMAND ${SPARSECORE_NVCC_PATH} --version OUTPUT_VARIABLE said)
    string(REGEX MATCH "V([0-9.]+)" _ "${said}")
    if(CMAKE_MATCH_1 VERSION_GREATER_EQUAL oldest_nvcc)
      set(SPARSECORE_NVCC ${CMAKE_MATCH_1})
      set(SPARSECORE_CUDA_FOUND ON)
    endif()
  endif()
  if(NOT SPARSECORE_CUDA_FOUND)
    set(why "no nvcc >= ${oldest_nvcc} in PATH, CUDA_HOME or /usr/local/cuda: sparsecore is built without CUDA kernels")
    if(SPARSECORE_CUDA STREQUAL "ON")
      message(FATAL_ERROR "${why}")
    endif()
    message(STATUS "${why}")
  endif()
endif()
if(NOT SPARSECORE_CUDA_FOUND)
  return()
endif()

message(STATUS "CUDA kernels by nvcc ${SPARSECORE_NVCC} for ${SPARSECORE_CUDA_TARGETS}")
set(CMAKE_CUDA_COMPILER ${SPARSECORE_NVCC_PATH})
set(CMAKE_CUDA_ARCHITECTURES ${SPARSECORE_CUDA_TARGETS})
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
enable_language(CUDA)

file(GLOB kernels CONFIGURE_DEPENDS csrc/ops/*/*.cu)
file(GLOB bindings CONFIGURE_DEPENDS csrc/ops/*/op_cuda.cpp)

add_library(sparsecore_torch_cuda_stand_in SHARED ${CMAKE_CURRENT_BINARY_DIR}/stand_in/empty.cpp)
set_target_properties(sparsecore_torch_cuda_stand_in PROPERTIES
  OUTPUT_NAME torch_cuda LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/stand_in)

add_library(sparsecore_cuda_kernels OBJECT ${kernels})
target_include_directories(sparsecore_cuda_kernels PRIVATE csrc)
# Not cuda_std_20: CMake 3.25 knows no standard of nvcc 13.
# A file's targets side by side.
target_compile_options(sparsecore_cuda_kernels PRIVATE
  -std=c++20 --expt-relaxed-constexpr --threads=4 -Xcompiler=-Wall,-Wextra)
set_target_properties(sparsecore_cuda_kernels PROPERTIES
  POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)

add_library(sparsecore_cuda MODULE ${bindings} $<TARGET_OBJECTS:sparsecore_cuda_kernels>)
target_include_directories(sparsecore_cuda PRIVATE csrc)
target_compile_features(sparsecore_cuda PRIVATE cxx_std_20)
target_compile_options(sparsecore_cuda PRIVATE -Wall -Wextra)
target_precompile_headers(sparsecore_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${CMAKE_CURRENT_SOURCE_DIR}/csrc/torch/cuda.h>)
# USE_CUDA: what torch's headers ask for before they declare the function that gives the current stream.
target_compile_definitions(sparsecore_cuda PRIVATE USE_CUDA)
target_link_options(sparsecore_cuda PRIVATE LINKER:--no-as-needed LINKER:--exclude-libs,ALL)
target_link_libraries(sparsecore_cuda PRIVATE sparsecore_torch_cuda_stand_in sparsecore_torch)
set_target_properties(sparsecore_cuda PROPERTIES
  LINKER_LANGUAGE CUDA CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
install(TARGETS sparsecore_cuda LIBRARY DESTINATION sparsecore/lib)

# What was built, for the doctor: each kernel file and the hash of all that it is made of.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
file(GLOB_RECURSE headers CONFIGURE_DEPENDS csrc/*.h)
set(ledger ${CMAKE_CURRENT_LIST_DIR}/../python/sparsecore/ledger.py)
add_custom_command(OUTPUT cuda_kernels.json
  COMMAND ${Python_EXECUTABLE} ${ledger} manifest ${CMAKE_CURRENT_SOURCE_DIR}/csrc cuda_kernels.json
  DEPENDS ${kernels} ${headers} ${ledger} VERBATIM)
add_custom_target(sparsecore_cuda_manifest ALL DEPENDS cuda_kernels.json)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cuda_kernels.json DESTINATION sparsecore)
