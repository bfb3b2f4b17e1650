// fastgen._C: the CPU engine. The only file of this module that includes pybind11.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "fastgen.h"

namespace py = pybind11;

void bind_color(py::module_& m);        // bindings_color.cpp
void bind_feature_ops(py::module_& m);  // bindings_ops.cpp
void bind_conv_ops(py::module_& m);     // bindings_conv.cpp
void bind_stabilizer(py::module_& m);   // bindings_stabilizer.cpp

using fastgen::ConvSpec;
using fastgen::Engine;
using fastgen::ImageIO;
using fastgen::NormSpec;
using fastgen::PhaseSpec;
using fastgen::Plan;
using fastgen::PoolSpec;
using fastgen::SegmentSpec;
using fastgen::Source;
using fastgen::ValueShape;
using fastgen::ViewOp;

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

std::vector<float> floats(const py::object& object) {
  if (object.is_none()) return {};
  const auto array = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(object);
  if (!array) throw std::invalid_argument("expected an array of floats");
  return std::vector<float>(array.data(), array.data() + array.size());
}

std::vector<ViewOp> views(const py::iterable& list) {
  std::vector<ViewOp> result;
  for (const py::handle item : list) {
    const auto t = item.cast<py::tuple>();
    if (t.size() != 5) throw std::invalid_argument("a view is (kind, left, right, top, bottom)");
    result.push_back({t[0].cast<int>(), t[1].cast<int64_t>(), t[2].cast<int64_t>(),
                      t[3].cast<int64_t>(), t[4].cast<int64_t>()});
  }
  return result;
}

// Attributes of the Python dataclasses of fastgen/backends/_lower.py.
Source source(const py::handle& o) {
  Source s;
  s.value = o.attr("value").cast<int>();
  s.slot = o.attr("slot").cast<int>();
  s.pre = o.attr("pre").cast<int>();
  s.pre_slope = o.attr("pre_slope").cast<float>();
  s.combine = o.attr("combine").cast<int>();
  s.residual = o.attr("residual").cast<int>();
  s.post = o.attr("post").cast<int>();
  s.post_slope = o.attr("post_slope").cast<float>();
  s.views = views(o.attr("views"));
  s.residual_views = views(o.attr("residual_views"));
  s.store = o.attr("store").cast<int>();
  return s;
}

NormSpec norm(const py::handle& o) {
  NormSpec n;
  if (o.is_none()) return n;
  n.slot = o.attr("slot").cast<int>();
  n.eps = o.attr("eps").cast<float>();
  n.weight = floats(o.attr("weight"));
  n.bias = floats(o.attr("bias"));
  return n;
}

ConvSpec conv(const py::handle& o) {
  ConvSpec s;
  s.label = o.attr("label").cast<std::string>();
  s.source = source(o.attr("source"));
  s.out = o.attr("out").cast<int>();
  s.inputs = o.attr("inputs").cast<int>();
  s.outputs = o.attr("outputs").cast<int>();
  s.groups = o.attr("groups").cast<int>();
  s.stride = o.attr("stride").cast<int>();
  s.out_stride = o.attr("out_stride").cast<int>();
  s.pad_mode = o.attr("pad_mode").cast<int>();
  for (const py::handle p : o.attr("phases")) {
    PhaseSpec phase;
    const auto weight = p.attr("weight").cast<py::array>();
    if (weight.ndim() != 4) throw std::invalid_argument("a weight is (O,I,kh,kw)");
    phase.kh = static_cast<int>(weight.shape(2));
    phase.kw = static_cast<int>(weight.shape(3));
    phase.dy = p.attr("dy").cast<int>();
    phase.dx = p.attr("dx").cast<int>();
    phase.ry = p.attr("ry").cast<int>();
    phase.rx = p.attr("rx").cast<int>();
    phase.weights = floats(weight);
    s.phases.push_back(std::move(phase));
  }
  s.quant = floats(o.attr("quant"));
  s.zero = floats(o.attr("zero"));
  s.mean = floats(o.attr("mean"));
  s.spread = floats(o.attr("spread"));
  s.bias = floats(o.attr("bias"));
  s.act = o.attr("act").cast<int>();
  s.slope = o.attr("slope").cast<float>();
  s.norm = norm(o.attr("norm"));
  s.small = o.attr("small").cast<bool>();
  s.flat = o.attr("flat").cast<bool>();
  s.residual = o.attr("residual").cast<int>();
  s.direct = o.attr("direct").cast<bool>();
  return s;
}

