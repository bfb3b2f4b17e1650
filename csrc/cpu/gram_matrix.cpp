// Gram matrices: positions in parts and rows of the triangle in groups go to threads.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "../fastgen.h"
#include "isa.h"
#include "op_pool.h"

namespace fastgen {
namespace {

constexpr int64_t kTileSums = kGramTile * kGramTile;
constexpr int64_t kMostSums = int64_t{4} << 20;  // doubles of partial results at once

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How one image is split. A function of the shape alone, so that the result is, too.
struct Split {
  int64_t positions, rows;  // rows: of tiles
  int64_t tiles;            // of the triangle
  int64_t blocks;           // of kGramPositions positions
  int64_t parts, groups;

  Split(int64_t n, int64_t channels, int64_t count) : positions(count) {
    rows = ceil_div(channels, kGramTile);
    tiles = rows * (rows + 1) / 2;
    blocks = ceil_div(positions, kGramPositions);
    // A part is worth a thread from about a million multiply-adds; many images need few parts.
    const double work = static_cast<double>(positions) * (16.0 * tiles + 8.0 * channels);
    parts = std::min<int64_t>(ceil_div(64, n), static_cast<int64_t>(work / 1e6) + 1);
    parts = std::min({parts, blocks, std::max<int64_t>(1, kMostSums / (tiles * kTileSums))});
    // Every group loads its channels again, which many channels hide.
    groups = channels < 256 || n * parts >= 64 ? 1 : std::min<int64_t>(16, channels / 128);
  }

  int64_t first_block(int64_t part) const { return blocks * part / parts; }
  // Rows of equal area of the triangle, whole blocks of 16 channels.
  int64_t first_row(int64_t group) const {
    if (group == groups) return rows;
    const double share = std::sqrt(static_cast<double>(group) / static_cast<double>(groups));
    return static_cast<int64_t>(share * static_cast<double>(rows)) / 4 * 4;
  }
};

// Adds up the parts of rows [first, last) of tiles, and writes both triangles.
void finish_rows(const Split& s, const double* sums, int64_t first, int64_t last, int64_t channels,
                 float* out) {
  const double scale = 1.0 / (static_cast<double>(channels) * static_cast<double>(s.positions));
  for (int64_t i = first; i < last; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double total[kTileSums] = {};
      const double* tile = sums + (i * (i + 1) / 2 + j) * kTileSums;
      for (int64_t p = 0; p < s.parts; ++p, tile += s.tiles * kTileSums)
        for (int k = 0; k < kTileSums; ++k) total[k] += tile[k];
      for (int r = 0; r < kGramTile; ++r)
        for (int c = 0; c < kGramTile; ++c) {
          const int64_t y = i * kGramTile + r, x = j * kGramTile + c;
          if (y >= channels || x > y) continue;
          const auto value = static_cast<float>(total[r * kGramTile + c] * scale);
          out[y * channels + x] = value;
          out[x * channels + y] = value;
        }
    }
}

}  // namespace

void gram_matrix(const Strided& x, float* out, const std::string& isa) {
  check_strided(x, "x");
  const int64_t position = position_stride(x), positions = x.h * x.w;
  if (position < 0 || (position != 1 && x.c > 1 && x.stride_c != 1))
    throw std::invalid_argument("x has other strides than NCHW or channels_last; copy it");
  if (x.c > (int64_t{1} << 20))
    throw std::invalid_argument("x has " + std::to_string(x.c) +
                                " channels, must be at most 1048576; take fewer");
  static const Kernels& best = isa_kernels("");
  const Kernels& kernels = isa.empty() ? best : isa_kernels(isa);

  const Split s(x.n, x.c, positions);
  const int64_t image_sums = s.parts * s.tiles * kTileSums;
  const int64_t batch = std::min(x.n, std::max<int64_t>(1, kMostSums / image_sums));
  // Turning few channels takes less time than filling them up to whole blocks.
  const bool blocked = position != 1 && x.c >= (x.dtype == kBFloat16 ? 2 : 3) * kBlock;
  const int64_t panel =
      blocked ? ceil_div(x.c, kBlock) * kGramBlock : s.rows * kGramTile * kGramPositions;
  const int threads = batch * s.parts * s.groups == 1 ? 1 : op_threads();
  float* panels = op_scratch(sizeof(float) * (panel * threads + 2 * image_sums * batch));
  double* sums = reinterpret_cast<double*>(panels + panel * threads);
  const int64_t bytes = x.dtype == kFloat32 ? 4 : 2;

  for (int64_t n0 = 0; n0 < x.n; n0 += batch) {
    const int64_t images = std::min(batch, x.n - n0);
    op_parallel(images * s.parts * s.groups, [&](int64_t item, int thread) {
      // The last group has the most to do for the smallest reason to wait for it: it goes first.
      const int64_t group = s.groups - 1 - item % s.groups, part = item / s.groups % s.parts;
      const int64_t n = item / s.groups / s.parts;
      const int64_t first = s.first_row(group), last = s.first_row(group + 1);
      double* mine = sums + n * image_sums + part * s.tiles * kTileSums;
      std::fill(mine + first * (first + 1) / 2 * kTileSums,
                mine + last * (last + 1) / 2 * kTileSums, 0.0);
      for (int64_t b = s.first_block(part); b < s.first_block(part + 1); ++b) {
        const int64_t at = b * kGramPositions;
        GramPackArgs pack;
        pack.data =
            static_cast<const char*>(x.data) + ((n0 + n) * x.stride_n + at * position) * bytes;
        pack.dtype = x.dtype;
        pack.channel = x.stride_c;
        pack.position = position;
        pack.channels = std::min(x.c, last * kGramTile);
        pack.count = static_cast<int>(std::min<int64_t>(kGramPositions, positions - at));
        pack.blocked = blocked;
        pack.panel = panels + thread * panel;
        kernels.gram_pack(pack);
        const int filled = static_cast<int>(ceil_div(pack.count, kGramFill)) * kGramFill;
        GramTileArgs tiles{};
        tiles.panel = pack.panel;
        tiles.dtype = x.dtype;
        tiles.blocked = blocked;
        tiles.count = blocked ? pack.count : filled;
        tiles.first = first;
        tiles.last = last;
        tiles.sums = mine;
        if (b + 1 < s.first_block(part + 1)) {
          const int64_t span = std::min<int64_t>(kGramPositions, positions - at - kGramPositions);
          tiles.next = static_cast<const char*>(pack.data) + kGramPositions * position * bytes;
          tiles.next_rows = position == 1 ? pack.channels : span;
          tiles.next_row = (position == 1 ? x.stride_c : position) * bytes;
          tiles.next_lines = (position == 1 ? span : pack.channels) * bytes / 64;
        }
        kernels.gram_tiles(tiles);
      }
    });
    constexpr int64_t kRows = 16;
    const int64_t chunks = ceil_div(s.rows, kRows);
    const auto finish = [&](int64_t item, int) {
      const int64_t n = item / chunks, row = item % chunks * kRows;
      finish_rows(s, sums + n * image_sums, row, std::min(row + kRows, s.rows), x.c,
                  out + (n0 + n) * x.c * x.c);
    };
    if (images * s.tiles * s.parts < 4096) {
      for (int64_t item = 0; item < images * chunks; ++item) finish(item, 0);
    } else {
      op_parallel(images * chunks, finish);
    }
  }
}

}  // namespace fastgen
