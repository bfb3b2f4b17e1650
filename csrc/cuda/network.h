// Launchers of the cuda backend: the steps of a network on its own channels-last tensors and, at
// both ends, the caller's. fastgen/backends/_cuda_plan.py fills these structures, which are what
// the kernels get. Strides count elements. Every function returns a cudaError_t and launches only.
#pragma once

#include <stdexcept>
#include <string>

#include "../fastgen.h"
#include "conv_geometry.h"

namespace fastgen {
namespace gpu {

struct NetConv {
  int dtype = kFloat32;
  int64_t n = 1, height = 1, width = 1, out_height = 1, out_width = 1;
  int inputs = 0, outputs = 0, kernel_h = 1, kernel_w = 1, stride = 1, phases = 1;
  int fold = 0;  // see ConvArgs; `outputs` are (fold + 1) times what is stored, four at most
  bool row_mode = false;
  int phase_origin_y[kMaxPhases] = {}, phase_origin_x[kMaxPhases] = {};
  uint64_t row_map = 0, column_map = 0;  // int32 of the device, or 0: every pixel shows itself
  int map_rows = 0, map_columns = 0;
  uint64_t weights = 0, bias = 0;  // as fastgen/ops/_cuda_pack.py packs them

  uint64_t x = 0;
  int x_tensor = -1, x_kind = kOwn;
  int64_t x_image = 0, x_pixel = 0, x_channel = 1;
  uint64_t scale = 0, shift = 0;
  int64_t scale_image = 0;
  float load_slope = 1;
  uint64_t load_residual = 0;
  int64_t load_residual_image = 0, load_residual_pixel = 0;

  uint64_t y = 0;
  int y_tensor = -1, y_kind = kOwn;
  int64_t y_image = 0, y_pixel = 0, y_channel = 1;
  uint64_t residual = 0;
  int64_t residual_image = 0, residual_pixel = 0;
  int residual_side = 0;
  float slope = 1;
  int activation = 0;
  bool is_image = false;
  int crop_rows = 0, crop_columns = 0;
  uint64_t io = 0;

  // Statistics of the output: workspace of the plan's floats, the norm's parameters, its results.
  uint64_t workspace = 0, gamma = 0, beta = 0, out_scale = 0, out_shift = 0;
  float eps = 0;
  int tile = -1, width_log = -1;
};

CudaConvPlan network_conv_plan(const NetConv& conv, const CudaLimits& limits);
int network_conv(const NetConv& conv, const CudaLimits& limits, void* stream);

// y = views(post(combine(pre(scale * x + shift), residual))), for any layout and type of both ends.
struct ApplyArgs {
  const Io* io;
  const void *x, *residual;
  void* y;
  const float *scale, *shift;
  const int *row_map, *column_map;                    // of x; null: every pixel shows itself
  const int *residual_row_map, *residual_column_map;  // of the residual
  int64_t x_image, x_pixel, x_channel, residual_image, residual_pixel, residual_channel;
  int64_t y_image, y_pixel, y_channel, scale_image;
  int64_t n;
  int height, width, residual_width, channels;  // of y; width_x below
  int x_width;
  int x_tensor, y_tensor, x_kind, y_kind;
  int pre, combine, post;
  float pre_slope, post_slope;
  bool is_image;  // y is an image of the caller
};
int apply(int dtype, const ApplyArgs& args, void* stream);

// A convolution in float32 of any stride, groups and kernel: slow, for what the others cannot do.
struct DirectArgs {
  const Io* io;
  const void* x;
  const float *weights, *bias;  // (outputs, inputs/groups, kernel_h, kernel_w), (outputs)
  const void* residual;
  void* y;
  const int *row_map, *column_map;
  int64_t x_image, x_pixel, x_channel, y_image, y_pixel, y_channel, residual_image, residual_pixel;
  int64_t n;
  int x_width, out_height, out_width;  // of the whole output
  int inputs, outputs, groups, kernel_h, kernel_w, stride;
  int phase_y, phase_x, out_stride;  // outputs (phase + i * out_stride)
  int x_tensor, y_tensor, x_kind, y_kind, residual_side, activation;
  float slope;
};
int direct_conv(int dtype, const DirectArgs& args, void* stream);

struct PoolArgs {
  const void* x;
  void* y;
  int64_t x_image, x_pixel, y_image, y_pixel, n;
  int height, width, out_height, out_width, channels, kind, kernel, stride, padding;
};
int pool(int dtype, const PoolArgs& args, void* stream);

// y (n, y_channels, y_pixels) are the numbers of x (n, x_channels, x_pixels) in that order.
struct ReshapeArgs {
  const void* x;
  void* y;
  int64_t x_image, x_pixel, y_image, y_pixel, n, x_pixels, y_pixels, y_channels;
};
int reshape(int dtype, const ReshapeArgs& args, void* stream);

struct StatsArgs {
  const void* x;
  float* partial;  // 3 n channels stats_chunks(pixels)
  const float *gamma, *beta;
  float *scale, *shift;
  int64_t n, pixels, x_image, x_pixel, x_channel;
  int channels;
  float eps;
};
constexpr int64_t kStatsPixels = 4096;
int64_t stats_chunks(int64_t pixels);
int value_statistics(int dtype, const StatsArgs& args, void* stream);

struct GivenArgs {
  const void *mean, *variance;
  const float *gamma, *beta;
  float *scale, *shift;
  int64_t n, mean_image, variance_image;
  int channels;
  float eps;
};
int given_statistics(int dtype, const GivenArgs& args, void* stream);

// Writes the table, in the order of the stream.
int write_io(Io* io, const Io& values, void* stream);

}  // namespace gpu
}  // namespace fastgen
