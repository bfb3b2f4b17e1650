// Winograd convolution F(m_y x m_x, r x r) for stride 1: (m_y + r - 1) * (m_x + r - 1) small matrix
// products take the place of m_y * m_x * r * r multiply-adds for each pair of channels. Of a large
// kernel with products of bfloat16 only the rows are transformed: (m_x + r - 1) * r in place of
// m_x * r * r.
#include "conv.h"

namespace fastgen {
namespace {

constexpr int kColumns = 6;  // points in each row of a transformed tile
constexpr int64_t kTransformed = 560 * 1024, kMostTiles = 32;
constexpr int64_t kMostDown = kMostTiles * 36 / 24 * 2;  // tiles in a column, at most
// Inputs, and half as many outputs, with which the transforms are worth their time.
constexpr int kLeast = 16;

// Row i of G has the powers of point i over the product of its distances to the others; the last
// point is infinity. The points are those of winograd.inl.
struct Transform {
  double g[6][5] = {};

  Transform(int r, int n) {
    static const double four[3] = {0, 1, -1}, six[5] = {0, 2.0 / 3, -2.0 / 3, 1.5, -1.5};
    const double* points = n == 4 ? four : six;
    for (int i = 0; i < n - 1; ++i) {
      double power = 1, over = 1;
      for (int k = 0; k < n - 1; ++k)
        if (k != i) over *= points[i] - points[k];
      for (int k = 0; k < r; ++k, power *= points[i]) g[i][k] = power / over;
    }
    g[n - 1][r - 1] = 1;
  }
};

// G taps G^T of 16 kernels side by side.
typedef double Lanes[kBlock];

// With one point down: taps G^T, row by row.
void transform_kernels(const Transform& down, const Transform& across, int r, int n_y,
                       const Lanes* taps, Lanes* full) {
  const auto line = [r](const double* g, const Lanes* x, int stride, double* y) {
    Lanes sum = {};
    for (int k = 0; k < r; ++k)
      for (int l = 0; l < kBlock; ++l) sum[l] += g[k] * x[k * stride][l];
    std::copy_n(sum, kBlock, y);
  };
  if (n_y == 1) {
    for (int i = 0; i < r * kColumns; ++i)
      line(across.g[i % kColumns], taps + i / kColumns * r, 1, full[i]);
    return;
  }
  Lanes half[6 * 5];
  for (int e = 0; e < n_y; ++e) {
    for (int x = 0; x < r; ++x) line(down.g[e], taps + x, r, half[e * r + x]);
    for (int i = 0; i < kColumns; ++i) line(across.g[i], half + e * r, 1, full[e * kColumns + i]);
  }
}

}  // namespace

// A stride of 2 is a stride of 1 over the four parities of the input, with a kernel of half the
// size for each: four times the inputs.
void Conv::winograd_size() {
  if (fits_winograd_int8()) winograd_ = winograd_rows_ = 2;
  if (int8_) return;
  const int r = static_cast<int>(ceil_div(spec_.phases[0].kh, spec_.stride));
  if (spec_.direct || spec_.stride > 2 || r < 2 || r > 5 || spec_.small || spec_.inputs < kLeast ||
      spec_.outputs < kLeast / 2)
    return;
  if (spec_.stride == 2 &&
      (spec_.inputs % kBlock != 0 || spec_.source.store >= 0 || spec_.out_stride != 1))
    return;
  // Where a parity has zeros for taps, little is saved; of products of bfloat16 nothing.
  if (spec_.stride == 2 && spec_.phases[0].kh % 2 == 1 && (bf16_ || spec_.inputs < 32)) return;
  for (const PhaseSpec& p : spec_.phases)
    if (p.kh != p.kw || ceil_div(p.kh, spec_.stride) != r) return;
  winograd_ = winograd_rows_ = 7 - r;
  if (!bf16_ || !spec_.fine) {
    halves_ = fits_halves();
    return;
  }
  // Four points down make the error of six, or less. That of a large kernel would be too much: none
  // for 5 rows, where products of bfloat16 take half the time of others; for 4 it would take as
  // long as to transform both sides and multiply in float32.
  if (r <= 3) {
    winograd_rows_ = 5 - r;
  } else if (r == 5 && isa_->name == std::string("avx512_bf16")) {
    winograd_rows_ = 1;
  } else {
    bf16_ = false;
  }
  halves_ = fits_halves();
}

void Conv::winograd_weights() {
  const int r = 7 - winograd_, stride = spec_.stride, inputs = winograd_inputs();
  const int n_y = winograd_points(), elements = n_y * kColumns, step = bf16_ ? 2 : 1;
  const int rows = winograd_taps();
  const int64_t words = ceil_div(inputs, step), per_block = kBlock / step;
  const Transform down(r, n_y), across(r, kColumns);
  size_t total = 0;
  for (const PhaseSpec& p : spec_.phases) {
    Phase phase{p.kh, p.kw, p.dy, p.dx, p.ry, p.rx, total, {}};
    for (int nb : groups_) {
      phase.group.push_back(total);
      total += size_t(elements) * rows * words * (halves_ ? kBlock / 2 : nb * kBlock);
    }
    phases_.push_back(std::move(phase));
  }
  weights_.resize(total);
  for (size_t i = 0; i < phases_.size(); ++i) {
    const std::vector<float>& from = spec_.phases[i].weights;
    const int k = phases_[i].kh;
    // Of 16 outputs from `first` and one input.
    const auto transform = [&](int64_t first, int input, Lanes* full) {
      const int parity = input / spec_.inputs, channel = input % spec_.inputs;
      const int64_t count = std::min<int64_t>(kBlock, spec_.outputs - first);
      Lanes taps[5 * 5] = {};
      for (int y0 = 0; y0 < r; ++y0)
        for (int x0 = 0; x0 < r; ++x0) {
          const int y = y0 * stride + parity / stride, x = x0 * stride + parity % stride;
          if (y >= k || x >= k) continue;
          const float* tap = from.data() + ((first * spec_.inputs + channel) * k + y) * k + x;
          for (int64_t l = 0; l < count; ++l) taps[y0 * r + x0][l] = tap[l * spec_.inputs * k * k];
        }
      transform_kernels(down, across, r, n_y, taps, full);
    };
    int64_t first = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const int lanes = groups_[g] * kBlock;
      float* to = weights_.data() + phases_[i].group[g];
      for (int lane = 0; lane < lanes; lane += kBlock)
        for (int input = 0; input < inputs; input += step) {
          Lanes full[6 * kColumns], next[6 * kColumns] = {};
          transform(first + lane, input, full);
          if (bf16_ && input + 1 < inputs) transform(first + lane, input + 1, next);
          const int64_t word = input / step, before = word / per_block * per_block;
          const int64_t here = std::min(per_block, words - before);  // of the block of inputs
          for (int e = 0; e < elements * rows; ++e) {
            const int64_t tap = e / elements, element = e % elements;
            const int64_t at = (element * words + before) * rows + tap * here + word - before;
            for (int l = 0; l < kBlock; ++l) {
              float value = static_cast<float>(full[e][l]);
              if (bf16_) value = bf16_pair(value, static_cast<float>(next[e][l]));
              if (!halves_) {
                to[at * lanes + lane + l] = value;
              } else if (l < kBlock / 2) {  // two words side by side in every 64 bits
                to[at / 2 * kBlock + 2 * l + at % 2] = value;
              }
            }
          }
        }
      first += lanes;
    }
    std::vector<float>().swap(spec_.phases[i].weights);
  }
}

