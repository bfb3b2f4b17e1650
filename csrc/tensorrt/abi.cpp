// TensorRT through one version of its headers. Compiled once for each version that the build found,
// with the headers' namespaces renamed (CMakeLists.txt): their inline functions must not be merged.
#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <map>
#include <mutex>
#include <utility>

#include "tensorrt.h"

#ifndef FASTGEN_TENSORRT_ABI
#error "the build passes the major version of the headers in FASTGEN_TENSORRT_ABI"
#endif
static_assert(NV_TENSORRT_MAJOR == FASTGEN_TENSORRT_ABI, "the build read another version");

#define FASTGEN_TEXT(x) #x
#define FASTGEN_NUMBER(x) FASTGEN_TEXT(x)
#define FASTGEN_JOIN(a, b) a##b
#define FASTGEN_ABI_NAME(major) FASTGEN_JOIN(abi_, major)

namespace fastgen::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::OptProfileSelector;

// The library keeps the first logger that it is given for good, so there is one, and what is
// listening changes.
class Logger final : public nvinfer1::ILogger {
 public:
  static Logger& get() {
    static Logger* logger = new Logger;  // outlives the library's own static objects
    return *logger;
  }

  void log(Severity severity, nvinfer1::AsciiChar const* text) noexcept override {
    std::shared_ptr<const Events> listener;
    try {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (severity <= Severity::kERROR && errors_.size() < 4000)
          errors_ += (errors_.empty() ? "" : "; ") + std::string(text);
        listener = listener_;
      }
      // Without the lock: a listener may wait for Python, which may wait for this lock.
      if (listener && listener->log) listener->log(static_cast<int>(severity), text);
    } catch (...) {  // no memory for a message: nothing to do about it here
    }
  }

  std::string take_errors() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(errors_, std::string());
  }

  void listen(std::shared_ptr<const Events> listener) {
    const std::lock_guard<std::mutex> lock(mutex_);
    listener_ = std::move(listener);
  }

 private:
  std::mutex mutex_;
  std::string errors_;
  std::shared_ptr<const Events> listener_;
};

class Listening {
 public:
  explicit Listening(const Events& events) {
    Logger::get().take_errors();
    Logger::get().listen(std::make_shared<Events>(events));
  }
  ~Listening() { Logger::get().listen(nullptr); }
};

class Progress final : public nvinfer1::IProgressMonitor {
 public:
  explicit Progress(const Events& events) : events_(events) {}
  bool stopped() const { return stopped_; }

  void phaseStart(char const* phase, char const*, int32_t steps) noexcept override {
    try {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        steps_[phase] = steps;
      }
      tell(phase, 0, steps);
    } catch (...) {
      stopped_ = true;
    }
  }
  bool stepComplete(char const* phase, int32_t step) noexcept override {
    try {
      int32_t steps = 0;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        steps = steps_[phase];
      }
      tell(phase, std::min(step + 1, steps), steps);
    } catch (...) {
      stopped_ = true;
    }
    return !stopped_;
  }
  void phaseFinish(char const*) noexcept override {}

 private:
  void tell(const char* phase, int step, int steps) {
    if (events_.progress && !stopped_ && !events_.progress(phase, step, steps)) stopped_ = true;
  }

  const Events& events_;
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  std::map<std::string, int32_t> steps_;
};

template <class T>
std::unique_ptr<T> own(T* pointer, const char* what) {
  if (pointer == nullptr) {
    const std::string errors = Logger::get().take_errors();
    throw std::runtime_error(std::string("TensorRT: ") + what + " failed" +
                             (errors.empty() ? "" : ": " + errors));
  }
  return std::unique_ptr<T>(pointer);
}

void require(bool done, const char* what) {
  if (!done) {
    const std::string errors = Logger::get().take_errors();
    throw std::runtime_error(std::string("TensorRT: ") + what + " failed" +
                             (errors.empty() ? "" : ": " + errors));
  }
}

Dims dims_of(const std::vector<int64_t>& shape) {
  Dims dims{};
  if (shape.size() > static_cast<size_t>(Dims::MAX_DIMS))
    throw std::invalid_argument("a shape has " + std::to_string(shape.size()) + " axes, at most " +
                                std::to_string(Dims::MAX_DIMS) + " are possible");
  dims.nbDims = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

std::vector<int64_t> shape_of(const Dims& dims) {
  return std::vector<int64_t>(dims.d, dims.d + std::max(dims.nbDims, 0));
}

const char* dtype_name(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kHALF:
      return "float16";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kINT8:
      return "int8";
    case DataType::kUINT8:
      return "uint8";
    case DataType::kINT32:
      return "int32";
    case DataType::kINT64:
      return "int64";
    case DataType::kBOOL:
      return "bool";
    default:
      return "other";
  }
}

