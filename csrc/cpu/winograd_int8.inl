// Winograd F(2x2,3x3) of bytes: 16 products in place of 36. The transforms only add, in 16 bits, so
// they are exact; then each of the 16 points is scaled back to a byte. Included inside an
// instruction set's anonymous namespace.
#include "half.inl"

typedef int16_t vw __attribute__((vector_size(VL * 4)));  // 2*VL lanes
typedef int16_t vwu __attribute__((vector_size(VL * 4), aligned(2), may_alias));
typedef uint8_t vb2 __attribute__((vector_size(VL * 2)));
typedef uint8_t vb2u __attribute__((vector_size(VL * 2), aligned(1), may_alias));
typedef int32_t vw2 __attribute__((vector_size(VL * 8)));

inline vw load_wide(const uint8_t* p) {
  return __builtin_convertvector(*reinterpret_cast<const vb2u*>(p), vw);
}

// x*scale/2^15 rounded, held to -128..127, plus 128.
inline void store_scaled(uint8_t* p, vw x, int16_t scale) {
#if defined(__AVX512BW__)
  const __m512i y = _mm512_mulhrs_epi16(reinterpret_cast<__m512i>(x), _mm512_set1_epi16(scale));
  const vb2 bytes = reinterpret_cast<vb2>(_mm512_maskz_cvtsepi16_epi8(0xffffffff, y));
  *reinterpret_cast<vb2u*>(p) = bytes ^ 0x80;
#else
  vw2 y = (__builtin_convertvector(x, vw2) * scale + 0x4000) >> 15;
  y = y > -128 ? y : vw2{} - 128;
  y = y < 127 ? y : vw2{} + 127;
  *reinterpret_cast<vb2u*>(p) = __builtin_convertvector(y + 128, vb2);
#endif
}

// Points 0, 1, -1, infinity, as in winograd.inl.
inline void winograd2_line(const vw (&x)[4], vw (&y)[4]) {
  y[0] = x[2] - x[0];
  y[1] = x[1] + x[2];
  y[2] = x[2] - x[1];
  y[3] = x[3] - x[1];
}

void winograd2_input(const Winograd2Input& a) {
  constexpr int LANES = 2 * VL;
  for (int c = 0; c < a.channels; c += LANES) {
    const int c0 = c + LANES <= a.channels ? c : a.channels - LANES;  // again, not too far
    const vw centre = *reinterpret_cast<const vwu*>(a.centre + c0);
    for (int ty = 0; ty < a.tiles_y; ++ty) {
      const uint8_t* row = a.panel + 2 * ty * a.panel_row + c0;
      vw down[4][4];  // columns; two of them belong to the next tile, too
      const auto column = [&](int x, vw(&to)[4]) {
        vw line[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) line[i] = load_wide(row + i * a.panel_row + x * a.channels);
        winograd2_line(line, to);
      };
      column(0, down[0]);
      column(1, down[1]);
      uint8_t* out = a.out + int64_t{ty} * a.tiles_x * a.channels + c0;
      for (int tx = 0; tx < a.tiles_x; ++tx, out += a.channels) {
        column(2 * tx + 2, down[2]);
        column(2 * tx + 3, down[3]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          vw line[4] = {down[0][i], down[1][i], down[2][i], down[3][i]}, y[4];
          winograd2_line(line, y);
          if (i == 1) y[1] -= centre;
#pragma GCC unroll 4
          for (int x = 0; x < 4; ++x)
            store_scaled(out + (i * 4 + x) * a.out_element, y[x], a.scale[i * 4 + x]);
          down[0][i] = down[2][i];
          down[1][i] = down[3][i];
        }
      }
    }
  }
}

// [16][tile][nb*16], one row of tiles, to two rows of outputs.
void winograd2_output(const WinogradOutput& a) {
  const int lanes = a.nb * kBlock;
  const int64_t row = int64_t{a.tiles} * 2 * lanes;
  for (int t = 0; t < a.tiles; ++t)
    for (int j = 0; j < lanes; j += VL) {
      const float* in = a.in + t * lanes + j;
      float* out = a.out + t * 2 * lanes + j;
      vf first[4], second[4];
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) {
        const vf one = load(in + (4 + x) * a.in_element), two = load(in + (8 + x) * a.in_element);
        first[x] = load(in + x * a.in_element) + one + two;
        second[x] = one - two + load(in + (12 + x) * a.in_element);
      }
      store(out, first[0] + first[1] + first[2]);
      store(out + lanes, first[1] - first[2] + first[3]);
      store(out + row, second[0] + second[1] + second[2]);
      store(out + row + lanes, second[1] - second[2] + second[3]);
    }
}
