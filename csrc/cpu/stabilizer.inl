// Kernels of the stabilizer. Included inside an instruction set's anonymous namespace. Integers
// throughout where pixels are made, so every instruction set gives the same bytes.

// Not the standard library's: its templates would be shared between instruction sets.
inline int smaller(int a, int b) { return a < b ? a : b; }
inline int held(int x, int low, int high) { return x < low ? low : x > high ? high : x; }
inline int magnitude(int x) { return x < 0 ? -x : x; }
// To the nearest, halves away from 0.
inline int rounded(float x) { return static_cast<int>(x < 0 ? x - 0.5f : x + 0.5f); }

// Mean of 2x2 pixels and their channels: a row of half the size.
void half_rgb(const uint8_t* a, const uint8_t* b, int width, uint8_t* out) {
  constexpr int STEP = 32;  // pixels of the result
  uint16_t sums[6 * STEP];
  for (int x = 0; x < width / 2; x += STEP) {
    const int count = smaller(STEP, width / 2 - x);
    for (int i = 0; i < 6 * count; ++i)
      sums[i] = static_cast<uint16_t>(a[6 * x + i] + b[6 * x + i]);
    for (int i = 0; i < count; ++i) {
      const uint16_t* s = sums + 6 * i;
      const int sum = s[0] + s[1] + s[2] + s[3] + s[4] + s[5];
      out[x + i] = static_cast<uint8_t>((sum * 5462 + 32768) >> 16);  // /12, rounded
    }
  }
  if (width % 2) {
    const uint8_t *p = a + 3 * (width - 1), *q = b + 3 * (width - 1);
    out[width / 2] = static_cast<uint8_t>((p[0] + p[1] + p[2] + q[0] + q[1] + q[2] + 3) / 6);
  }
}

// The same of one channel.
void half_gray(const uint8_t* a, const uint8_t* b, int width, uint8_t* out) {
  for (int x = 0; x < width / 2; ++x)
    out[x] = static_cast<uint8_t>((a[2 * x] + a[2 * x + 1] + b[2 * x] + b[2 * x + 1] + 2) >> 2);
  if (width % 2) out[width / 2] = static_cast<uint8_t>((a[width - 1] + b[width - 1] + 1) >> 1);
}

constexpr int kPatch = kFlowPatch, kPatchArea = kPatch * kPatch;

inline int patch_sad(const uint8_t* a, int64_t a_row, const uint8_t* b, int64_t b_row) {
  int sum = 0;
  for (int y = 0; y < kPatch; ++y)
    for (int x = 0; x < kPatch; ++x) sum += magnitude(a[y * a_row + x] - b[y * b_row + x]);
  return sum;
}

// Bilinear 8x8 samples at a position in 1/64 pixel, times 4 less the template (rounded).
inline void patch_difference(const FlowArgs& f, int px, int py, int16_t* d) {
  const int fx = px & 63, fy = py & 63;
  const uint8_t* from = f.before + (py >> 6) * f.row + (px >> 6);
  int16_t lines[kPatch + 1][kPatch];  // times 64
  for (int y = 0; y <= kPatch; ++y)
    for (int x = 0; x < kPatch; ++x)
      lines[y][x] =
          static_cast<int16_t>(from[y * f.row + x] * (64 - fx) + from[y * f.row + x + 1] * fx);
  for (int y = 0; y < kPatch; ++y)
    for (int x = 0; x < kPatch; ++x) {
      const int value = lines[y][x] * (64 - fy) + lines[y + 1][x] * fy;
      d[y * kPatch + x] = static_cast<int16_t>(((value + 512) >> 10) - 4 * f.now[y * f.row + x]);
    }
}

