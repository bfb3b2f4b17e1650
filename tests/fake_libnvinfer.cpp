// TensorRT's runtime and CUDA's driver on the host, for tests/test_tensorrt_runtime.py: what
// fastgen._tensorrt calls, with the real headers' classes. The network adds 1 to image (N,3,H,W).
//
// stubs.inc, which the test generates from NvInferImpl.h, has for each class V... a class Stub_V...
// whose functions end the process: a call of anything that is not below fails the test.
#include <NvInfer.h>
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <utility>
#include <vector>

[[noreturn]] void missing(const char* name) {
  std::fprintf(stderr, "the fake has no %s\n", name);
  std::abort();
}

#include "stubs.inc"

namespace {

using namespace nvinfer1;
using Work = std::function<void()>;

struct FakeStream {
  bool capturing = false;
  std::vector<Work> captured;
};

int context_depth = 0;  // a device is current
void launch(void* stream, Work work) {
  if (context_depth == 0) missing("current device at a launch");
  auto* found = static_cast<FakeStream*>(stream);
  if (found != nullptr && found->capturing)
    found->captured.push_back(std::move(work));
  else
    work();
}

Dims4 dims(int64_t n, int64_t h, int64_t w) { return Dims4(n, 3, h, w); }

struct ContextImpl : Stub_VExecutionContext {
  Dims shape{};
  float* image = nullptr;
  float* result = nullptr;
  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override {
    return profile == 0;
  }
  bool setInputShape(char const* name, Dims const& given) noexcept override {
    if (std::strcmp(name, "image") != 0 || given.nbDims != 4 || given.d[2] > 64) return false;
    shape = given;
    return true;
  }
  Dims getTensorShape(char const*) const noexcept override { return shape; }
  bool setTensorAddress(char const* name, void* data) noexcept override {
    (std::strcmp(name, "image") == 0 ? image : result) = static_cast<float*>(data);
    return true;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (std::getenv("FAKE_FAILS") != nullptr) return false;
    const int64_t count = shape.d[0] * shape.d[1] * shape.d[2] * shape.d[3];
    launch(stream, [count, from = image, to = result] {
      for (int64_t i = 0; i < count; ++i) to[i] = from[i] + 1;
    });
    return true;
  }
};

void needs_device(const char* when) {
  if (context_depth == 0) missing(when);
}

struct FakeContext : IExecutionContext {
  ContextImpl impl;
  FakeContext() { mImpl = &impl; }
  ~FakeContext() noexcept override { needs_device("current device when a context ends"); }
};

struct EngineImpl : Stub_VCudaEngine {
  int32_t getNbOptimizationProfiles() const noexcept override { return 1; }
  int32_t getNbIOTensors() const noexcept override { return 2; }
  char const* getIOTensorName(int32_t i) const noexcept override {
    return i == 0 ? "image" : "stylized";
  }
  DataType getTensorDataType(char const*) const noexcept override { return DataType::kFLOAT; }
  TensorIOMode getTensorIOMode(char const* name) const noexcept override {
    return std::strcmp(name, "image") == 0 ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  Dims getTensorShape(char const*) const noexcept override { return dims(-1, -1, -1); }
  Dims getProfileShape(char const*, int32_t, OptProfileSelector s) const noexcept override {
    return s == OptProfileSelector::kMIN ? dims(1, 8, 8) : dims(1, 64, 64);
  }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
    return new FakeContext;
  }
};

int engines = 0, runtimes = 0;

struct FakeEngine : ICudaEngine {
  EngineImpl impl;
  FakeEngine() {
    mImpl = &impl;
    ++engines;
  }
  ~FakeEngine() noexcept override {
    if (runtimes == 0) missing("runtime when an engine ends");
    needs_device("current device when an engine ends");
    --engines;
  }
};

struct RuntimeImpl : Stub_VRuntime {
  ILogger* logger = nullptr;
  ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
    if (size == 6 && std::memcmp(blob, "ENGINE", 6) == 0) return new FakeEngine;
    logger->log(ILogger::Severity::kERROR, "this is no plan");
    return nullptr;
  }
  void setEngineHostCodeAllowed(bool) noexcept override {}
};

struct FakeRuntime : IRuntime {
  RuntimeImpl impl;
  explicit FakeRuntime(ILogger* logger) {
    impl.logger = logger;
    mImpl = &impl;
    ++runtimes;
  }
  ~FakeRuntime() noexcept override { --runtimes; }
};

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default")))

