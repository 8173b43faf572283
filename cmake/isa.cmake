# Which files of native/isa/ this target gets, and with which instruction-set flags.
#
# One file is one instruction-set level and is compiled with that level's flags, so it may only
# run after the dispatcher has asked the CPU. Nothing in such a file may have external weak
# linkage: the linker keeps ONE copy of an inline function, and a copy compiled for AVX-512 that
# the scalar path calls is an illegal instruction on an older machine. cmake/check_isa_objects.py
# looks for it.
#
# A file of another architecture is left out. A file whose flags the compiler does not know is
# left out with a message. Each file that is in gets a definition INSULA_HAVE_<NAME>=1 (AVX2,
# AVXVNNI_EVEX, …) on the whole library, so that the dispatch table lists what was compiled.
include(CheckCXXCompilerFlag)

if(CMAKE_OSX_ARCHITECTURES)
  set(INSULA_ARCH "${CMAKE_OSX_ARCHITECTURES}")
else()
  set(INSULA_ARCH "${CMAKE_SYSTEM_PROCESSOR}")
endif()
if(INSULA_ARCH MATCHES "^(x86_64|AMD64|amd64)$")
  set(INSULA_ARCH x86_64)
elseif(INSULA_ARCH MATCHES "^(aarch64|arm64|ARM64)$")
  set(INSULA_ARCH arm64)
endif()

# name | architecture | flags of GCC and Clang (clang-cl on Windows takes them too) | zig's, where
# it has no name for those
set(INSULA_ISA_TABLE
  "scalar|any|-O2"
  "avx2|x86_64|-mavx2 -mfma -mf16c"
  "avxvnni|x86_64|-mavx2 -mfma -mf16c -mavxvnni"
  "avxvnni_evex|x86_64|-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mprefer-vector-width=256"
  "avx512|x86_64|-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni"
  "amx|x86_64|-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mamx-tile -mamx-int8"
  "neon|arm64|"
  "neon_dotprod|arm64|-march=armv8.2-a+dotprod|-mcpu=generic+v8_2a+dotprod"
  "neon_i8mm|arm64|-march=armv8.2-a+dotprod+i8mm|-mcpu=generic+v8_2a+dotprod+i8mm"
)

# insula_isa_sources(<sources-out> <definitions-out>)
function(insula_isa_sources sources_out definitions_out)
  file(GLOB files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/native/isa/*.cpp)
  set(sources)
  set(definitions)
  foreach(file IN LISTS files)
    get_filename_component(name ${file} NAME_WE)
    set(row)
    foreach(candidate IN LISTS INSULA_ISA_TABLE)
      if(candidate MATCHES "^${name}\\|")
        set(row "${candidate}")
      endif()
    endforeach()
    if(NOT row)
      message(FATAL_ERROR "native/isa/${name}.cpp has no row in INSULA_ISA_TABLE of cmake/isa.cmake")
    endif()
    string(REGEX MATCH "^([^|]*)\\|([^|]*)\\|([^|]*)\\|?([^|]*)$" _ "${row}")
    set(arch "${CMAKE_MATCH_2}")
    set(flags "${CMAKE_MATCH_3}")
    if(CMAKE_MATCH_4 AND DEFINED INSULA_ZIG)
      set(flags "${CMAKE_MATCH_4}")
    endif()
    if(NOT (arch STREQUAL "any" OR arch STREQUAL INSULA_ARCH))
      continue()
    endif()
    string(TOUPPER "${name}" upper)
    if(flags)
      set(CMAKE_REQUIRED_QUIET TRUE)
      set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY) # nothing is linked with these flags
      check_cxx_compiler_flag("${flags}" INSULA_FLAGS_OF_${upper})
      if(NOT INSULA_FLAGS_OF_${upper})
        message(STATUS "native/isa/${name}.cpp left out: the compiler does not know ${flags}")
        continue()
      endif()
    endif()
    separate_arguments(flag_list NATIVE_COMMAND "${flags}")
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # its intrinsics' own headers trip these warnings
      list(APPEND flag_list -Wno-maybe-uninitialized -Wno-uninitialized)
    endif()
    # Optimized and instrumented, these files take many minutes to compile: fuzzers do without the
    # instruments (no parser calls a kernel), sanitized tests without the undefined-behaviour ones
    # where intrinsics leave nothing to find.
    if(INSULA_FUZZ)
      list(APPEND flag_list -O1 -fno-sanitize=all)
    elseif(INSULA_SANITIZE)
      list(APPEND flag_list -O1)
      if(NOT name STREQUAL scalar)
        list(APPEND flag_list -fno-sanitize=undefined)
      endif()
    endif()
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${flag_list}"
      SKIP_UNITY_BUILD_INCLUSION ON)
    list(APPEND sources ${file})
    list(APPEND definitions INSULA_HAVE_${upper}=1)
  endforeach()
  set(${sources_out} ${sources} PARENT_SCOPE)
  set(${definitions_out} ${definitions} PARENT_SCOPE)
endfunction()
