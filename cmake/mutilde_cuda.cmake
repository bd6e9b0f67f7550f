# The CUDA backend is built one of three ways:
#   emulated  its .cu files as C++ against cuda/emulation, which runs kernels on the CPU. Only for
#             the tests (and for a debugger), so a build without them needs nothing of this.
#   nvcc      by CUDA's compiler, for GPUs.
#   off       not at all.
# The default is `off` until the backend is whole: nothing uses its kernels yet.
set(MUTILDE_CUDA off CACHE STRING "How to build the CUDA backend: nvcc, emulated or off")
set_property(CACHE MUTILDE_CUDA PROPERTY STRINGS nvcc emulated off)
if(NOT MUTILDE_CUDA MATCHES "^(nvcc|emulated|off)$")
  message(FATAL_ERROR "MUTILDE_CUDA is '${MUTILDE_CUDA}': nvcc, emulated or off")
endif()
if(MUTILDE_CUDA STREQUAL "emulated" AND NOT MUTILDE_TESTS)
  set(MUTILDE_CUDA off)
endif()

if(MUTILDE_CUDA STREQUAL "nvcc")
  if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    # Machine code for the GPUs from A100 to B200, and PTX that later ones compile for themselves.
    set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90-real 100)
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
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
    target_link_libraries(cuda PUBLIC cuda_emulation)
  else()
    find_package(CUDAToolkit REQUIRED)
    target_link_libraries(cuda PUBLIC CUDA::cudart)
    # fmt 9 takes nvcc for a compiler without constexpr functions, and then does not compile.
    target_compile_definitions(cuda PUBLIC $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
  endif()
endif()