// ---------------------------------------------------------------- build

std::string parser_errors(const nvonnxparser::IParser& parser) {
  std::string text;
  for (int i = 0; i < parser.getNbErrors() && i < 5; ++i) {
    const nvonnxparser::IParserError* error = parser.getError(i);
    const char* name = error->nodeName();
    const char* op = error->nodeOperator();
    text += text.empty() ? "" : "; ";
    if (op != nullptr && *op != '\0')
      text += std::string(op) + " " + (name != nullptr ? name : "") + ": ";
    text += error->desc() != nullptr ? error->desc() : "no description";
  }
  return text;
}

BuildResult build_engine(const Symbols& symbols, const BuildRequest& request,
                         const Events& events) {
  // TensorRT's builders share state of the process; one at a time.
  static std::mutex one;
  const std::lock_guard<std::mutex> lock(one);
  const Listening listening(events);
  Logger& logger = Logger::get();
  auto builder = own(
      static_cast<nvinfer1::IBuilder*>(symbols.builder(&logger, NV_TENSORRT_VERSION)), "builder");
  // Always typed as the model says: version 10 must be told, 11 has nothing else.
  auto network = own(
      builder->createNetworkV2(
          1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED)),
      "createNetworkV2");
  auto parser = own(static_cast<nvonnxparser::IParser*>(
                        symbols.parser(network.get(), &logger, NV_ONNX_PARSER_VERSION)),
                    "ONNX parser");
  if (!parser->parse(request.onnx, request.onnx_bytes) || parser->getNbErrors() != 0) {
    logger.take_errors();
    throw std::invalid_argument("TensorRT cannot read the ONNX model: " + parser_errors(*parser));
  }
  auto config = own(builder->createBuilderConfig(), "createBuilderConfig");
  if (!request.tf32) config->clearFlag(nvinfer1::BuilderFlag::kTF32);
  if (request.version_compatible) config->setFlag(nvinfer1::BuilderFlag::kVERSION_COMPATIBLE);
  if (request.level >= 0) config->setBuilderOptimizationLevel(request.level);
  if (request.workspace_bytes >= 0)
    config->setMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE,
                               static_cast<size_t>(request.workspace_bytes));
  for (const std::vector<Range>& ranges : request.profiles) {
    // Belongs to the builder.
    nvinfer1::IOptimizationProfile* profile = builder->createOptimizationProfile();
    require(profile != nullptr, "createOptimizationProfile");
    for (const Range& range : ranges) {
      const char* name = range.input.c_str();
      const bool fits =
          profile->setDimensions(name, OptProfileSelector::kMIN, dims_of(range.low)) &&
          profile->setDimensions(name, OptProfileSelector::kOPT, dims_of(range.best)) &&
          profile->setDimensions(name, OptProfileSelector::kMAX, dims_of(range.high));
      if (!fits)
        throw std::invalid_argument("TensorRT refuses the sizes of input '" + range.input +
                                    "': " + logger.take_errors());
    }
    if (!profile->isValid() || config->addOptimizationProfile(profile) < 0)
      throw std::invalid_argument("TensorRT refuses a profile: " + logger.take_errors());
  }
  std::unique_ptr<nvinfer1::ITimingCache> cache(
      config->createTimingCache(request.timing_cache, request.timing_cache_bytes));
  if (!cache) {  // a damaged one, or of another version: start anew
    logger.take_errors();
    cache.reset(config->createTimingCache(nullptr, 0));
  }
  if (cache) config->setTimingCache(*cache, /*ignoreMismatch=*/false);
  Progress progress(events);
  config->setProgressMonitor(&progress);
  BuildResult result;
  result.layers = network->getNbLayers();
  const std::unique_ptr<nvinfer1::IHostMemory> plan(
      builder->buildSerializedNetwork(*network, *config));
  if (progress.stopped()) throw std::runtime_error("the build of the engine was stopped");
  if (!plan || plan->size() == 0) {
    const std::string errors = logger.take_errors();
    throw std::runtime_error("TensorRT cannot build the engine: " +
                             (errors.empty() ? "no reason was given" : errors));
  }
  result.plan.assign(static_cast<const char*>(plan->data()), plan->size());
  if (cache) {
    const std::unique_ptr<nvinfer1::IHostMemory> data(cache->serialize());
    if (data) result.timing_cache.assign(static_cast<const char*>(data->data()), data->size());
  }
  return result;
}