namespace {

// From one element of transformed tiles to the next: an odd number of cache lines, so that the
// elements of one tile are in different sets of the cache.
int64_t element_stride(int64_t values, int64_t bytes) {
  const int64_t line = 64 / bytes;
  return (ceil_div(values, line) | 1) * line;
}

}  // namespace

// A thread's memory: window, transformed inputs, products, rows of outputs. In floats.
Conv::Scratch Conv::winograd_scratch(const StepPlan& p) const {
  const int64_t blocks = blocks_of(winograd_inputs()), elements = winograd_points() * kColumns;
  const int64_t ty = ceil_div(p.tile_rows, winograd_rows_);
  const int64_t tx = ceil_div(p.tile_columns, winograd_);
  Scratch s{};
  s.panel = window(p.tile_rows, span_y_, winograd_rows_) *
            window(p.tile_columns, span_x_, winograd_) * blocks * kBlock;
  s.v = elements *
        element_stride((ty + winograd_taps() - 1) * tx * blocks * kBlock, factor_bytes()) *
        factor_bytes() / 4;
  s.m = elements * element_stride(ty * tx * 2 * kBlock, 4);
  s.rows = winograd_rows_ * tx * winograd_ * 2 * kBlock;
  return s;
}

void Conv::winograd_plan(const ConvShape& s, int threads, StepPlan* out) const {
  const int64_t rows = ceil_div(out->domain_rows, winograd_rows_);
  const int64_t columns = ceil_div(out->domain_columns, winograd_);
  // Transformed inputs and results of a block of tiles stay in the second-level cache while the
  // weights stream by; more tiles mean fewer passes over the weights.
  const int64_t elements = winograd_points() * kColumns;
  const int64_t tile_bytes = factor_bytes() * elements * kBlock * blocks_of(winograd_inputs());
  const int64_t most = std::clamp<int64_t>(kTransformed / tile_bytes, 8,
                                           kMostTiles * 36 / elements * (bf16_ ? 2 : 1));
  const int64_t across = ceil_div(columns, ceil_div(columns, 8));
  // The columns do not depend on the threads, nor do the parts that statistics are summed in.
  out->tile_columns = std::min(across * winograd_, out->domain_columns);
  out->tiles_x = ceil_div(out->domain_columns, out->tile_columns);
  const int64_t strips = s.images * out->tiles_x;
  double best = 0;
  int64_t down = 1;
  for (int64_t n = std::min({rows, std::max<int64_t>(1, most / across), kMostDown}); n >= 1; --n) {
    const int64_t items = strips * ceil_div(rows, n);
    const double tiles = static_cast<double>(n * across);
    const double busy = static_cast<double>(strips * rows) /
                        static_cast<double>(ceil_div(items, threads) * threads * n);
    const double score = busy * tiles / (tiles + 3);
    if (score > best) best = score, down = n;
  }
  out->tile_rows = std::min(down * winograd_rows_, out->domain_rows);
  out->tiles_y = ceil_div(out->domain_rows, out->tile_rows);
  out->part_rows = winograd_rows_;
  out->panel_floats = winograd_scratch(*out).total();
}

