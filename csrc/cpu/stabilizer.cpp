// Steadying a clip that is painted frame by frame: where every part of a frame was in the frame
// before (inverse search on pyramids of halved gray pictures, Kroeger et al. 2016), and the
// painting of the frame before, moved there and mixed into the new one where the frames agree.
#include "stabilizer.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "stabilizer_kernels.h"
#include "stabilizer_planes.h"

namespace fastgen {
namespace {

constexpr int kLevels = 5;       // halvings
constexpr int kSmallest = 16;    // sides of a level that is halved again are at least twice this
constexpr int kReach = 12;       // how far a patch may leave the picture, and move on a level
constexpr float kAlike = 0.5f;   // pixels of the half size: neighbours that move alike
constexpr float kStill = 0.1f;   // pixels of the picture: below it a part stands still
constexpr float kOther = 12;     // a patch with this difference is another one
constexpr double kShift = 0.05;  // of the patches: the least gain for which the grid moves
// What paintings differ by whatever the grid does, and the power of what is left with which less is
// mixed where the grid goes along.
constexpr double kOff = 0.2, kCalm = 0.3;
constexpr double kCut = 0.5;    // with this share of them the frame is another scene
constexpr double kHaste = 1.6;  // of the sharpness: share of what is missing that is added
constexpr int64_t kEvery = 3;   // rows that it is measured on
constexpr int kMostGain = 32;
// Paintings that disagree more are mixed less, by a power of the share: see share().
constexpr double kLeastPower = 0.86, kMostPower = 1.3, kUsual = 1670;
constexpr double kFollow = 0.3;  // of the disagreement that a frame has, into the mean
// Strokes that are mixed are told from painted ones even at the same sharpness: so much more of
// it, where the paintings disagree by more than kAgree.
constexpr double kMore = 0.06, kAgree = 50;

// By the name of the engine's instruction set.
const StabilizerKernels* kernels_of(const std::string& isa) {
#ifdef FASTGEN_X86
  if (isa.rfind("avx512", 0) == 0) return stabilizer_avx512();
  if (isa == "avx2") return stabilizer_avx2();
#endif
  (void)isa;
  return stabilizer_scalar();
}

}  // namespace

struct Stabilizer::Impl {
  const StabilizerKernels* isa = nullptr;
  int threads = 1;
  std::mutex mutex;
  std::unique_ptr<Pool> pool;
  pid_t owner = getpid();

  int64_t width = 0, height = 0;
  bool seen = false;        // the newest pyramid is of the frame before
  bool painted_it = false;  // and it was painted
  bool known = false;       // `state` is its painting
  bool follows = false, moved = false;
  int levels = 0;
  Plane pyramid[2][kLevels];
  int newest = 0;
  Grid grid[kLevels];
  std::vector<uint8_t> state[2];
  int painted = 0;
  double gain = 0;           // of the sharpening, 0..1
  double calm = 1;           // where parts move, the share that is mixed is less by it
  double disagreement = -1;  // of paintings, along the motion: mean square; below 0: not known
  std::vector<double> sums;
  std::vector<int64_t> counts;
  std::vector<FlowVector> found;
  std::vector<std::vector<uint8_t>> scratch;

  const StabilizerKernels& kernels() const { return *isa; }

  Pool& workers() {
    if (owner != getpid()) {  // a forked child has no workers
      (void)pool.release();
      owner = getpid();
    }
    if (!pool) pool = std::make_unique<Pool>(threads);
    return *pool;
  }

  void resize(int64_t w, int64_t h) {
    if (w == width && h == height) return;
    width = height = 0;  // as long as it is not complete
    seen = known = false;
    int across = half(w), down = half(h);
    for (levels = 0; levels < kLevels;) {
      for (auto& p : pyramid) p[levels].resize(across, down);
      grid[levels].resize(pyramid[0][levels]);
      ++levels;
      if (std::min(across, down) < 2 * kSmallest) break;
      across = half(across), down = half(down);
    }
    for (auto& s : state) s.assign(static_cast<size_t>(3 * w * h), 0);
    sums.assign(2 * static_cast<size_t>(h), 0.0);
    counts.assign(2 * static_cast<size_t>(h), 0);
    // Of a strip: weights (half size, padded rows), wide weights, warped rows.
    const size_t strip = static_cast<size_t>(pyramid[0][0].row) * (kFlowPatch + 2) +
                         static_cast<size_t>(2 * w + 64) + 6 * (half(w) + 16) +
                         (kWarpTile + 1) * strip_row(w);
    scratch.assign(threads, std::vector<uint8_t>(strip, 0));
    width = w, height = h;
  }

