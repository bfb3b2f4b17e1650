// Winograd convolution F(m x m, r x r), m + r - 1 = 6, for stride 1: 36 small matrix products take
// the place of m*m*r*r multiply-adds for each pair of channels.
#include "conv.h"

namespace fastgen {
namespace {

constexpr int kElements = 36;
constexpr int64_t kTransformed = 560 * 1024, kMostTiles = 32;
constexpr int kLeast = 16;  // inputs and outputs with which the transforms are worth their time

// G g: row i holds the powers of point i over the product of its distances to the others.
void line(const double* g, int stride, int r, double* y) {
  static const double points[5] = {0, 1, -1, 2, -2}, over[5] = {4, -6, -6, 24, 24};
  for (int i = 0; i < 5; ++i) {
    double sum = 0, power = 1;
    for (int k = 0; k < r; ++k, power *= points[i]) sum += g[k * stride] * power;
    y[i] = sum / over[i];
  }
  y[5] = g[(r - 1) * stride];
}

}  // namespace

// A stride of 2 is a stride of 1 over the four parities of the input, with a kernel of half the
// size for each: four times the inputs.
int Conv::winograd_size() const {
  const int r = static_cast<int>(ceil_div(spec_.phases[0].kh, spec_.stride));
  if (spec_.stride > 2 || r < 2 || r > 5 || spec_.small || spec_.flat || spec_.inputs < kLeast ||
      spec_.outputs < kLeast)
    return 0;
  if (spec_.stride == 2 &&
      (spec_.inputs % kBlock != 0 || spec_.source.store >= 0 || spec_.out_stride != 1))
    return 0;
  // Where a parity has zeros for taps, little is saved.
  if (spec_.stride == 2 && spec_.phases[0].kh % 2 == 1 && spec_.inputs < 32) return 0;
  for (const PhaseSpec& p : spec_.phases)
    if (p.kh != p.kw || ceil_div(p.kh, spec_.stride) != r) return 0;
  return 7 - r;
}

void Conv::winograd_weights() {
  const int r = 7 - winograd_, stride = spec_.stride, inputs = winograd_inputs();
  size_t total = 0;
  for (const PhaseSpec& p : spec_.phases) {
    Phase phase{p.kh, p.kw, p.dy, p.dx, p.ry, p.rx, total, {}};
    for (int nb : groups_) {
      phase.group.push_back(total);
      total += size_t{kElements} * inputs * nb * kBlock;
    }
    phases_.push_back(std::move(phase));
  }
  weights_.resize(total);
  for (size_t i = 0; i < phases_.size(); ++i) {
    const std::vector<float>& from = spec_.phases[i].weights;
    const int k = phases_[i].kh;
    const auto tap = [&](int64_t o, int input, int y, int x) {
      const int parity = input / spec_.inputs;
      y = y * stride + parity / stride;
      x = x * stride + parity % stride;
      const int64_t channel = o * spec_.inputs + input % spec_.inputs;
      return y < k && x < k ? from[(channel * k + y) * k + x] : 0.0f;
    };
    int64_t first = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const int lanes = groups_[g] * kBlock;
      float* to = weights_.data() + phases_[i].group[g];
      for (int lane = 0; lane < lanes && first + lane < spec_.outputs; ++lane)
        for (int input = 0; input < inputs; ++input) {
          double kernel[5 * 5], half[6 * 5], full[kElements];
          for (int t = 0; t < r * r; ++t) kernel[t] = tap(first + lane, input, t / r, t % r);
          for (int x = 0; x < r; ++x) {
            double y[6];
            line(kernel + x, r, r, y);
            for (int e = 0; e < 6; ++e) half[e * r + x] = y[e];
          }
          for (int e = 0; e < 6; ++e) line(half + e * r, 1, r, full + e * 6);
          for (int e = 0; e < kElements; ++e)
            to[(int64_t{e} * inputs + input) * lanes + lane] = static_cast<float>(full[e]);
        }
      first += lanes;
    }
    std::vector<float>().swap(spec_.phases[i].weights);
  }
}

namespace {

// Floats from one of the 36 elements to the next: an odd number of cache lines, so that the
// elements of one tile are in different sets of the cache.
int64_t element_stride(int64_t floats) { return (ceil_div(floats, kBlock) | 1) * kBlock; }

}  // namespace

// A thread's memory: window, transformed inputs, products, rows of outputs. In floats.
Conv::Scratch Conv::winograd_scratch(const StepPlan& p) const {
  const int64_t size = winograd_, blocks = blocks_of(winograd_inputs());
  const int64_t ty = ceil_div(p.tile_rows, size), tx = ceil_div(p.tile_columns, size);
  Scratch s{};
  s.panel = window(p.tile_rows, span_y_) * window(p.tile_columns, span_x_) * blocks * kBlock;
  s.v = kElements * element_stride(ty * tx * blocks * kBlock);
  s.m = kElements * element_stride(ty * tx * 2 * kBlock);
  s.rows = size * tx * size * 2 * kBlock;
  return s;
}