ValueShape value_shape(const py::handle& item) {
  const auto t = item.cast<py::tuple>();
  if (t.size() != 8)
    throw std::invalid_argument("a value is (n, c, h, w, layout, dtype, offset, image)");
  const int layout = t[4].cast<int>();
  if (layout < 0 || layout > 2) throw std::invalid_argument("a value's layout must be 0, 1 or 2");
  return {t[0].cast<int64_t>(), t[1].cast<int64_t>(), t[2].cast<int64_t>(),
          t[3].cast<int64_t>(), layout == 1,          t[5].cast<int>(),
          t[6].cast<int64_t>(), t[7].cast<int64_t>(), layout == 2};
}

// The plan keeps its engine's identity, and here also what the arrays must hold.
struct PlanHandle {
  std::shared_ptr<const Plan> plan;
  std::vector<ValueShape> values;
  int externals;
};

PlanHandle make_plan(const Engine& engine, const py::iterable& values, int64_t arena_floats,
                     int externals, const py::iterable& segments) {
  PlanHandle handle{nullptr, {}, externals};
  for (const py::handle item : values) handle.values.push_back(value_shape(item));
  std::vector<SegmentSpec> specs;
  for (const py::handle item : segments) {
    const auto t = item.cast<py::tuple>();
    if (t.size() != 4) throw std::invalid_argument("a segment is (first, last, floats, values)");
    specs.push_back({t[0].cast<int>(), t[1].cast<int>(), t[2].cast<int64_t>(),
                     t[3].cast<std::vector<std::pair<int, int64_t>>>()});
  }
  handle.plan = engine.plan(handle.values, arena_floats, externals, specs);
  return handle;
}

PlanHandle make_band_plan(const Engine& engine, const py::iterable& values, int externals,
                          const py::tuple& spec, const py::object& image,
                          const py::iterable& joins) {
  PlanHandle handle{nullptr, {}, externals};
  for (const py::handle item : values) handle.values.push_back(value_shape(item));
  if (spec.size() != 4) throw std::invalid_argument("expected (rows, limit, most_work, given)");
  const fastgen::BandSpec bands{spec[0].cast<int64_t>(), spec[1].cast<int64_t>(),
                                spec[2].cast<double>(), spec[3].cast<bool>()};
  fastgen::ImageShape shape;
  if (!image.is_none()) {
    const auto t = image.cast<py::tuple>();
    if (t.size() != 5) throw std::invalid_argument("an image is (n, height, width, input, output)");
    shape = {t[0].cast<int64_t>(), t[1].cast<int64_t>(), t[2].cast<int64_t>(), t[3].cast<int>(),
             t[4].cast<int>()};
  }
  std::vector<fastgen::JoinSpec> parts;
  for (const py::handle item : joins) {
    const auto t = item.cast<py::tuple>();
    if (t.size() != 3) throw std::invalid_argument("a join is (value, of value, first channel)");
    parts.push_back({t[0].cast<int>(), t[1].cast<int>(), t[2].cast<int64_t>()});
  }
  handle.plan = engine.plan_bands(handle.values, externals, bands, shape, parts);
  return handle;
}

// Statistics of the norms: arrays of float32, or None.
fastgen::NormArrays norm_arrays(const Engine& engine, const PlanHandle& handle,
                                const py::object& given, const py::object& wanted) {
  const auto pointer = [&](const py::object& o) -> float* {
    if (o.is_none()) return nullptr;
    const auto array = o.cast<py::array>();
    if (!py::isinstance<FloatArray>(array) || !(array.flags() & py::array::c_style) ||
        array.size() != engine.norm_floats(*handle.plan))
      throw std::invalid_argument("statistics are not contiguous float32 of the planned size");
    return static_cast<float*>(const_cast<void*>(array.data()));
  };
  return {pointer(given), pointer(wanted)};
}

