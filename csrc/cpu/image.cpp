#include "image.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace fastgen {
namespace {

std::vector<int32_t> reflect_index(int64_t size, int64_t padded) {
  std::vector<int32_t> index(padded, 0);
  const int64_t period = std::max<int64_t>(2 * (size - 1), 1);
  for (int64_t i = 0; i < padded && size > 1; ++i)
    index[i] = static_cast<int32_t>(std::min(i % period, period - i % period));
  return index;
}

const char* row_of(const void* photo, bool is_byte, int64_t row, int64_t width) {
  return static_cast<const char*>(photo) + row * width * 3 * (is_byte ? 1 : 4);
}

}  // namespace

void image_load(const Kernels& isa, Pool* pool, const void* photo, bool is_byte, int64_t n,
                int64_t height, int64_t width, int64_t rows, int64_t columns, const ImageIO& io,
                float* out) {
  const std::vector<int32_t> index_x = reflect_index(width, columns);
  const std::vector<int32_t> index_y = reflect_index(height, rows);
  pool->run(n * rows, [&](int64_t item, int) {
    const int64_t image = item / rows, y = item % rows;
    ImageRowArgs a{};
    a.photo = row_of(photo, is_byte, image * height + index_y[y], width);
    a.is_byte = is_byte;
    a.width = static_cast<int>(width);
    a.padded = static_cast<int>(columns);
    a.index = index_x.data();
    for (int c = 0; c < 3; ++c) a.plane[c] = out + ((image * 3 + c) * rows + y) * columns;
    a.low = io.input_low;
    a.high = io.input_high;
    a.bgr = io.bgr;
    isa.image_load(a);
  });
}

void image_store(const Kernels& isa, Pool* pool, const float* planes, const void* photo,
                 bool is_byte, int64_t n, int64_t height, int64_t width, int64_t rows,
                 int64_t columns, const ImageIO& io, void* out) {
  pool->run(n * height, [&](int64_t item, int) {
    const int64_t image = item / height, y = item % height;
    ImageRowArgs a{};
    a.photo = row_of(photo, is_byte, item, width);
    a.out = const_cast<char*>(row_of(out, is_byte, item, width));
    a.is_byte = is_byte;
    a.width = static_cast<int>(width);
    for (int c = 0; c < 3; ++c)
      a.plane[c] = const_cast<float*>(planes) + ((image * 3 + c) * rows + y) * columns;
    a.low = io.output_low;
    a.high = io.output_high;
    a.strength = io.strength;
    a.preserve_color = io.preserve_color;
    a.bgr = io.bgr;
    isa.image_store(a);
  });
}

}  // namespace fastgen
