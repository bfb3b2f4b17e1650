// TensorRT behind an interface that knows neither its headers nor Python.
//
// Every header version (TensorRT 10, 11, for RTX) lays its classes out differently, so abi.cpp is
// compiled once for each version whose headers the build found, and the library that is opened at
// run time decides which of them is used. Nothing of TensorRT or CUDA is linked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastgen::tensorrt {

// The machine or the installation lacks something; the text says what and what to do.
struct Unavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---------------------------------------------------------------- what a library is asked for

// What TensorRT says while it works. Called from its threads, never with a lock held.
struct Events {
  // severity: 0 internal error, 1 error, 2 warning, 3 information, 4 everything.
  std::function<void(int severity, const char* text)> log;
  // A phase of a build; step counts from 0 to steps. False stops the build.
  std::function<bool(const char* phase, int step, int steps)> progress;
};

struct Range {  // of one input
  std::string input;
  std::vector<int64_t> low, best, high;
};

struct BuildRequest {
  const void* onnx = nullptr;
  size_t onnx_bytes = 0;
  std::vector<std::vector<Range>> profiles;
  int level = -1;                   // builder optimisation level 0..5; -1: the library's
  int64_t workspace_bytes = -1;     // -1: the library's
  bool tf32 = false;                // float32 products may round their factors to 10 bits
  bool version_compatible = false;  // also for the lean runtime, and for newer versions
  const void* timing_cache = nullptr;
  size_t timing_cache_bytes = 0;
};

struct BuildResult {
  std::string plan, timing_cache;
  int layers = 0;  // of the network as it was read, before optimisation
};

struct Tensor {
  std::string name, dtype;
  bool input = false;
  std::vector<int64_t> shape;  // -1: free
};

// One set of activations. Not for two threads, nor two streams, at once.
class Context {
 public:
  virtual ~Context() = default;
  virtual void set_shape(const std::string& input, const std::vector<int64_t>& shape) = 0;
  virtual std::vector<int64_t> shape(const std::string& tensor) const = 0;
  virtual void set_address(const std::string& tensor, void* address) = 0;
  // False when it failed; the reason is in the log. Does not throw: a capture must be ended first.
  virtual bool enqueue(void* stream) = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const std::vector<Tensor>& tensors() const = 0;
  virtual int profiles() const = 0;
  virtual Range range(const std::string& input, int profile) const = 0;
  // The stream orders the choice of the profile; the caller synchronises it.
  virtual std::unique_ptr<Context> context(int profile, void* stream) = 0;
};

// ---------------------------------------------------------------- header versions

// The plain C functions of the libraries: all that is looked up by name.
struct Symbols {
  void* (*builder)(void* logger, int32_t version) = nullptr;
  void* (*runtime)(void* logger, int32_t version) = nullptr;
  void* (*parser)(void* network, void* logger, int version) = nullptr;
};

struct Abi {
  int major;            // of the headers
  const char* headers;  // their full version
  BuildResult (*build)(const Symbols& symbols, const BuildRequest& request, const Events& events);
  // Null when the library does not accept the plan; *reason then has its words.
  std::unique_ptr<Engine> (*deserialize)(const Symbols& symbols, const void* plan, size_t bytes,
                                         std::string* reason);
  // Errors that were logged since the last call.
  std::string (*take_errors)();
};

// Those that were compiled in.
std::vector<const Abi*> abis();

// ---------------------------------------------------------------- the opened library

struct LibraryInfo {
  std::string path, parser_path, flavour;  // flavour: full, lean, dispatch, rtx
  std::string version;                     // 11.1.0.106
  std::string headers;                     // version of the headers that serve it
  bool builds = false;                     // has a builder and a parser
};

// Opens libnvinfer, libnvinfer_lean or libtensorrt_rtx, and with it the ONNX parser next to it (or
// parser_path, when it is not empty). A process can hold one library: a second one is refused.
// Throws Unavailable where it cannot be opened or no compiled headers fit it.
LibraryInfo open_library(const std::string& path, const std::string& parser_path);
// Throws Unavailable before a library was opened.
const LibraryInfo& library();

// Throws Unavailable without a device, except for TensorRT for RTX, which builds ahead of time;
// std::invalid_argument for a model that the parser refuses; std::runtime_error when it fails.
BuildResult build(const BuildRequest& request, const Events& events, int device);
// Throws Unavailable without a device, std::invalid_argument for a plan that is not accepted.
std::unique_ptr<Engine> deserialize(const void* plan, size_t bytes, int device);
std::string take_errors();

}  // namespace fastgen::tensorrt
