# SPDX-License-Identifier: Apache-2.0
# Target sparsecore_torch: the stable-ABI headers of the torch that sparsecore will run with, and a
# stand-in for libtorch_cpu.so. Headers of any torch >= 2.10 give the same binary interface.

set(SPARSECORE_TORCH_INCLUDE "$ENV{SPARSECORE_TORCH_INCLUDE}" CACHE PATH
    "Folder that holds torch/csrc/stable; empty: that of the torch installed for this Python")

set(stable_header torch/csrc/stable/library.h)
if(NOT SPARSECORE_TORCH_INCLUDE)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
  # pip's isolation hides site-packages from sys.path, not from sysconfig and site.
  execute_process(COMMAND ${Python_EXECUTABLE} -c "
import pathlib, site, sys, sysconfig
for root in [*sys.path, sysconfig.get_paths()['purelib'], *site.getsitepackages(), site.getusersitepackages()]:
    include = pathlib.Path(root, 'torch', 'include')
    if (include / '${stable_header}').is_file():
        print(include, end='')
        break
" OUTPUT_VARIABLE include COMMAND_ERROR_IS_FATAL ANY)
else()
  set(include ${SPARSECORE_TORCH_INCLUDE})
endif()

set(version_header ${include}/torch/headeronly/version.h)
set(torch_version "")
if(EXISTS ${include}/${stable_header} AND EXISTS ${version_header})
  file(READ ${version_header} text)
  string(REGEX MATCH "TORCH_VERSION_MAJOR ([0-9]+)" _ "${text}")
  set(torch_version ${CMAKE_MATCH_1})
  string(REGEX MATCH "TORCH_VERSION_MINOR ([0-9]+)" _ "${text}")
  string(APPEND torch_version .${CMAKE_MATCH_1})
endif()
if(NOT torch_version OR torch_version VERSION_LESS 2.10)
  message(FATAL_ERROR "sparsecore needs the headers of torch >= 2.10 and found "
    "'${include}' (version '${torch_version}') for ${Python_EXECUTABLE}.\n"
    "Install torch first (pip install 'torch>=2.10'). A build tool that hides it (uv): add "
    "--no-build-isolation, or name the folder: -C cmake.define.SPARSECORE_TORCH_INCLUDE=<...>/torch/include")
endif()
message(STATUS "torch ${torch_version} headers: ${include}")
set(SPARSECORE_TORCH_VERSION ${torch_version})

# Empty, with the real one's soname: the loader takes the libtorch_cpu.so already in the process.
file(GENERATE OUTPUT stand_in/empty.cpp CONTENT "")
add_library(sparsecore_torch_stand_in SHARED ${CMAKE_CURRENT_BINARY_DIR}/stand_in/empty.cpp)
set_target_properties(sparsecore_torch_stand_in PROPERTIES
  OUTPUT_NAME torch_cpu LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/stand_in)

add_library(sparsecore_torch INTERFACE)
target_include_directories(sparsecore_torch SYSTEM INTERFACE ${include})
target_compile_definitions(sparsecore_torch INTERFACE TORCH_TARGET_VERSION=0x020a000000000000ULL)
target_link_libraries(sparsecore_torch INTERFACE
  -Wl,--no-as-needed sparsecore_torch_stand_in -Wl,--as-needed)