// Inverse search (Kroeger et al. 2016): the best of the candidates, then Gauss-Newton steps whose
// gradients are the template's own, so they are computed once.
void flow_search(const FlowArgs& f, FlowVector* result) {
  int best = 1 << 30, bx = 0, by = 0;
  for (int i = 0; i < f.candidates; ++i) {
    const int px = held(rounded(64 * f.candidate[i].x), 64 * f.left, 64 * f.right);
    const int py = held(rounded(64 * f.candidate[i].y), 64 * f.top, 64 * f.bottom);
    const uint8_t* at = f.before + ((py + 32) >> 6) * f.row + ((px + 32) >> 6);
    // The first ones are preferred: what is alike is not told apart by noise.
    const int sad = patch_sad(f.now, f.row, at, f.row) + kPatchArea / 4 * (i > 0);
    if (sad < best) best = sad, bx = px, by = py;
  }
  int gx[kPatchArea], gy[kPatchArea];
  int sx = 0, sy = 0, xx = 0, xy = 0, yy = 0;
  for (int y = 0; y < kPatch; ++y)
    for (int x = 0; x < kPatch; ++x) {
      const uint8_t* p = f.now + y * f.row + x;
      const int i = y * kPatch + x, h = p[1] - p[-1], v = p[f.row] - p[-f.row];
      gx[i] = h, gy[i] = v;
      sx += h, sy += v, xx += h * h, xy += h * v, yy += v * v;
    }
  // Gradients are doubled, their mean does not count: light that changes is no motion. What noise
  // alone would give is added, so that flat patches stay where they are.
  constexpr float kNoise = 2 * kPatchArea;
  const float hxx = static_cast<float>(xx) - static_cast<float>(sx) * sx / kPatchArea + kNoise;
  const float hxy = static_cast<float>(xy) - static_cast<float>(sx) * sy / kPatchArea;
  const float hyy = static_cast<float>(yy) - static_cast<float>(sy) * sy / kPatchArea + kNoise;
  const float scale = 1.0f / (hxx * hyy - hxy * hxy);
  int16_t d[kPatchArea];
  int px = bx, py = by, least = 1 << 30;
  for (int step = 0;; ++step) {
    patch_difference(f, px, py, d);
    int s = 0, dx = 0, dy = 0, sum = 0;
    for (int i = 0; i < kPatchArea; ++i) {
      const int v = d[i];
      s += magnitude(v), sum += v, dx += v * gx[i], dy += v * gy[i];
    }
    if (s >= least) break;
    least = s, bx = px, by = py;
    if (step == kFlowSteps) break;
    const float mx = dx - static_cast<float>(sum) * sx / kPatchArea;
    const float my = dy - static_cast<float>(sum) * sy / kPatchArea;
    // d is times 4, gradients times 2: the step in pixels is half of H^-1 b, here in 1/64.
    const float ux = 32 * scale * (hyy * mx - hxy * my), uy = 32 * scale * (hxx * my - hxy * mx);
    constexpr int kMost = 64 * kPatch / 2;
    const int ix = held(rounded(ux), -kMost, kMost), iy = held(rounded(uy), -kMost, kMost);
    if (magnitude(ix) + magnitude(iy) < 3) break;
    px = held(px - ix, 64 * f.left, 64 * f.right);
    py = held(py - iy, 64 * f.top, 64 * f.bottom);
  }
  result->x = static_cast<float>(bx) / 64;
  result->y = static_cast<float>(by) / 64;
  // The least eigenvalue of the gradients' matrix: what is weak in one direction is weak.
  const float trace = hxx + hyy, root = hxx - hyy;
  result->weight = 0.5f * (trace - __builtin_sqrtf(root * root + 4 * hxy * hxy)) + 1;
  result->error = static_cast<float>(least) / (4 * kPatchArea);
}

// |before(x + vector) - now| of one patch.
void flow_residual(const FlowArgs& f, FlowVector at, uint8_t* out, int64_t out_row) {
  int16_t d[kPatchArea];
  patch_difference(f, static_cast<int>(at.x * 64), static_cast<int>(at.y * 64), d);
  for (int y = 0; y < kPatch; ++y)
    for (int x = 0; x < kPatch; ++x)
      out[y * out_row + x] =
          static_cast<uint8_t>(smaller((magnitude(d[y * kPatch + x]) + 2) >> 2, 255));
}

