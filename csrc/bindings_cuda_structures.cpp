// The arguments of the cuda backend's launchers (cuda/network.h) as Python objects; pointers are
// integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/network.h"

namespace py = pybind11;

namespace fastgen {
namespace {

using namespace gpu;

uint64_t number(const void* address) { return reinterpret_cast<uint64_t>(address); }

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

}  // namespace

void bind_cuda_structures(py::module_& m) {
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

}  // namespace fastgen
