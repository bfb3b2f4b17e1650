// Winograd convolution F(4, 3) along the rows only, for few inputs or few outputs: 6 products take
// the place of 12 for each group of three rows of the kernel. Nothing changes along a row, so the
// vectors of the direct kernels (output channels, or neighbouring pixels) stay what they are. The
// groups of a larger kernel add up before the output transform: a 9x9 kernel takes half its
// multiply-adds.
#include "conv.h"

namespace fastgen {
namespace {

constexpr int kTaps = 3, kRows = 4, kPoints = kRows + kTaps - 1;
constexpr int64_t kColumns = 128, kMostRows = 64, kLeastRows = 16;

// G g of winograd.cpp's points 0, 2/3, -2/3, 3/2, -3/2, infinity.
void points(const double (&g)[kTaps], double (&y)[kPoints]) {
  static const double at[kPoints - 1] = {0, 2.0 / 3, -2.0 / 3, 1.5, -1.5};
  for (int i = 0; i < kPoints - 1; ++i) {
    double over = 1;
    for (int k = 0; k < kPoints - 1; ++k)
      if (k != i) over *= at[i] - at[k];
    y[i] = (g[0] + at[i] * (g[1] + at[i] * g[2])) / over;
  }
  y[kPoints - 1] = g[kTaps - 1];
}

int64_t align16(int64_t floats) { return ceil_div(floats, 16) * 16; }

}  // namespace

void Conv::rows_size() {
  const PhaseSpec& p = spec_.phases[0];
  const bool few = spec_.small || spec_.inputs <= 4;
  if (!few || winograd_ || spec_.stride != 1 || spec_.out_stride != 1 || spec_.phases.size() != 1 ||
      p.kh < kTaps || p.kw < 1 || (bf16_ && spec_.fine))
    return;
  // Loading and transforming every input costs what a small kernel for few outputs would gain.
  if (spec_.small && !bf16_ && p.kh < 7) return;
  rows_ = static_cast<int>(ceil_div(p.kh, kTaps));
}

// Every point is a convolution with `rows_` rows of taps.
void Conv::rows_weights() {
  const PhaseSpec whole = std::move(spec_.phases[0]);
  const int64_t channels = int64_t{spec_.outputs} * spec_.inputs;
  spec_.phases.clear();
  for (int e = 0; e < kPoints; ++e) {
    PhaseSpec point{rows_, whole.kw, 0, 0, 0, 0, {}};
    point.weights.resize(channels * rows_ * whole.kw);
    spec_.phases.push_back(std::move(point));
  }
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int group = 0; group < rows_; ++group)
      for (int x = 0; x < whole.kw; ++x) {
        double taps[kTaps] = {}, y[kPoints];
        for (int t = 0; t < kTaps && group * kTaps + t < whole.kh; ++t)
          taps[t] = whole.weights[(channel * whole.kh + group * kTaps + t) * whole.kw + x];
        points(taps, y);
        for (int e = 0; e < kPoints; ++e)
          spec_.phases[e].weights[(channel * rows_ + group) * whole.kw + x] =
              static_cast<float>(y[e]);
      }
  bf16_ ? pack_pairs() : pack_weights();
  points_.swap(phases_);
  phases_.assign(1, {whole.kh, whole.kw, whole.dy, whole.dx, whole.ry, whole.rx, 0, {}});
  spec_.phases.assign(1, {whole.kh, whole.kw, whole.dy, whole.dx, whole.ry, whole.rx, {}});
}

int64_t Conv::rows_window(int64_t count) const {
  return ceil_div(count, kRows) * kRows + rows_ * kTaps - 1;
}

double Conv::rows_products(const ConvShape& s) const {
  return static_cast<double>(kPoints * rows_ * phases_[0].kw) * spec_.inputs * spec_.outputs *
         s.images * ceil_div(s.out.h, kRows) * s.out.w;
}