// Cubic convolution (Keys 1981, a = -1/2) of a tile of 16x16 RGB pixels; `from` is its first pixel
// at the integer part of the vector, one row and pixel before and two behind are read.
void warp_tile(const uint8_t* from, int64_t row, const int16_t* cx, const int16_t* cy, uint8_t* out,
               int64_t out_row) {
  constexpr int N = 3 * kWarpTile;
  int16_t lines[kWarpTile + 3][N];  // times 64
  for (int y = 0; y < kWarpTile + 3; ++y) {
    const uint8_t* p = from + (y - 1) * row;
    for (int x = 0; x < N; ++x)
      lines[y][x] = static_cast<int16_t>(p[x - 3] * cx[0] + p[x] * cx[1] + p[x + 3] * cx[2] +
                                         p[x + 6] * cx[3]);
  }
  for (int y = 0; y < kWarpTile; ++y)
    for (int x = 0; x < N; ++x) {
      const int value = lines[y][x] * cy[0] + lines[y + 1][x] * cy[1] + lines[y + 2][x] * cy[2] +
                        lines[y + 3][x] * cy[3];
      out[y * out_row + x] = static_cast<uint8_t>(held((value + 2048) >> 12, 0, 255));
    }
}

// Weights 0..127 from residuals: `most` where their 3x3 sum is at most kQuiet, 0 from
// kQuiet + kSlope on. `rows` are three rows of residuals, readable at -1 and count.
void blend_weights(const uint8_t* const* rows, const uint8_t* most, int count, uint8_t* out) {
  for (int x = 0; x < count; ++x) {
    int sum = 0;
    for (int r = 0; r < 3; ++r) sum += rows[r][x - 1] + rows[r][x] + rows[r][x + 1];
    const int left = held(kQuiet + kSlope - sum, 0, kSlope);
    out[x] = static_cast<uint8_t>(left * most[x] / kSlope);
  }
}

// out = now + weight * (warped - now), towards `now` where that is no integer, so that a picture
// that stays is reached.
void blend_row(const uint8_t* now, const uint8_t* warped, const uint8_t* weight, int count,
               uint8_t* out) {
  for (int i = 0; i < count; ++i) {
    const int16_t d = static_cast<int16_t>(warped[i] - now[i]);
    const int16_t t = static_cast<int16_t>(d * weight[i]);
    out[i] = static_cast<uint8_t>(now[i] + ((t + ((t >> 15) & 127)) >> 7));
  }
}

// Adds the squares of `warped - now` where the weight is above `least`, and how many they are.
void add_differences(const uint8_t* now, const uint8_t* warped, const uint8_t* weight, int count,
                     int least, int64_t* squares, int64_t* values) {
  for (int first = 0; first < count; first += 4096) {  // an int holds the squares of a piece
    const int last = smaller(first + 4096, count);
    int sum = 0, found = 0;
    for (int i = first; i < last; ++i) {
      const int d = weight[i] > least ? warped[i] - now[i] : 0;
      sum += d * d;
      found += weight[i] > least;
    }
    *squares += sum;
    *values += found;
  }
}

// out = x + gain/128 * (4 x - its neighbours), held to 0..255; the first and last pixel as they
// are.
void sharpen_row(const uint8_t* above, const uint8_t* x, const uint8_t* below, int count, int gain,
                 uint8_t* out) {
  const auto k = static_cast<int16_t>(gain);
  std::memcpy(out, x, 3);
  for (int i = 3; i < count - 3; ++i) {
    const auto lap = static_cast<int16_t>(4 * x[i] - x[i - 3] - x[i + 3] - above[i] - below[i]);
    const auto value = static_cast<int16_t>(x[i] + ((static_cast<int16_t>(lap * k) + 64) >> 7));
    out[i] = static_cast<uint8_t>(held(value, 0, 255));
  }
  if (count > 3) std::memcpy(out + count - 3, x + count - 3, 3);
}

// Sum of the squared Laplacian of a row's inner pixels.
double laplacian_row(const uint8_t* above, const uint8_t* x, const uint8_t* below, int count) {
  double total = 0;
  for (int first = 3; first < count - 3; first += 1024) {  // an int holds the squares of a piece
    const int last = smaller(first + 1024, count - 3);
    int sum = 0;
    for (int i = first; i < last; ++i) {
      const auto lap = static_cast<int16_t>(4 * x[i] - x[i - 3] - x[i + 3] - above[i] - below[i]);
      sum += lap * lap;
    }
    total += sum;
  }
  return total;
}

static constexpr StabilizerKernels stabilizer_table = {
    half_rgb,      half_gray, flow_search,     flow_residual, warp_tile,
    blend_weights, blend_row, add_differences, sharpen_row,   laplacian_row};
