// Winograd convolution F(2x2,3x3) of bytes. The window is quantised as for a direct convolution;
// each of the 16 points of a transformed tile becomes a byte again, with a scale of its own.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "conv.h"

namespace fastgen {
namespace {

constexpr int kPoints = 16, kLeast = 32;
constexpr int64_t kTilesAcross = 8, kTilesDown = 8;
// How far a point's byte reaches, in standard deviations of the point, where neighbouring pixels
// correlate by kCorrelation. The values behind a ReLU are the upper half of a distribution whose
// spread is kWhole times theirs.
constexpr double kReach = 6.5, kCorrelation = 0.4, kWhole = 1.7;

// Rows of B^T: the input's weights of a point along an axis.
constexpr int kInput[4][4] = {{-1, 0, 1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};

double spread(int point) {
  double variance = 0;
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 4; ++k)
      variance += kInput[point][i] * kInput[point][k] * std::pow(kCorrelation, std::abs(i - k));
  return std::sqrt(variance);
}

void line(const double* g, int stride, double* y, int out) {
  y[0] = -g[0];
  y[out] = (g[0] + g[stride] + g[2 * stride]) / 2;
  y[2 * out] = (g[0] - g[stride] + g[2 * stride]) / 2;
  y[3 * out] = g[2 * stride];
}

}  // namespace

// Only behind a ReLU (every zero is 0): its bytes are twice as fine as those of signed values, and
// what a residual sum is rounded by stays in it to the end. A point that sums four pixels needs a
// centre, so the range alone is not enough.
bool Conv::fits_winograd_int8() const {
  const PhaseSpec& p = spec_.phases[0];
  return int8_ && !spec_.mean.empty() && spec_.phases.size() == 1 && p.kh == 3 && p.kw == 3 &&
         spec_.stride == 1 && spec_.out_stride == 1 && !spec_.small && spec_.inputs >= kLeast &&
         spec_.outputs >= kLeast &&
         std::all_of(spec_.zero.begin(), spec_.zero.end(), [](float z) { return z == 0; });
}

void Conv::winograd_int8_weights() {
  PhaseSpec& p = spec_.phases[0];
  const int64_t fours = ceil_div(spec_.inputs, 4), outputs = padded_outputs();
  Phase phase{p.kh, p.kw, p.dy, p.dx, p.ry, p.rx, 0, {}};
  size_t total = 0;
  for (int nb : groups_) {
    phase.group.push_back(total);
    total += kPoints * fours * nb * kBlock;
  }
  phases_.push_back(std::move(phase));
  weights_.resize(total);
  int8_scales_.resize(phase_scales(kPoints));
  float* scales = int8_scales_.data();
  double factor[kPoints];  // of a point on its way to a byte
  double square = 0;
  for (float x : spec_.spread) square += double{x} * x;
  const double unit = std::max(std::sqrt(square / spec_.inputs), 0.5) * kWhole;
  for (int e = 0; e < kPoints; ++e) {
    const double wanted = 127 / (kReach * unit * spread(e / 4) * spread(e % 4));
    const auto scale =
        static_cast<int16_t>(std::clamp(std::nearbyint(wanted * 32768), 1.0, 32767.0));
    point_scale_[e] = scale;
    factor[e] = scale / 32768.0;
  }
  centre_.assign(padded_inputs(), 0);
  for (int64_t i = 0; i < spec_.inputs; ++i) {
    scales[i] = spec_.quant[i];
    scales[padded_inputs() + i] = spec_.zero[i];
    // What the mean becomes at the point that sums four pixels; at the others it cancels.
    centre_[i] = static_cast<int16_t>(4 * std::nearbyint(spec_.mean[i]));
  }
  std::vector<double> points(kPoints * spec_.inputs);
  std::vector<int8_t> bytes(kPoints * fours * 4 * outputs);  // [point][four][output][4]
  for (int64_t o = 0; o < spec_.outputs; ++o) {
    for (int64_t i = 0; i < spec_.inputs; ++i) {
      double kernel[9], half[12];
      for (int t = 0; t < 9; ++t)
        kernel[t] = p.weights[(o * spec_.inputs + i) * 9 + t] / double{spec_.quant[i]};
      for (int x = 0; x < 3; ++x) line(kernel + x, 3, half + x, 3);
      double full[kPoints];
      for (int e = 0; e < 4; ++e) line(half + 3 * e, 1, full + 4 * e, 1);
      for (int e = 0; e < kPoints; ++e) points[e * spec_.inputs + i] = full[e];
    }
    for (int e = 0; e < kPoints; ++e) {
      const double* from = &points[e * spec_.inputs];
      double largest = 0, sum = 0, offset = 0;
      for (int64_t i = 0; i < spec_.inputs; ++i) largest = std::max(largest, std::abs(from[i]));
      const double scale = largest / 127;
      for (int64_t i = 0; i < spec_.inputs && scale > 0; ++i) {
        const double v = std::clamp(std::nearbyint(from[i] / scale), -127.0, 127.0);
        bytes[((e * fours + i / 4) * outputs + o) * 4 + i % 4] = static_cast<int8_t>(v);
        sum += v;
        offset += v * centre_[i];
      }
      float* to = scales + phase_scales(e) + o;
      to[0] = static_cast<float>(scale / factor[e]);
      // The output transform adds point (1, 1) to each of the four outputs, so it brings the bias.
      to[outputs] = static_cast<float>(-128 * sum * scale / factor[e] +
                                       (e == 5 ? offset * scale + bias_.data()[o] : 0.0));
    }
  }
  int64_t first = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const int lanes = groups_[g] * kBlock;
    float* to = weights_.data() + phases_[0].group[g];
    for (int64_t row = 0; row < kPoints * fours; ++row, to += lanes)
      std::memcpy(to, &bytes[(row * outputs + first) * 4], lanes * 4);
    first += lanes;
  }
  std::vector<float>().swap(p.weights);
}

