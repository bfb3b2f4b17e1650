// Rows of 4:2:0 YCbCr to RGB bytes and back. Included inside an instruction set's anonymous
// namespace. Integers with 16 bits of fraction, so that a byte is right to its rounding and every
// instruction set gives the same. Planes are plain loops that the compiler turns into vectors; it
// finds no good way to take every third byte, so that has shuffles.
//
// Chroma samples lie on the even columns and between two rows, as H.264 and MPEG-2 have them.

inline uint8_t color_byte(int32_t x) {
  x = (x + (1 << 15)) >> 16;
  return static_cast<uint8_t>(x < 0 ? 0 : x > 255 ? 255 : x);
}

#if defined(__SSSE3__)

// Where the bytes of 16 pixels come from: together[i][c] builds the i-th 16 bytes of RGBRGB... from
// channel c, apart[i][c] takes channel c from them. -1 is a zero.
struct ColorShuffles {
  alignas(16) int8_t together[3][3][16];
  alignas(16) int8_t apart[3][3][16];

  constexpr ColorShuffles() : together(), apart() {
    for (int i = 0; i < 3; ++i)
      for (int c = 0; c < 3; ++c)
        for (int j = 0; j < 16; ++j) {
          const int byte = 16 * i + j, from = 3 * j + c;
          together[i][c][j] = static_cast<int8_t>(byte % 3 == c ? byte / 3 : -1);
          apart[i][c][j] = static_cast<int8_t>(from / 16 == i ? from % 16 : -1);
        }
  }
};

inline __m128i color_shuffle(const __m128i* x, const int8_t (&how)[3][3][16], int i, bool by_row) {
  __m128i sum = _mm_setzero_si128();
  for (int k = 0; k < 3; ++k) {
    const int8_t* mask = by_row ? how[i][k] : how[k][i];
    sum = _mm_or_si128(
        sum, _mm_shuffle_epi8(x[k], _mm_load_si128(reinterpret_cast<const __m128i*>(mask))));
  }
  return sum;
}

#endif

// Three planes of bytes, one behind the other, to pixels.
inline void together(const uint8_t* __restrict planes, int width, uint8_t* __restrict rgb) {
  int x = 0;
#if defined(__SSSE3__)
  static constexpr ColorShuffles kShuffles;
  for (; x + 16 <= width; x += 16) {
    __m128i in[3];
    for (int c = 0; c < 3; ++c)
      in[c] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(planes + c * width + x));
    for (int i = 0; i < 3; ++i)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rgb + 3 * x + 16 * i),
                       color_shuffle(in, kShuffles.together, i, true));
  }
#endif
  for (; x < width; ++x)
    for (int c = 0; c < 3; ++c) rgb[3 * x + c] = planes[c * width + x];
}

// Pixels to three planes.
inline void apart(const uint8_t* __restrict rgb, int width, uint8_t* __restrict planes) {
  int x = 0;
#if defined(__SSSE3__)
  static constexpr ColorShuffles kShuffles;
  for (; x + 16 <= width; x += 16) {
    __m128i in[3];
    for (int i = 0; i < 3; ++i)
      in[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rgb + 3 * x + 16 * i));
    for (int c = 0; c < 3; ++c)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(planes + c * width + x),
                       color_shuffle(in, kShuffles.apart, c, false));
  }
#endif
  for (; x < width; ++x)
    for (int c = 0; c < 3; ++c) planes[c * width + x] = rgb[3 * x + c];
}

// Four times the chroma of a row, from the nearer (3/4) and the farther row of samples, then eight
// times at every column, around zero.
inline void chroma_up(const uint8_t* __restrict near, const uint8_t* __restrict far, int half,
                      int16_t* __restrict samples, int16_t* __restrict columns) {
  for (int k = 0; k < half; ++k) samples[k] = static_cast<int16_t>(3 * near[k] + far[k]);
  samples[half] = samples[half - 1];
  for (int k = 0; k < half; ++k) {
    columns[2 * k] = static_cast<int16_t>(2 * samples[k] - 1024);
    columns[2 * k + 1] = static_cast<int16_t>(samples[k] + samples[k + 1] - 1024);
  }
}

