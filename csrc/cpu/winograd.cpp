// Winograd convolution F(m x m, r x r), m + r - 1 = 6, for stride 1: 36 small matrix products take
// the place of m*m*r*r multiply-adds for each pair of channels.
#include "conv.h"

namespace fastgen {
namespace {

constexpr int kElements = 36;

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

int Conv::winograd_size() const {
  if (spec_.phases.size() != 1 || spec_.stride != 1 || spec_.out_stride != 1 || spec_.small ||
      spec_.flat || spec_.inputs < 16 || spec_.outputs < 16)
    return 0;
  const PhaseSpec& p = spec_.phases[0];
  if (p.kh != p.kw || (p.kh != 3 && p.kh != 5)) return 0;
  return 7 - p.kh;
}

void Conv::winograd_weights() {
  const PhaseSpec& from = spec_.phases[0];
  const int r = from.kh, taps = r * r;
  Phase phase{r, r, from.dy, from.dx, 0, 0, 0, {}};
  size_t total = 0;
  for (int nb : groups_) {
    phase.group.push_back(total);
    total += size_t{kElements} * spec_.inputs * nb * kBlock;
  }
  weights_.resize(total);
  int64_t first = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const int lanes = groups_[g] * kBlock;
    float* to = weights_.data() + phase.group[g];
    for (int lane = 0; lane < lanes && first + lane < spec_.outputs; ++lane)
      for (int input = 0; input < spec_.inputs; ++input) {
        const float* w = from.weights.data() + ((first + lane) * spec_.inputs + input) * taps;
        double kernel[5 * 5], half[6 * 5], full[kElements];
        std::copy(w, w + taps, kernel);
        for (int x = 0; x < r; ++x) {
          double y[6];
          line(kernel + x, r, r, y);
          for (int i = 0; i < 6; ++i) half[i * r + x] = y[i];
        }
        for (int i = 0; i < 6; ++i) line(half + i * r, 1, r, full + i * 6);
        for (int e = 0; e < kElements; ++e)
          to[(int64_t{e} * spec_.inputs + input) * lanes + lane] = static_cast<float>(full[e]);
      }
    first += lanes;
  }
  phases_.push_back(std::move(phase));
  std::vector<float>().swap(spec_.phases[0].weights);
}

namespace {

// Floats from one of the 36 elements to the next; the odd line keeps them apart in the cache.
int64_t element_stride(int64_t floats) { return ceil_div(floats, kBlock) * kBlock + kBlock; }

struct Scratch {
  int64_t panel, v, m, rows;  // floats

  Scratch(const StepPlan& p, int size, int inputs) {
    const int64_t ty = ceil_div(p.tile_rows, size), tx = ceil_div(p.tile_columns, size);
    panel = (ty * size + 6 - size) * (tx * size + 6 - size) * blocks_of(inputs) * kBlock;
    v = kElements * element_stride(ty * tx * blocks_of(inputs) * kBlock);
    m = kElements * element_stride(ty * tx * 2 * kBlock);
    rows = size * tx * size * 2 * kBlock;
  }
  int64_t total() const { return panel + v + m + rows; }
};

}  // namespace

void Conv::winograd_plan(const ConvShape& s, int threads, StepPlan* out) const {
  const int64_t size = winograd_;
  const int64_t rows = ceil_div(out->domain_rows, size),
                columns = ceil_div(out->domain_columns, size);
  // Transformed inputs and results of a block of tiles stay in the second-level cache while the
  // weights stream by; more tiles mean fewer passes over the weights.
  const int64_t most =
      std::clamp<int64_t>(560 * 1024 / (4 * kElements * kBlock * blocks_of(spec_.inputs)), 8, 32);
  const int64_t strips = ceil_div(columns, 8);
  const int64_t across = ceil_div(columns, strips);
  // The columns do not depend on the threads, nor do the parts that statistics are summed in.
  out->tile_columns = std::min(across * size, out->domain_columns);
  out->tiles_x = ceil_div(out->domain_columns, out->tile_columns);
  double best = 0;
  int64_t down = 1;
  for (int64_t n = std::min(rows, std::max<int64_t>(1, most / across)); n >= 1; --n) {
    const int64_t blocks = s.images * out->tiles_x * ceil_div(rows, n);
    const double busy = static_cast<double>(s.images * out->tiles_x * rows) /
                        static_cast<double>(ceil_div(blocks, threads) * threads * n);
    const double score =
        busy * static_cast<double>(n * across) / static_cast<double>(n * across + 3);
    if (score > best * 1.001) best = score, down = n;
  }
  out->tile_rows = std::min(down * size, out->domain_rows);
  out->tiles_y = ceil_div(out->domain_rows, out->tile_rows);
  out->part_rows = size;
  out->panel_floats = Scratch(*out, winograd_, spec_.inputs).total();
}

void Conv::winograd_tile(const ConvCall& c, const Tile& t, const PackArgs& pack) const {
  const Scratch s(*c.step, winograd_, spec_.inputs);
  float* v = pack.dst + s.panel;
  float* m = v + s.v;
  float* rows = m + s.m;
  const int size = winograd_;
  const int ty = static_cast<int>(ceil_div(t.rows, size));
  const int tx = static_cast<int>(ceil_div(t.columns, size));
  const int tiles = ty * tx;

  WinogradInput in{};
  in.panel = pack.dst;
  in.panel_block = pack.dst_block;
  in.panel_row = pack.dst_row;
  in.blocks = static_cast<int>(blocks_of(spec_.inputs));
  in.tiles_y = ty;
  in.tiles_x = tx;
  in.m = size;
  in.out = v;
  in.out_element = element_stride(int64_t{in.blocks} * tiles * kBlock);
  isa_->winograd_input(in);

  static const float zeros[2 * kBlock] = {};
  MicroArgs a{};
  a.bias = zeros;
  a.panel_block = int64_t{tiles} * kBlock;
  a.blocks = in.blocks;
  a.last = spec_.inputs - (in.blocks - 1) * kBlock;
  a.kh = a.kw = 1;
  a.channels = a.pixel = kBlock;
  FinishArgs f = finish_args(c);
  WinogradOutput o{};
  o.tiles = tx;
  o.m = size;
  o.out = rows;
  int64_t block = 0;
  for (int64_t g = 0; g < t.last_group; block += groups_[g], ++g) {
    if (g < t.first_group) continue;
    const int nb = groups_[g], lanes = nb * kBlock;
    const int pieces = static_cast<int>(ceil_div(tiles, isa_->pixels[nb]));
    o.in_element = element_stride(int64_t{tiles} * lanes);
    for (int e = 0; e < kElements; ++e) {
      a.weights = weights_.data() + phases_[0].group[g] + int64_t{e} * spec_.inputs * lanes;
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
    f.pixels = static_cast<int>(t.columns);
    for (int y = 0; y < ty; ++y) {
      o.in = m + int64_t{y} * tx * lanes;
      isa_->winograd_output(o);
      f.before = 0;
      if (t.stats)
        f.stats = t.stats + (y * c.step->tiles_x * blocks_of(spec_.outputs) + block) * 3 * kBlock;
      for (int i = 0; i < size && y * size + i < t.rows; ++i) {
        f.tile = rows + int64_t{i} * tx * size * lanes;
        finish_place(c, t, block, t.row + y * size + i, t.column, &f);
        isa_->finish(f);
        f.before += f.pixels;
      }
    }
  }
}

}  // namespace fastgen
