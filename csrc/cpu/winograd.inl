// Winograd transforms (Lavin and Gray 2016). The points fix the input transform, whatever the
// kernel size r; n points give m = n + 1 - r values. Included inside an instruction set's anonymous
// namespace.
//
// Six points are 0, a, -a, b, -b, infinity, four are 0, 1, -1, infinity. With the usual a = 1, b =
// 2 rounding costs twice as much as with a = 2/3, b = 3/2: products of bfloat16 keep 36 dB of a 3x3
// convolution with 4x4 outputs, these 42 dB; 2x4 outputs (four points down) keep 46 dB. a*b = 1
// also saves a multiplication.
#include "half.inl"

constexpr float kPointA = 2.0f / 3.0f, kPointB = 1.5f;

// y = B^T x: every row has the coefficients of the product of (p - other points).
inline void winograd_line(const vf (&x)[1], vf (&y)[1]) { y[0] = x[0]; }

inline void winograd_line(const vf (&x)[4], vf (&y)[4]) {
  y[0] = x[2] - x[0];
  y[1] = x[1] + x[2];
  y[2] = x[2] - x[1];
  y[3] = x[3] - x[1];
}

inline void winograd_line(const vf (&x)[6], vf (&y)[6]) {
  constexpr float a = kPointA, b = kPointB, both = a * a + b * b;
  const vf even_b = x[4] - x[2] * (b * b), odd_b = x[3] - x[1] * (b * b);
  const vf even_a = x[4] - x[2] * (a * a), odd_a = x[3] - x[1] * (a * a);
  y[0] = x[0] + x[4] - x[2] * both;
  y[1] = even_b + odd_b * a;
  y[2] = even_b - odd_b * a;
  y[3] = even_a + odd_a * b;
  y[4] = even_a - odd_a * b;
  y[5] = x[1] + x[5] - x[3] * both;
}

// Columns first: neighbouring tiles share some of them.
template <int NY, class T>
void winograd_input_of(const WinogradInput& a) {
  constexpr int NX = 6, MOST = 8, COLUMNS = MOST * 5 + 1;  // at most 5 columns of outputs a tile
  alignas(64) float half[NY][COLUMNS + NX - 5][VL];
  for (int b = 0; b < a.blocks; ++b)
    for (int ty = 0; ty < a.tiles_y; ++ty)
      for (int tx = 0; tx < a.tiles_x; tx += MOST)
        for (int j = 0; j < VPB; ++j) {
          const int tiles = a.tiles_x - tx < MOST ? a.tiles_x - tx : MOST;
          const float* in =
              a.panel + b * a.panel_block + ty * a.m_y * a.panel_row + tx * a.m_x * kBlock + j * VL;
          for (int x = 0; x < tiles * a.m_x + NX - a.m_x; ++x) {
            vf line[NY], y[NY];
#pragma GCC unroll 6
            for (int i = 0; i < NY; ++i) line[i] = load(in + i * a.panel_row + x * kBlock);
            winograd_line(line, y);
#pragma GCC unroll 6
            for (int i = 0; i < NY; ++i) store(half[i][x], y[i]);
          }
          const int64_t tile = (int64_t{b} * a.tiles_y + ty) * a.tiles_x + tx;
          T* out = static_cast<T*>(a.out) + tile * kBlock + j * VL;
          for (int t = 0; t < tiles; ++t)
            for (int i = 0; i < NY; ++i) {
              vf line[NX], y[NX];
#pragma GCC unroll 6
              for (int x = 0; x < NX; ++x) line[x] = load(half[i][t * a.m_x + x]);
              winograd_line(line, y);
#pragma GCC unroll 6
              for (int x = 0; x < NX; ++x)
                store_factor(out + (i * NX + x) * a.out_element + t * kBlock, y[x]);
            }
        }
}

void winograd_input(const WinogradInput& a) {
  if (a.bf16 && a.n_y == 1) return winograd_input_of<1, bf16>(a);
  if (a.bf16) return a.n_y == 4 ? winograd_input_of<4, bf16>(a) : winograd_input_of<6, bf16>(a);
  winograd_input_of<6, float>(a);
}

// y = A^T x: y[k] = sum of point^k * x, infinity in the last one.
inline void winograd_values(const vf (&x)[1], vf (&y)[1]) { y[0] = x[0]; }