void run(Engine& engine, const PlanHandle& handle, const py::list& arrays, const py::object& given,
         const py::object& wanted, uint64_t constants) {
  if (static_cast<int>(arrays.size()) != handle.externals)
    throw std::invalid_argument("wrong number of arrays");
  std::vector<int64_t> sizes(handle.externals, 0);
  for (const ValueShape& v : handle.values)
    if (v.offset < 0)
      sizes[-1 - v.offset] = std::max(sizes[-1 - v.offset], Engine::value_floats(v));
  std::vector<float*> pointers;
  std::vector<py::array> alive;  // another thread may change the list while the engine runs
  for (int i = 0; i < handle.externals; ++i) {
    const auto array = arrays[i].cast<py::array>();
    if (!py::isinstance<FloatArray>(array) || !(array.flags() & py::array::c_style) ||
        array.size() != sizes[i])
      throw std::invalid_argument("an array is not contiguous float32 of the planned size");
    pointers.push_back(static_cast<float*>(const_cast<void*>(array.data())));
    alive.push_back(array);
  }
  const fastgen::NormArrays norms = norm_arrays(engine, handle, given, wanted);
  engine.after_fork();
  py::gil_scoped_release release;
  engine.run(*handle.plan, pointers, norms, constants);
}

void run_image(Engine& engine, const PlanHandle& handle, int input, int output,
               const py::array& photo, py::array& out, std::pair<float, float> input_range,
               std::pair<float, float> output_range, float strength, bool preserve_color, bool bgr,
               const py::object& given, const py::object& wanted) {
  const bool is_byte = py::isinstance<py::array_t<uint8_t>>(photo);
  const auto fits = [&](const py::array& a) {
    const bool type =
        is_byte ? py::isinstance<py::array_t<uint8_t>>(a) : py::isinstance<py::array_t<float>>(a);
    return type && a.ndim() == 4 && a.shape(3) == 3 && (a.flags() & py::array::c_style);
  };
  if (!fits(photo) || !fits(out) || !out.writeable())
    throw std::invalid_argument("images must be contiguous (N,H,W,3) of uint8 or float32");
  for (int axis = 0; axis < 3; ++axis)
    if (photo.shape(axis) != out.shape(axis))
      throw std::invalid_argument("out must have the shape of the image");
  const ImageIO io{input_range.first,
                   input_range.second,
                   output_range.first,
                   output_range.second,
                   strength,
                   preserve_color,
                   bgr};
  const void* from = photo.data();
  void* to = out.mutable_data();
  const int64_t n = photo.shape(0), height = photo.shape(1), width = photo.shape(2);
  const fastgen::NormArrays norms = norm_arrays(engine, handle, given, wanted);
  engine.after_fork();
  py::gil_scoped_release release;
  engine.run_image(*handle.plan, input, output, from, to, is_byte, n, height, width, io, norms);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ engine of the cpu backend. Use fastgen.backends.cpu.";
  py::class_<PlanHandle>(m, "Plan")
      .def_property_readonly(
          "bytes", [](const PlanHandle& handle) { return Engine::plan_bytes(*handle.plan); })
      .def_property_readonly(
          "bands",
          [](const PlanHandle& handle) -> py::object {
            const fastgen::BandReport r = Engine::band_report(*handle.plan);
            if (!r.passes) return py::none();
            return py::make_tuple(r.bands, r.passes, r.kept_bytes, r.work);
          },
          "(bands, passes, bytes kept whole, arithmetic beside a run without bands) or None.")
      .def_property_readonly(
          "costs",
          [](const PlanHandle& handle) {
            py::list result;
            for (const auto& cost : Engine::plan_costs(*handle.plan))
              result.append(py::make_tuple(cost.flops / 2, cost.products));
            return result;
          },
          "[(multiply-adds of the step as it was given, those that are done)].");
  py::class_<Engine>(m, "Engine")
      .def(py::init<int, const std::string&>(), py::arg("threads") = 0, py::arg("isa") = "")
      .def("add_value", &Engine::add_value)
      .def(
          "add_slot",
          [](Engine& e, int channels, const py::object& scale, const py::object& shift) {
            return e.add_slot(channels, floats(scale), floats(shift));
          },
          py::arg("channels"), py::arg("scale") = py::none(), py::arg("shift") = py::none())
      .def(
          "add_conv",
          [](Engine& e, const py::object& step, bool bf16, bool int8) {
            ConvSpec spec = conv(step);
            if (bf16) spec.products = fastgen::kBFloat16;
            if (int8) spec.products = fastgen::kInt8;
            e.add_conv(std::move(spec));
          },
          py::arg("step"), py::arg("bf16") = false, py::arg("int8") = false,
          "bf16: products of factors rounded to bfloat16, summed in float32; int8: of bytes, "
          "summed "
          "in int32.")
      .def("add_copy", [](Engine& e, const std::string& label, const py::object& from,
                          int out) { e.add_copy(label, source(from), out); })
      .def("add_stats", [](Engine& e, const std::string& label, int value,
                           const py::object& n) { e.add_stats(label, value, norm(n)); })
      .def("add_given", [](Engine& e, const std::string& label, int mean, int var,
                           const py::object& n) { e.add_given(label, mean, var, norm(n)); })
      .def("add_pool",
           [](Engine& e, const std::string& label, int value, int out, int kind, int kernel,
              int stride, int padding) {
             e.add_pool(label, value, out, PoolSpec{kind, kernel, stride, padding});
           })
      .def("add_concat", &Engine::add_concat)
      .def("add_broadcast", &Engine::add_broadcast)
      .def("add_reshape", &Engine::add_reshape)
      .def("plan", &make_plan, py::arg("values"), py::arg("arena_floats"), py::arg("externals"),
           py::arg("segments") = py::tuple(), py::keep_alive<0, 1>())
      .def("plan_bands", &make_band_plan, py::arg("values"), py::arg("externals"), py::arg("spec"),
           py::arg("image"), py::arg("joins") = py::tuple(), py::keep_alive<0, 1>())
      .def("norm_floats",
           [](const Engine& e, const PlanHandle& h) { return e.norm_floats(*h.plan); })
      .def("set_constant_steps", &Engine::set_constant_steps)
      .def("run", &run, py::arg("plan"), py::arg("arrays"), py::arg("given") = py::none(),
           py::arg("wanted") = py::none(), py::arg("constants") = 0)
      .def("run_image", &run_image, py::arg("plan"), py::arg("input"), py::arg("output"),
           py::arg("photo"), py::arg("out"), py::arg("input_range"), py::arg("output_range"),
           py::arg("strength"), py::arg("preserve_color"), py::arg("bgr"),
           py::arg("given") = py::none(), py::arg("wanted") = py::none())
      .def("set_profile", &Engine::set_profile, py::call_guard<py::gil_scoped_release>())
      .def(
          "profile",
          [](const Engine& e) {
            std::vector<fastgen::StepTime> times;
            {
              py::gil_scoped_release release;  // waits for a run of another thread
              times = e.profile();
            }
            py::list result;
            for (const auto& t : times)
              result.append(
                  py::make_tuple(t.label, t.milliseconds,
                                 t.milliseconds > 0 ? t.flops / t.milliseconds * 1e-6 : 0.0));
            return result;
          },
          "[(step, milliseconds, GFLOP/s)] of the last run, when profiling is on.")
      .def("release_memory", &Engine::release_memory, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("arena_bytes",
                             [](const Engine& e) {
                               py::gil_scoped_release release;  // waits for a run
                               return e.arena_bytes();
                             })
      .def_property_readonly("threads", &Engine::threads)
      .def_property_readonly("isa", &Engine::isa);
  m.def("value_floats",
        [](const py::object& shape) { return Engine::value_floats(value_shape(shape)); });
  m.def("default_threads", &fastgen::default_threads);
  m.def("memory_available", &fastgen::memory_available,
        "Bytes that this process can still have, with the limits of its control groups.");
  m.def("isa_available", &fastgen::isa_available,
        "Instruction sets that this build has and this CPU runs, best first.");
  m.def("peak_flops", &fastgen::peak_flops, py::arg("isa") = "", py::arg("seconds") = 0.5,
        py::arg("threads") = 0, py::call_guard<py::gil_scoped_release>(),
        "Floating-point operations per second of a multiply-add loop.");
  m.def("fixed_work_seconds", &fastgen::fixed_work_seconds, py::arg("isa") = "", py::arg("rounds"),
        py::arg("threads") = 0, py::arg("repeats") = 1, py::call_guard<py::gil_scoped_release>(),
        "Seconds of each run of so many rounds of a multiply-add loop, shared out to the threads.");
  m.def("copy_bandwidth", &fastgen::copy_bandwidth, py::arg("bytes"), py::arg("seconds") = 0.5,
        py::arg("threads") = 0, py::call_guard<py::gil_scoped_release>(),
        "Bytes per second, read plus written, of a memory copy.");
  bind_color(m);
  bind_feature_ops(m);
  bind_conv_ops(m);
  bind_stabilizer(m);
}
