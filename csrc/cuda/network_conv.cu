// Convolutions of a network: from what the plan says to the kernel's arguments.
#include "common.cuh"
#include "conv_plan.h"
#include "network.h"

namespace fastgen {
namespace gpu {
namespace {

template <class T>
T* at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

bool aligned(uint64_t address) { return address % 16 == 0; }

CudaConvPlan plan_of(const NetConv& c, const CudaLimits& limits, ConvArgs* args) {
  if (c.dtype < kFloat32 || c.dtype > kBFloat16 || c.inputs < 1 || c.outputs < 1 ||
      c.kernel_h < 1 || c.kernel_w < 1 || c.kernel_h > 15 || c.kernel_w > 15 || c.stride < 1 ||
      c.stride > 2 || c.phases < 1 || c.phases > kMaxPhases || c.n < 1 || c.height < 1 ||
      c.width < 1 || c.out_height < 1 || c.out_width < 1)
    throw std::invalid_argument("conv: the geometry is out of range");
  if (c.fold &&
      (c.fold < 0 || c.phases != 1 || c.stride != 1 || c.kernel_w != 1 ||
       c.outputs % (c.fold + 1) != 0 || c.outputs > 4 * (c.fold + 1) || c.residual || c.out_scale))
    throw std::invalid_argument("conv: columns cannot be outputs here");
  constexpr int64_t kMax = int64_t{1} << 28;
  if (c.height * c.width > kMax || c.out_height * c.out_width > kMax)
    throw std::invalid_argument("conv: a map of more than 2^28 pixels; run it in parts");
  ConvArgs& a = *args;
  a.height = static_cast<int>(c.height);
  a.width = static_cast<int>(c.width);
  a.channels = c.inputs;
  a.out_height = static_cast<int>(c.out_height);
  a.out_width = static_cast<int>(c.out_width);
  a.outputs = c.outputs;
  a.padded_outputs = (c.outputs + 7) / 8 * 8;
  a.kernel_h = c.kernel_h;
  a.kernel_w = c.kernel_w;
  a.stride = c.stride;
  a.upsample = 1;
  a.border = kBorderZero;
  a.phases = c.phases;
  a.fold = c.fold;
  a.rows_of_taps = c.row_mode;
  for (int i = 0; i < kMaxPhases; ++i) {
    a.phase_origin_y[i] = c.phase_origin_y[i];
    a.phase_origin_x[i] = c.phase_origin_x[i];
  }
  a.row_map = at<const int>(c.row_map);
  a.column_map = at<const int>(c.column_map);
  a.map_rows = c.map_rows;
  a.map_columns = c.map_columns;
  CudaConvPlan plan;
  plan.out_height = c.out_height;
  plan.out_width = c.out_width;
  choose_tile(c.n, limits, c.tile, c.width_log, c.dtype, &a, &plan);
  return plan;
}

}  // namespace

int launch_conv(int dtype, const CudaConvPlan& plan, const ConvArgs& args, void* stream) {
  switch (dtype) {
    case kFloat32:
      return launch_conv_fp32(plan, args, stream);
    case kFloat16:
      return launch_conv_fp16(plan, args, stream);
    case kBFloat16:
      return launch_conv_bf16(plan, args, stream);
    default:
      throw std::invalid_argument("conv: dtype " + std::to_string(dtype) + " does not exist");
  }
}

CudaConvPlan network_conv_plan(const NetConv& c, const CudaLimits& limits) {
  ConvArgs a{};
  return plan_of(c, limits, &a);
}

int network_conv(const NetConv& c, const CudaLimits& limits, void* stream) {
  ConvArgs a{};
  const CudaConvPlan plan = plan_of(c, limits, &a);
  a.x = at<const void>(c.x);
  a.weights = at<const void>(c.weights);
  a.bias = at<const float>(c.bias);
  a.residual = at<const void>(c.residual);
  a.y = at<void>(c.y);
  a.scale = at<const float>(c.scale);
  a.shift = at<const float>(c.shift);
  a.load_residual = at<const void>(c.load_residual);
  a.partial = c.out_scale ? at<float>(c.workspace) : nullptr;
  a.io = at<const Io>(c.io);
  a.x_tensor = c.x_tensor;
  a.y_tensor = c.y_tensor;
  a.x_kind = c.x_kind;
  a.y_kind = c.y_kind;
  a.x_image = c.x_image;
  a.x_pixel = c.x_pixel;
  a.x_channel = c.x_channel;
  a.y_image = c.y_image;
  a.y_pixel = c.y_pixel;
  a.y_channel = c.y_channel;
  a.residual_image = c.residual_image;
  a.residual_pixel = c.residual_pixel;
  a.residual_side = c.residual_side;
  a.load_residual_image = c.load_residual_image;
  a.load_residual_pixel = c.load_residual_pixel;
  a.scale_image = c.scale_image;
  a.slope = c.slope;
  a.load_slope = c.load_slope;
  a.activation = c.activation;
  a.is_image = c.is_image;
  a.crop_rows = c.crop_rows;
  a.crop_columns = c.crop_columns;
  const int vector = c.dtype == kFloat32 ? 4 : 8;
  const auto whole = [&](int64_t image, int64_t pixel) {
    return image % vector == 0 && pixel % vector == 0;
  };
  a.vector_x = c.x_tensor < 0 && c.x_kind == kOwn && c.x_channel == 1 && !c.row_mode &&
               c.inputs % vector == 0 && aligned(c.x) && whole(c.x_image, c.x_pixel) &&
               aligned(c.load_residual) && whole(c.load_residual_image, c.load_residual_pixel) &&
               aligned(c.scale) && aligned(c.shift) && c.scale_image % 4 == 0;
  a.vector_y = !c.fold && c.y_tensor < 0 && c.y_kind == kOwn && c.y_channel == 1 &&
               c.outputs % vector == 0 && aligned(c.y) && whole(c.y_image, c.y_pixel) &&
               aligned(c.residual) && whole(c.residual_image, c.residual_pixel);
  const int error = launch_conv(c.dtype, plan, a, stream);
  if (error != 0 || !c.out_scale) return error;
  const int64_t tiles = plan.workspace_floats / (3 * c.n * c.outputs);
  return launch_statistics(a.partial, at<const float>(c.gamma), at<const float>(c.beta),
                           at<float>(c.out_scale), at<float>(c.out_shift), c.n, c.outputs, tiles,
                           c.out_height * c.out_width, c.eps, stream);
}

}  // namespace gpu
}  // namespace fastgen
