// fastgen._tensorrt: builds and runs TensorRT engines. Imports on machines without GPU, driver or
// TensorRT; device pointers and streams are integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <mutex>
#include <utility>

#include "tensorrt/driver.h"
#include "tensorrt/tensorrt.h"

namespace py = pybind11;
using namespace pybind11::literals;
namespace trt = fastgen::tensorrt;

namespace {

using trt::DeviceScope;
using trt::Driver;

CUstream stream_of(uintptr_t stream) { return reinterpret_cast<CUstream>(stream); }

bool finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

py::dict library_dict(const trt::LibraryInfo& info) {
  return py::dict("path"_a = info.path, "parser_path"_a = info.parser_path,
                  "flavour"_a = info.flavour, "version"_a = info.version,
                  "headers"_a = info.headers, "builds"_a = info.builds);
}

// ---------------------------------------------------------------- build

// Python functions as listeners: called from TensorRT's threads, which do not have the GIL. The
// first exception stops the build and is raised again when it has ended.
class Listeners {
 public:
  Listeners(py::object log, py::object progress)
      : log_(std::move(log)), progress_(std::move(progress)) {}

  trt::Events events() {
    trt::Events result;
    if (!log_.is_none())
      result.log = [this](int severity, const char* text) {
        call([&] { log_(severity, py::str(py::bytes(text).attr("decode")("utf-8", "replace"))); });
      };
    // Without a listener too: this is where Ctrl-C is seen during a build.
    result.progress = [this](const char* phase, int step, int steps) {
      bool go_on = true;
      call([&] {
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (!progress_.is_none()) go_on = !progress_(phase, step, steps).is(py::bool_(false));
      });
      return go_on && !failed();
    };
    return result;
  }

  void raise() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  template <class Function>
  void call(Function function) {
    if (finalizing()) {  // a thread that asks for the GIL now would never come back
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      return;
    }
    const py::gil_scoped_acquire gil;
    try {
      function();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      if (!error_) error_ = std::current_exception();
    }
  }
  bool failed() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return stopped_;
  }

  py::object log_, progress_;
  std::mutex mutex_;
  std::exception_ptr error_;
  bool stopped_ = false;
};

using Sizes = std::tuple<std::vector<int64_t>, std::vector<int64_t>, std::vector<int64_t>>;
using Profile = std::map<std::string, Sizes>;

py::tuple build(const py::bytes& onnx, const std::vector<Profile>& profiles, int level,
                int64_t workspace, bool tf32, bool version_compatible,
                const py::bytes& timing_cache, int device, py::object log, py::object progress) {
  trt::BuildRequest request;
  const std::string_view model = onnx, cache = timing_cache;
  request.onnx = model.data();
  request.onnx_bytes = model.size();
  for (const Profile& profile : profiles) {
    std::vector<trt::Range> ranges;
    for (const auto& [input, sizes] : profile)
      ranges.push_back({input, std::get<0>(sizes), std::get<1>(sizes), std::get<2>(sizes)});
    request.profiles.push_back(std::move(ranges));
  }
  request.level = level;
  request.workspace_bytes = workspace;
  request.tf32 = tf32;
  request.version_compatible = version_compatible;
  request.timing_cache = cache.data();
  request.timing_cache_bytes = cache.size();
  Listeners listeners(std::move(log), std::move(progress));
  trt::BuildResult result;
  try {
    const py::gil_scoped_release release;
    result = trt::build(request, listeners.events(), device);
  } catch (...) {
    listeners.raise();  // what stopped the build is what the caller wants to know
    throw;
  }
  listeners.raise();
  return py::make_tuple(py::bytes(result.plan), py::bytes(result.timing_cache), result.layers);
}

// ---------------------------------------------------------------- run

// What gives memory back needs its device, too. Without one there is nothing left to give back.
template <class Function>
void on_device(int device, Function function) noexcept {
  try {
    const DeviceScope scope(device);
    function();
  } catch (...) {
  }
}

struct Engine {
  Engine(std::unique_ptr<trt::Engine> e, int d) : engine(std::move(e)), device(d) {}
  ~Engine() {
    on_device(device, [this] { engine.reset(); });
  }
  std::unique_ptr<trt::Engine> engine;
  int device;
};

struct Context {
  Context(std::unique_ptr<trt::Context> c, int d) : context(std::move(c)), device(d) {}
  ~Context() {
    on_device(device, [this] { context.reset(); });
  }
  std::unique_ptr<trt::Context> context;
  int device;
};

// A captured sequence of launches. Its addresses are fixed: capture again when they change.
class Graph {
 public:
  Graph(CUgraphExec exec, int device) : exec_(exec), device_(device) {}
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    on_device(device_, [this] { Driver::get().cuGraphExecDestroy_(exec_); });
  }
  void launch(uintptr_t stream) const {
    const DeviceScope scope(device_);
    Driver::get().check(Driver::get().cuGraphLaunch_(exec_, stream_of(stream)), "cuGraphLaunch");
  }

 private:
  CUgraphExec exec_;
  int device_;
};

