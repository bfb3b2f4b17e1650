// Winograd transforms (Lavin and Gray 2016) of six points 0, 1, -1, 2, -2, infinity. The points fix
// the input transform, whatever the kernel size r; the output transform gives m = 7 - r values.
// Included inside an instruction set's anonymous namespace.
#include "vec.inl"

// y = B^T x for one line of six.
inline void winograd_line(const vf (&x)[6], vf (&y)[6]) {
  const vf a = x[4] - x[2] * 4.0f, b = x[3] - x[1] * 4.0f;
  const vf c = x[4] - x[2], d = (x[3] - x[1]) * 2.0f;
  y[0] = x[0] * 4.0f - x[2] * 5.0f + x[4];
  y[1] = a + b;
  y[2] = a - b;
  y[3] = c + d;
  y[4] = c - d;
  y[5] = x[1] * 4.0f - x[3] * 5.0f + x[5];
}

void winograd_input(const WinogradInput& a) {
  const int tiles = a.tiles_y * a.tiles_x;
  for (int b = 0; b < a.blocks; ++b)
    for (int ty = 0; ty < a.tiles_y; ++ty)
      for (int tx = 0; tx < a.tiles_x; ++tx)
        for (int j = 0; j < VPB; ++j) {
          const float* in =
              a.panel + b * a.panel_block + ty * a.m * a.panel_row + tx * a.m * kBlock + j * VL;
          float* out = a.out + (int64_t{b} * tiles + ty * a.tiles_x + tx) * kBlock + j * VL;
          vf half[6][6];
#pragma GCC unroll 6
          for (int x = 0; x < 6; ++x) {
            vf line[6], y[6];
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i) line[i] = load(in + i * a.panel_row + x * kBlock);
            winograd_line(line, y);
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i) half[i][x] = y[i];
          }
#pragma GCC unroll 6
          for (int i = 0; i < 6; ++i) {
            vf y[6];
            winograd_line(half[i], y);
#pragma GCC unroll 6
            for (int x = 0; x < 6; ++x) store(out + (i * 6 + x) * a.out_element, y[x]);
          }
        }
}

// y = A^T x: y[k] = sum of point^k * x, infinity in the last one.
template <int M>
inline void winograd_values(const vf (&x)[6], vf (&y)[M]) {
  const vf a = x[1] + x[2], b = x[1] - x[2], c = x[3] + x[4], d = x[3] - x[4];
  y[0] = x[0] + a + c;
  y[1] = b + d * 2.0f;
  if constexpr (M > 2) y[2] = a + c * 4.0f;
  if constexpr (M > 3) y[3] = b + d * 8.0f;
  if constexpr (M > 4) y[4] = a + c * 16.0f;
  y[M - 1] += x[5];
}

template <int M>
void winograd_output_of(const WinogradOutput& a) {
  const int lanes = a.nb * kBlock;
  const int64_t row = int64_t{a.tiles} * M * lanes;
  for (int t = 0; t < a.tiles; ++t)
    for (int j = 0; j < lanes; j += VL) {
      const float* in = a.in + t * lanes + j;
      float* out = a.out + t * M * lanes + j;
      const vf bias = load(a.bias + j);
      vf half[M][6];
#pragma GCC unroll 6
      for (int x = 0; x < 6; ++x) {
        vf line[6], y[M];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) line[i] = load(in + (i * 6 + x) * a.in_element);
        winograd_values<M>(line, y);
#pragma GCC unroll 6
        for (int i = 0; i < M; ++i) half[i][x] = y[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < M; ++i) {
        vf y[M];
        winograd_values<M>(half[i], y);
#pragma GCC unroll 6
        for (int x = 0; x < M; ++x) store(out + i * row + x * lanes, y[x] + bias);
      }
    }
}

void winograd_output(const WinogradOutput& a) {
  switch (a.m) {
    case 2:
      return winograd_output_of<2>(a);
    case 3:
      return winograd_output_of<3>(a);
    case 4:
      return winograd_output_of<4>(a);
    default:
      return winograd_output_of<5>(a);
  }
}