  static int64_t strip_row(int64_t w) {
    return 3 * ((w + kWarpTile - 1) / kWarpTile * kWarpTile) + 64;
  }

  void build(const uint8_t* frame) {
    Plane* levels_of = pyramid[newest];
    const int64_t row = 3 * width;
    Plane& first = levels_of[0];
    constexpr int kRows = 8;
    workers().run((first.height + kRows - 1) / kRows, [&](int64_t item, int) {
      const int last = std::min<int>(first.height, static_cast<int>(item + 1) * kRows);
      for (int y = static_cast<int>(item) * kRows; y < last; ++y) {
        const uint8_t* a = frame + 2 * y * row;
        kernels().half_rgb(a, 2 * y + 1 < height ? a + row : a, static_cast<int>(width),
                           first.at(0, y));
        first.pad_row(y);
      }
    });
    first.pad_rows();
    for (int l = 1; l < levels; ++l) {
      const Plane& from = levels_of[l - 1];
      Plane& to = levels_of[l];
      for (int y = 0; y < to.height; ++y) {
        const uint8_t* a = from.at(0, 2 * y);
        kernels().half_gray(a, 2 * y + 1 < from.height ? a + from.row : a, from.width, to.at(0, y));
        to.pad_row(y);
      }
      to.pad_rows();
    }
  }

  FlowArgs patch(int level, int i, int j) const {
    const Plane &now = pyramid[newest][level], &before = pyramid[1 - newest][level];
    const int x = i * kFlowPatch, y = j * kFlowPatch;
    FlowArgs f{};
    f.now = now.at(x, y);
    f.before = before.at(x, y);
    f.row = now.row;
    f.left = -kReach - x;
    f.right = now.width - 1 + kReach - kFlowPatch - x;
    f.top = -kReach - y;
    f.bottom = now.height - 1 + kReach - kFlowPatch - y;
    return f;
  }

  void search(int level, int64_t j) {
    Grid& g = grid[level];
    const Grid* coarse = level + 1 < levels ? &grid[level + 1] : nullptr;
    for (int i = 0; i < g.columns; ++i) {
      FlowArgs f = patch(level, i, static_cast<int>(j));
      const auto add = [&f](FlowVector v, float scale) {
        f.candidate[f.candidates++] = {v.x * scale, v.y * scale, 0, 0};
      };
      add(FlowVector{}, 1);
      if (coarse) {
        const auto from = [&](int64_t x, int64_t y) {
          x = std::min<int64_t>(std::max<int64_t>(x, 0), coarse->columns - 1);
          y = std::min<int64_t>(std::max<int64_t>(y, 0), coarse->rows - 1);
          return coarse->now[y * coarse->columns + x];
        };
        add(from(i / 2, j / 2), 2);
        add(from(i % 2 ? i / 2 + 1 : i / 2 - 1, j / 2), 2);
        add(from(i / 2, j % 2 ? j / 2 + 1 : j / 2 - 1), 2);
      }
      if (i > 0) add(g.now[j * g.columns + i - 1], 1);
      if (moved) add(g.before[j * g.columns + i], 1);
      kernels().search(f, &g.now[j * g.columns + i]);
    }
  }

  // Means of neighbours that move alike: noise and flat patches are evened out, edges of motion
  // stay.
  void smooth(Grid* g) {
    found = g->now;
    for (int j = 0; j < g->rows; ++j)
      for (int i = 0; i < g->columns; ++i) {
        FlowVector& v = g->now[j * g->columns + i];
        const FlowVector at = v;
        float x = 0, y = 0, total = 0;
        for (int b = std::max(j - 1, 0); b <= std::min(j + 1, g->rows - 1); ++b)
          for (int a = std::max(i - 1, 0); a <= std::min(i + 1, g->columns - 1); ++a) {
            const FlowVector& o = found[b * g->columns + a];
            if (std::abs(o.x - at.x) > kAlike || std::abs(o.y - at.y) > kAlike) continue;
            x += o.weight * o.x, y += o.weight * o.y, total += o.weight;
          }
        v.x = x / total, v.y = y / total;
      }
  }

