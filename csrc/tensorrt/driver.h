// The CUDA driver, opened at run time: nothing of CUDA is linked, so the module loads everywhere.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace fastgen::tensorrt {

// The functions that are used, with their newest versions' names (cuda.h renames them by macros).
#define FASTGEN_DRIVER_FUNCTIONS(X) \
  X(cuInit)                         \
  X(cuDriverGetVersion)             \
  X(cuGetErrorString)               \
  X(cuDeviceGetCount)               \
  X(cuDeviceGet)                    \
  X(cuDeviceGetName)                \
  X(cuDeviceGetAttribute)           \
  X(cuDevicePrimaryCtxRetain)       \
  X(cuCtxGetCurrent)                \
  X(cuCtxSetCurrent)                \
  X(cuMemAlloc)                     \
  X(cuMemFree)                      \
  X(cuMemHostAlloc)                 \
  X(cuMemFreeHost)                  \
  X(cuMemcpyHtoDAsync)              \
  X(cuMemcpyDtoHAsync)              \
  X(cuStreamCreate)                 \
  X(cuStreamDestroy)                \
  X(cuStreamSynchronize)            \
  X(cuStreamBeginCapture)           \
  X(cuStreamEndCapture)             \
  X(cuGraphInstantiateWithFlags)    \
  X(cuGraphLaunch)                  \
  X(cuGraphExecDestroy)             \
  X(cuGraphDestroy)

class Driver {
 public:
  // Opens libcuda.so.1 (FASTGEN_CUDA_DRIVER names another) and initialises it, once.
  static const Driver& get();

  // Empty when there is a device, else the reason why not.
  const std::string& why_not() const { return why_not_; }
  int devices() const { return devices_; }
  int version() const { return version_; }  // 13000 for CUDA 13.0

  // Throws Unavailable or std::runtime_error with the driver's words.
  void check(CUresult result, const char* what) const;
  // Throws Unavailable where there is no such device.
  void require(int device) const;
  std::string name(int device) const;
  int capability(int device) const;  // 90 for 9.0

#define FASTGEN_DECLARE(function) decltype(&::function) function##_ = nullptr;
  FASTGEN_DRIVER_FUNCTIONS(FASTGEN_DECLARE)
#undef FASTGEN_DECLARE

 private:
  Driver();
  std::string open();

  std::string why_not_;
  int devices_ = 0, version_ = 0;
};

// Makes a device's primary context, the one that PyTorch uses too, current for a scope.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  CUcontext before_ = nullptr;
};

}  // namespace fastgen::tensorrt
