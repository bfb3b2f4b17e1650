// Concatenation along channels: pieces of about 256 KiB go to threads.
#include <algorithm>
#include <stdexcept>

#include "../fastgen.h"
#include "isa.h"
#include "op_pool.h"

namespace fastgen {
namespace {

constexpr int64_t kPiece = 256 << 10;  // bytes of the result that one item writes
// From this size on the result does not stay in a cache for its reader anyway.
constexpr int64_t kStream = int64_t{16} << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Small results are not worth waking a thread.
template <typename Job>
void run(int64_t items, int64_t bytes, const Job& job) {
  if (bytes >= 2 * kPiece) return op_parallel(items, job);
  for (int64_t i = 0; i < items; ++i) job(i, 0);
}

// One input on its way into the result, whose rows are planes of a channel, or (last) positions.
struct Part {
  const char* from;
  int64_t image, row, col;  // strides of the source, elements
  int64_t first;            // element of the result's image where it starts
  int64_t rows, cols;       // of one image
};

}  // namespace

int64_t position_stride(const Strided& t) {
  if (t.h == 1) return t.w == 1 ? 1 : t.stride_w;
  if (t.w == 1) return t.stride_h;
  return t.stride_h == t.w * t.stride_w ? t.stride_w : -1;
}

void check_strided(const Strided& t, const char* name) {
  const auto fail = [name](const std::string& why) {
    throw std::invalid_argument(std::string(name) + " " + why);
  };
  const int64_t sizes[] = {t.n, t.c, t.h, t.w};
  const int64_t strides[] = {t.stride_n, t.stride_c, t.stride_h, t.stride_w};
  if (!t.data) fail("has no memory");
  if (t.dtype < kFloat32 || t.dtype > kBFloat16)
    fail("has dtype code " + std::to_string(t.dtype) + ", must be 0, 1 or 2");
  int64_t count = 1, last = 0, step = 0;
  for (int i = 0; i < 4; ++i) {
    if (sizes[i] < 1)
      fail("has an axis of size " + std::to_string(sizes[i]) + ", must be at least 1");
    if (sizes[i] == 1) continue;  // its stride leads nowhere, whatever it is
    if (strides[i] < 0) fail("has a negative stride; copy it");
    if (__builtin_mul_overflow(count, sizes[i], &count) || count > (int64_t{1} << 56) ||
        __builtin_mul_overflow(sizes[i] - 1, strides[i], &step) ||
        __builtin_add_overflow(last, step, &last) || last > (int64_t{1} << 56))
      fail("is larger than the address space; its shape or strides are wrong");
  }
}

void concat_features(const Strided& a, const Strided& b, void* out, bool last,
                     const std::string& isa) {
  check_strided(a, "content");
  check_strided(b, "style");
  if (a.dtype != b.dtype) throw std::invalid_argument("content and style have different dtypes");
  if (b.n != a.n || b.h != a.h || b.w != a.w)
    throw std::invalid_argument("content and style have different batch or image sizes");
  static const Kernels& best = isa_kernels("");
  const Kernels& kernels = isa.empty() ? best : isa_kernels(isa);

  const int64_t channels = a.c + b.c, positions = a.h * a.w;
  const int size = a.dtype == kFloat32 ? 4 : 2;
  int64_t total = 0;
  if (__builtin_mul_overflow(channels * size, positions, &total) ||
      __builtin_mul_overflow(total, a.n, &total) || total > (int64_t{1} << 58))
    throw std::invalid_argument("the result is larger than the address space; use smaller inputs");
  const auto part = [&](const Strided& t, int64_t channel) {
    const int64_t position = position_stride(t);
    const int64_t across = t.c == 1 ? 1 : t.stride_c;
    const auto* from = static_cast<const char*>(t.data);
    Part p{from, t.stride_n, across, position, channel * positions, t.c, positions};
    if (last) p = {from, t.stride_n, position, across, channel, positions, t.c};
    if (position < 0 || (p.col > 1 && p.row != 1) || (last && p.col == 0))
      throw std::invalid_argument("an input has other strides than NCHW or channels_last; copy it");
    return p;
  };
  const Part parts[2] = {part(a, 0), part(b, a.c)};
  const int64_t dst_row = last ? channels : positions;
  const bool stream = total >= kStream;
  const auto move = [&](const Part& p, int64_t n, int64_t row, int64_t rows, int64_t col,
                        int64_t cols) {
    const int64_t from = n * p.image + row * p.row + col * p.col;
    const int64_t to = n * channels * positions + p.first + row * dst_row + col;
    MoveArgs args{p.from + from * size,
                  static_cast<char*>(out) + to * size,
                  rows,
                  cols,
                  p.row,
                  p.col,
                  dst_row,
                  size,
                  stream};
    if (p.col == 1 && p.row == cols && dst_row == cols) args.rows = 1, args.cols = rows * cols;
    kernels.move(args);
  };

  if (last) {
    const Part &pa = parts[0], &pb = parts[1];
    const int64_t step = std::max<int64_t>(64, kPiece / (channels * size) / 64 * 64);
    const int64_t pieces = ceil_div(positions, step);
    run(a.n * pieces, total, [&](int64_t item, int) {
      const int64_t n = item / pieces, first = item % pieces * step;
      const int64_t rows = std::min(step, positions - first);
      if (pa.col == 1 && pb.col == 1) {
        kernels.join({pa.from + (n * pa.image + first * pa.row) * size,
                      pb.from + (n * pb.image + first * pb.row) * size,
                      static_cast<char*>(out) + (n * positions + first) * channels * size, rows,
                      pa.row * size, pb.row * size, a.c * size, b.c * size, stream});
      } else {
        for (const Part& p : parts) move(p, n, first, rows, 0, p.cols);
      }
    });
    return;
  }
  // What is turned is split along positions, all channels together; the rest along channels.
  int64_t steps[2], pieces[2];
  for (int i = 0; i < 2; ++i) {
    const bool turned = parts[i].col > 1;
    steps[i] = turned ? 256 : std::max<int64_t>(1, kPiece / (positions * size));
    pieces[i] = ceil_div(turned ? positions : parts[i].rows, steps[i]);
  }
  const int64_t per_image = pieces[0] + pieces[1];
  run(a.n * per_image, total, [&](int64_t item, int) {
    const int64_t n = item / per_image, at = item % per_image;
    const int i = at < pieces[0] ? 0 : 1;
    const Part& p = parts[i];
    const int64_t first = (i ? at - pieces[0] : at) * steps[i];
    if (p.col > 1)
      move(p, n, 0, p.rows, first, std::min(steps[i], p.cols - first));
    else
      move(p, n, first, std::min(steps[i], p.rows - first), 0, p.cols);
  });
}

}  // namespace fastgen