// Whether the input is transformed as it lies in memory: no arithmetic on load.
bool Conv::winograd_direct(const ConvCall& c) const {
  const Source& s = spec_.source;
  return winograd_ && !int8_ && spec_.stride == 1 && !c.in.planar && c.in.dtype != kFloat16 &&
         s.pre == kActNone && s.post == kActNone && !c.scale && !c.load_residual.data &&
         !c.copy.data && (!c.exact || spec_.inputs % kBlock == 0);
}

// Whether outputs are written as they are transformed back.
bool Conv::winograd_finishes(const ConvCall& c, const Tile& t) const {
  return winograd_ == 4 && winograd_rows_ != 1 && !t.stats && !c.repeated.h && !c.out.planar &&
         !c.residual.planar && c.out.dtype != kFloat16 && leaks();
}

// Whether vectors hold each of at most 8 outputs twice: outputs are always finished at once then.
bool Conv::fits_halves() const {
  return spec_.step && winograd_ == 4 && winograd_rows_ != 1 && !int8_ && isa_->halves &&
         spec_.outputs <= 8 && winograd_inputs() % (bf16_ ? 4 : 2) == 0 && spec_.norm.slot < 0 &&
         spec_.residual < 0 && leaks();
}

void Conv::winograd_tile(const ConvCall& c, const Tile& t, const PackArgs& pack) const {
  const Scratch s = winograd_scratch(*c.step);
  float* panel = static_cast<float*>(pack.dst);
  float* v = panel + s.panel;
  float* m = v + s.v;
  float* rows = m + s.m;
  const int size = winograd_rows_, inputs = winograd_inputs();
  const int elements = winograd_points() * kColumns;
  const int step = bf16_ ? 2 : 1;  // inputs in 32 bits
  const int64_t words = ceil_div(inputs, step);
  const auto micro = bf16_ ? isa_->micro_bf16 : isa_->micro;
  const auto halves = bf16_ ? isa_->halves_bf16 : isa_->halves;
  const int ty = static_cast<int>(ceil_div(t.rows, size));
  const int tx = static_cast<int>(ceil_div(t.columns, winograd_));
  const int tiles = ty * tx, taps = winograd_taps();

  WinogradInput in{};
  in.panel_block = pack.dst_block;
  in.panel_row = pack.dst_row;
  in.blocks = static_cast<int>(blocks_of(inputs));
  in.tiles_y = ty + taps - 1;
  in.tiles_x = tx;
  in.m_y = size;
  in.m_x = winograd_;
  in.n_y = winograd_points();
  in.bf16 = bf16_;
  in.out = v;
  const bool direct = winograd_direct(c), finishes = winograd_finishes(c, t);
  in.src = pack.src;
  in.dtype = pack.dtype;
  in.out_element = element_stride(int64_t{in.blocks} * in.tiles_y * tx * kBlock, factor_bytes());

  static const float zeros[2 * kBlock] = {};
  MicroArgs a{};
  a.bias = zeros;
  a.panel_block = int64_t{in.tiles_y} * tx * kBlock;
  a.panel_row = int64_t{tx} * kBlock;
  a.blocks = in.blocks;
  a.last = static_cast<int>(words - (in.blocks - 1) * kBlock / step) * step;
  a.kh = taps;
  a.kw = 1;
  a.channels = a.pixel = kBlock;
  FinishArgs f = finish_args(c);
  WinogradOutput o{};
  o.tiles = tx;
  o.m_y = size;
  o.m_x = winograd_;
  o.out = rows;
  int64_t done[kMostDown] = {};  // pixels of each part
  for (const Phase& phase : phases_) {
    const int64_t height = phase_count(t.row, t.rows, phase.ry, c.shape->out.h);
    const int64_t width = phase_count(t.column, t.columns, phase.rx, c.shape->out.w);
    if (height <= 0 || width <= 0) continue;
    in.panel = panel + (phase.dy - low_y_) * pack.dst_row + (phase.dx - low_x_) * kBlock;
    if (direct) {
      in.rows = pack.src_y + (phase.dy - low_y_);
      in.cols = pack.src_x + (phase.dx - low_x_);
    }
    isa_->winograd_input(in);
    int64_t block = 0;
    for (int64_t g = 0; g < t.last_group; block += groups_[g], ++g) {
      if (g < t.first_group) continue;
      const int nb = groups_[g], lanes = halves_ ? kBlock / 2 : nb * kBlock;
      const int most = halves_ ? kHalvesPixels : isa_->pixels[nb];
      const int pieces = static_cast<int>(ceil_div(tiles, most));
      o.in_element = element_stride(int64_t{tiles + halves_} * lanes, 4);  // read in pairs
      for (int e = 0; e < elements; ++e) {
        a.weights = weights_.data() + phase.group[g] + e * taps * words * lanes;
        for (int piece = 0; piece < pieces; ++piece) {
          const int first = tiles * piece / pieces, last = tiles * (piece + 1) / pieces;
          a.panel =
              reinterpret_cast<char*>(v) + (e * in.out_element + first * kBlock) * factor_bytes();
          a.out = m + e * o.in_element + first * lanes;
          halves_ ? halves(a, last - first) : micro(a, last - first, nb);
        }
      }
      o.nb = f.nb = nb;
      o.bias = bias_.data() + block * kBlock;
      f.channels = group_channels(g, block);
      f.pixels = static_cast<int>(width);
      for (int y = 0; y < ty; ++y) {
        o.in = m + int64_t{y} * tx * lanes;
        void* to[6] = {};
        const void* residuals[6] = {};
        if (finishes) {
          for (int i = 0; i < size && y * size + i < height; ++i) {
            finish_place(c, t, block, (t.row + y * size + i) * spec_.out_stride + phase.ry,
                         t.column * spec_.out_stride + phase.rx, &f);
            to[i] = f.out;
            residuals[i] = f.residual;
          }
          o.finish = &f;
          o.rows = to;
          o.residuals = residuals;
          halves_ ? isa_->halves_finish(o) : isa_->winograd_output(o);
          continue;
        }
        isa_->winograd_output(o);
        f.before = done[y];
        if (t.stats)
          f.stats = t.stats + (y * c.step->tiles_x * blocks_of(spec_.outputs) + block) * 3 * kBlock;
        for (int i = 0; i < size && y * size + i < height; ++i) {
          f.tile = rows + int64_t{i} * tx * winograd_ * lanes;
          finish_at(c, t, block, (t.row + y * size + i) * spec_.out_stride + phase.ry,
                    t.column * spec_.out_stride + phase.rx, &f);
          f.before += f.pixels;
        }
      }
    }
    for (int y = 0; y < ty; ++y) done[y] += width * std::clamp<int64_t>(height - y * size, 0, size);
  }
}

}  // namespace fastgen
