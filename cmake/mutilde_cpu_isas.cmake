# One program for every x86-64: with MUTILDE_NATIVE=OFF, `core` holds the kernels of core/cpu four
# times, compiled like the rest ("plain"), for AVX2, for AVX-512 and for AVX-512 with bfloat16.
# core/cpu_isa.cpp chooses at start.
# Other processors, and MUTILDE_NATIVE=ON, have them once.
#
# The trap: the four copies define the same functions, ours and those that they instantiate of std::,
# and a linker keeps one definition of each name, whichever comes first. A std::vector<int64_t> grown by
# AVX-512's instructions could so become that of the whole program, which an AVX2 machine would end by an
# illegal instruction. No namespace of ours keeps std:: out of that. So a copy is closed before the linker
# sees it:
#   ld -r                       links its objects into one, every reference bound inside the copy;
#   --force-group-allocation    dissolves the groups (COMDAT) of inline functions and templates, which the
#                               final link would match by name even where the names are local, and drop;
#   objcopy --keep-global-symbol   makes every definition local but one constant (core/cpu/kernels.h).
# tests/core/isa_objects.sh holds the objects to it. Exceptions still pass from a copy to its callers: the
# C++ library compares their types by name.
set(MUTILDE_ALL_ISAS OFF)
set(chooser ${PROJECT_SOURCE_DIR}/core/cpu_isa.cpp)
if(MUTILDE_NATIVE)
  set_source_files_properties(${chooser} PROPERTIES COMPILE_DEFINITIONS MUTILDE_NATIVE)
  return()
endif()
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  return()
endif()
# GNU's, even where clang is the compiler and CMake prefers LLVM's, which cannot dissolve groups.
find_program(MUTILDE_GNU_LD NAMES ld.bfd ld)
find_program(MUTILDE_GNU_OBJCOPY NAMES ${CMAKE_SYSTEM_PROCESSOR}-linux-gnu-objcopy objcopy)
mark_as_advanced(MUTILDE_GNU_LD MUTILDE_GNU_OBJCOPY)
execute_process(COMMAND ${MUTILDE_GNU_LD} --help OUTPUT_VARIABLE linker_help ERROR_QUIET)
if(NOT MUTILDE_GNU_OBJCOPY OR NOT linker_help MATCHES "--force-group-allocation")
  message(FATAL_ERROR "MUTILDE_NATIVE=OFF needs GNU ld and objcopy (Debian's binutils): "
                      "-DMUTILDE_GNU_LD=... -DMUTILDE_GNU_OBJCOPY=...")
endif()
set(MUTILDE_ALL_ISAS ON)

function(mutilde_cpu_isa isa)  # mutilde_cpu_isa(ISA FLAG...)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/core/cpu/*.cpp)
  add_library(cpu_${isa} OBJECT ${sources})
  set_target_properties(cpu_${isa} PROPERTIES POSITION_INDEPENDENT_CODE ON INTERPROCEDURAL_OPTIMIZATION OFF)
  mutilde_options(cpu_${isa})
  # Not "unique" either, a kind of symbol for static variables in templates that objcopy leaves global.
  target_compile_options(cpu_${isa} PRIVATE ${ARGN} $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
  target_include_directories(cpu_${isa} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(cpu_${isa} PRIVATE fmt::fmt)
  if(MUTILDE_OPENMP)
    target_link_libraries(cpu_${isa} PRIVATE OpenMP::OpenMP_CXX)
  endif()
  set(object ${PROJECT_BINARY_DIR}/cpu_${isa}.o)
  set(name kMutildeCpuKernels)
  add_custom_command(OUTPUT ${object}
    # -d: a variable that has no place yet (clang's for OpenMP's reductions) gets it in the copy.
    COMMAND ${MUTILDE_GNU_LD} -r -d --force-group-allocation -o ${object} $<TARGET_OBJECTS:cpu_${isa}>
    COMMAND ${MUTILDE_GNU_OBJCOPY} --redefine-sym ${name}=${name}_${isa} --keep-global-symbol=${name}_${isa} ${object}
    DEPENDS cpu_${isa} $<TARGET_OBJECTS:cpu_${isa}>
    COMMENT "The CPU kernels for ${isa}" COMMAND_EXPAND_LISTS VERBATIM)
  target_sources(core PRIVATE ${object})
  set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
endfunction()

# The flags are what core/cpu_isa.cpp asks the processor for, no more.
mutilde_cpu_isa(avx2 -mavx2 -mfma)
set(avx512 -mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl)
mutilde_cpu_isa(avx512 ${avx512})
mutilde_cpu_isa(avx512bf16 ${avx512} -mavx512bf16)
set_source_files_properties(${chooser} PROPERTIES COMPILE_DEFINITIONS MUTILDE_ALL_ISAS)