class Stream {
 public:
  explicit Stream(int device) : device_(device) {
    const DeviceScope scope(device);
    // Waits for nothing that runs on the default stream.
    check(Driver::get().cuStreamCreate_(&stream_, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    on_device(device_, [this] { Driver::get().cuStreamDestroy_(stream_); });
  }
  uintptr_t handle() const { return reinterpret_cast<uintptr_t>(stream_); }
  void synchronize() const {
    const DeviceScope scope(device_);
    check(Driver::get().cuStreamSynchronize_(stream_), "cuStreamSynchronize");
  }
  void begin_capture() const {
    const DeviceScope scope(device_);
    check(Driver::get().cuStreamBeginCapture_(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
          "cuStreamBeginCapture");
  }
  // Always ends the capture; `keep` false throws what was captured away and returns nothing.
  std::unique_ptr<Graph> end_capture(bool keep) const {
    const DeviceScope scope(device_);
    const Driver& driver = Driver::get();
    CUgraph graph = nullptr;
    const CUresult ended = driver.cuStreamEndCapture_(stream_, &graph);
    if (!keep) {
      if (graph != nullptr) driver.cuGraphDestroy_(graph);
      return nullptr;
    }
    check(ended, "cuStreamEndCapture");
    CUgraphExec exec = nullptr;
    const CUresult made = driver.cuGraphInstantiateWithFlags_(&exec, graph, 0);
    driver.cuGraphDestroy_(graph);
    check(made, "cuGraphInstantiate");
    return std::make_unique<Graph>(exec, device_);
  }

 private:
  static void check(CUresult result, const char* what) { Driver::get().check(result, what); }
  CUstream stream_ = nullptr;
  int device_;
};

// Memory of a device, or page-locked memory of the host that it copies from and to quickly.
class Buffer {
 public:
  Buffer(int device, int64_t bytes, bool host) : device_(device), bytes_(bytes), host_(host) {
    if (bytes < 1) throw std::invalid_argument("a buffer needs at least 1 byte");
    const DeviceScope scope(device);
    const auto size = static_cast<size_t>(bytes);
    if (host) {
      Driver::get().check(Driver::get().cuMemHostAlloc_(&host_pointer_, size, 0), "cuMemHostAlloc");
    } else {
      Driver::get().check(Driver::get().cuMemAlloc_(&pointer_, size), "cuMemAlloc");
    }
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    on_device(device_, [this] {
      if (host_)
        Driver::get().cuMemFreeHost_(host_pointer_);
      else
        Driver::get().cuMemFree_(pointer_);
    });
  }
  uintptr_t address() const {
    return host_ ? reinterpret_cast<uintptr_t>(host_pointer_) : static_cast<uintptr_t>(pointer_);
  }
  int64_t bytes() const { return bytes_; }
  bool host() const { return host_; }
  py::memoryview view() const {
    if (!host_) throw std::invalid_argument("memory of a device has no view; download it");
    return py::memoryview::from_memory(host_pointer_, bytes_);
  }
  // Copies `bytes` from, or to, page-locked memory in the order of the stream.
  void copy(const Buffer& other, int64_t bytes, uintptr_t stream) const {
    if (host_ == other.host_ || bytes < 0 || bytes > bytes_ || bytes > other.bytes_)
      throw std::invalid_argument("a copy is between host and device, within both buffers");
    const DeviceScope scope(device_);
    const Driver& driver = Driver::get();
    const auto size = static_cast<size_t>(bytes);
    driver.check(
        host_ ? driver.cuMemcpyDtoHAsync_(host_pointer_, other.pointer_, size, stream_of(stream))
              : driver.cuMemcpyHtoDAsync_(pointer_, other.host_pointer_, size, stream_of(stream)),
        "cuMemcpyAsync");
  }

 private:
  CUdeviceptr pointer_ = 0;
  void* host_pointer_ = nullptr;
  int device_;
  int64_t bytes_;
  bool host_;
};

// A device as a context manager: kernels of other modules then launch there too.
class Current {
 public:
  explicit Current(int device) : device_(device) {}
  void enter() { scope_ = std::make_unique<DeviceScope>(device_); }
  void exit(const py::args&) { scope_.reset(); }

 private:
  int device_;
  std::unique_ptr<DeviceScope> scope_;
};

void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const trt::Unavailable& e) {
    py::set_error(py::module_::import("fastgen.errors").attr("BackendUnavailable"), e.what());
  } catch (const trt::OutOfMemory& e) {
    py::set_error(PyExc_MemoryError, e.what());
  }
}

}  // namespace

