// Convolutions: tile by tile, packed input window, register-tiled kernels, fused epilogue.
#include <algorithm>
#include <cstring>

#include "engine.h"

namespace fastgen {
namespace {

constexpr int64_t kMaxWeights = int64_t{1} << 32;

struct Phase {
  int kh, kw, dy, dx, ry, rx;
  size_t weights;             // offset of the phase
  std::vector<size_t> group;  // offset of each output group
};

class Conv final : public Step {
 public:
  Conv(ConvSpec spec, const Kernels& isa) : Step(spec.label), spec_(std::move(spec)) {
    check();
    pack_weights(isa);
  }

  void plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels& isa, int threads,
            StepPlan* out) const override;
  void run(const Context& context) const override;

 private:
  struct Tile {
    int64_t image, part, row, rows, column, columns, first_group, last_group;
  };

  void check();
  void pack_weights(const Kernels& isa);
  void tile(const Context& c, int64_t item, int thread) const;
  void blocked_phase(const Context& c, const Phase& phase, const Tile& t, const PackArgs& pack,
                     float* stats, int64_t* done) const;
  void small_phase(const Context& c, const Phase& phase, const Tile& t, const PackArgs& pack) const;
  int format() const { return spec_.small ? kPanelPlanar : spec_.inputs <= 4 ? kPanel4 : kPanel16; }
  int64_t phase_count(int64_t first, int64_t count, int64_t r, int64_t size) const {
    // domain positions m in [first, first+count) with m*out_stride + r < size
    const int64_t end = size > r ? ceil_div(size - r, spec_.out_stride) : 0;
    return std::clamp<int64_t>(end - first, 0, count);
  }

