// The fused CUDA operations on the host: the bindings of fastgen._cuda over emulated kernels.
#include <pybind11/pybind11.h>

#include <string>

#include "../../csrc/cuda/conv_geometry.h"
#include "../../csrc/cuda/conv_plan.h"
#include "emulate.h"
#include "faulty.h"

namespace py = pybind11;

namespace fastgen {
namespace emulate {
int64_t& memory_limit();  // runtime.cpp
}
void bind_cuda_ops(py::module_& m);
void bind_cuda_network(py::module_& m);
void bind_cuda_dlpack(py::module_& m);
}  // namespace fastgen

PYBIND11_MODULE(fastgen_cuda_emulated, m) {
  namespace emulate = fastgen::emulate;
  namespace gpu = fastgen::gpu;
  fastgen::bind_cuda_ops(m);
  fastgen::bind_cuda_network(m);
  fastgen::bind_cuda_dlpack(m);
  m.def("declare", [](uint64_t address, uint64_t bytes, bool writable, const std::string& name) {
    emulate::declare(address, bytes, writable, name.c_str());
  });
  m.def("forget_all", &emulate::forget_all);
  m.def("set_memory_limit", [](int64_t bytes) { emulate::memory_limit() = bytes; });
  m.def("counts", [] {
    const emulate::Counts& c = emulate::counts();
    py::dict d;
    d["launches"] = c.launches;
    d["blocks"] = c.blocks;
    d["barriers"] = c.barriers;
    d["mma"] = c.mma;
    d["ldmatrix"] = c.ldmatrix;
    d["cp_async"] = c.cp_async;
    return d;
  });
  m.def("run_faulty", [](const std::string& name, uint64_t from, uint64_t to) {
    faulty_kernels().at(name)(from, to);
  });
  m.def("run_fragments", &run_fragments);
  m.def("source_index", &gpu::source_index);
  m.def("element", &gpu::element);
  m.def("half_round_trip",
        [](uint16_t bits) { return emulate::float_to_half(emulate::half_to_float(bits)); });
  m.def("float_to_half", &emulate::float_to_half);
}