  void find_motion() {
    for (int l = levels - 1; l >= 0; --l)
      workers().run(grid[l].rows, [&](int64_t j, int) { search(l, j); });
    smooth(&grid[0]);
    const std::vector<FlowVector>& found = grid[0].now;
    const auto other = std::count_if(found.begin(), found.end(),
                                     [](const FlowVector& v) { return !(v.error < kOther); });
    follows = static_cast<double>(other) < kCut * static_cast<double>(found.size());
    moved = follows;
  }

  // A patch that moved by d and a grid that moved by k disagree like 1 - cos(2 pi (d - k) /
  // period): the k in which the most patches agree, for each axis. 0, unless it is better by a
  // margin. What the paintings agree better by then, mixing need not bring about.
  void shift(int period, int* x, int* y) {
    const float turn = static_cast<float>(2 * M_PI) / static_cast<float>(period);
    double sums[2][2] = {}, patches = 0;
    for (const FlowVector& v : grid[0].now) {
      if (!(v.error < kOther)) continue;
      ++patches;
      const float turns[2] = {-2 * v.x * turn, -2 * v.y * turn};
      for (int i = 0; i < 2; ++i)
        sums[i][0] += std::cos(turns[i]), sums[i][1] += std::sin(turns[i]);
    }
    int* const to[2] = {x, y};
    double stays = kOff * patches, moves = stays;
    for (int i = 0; i < 2; ++i) {
      double most = sums[i][0];
      for (int k = 1; k < period; ++k) {
        const double agree = sums[i][0] * std::cos(k * turn) + sums[i][1] * std::sin(k * turn);
        if (agree > std::max(most, sums[i][0] + kShift * patches)) most = agree, *to[i] = k;
      }
      stays += patches - sums[i][0], moves += patches - most;
    }
    calm = patches > 0 ? std::pow(moves / stays, kCalm) : 1;
  }

  // The painting of the frame before, where a tile of this frame was.
  void warp(int64_t x, int64_t y, float dx, float dy, uint8_t* out, int64_t out_row) const {
    const uint8_t* from = state[painted].data();
    const int64_t row = 3 * width;
    const auto ticks = [](float v) { return std::lrint(v * kPhases); };
    const int64_t tx = ticks(dx), ty = ticks(dy);
    const auto floor = [](int64_t v) {
      return v >= 0 ? v / kPhases : -((kPhases - 1 - v) / kPhases);
    };
    const int64_t sx = x + floor(tx), sy = y + floor(ty);
    const int64_t fx = tx - floor(tx) * kPhases, fy = ty - floor(ty) * kPhases;
    constexpr int kSide = kWarpTile + 3;
    uint8_t tile[kSide * 3 * kSide];
    const bool inside =
        sx >= 1 && sy >= 1 && sx + kWarpTile + 2 <= width && sy + kWarpTile + 2 <= height;
    const uint8_t* first = from + sy * row + 3 * sx;
    int64_t step = row;
    if (!inside) {
      for (int64_t j = 0; j < kSide; ++j) {
        const int64_t yy = std::min(std::max<int64_t>(sy - 1 + j, 0), height - 1);
        for (int64_t i = 0; i < kSide; ++i) {
          const int64_t xx = std::min(std::max<int64_t>(sx - 1 + i, 0), width - 1);
          std::memcpy(tile + (j * kSide + i) * 3, from + yy * row + 3 * xx, 3);
        }
      }
      step = 3 * kSide;
      first = tile + step + 3;
    }
    if (fx == 0 && fy == 0) {
      for (int j = 0; j < kWarpTile; ++j)
        std::memcpy(out + j * out_row, first + j * step, 3 * kWarpTile);
      return;
    }
    kernels().warp(first, step, cubic().taps[fx], cubic().taps[fy], out, out_row);
  }

  // The share of the painting before that is mixed in. Means of paintings that differ much are
  // unlike any painting, and need a smaller share for as steady a picture; where they differ
  // little it is the other way round.
  int share(double most) const {
    const double much = std::max(disagreement, 0.0) / kUsual;
    const double power = disagreement < 0 ? 1.0 : std::min(kLeastPower + much * much, kMostPower);
    return static_cast<int>(std::lrint(127 * std::pow(most, power)));
  }

