// Winograd transforms (Lavin and Gray 2016). The points fix the input transform, whatever the
// kernel size r; n points give m = n + 1 - r values. Included inside an instruction set's anonymous
// namespace.
//
// Six points are 0, a, -a, b, -b, infinity, four are 0, 1, -1, infinity. With the usual a = 1, b =
// 2 rounding costs twice as much as with a = 2/3, b = 3/2: products of bfloat16 keep 36 dB of a 3x3
// convolution with 4x4 outputs, these 42 dB; 2x4 outputs (four points down) keep 46 dB. a*b = 1
// also saves a multiplication.
#pragma once
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

// A pointer that the compiler knows nothing about: it would work out dozens of addresses ahead, and
// spill them.
template <class T>
inline T* opaque(T* p) {
  __asm__("" : "+r"(p));
  return p;
}

// Where NY rows of a window begin, of one channel block. Rows of zeros are one zero, again and
// again.
template <int NY, class S>
struct WinogradRows {
  const S* row[NY];
  int64_t pixel[NY];
  bool even;  // they are neighbours

  WinogradRows(const WinogradInput& a, int b, int y, int lane) {
    alignas(64) static const S zeros[VL] = {};
    const S* block = static_cast<const S*>(a.src.data) + b * a.src.block + lane;
    even = true;
    for (int i = 0; i < NY; ++i) {
      const int at = a.rows[y + i];
      row[i] = at < 0 ? zeros : block + at * a.src.row;
      pixel[i] = at < 0 ? 0 : a.src.pixel;
      even &= at >= 0 && at == a.rows[y] + i;
    }
  }
};

// Columns first: neighbouring tiles share some of them. S: the panel's type, or the tensor's.
template <int NY, class T, class S, bool DIRECT>
void winograd_input_of(const WinogradInput& a) {
  constexpr int NX = 6, MOST = 8, COLUMNS = MOST * 5 + 1;  // at most 5 columns of outputs a tile
  alignas(64) float half[NY][COLUMNS + NX - 5][VL];
  // Copies, as stores could change what `a` refers to.
  const int64_t element = a.out_element, m_x = a.m_x, src_row = a.src.row;
  for (int b = 0; b < a.blocks; ++b)
    for (int ty = 0; ty < a.tiles_y; ++ty)
      for (int tx = 0; tx < a.tiles_x; tx += MOST)
        for (int j = 0; j < VPB; ++j) {
          const int tiles = a.tiles_x - tx < MOST ? a.tiles_x - tx : MOST;
          const int columns = tiles * a.m_x + NX - a.m_x;
          const auto column = [&](int x, auto at) {
            vf line[NY], y[NY];
#pragma GCC unroll 6
            for (int i = 0; i < NY; ++i) line[i] = at(i);
            winograd_line(line, y);
#pragma GCC unroll 6
            for (int i = 0; i < NY; ++i) store(half[i][x], y[i]);
          };
          if constexpr (DIRECT) {
            const WinogradRows<NY, S> rows(a, b, ty * a.m_y, j * VL);
            const int32_t* cols = a.cols + tx * a.m_x;
            for (int x = 0; x < columns; ++x) {
              const int64_t from = cols[x];
              if (from < 0) {
                for (int i = 0; i < NY; ++i) store(half[i][x], vf{});
              } else if (rows.even) {
                const S* in = rows.row[0] + from * a.src.pixel;
                column(x, [&](int i) { return load_as(in + i * src_row); });
              } else {
                column(x, [&](int i) { return load_as(rows.row[i] + from * rows.pixel[i]); });
              }
            }
          } else {
            const float* in = a.panel + b * a.panel_block + ty * a.m_y * a.panel_row +
                              tx * a.m_x * kBlock + j * VL;
            for (int x = 0; x < columns; ++x)
              column(x, [&](int i) { return load(in + i * a.panel_row + x * kBlock); });
          }
          const int64_t tile = (int64_t{b} * a.tiles_y + ty) * a.tiles_x + tx;
          T* out = static_cast<T*>(a.out) + tile * kBlock + j * VL;
          for (int t = 0; t < tiles; ++t, out += kBlock) {
            T* to = out;
            for (int i = 0; i < NY; ++i) {
              const float* from = half[i][t * m_x];
              vf line[NX], y[NX];
#pragma GCC unroll 6
              for (int x = 0; x < NX; ++x) line[x] = load(from + x * VL);
              winograd_line(line, y);
#pragma GCC unroll 6
              for (int x = 0; x < NX; ++x) store_factor(to + x * element, y[x]);
              to = opaque(to + NX * element);
            }
          }
        }
}

