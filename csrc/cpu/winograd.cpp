// Winograd convolution F(m_y x m_x, r x r) for stride 1: (m_y + r - 1) * (m_x + r - 1) small matrix
// products take the place of m_y * m_x * r * r multiply-adds for each pair of channels.
#include "conv.h"

namespace fastgen {
namespace {

constexpr int kColumns = 6;  // points in each row of a transformed tile

// G g: row i holds the powers of point i over the product of its distances to the others; the
// last point is infinity. The points are those of winograd.inl.
void line(const double* g, int stride, int r, int n, double* y) {
  static const double four[3] = {0, 1, -1}, six[5] = {0, 2.0 / 3, -2.0 / 3, 1.5, -1.5};
  const double* points = n == 4 ? four : six;
  for (int i = 0; i < n - 1; ++i) {
    double sum = 0, power = 1, over = 1;
    for (int k = 0; k < r; ++k, power *= points[i]) sum += g[k * stride] * power;
    for (int k = 0; k < n - 1; ++k)
      if (k != i) over *= points[i] - points[k];
    y[i] = sum / over;
  }
  y[n - 1] = g[(r - 1) * stride];
}

}  // namespace

void Conv::winograd_size() {
  if (spec_.phases.size() != 1 || spec_.stride != 1 || spec_.out_stride != 1 || spec_.small ||
      spec_.flat || spec_.inputs < 16 || spec_.outputs < 16)
    return;
  const PhaseSpec& p = spec_.phases[0];
  if (p.kh != p.kw || (p.kh != 3 && p.kh != 5)) return;
  // Of 5x5 kernels bfloat16 would keep 40 dB, and float32 with Winograd is faster than without.
  if (p.kh == 5) bf16_ = false;
  winograd_x_ = 7 - p.kh;
  winograd_y_ = bf16_ && spec_.fine ? 2 : winograd_x_;
}

void Conv::winograd_weights() {
  const PhaseSpec& from = spec_.phases[0];
  const int r = from.kh, taps = r * r, n_y = winograd_y_ + r - 1, elements = n_y * kColumns;
  const int step = bf16_ ? 2 : 1;  // inputs in 32 bits
  const int64_t words = ceil_div(spec_.inputs, step);
  Phase phase{r, r, from.dy, from.dx, 0, 0, 0, {}};
  size_t total = 0;
  for (int nb : groups_) {
    phase.group.push_back(total);
    total += size_t(elements) * words * nb * kBlock;
  }
  weights_.resize(total);
  const auto transform = [&](const float* w, double* full) {
    double kernel[5 * 5], half[6 * 5];
    std::copy(w, w + taps, kernel);
    for (int x = 0; x < r; ++x) {
      double y[6];
      line(kernel + x, r, r, n_y, y);
      for (int i = 0; i < n_y; ++i) half[i * r + x] = y[i];
    }
    for (int i = 0; i < n_y; ++i) line(half + i * r, 1, r, kColumns, full + i * kColumns);
  };
  int64_t first = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const int lanes = groups_[g] * kBlock;
    float* to = weights_.data() + phase.group[g];
    for (int lane = 0; lane < lanes && first + lane < spec_.outputs; ++lane)
      for (int64_t word = 0; word < words; ++word) {
        const int64_t input = word * step;
        const float* w = from.weights.data() + ((first + lane) * spec_.inputs + input) * taps;
        double full[6 * kColumns], next[6 * kColumns] = {};
        transform(w, full);
        if (bf16_ && input + 1 < spec_.inputs) transform(w + taps, next);
        for (int e = 0; e < elements; ++e) {
          const float value = static_cast<float>(full[e]);
          to[(e * words + word) * lanes + lane] =
              bf16_ ? bf16_pair(value, static_cast<float>(next[e])) : value;
        }
      }
    first += lanes;
  }
  phases_.push_back(std::move(phase));
  std::vector<float>().swap(spec_.phases[0].weights);
}

namespace {

// From one element of the transformed tiles to the next; the odd line keeps them apart in the cache.
int64_t element_stride(int64_t values) { return ceil_div(values, kBlock) * kBlock + 2 * kBlock; }

struct Scratch {
  int64_t panel, v, m, rows;  // floats

