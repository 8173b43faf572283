# Toolchain file: zig (the `ziglang` wheel) as the C++ compiler, for machines without one, for
# wheels that run on an older glibc, and for cross-compiling.
#
# From the cache or the environment:
#   INSULA_ZIG         path of the zig executable
#   INSULA_ZIG_TARGET  its target, for example x86_64-linux-gnu.2.28 or aarch64-macos
foreach(name INSULA_ZIG INSULA_ZIG_TARGET)
  if(NOT DEFINED ${name})
    set(${name} "$ENV{${name}}")
  endif()
  set(${name} "${${name}}" CACHE STRING "")
  if("${${name}}" STREQUAL "")
    message(FATAL_ERROR "cmake/zig.cmake needs ${name}")
  endif()
endforeach()
# try_compile reads this file again in a project of its own.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES INSULA_ZIG INSULA_ZIG_TARGET)

if(NOT INSULA_ZIG_TARGET MATCHES "^([a-z0-9_]+)-([a-z]+)(-.*)?$")
  message(FATAL_ERROR "INSULA_ZIG_TARGET is '${INSULA_ZIG_TARGET}', not a target of zig's")
endif()
set(zig_processor "${CMAKE_MATCH_1}")
set(zig_system "${CMAKE_MATCH_2}")
string(REPLACE "linux" "Linux" zig_system "${zig_system}")
string(REPLACE "macos" "Darwin" zig_system "${zig_system}")
string(REPLACE "windows" "Windows" zig_system "${zig_system}")
if(NOT (zig_system STREQUAL CMAKE_HOST_SYSTEM_NAME
        AND zig_processor STREQUAL CMAKE_HOST_SYSTEM_PROCESSOR))
  set(CMAKE_SYSTEM_NAME "${zig_system}")
  set(CMAKE_SYSTEM_PROCESSOR "${zig_processor}")
endif()

# CMake wants the archiver as one file, so the subcommands become two small scripts.
set(zig_tools "${CMAKE_CURRENT_LIST_DIR}/../build/zig")
foreach(tool ar ranlib)
  set(wrapper "${zig_tools}/${tool}")
  set(content "#!/bin/sh\nexec \"${INSULA_ZIG}\" ${tool} \"$@\"\n")
  if(EXISTS "${wrapper}")
    file(READ "${wrapper}" present)
  else()
    set(present "")
  endif()
  if(NOT present STREQUAL content)
    file(WRITE "${wrapper}" "${content}")
    file(CHMOD "${wrapper}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  endif()
  string(TOUPPER ${tool} upper)
  set(CMAKE_${upper} "${wrapper}" CACHE FILEPATH "" FORCE)
endforeach()

set(CMAKE_CXX_COMPILER "${INSULA_ZIG}" c++)
set(CMAKE_CXX_COMPILER_TARGET "${INSULA_ZIG_TARGET}")
# Zig turns undefined-behaviour traps on in builds without optimization.
set(CMAKE_CXX_FLAGS_INIT "-fno-sanitize=undefined")