template <int M>
inline void winograd_values(const vf (&x)[4], vf (&y)[M]) {
  y[0] = x[0] + x[1] + x[2];
  y[1] = x[1] - x[2];
  if constexpr (M > 2) y[2] = x[1] + x[2];
  y[M - 1] += x[3];
}

template <int M>
inline void winograd_values(const vf (&x)[6], vf (&y)[M]) {
  constexpr float a = kPointA, b = kPointB;
  const vf even_a = x[1] + x[2], odd_a = x[1] - x[2];
  const vf even_b = x[3] + x[4], odd_b = x[3] - x[4];
  y[0] = x[0] + even_a + even_b;
  y[1] = odd_a * a + odd_b * b;
  if constexpr (M > 2) y[2] = even_a * (a * a) + even_b * (b * b);
  if constexpr (M > 3) y[3] = odd_a * (a * a * a) + odd_b * (b * b * b);
  if constexpr (M > 4) y[4] = even_a * (a * a * a * a) + even_b * (b * b * b * b);
  y[M - 1] += x[5];
}

template <int NY, int MY, int MX>
void winograd_output_of(const WinogradOutput& a) {
  const int lanes = a.nb * kBlock;
  const int64_t row = int64_t{a.tiles} * MX * lanes;
  for (int t = 0; t < a.tiles; ++t)
    for (int j = 0; j < lanes; j += VL) {
      const float* in = a.in + t * lanes + j;
      float* out = a.out + t * MX * lanes + j;
      const vf bias = load(a.bias + j);
      vf half[MY][6];
#pragma GCC unroll 6
      for (int x = 0; x < 6; ++x) {
        vf line[NY], y[MY];
#pragma GCC unroll 6
        for (int i = 0; i < NY; ++i) line[i] = load(in + (i * 6 + x) * a.in_element);
        winograd_values(line, y);
#pragma GCC unroll 6
        for (int i = 0; i < MY; ++i) half[i][x] = y[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < MY; ++i) {
        vf y[MX];
        winograd_values(half[i], y);
#pragma GCC unroll 6
        for (int x = 0; x < MX; ++x) store(out + i * row + x * lanes, y[x] + bias);
      }
    }
}

void winograd_output(const WinogradOutput& a) {
  switch (a.m_x) {
    case 2:
      return a.m_y == 1 ? winograd_output_of<1, 1, 2>(a) : winograd_output_of<6, 2, 2>(a);
    case 3:
      return winograd_output_of<6, 3, 3>(a);
    case 4:
      return a.m_y == 2 ? winograd_output_of<4, 2, 4>(a) : winograd_output_of<6, 4, 4>(a);
    default:
      return a.m_y == 3 ? winograd_output_of<4, 3, 5>(a) : winograd_output_of<6, 5, 5>(a);
  }
}

// Along the rows only.
template <int FORMAT>
void lines_input_of(const LinesInput& a) {
  for (int x = 0; x < a.count; x += VL) {
    vf line[6], y[6], other[6] = {};
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) line[i] = load(a.in[i] + x);
    winograd_line(line, y);
    if (FORMAT == kLinesPairs && a.other[0]) {
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) line[i] = load(a.other[i] + x);
      winograd_line(line, other);
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      const int64_t at = i * a.out_row + x;
      if (FORMAT == kLinesFloat) store(static_cast<float*>(a.out) + at, y[i]);
      if (FORMAT == kLinesBF16) store_as(static_cast<bf16*>(a.out) + at, y[i]);
      if (FORMAT == kLinesPairs) {
        const vu low = __builtin_convertvector(narrow(y[i], static_cast<const bf16*>(nullptr)), vu);
        const vu high =
            __builtin_convertvector(narrow(other[i], static_cast<const bf16*>(nullptr)), vu);
        store(static_cast<float*>(a.out) + at, reinterpret_cast<vf>(low | high << 16));
      }
    }
  }
}

void lines_input(const LinesInput& a) {
  if (a.format == kLinesBF16) return lines_input_of<kLinesBF16>(a);
  a.format == kLinesPairs ? lines_input_of<kLinesPairs>(a) : lines_input_of<kLinesFloat>(a);
}

void lines_output(const LinesOutput& a) {
  for (int x = 0; x < a.count; x += VL) {
    vf line[6], y[4];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) line[i] = load(a.in + i * a.in_row + x);
    winograd_values(line, y);
    const vf bias = a.period ? load(a.bias + x % a.period) : splat(a.bias[0]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store(a.out + i * a.out_row + x, y[i] + bias);
  }
}