  Scratch(const StepPlan& p, int m_y, int m_x, int n_y, int inputs, bool bf16) {
    const int64_t ty = ceil_div(p.tile_rows, m_y), tx = ceil_div(p.tile_columns, m_x);
    panel = (ty * m_y + n_y - m_y) * (tx * m_x + kColumns - m_x) * blocks_of(inputs) * kBlock;
    v = n_y * kColumns * element_stride(ty * tx * blocks_of(inputs) * kBlock) / (bf16 ? 2 : 1);
    m = n_y * kColumns * element_stride(ty * tx * 2 * kBlock);
    rows = m_y * tx * m_x * 2 * kBlock;
  }
  int64_t total() const { return panel + v + m + rows; }
};

}  // namespace

void Conv::winograd_plan(const ConvShape& s, int threads, StepPlan* out) const {
  const int n_y = winograd_y_ + span_y_ - 1;
  const int64_t rows = ceil_div(out->domain_rows, winograd_y_),
                columns = ceil_div(out->domain_columns, winograd_x_);
  // Transformed inputs and results of a block of tiles stay in the second-level cache while the
  // weights stream by; more tiles mean fewer passes over the weights.
  const int64_t tile_bytes = factor_bytes() * n_y * kColumns * kBlock * blocks_of(spec_.inputs);
  const int64_t most =
      std::clamp<int64_t>(560 * 1024 / tile_bytes, 8, 32 * 6 / n_y * (bf16_ ? 2 : 1));
  const int64_t strips = ceil_div(columns, 8);
  const int64_t across = ceil_div(columns, strips);
  // The columns do not depend on the threads, nor do the parts that statistics are summed in.
  out->tile_columns = std::min(across * winograd_x_, out->domain_columns);
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
  out->tile_rows = std::min(down * winograd_y_, out->domain_rows);
  out->tiles_y = ceil_div(out->domain_rows, out->tile_rows);
  out->part_rows = winograd_y_;
  out->panel_floats =
      Scratch(*out, winograd_y_, winograd_x_, n_y, spec_.inputs, bf16_).total();
}

void Conv::winograd_tile(const ConvCall& c, const Tile& t, const PackArgs& pack) const {
  const int n_y = winograd_y_ + span_y_ - 1, elements = n_y * kColumns;
  const Scratch s(*c.step, winograd_y_, winograd_x_, n_y, spec_.inputs, bf16_);
  const float* panel = static_cast<float*>(pack.dst);
  float* v = static_cast<float*>(pack.dst) + s.panel;
  float* m = v + s.v;
  float* rows = m + s.m;
  const int ty = static_cast<int>(ceil_div(t.rows, winograd_y_));
  const int tx = static_cast<int>(ceil_div(t.columns, winograd_x_));
  const int tiles = ty * tx;

  WinogradInput in{};
  in.panel = panel;
  in.panel_block = pack.dst_block;
  in.panel_row = pack.dst_row;
  in.blocks = static_cast<int>(blocks_of(spec_.inputs));
  in.tiles_y = ty;
  in.tiles_x = tx;
  in.m_y = winograd_y_;
  in.m_x = winograd_x_;
  in.n_y = n_y;
  in.bf16 = bf16_;
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
  o.m_y = winograd_y_;
  o.m_x = winograd_x_;
  o.out = rows;
  const auto micro = bf16_ ? isa_->micro_bf16 : isa_->micro;
  const int64_t words = bf16_ ? ceil_div(spec_.inputs, 2) : spec_.inputs;
  int64_t block = 0;
  for (int64_t g = 0; g < t.last_group; block += groups_[g], ++g) {
    if (g < t.first_group) continue;
    const int nb = groups_[g], lanes = nb * kBlock;
    const int pieces = static_cast<int>(ceil_div(tiles, isa_->pixels[nb]));
    o.in_element = element_stride(int64_t{tiles} * lanes);
    for (int e = 0; e < elements; ++e) {
      a.weights = weights_.data() + phases_[0].group[g] + e * words * lanes;
      for (int piece = 0; piece < pieces; ++piece) {
        const int first = tiles * piece / pieces, last = tiles * (piece + 1) / pieces;
        a.panel =
            reinterpret_cast<char*>(v) + (e * in.out_element + first * kBlock) * factor_bytes();
        a.out = m + e * o.in_element + first * lanes;
        micro(a, last - first, nb);
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
      for (int i = 0; i < winograd_y_ && y * winograd_y_ + i < t.rows; ++i) {
        f.tile = rows + int64_t{i} * tx * winograd_x_ * lanes;
        finish_place(c, t, block, t.row + y * winograd_y_ + i, t.column, &f);
        isa_->finish(f);
        f.before += f.pixels;
      }
    }
  }
}

}  // namespace fastgen