  ConvSpec spec_;
  std::vector<Phase> phases_;
  std::vector<int> groups_;  // channel blocks of each output group
  Weights weights_, bias_;
  int low_y_ = 0, low_x_ = 0, span_y_ = 1, span_x_ = 1;
};

void Conv::check() {
  const std::string& l = label;
  require(spec_.inputs >= 1 && spec_.outputs >= 1, l + ": channel count is out of range");
  require(
      spec_.stride >= 1 && spec_.stride <= 64 && spec_.out_stride >= 1 && spec_.out_stride <= 64,
      l + ": stride is out of range");
  require(!spec_.small || (spec_.outputs <= 4 && spec_.stride == 1 && spec_.out_stride == 1 &&
                           spec_.norm.slot < 0 && !spec_.flat && spec_.phases.size() == 1),
          l + ": cannot run on the kernel for few outputs");
  require(spec_.pad_mode >= 0 && spec_.pad_mode <= 2 && spec_.act >= 0 && spec_.act <= 4,
          l + ": unknown mode");
  require(!spec_.phases.empty() && spec_.phases.size() <= 4096, l + ": has no taps");
  require(spec_.bias.empty() || spec_.bias.size() == static_cast<size_t>(spec_.outputs),
          l + ": bias has the wrong size");
  int high_y = 0, high_x = 0;
  bool any = false;
  for (const PhaseSpec& p : spec_.phases) {
    require(p.kh >= 0 && p.kh <= 255 && p.kw >= 0 && p.kw <= 255 && std::abs(p.dy) <= 4096 &&
                std::abs(p.dx) <= 4096 && p.ry >= 0 && p.rx >= 0 && p.ry < spec_.out_stride &&
                p.rx < spec_.out_stride,
            l + ": kernel is out of range");
    const int64_t count = int64_t{spec_.outputs} * spec_.inputs;
    require(count <= kMaxWeights && count * p.kh * p.kw <= kMaxWeights &&
                static_cast<int64_t>(p.weights.size()) == count * p.kh * p.kw,
            l + ": weight has the wrong size");
    if (p.kh == 0 || p.kw == 0) continue;
    low_y_ = any ? std::min(low_y_, p.dy) : p.dy;
    low_x_ = any ? std::min(low_x_, p.dx) : p.dx;
    high_y = any ? std::max(high_y, p.dy + p.kh) : p.dy + p.kh;
    high_x = any ? std::max(high_x, p.dx + p.kw) : p.dx + p.kw;
    any = true;
  }
  if (any) span_y_ = high_y - low_y_, span_x_ = high_x - low_x_;
}

void Conv::pack_weights(const Kernels& isa) {
  const int64_t out_blocks = blocks_of(spec_.outputs);
  if (spec_.small) {
    groups_ = {1};
  } else {
    for (int64_t b = 0; b < out_blocks; b += groups_.back())
      groups_.push_back(static_cast<int>(std::min<int64_t>(isa.nb, out_blocks - b)));
  }
  bias_.resize(out_blocks * kBlock);
  std::copy(spec_.bias.begin(), spec_.bias.end(), bias_.data());

  size_t total = 0;
  for (const PhaseSpec& p : spec_.phases) {
    Phase phase{p.kh, p.kw, p.dy, p.dx, p.ry, p.rx, total, {}};
    for (int nb : groups_) {
      phase.group.push_back(total);
      const size_t lanes = spec_.small ? spec_.outputs : nb * kBlock;
      total += ceil_div(size_t(p.kh) * p.kw * spec_.inputs * lanes, kBlock) * kBlock;
    }
    phases_.push_back(std::move(phase));
  }
  weights_.resize(total);
  for (size_t i = 0; i < phases_.size(); ++i) {
    const Phase& phase = phases_[i];
    const std::vector<float>& from = spec_.phases[i].weights;
    const int taps = phase.kh * phase.kw;
    const auto weight = [&](int64_t o, int64_t input, int tap) {
      return o < spec_.outputs ? from[(o * spec_.inputs + input) * taps + tap] : 0.0f;
    };
    int64_t first = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      float* to = weights_.data() + phase.group[g];
      const int lanes = spec_.small ? spec_.outputs : groups_[g] * kBlock;
      // Panels of one channel per plane want [input][tap]; blocked ones [block][tap][input].
      const int unit = spec_.small ? 1 : kBlock;
      for (int64_t i0 = 0; i0 < spec_.inputs; i0 += unit)
        for (int tap = 0; tap < taps; ++tap)
          for (int64_t input = i0; input < std::min<int64_t>(i0 + unit, spec_.inputs); ++input)
            for (int lane = 0; lane < lanes; ++lane) *to++ = weight(first + lane, input, tap);
      first += lanes;
    }
    std::vector<float>().swap(spec_.phases[i].weights);
  }
}

