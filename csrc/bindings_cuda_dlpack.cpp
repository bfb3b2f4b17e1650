// DLPack for fastgen._cuda: the address behind a capsule, and a capsule around our memory.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace fastgen {
namespace {

// The structures of DLPack's C interface, as its specification lays them out (version 0.8, the
// "dltensor" capsules that every library still gives).
struct DLDevice {
  int32_t type, id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // null: dense
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

constexpr char kFresh[] = "dltensor";
constexpr int kCuda = 2, kUnsigned = 1, kFloat = 2;

// What our own capsules hold.
struct Owned {
  DLManagedTensor managed{};
  std::vector<int64_t> shape;
  py::object memory;  // the Buffer
};

void release(DLManagedTensor* managed) {
  py::gil_scoped_acquire gil;
  delete static_cast<Owned*>(managed->context);
}

// A capsule that nobody has taken; one that was taken has another name and is its taker's.
void release_capsule(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, kFresh)) return;
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, kFresh));
  if (managed && managed->deleter) managed->deleter(managed);
}

// (address, shape, strides or None, type code, bits). The capsule stays the caller's, who keeps it
// as long as the address is used.
py::tuple from_dlpack(const py::object& capsule) {
  if (!PyCapsule_IsValid(capsule.ptr(), kFresh))
    throw std::invalid_argument("no DLPack capsule, or one that was used already");
  const auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kFresh));
  const DLTensor& t = managed->tensor;
  if (t.dtype.lanes != 1) throw std::invalid_argument("DLPack types of several lanes are not read");
  const std::vector<int64_t> shape(t.shape, t.shape + t.ndim);
  const py::object strides =
      t.strides ? py::cast(std::vector<int64_t>(t.strides, t.strides + t.ndim)) : py::none();
  const uint64_t address = reinterpret_cast<uint64_t>(t.data) + t.byte_offset;
  return py::make_tuple(address, shape, strides, int{t.dtype.code}, int{t.dtype.bits});
}

py::object to_dlpack(const py::object& memory, const std::vector<int64_t>& shape, bool is_float,
                     int itemsize, int device) {
  auto owned = std::make_unique<Owned>();
  owned->shape = shape;
  owned->memory = memory;
  DLTensor& t = owned->managed.tensor;
  t.data = reinterpret_cast<void*>(memory.attr("address").cast<uint64_t>());
  t.device = {kCuda, device};
  t.ndim = static_cast<int32_t>(shape.size());
  t.dtype = {static_cast<uint8_t>(is_float ? kFloat : kUnsigned),
             static_cast<uint8_t>(8 * itemsize), 1};
  t.shape = owned->shape.data();
  owned->managed.context = owned.get();
  owned->managed.deleter = release;
  PyObject* capsule = PyCapsule_New(&owned->managed, kFresh, release_capsule);
  if (!capsule) throw py::error_already_set();
  owned.release();  // the capsule's now
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

void bind_cuda_dlpack(py::module_& m) {
  m.def("from_dlpack", &from_dlpack, "(address, shape, strides or None, type code, bits)");
  m.def("to_dlpack", &to_dlpack, py::arg("memory"), py::arg("shape"), py::arg("is_float"),
        py::arg("itemsize"), py::arg("device"));
}

}  // namespace fastgen
