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

// One input on its way into the result.
struct Part {
  const Strided* from;
  int64_t position;      // stride of the source's positions
  int64_t first;         // channel of the result
  int64_t step, pieces;  // rows of one item; items of one image
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
  // A row of the result is a plane of one channel, or (last) one position.
  const auto part = [&](const Strided& from, int64_t first) {
    Part p{&from, position_stride(from), first, 0, 0};
    if (p.position < 0 || (p.position > 1 && from.stride_c != 1) ||
        (last && p.position != 1 && from.stride_c != 1))
      throw std::invalid_argument("an input has other strides than NCHW or channels_last; copy it");
    const int64_t rows = last ? positions : from.c, bytes = (last ? from.c : positions) * size;
    p.step = std::min(rows, std::max<int64_t>(1, kPiece / bytes));
    // Sixteen rows make a transposition quick.
    if (p.step > 16) p.step = p.step / 16 * 16;
    p.pieces = ceil_div(rows, p.step);
    return p;
  };
  const Part parts[2] = {part(a, 0), part(b, a.c)};
  const int64_t per_image = parts[0].pieces + parts[1].pieces;
  const auto job = [&](int64_t item, int) {
    const int64_t n = item / per_image, piece = item % per_image;
    const Part& p = piece < parts[0].pieces ? parts[0] : parts[1];
    const int64_t row = (piece < parts[0].pieces ? piece : piece - parts[0].pieces) * p.step;
    const int64_t all = last ? positions : p.from->c;
    const int64_t src_row = last ? p.position : p.from->stride_c;
    const int64_t src = n * p.from->stride_n + row * src_row;
    const int64_t dst =
        n * channels * positions + (last ? row * channels + p.first : (p.first + row) * positions);
    MoveArgs move;
    move.src = static_cast<const char*>(p.from->data) + src * size;
    move.dst = static_cast<char*>(out) + dst * size;
    move.rows = std::min(p.step, all - row);
    move.cols = last ? p.from->c : positions;
    move.src_row = src_row;
    move.src_col = last ? p.from->stride_c : p.position;
    move.dst_row = last ? channels : positions;
    move.size = size;
    move.stream = total >= kStream;
    kernels.move(move);
  };
  const int64_t items = a.n * per_image;
  if (total < 2 * kPiece) {
    for (int64_t i = 0; i < items; ++i) job(i, 0);
  } else {
    op_parallel(items, job);
  }
}

}  // namespace fastgen
