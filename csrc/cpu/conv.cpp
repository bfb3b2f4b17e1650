// Convolutions: tile by tile, packed input window, register-tiled kernels, fused epilogue.
#include "conv.h"

#include <algorithm>
#include <cstring>

#include "op_pool.h"

namespace fastgen {
namespace {

constexpr int64_t kMaxWeights = int64_t{1} << 32;
constexpr int64_t kSlack = 256 + 32 * kBlock;  // floats that whole vectors may reach too far

// Even positions first, then the odd ones.
void split_parities(std::vector<int32_t>* map) {
  std::vector<int32_t> odd;
  for (size_t i = 1; i < map->size(); i += 2) odd.push_back((*map)[i]);
  for (size_t i = 0; i < odd.size(); ++i) (*map)[i] = (*map)[2 * i];
  std::copy(odd.begin(), odd.end(), map->begin() + odd.size());
}
int64_t align16(int64_t floats) { return ceil_div(floats, 16) * 16; }

}  // namespace

Conv::Conv(ConvSpec spec, const Kernels& isa) : spec_(std::move(spec)), isa_(&isa) {
  check();
  // A single factor for each output would be paired with that of the next pixel.
  const bool single = std::any_of(spec_.phases.begin(), spec_.phases.end(),
                                  [&](const PhaseSpec& p) { return p.kw * spec_.inputs == 1; });
  bf16_ = spec_.products == kBFloat16 && !single;
  int8_ = spec_.products == kInt8 && fits_int8();
  split_upsampling();
  winograd_size();
  if (!int8_) rows_size();
  if (spec_.small && !rows_) bf16_ = false;
  span();
  const int64_t out_blocks = blocks_of(spec_.outputs);
  if (spec_.small) {
    groups_ = {1};
  } else {
    for (int64_t b = 0; b < out_blocks; b += groups_.back())
      groups_.push_back(static_cast<int>(std::min<int64_t>(isa.nb, out_blocks - b)));
  }
  bias_.resize(out_blocks * kBlock);
  std::copy(spec_.bias.begin(), spec_.bias.end(), bias_.data());
  if (int8_) {
    winograd_ ? winograd_int8_weights() : pack_quads();
  } else {
    winograd_ ? winograd_weights() : rows_ ? rows_weights() : bf16_ ? pack_pairs() : pack_weights();
  }
}

void Conv::check() {
  const std::string& l = spec_.label;
  require(spec_.inputs >= 1 && spec_.outputs >= 1, l + ": channel count is out of range");
  require(
      spec_.stride >= 1 && spec_.stride <= 64 && spec_.out_stride >= 1 && spec_.out_stride <= 64,
      l + ": stride is out of range");
  require(!spec_.small || (spec_.outputs <= 4 && spec_.stride == 1 && spec_.out_stride == 1 &&
                           spec_.norm.slot < 0 && spec_.phases.size() == 1),
          l + ": cannot run on the kernel for few outputs");
  require(spec_.pad_mode >= 0 && spec_.pad_mode <= 2 && spec_.act >= 0 && spec_.act <= 4,
          l + ": unknown mode");
  require(!spec_.phases.empty() && spec_.phases.size() <= 4096, l + ": has no taps");
  require(spec_.bias.empty() || spec_.bias.size() == static_cast<size_t>(spec_.outputs),
          l + ": bias has the wrong size");
  check_int8();
  for (const PhaseSpec& p : spec_.phases) {
    require(p.kh >= 0 && p.kh <= 255 && p.kw >= 0 && p.kw <= 255 && std::abs(p.dy) <= 4096 &&
                std::abs(p.dx) <= 4096 && p.ry >= 0 && p.rx >= 0 && p.ry < spec_.out_stride &&
                p.rx < spec_.out_stride,
            l + ": kernel is out of range");
    const int64_t count = int64_t{spec_.outputs} * spec_.inputs;
    require(count <= kMaxWeights && count * p.kh * p.kw <= kMaxWeights &&
                static_cast<int64_t>(p.weights.size()) == count * p.kh * p.kw,
            l + ": weight has the wrong size");
  }
}

void Conv::span() {
  int high_y = 0, high_x = 0;
  bool any = false;
  for (const PhaseSpec& p : spec_.phases) {
    if (p.kh == 0 || p.kw == 0) continue;
    low_y_ = any ? std::min(low_y_, p.dy) : p.dy;
    low_x_ = any ? std::min(low_x_, p.dx) : p.dx;
    high_y = any ? std::max(high_y, p.dy + p.kh) : p.dy + p.kh;
    high_x = any ? std::max(high_x, p.dx + p.kw) : p.dx + p.kw;
    any = true;
  }
  if (any) span_y_ = high_y - low_y_, span_x_ = high_x - low_x_;
}

void Conv::pack_weights() {
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

int64_t Conv::phase_count(int64_t first, int64_t count, int64_t r, int64_t size) const {
  // domain positions m in [first, first+count) with m*out_stride + r < size
  const int64_t end = size > r ? ceil_div(size - r, spec_.out_stride) : 0;
  return std::clamp<int64_t>(end - first, 0, count);
}

void Conv::plan(const ConvShape& s, int threads, StepPlan* out) const {
  const std::string& label = spec_.label;
  out->domain_rows = ceil_div(s.out.h, spec_.out_stride);
  out->domain_columns = ceil_div(s.out.w, spec_.out_stride);
  if (winograd_) {
    int8_ ? winograd_int8_plan(s, threads, out) : winograd_plan(s, threads, out);
  } else {
    rows_ ? rows_plan(s, threads, out) : direct_plan(s, threads, out);
  }
  const int64_t parities = winograd_ ? spec_.stride : 1;
  const int64_t rows = rows_ ? rows_window(out->domain_rows)
                             : window(out->domain_rows, span_y_, winograd_rows_) * parities;
  const int64_t columns = window(out->domain_columns, span_x_, winograd_) * parities;
  out->first_y = low_y_;
  out->first_x = low_x_;
  fill_maps(s.in, s.residual, spec_.source, low_y_, rows, low_x_, columns, spec_.pad_mode,
            &out->maps);
  if (parities == 2)
    for (auto* map : {&out->maps.src_y, &out->maps.src_x, &out->maps.res_y, &out->maps.res_x})
      split_parities(map);
  if (spec_.source.store >= 0)
    require(spec_.out_stride == 1 && format() == kPanel16 && span_y_ >= spec_.stride &&
                span_x_ >= spec_.stride && low_y_ <= 0 && low_x_ <= 0 &&
                low_y_ + rows >= out->maps.height && low_x_ + columns >= out->maps.width,
            label + ": does not read all of the source that it stores");
  if (spec_.source.store >= 0) out->maps.store_y = out->maps.src_y;
  // Ranges of a whole image are not known band by band.
  out->units = int8_ && spec_.quant.empty() ? 1 : out->tiles_y;
  batch_plan(s, threads, out);
  const int64_t tiles = ceil_div(s.images, out->batch) * out->tiles_y * out->tiles_x;
  const int64_t groups = static_cast<int64_t>(groups_.size());
  out->chunks = std::clamp<int64_t>(ceil_div(2 * threads, tiles), 1, groups);
  if (tiles >= 2 * threads) out->chunks = 1;
  if (spec_.norm.slot >= 0)
    out->stats_floats = s.images * ceil_div(out->domain_rows, out->part_rows) * out->tiles_x *
                        blocks_of(spec_.outputs) * 3 * kBlock;
  for (const Phase& p : phases_)
    out->flops += 2.0 * s.images * spec_.outputs * spec_.inputs * p.kh * p.kw *
                  phase_count(0, out->domain_rows, p.ry, s.out.h) *
                  phase_count(0, out->domain_columns, p.rx, s.out.w);
  out->products = out->flops / 2;
  if (winograd_)
    out->products = 6.0 * winograd_points() * winograd_taps() * phases_.size() * winograd_inputs() *
                    spec_.outputs * s.images * ceil_div(out->domain_rows, winograd_rows_) *
                    ceil_div(out->domain_columns, winograd_);
  if (rows_) out->products = rows_products(s);
}

void Conv::direct_plan(const ConvShape& s, int threads, StepPlan* out) const {
  const int most = spec_.small ? isa_->small_pixels : isa_->pixels[groups_.front()];
  // One thread needs no split; statistics are summed by tiles, the same ones for all.
  const bool alone = threads == 1 && spec_.norm.slot < 0;
  const int64_t items = alone || shares_tiles(s, *out) ? 1024 : s.images;
  // Where ranges are measured, the panel holds floats first.
  const int64_t bytes = int8_ && spec_.quant.empty() ? 4 : factor_bytes();
  const int inputs =
      int8_ && spec_.small ? static_cast<int>(ceil_div(spec_.inputs, 4) * 4) : spec_.inputs;
  geometry(inputs, format(), span_y_, span_x_, spec_.stride, items, most, threads, bytes, out);
  out->part_rows = out->tile_rows;
  const int64_t tile_rows = (out->tile_rows - 1) * spec_.stride + span_y_;
  const int64_t tile_columns = (out->tile_columns - 1) * spec_.stride + span_x_;
  const int64_t per_pixel = format() == kPanel16 ? blocks_of(inputs) * kBlock : inputs;
  // The kernel for few outputs reads whole vectors: one block of slack per row.
  const int64_t elements = tile_rows * (ceil_div(tile_columns, kBlock) + 1) * kBlock * per_pixel;
  out->panel_floats = align16(ceil_div(elements * bytes, 4) + kSlack);
  if (spec_.small)  // its rows, before they are written in another order
    out->panel_floats += align16(4 * (out->tile_columns + 256));
  out->panel_floats += int8_line(*out);
}

FinishArgs Conv::finish_args(const ConvCall& c) const {
  FinishArgs f{};
  f.exact = c.exact || c.out.dense;
  f.dtype = c.out.dtype;
  f.planar = c.out.planar;
  f.act = spec_.act;
  f.slope = spec_.slope;
  f.out_block = c.out.block;
  f.out_pixel = c.out.pixel * spec_.out_stride;
  f.res_block = c.residual.block;
  f.res_pixel = c.residual.pixel * spec_.out_stride;
  return f;
}

void Conv::blocked_phase(const ConvCall& c, const Phase& phase, const Tile& t, const PackArgs& pack,
                         int64_t* done) const {
  const ConvShape& shape = *c.shape;
  const int64_t rows = phase_count(t.row, t.rows, phase.ry, shape.out.h);
  const int64_t columns = phase_count(t.column, t.columns, phase.rx, shape.out.w);
  if (rows <= 0 || columns <= 0) return;
  alignas(64) float buffer[2 * kBlock * 28];
  static_assert(sizeof(buffer) >= 14 * 2 * kBlock * sizeof(float), "register tile");

  MicroArgs m{};
  m.panel_block = pack.dst_block;
  m.panel_row = pack.dst_row;
  const int channels = panel_pixel();
  m.blocks = static_cast<int>(ceil_div(spec_.inputs, channels));
  m.last = spec_.inputs - (m.blocks - 1) * channels;
  m.kh = phase.kh;
  m.kw = phase.kw;
  m.channels = channels;
  m.pixel = static_cast<int>(in_place(c) ? c.in.pixel : channels) * spec_.stride;
  if (format() == kPanel4) {  // the taps of a row lie side by side
    m.last = m.channels = phase.kw * channels;
    m.kw = std::min(phase.kw, 1);
  }
  m.out = buffer;
  const int64_t window = (phase.dy - low_y_) * pack.dst_row + (phase.dx - low_x_) * channels;
  const auto micro = int8_ ? isa_->micro_int8 : bf16_ ? isa_->micro_bf16 : isa_->micro;
  const float* scales =
      int8_ ? c.int8 + t.image * c.int8_image + phase_scales(&phase - phases_.data()) : nullptr;
  const int64_t image_stats = blocks_of(spec_.outputs) * 3 * kBlock;

  FinishArgs f = finish_args(c);
  f.tile = buffer;
  int64_t block = 0;
  for (int64_t g = 0; g < t.last_group; block += groups_[g], ++g) {
    if (g < t.first_group) continue;
    const int nb = groups_[g];
    const int most = isa_->pixels[nb];
    const int64_t pieces = ceil_div(columns, most);
    m.weights = weights_.data() + phase.group[g];
    m.bias = bias_.data() + block * kBlock;
    m.ahead = in_place(c) && g == t.first_group;  // no pass over the input came before
    if (int8_) m.scale = scales + block * kBlock, m.bias = m.scale + padded_outputs();
    f.nb = nb;
    f.channels = group_channels(g, block);
    for (int64_t k = 0; k < t.images; ++k) {
      Tile one = t;
      one.image += k;
      const char* panel = static_cast<const char*>(t.panels[k]);
      f.stats = t.stats ? t.stats + k * image_stats + block * 3 * kBlock : nullptr;
      f.before = *done;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t y = (t.row + r) * spec_.out_stride + phase.ry;
        for (int64_t piece = 0; piece < pieces; ++piece) {
          const int64_t x0 = columns * piece / pieces, x1 = columns * (piece + 1) / pieces;
          m.panel =
              panel + (window + r * spec_.stride * pack.dst_row + x0 * m.pixel) * factor_bytes();
          f.pixels = static_cast<int>(x1 - x0);
          micro(m, f.pixels, nb);
          finish_at(c, one, block, y, (t.column + x0) * spec_.out_stride + phase.rx, &f);
          f.before += f.pixels;
        }
      }
    }
  }
  *done += rows * columns;
}

void Conv::small_phase(const ConvCall& c, const Tile& t, const PackArgs& pack,
                       float* buffer) const {
  const bool direct = c.out.dtype == kFloat32 && c.out.pixel == 1 && !c.residual.data;
  const int64_t stride = align16(t.columns);
  SmallArgs s{};
  s.weights = weights_.data() + phases_[0].group[0];
  s.bias = bias_.data();
  s.panel_channel = pack.dst_block;
  s.panel_row = pack.dst_row;
  s.inputs = spec_.inputs;
  s.outputs = spec_.outputs;
  s.kh = phases_[0].kh;
  s.kw = phases_[0].kw;
  s.pixels = static_cast<int>(t.columns);
  s.out_channel = direct ? c.out.block : stride;
  s.act = direct ? spec_.act : kActNone;
  s.slope = spec_.slope;
  RowsArgs w = rows_args(c, stride, s.pixels);
  w.rows = buffer;
  FinishArgs place{};
  for (int64_t r = 0; r < t.rows; ++r) {
    finish_place(c, t, 0, t.row + r, t.column, &place);
    s.panel = static_cast<float*>(pack.dst) + (int8_ ? 0 : r * pack.dst_row);
    s.out = direct ? static_cast<float*>(place.out) : buffer;
    int8_ ? small_int8(s, pack, r, c.int8 + t.image * c.int8_image) : isa_->small(s);
    if (direct) continue;
    w.out = place.out;
    w.residual = place.residual;
    isa_->rows(w);
  }
}

RowsArgs Conv::rows_args(const ConvCall& c, int64_t stride, int64_t pixels) const {
  RowsArgs w{};
  w.stride = stride;
  w.channels = spec_.outputs;
  w.pixels = static_cast<int>(pixels);
  w.dtype = c.out.dtype;
  w.out_channel = c.out.block;
  w.out_pixel = c.out.pixel;
  w.res_channel = c.residual.block;
  w.res_pixel = c.residual.pixel;
  w.act = spec_.act;
  w.slope = spec_.slope;
  return w;
}

PackArgs Conv::pack_args(const ConvCall& c, const Tile& t, float* panel, bool copying) const {
  const StepPlan& p = *c.step;
  const Source& source = spec_.source;
  PackArgs a{};
  a.src = c.in.view(t.image);
  a.dtype = c.in.dtype;
  a.exact = c.exact;
  if (c.scale) {
    a.scale = c.scale + t.image * c.slot_image;
    a.shift = c.shift + t.image * c.slot_image;
  }
  a.pre = source.pre;
  a.pre_slope = source.pre_slope;
  a.combine = c.load_residual.data ? source.combine : kCombineNone;
  a.post = source.post;
  a.post_slope = source.post_slope;
  a.channels = spec_.inputs;
  const int64_t step = winograd_ ? 1 : spec_.stride, y0 = t.row * step, x0 = t.column * step;
  a.rows = static_cast<int>(window(t.rows, span_y_, winograd_rows_));
  a.cols = static_cast<int>(window(t.columns, span_x_, winograd_));
  a.src_y = p.maps.src_y.data() + y0;
  a.src_x = p.maps.src_x.data() + x0;
  if (a.combine) {
    a.res = c.load_residual.view(t.image);
    a.res_y = p.maps.res_y.data() + y0;
    a.res_x = p.maps.res_x.data() + x0;
  }
  a.format = format();
  a.bf16 = bf16_ && !winograd_ && !rows_;
  a.dst = panel;
  a.dst_row = int64_t{a.cols} * panel_pixel();
  if (a.format == kPanelPlanar) a.dst_row = (ceil_div(a.cols, kBlock) + 1) * kBlock;
  a.dst_block = a.rows * a.dst_row;
  if (int8_) int8_pack_args(c, t.image, &a);
  if (in_place(c)) {
    a.dst = const_cast<char*>(static_cast<const char*>(a.src.data) +
                              (y0 * a.src.row + x0 * a.src.pixel) * factor_bytes());
    a.dst_row = a.src.row;
    a.dst_block = a.src.block;
  }
  if (!copying) return a;
  a.store = static_cast<char*>(c.copy.data) + t.image * c.copy.image * c.copy.bytes();
  a.store_bf16 = c.copy.dtype == kBFloat16;
  a.store_y = p.maps.store_y.data() + y0;
  a.store_block = c.copy.block;
  a.store_row = c.copy.row;
  // Each tile owns its window up to the start of the next one; the last owns the rest.
  const auto own = [&](int64_t first, int64_t low, int64_t count, int64_t size, bool last,
                       int window, int* begin, int* end) {
    const int64_t start = first + low;  // input coordinate of the window
    *begin = static_cast<int>(std::max<int64_t>(-start, 0));
    *end = static_cast<int>(std::min(size - start, last ? size - start : count * spec_.stride));
    *end = std::min(*end, window);
  };
  own(y0, low_y_, t.rows, p.maps.height, t.row + t.rows == p.domain_rows, a.rows, &a.store_y0,
      &a.store_y1);
  own(x0, low_x_, t.columns, p.maps.width, t.column + t.columns == p.domain_columns, a.cols,
      &a.store_x0, &a.store_x1);
  return a;
}

void Conv::tile(const ConvCall& c, int64_t item, int thread) const {
  const StepPlan& p = *c.step;
  const int64_t chunk = item % p.chunks, part = item / p.chunks;
  const int64_t per_image = (c.last_unit - c.first_unit) * p.tiles_x, within = part % per_image;
  const int64_t across = within % p.tiles_x;
  Tile t{};
  t.image = part / per_image * p.batch;
  t.images = std::min(p.batch, c.shape->images - t.image);
  t.row = (c.first_unit + within / p.tiles_x) * p.tile_rows;
  t.column = across * p.tile_columns;
  t.rows = std::min(p.tile_rows, p.domain_rows - t.row);
  t.columns = std::min(p.tile_columns, p.domain_columns - t.column);
  const int64_t groups = static_cast<int64_t>(groups_.size());
  t.first_group = groups * chunk / p.chunks;
  t.last_group = groups * (chunk + 1) / p.chunks;
  if (spec_.norm.slot >= 0 && c.statistics) {
    const int64_t parts_y = ceil_div(p.domain_rows, p.part_rows);
    const int64_t first = (t.image * parts_y + t.row / p.part_rows) * p.tiles_x + across;
    t.stats = c.stats + first * blocks_of(spec_.outputs) * 3 * kBlock;
  }
  float* panel = c.panels + thread * c.panel_stride;
  const PackArgs a = pack_args(c, t, panel, c.copy.data && chunk == 0);
  if (rows_) return rows_tile(c, t, a);
  if (!in_place(c) && !winograd_direct(c)) int8_ ? isa_->pack_int8(a) : isa_->pack(a);
  if (winograd_ && int8_) return winograd_int8_tile(c, t, a);
  const void* panels[kMostBatch] = {a.dst};
  t.panels = panels;
  for (int64_t k = 1; k < t.images; ++k) {
    Tile other = t;
    other.image += k;
    const bool copying = c.copy.data && chunk == 0;
    const PackArgs next = pack_args(c, other, panel + k * p.image_floats, copying);
    if (!in_place(c)) isa_->pack(next);
    panels[k] = next.dst;
  }
  if (winograd_) {
    for (int parity = 1; parity < spec_.stride * spec_.stride; ++parity) pack_parity(p, a, parity);
    return winograd_tile(c, t, a);
  }
  if (spec_.small)
    return small_phase(c, t, a,
                       panel + p.panel_floats - int8_line(p) - align16(4 * (p.tile_columns + 256)));
  int64_t done = 0;
  for (const Phase& phase : phases_) blocked_phase(c, phase, t, a, &done);
}

void Conv::pack_parity(const StepPlan& p, PackArgs a, int parity) const {
  const int64_t down = parity / 2 * (p.maps.src_y.size() / 2);
  const int64_t across = parity % 2 * (p.maps.src_x.size() / 2);
  a.src_y += down;
  a.src_x += across;
  if (a.combine) a.res_y += down, a.res_x += across;
  a.dst = static_cast<float*>(a.dst) + parity * blocks_of(spec_.inputs) * a.dst_block;
  isa_->pack(a);
}

void Conv::run(const ConvCall& call) const {
  ConvCall c = call;
  const StepPlan& p = *c.step;
  if (c.last_unit < 0 || p.units == 1) c.first_unit = 0, c.last_unit = p.tiles_y;
  std::vector<float> scales;
  if (int8_) {
    if (spec_.quant.empty()) scales = frame_scales(c);
    c.int8 = scales.empty() ? int8_scales_.data() : scales.data();
    c.int8_image = scales.empty() ? 0 : phase_scales(phases_.size());
  }
  const int64_t images = c.shape->images, parts_x = p.tiles_x;
  const auto parallel = [&](int64_t items, const Pool::Job& job) {
    c.pool ? c.pool->run(items, job) : op_parallel(items, job);
  };
  parallel(ceil_div(images, p.batch) * (c.last_unit - c.first_unit) * p.tiles_x * p.chunks,
           [&](int64_t item, int thread) { tile(c, item, thread); });
  if (spec_.norm.slot < 0 || !c.statistics || c.last_unit < p.tiles_y) return;
  const int64_t parts = ceil_div(p.domain_rows, p.part_rows) * parts_x;
  std::vector<int64_t> counts(parts, 0);
  for (int64_t part = 0; part < parts; ++part)
    for (const Phase& phase : phases_)
      counts[part] +=
          phase_count(part / parts_x * p.part_rows, p.part_rows, phase.ry, c.shape->out.h) *
          phase_count(part % parts_x * p.tile_columns, p.tile_columns, phase.rx, c.shape->out.w);
  const int64_t blocks = blocks_of(spec_.outputs);
  parallel(images * blocks, [&](int64_t item, int) {
    const int64_t image = item / blocks, first = item % blocks * kBlock;
    const int64_t channels = c.exact ? std::min<int64_t>(kBlock, spec_.outputs - first) : kBlock;
    write_norm(spec_.norm, first, channels,
               c.stats + (image * parts * blocks + item % blocks) * 3 * kBlock, blocks * 3 * kBlock,
               counts.data(), parts,
               NormTarget{c.out_scale, c.out_shift, c.out_mean, c.out_variance}.at(
                   image * c.out_slot_image + first));
  });
}

}  // namespace fastgen
