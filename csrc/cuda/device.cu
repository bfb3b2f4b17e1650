// What CUDA devices are there. Static runtime: loads without a driver and reports its absence.
#include <cuda_runtime.h>

#include <stdexcept>

#include "../fastgen.h"

#ifndef FASTGEN_CUDA_ARCHS
#error "the build passes the compiled architectures in FASTGEN_CUDA_ARCHS"
#endif

namespace fastgen {

int cuda_device_count(std::string* error) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return count;
  cudaGetLastError();  // clear it, so that it is not reported by a later call
  *error = cudaGetErrorString(status);
  return 0;
}

CudaDevice cuda_device(int index) {
  cudaDeviceProp properties;
  const cudaError_t status = cudaGetDeviceProperties(&properties, index);
  if (status != cudaSuccess) {
    cudaGetLastError();
    throw std::invalid_argument("CUDA device " + std::to_string(index) + ": " +
                                cudaGetErrorString(status));
  }
  return {properties.name,
          properties.major,
          properties.minor,
          properties.totalGlobalMem,
          properties.multiProcessorCount,
          static_cast<int>(properties.sharedMemPerBlockOptin)};
}

std::string cuda_compiled_archs() { return FASTGEN_CUDA_ARCHS; }

int cuda_runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

const char* cuda_error_name(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace fastgen