PYBIND11_MODULE(_tensorrt, m) {
  m.doc() = "TensorRT engines: build, load, run. Opens TensorRT and the driver when asked to.";
  py::register_exception_translator(&translate);

  m.def(
      "abis",
      [] {
        std::map<int, std::string> found;
        for (const trt::Abi* abi : trt::abis()) found[abi->major] = abi->headers;
        return found;
      },
      "Major version -> full version of the TensorRT headers that this module was built with.");
  m.def(
      "driver",
      [] {
        const Driver& driver = Driver::get();
        const std::string& reason = driver.why_not();
        return py::dict("version"_a = driver.version(), "devices"_a = driver.devices(),
                        "why_not"_a = reason.empty() ? py::object(py::none()) : py::str(reason));
      },
      "The CUDA driver: its version, how many devices, and why there are none. Never raises.");
  m.def("device", [](int index) {
    return py::dict("name"_a = Driver::get().name(index),
                    "capability"_a = Driver::get().capability(index));
  });
  m.def(
      "open_library",
      [](const std::string& path, const std::string& parser) {
        return library_dict(trt::open_library(path, parser));
      },
      "path"_a, "parser"_a = "", "Opens TensorRT. One library in each process.");
  m.def(
      "library",
      []() -> py::object {
        try {
          return library_dict(trt::library());
        } catch (const trt::Unavailable&) {
          return py::none();
        }
      },
      "The opened library, or None.");
  m.def("take_errors", &trt::take_errors, "Errors that TensorRT logged since the last call.");
  m.def("build", &build, "onnx"_a, "profiles"_a, py::kw_only(), "level"_a = -1, "workspace"_a = -1,
        "tf32"_a = false, "version_compatible"_a = false, "timing_cache"_a = py::bytes(),
        "device"_a = 0, "log"_a = py::none(), "progress"_a = py::none(),
        "(plan, timing cache, layers). profiles: [{input: (min, opt, max)}]. log(severity, text); "
        "progress(phase, step, steps) returns False to stop.");

  py::class_<Engine>(m, "Engine")
      .def(py::init([](const py::bytes& plan, int device) {
             const std::string_view bytes = plan;
             const py::gil_scoped_release release;
             return std::make_unique<Engine>(trt::deserialize(bytes.data(), bytes.size(), device),
                                             device);
           }),
           "plan"_a, "device"_a = 0)
      .def("tensors",
           [](const Engine& self) {
             py::list result;
             for (const trt::Tensor& tensor : self.engine->tensors())
               result.append(py::dict("name"_a = tensor.name, "input"_a = tensor.input,
                                      "dtype"_a = tensor.dtype, "shape"_a = tensor.shape));
             return result;
           })
      .def_property_readonly("profiles", [](const Engine& self) { return self.engine->profiles(); })
      .def(
          "range",
          [](const Engine& self, const std::string& input, int profile) {
            const trt::Range range = self.engine->range(input, profile);
            return py::make_tuple(range.low, range.best, range.high);
          },
          "input"_a, "profile"_a = 0)
      .def(
          "context",
          [](const Engine& self, int profile, uintptr_t stream) {
            const py::gil_scoped_release release;
            const DeviceScope scope(self.device);
            return std::make_unique<Context>(self.engine->context(profile, stream_of(stream)),
                                             self.device);
          },
          "profile"_a, "stream"_a, "The caller synchronises the stream afterwards.");

  py::class_<Context>(m, "Context")
      .def("set_shape",
           [](Context& self, const std::string& input, const std::vector<int64_t>& shape) {
             const DeviceScope scope(self.device);
             self.context->set_shape(input, shape);
           })
      .def("shape", [](const Context& self,
                       const std::string& tensor) { return self.context->shape(tensor); })
      .def("set_address",
           [](Context& self, const std::string& tensor, uintptr_t address) {
             self.context->set_address(tensor, reinterpret_cast<void*>(address));
           })
      .def(
          "enqueue",
          [](Context& self, uintptr_t stream) {
            const py::gil_scoped_release release;
            const DeviceScope scope(self.device);
            return self.context->enqueue(stream_of(stream));
          },
          "stream"_a, "False when it failed: end a capture first, then see take_errors().");

  m.def(
      "synchronize",
      [](uintptr_t stream, int device) {
        const DeviceScope scope(device);
        Driver::get().check(Driver::get().cuStreamSynchronize_(stream_of(stream)),
                            "cuStreamSynchronize");
      },
      "stream"_a, "device"_a = 0, py::call_guard<py::gil_scoped_release>(),
      "Waits for a stream of anybody's.");
  py::class_<Current>(m, "Current")
      .def(py::init<int>(), "device"_a)
      .def("__enter__", &Current::enter)
      .def("__exit__", &Current::exit);

  py::class_<Stream>(m, "Stream")
      .def(py::init<int>(), "device"_a = 0)
      .def_property_readonly("handle", &Stream::handle)
      .def("synchronize", &Stream::synchronize, py::call_guard<py::gil_scoped_release>())
      .def("begin_capture", &Stream::begin_capture)
      .def("end_capture", &Stream::end_capture, "keep"_a);

  py::class_<Graph>(m, "Graph").def("launch", &Graph::launch, "stream"_a);

  py::class_<Buffer>(m, "Buffer")
      .def(py::init<int, int64_t, bool>(), "device"_a, "bytes"_a, "host"_a = false)
      .def_property_readonly("address", &Buffer::address)
      .def_property_readonly("bytes", &Buffer::bytes)
      .def_property_readonly("host", &Buffer::host)
      .def("view", &Buffer::view, py::keep_alive<0, 1>())
      .def("copy", &Buffer::copy, "source"_a, "bytes"_a, "stream"_a);
}