void Conv::winograd_plan(const ConvShape& s, int threads, StepPlan* out) const {
  const int64_t size = winograd_;
  const int64_t rows = ceil_div(out->domain_rows, size);
  const int64_t columns = ceil_div(out->domain_columns, size);
  // Transformed inputs and results of a block of tiles stay in the second-level cache while the
  // weights stream by; more tiles mean fewer passes over the weights.
  const int64_t tile_bytes = int64_t{4} * kElements * kBlock * ceil_div(winograd_inputs(), kBlock);
  const int64_t most = std::clamp<int64_t>(kTransformed / tile_bytes, 8, kMostTiles);
  const int64_t across = ceil_div(columns, ceil_div(columns, 8));
  // The columns do not depend on the threads, nor do the parts that statistics are summed in.
  out->tile_columns = std::min(across * size, out->domain_columns);
  out->tiles_x = ceil_div(out->domain_columns, out->tile_columns);
  const int64_t strips = s.images * out->tiles_x;
  double best = 0;
  int64_t down = 1;
  for (int64_t n = std::min(rows, std::max<int64_t>(1, most / across)); n >= 1; --n) {
    const int64_t items = strips * ceil_div(rows, n);
    const double tiles = static_cast<double>(n * across);
    const double busy = static_cast<double>(strips * rows) /
                        static_cast<double>(ceil_div(items, threads) * threads * n);
    const double score = busy * tiles / (tiles + 3);
    if (score > best) best = score, down = n;
  }
  out->tile_rows = std::min(down * size, out->domain_rows);
  out->tiles_y = ceil_div(out->domain_rows, out->tile_rows);
  out->part_rows = size;
  out->panel_floats = winograd_scratch(*out).total();
}

void Conv::winograd_tile(const ConvCall& c, const Tile& t, const PackArgs& pack) const {
  const Scratch s = winograd_scratch(*c.step);
  float* v = pack.dst + s.panel;
  float* m = v + s.v;
  float* rows = m + s.m;
  const int size = winograd_, inputs = winograd_inputs();
  const int ty = static_cast<int>(ceil_div(t.rows, size));
  const int tx = static_cast<int>(ceil_div(t.columns, size));
  const int tiles = ty * tx;

  WinogradInput in{};
  in.panel_block = pack.dst_block;
  in.panel_row = pack.dst_row;
  in.blocks = static_cast<int>(blocks_of(inputs));
  in.tiles_y = ty;
  in.tiles_x = tx;
  in.m = size;
  in.out = v;
  in.out_element = element_stride(int64_t{in.blocks} * tiles * kBlock);

  static const float zeros[2 * kBlock] = {};
  MicroArgs a{};
  a.bias = zeros;
  a.panel_block = int64_t{tiles} * kBlock;
  a.blocks = in.blocks;
  a.last = inputs - (in.blocks - 1) * kBlock;
  a.kh = a.kw = 1;
  a.channels = a.pixel = kBlock;
  FinishArgs f = finish_args(c);
  WinogradOutput o{};
  o.tiles = tx;
  o.m = size;
  o.out = rows;
  std::vector<int64_t> done(ty, 0);  // pixels of each part
  for (const Phase& phase : phases_) {
    const int64_t height = phase_count(t.row, t.rows, phase.ry, c.shape->out.h);
    const int64_t width = phase_count(t.column, t.columns, phase.rx, c.shape->out.w);
    if (height <= 0 || width <= 0) continue;
    in.panel = pack.dst + (phase.dy - low_y_) * pack.dst_row + (phase.dx - low_x_) * kBlock;
    isa_->winograd_input(in);
    int64_t block = 0;
    for (int64_t g = 0; g < t.last_group; block += groups_[g], ++g) {
      if (g < t.first_group) continue;
      const int nb = groups_[g], lanes = nb * kBlock;
      const int pieces = static_cast<int>(ceil_div(tiles, isa_->pixels[nb]));
      o.in_element = element_stride(int64_t{tiles} * lanes);
      for (int e = 0; e < kElements; ++e) {
        a.weights = weights_.data() + phase.group[g] + int64_t{e} * inputs * lanes;
        for (int piece = 0; piece < pieces; ++piece) {
          const int first = tiles * piece / pieces, last = tiles * (piece + 1) / pieces;
          a.panel = v + e * in.out_element + first * kBlock;
          a.out = m + e * o.in_element + first * lanes;
          isa_->micro(a, last - first, nb);
        }
      }
      o.nb = f.nb = nb;
      o.bias = bias_.data() + block * kBlock;
      f.channels = group_channels(g, block);
      f.pixels = static_cast<int>(width);
      for (int y = 0; y < ty; ++y) {
        o.in = m + int64_t{y} * tx * lanes;
        isa_->winograd_output(o);
        f.before = done[y];
        if (t.stats)
          f.stats = t.stats + (y * c.step->tiles_x * blocks_of(spec_.outputs) + block) * 3 * kBlock;
        for (int i = 0; i < size && y * size + i < height; ++i) {
          f.tile = rows + int64_t{i} * tx * size * lanes;
          finish_place(c, t, block, (t.row + y * size + i) * spec_.out_stride + phase.ry,
                       t.column * spec_.out_stride + phase.rx, &f);
          isa_->finish(f);
          f.before += f.pixels;
        }
      }
    }
    for (int y = 0; y < ty; ++y) done[y] += width * std::clamp<int64_t>(height - y * size, 0, size);
  }
}

}  // namespace fastgen
