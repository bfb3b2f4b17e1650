// What the cuda backend needs of fastgen._cuda: memory, streams, captured graphs, and the steps of
// a network. Also compiled against the emulation in tests/.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/network.h"
#include "cuda/runtime.h"

namespace py = pybind11;

namespace fastgen {

void bind_cuda_structures(py::module_& m);  // bindings_cuda_structures.cpp

namespace {

using namespace gpu;

void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }
uint64_t number(const void* address) { return reinterpret_cast<uint64_t>(address); }

constexpr int kOutOfMemory = 2;  // cudaErrorMemoryAllocation

void check(int error, const std::string& what) {
  if (error != 0) throw std::runtime_error(what + " failed: " + runtime::error_text(error));
}

// Makes a device current as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(runtime::get_device(&before_), "cudaGetDevice");
    changed_ = before_ != device;
    if (changed_) check(runtime::set_device(device), "cudaSetDevice");
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (changed_) runtime::set_device(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

// For destructors: what fails there fails silently, as the process may be ending.
template <class Use>
void quietly(int device, const Use& use) {
  try {
    const OnDevice on(device);
    use();
  } catch (const std::exception&) {
  }
}

class Buffer {
 public:
  Buffer(int device, int64_t bytes, bool host) : device_(device), bytes_(bytes), host_(host) {
    if (bytes < 1) throw std::invalid_argument("a buffer needs at least 1 byte");
    const OnDevice on(device);
    const int error = runtime::allocate(&memory_, bytes, host);
    if (error == kOutOfMemory) {
      int64_t left = 0, total = 0;
      runtime::memory_info(&left, &total);
      const std::string message =
          std::string(host ? "page-locked memory" : "the GPU's memory") +
          " is too small: " + std::to_string(bytes >> 20) + " MiB are needed" +
          (host ? "" : ", " + std::to_string(left >> 20) + " MiB are left") +
          "; take smaller images or batches, or backend='cpu'";
      py::gil_scoped_acquire gil;
      PyErr_SetString(PyExc_MemoryError, message.c_str());
      throw py::error_already_set();
    }
    check(error, host ? "cudaHostAlloc" : "cudaMalloc");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    quietly(device_, [this] { runtime::release(memory_, host_); });
  }
  uint64_t address() const { return number(memory_); }
  int64_t bytes() const { return bytes_; }
  py::memoryview view() const {
    if (!host_) throw std::invalid_argument("memory of a device has no view");
    return py::memoryview::from_memory(memory_, bytes_);
  }

 private:
  int device_;
  int64_t bytes_;
  bool host_;
  void* memory_ = nullptr;
};

class Stream {
 public:
  explicit Stream(int device) : device_(device) {
    const OnDevice on(device);
    check(runtime::create_stream(&stream_), "cudaStreamCreate");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    quietly(device_, [this] { runtime::destroy_stream(stream_); });
  }
  uint64_t handle() const { return number(stream_); }

 private:
  int device_;
  void* stream_ = nullptr;
};

class Event {
 public:
  Event(int device, bool timing) : device_(device) {
    const OnDevice on(device);
    check(runtime::create_event(&event_, timing), "cudaEventCreate");
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    quietly(device_, [this] { runtime::destroy_event(event_); });
  }
  void record(uint64_t stream) { check(runtime::record(event_, pointer(stream)), "event record"); }
  void wait(uint64_t stream) { check(runtime::wait_event(pointer(stream), event_), "event wait"); }
  void synchronize() { check(runtime::synchronize_event(event_), "the GPU"); }
  float since(const Event& begin) const {
    float result = 0;
    check(runtime::elapsed(&result, begin.event_, event_), "cudaEventElapsedTime");
    return result;
  }

 private:
  int device_;
  void* event_ = nullptr;
};

class Graph {
 public:
  Graph(int device, void* graph) : device_(device), graph_(graph) {}
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    quietly(device_, [this] { runtime::destroy_graph(graph_); });
  }
  void launch(uint64_t stream) {
    check(runtime::launch_graph(graph_, pointer(stream)), "cudaGraphLaunch");
  }

 private:
  int device_;
  void* graph_;
};

std::unique_ptr<Graph> end_capture(int device, uint64_t stream, bool keep) {
  void* graph = nullptr;
  const int error = runtime::end_capture(pointer(stream), &graph);
  auto result = graph ? std::make_unique<Graph>(device, graph) : nullptr;
  if (!keep) return nullptr;  // it ends all the same
  check(error, "capturing the network");
  if (!result) throw std::runtime_error("capturing the network failed: nothing was captured");
  return result;
}

CudaLimits limits_of(int multiprocessors, int shared_bytes) {
  CudaLimits result;
  result.multiprocessors = multiprocessors;
  result.shared_bytes = shared_bytes;
  return result;
}

template <class Args>
void launcher(py::module_& m, const char* name, int (*launch)(int, const Args&, void*)) {
  m.def(
      name,
      [name, launch](int dtype, const Args& args, uint64_t stream) {
        check(launch(dtype, args, pointer(stream)), name);
      },
      py::arg("dtype"), py::arg("args"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void bind_cuda_network(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::class_<OnDevice>(m, "OnDevice", "Makes a device current until it is deleted.")
      .def(py::init<int>());
  py::class_<Buffer>(m, "Buffer", "Memory of a device, or page-locked memory of the host.")
      .def(py::init<int, int64_t, bool>(), py::arg("device"), py::arg("bytes"),
           py::arg("host") = false)
      .def_property_readonly("address", &Buffer::address)
      .def_property_readonly("bytes", &Buffer::bytes)
      .def("view", &Buffer::view, py::keep_alive<0, 1>());
  py::class_<Stream>(m, "Stream")
      .def(py::init<int>())
      .def_property_readonly("handle", &Stream::handle);
  py::class_<Event>(m, "Event")
      .def(py::init<int, bool>(), py::arg("device"), py::arg("timing") = false)
      .def("record", &Event::record)
      .def("wait", &Event::wait, "Lets a stream wait for it.")
      .def("synchronize", &Event::synchronize, release())
      .def("since", &Event::since, "Milliseconds.");
  py::class_<Graph>(m, "Graph").def("launch", &Graph::launch, release());

  m.def(
      "copy",
      [](uint64_t to, uint64_t from, int64_t bytes, uint64_t stream) {
        check(runtime::copy(pointer(to), pointer(from), bytes, pointer(stream)), "copy");
      },
      py::arg("to"), py::arg("source"), py::arg("bytes"), py::arg("stream"), release());
  m.def(
      "synchronize",
      [](uint64_t stream) { check(runtime::synchronize(pointer(stream)), "the GPU"); }, release());
  m.def("is_capturing", [](uint64_t stream) {
    bool capturing = false;
    check(runtime::is_capturing(pointer(stream), &capturing), "cudaStreamIsCapturing");
    return capturing;
  });
  m.def("begin_capture",
        [](uint64_t stream) { check(runtime::begin_capture(pointer(stream)), "capturing"); });
  m.def("end_capture", &end_capture, py::arg("device"), py::arg("stream"), py::arg("keep"));
  m.def("driver_version", [] {
    int version = 0;
    check(runtime::driver_version(&version), "cudaDriverGetVersion");
    return version;
  });
  m.def("memory_info", [](int device) {
    const OnDevice on(device);
    int64_t left = 0, total = 0;
    check(runtime::memory_info(&left, &total), "cudaMemGetInfo");
    return py::make_tuple(left, total);
  });

  bind_cuda_structures(m);
  m.attr("io_tensors") = kIoTensors;
  m.attr("max_phases") = kMaxPhases;
  m.def(
      "net_conv_plan",
      [](const NetConv& conv, int multiprocessors, int shared_bytes) {
        const CudaConvPlan p = network_conv_plan(conv, limits_of(multiprocessors, shared_bytes));
        return py::make_tuple(p.workspace_floats, p.tile, p.width_log, p.blocks_x * p.blocks_y,
                              p.shared_bytes);
      },
      "(floats of workspace for statistics, tile, log2 of its width, blocks, bytes of shared "
      "memory)");
  m.def(
      "net_conv",
      [](const NetConv& conv, int multiprocessors, int shared_bytes, uint64_t stream) {
        check(network_conv(conv, limits_of(multiprocessors, shared_bytes), pointer(stream)),
              "conv");
      },
      release());
  launcher<ApplyArgs>(m, "net_apply", &apply);
  launcher<DirectArgs>(m, "net_direct", &direct_conv);
  launcher<PoolArgs>(m, "net_pool", &pool);
  launcher<ReshapeArgs>(m, "net_reshape", &reshape);
  launcher<StatsArgs>(m, "net_stats", &value_statistics);
  launcher<GivenArgs>(m, "net_given", &given_statistics);
  m.def("stats_chunks", &stats_chunks);
  m.def(
      "write_io",
      [](uint64_t io, const Io& values, uint64_t stream) {
        check(write_io(static_cast<Io*>(pointer(io)), values, pointer(stream)), "write_io");
      },
      release());
}

}  // namespace fastgen