// A thread's memory: window, transformed inputs, products, rows of outputs. In floats.
Conv::Scratch Conv::winograd_int8_scratch(const StepPlan& p) const {
  const int64_t tiles = ceil_div(p.tile_rows, 2) * ceil_div(p.tile_columns, 2);
  Scratch s{};
  s.panel =
      ceil_div(window(p.tile_rows, 3, 2) * window(p.tile_columns, 3, 2) * padded_inputs(), 64) * 16;
  s.v = kPoints * winograd_int8_element(tiles) / 4;
  s.m = kPoints * (tiles * 2 * kBlock + kBlock);
  s.rows = 2 * ceil_div(p.tile_columns, 2) * 2 * 2 * kBlock;
  return s;
}

// Bytes from point to point: an odd number of cache lines, as in winograd.cpp.
int64_t Conv::winograd_int8_element(int64_t tiles) const {
  return (ceil_div(tiles * padded_inputs(), 64) | 1) * 64;
}

void Conv::winograd_int8_plan(const ConvShape& s, int threads, StepPlan* out) const {
  const int64_t rows = ceil_div(out->domain_rows, 2), columns = ceil_div(out->domain_columns, 2);
  // The columns do not depend on the threads, nor do the parts that statistics are summed in.
  const int64_t across = ceil_div(columns, ceil_div(columns, kTilesAcross));
  out->tile_columns = std::min(across * 2, out->domain_columns);
  out->tiles_x = ceil_div(out->domain_columns, out->tile_columns);
  int64_t down = std::min(rows, kTilesDown);
  while (down > 2 && s.images * out->tiles_x * ceil_div(rows, down) < 4 * threads) --down;
  down = ceil_div(rows, ceil_div(rows, down));
  out->tile_rows = std::min(down * 2, out->domain_rows);
  out->tiles_y = ceil_div(out->domain_rows, out->tile_rows);
  out->part_rows = 2;
  out->panel_floats = winograd_int8_scratch(*out).total() + int8_line(*out);
}

void Conv::winograd_int8_tile(const ConvCall& c, const Tile& t, const PackArgs& pack) const {
  const Scratch s = winograd_int8_scratch(*c.step);
  float* panel = static_cast<float*>(pack.dst);
  uint8_t* v = reinterpret_cast<uint8_t*>(panel + s.panel);
  float* m = panel + s.panel + s.v;
  float* rows = m + s.m;
  const int ty = static_cast<int>(ceil_div(t.rows, 2)),
            tx = static_cast<int>(ceil_div(t.columns, 2));
  const int tiles = ty * tx;
  Winograd2Input in{};
  in.panel = static_cast<const uint8_t*>(pack.dst);
  in.panel_row = pack.dst_row;
  in.channels = static_cast<int>(padded_inputs());
  in.tiles_y = ty;
  in.tiles_x = tx;
  in.scale = point_scale_;
  in.centre = centre_.data();
  in.out = v;
  in.out_element = winograd_int8_element(tiles);
  isa_->winograd2_input(in);

  MicroArgs a{};
  a.blocks = a.kh = a.kw = 1;
  a.last = spec_.inputs;
  a.channels = a.pixel = in.channels;
  FinishArgs f = finish_args(c);
  f.pixels = static_cast<int>(t.columns);
  WinogradOutput o{};
  o.tiles = tx;
  o.out = rows;
  const int64_t fours = ceil_div(spec_.inputs, 4);
  int64_t block = 0;
  for (int64_t g = 0; g < t.last_group; block += groups_[g], ++g) {
    if (g < t.first_group) continue;
    const int nb = groups_[g], lanes = nb * kBlock;
    const int pieces = static_cast<int>(ceil_div(tiles, isa_->pixels[nb]));
    o.in_element = int64_t{tiles} * lanes + kBlock;
    for (int e = 0; e < kPoints; ++e) {
      a.weights = weights_.data() + phases_[0].group[g] + e * fours * lanes;
      a.scale = int8_scales_.data() + phase_scales(e) + block * kBlock;
      a.bias = a.scale + padded_outputs();
      for (int piece = 0; piece < pieces; ++piece) {
        const int first = tiles * piece / pieces, last = tiles * (piece + 1) / pieces;
        a.panel = v + e * in.out_element + int64_t{first} * in.channels;
        a.out = m + e * o.in_element + int64_t{first} * lanes;
        isa_->micro_int8(a, last - first, nb);
      }
    }
    o.nb = f.nb = nb;
    f.channels = group_channels(g, block);
    for (int y = 0; y < ty; ++y) {
      o.in = m + int64_t{y} * tx * lanes;
      isa_->winograd2_output(o);
      f.before = 0;
      if (t.stats)
        f.stats = t.stats + (y * c.step->tiles_x * blocks_of(spec_.outputs) + block) * 3 * kBlock;
      for (int i = 0; i < 2 && y * 2 + i < t.rows; ++i) {
        f.tile = rows + int64_t{i} * tx * 2 * lanes;
        finish_place(c, t, block, t.row + y * 2 + i, t.column, &f);
        isa_->finish(f);
        f.before += f.pixels;
      }
    }
  }
}

}  // namespace fastgen