void Conv::plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels& isa, int threads,
                StepPlan* out) const {
  check_source(plan, slots, spec_.source, label);
  const ValueShape& in = plan.values[spec_.source.value].shape;
  const ValueShape& result = plan.values[spec_.out].shape;
  require(in.c == spec_.inputs && result.c == spec_.outputs && in.n == result.n,
          label + ": value has the wrong number of channels or images");
  require(result.planar == spec_.small, label + ": output has the wrong layout");
  check_norm(slots, spec_.norm, result.c, label);
  require(spec_.norm.slot < 0 || plan.slot_images[spec_.norm.slot] == result.n,
          label + ": statistics do not fit the value");
  const int64_t images = spec_.flat ? 1 : result.n;
  int64_t height = result.h, width = result.w;
  if (spec_.flat) {
    require(in.h == 1 && in.w == 1 && height == 1 && width == 1 && !in.planar &&
                spec_.source.slot < 0 && spec_.source.combine == 0 && spec_.source.store < 0 &&
                spec_.source.views.empty() && spec_.norm.slot < 0 && spec_.out_stride == 1 &&
                spec_.stride == 1 && span_y_ == 1 && span_x_ == 1 && low_y_ == 0 && low_x_ == 0,
            label + ": linear layer on an image");
    width = result.n;
  }
  out->domain_rows = ceil_div(height, spec_.out_stride);
  out->domain_columns = ceil_div(width, spec_.out_stride);
  int most = isa.pixels[groups_.front()];
  if (spec_.small) most = isa.small_pixels;
  geometry(spec_.inputs, format(), span_y_, span_x_, spec_.stride, images, most, threads, out);
  if (spec_.source.store >= 0)
    require(spec_.out_stride == 1 && format() == kPanel16 && span_y_ >= spec_.stride &&
                span_x_ >= spec_.stride,
            label + ": cannot store its source");

  const int64_t rows = (out->domain_rows - 1) * spec_.stride + span_y_;
  const int64_t columns = (out->domain_columns - 1) * spec_.stride + span_x_;
  out->first_y = low_y_;
  out->first_x = low_x_;
  if (spec_.flat) {
    out->maps.src_y.assign(1, 0);
    out->maps.src_x.resize(width);
    for (int64_t i = 0; i < width; ++i) out->maps.src_x[i] = static_cast<int32_t>(i);
  } else {
    fill_maps(plan, spec_.source, low_y_, rows, low_x_, columns, spec_.pad_mode, &out->maps);
  }
  if (spec_.source.store >= 0)
    require(low_y_ <= 0 && low_x_ <= 0 && low_y_ + rows >= out->maps.height &&
                low_x_ + columns >= out->maps.width,
            label + ": does not read all of the source that it stores");

  const int64_t tile_rows = (out->tile_rows - 1) * spec_.stride + span_y_;
  const int64_t tile_columns = (out->tile_columns - 1) * spec_.stride + span_x_;
  const int64_t per_pixel = format() == kPanel16  ? blocks_of(spec_.inputs) * kBlock
                            : format() == kPanel4 ? 4
                                                  : spec_.inputs;
  // The kernel for few outputs reads whole vectors: one block of slack per row.
  out->panel_floats =
      tile_rows * (ceil_div(tile_columns, kBlock) + 1) * kBlock * per_pixel + 256 + 32 * kBlock;
  const int64_t tiles = images * out->tiles_y * out->tiles_x;
  const int64_t groups = static_cast<int64_t>(groups_.size());
  out->chunks = std::clamp<int64_t>(ceil_div(2 * threads, tiles), 1, groups);
  if (tiles >= 2 * threads) out->chunks = 1;
  if (spec_.norm.slot >= 0) out->stats_floats = tiles * blocks_of(spec_.outputs) * 3 * kBlock;
  for (const Phase& p : phases_)
    out->flops += 2.0 * images * spec_.outputs * spec_.inputs * p.kh * p.kw *
                  phase_count(0, out->domain_rows, p.ry, height) *
                  phase_count(0, out->domain_columns, p.rx, width);
}

