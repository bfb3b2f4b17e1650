// What the cuda backend needs of fastgen._cuda: memory, streams, captured graphs, and the steps of
// a network. Also compiled against the emulation in tests/.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/network.h"
#include "cuda/runtime.h"

namespace py = pybind11;

namespace fastgen {
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

// A field of a structure; pointers become integers.
template <class Struct, class Field>
void field(py::class_<Struct>& c, const char* name, Field Struct::* member) {
  if constexpr (std::is_pointer_v<Field>) {
    c.def_property(
        name, [member](const Struct& s) { return number(s.*member); },
        [member](Struct& s, uint64_t address) { s.*member = reinterpret_cast<Field>(address); });
  } else if constexpr (std::is_array_v<Field>) {
    using Item = std::remove_extent_t<Field>;
    c.def_property(
        name,
        [member](const Struct& s) {
          return std::vector<Item>(std::begin(s.*member), std::end(s.*member));
        },
        [member](Struct& s, const std::vector<Item>& values) {
          if (values.size() > std::size(s.*member))
            throw std::invalid_argument("at most " + std::to_string(std::size(s.*member)) +
                                        " values");
          std::copy(values.begin(), values.end(), std::begin(s.*member));
        });
  } else {
    c.def_readwrite(name, member);
  }
}

#define FIELD(name) field(c, #name, &Struct::name)

void bind_structures(py::module_& m) {
  {
    using Struct = NetConv;
    py::class_<Struct> c(m, "NetConv", "A convolution of a network: csrc/cuda/network.h.");
    c.def(py::init<>());
    FIELD(dtype);
    FIELD(n);
    FIELD(height);
    FIELD(width);
    FIELD(out_height);
    FIELD(out_width);
    FIELD(inputs);
    FIELD(outputs);
    FIELD(kernel_h);
    FIELD(kernel_w);
    FIELD(stride);
    FIELD(phases);
    FIELD(row_mode);
    FIELD(fold);
    FIELD(phase_origin_y);
    FIELD(phase_origin_x);
    FIELD(row_map);
    FIELD(column_map);
    FIELD(map_rows);
    FIELD(map_columns);
    FIELD(weights);
    FIELD(bias);
    FIELD(x);
    FIELD(x_tensor);
    FIELD(x_kind);
    FIELD(x_image);
    FIELD(x_pixel);
    FIELD(x_channel);
    FIELD(scale);
    FIELD(shift);
    FIELD(scale_image);
    FIELD(load_slope);
    FIELD(load_residual);
    FIELD(load_residual_image);
    FIELD(load_residual_pixel);
    FIELD(y);
    FIELD(y_tensor);
    FIELD(y_kind);
    FIELD(y_image);
    FIELD(y_pixel);
    FIELD(y_channel);
    FIELD(residual);
    FIELD(residual_image);
    FIELD(residual_pixel);
    FIELD(residual_side);
    FIELD(slope);
    FIELD(activation);
    FIELD(is_image);
    FIELD(crop_rows);
    FIELD(crop_columns);
    FIELD(io);
    FIELD(workspace);
    FIELD(gamma);
    FIELD(beta);
    FIELD(out_scale);
    FIELD(out_shift);
    FIELD(eps);
    FIELD(tile);
    FIELD(width_log);
  }
  {
    using Struct = ApplyArgs;
    py::class_<Struct> c(m, "Apply", "Reads a value, computes and writes it.");
    c.def(py::init([] { return Struct{}; }));
    FIELD(io);
    FIELD(x);
    FIELD(residual);
    FIELD(y);
    FIELD(scale);
    FIELD(shift);
    FIELD(row_map);
    FIELD(column_map);
    FIELD(residual_row_map);
    FIELD(residual_column_map);
    FIELD(x_image);
    FIELD(x_pixel);
    FIELD(x_channel);
    FIELD(residual_image);
    FIELD(residual_pixel);
    FIELD(residual_channel);
    FIELD(y_image);
    FIELD(y_pixel);
    FIELD(y_channel);
    FIELD(scale_image);
    FIELD(n);
    FIELD(height);
    FIELD(width);
    FIELD(residual_width);
    FIELD(channels);
    FIELD(x_width);
    FIELD(x_tensor);
    FIELD(y_tensor);
    FIELD(x_kind);
    FIELD(y_kind);
    FIELD(pre);
    FIELD(combine);
    FIELD(post);
    FIELD(pre_slope);
    FIELD(post_slope);
    FIELD(is_image);
  }
  {
    using Struct = DirectArgs;
    py::class_<Struct> c(m, "Direct", "A convolution of any shape.");
    c.def(py::init([] { return Struct{}; }));
    FIELD(io);
    FIELD(x);
    FIELD(weights);
    FIELD(bias);
    FIELD(residual);
    FIELD(y);
    FIELD(row_map);
    FIELD(column_map);
    FIELD(x_image);
    FIELD(x_pixel);
    FIELD(x_channel);
    FIELD(y_image);
    FIELD(y_pixel);
    FIELD(y_channel);
    FIELD(residual_image);
    FIELD(residual_pixel);
    FIELD(n);
    FIELD(x_width);
    FIELD(out_height);
    FIELD(out_width);
    FIELD(inputs);
    FIELD(outputs);
    FIELD(groups);
    FIELD(kernel_h);
    FIELD(kernel_w);
    FIELD(stride);
    FIELD(phase_y);
    FIELD(phase_x);
    FIELD(out_stride);
    FIELD(x_tensor);
    FIELD(y_tensor);
    FIELD(x_kind);
    FIELD(y_kind);
    FIELD(residual_side);
    FIELD(activation);
    FIELD(slope);
  }
  {
    using Struct = PoolArgs;
    py::class_<Struct> c(m, "Pool");
    c.def(py::init([] { return Struct{}; }));
    FIELD(x);
    FIELD(y);
    FIELD(x_image);
    FIELD(x_pixel);
    FIELD(y_image);
    FIELD(y_pixel);
    FIELD(n);
    FIELD(height);
    FIELD(width);
    FIELD(out_height);
    FIELD(out_width);
    FIELD(channels);
    FIELD(kind);
    FIELD(kernel);
    FIELD(stride);
    FIELD(padding);
  }
  {
    using Struct = ReshapeArgs;
    py::class_<Struct> c(m, "Reshape");
    c.def(py::init([] { return Struct{}; }));
    FIELD(x);
    FIELD(y);
    FIELD(x_image);
    FIELD(x_pixel);
    FIELD(y_image);
    FIELD(y_pixel);
    FIELD(n);
    FIELD(x_pixels);
    FIELD(y_pixels);
    FIELD(y_channels);
  }
  {
    using Struct = StatsArgs;
    py::class_<Struct> c(m, "Stats");
    c.def(py::init([] { return Struct{}; }));
    FIELD(x);
    FIELD(partial);
    FIELD(gamma);
    FIELD(beta);
    FIELD(scale);
    FIELD(shift);
    FIELD(n);
    FIELD(pixels);
    FIELD(x_image);
    FIELD(x_pixel);
    FIELD(x_channel);
    FIELD(channels);
    FIELD(eps);
  }
  {
    using Struct = GivenArgs;
    py::class_<Struct> c(m, "Given");
    c.def(py::init([] { return Struct{}; }));
    FIELD(mean);
    FIELD(variance);
    FIELD(gamma);
    FIELD(beta);
    FIELD(scale);
    FIELD(shift);
    FIELD(n);
    FIELD(mean_image);
    FIELD(variance_image);
    FIELD(channels);
    FIELD(eps);
  }
  {
    using Struct = Io;
    py::class_<Struct> c(m, "Io", "Where the caller's tensors of a run are.");
    c.def(py::init([] { return Struct{}; }));
    FIELD(address);
    FIELD(gain);
    FIELD(low);
    FIELD(out_low);
    FIELD(out_scale);
    FIELD(photo_scale);
    FIELD(strength);
    FIELD(preserve_color);
    FIELD(bgr);
    c.attr("bytes") = sizeof(Io);
  }
}

#undef FIELD

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

  bind_structures(m);
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