// A thread's memory: the window's rows, as a ring of slots of four; their transforms; products;
// rows of outputs. In floats.
Conv::RowsScratch Conv::rows_scratch(const StepPlan& p) const {
  RowsScratch s{};
  const int64_t columns = p.tile_columns + span_x_ - 1;
  s.slots = (kRows + rows_ * kTaps - 2) / kRows + 1;
  if (spec_.small) {
    s.row = (ceil_div(columns, kBlock) + 1) * kBlock;
    s.ring = spec_.inputs * s.slots * kRows * s.row;
    s.v = kPoints * (bf16_ ? ceil_div(spec_.inputs, 2) : spec_.inputs) * rows_ * s.row;
    s.line = align16(p.tile_columns);
    s.m = kPoints * spec_.outputs * s.line;
    s.y = kRows * spec_.outputs * s.line;
    return s;
  }
  s.row = align16(columns * spec_.inputs) + kBlock;
  s.ring = s.slots * kRows * s.row;
  s.v = kPoints * rows_ * s.row;
  s.batch = 2 * isa_->pixels[groups_.front()];
  s.line = s.batch * isa_->nb * kBlock;
  s.m = kPoints * s.line;
  s.y = kRows * s.line;
  return s;
}

void Conv::rows_plan(const ConvShape& s, int threads, StepPlan* out) const {
  const int64_t width = out->domain_columns, height = out->domain_rows;
  const int64_t unit = spec_.small ? kBlock : isa_->pixels[groups_.front()];
  const int64_t columns = ceil_div(width, ceil_div(width, kColumns));
  out->tile_columns = std::min(width, ceil_div(columns, unit) * unit);
  out->tiles_x = ceil_div(width, out->tile_columns);
  // As in geometry(): the same parts of statistics for up to 8 threads.
  const int64_t wanted = std::max<int64_t>(32, 4 * threads);
  int64_t rows = kMostRows;
  while (rows > kLeastRows && s.images * out->tiles_x * ceil_div(height, rows) < wanted)
    rows -= kRows;
  rows = ceil_div(ceil_div(height, ceil_div(height, rows)), kRows) * kRows;
  out->tile_rows = std::min(rows, height);
  out->tiles_y = ceil_div(height, out->tile_rows);
  out->part_rows = out->tile_rows;
  out->panel_floats = rows_scratch(*out).total() + 256;
}

void Conv::rows_tile(const ConvCall& c, const Tile& t, PackArgs pack) const {
  const RowsScratch s = rows_scratch(*c.step);
  float* ring = static_cast<float*>(pack.dst);
  float* v = ring + s.ring;
  const int32_t *src_y = pack.src_y, *res_y = pack.res_y;
  const int64_t total = rows_window(t.rows), slot = kRows * s.row;
  pack.dst_row = s.row;
  pack.dst_block = s.slots * slot;
  int64_t loaded = 0;
  const auto at = [&](int64_t row) {
    return ring + row / kRows % s.slots * slot + row % kRows * s.row;
  };
  int64_t done = 0;
  for (int64_t first = 0; first < t.rows; first += kRows) {
    for (; loaded < std::min(first + rows_ * kTaps + kRows - 1, total); loaded += kRows) {
      pack.rows = static_cast<int>(std::min<int64_t>(kRows, total - loaded));
      pack.src_y = src_y + loaded;
      if (pack.combine) pack.res_y = res_y + loaded;
      pack.dst = at(loaded);
      isa_->pack(pack);
    }
    const int step = spec_.small && bf16_ ? 2 : 1;  // channels in 32 bits
    const int64_t planes = spec_.small ? ceil_div(spec_.inputs, step) : 1;
    LinesInput in{};
    in.format = !bf16_ ? kLinesFloat : spec_.small ? kLinesPairs : kLinesBF16;
    in.count = static_cast<int>(s.row);
    in.out_row = planes * rows_ * s.row;
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int group = 0; group < rows_; ++group) {
        for (int i = 0; i < kPoints; ++i) {
          in.in[i] = at(first + group * kTaps + i) + plane * step * pack.dst_block;
          in.other[i] = plane * step + 1 < spec_.inputs ? in.in[i] + pack.dst_block : nullptr;
        }
        const int64_t offset = (plane * rows_ + group) * s.row;
        in.out = reinterpret_cast<char*>(v) + offset * (in.format == kLinesBF16 ? 2 : 4);
        isa_->lines_input(in);
      }
    const int64_t rows = std::min<int64_t>(kRows, t.rows - first);
    spec_.small ? rows_small(c, t, s, v, first, rows) : rows_few(c, t, s, v, first, rows, done);
    done += rows * t.columns;
  }
}