void Conv::blocked_phase(const Context& c, const Phase& phase, const Tile& t, const PackArgs& pack,
                         float* stats, int64_t* done) const {
  const Value& out = c.value(spec_.out);
  const int64_t height = spec_.flat ? 1 : out.shape.h,
                width = spec_.flat ? out.shape.n : out.shape.w;
  const int64_t rows = phase_count(t.row, t.rows, phase.ry, height);
  const int64_t columns = phase_count(t.column, t.columns, phase.rx, width);
  if (rows <= 0 || columns <= 0) return;
  const int64_t out_pixel = spec_.flat ? out.image : out.pixel;
  alignas(64) float buffer[2 * kBlock * 28];
  static_assert(sizeof(buffer) >= 14 * 2 * kBlock * sizeof(float), "register tile");

  MicroArgs m{};
  m.panel_block = pack.dst_block;
  m.panel_row = pack.dst_row;
  const int channels = format() == kPanel4 ? 4 : kBlock;
  m.blocks = static_cast<int>(ceil_div(spec_.inputs, channels));
  m.last = spec_.inputs - (m.blocks - 1) * channels;
  m.kh = phase.kh;
  m.kw = phase.kw;
  m.channels = channels;
  m.pixel = channels * spec_.stride;
  m.out = buffer;
  const float* panel =
      pack.dst + (phase.dy - low_y_) * pack.dst_row + (phase.dx - low_x_) * channels;

  FinishArgs f{};
  f.tile = buffer;
  f.act = spec_.act;
  f.slope = spec_.slope;
  f.out_block = out.block;
  f.out_pixel = out_pixel * spec_.out_stride;
  const int64_t out_blocks = blocks_of(spec_.outputs);
  float* image = c.data(spec_.out) + (spec_.flat ? 0 : t.image * out.image);

  int64_t block = 0;
  for (int64_t g = 0; g < t.last_group; block += groups_[g], ++g) {
    if (g < t.first_group) continue;
    const int nb = groups_[g];
    const int most = c.isa->pixels[nb];
    const int64_t pieces = ceil_div(columns, most);
    m.weights = weights_.data() + phase.group[g];
    m.bias = bias_.data() + block * kBlock;
    f.nb = nb;
    f.valid = static_cast<int>(std::min<int64_t>(nb, out_blocks - block));
    f.stats = stats ? stats + block * 3 * kBlock : nullptr;
    f.before = *done;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t y = (t.row + r) * spec_.out_stride + phase.ry;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t x0 = columns * piece / pieces, x1 = columns * (piece + 1) / pieces;
        m.panel = panel + r * spec_.stride * pack.dst_row + x0 * m.pixel;
        f.pixels = static_cast<int>(x1 - x0);
        c.isa->micro(m, f.pixels, nb);
        f.out = image + block * out.block + y * out.row +
                ((t.column + x0) * spec_.out_stride + phase.rx) * out_pixel;
        c.isa->finish(f);
        f.before += f.pixels;
      }
    }
  }
  *done += rows * columns;
}

void Conv::small_phase(const Context& c, const Phase& phase, const Tile& t,
                       const PackArgs& pack) const {
  const Value& out = c.value(spec_.out);
  SmallArgs s{};
  s.weights = weights_.data() + phase.group[0];
  s.bias = bias_.data();
  s.panel_channel = pack.dst_block;
  s.panel_row = pack.dst_row;
  s.inputs = spec_.inputs;
  s.outputs = spec_.outputs;
  s.kh = phase.kh;
  s.kw = phase.kw;
  s.pixels = static_cast<int>(t.columns);
  s.out_channel = out.block;
  s.act = spec_.act;
  s.slope = spec_.slope;
  for (int64_t r = 0; r < t.rows; ++r) {
    s.panel = pack.dst + r * pack.dst_row;
    s.out = c.data(spec_.out) + t.image * out.image + (t.row + r) * out.row + t.column;
    c.isa->small(s);
  }
}

