// A dense convolution with prepacked weights: what a step of the engine and a fused operation
// share.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "engine.h"

namespace fastgen {

// Two numbers rounded to bfloat16 in the 32 bits of a float, the first in the lower half.
float bf16_pair(float first, float second);

// Sizes of one call.
struct ConvShape {
  int64_t images = 1;
  Extent in, residual, out;  // in, residual: before the source's views
};

// A tensor of a call; strides count elements. See View for `planar`, PackArgs for `exact`.
struct ConvTensor {
  void* data = nullptr;
  int dtype = kFloat32;
  int64_t image = 0, block = 0, row = 0, pixel = 0;
  int planar = 0;
  int64_t rows = kAllRows, first = 0;  // as in Value
  bool dense = false;                  // as in ValueShape; of outputs only

  int64_t place(int64_t y) const { return (y + first) % rows * row; }

  int64_t bytes() const { return element_bytes(dtype); }
  View view(int64_t index) const {
    return {static_cast<char*>(data) + index * image * bytes(), block, row, pixel, planar};
  }
};

struct ConvCall {
  const StepPlan* step = nullptr;
  Pool* pool = nullptr;  // null: the pool of the fused operations
  bool exact = false;    // tensors have no memory behind their last channel
  const ConvShape* shape = nullptr;
  // A residual has the dtype of what it is added to; `copy` is float32 or bfloat16.
  ConvTensor in, load_residual, out, residual, copy;
  Extent repeated;  // of a residual whose middle row and column are repeated, else 0
  const float *scale = nullptr, *shift = nullptr;  // padded to whole blocks
  int64_t slot_image = 0;                          // from image to image
  float* panels = nullptr;                         // per thread
  int64_t panel_stride = 0;                        // at least step->panel_floats
  float* stats = nullptr;                          // step->stats_floats
  float *out_scale = nullptr, *out_shift = nullptr;
  int64_t out_slot_image = 0;
  float *out_mean = nullptr, *out_variance = nullptr;  // or null
  int64_t first_unit = 0, last_unit = -1;              // rows of tiles; -1: all
  bool statistics = true;                              // when the convolution has a norm
  // Set by Conv::run, of int8: [quant, zero of the inputs][for each phase scale, bias of outputs]
  const float* int8 = nullptr;
  int64_t int8_image = 0;  // from image to image
};

class Conv {
 public:
  Conv(ConvSpec spec, const Kernels& isa);

  // Geometry and maps; afterwards nothing is read or written outside tensors of these sizes.
  void plan(const ConvShape& shape, int threads, StepPlan* out) const;
  // Appends what is read and written of the source's value and residual, `store` and `out`.
  void flow(const StepPlan& step, int64_t out_rows, Flow* out) const;
  void run(const ConvCall& call) const;
  const ConvSpec& spec() const { return spec_; }
  const Kernels& isa() const { return *isa_; }

 private:
  struct Phase {
    int kh, kw, dy, dx, ry, rx;
    size_t weights;             // offset of the phase
    std::vector<size_t> group;  // offset of each output group
  };
  struct Tile {
    int64_t image, row, rows, column, columns, first_group, last_group;
    float* stats;  // of the tile's first part, or null
    int64_t images = 1;
    const void* const* panels = nullptr;  // of each image
  };

  void check();
  void span();
  void split_upsampling();
  void pack_weights();

  // conv_batch.cpp: small maps of many images share a tile, so that weights are read once for all.
  static constexpr int64_t kMostBatch = 64;
  bool shares_tiles(const ConvShape& shape, const StepPlan& plan) const;
  void batch_plan(const ConvShape& shape, int threads, StepPlan* out) const;

  void direct_plan(const ConvShape& shape, int threads, StepPlan* out) const;
  void tile(const ConvCall& c, int64_t item, int thread) const;
  PackArgs pack_args(const ConvCall& c, const Tile& t, float* panel, bool copying) const;
  void pack_parity(const StepPlan& p, PackArgs a, int parity) const;
  FinishArgs finish_args(const ConvCall& c) const;
  // Points the arguments at output (y, x) and channel block `block`.
  void finish_place(const ConvCall& c, const Tile& t, int64_t block, int64_t y, int64_t x,
                    FinishArgs* f) const;
  // Finishes the tile of arguments at output (y, x) and channel block `block` (conv_residual.cpp).
  void finish_at(const ConvCall& c, const Tile& t, int64_t block, int64_t y, int64_t x,
                 FinishArgs* f) const;
  int group_channels(int64_t group, int64_t block) const {
    return static_cast<int>(
        std::min<int64_t>(groups_[group] * kBlock, spec_.outputs - block * kBlock));
  }
  void blocked_phase(const ConvCall& c, const Phase& phase, const Tile& t, const PackArgs& pack,
                     int64_t* done) const;
  void small_phase(const ConvCall& c, const Tile& t, const PackArgs& pack, float* buffer) const;
  RowsArgs rows_args(const ConvCall& c, int64_t stride, int64_t pixels) const;
  int64_t phase_count(int64_t first, int64_t count, int64_t r, int64_t size) const;
  int format() const { return spec_.small ? kPanelPlanar : spec_.inputs <= 4 ? kPanel4 : kPanel16; }

  // conv_bf16.cpp
  void pack_pairs();
  void pack_small_pairs();
  bool in_place(const ConvCall& c) const;
  int64_t factor_bytes() const { return int8_ ? 1 : bf16_ ? 2 : 4; }
  int panel_pixel() const { return format() == kPanel16 ? kBlock : spec_.inputs; }