// A row of luma and eight times chroma to planes.
inline void planes_row(const YuvToRgbArgs& a, const uint8_t* __restrict y,
                       const int16_t* __restrict u, const int16_t* __restrict v,
                       uint8_t* __restrict red, uint8_t* __restrict green,
                       uint8_t* __restrict blue) {
  const int32_t low = a.low, gain = a.gain, rv = a.rv, gu = a.gu, gv = a.gv, bu = a.bu;
  const int width = a.width;
  for (int x = 0; x < width; ++x) {
    const int32_t luma = (y[x] - low) * gain;
    red[x] = color_byte(luma + rv * v[x]);
    green[x] = color_byte(luma - gu * u[x] - gv * v[x]);
    blue[x] = color_byte(luma + bu * u[x]);
  }
}

void yuv_to_rgb(const YuvToRgbArgs& a) {
  const int width = a.width, half = width / 2;
  int16_t* u = a.line + half + 1;
  int16_t* v = u + width;
  chroma_up(a.u[0], a.u[1], half, a.line, u);
  chroma_up(a.v[0], a.v[1], half, a.line, v);
  planes_row(a, a.y, u, v, a.bytes, a.bytes + width, a.bytes + 2 * width);
  together(a.bytes, width, a.rgb);
}

// The luma of a row of planes.
inline void luma_row(const RgbToYuvArgs& a, const uint8_t* __restrict planes,
                     uint8_t* __restrict y) {
  const int32_t low = a.low << 16, yr = a.yr, yg = a.yg, yb = a.yb;
  const int width = a.width;
  for (int x = 0; x < width; ++x)
    y[x] = color_byte(low + yr * planes[x] + yg * planes[width + x] + yb * planes[2 * width + x]);
}

// One plane's sums of two rows, with the first column repeated on the left.
inline void sum_rows(const uint8_t* __restrict top, const uint8_t* __restrict below, int width,
                     int16_t* __restrict sums) {
  for (int x = 0; x < width; ++x) sums[x + 1] = static_cast<int16_t>(top[x] + below[x]);
  sums[0] = sums[1];
}

void rgb_to_yuv(const RgbToYuvArgs& a) {
  const int width = a.width, half = width / 2;
  uint8_t* top = a.bytes;
  uint8_t* below = top + 3 * width;
  apart(a.rgb[0], width, top);
  apart(a.rgb[1], width, below);
  luma_row(a, top, a.y[0]);
  luma_row(a, below, a.y[1]);
  for (int c = 0; c < 3; ++c)
    sum_rows(top + c * width, below + c * width, width, a.line + c * (width + 1));
  const int16_t* __restrict red = a.line;
  const int16_t* __restrict green = red + width + 1;
  const int16_t* __restrict blue = green + width + 1;
  uint8_t* __restrict u = a.u;
  uint8_t* __restrict v = a.v;
  const int32_t centre = 128 << 16, ur = a.ur, ug = a.ug, ub = a.ub, vr = a.vr, vg = a.vg,
                vb = a.vb;
  for (int k = 0; k < half; ++k) {  // eight times the mean: one, two and one columns
    const int32_t r = red[2 * k] + 2 * red[2 * k + 1] + red[2 * k + 2];
    const int32_t g = green[2 * k] + 2 * green[2 * k + 1] + green[2 * k + 2];
    const int32_t b = blue[2 * k] + 2 * blue[2 * k + 1] + blue[2 * k + 2];
    u[k] = color_byte(centre + ur * r + ug * g + ub * b);
    v[k] = color_byte(centre + vr * r + vg * g + vb * b);
  }
}