void Conv::tile(const Context& c, int64_t item, int thread) const {
  const StepPlan& p = *c.step;
  const int64_t chunk = item % p.chunks, part = item / p.chunks;
  const int64_t per_image = p.tiles_y * p.tiles_x;
  Tile t{};
  t.image = part / per_image;
  t.part = part % per_image;
  t.row = t.part / p.tiles_x * p.tile_rows;
  t.column = t.part % p.tiles_x * p.tile_columns;
  t.rows = std::min(p.tile_rows, p.domain_rows - t.row);
  t.columns = std::min(p.tile_columns, p.domain_columns - t.column);
  const int64_t groups = static_cast<int64_t>(groups_.size());
  t.first_group = groups * chunk / p.chunks;
  t.last_group = groups * (chunk + 1) / p.chunks;

  PackArgs a = source_args(c, spec_.source, spec_.flat ? 0 : t.image);
  if (spec_.flat) {  // the image stride becomes the pixel stride
    a.src.pixel = c.value(spec_.source.value).image;
    a.src.row = 0;
  }
  const int64_t y0 = t.row * spec_.stride, x0 = t.column * spec_.stride;
  a.rows = static_cast<int>((t.rows - 1) * spec_.stride + span_y_);
  a.cols = static_cast<int>((t.columns - 1) * spec_.stride + span_x_);
  a.src_y = p.maps.src_y.data() + y0;
  a.src_x = p.maps.src_x.data() + x0;
  if (a.combine) {
    a.res_y = p.maps.res_y.data() + y0;
    a.res_x = p.maps.res_x.data() + x0;
  }
  a.format = format();
  a.dst = c.panel(thread);
  if (a.format == kPanelPlanar) {
    a.dst_row = (ceil_div(a.cols, kBlock) + 1) * kBlock;
  } else {
    a.dst_row = int64_t{a.cols} * (a.format == kPanel4 ? 4 : kBlock);
  }
  a.dst_block = a.rows * a.dst_row;
  if (spec_.source.store >= 0 && chunk == 0) {
    const Value& copy = c.value(spec_.source.store);
    a.store = c.data(spec_.source.store) + t.image * copy.image;
    a.store_block = copy.block;
    a.store_row = copy.row;
    // Each tile owns its window up to the start of the next one; the last owns the rest.
    const auto own = [&](int64_t first, int64_t low, int64_t count, int64_t size, bool last,
                         int* begin, int* end) {
      const int64_t start = first + low;  // input coordinate of the window
      *begin = static_cast<int>(std::max<int64_t>(-start, 0));
      *end = static_cast<int>(std::min(size - start, last ? size - start : count * spec_.stride));
    };
    own(y0, low_y_, t.rows, p.maps.height, t.row + t.rows == p.domain_rows, &a.store_y0,
        &a.store_y1);
    own(x0, low_x_, t.columns, p.maps.width, t.column + t.columns == p.domain_columns, &a.store_x0,
        &a.store_x1);
    a.store_y1 = std::min(a.store_y1, a.rows);
    a.store_x1 = std::min(a.store_x1, a.cols);
  }
  c.isa->pack(a);
  if (spec_.small) return small_phase(c, phases_[0], t, a);
  float* stats = nullptr;
  const int64_t out_blocks = blocks_of(spec_.outputs);
  if (spec_.norm.slot >= 0) stats = c.stats + part * out_blocks * 3 * kBlock;
  int64_t done = 0;
  for (const Phase& phase : phases_) blocked_phase(c, phase, t, a, stats, &done);
}

void Conv::run(const Context& c) const {
  const StepPlan& p = *c.step;
  const int64_t images = spec_.flat ? 1 : c.value(spec_.out).shape.n;
  const int64_t per_image = p.tiles_y * p.tiles_x;
  c.pool->run(images * per_image * p.chunks,
              [&](int64_t item, int thread) { tile(c, item, thread); });
  if (spec_.norm.slot < 0) return;
  const Value& out = c.value(spec_.out);
  std::vector<int64_t> counts(per_image, 0);
  for (int64_t part = 0; part < per_image; ++part)
    for (const Phase& phase : phases_)
      counts[part] +=
          phase_count(part / p.tiles_x * p.tile_rows, p.tile_rows, phase.ry, out.shape.h) *
          phase_count(part % p.tiles_x * p.tile_columns, p.tile_columns, phase.rx, out.shape.w);
  const int64_t blocks = blocks_of(spec_.outputs);
  c.pool->run(images * blocks, [&](int64_t item, int) {
    const int64_t image = item / blocks, block = item % blocks;
    write_norm(c, spec_.norm, image, block,
               c.stats + (image * per_image * blocks + block) * 3 * kBlock, blocks * 3 * kBlock,
               counts.data(), per_image);
  });
}

}  // namespace

std::unique_ptr<Step> make_conv(ConvSpec spec, const Kernels& isa) {
  return std::make_unique<Conv>(std::move(spec), isa);
}

}  // namespace fastgen
