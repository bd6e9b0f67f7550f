# The CUDA backend is built one of three ways:
#   nvcc      by CUDA's compiler, for GPUs.
#   emulated  its .cu files as C++ against cuda/emulation, which runs kernels on the CPU. Only for
#             the tests (and for a debugger): the app never links it, and a build without tests needs
#             nothing of it.
#   off       not at all.
# The default is what can run here: nvcc on a machine with a GPU and CUDA's compiler, else emulated.
# (A compiler alone, as on the login node of a cluster, wants -DMUTILDE_CUDA=nvcc.)
find_program(MUTILDE_NVCC nvcc HINTS /usr/local/cuda/bin)
mark_as_advanced(MUTILDE_NVCC)
# C++20, which the sources are in, came to nvcc with CUDA 12.
set(nvcc_version 0)
if(MUTILDE_NVCC)
  execute_process(COMMAND ${MUTILDE_NVCC} --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET)
  if(nvcc_says MATCHES "release ([0-9.]+)")
    set(nvcc_version ${CMAKE_MATCH_1})
  endif()
endif()
set(default emulated)
if(nvcc_version VERSION_GREATER_EQUAL 12 AND (EXISTS /dev/nvidiactl OR EXISTS /dev/dxg))
  set(default nvcc)
endif()
set(MUTILDE_CUDA ${default} CACHE STRING "How to build the CUDA backend: nvcc, emulated or off")
set_property(CACHE MUTILDE_CUDA PROPERTY STRINGS nvcc emulated off)
if(NOT MUTILDE_CUDA MATCHES "^(nvcc|emulated|off)$")
  message(FATAL_ERROR "MUTILDE_CUDA is '${MUTILDE_CUDA}': nvcc, emulated or off")
endif()
if(MUTILDE_CUDA STREQUAL "emulated" AND NOT MUTILDE_TESTS)
  set(MUTILDE_CUDA off)
endif()

if(MUTILDE_CUDA STREQUAL "nvcc")
  if(MUTILDE_NVCC AND nvcc_version VERSION_LESS 12)
    message(FATAL_ERROR "${MUTILDE_NVCC} is of CUDA ${nvcc_version}; 12.0 is the least, for C++20")
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER ${MUTILDE_NVCC})
  endif()
  # Machine code for the GPUs from A100 to B200 (which CUDA knows since 12.8), and PTX that later ones
  # compile for themselves.
  set(all_gpus OFF)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(all_gpus ON)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90)
  endif()
  enable_language(CUDA)
  if(all_gpus AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90-real 100)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # nvcc has C++20 since 12.0, which CMake 3.25 does not know
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  endif()
endif()

# Sources of a target that holds CUDA code: .cu files by nvcc, or as C++.
function(mutilde_cuda_sources target)
  set(sources ${ARGN})
  list(FILTER sources INCLUDE REGEX "\\.cu$")
  if(MUTILDE_CUDA STREQUAL "emulated")
    set_source_files_properties(${sources} TARGET_DIRECTORY ${target} PROPERTIES LANGUAGE CXX)
  endif()
  target_sources(${target} PRIVATE ${ARGN})
endfunction()

if(MUTILDE_CUDA STREQUAL "emulated")
  find_package(Boost REQUIRED COMPONENTS context)  # libboost-context-dev
  file(GLOB emulation_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/emulation/*.cpp)
  add_library(cuda_emulation STATIC ${emulation_sources})
  mutilde_options(cuda_emulation)
  # In front of a real CUDA's headers, whose names its own have.
  target_include_directories(cuda_emulation BEFORE PUBLIC ${PROJECT_SOURCE_DIR}/cuda/emulation/include)
  target_link_libraries(cuda_emulation PUBLIC core PRIVATE Boost::context)
  # Of "#pragma unroll" g++ knows nothing, and clang complains where it does not do it.
  target_compile_options(cuda_emulation PUBLIC -Wno-unknown-pragmas -Wno-pass-failed)
  if(MUTILDE_OPENMP)
    target_link_libraries(cuda_emulation PRIVATE OpenMP::OpenMP_CXX)
  endif()
endif()

if(NOT MUTILDE_CUDA STREQUAL "off")
  file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/*.cu)
  add_library(cuda STATIC)
  set_target_properties(cuda PROPERTIES OUTPUT_NAME mutilde_cuda POSITION_INDEPENDENT_CODE ON)
  mutilde_cuda_sources(cuda ${cuda_sources})
  target_link_libraries(cuda PUBLIC core)
  if(MUTILDE_CUDA STREQUAL "emulated")
    mutilde_options(cuda)
    file(GLOB hopper_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/hopper/*.cu)
    mutilde_cuda_sources(cuda ${hopper_sources})
    target_link_libraries(cuda PUBLIC cuda_emulation)
  else()
    find_package(CUDAToolkit REQUIRED)
    target_link_libraries(cuda PUBLIC CUDA::cudart)
    # fmt 9 takes nvcc for a compiler without constexpr functions, and then does not compile.
    target_compile_definitions(cuda PUBLIC $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
    # The default stream is the calling thread's: the other cannot be captured (cuda/graph.h).
    target_compile_options(cuda PUBLIC "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:--default-stream per-thread>")
    # Instructions that only compute capability 9.0 has; code for other GPUs cannot hold them.
    file(GLOB hopper_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/hopper/*.cu)
    add_library(cuda_hopper OBJECT ${hopper_sources})
    set_target_properties(cuda_hopper PROPERTIES CUDA_ARCHITECTURES 90a-real POSITION_INDEPENDENT_CODE ON)
    target_link_libraries(cuda_hopper PRIVATE core CUDA::cudart)
    target_compile_definitions(cuda_hopper PRIVATE FMT_USE_CONSTEXPR=1)
    target_compile_options(cuda_hopper PRIVATE "SHELL:--default-stream per-thread")
    target_sources(cuda PRIVATE $<TARGET_OBJECTS:cuda_hopper>)
  endif()
endif()

# What a program links that takes a GPU where there is one: the backend, or what says that there is
# none (both are cuda/devices.h).
if(MUTILDE_CUDA STREQUAL "nvcc")
  set(gpu_target cuda)
else()
  set(gpu_target no_cuda)
  mutilde_library(no_cuda cuda/none)
  target_link_libraries(no_cuda PUBLIC core)
endif()
add_library(gpu ALIAS ${gpu_target})
set_target_properties(${gpu_target} PROPERTIES EXPORT_NAME gpu)
install(FILES ${PROJECT_SOURCE_DIR}/cuda/devices.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/mutilde/cuda)
