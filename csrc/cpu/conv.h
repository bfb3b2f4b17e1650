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
  int64_t image = 0, block = 0, row = 0, pixel = 0;
  int planar = 0;

  View view(int64_t index, int64_t element) const {
    return {static_cast<char*>(data) + index * image * element, block, row, pixel, planar};
  }
};

struct ConvCall {
  const StepPlan* step = nullptr;
  Pool* pool = nullptr;  // null: the pool of the fused operations
  int dtype = 0;         // of all tensors
  bool exact = false;    // tensors have no memory behind their last channel
  const ConvShape* shape = nullptr;
  ConvTensor in, load_residual, out, residual, copy;
  Extent repeated;  // of a residual whose middle row and column are repeated, else 0
  const float *scale = nullptr, *shift = nullptr;  // padded to whole blocks
  int64_t slot_image = 0;                          // from image to image
  float* panels = nullptr;                         // per thread
  int64_t panel_stride = 0;                        // at least step->panel_floats
  float* stats = nullptr;                          // step->stats_floats
  float *out_scale = nullptr, *out_shift = nullptr;
  int64_t out_slot_image = 0;
};

class Conv {
 public:
  Conv(ConvSpec spec, const Kernels& isa);

  // Geometry and maps; afterwards nothing is read or written outside tensors of these sizes.
  void plan(const ConvShape& shape, int threads, StepPlan* out) const;
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
  int64_t phase_count(int64_t first, int64_t count, int64_t r, int64_t size) const;
  int format() const { return spec_.small ? kPanelPlanar : spec_.inputs <= 4 ? kPanel4 : kPanel16; }

  // conv_bf16.cpp
  void pack_pairs();
  bool in_place(const ConvCall& c) const;
  int64_t factor_bytes() const { return bf16_ ? 2 : 4; }
  int panel_pixel() const { return format() == kPanel16 ? kBlock : spec_.inputs; }

  // winograd.cpp
  struct Scratch {
    int64_t panel, v, m, rows;
    int64_t total() const { return panel + v + m + rows; }
  };
  void winograd_size();
  int winograd_points() const {
    return winograd_rows_ + 6 - winograd_;
  }  // down; across there are 6
  int winograd_inputs() const { return spec_.inputs * spec_.stride * spec_.stride; }
  void winograd_weights();
  Scratch winograd_scratch(const StepPlan& plan) const;
  void winograd_plan(const ConvShape& shape, int threads, StepPlan* out) const;
  void winograd_tile(const ConvCall& c, const Tile& t, const PackArgs& pack) const;
  // Rows (or columns) of the window of `count` outputs. Winograd tiles are whole, and with a stride
  // of 2 the window is one of the input's four parities.
  int64_t window(int64_t count, int64_t span, int tile) const {
    if (!winograd_) return (count - 1) * spec_.stride + span;
    return ceil_div(count, tile) * tile - 1 + ceil_div(span, spec_.stride);
  }

  ConvSpec spec_;
  const Kernels* isa_;
  std::vector<Phase> phases_;
  std::vector<int> groups_;  // channel blocks of each output group
  Weights weights_, bias_;
  int low_y_ = 0, low_x_ = 0, span_y_ = 1, span_x_ = 1;
  bool bf16_ = false;                     // products of bfloat16
  int winograd_ = 0, winograd_rows_ = 0;  // outputs of a Winograd tile, or 0: not worth it
};

}  // namespace fastgen