// Lanes are output channels.
void Conv::rows_few(const ConvCall& c, const Tile& t, const RowsScratch& s, float* v, int64_t first,
                    int64_t rows, int64_t done) const {
  static const float zeros[2 * kBlock] = {};
  float *m = v + s.v, *y = m + s.m;
  MicroArgs a{};
  a.bias = zeros;
  a.panel_row = s.row;
  a.blocks = 1;
  a.last = a.channels = phases_[0].kw * spec_.inputs;
  a.kh = rows_;
  a.kw = 1;
  a.pixel = spec_.inputs;
  const auto micro = bf16_ ? isa_->micro_bf16 : isa_->micro;
  LinesOutput o{};
  o.in = m;
  o.in_row = o.out_row = s.line;
  o.out = y;
  FinishArgs f = finish_args(c);
  int64_t block = 0;
  for (int64_t g = 0; g < t.last_group; block += groups_[g], ++g) {
    if (g < t.first_group) continue;
    const int nb = groups_[g], lanes = nb * kBlock, most = isa_->pixels[nb];
    f.nb = nb;
    f.channels = group_channels(g, block);
    f.stats = t.stats ? t.stats + block * 3 * kBlock : nullptr;
    f.before = done;
    o.bias = bias_.data() + block * kBlock;
    o.period = lanes;
    const int64_t batches = ceil_div(t.columns, s.batch);
    for (int64_t batch = 0; batch < batches; ++batch) {
      const int64_t x0 = t.columns * batch / batches, x1 = t.columns * (batch + 1) / batches;
      const int64_t pieces = ceil_div(x1 - x0, most);
      for (int e = 0; e < kPoints; ++e) {
        a.weights = weights_.data() + points_[e].group[g];
        for (int64_t piece = 0; piece < pieces; ++piece) {
          const int64_t from = (x1 - x0) * piece / pieces, to = (x1 - x0) * (piece + 1) / pieces;
          a.panel = reinterpret_cast<char*>(v) +
                    (e * rows_ * s.row + (x0 + from) * a.pixel) * factor_bytes();
          a.out = m + e * s.line + from * lanes;
          micro(a, static_cast<int>(to - from), nb);
        }
      }
      o.count = static_cast<int>((x1 - x0) * lanes);
      isa_->lines_output(o);
      f.pixels = static_cast<int>(x1 - x0);
      for (int64_t i = 0; i < rows; ++i) {
        f.tile = y + i * s.line;
        finish_place(c, t, block, t.row + first + i, t.column + x0, &f);
        isa_->finish(f);
        f.before += f.pixels;
      }
    }
  }
}

// Lanes are the pixels of a row.
void Conv::rows_small(const ConvCall& c, const Tile& t, const RowsScratch& s, float* v,
                      int64_t first, int64_t rows) const {
  static const float zeros[4] = {};
  float *m = v + s.v, *y = m + s.m;
  SmallArgs a{};
  a.bias = zeros;
  a.panel_row = s.row;
  a.panel_channel = rows_ * s.row;
  a.inputs = static_cast<int>(bf16_ ? ceil_div(spec_.inputs, 2) : spec_.inputs);
  a.outputs = spec_.outputs;
  a.kh = rows_;
  a.kw = phases_[0].kw;
  a.pixels = static_cast<int>(t.columns);
  a.out_channel = s.line;
  const auto small = bf16_ ? isa_->small_bf16 : isa_->small;
  for (int e = 0; e < kPoints; ++e) {
    a.weights = weights_.data() + points_[e].group[0];
    a.panel = v + e * a.inputs * a.panel_channel;
    a.out = m + e * spec_.outputs * s.line;
    small(a);
  }
  LinesOutput o{};
  o.in_row = o.out_row = spec_.outputs * s.line;
  o.count = static_cast<int>(s.line);
  for (int channel = 0; channel < spec_.outputs; ++channel) {
    o.in = m + channel * s.line;
    o.out = y + channel * s.line;
    o.bias = bias_.data() + channel;
    isa_->lines_output(o);
  }
  RowsArgs w = rows_args(c, s.line, t.columns);
  FinishArgs place{};
  for (int64_t i = 0; i < rows; ++i) {
    finish_place(c, t, 0, t.row + first + i, t.column, &place);
    w.rows = y + i * o.out_row;
    w.out = place.out;
    w.residual = place.residual;
    isa_->rows(w);
  }
}

}  // namespace fastgen