FAKE int32_t getInferLibVersion() noexcept { return FAKE_MAJOR * 10000; }
FAKE void* createInferRuntime_INTERNAL(void* logger, int32_t) noexcept {
  if (context_depth == 0) missing("current device when a runtime is made");
  return static_cast<IRuntime*>(new FakeRuntime(static_cast<ILogger*>(logger)));
}
FAKE int fake_alive() { return 100 * runtimes + engines; }

// ---------------------------------------------------------------- the driver

#undef cuDeviceGetCount
#define RETURN(statement) \
  {                       \
    statement;            \
    return CUDA_SUCCESS;  \
  }
static std::map<void*, size_t> memory;
static CUcontext current = nullptr;
struct FakeGraph {
  std::vector<Work> work;
};
static CUresult allocate(void** p, size_t bytes) {
  if (bytes > (size_t{1} << 30)) return CUDA_ERROR_OUT_OF_MEMORY;
  *p = std::malloc(bytes);
  memory[*p] = bytes;
  return CUDA_SUCCESS;
}
static CUresult release(void* p) {
  needs_device("current device when memory is given back");
  if (memory.erase(p) != 1) missing("memory that is given back");
  std::free(p);
  return CUDA_SUCCESS;
}
FAKE CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
FAKE CUresult cuDriverGetVersion(int* v) RETURN(*v = 13000)
FAKE CUresult cuGetErrorString(CUresult, const char** text) RETURN(*text = "fake error")
FAKE CUresult cuDeviceGetCount(int* n) RETURN(*n = 1)
FAKE CUresult cuDeviceGet(CUdevice* d, int i) RETURN(*d = i)
FAKE CUresult cuDeviceGetName(char* s, int n, CUdevice) RETURN(std::snprintf(s, n, "Fake GPU"))
FAKE CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice)
    RETURN(*v = a == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9 : 0)
FAKE CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice)
    RETURN(*c = reinterpret_cast<CUcontext>(&memory))
FAKE CUresult cuCtxGetCurrent(CUcontext* c) RETURN(*c = current)
FAKE CUresult cuCtxSetCurrent(CUcontext c) {
  current = c;
  context_depth = c != nullptr;
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemAlloc(CUdeviceptr* p, size_t n) {
  return allocate(reinterpret_cast<void**>(p), n);
}
FAKE CUresult cuMemFree(CUdeviceptr p) { return release(reinterpret_cast<void*>(p)); }
FAKE CUresult cuMemHostAlloc(void** p, size_t n, unsigned) { return allocate(p, n); }
FAKE CUresult cuMemFreeHost(void* p) { return release(p); }
FAKE CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t n, CUstream s)
    RETURN(launch(s, [=] { std::memcpy(reinterpret_cast<void*>(to), from, n); }))
FAKE CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t n, CUstream s)
    RETURN(launch(s, [=] { std::memcpy(to, reinterpret_cast<void*>(from), n); }))
FAKE CUresult cuStreamCreate(CUstream* s, unsigned)
    RETURN(*s = reinterpret_cast<CUstream>(new FakeStream))
FAKE CUresult cuStreamDestroy(CUstream s) RETURN(delete reinterpret_cast<FakeStream*>(s))
FAKE CUresult cuStreamSynchronize(CUstream s) {
  return reinterpret_cast<FakeStream*>(s)->capturing ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
                                                     : CUDA_SUCCESS;
}
FAKE CUresult cuStreamBeginCapture(CUstream s, CUstreamCaptureMode)
    RETURN(reinterpret_cast<FakeStream*>(s)->capturing = true)
FAKE CUresult cuStreamEndCapture(CUstream s, CUgraph* graph) {
  auto* stream = reinterpret_cast<FakeStream*>(s);
  stream->capturing = false;
  *graph = reinterpret_cast<CUgraph>(new FakeGraph{std::exchange(stream->captured, {})});
  return CUDA_SUCCESS;
}
FAKE CUresult cuGraphInstantiateWithFlags(CUgraphExec* e, CUgraph g, unsigned long long)
    RETURN(*e = reinterpret_cast<CUgraphExec>(new FakeGraph(*reinterpret_cast<FakeGraph*>(g))))
FAKE CUresult cuGraphLaunch(CUgraphExec e, CUstream) {
  for (const Work& work : reinterpret_cast<FakeGraph*>(e)->work) work();
  return CUDA_SUCCESS;
}
FAKE CUresult cuGraphExecDestroy(CUgraphExec e) RETURN(delete reinterpret_cast<FakeGraph*>(e))
FAKE CUresult cuGraphDestroy(CUgraph g) RETURN(delete reinterpret_cast<FakeGraph*>(g))