  // One row of tiles: weights from the residuals, then the mixture.
  void strip(int64_t j, int thread, const uint8_t* paint, int64_t paint_row, int moving,
             int still) {
    const Grid& g = grid[0];
    const Plane& now = pyramid[newest][0];
    const int64_t row = 3 * width, half_row = now.row, strip_bytes = strip_row(width);
    const int rows = static_cast<int>(std::min<int64_t>(kWarpTile, height - j * kWarpTile));
    const int half_rows = std::min(kFlowPatch, now.height - static_cast<int>(j) * kFlowPatch);
    uint8_t* residual = scratch[thread].data();        // kFlowPatch rows
    uint8_t* most = residual + half_row * kFlowPatch;  // and two more of the half size
    uint8_t* weight = most + half_row;
    uint8_t* warped = weight + half_row;               // kWarpTile rows
    uint8_t* wide = warped + kWarpTile * strip_bytes;  // one row
    for (int i = 0; i < g.columns; ++i) {
      FlowVector v = g.now[j * g.columns + i];
      if (2 * std::abs(v.x) < kStill && 2 * std::abs(v.y) < kStill) v.x = v.y = 0;
      kernels().residual(patch(0, i, static_cast<int>(j)), v, residual + 1 + i * kFlowPatch,
                         half_row);
      std::memset(most + i * kFlowPatch, v.x == 0 && v.y == 0 ? still : moving, kFlowPatch);
      warp(i * kWarpTile, j * kWarpTile, 2 * v.x, 2 * v.y, warped + 3 * i * kWarpTile, strip_bytes);
    }
    for (int y = 0; y < half_rows; ++y) {
      uint8_t* r = residual + y * half_row;
      r[0] = r[1];
      r[1 + now.width] = r[now.width];
    }
    uint8_t* out = state[1 - painted].data();
    int64_t* found = &counts[2 * j];
    found[0] = found[1] = 0;
    for (int y = 0; y < half_rows; ++y) {
      const uint8_t* around[3] = {residual + std::max(y - 1, 0) * half_row + 1,
                                  residual + y * half_row + 1,
                                  residual + std::min(y + 1, half_rows - 1) * half_row + 1};
      kernels().weights(around, most, now.width, weight);
      for (int x = 0; x < now.width; ++x) {
        const uint64_t six = weight[x] * uint64_t{0x0101010101010101};
        std::memcpy(wide + 6 * x, &six, 8);
      }
      for (int r = 2 * y; r < std::min(2 * y + 2, rows); ++r) {
        const int64_t at = j * kWarpTile + r;
        kernels().blend(paint + at * paint_row, warped + r * strip_bytes, wide,
                        static_cast<int>(row), out + at * row);
      }
      if (y % 4 == 0)
        kernels().differences(paint + (j * kWarpTile + 2 * y) * paint_row,
                              warped + 2 * y * strip_bytes, wide, static_cast<int>(row), moving / 2,
                              &found[0], &found[1]);
    }
  }

  void learn_disagreement() {
    int64_t squares = 0, values = 0;
    for (int j = 0; j < grid[0].rows; ++j) squares += counts[2 * j], values += counts[2 * j + 1];
    if (values == 0) return;
    const double now = static_cast<double>(squares) / static_cast<double>(values);
    disagreement = disagreement < 0 ? now : disagreement + kFollow * (now - disagreement);
  }

