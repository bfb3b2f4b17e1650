# fastgen._tensorrt. Only headers are needed, of TensorRT and CUDA: the libraries are opened at run
# time. Classes differ between TensorRT's major versions, so csrc/tensorrt/abi.cpp is compiled once
# for each version found, as nvinfer1_<major> instead of nvinfer1 so that none is mixed with another.
function(fastgen_tensorrt_missing reason)
  if(FASTGEN_TENSORRT STREQUAL "ON")
    message(FATAL_ERROR "FASTGEN_TENSORRT=ON, but ${reason}")
  endif()
  message(STATUS "fastgen._tensorrt: not built (${reason})")
endfunction()

# A colon separates folders too, as in PATH: CMake's own semicolon needs quoting in a shell.
string(REPLACE ":" ";" roots "${TENSORRT_ROOT}")
set(majors "")
foreach(root ${roots} /usr/include/x86_64-linux-gnu /usr/include/aarch64-linux-gnu
             /usr/local/tensorrt)
  foreach(folder "${root}/include" "${root}")
    if(EXISTS "${folder}/NvInfer.h" AND EXISTS "${folder}/NvOnnxParser.h")
      # The number itself, or the name of the constant that has it.
      file(STRINGS "${folder}/NvInferVersion.h" lines REGEX "#define [A-Z_]*(MAJOR|MAJOR_[A-Z]+) ")
      string(REGEX MATCH "NV_TENSORRT_MAJOR ([A-Za-z0-9_]+)" _ "${lines}")
      set(major "${CMAKE_MATCH_1}")
      if(major MATCHES "[A-Z]")
        string(REGEX MATCH "${major} ([0-9]+)" _ "${lines}")
        set(major "${CMAKE_MATCH_1}")
      endif()
      if(NOT major MATCHES "^(1|10|11)$")
        message(STATUS "fastgen._tensorrt: ${folder} has TensorRT ${major}; 10 and 11 are known")
      elseif(NOT major IN_LIST majors)
        list(APPEND majors ${major})
        set(include_${major} "${folder}")
      endif()
      break()
    endif()
  endforeach()
endforeach()

find_path(FASTGEN_CUDA_INCLUDE cuda_runtime_api.h
          HINTS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} $ENV{CUDA_HOME}/include
                $ENV{CUDA_PATH}/include /usr/local/cuda/include)
if(NOT majors)
  fastgen_tensorrt_missing("NvInfer.h and NvOnnxParser.h were not found; set TENSORRT_ROOT")
  return()
endif()
if(NOT FASTGEN_CUDA_INCLUDE)
  fastgen_tensorrt_missing("cuda_runtime_api.h was not found; set FASTGEN_CUDA_INCLUDE")
  return()
endif()

set(tensorrt csrc/tensorrt)
set(objects "")
set(list "")
set(compile_options -Wall -Wextra)
if(FASTGEN_WERROR)
  list(APPEND compile_options -Werror)
endif()
foreach(major ${majors})
  add_library(tensorrt_abi_${major} OBJECT ${tensorrt}/abi.cpp)
  target_compile_definitions(
    tensorrt_abi_${major} PRIVATE FASTGEN_TENSORRT_ABI=${major} nvinfer1=nvinfer1_${major}
                                  nvonnxparser=nvonnxparser_${major})
  # System folders: the headers warn about themselves.
  target_include_directories(tensorrt_abi_${major} SYSTEM PRIVATE "${include_${major}}"
                                                                  "${FASTGEN_CUDA_INCLUDE}")
  # Version 11 calls deprecated what version 10 requires.
  target_compile_options(tensorrt_abi_${major} PRIVATE ${compile_options}
                                                       -Wno-deprecated-declarations)
  list(APPEND objects $<TARGET_OBJECTS:tensorrt_abi_${major}>)
  string(APPEND list " X(${major})")
endforeach()
file(GENERATE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/tensorrt/tensorrt_abis.h"
     CONTENT "#define FASTGEN_TENSORRT_ABIS(X)${list}\n")
pybind11_add_module(_tensorrt csrc/bindings_tensorrt.cpp ${tensorrt}/driver.cpp
                    ${tensorrt}/library.cpp ${objects})
target_include_directories(_tensorrt PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/tensorrt")
target_include_directories(_tensorrt SYSTEM PRIVATE "${FASTGEN_CUDA_INCLUDE}")
target_compile_options(_tensorrt PRIVATE ${compile_options})
target_link_libraries(_tensorrt PRIVATE ${CMAKE_DL_LIBS})
install(TARGETS _tensorrt LIBRARY DESTINATION fastgen)
message(STATUS "fastgen._tensorrt: built with the headers of TensorRT ${majors}")