  // winograd_rows.cpp
  struct RowsScratch {
    int64_t ring, v, m, y;
    int64_t slots, row, line, batch;  // line: floats of a row of outputs; batch: its pixels
    int64_t total() const { return ring + v + m + y; }
  };
  void rows_size();
  void rows_weights();
  int64_t rows_window(int64_t count) const;
  double rows_products(const ConvShape& shape) const;
  RowsScratch rows_scratch(const StepPlan& plan) const;
  void rows_plan(const ConvShape& shape, int threads, StepPlan* out) const;
  void rows_tile(const ConvCall& c, const Tile& t, PackArgs pack) const;
  void rows_few(const ConvCall& c, const Tile& t, const RowsScratch& s, float* v, int64_t first,
                int64_t rows, int64_t done) const;
  void rows_small(const ConvCall& c, const Tile& t, const RowsScratch& s, float* v, int64_t first,
                  int64_t rows) const;

  // conv_int8.cpp
  void check_int8() const;
  bool fits_int8() const;
  void pack_quads();
  void write_scales(float scale, float zero, float* to) const;
  std::vector<float> frame_scales(const ConvCall& c) const;
  void range(const ConvCall& c, int64_t item, float* panel, float* low, float* high) const;
  void small_int8(const SmallArgs& s, const PackArgs& pack, int64_t row, const float* scales) const;
  void int8_pack_args(const ConvCall& c, int64_t image, PackArgs* a) const;
  int64_t int8_line(const StepPlan& p) const {  // floats of a row of the window
    return int8_ ? (window(p.tile_columns, span_x_, winograd_) + 1) * kBlock : 0;
  }
  int64_t padded_inputs() const { return blocks_of(spec_.inputs) * kBlock; }
  int64_t padded_outputs() const { return blocks_of(spec_.outputs) * kBlock; }
  // Where the scales of a phase begin in ConvCall::int8; behind them its biases.
  int64_t phase_scales(size_t phase) const {
    return 2 * padded_inputs() + 2 * static_cast<int64_t>(phase) * padded_outputs();
  }

  // winograd_int8.cpp
  struct Scratch;
  bool fits_winograd_int8() const;
  void winograd_int8_weights();
  int64_t winograd_int8_element(int64_t tiles) const;
  Scratch winograd_int8_scratch(const StepPlan& plan) const;
  void winograd_int8_plan(const ConvShape& shape, int threads, StepPlan* out) const;
  void winograd_int8_tile(const ConvCall& c, const Tile& t, const PackArgs& pack) const;

  // winograd.cpp
  struct Scratch {
    int64_t panel, v, m, rows;
    int64_t total() const { return panel + v + m + rows; }
  };
  void winograd_size();
  // Rows of taps that every product keeps, where there is no transform down.
  int winograd_taps() const { return winograd_rows_ == 1 ? 7 - winograd_ : 1; }
  // Down; across there are 6.
  int winograd_points() const { return winograd_rows_ == 1 ? 1 : winograd_rows_ + 6 - winograd_; }
  int winograd_inputs() const { return spec_.inputs * spec_.stride * spec_.stride; }
  void winograd_weights();
  Scratch winograd_scratch(const StepPlan& plan) const;
  void winograd_plan(const ConvShape& shape, int threads, StepPlan* out) const;
  bool winograd_direct(const ConvCall& c) const;
  bool winograd_finishes(const ConvCall& c, const Tile& t) const;
  bool fits_halves() const;
  bool leaks() const {  // the activation is the larger of x and a part of it
    return spec_.act < kActLeaky || (spec_.act == kActLeaky && spec_.slope > 0 && spec_.slope <= 1);
  }
  void winograd_tile(const ConvCall& c, const Tile& t, const PackArgs& pack) const;
  // Rows (or columns) of the window of `count` outputs. Winograd tiles are whole, and with a stride
  // of 2 the window is one of the input's four parities.
  int64_t window(int64_t count, int64_t span, int tile) const {
    if (!winograd_) return (count - 1) * spec_.stride + span;
    return ceil_div(count, tile) * tile - 1 + ceil_div(span, spec_.stride);
  }

  ConvSpec spec_;
  const Kernels* isa_;
  std::vector<Phase> phases_, points_;  // points_: weights of winograd_rows.cpp
  std::vector<int> groups_;             // channel blocks of each output group
  Weights weights_, bias_;
  int low_y_ = 0, low_x_ = 0, span_y_ = 1, span_x_ = 1;
  bool bf16_ = false;                     // products of bfloat16
  bool int8_ = false;                     // products of bytes
  Weights int8_scales_;                   // as ConvCall::int8, for inputs with scale 1 and zero 0
  std::vector<float> int8_sums_;          // for each phase and output: of weights
  int16_t point_scale_[16] = {};          // of Winograd tiles of bytes, and what is subtracted at
  std::vector<int16_t> centre_;           // their point (1, 1): see Winograd2Input
  int winograd_ = 0, winograd_rows_ = 0;  // outputs of a Winograd tile, or 0: not worth it
  bool halves_ = false;                   // at most 8 outputs of Winograd tiles: see halves.inl
  int rows_ = 0;  // groups of kernel rows of a Winograd convolution along the rows, or 0
};

}  // namespace fastgen