  void mix(const uint8_t* paint, int64_t paint_row, uint8_t* out, double moving, double still,
           bool sharpen) {
    const int64_t row = 3 * width, bytes = row * height;
    painted_it = true;
    if (!known || !follows) {
      for (int64_t y = 0; y < height; ++y) std::memcpy(out + y * row, paint + y * paint_row, row);
      std::memcpy(state[painted].data(), out, bytes);
      gain = 0;
      disagreement = -1;
      known = true;
      return;
    }
    const int most = share(moving * calm), most_still = share(still);
    workers().run(grid[0].rows, [&](int64_t j, int thread) {
      strip(j, thread, paint, paint_row, most, most_still);
    });
    learn_disagreement();
    painted = 1 - painted;
    const uint8_t* from = state[painted].data();
    if (!sharpen || height < 3 || width < 3) {
      std::memcpy(out, from, bytes);
      return;
    }
    // What the mixture lost in sharpness against the paintings, measured on some rows, is given
    // back. It goes into the result only: given back again and again it would become noise.
    const int row_bytes = static_cast<int>(row), k = static_cast<int>(std::lrint(gain * kMostGain));
    constexpr int64_t kRows = 8;  // of which the inner ones are measured
    const int64_t bands = (height + kRows - 1) / kRows;
    workers().run(bands, [&](int64_t item, int) {
      const int64_t first = item * kRows, last = std::min(height, first + kRows);
      for (int64_t y = first; y < last; ++y) {
        const uint8_t* x = from + y * row;
        if (k == 0)
          std::memcpy(out + y * row, x, row);
        else
          kernels().sharpen(from + std::max<int64_t>(y - 1, 0) * row, x,
                            from + std::min(y + 1, height - 1) * row, row_bytes, k, out + y * row);
      }
      double *sum = &sums[2 * item], total[2] = {};
      for (int64_t y = first + 1; y < last - 1; y += kEvery)
        for (int i = 0; i < 2; ++i) {
          const int64_t step = i ? row : paint_row;
          const uint8_t* p = (i ? out : paint) + y * step;
          total[i] += kernels().laplacian(p - step, p, p + step, row_bytes);
        }
      std::copy_n(total, 2, sum);
    });
    double sum[2] = {};
    for (int64_t i = 0; i < bands; ++i) sum[0] += sums[2 * i], sum[1] += sums[2 * i + 1];
    // A part of the way in every frame, so that the sharpness does not flicker.
    const double target = 1 + kMore * std::min(std::max(disagreement, 0.0) / kAgree, 1.0);
    if (sum[1] > 0) gain += kHaste * (std::sqrt(target * sum[0] / sum[1]) - 1);
    gain = std::min(std::max(gain, 0.0), 1.0);
  }
};

Stabilizer::Stabilizer(int threads, const std::string& isa) : impl_(std::make_unique<Impl>()) {
  impl_->isa = kernels_of(isa_kernels(isa).name);
  impl_->threads = threads > 0 ? threads : default_threads();
}

Stabilizer::~Stabilizer() {
  if (impl_ && impl_->owner != getpid()) (void)impl_->pool.release();
}

void Stabilizer::reset() {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->seen = impl_->known = impl_->follows = impl_->moved = false;
}

bool Stabilizer::motion(const uint8_t* frame, int64_t width, int64_t height) {
  Impl& s = *impl_;
  std::lock_guard<std::mutex> lock(s.mutex);
  if (width < 1 || height < 1 || width > (1 << 24) || height > (1 << 24))
    throw std::invalid_argument("a frame has sides of 1 to 16777216 pixels");
  s.resize(width, height);
  s.newest = 1 - s.newest;
  for (int l = 0; l < s.levels; ++l) s.grid[l].before.swap(s.grid[l].now);
  s.build(frame);
  s.follows = false;
  s.calm = 1;
  // Along the motion from a frame that was not painted, an older painting would be out of place.
  if (!s.painted_it) s.known = false;
  s.painted_it = false;
  if (s.seen)
    s.find_motion();
  else
    s.moved = false;
  s.seen = true;
  return s.follows;
}

void Stabilizer::shift(int period, int* x, int* y) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  *x = *y = 0;
  if (impl_->follows) impl_->shift(period, x, y);
}

void Stabilizer::blend(const uint8_t* paint, int64_t paint_row, uint8_t* out, int64_t width,
                       int64_t height, double moving, double still, bool sharpen) {
  Impl& s = *impl_;
  std::lock_guard<std::mutex> lock(s.mutex);
  if (width != s.width || height != s.height || width == 0)
    throw std::invalid_argument("the painting has another size than the frame before it");
  if (!(moving >= 0 && moving <= 1 && still >= 0 && still <= 1))
    throw std::invalid_argument("shares must be in 0..1");
  s.mix(paint, paint_row, out, moving, still, sharpen);
}

void Stabilizer::vectors(int64_t* columns, int64_t* rows, std::vector<float>* values) const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  const Grid& g = impl_->grid[0];
  *columns = g.columns;
  *rows = g.rows;
  for (const FlowVector& v : g.now) {
    const bool known = impl_->follows;
    values->insert(values->end(), {known ? 2 * v.x : 0, known ? 2 * v.y : 0, v.error});
  }
}

}  // namespace fastgen