template <class S, bool DIRECT>
void winograd_input_as(const WinogradInput& a) {
  if (!a.bf16) return winograd_input_of<6, float, S, DIRECT>(a);
  if (a.n_y == 1) return winograd_input_of<1, bf16, S, DIRECT>(a);
  a.n_y == 4 ? winograd_input_of<4, bf16, S, DIRECT>(a) : winograd_input_of<6, bf16, S, DIRECT>(a);
}

void winograd_input(const WinogradInput& a) {
  if (!a.rows) return winograd_input_as<float, false>(a);
  a.dtype == kBFloat16 ? winograd_input_as<bf16, true>(a) : winograd_input_as<float, true>(a);
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
  const int64_t row = int64_t{a.tiles} * MX * lanes, element = a.in_element;
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
        for (int i = 0; i < NY; ++i) line[i] = load(in + i * 6 * element);
        in = opaque(in + element);
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

// One row of a tile straight to the output: residual, activation, type. Most rows are FULL, without
// a residual and with all their columns inside.
template <bool FULL, bool WHOLE, class T>
inline void winograd_row(const FinishArgs& f, const vf (&y)[4], vf bias, vf slope, vi some, int n,
                         int columns, T* out, const T* res) {
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    if (!FULL && x >= columns) return;
    vf v = y[x] + bias;
    if (!FULL && res) v += load_some<WHOLE>(res + x * f.res_pixel, n);
    const vf low = reinterpret_cast<vf>(reinterpret_cast<vi>(v * slope) & some);
    store_some<WHOLE>(out + x * f.out_pixel, larger(low, v), n);
  }
}

template <int NY, int MY, class T, bool WHOLE>
void winograd_finish_of(const WinogradOutput& a) {
  constexpr int MX = 4;
  const FinishArgs& f = *a.finish;
  // What is behind the last channel of a block is written, too: a reader may multiply it by zero.
  const int lanes = a.nb * kBlock, used = f.exact ? f.channels : lanes;
  // The activation is the larger of x and slope*x, or of x and zero.
  const vf slope = splat(f.act == kActLeaky ? f.slope : 1.0f);
  const vi some = vi{} + (f.act == kActRelu ? 0 : -1);
  const int64_t element = a.in_element;
  T* rows[MY];
  const T* residuals[MY];
  bool plain = true;
  for (int i = 0; i < MY; ++i) {
    rows[i] = static_cast<T*>(a.rows[i]);
    residuals[i] = static_cast<const T*>(a.residuals[i]);
    plain &= rows[i] && !residuals[i];
  }
  for (int t = 0; t < a.tiles; ++t) {
    const int columns = f.pixels - t * MX < MX ? f.pixels - t * MX : MX;
    const bool full = plain && columns == MX;
    for (int j = 0; j < used; j += VL) {
      const float* in = a.in + t * lanes + j;
      const int64_t to = j / kBlock * f.out_block + j % kBlock + t * MX * f.out_pixel;
      const int64_t from = j / kBlock * f.res_block + j % kBlock + t * MX * f.res_pixel;
      const int n = f.channels - j < VL ? f.channels - j : VL;  // not if WHOLE
      const vf bias = load(a.bias + j);
      vf half[MY][6];
#pragma GCC unroll 6
      for (int x = 0; x < 6; ++x) {
        vf line[NY], y[MY];
#pragma GCC unroll 6
        for (int i = 0; i < NY; ++i) line[i] = load(in + i * 6 * element);
        in = opaque(in + element);
        winograd_values(line, y);
#pragma GCC unroll 6
        for (int i = 0; i < MY; ++i) half[i][x] = y[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < MY; ++i) {
        vf y[MX];
        winograd_values(half[i], y);
        if (full) {
          winograd_row<true, WHOLE>(f, y, bias, slope, some, n, MX, rows[i] + to,
                                    static_cast<const T*>(nullptr));
        } else if (rows[i]) {
          winograd_row<false, WHOLE>(f, y, bias, slope, some, n, columns, rows[i] + to,
                                     residuals[i] ? residuals[i] + from : nullptr);
        }
      }
    }
  }
}

template <class T, bool WHOLE>
void winograd_finish(const WinogradOutput& a) {
  a.m_y == 2 ? winograd_finish_of<4, 2, T, WHOLE>(a) : winograd_finish_of<6, 4, T, WHOLE>(a);
}

void winograd_output(const WinogradOutput& a) {
  if (a.finish) {
    const bool whole = !a.finish->exact || a.finish->channels % VL == 0;
    if (a.finish->dtype == kBFloat16)
      return whole ? winograd_finish<bf16, true>(a) : winograd_finish<bf16, false>(a);
    return whole ? winograd_finish<float, true>(a) : winograd_finish<float, false>(a);
  }
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
        const vu low = words(narrow(y[i], static_cast<const bf16*>(nullptr)));
        const vu high = words(narrow(other[i], static_cast<const bf16*>(nullptr)));
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
