#include "driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "tensorrt.h"

namespace fastgen::tensorrt {

namespace {

#define FASTGEN_TEXT(name) #name
// Expands the macros of cuda.h: cuMemAlloc is cuMemAlloc_v2 in the library.
#define FASTGEN_SYMBOL(function) FASTGEN_TEXT(function)

// Retained once and kept: a primary context that is released resets the device under others.
CUcontext primary_context(int device) {
  static std::mutex mutex;
  static std::vector<CUcontext> contexts;
  const Driver& driver = Driver::get();
  driver.require(device);
  const std::lock_guard<std::mutex> lock(mutex);
  contexts.resize(static_cast<size_t>(driver.devices()), nullptr);
  CUcontext& context = contexts[static_cast<size_t>(device)];
  if (context == nullptr) {
    CUdevice handle;
    driver.check(driver.cuDeviceGet_(&handle, device), "cuDeviceGet");
    driver.check(driver.cuDevicePrimaryCtxRetain_(&context, handle), "cuDevicePrimaryCtxRetain");
  }
  return context;
}

}  // namespace

const Driver& Driver::get() {
  static const Driver driver;
  return driver;
}

Driver::Driver() {
  why_not_ = open();
  if (!why_not_.empty()) devices_ = 0;
}

std::string Driver::open() {
  const char* named = std::getenv("FASTGEN_CUDA_DRIVER");
  const std::string path = named != nullptr && *named != '\0' ? named : "libcuda.so.1";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return "the NVIDIA driver was not found (" + path + "); install it, or use another machine";
  std::string missing;
#define FASTGEN_LOAD(function)                                                                     \
  function##_ = reinterpret_cast<decltype(function##_)>(dlsym(library, FASTGEN_SYMBOL(function))); \
  if (function##_ == nullptr && missing.empty()) missing = FASTGEN_SYMBOL(function);
  FASTGEN_DRIVER_FUNCTIONS(FASTGEN_LOAD)
#undef FASTGEN_LOAD
  if (!missing.empty())
    return "the NVIDIA driver is too old: " + path + " has no " + missing + "; update it";
  const CUresult status = cuInit_(0);
  if (status != CUDA_SUCCESS) {
    const char* text = nullptr;
    cuGetErrorString_(status, &text);
    return std::string("the NVIDIA driver finds no usable device: ") +
           (text != nullptr ? text : "unknown error") + "; see nvidia-smi";
  }
  cuDriverGetVersion_(&version_);
  if (cuDeviceGetCount_(&devices_) != CUDA_SUCCESS || devices_ < 1)
    return "there is no NVIDIA GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES";
  return "";
}

void Driver::check(CUresult result, const char* what) const {
  if (result == CUDA_SUCCESS) return;
  const char* text = nullptr;
  cuGetErrorString_(result, &text);
  const std::string reason = text != nullptr ? text : "error " + std::to_string(result);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) throw OutOfMemory(std::string(what) + ": " + reason);
  throw std::runtime_error(std::string(what) + ": " + reason);
}

void Driver::require(int device) const {
  if (!why_not_.empty()) throw Unavailable(why_not_);
  if (device < 0 || device >= devices_)
    throw Unavailable("CUDA device " + std::to_string(device) + " does not exist; there are " +
                      std::to_string(devices_));
}

std::string Driver::name(int device) const {
  require(device);
  char text[256] = "";
  CUdevice handle;
  check(cuDeviceGet_(&handle, device), "cuDeviceGet");
  check(cuDeviceGetName_(text, sizeof(text), handle), "cuDeviceGetName");
  return text;
}

int Driver::capability(int device) const {
  require(device);
  CUdevice handle;
  int major = 0, minor = 0;
  check(cuDeviceGet_(&handle, device), "cuDeviceGet");
  check(cuDeviceGetAttribute_(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle),
        "cuDeviceGetAttribute");
  check(cuDeviceGetAttribute_(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle),
        "cuDeviceGetAttribute");
  return 10 * major + minor;
}

DeviceScope::DeviceScope(int device) {
  const CUcontext context = primary_context(device);
  const Driver& driver = Driver::get();
  driver.check(driver.cuCtxGetCurrent_(&before_), "cuCtxGetCurrent");
  driver.check(driver.cuCtxSetCurrent_(context), "cuCtxSetCurrent");
}

DeviceScope::~DeviceScope() { Driver::get().cuCtxSetCurrent_(before_); }

}  // namespace fastgen::tensorrt