// ---------------------------------------------------------------- run

// An engine must not outlive its runtime, nor a context its engine.
struct Loaded {
  std::unique_ptr<nvinfer1::IRuntime> runtime;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
};

class AbiContext final : public Context {
 public:
  AbiContext(std::shared_ptr<Loaded> loaded, int profile, void* stream)
      : loaded_(std::move(loaded)),
        context_(own(loaded_->engine->createExecutionContext(), "createExecutionContext")) {
    require(context_->setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(stream)),
            "setOptimizationProfileAsync");
  }

  void set_shape(const std::string& input, const std::vector<int64_t>& shape) override {
    if (!context_->setInputShape(input.c_str(), dims_of(shape)))
      throw std::invalid_argument("the engine refuses the shape of input '" + input +
                                  "': " + Logger::get().take_errors());
  }
  std::vector<int64_t> shape(const std::string& tensor) const override {
    return shape_of(context_->getTensorShape(tensor.c_str()));
  }
  void set_address(const std::string& tensor, void* address) override {
    require(context_->setTensorAddress(tensor.c_str(), address), "setTensorAddress");
  }
  bool enqueue(void* stream) override {
    return context_->enqueueV3(static_cast<cudaStream_t>(stream));
  }

 private:
  std::shared_ptr<Loaded> loaded_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

class AbiEngine final : public Engine {
 public:
  explicit AbiEngine(std::shared_ptr<Loaded> loaded) : loaded_(std::move(loaded)) {
    const nvinfer1::ICudaEngine& engine = *loaded_->engine;
    for (int i = 0; i < engine.getNbIOTensors(); ++i) {
      const char* name = engine.getIOTensorName(i);
      tensors_.push_back({name, dtype_name(engine.getTensorDataType(name)),
                          engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT,
                          shape_of(engine.getTensorShape(name))});
    }
  }

  const std::vector<Tensor>& tensors() const override { return tensors_; }
  int profiles() const override { return loaded_->engine->getNbOptimizationProfiles(); }
  Range range(const std::string& input, int profile) const override {
    const nvinfer1::ICudaEngine& engine = *loaded_->engine;
    const char* name = input.c_str();
    return {input, shape_of(engine.getProfileShape(name, profile, OptProfileSelector::kMIN)),
            shape_of(engine.getProfileShape(name, profile, OptProfileSelector::kOPT)),
            shape_of(engine.getProfileShape(name, profile, OptProfileSelector::kMAX))};
  }
  std::unique_ptr<Context> context(int profile, void* stream) override {
    return std::make_unique<AbiContext>(loaded_, profile, stream);
  }

 private:
  std::shared_ptr<Loaded> loaded_;
  std::vector<Tensor> tensors_;
};

std::unique_ptr<Engine> load_engine(const Symbols& symbols, const void* plan, size_t bytes,
                                    std::string* reason) {
  Logger& logger = Logger::get();
  logger.take_errors();
  auto loaded = std::make_shared<Loaded>();
  loaded->runtime = own(
      static_cast<nvinfer1::IRuntime*>(symbols.runtime(&logger, NV_TENSORRT_VERSION)), "runtime");
  // Version-compatible plans carry code of the library that built them.
  loaded->runtime->setEngineHostCodeAllowed(true);
  loaded->engine.reset(loaded->runtime->deserializeCudaEngine(plan, bytes));
  if (!loaded->engine) {
    *reason = logger.take_errors();
    return nullptr;
  }
  return std::make_unique<AbiEngine>(std::move(loaded));
}

std::string errors() { return Logger::get().take_errors(); }

}  // namespace

extern const Abi FASTGEN_ABI_NAME(FASTGEN_TENSORRT_ABI);
const Abi FASTGEN_ABI_NAME(FASTGEN_TENSORRT_ABI) = {
    NV_TENSORRT_MAJOR,
    FASTGEN_NUMBER(NV_TENSORRT_MAJOR) "." FASTGEN_NUMBER(NV_TENSORRT_MINOR) "." FASTGEN_NUMBER(
        NV_TENSORRT_PATCH),
    build_engine, load_engine, errors};

}  // namespace fastgen::tensorrt
