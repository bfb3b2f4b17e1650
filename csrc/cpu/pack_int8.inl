// Loading a window into a panel of bytes: a row at a time as floats, by the functions of pack.inl,
// then quantised. Included inside an instruction set's anonymous namespace.
#include "pack.inl"

typedef uint8_t vb __attribute__((vector_size(VL)));
typedef uint8_t vbu __attribute__((vector_size(VL), aligned(1), may_alias));

// 128 + x, rounded to nearest (ties to even) and held to 0..255; NaN becomes 0.
inline void store_bytes(uint8_t* p, vf x) {
#if defined(__AVX512F__)  // masks of all lanes: as in half.inl
  const __m512i whole = _mm512_maskz_cvtps_epi32(0xffff, reinterpret_cast<__m512>(x));
  const vb bytes = reinterpret_cast<vb>(_mm512_maskz_cvtsepi32_epi8(0xffff, whole));
  *reinterpret_cast<vbu*>(p) = bytes ^ 0x80;
#else
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = x > -128.0f ? x : splat(-128.0f);
  x = x < 127.0f ? x : splat(127.0f);
  vf biased = x + magic;
  __asm__("" : "+m"(biased));  // as in vexp
  const vi whole = reinterpret_cast<vi>(biased) - reinterpret_cast<vi>(magic) + 128;
  *reinterpret_cast<vbu*>(p) = __builtin_convertvector(whole, vb);
#endif
}

// The row in `line` as bytes, and its part of the copy.
inline void quantise_row(const PackArgs& a, int c0, int y, uint8_t* dst, int64_t pixel) {
  vf quant[VPB], zero[VPB];
  for (int j = 0; j < VPB; ++j) {
    quant[j] = load(a.quant + c0 + j * VL);
    zero[j] = load(a.zero + c0 + j * VL) - 128.0f;
  }
  const float* line = a.line;
  for (int x = 0; x < a.cols; ++x)
    for (int j = 0; j < VPB; ++j)
      store_bytes(dst + x * pixel + j * VL, load(line + x * kBlock + j * VL) * quant[j] + zero[j]);
  if (!a.store || y < a.store_y0 || y >= a.store_y1) return;
  a.store_bf16 ? store_row<bf16>(a, c0 / kBlock, y, line)
               : store_row<float>(a, c0 / kBlock, y, line);
}

template <int MODE, class T>
void load_line(const PackArgs& a, int b, int y) {
  if (zero_row(a, y)) {
    for (int x = 0; x < a.cols * kBlock; x += VL) store(a.line + x, vf{});
  } else if (a.src.planar || (a.combine && a.res.planar)) {
    pack_row<MODE, T, float>(a, y, b * kBlock, (b + 1) * kBlock, a.line);
  } else {
    pack_row16<MODE, T, float>(a, b, y, a.line);
  }
}

template <int MODE, class T>
void pack_int8_blocks(const PackArgs& a) {
  PackArgs row = a;
  row.format = kPanel16;  // of a line
  const bool planar = a.format == kPanelPlanar;
  const int blocks = (a.channels + kBlock - 1) / kBlock, fours = (a.channels + 3) / 4;
  for (int b = 0; b < blocks; ++b)
    for (int y = 0; y < a.rows; ++y) {
      uint8_t* dst = static_cast<uint8_t*>(a.dst) + y * a.dst_row;
      load_line<MODE, T>(row, b, y);
      if (!planar) {
        quantise_row(a, b * kBlock, y, dst + b * a.dst_block, a.dst_pixel);
        continue;
      }
      // The bytes take the place of the floats that they come from, then their fours part.
      uint8_t* bytes = reinterpret_cast<uint8_t*>(a.line);
      quantise_row(a, b * kBlock, y, bytes, kBlock);
      for (int q = 0; q < 4 && b * 4 + q < fours; ++q) {
        uint8_t* to = dst + (b * 4 + q) * a.dst_block;
        for (int x = 0; x < a.cols; ++x) __builtin_memcpy(to + x * 4, bytes + x * 16 + q * 4, 4);
      }
    }
}

// Channel after channel, `a.cols` bytes each, into pixels of N.
template <int N>
inline void weave_bytes(const uint8_t* planes, int64_t stride, int cols, uint8_t* dst) {
  for (int x = 0; x < cols; ++x)
    for (int c = 0; c < N; ++c) dst[x * N + c] = planes[c * stride + x];
}

// At most 4 planes as they are, VL columns of each at a time.
template <class T>
void pack_int8_planes(const PackArgs& a) {
  const int64_t stride = a.cols + VL;  // bytes of a plane's row, in the line of floats
  uint8_t* planes = reinterpret_cast<uint8_t*>(a.line);
  for (int y = 0; y < a.rows; ++y) {
    for (int c = 0; c < a.channels; ++c) {
      const vf quant = splat(a.quant[c]), zero = splat(a.zero[c] - 128.0f);
      const T* src = static_cast<const T*>(a.src.data) + c * a.src.block + a.src_y[y] * a.src.row;
      for (int x0 = 0; x0 < a.cols; x0 += VL) {
        // The last vector begins earlier, so that it is whole.
        const int x = x0 + VL <= a.cols || a.cols < VL ? x0 : a.cols - VL;
        const int n = a.cols - x < VL ? a.cols - x : VL;
        const int32_t* xs = a.src_x + x;
        vf v{};
        if (a.src_y[y] < 0) {
        } else if (n == VL && a.src.pixel == 1 && xs[0] >= 0 && xs[VL - 1] - xs[0] == VL - 1) {
          v = load_as(src + xs[0]);  // as in fetch_tile: a run
        } else {
          float values[VL] = {};
          for (int i = 0; i < n; ++i)
            if (xs[i] >= 0) values[i] = load_one(src + xs[i] * a.src.pixel);
          v = load(values);
        }
        store_bytes(planes + c * stride + x, v * quant + zero);
      }
    }
    uint8_t* dst = static_cast<uint8_t*>(a.dst) + y * a.dst_row;
    switch (a.channels) {
      case 1:
        weave_bytes<1>(planes, stride, a.cols, dst);
        break;
      case 2:
        weave_bytes<2>(planes, stride, a.cols, dst);
        break;
      case 3:
        weave_bytes<3>(planes, stride, a.cols, dst);
        break;
      default:
        weave_bytes<4>(planes, stride, a.cols, dst);
    }
  }
}

// At most 4 channels: rows of pixels of floats become rows of bytes.
template <class T>
void pack_int8_few(const PackArgs& a) {
  const int n = a.channels, count = a.cols * n;
  PackArgs row = a;
  row.format = kPanel4;
  row.bf16 = 0;
  row.rows = 1;
  row.dst = a.line;
  float quant[VL + 4], zero[VL + 4];  // from any channel on
  for (int i = 0; i < VL + 4; ++i) {
    quant[i] = a.quant[i % n];
    zero[i] = a.zero[i % n] - 128.0f;
  }
  if (a.src.planar && !a.scale && !a.pre && !a.combine && !a.post) return pack_int8_planes<T>(a);
  store(a.line + count, vf{});  // the last vector reads behind the row
  for (int y = 0; y < a.rows; ++y) {
    row.src_y = a.src_y + y;
    row.res_y = a.combine ? a.res_y + y : nullptr;
    pack4<T, float>(row);
    uint8_t* bytes = reinterpret_cast<uint8_t*>(a.line) + a.cols * kBlock;  // behind the floats
    for (int x = 0; x < count; x += VL)
      store_bytes(bytes + x, load(a.line + x) * load(quant + x % n) + load(zero + x % n));
    __builtin_memcpy(static_cast<uint8_t*>(a.dst) + y * a.dst_row, bytes, count);
  }
}

template <class T>
void pack_int8_as(const PackArgs& a) {
  if (a.format == kPanel4) return pack_int8_few<T>(a);
  switch (load_mode(a)) {
    case kLoadCopy:
      return pack_int8_blocks<kLoadCopy, T>(a);
    case kLoadAffineRelu:
      return pack_int8_blocks<kLoadAffineRelu, T>(a);
    case kLoadAffineAdd:
      return pack_int8_blocks<kLoadAffineAdd, T>(a);
    default:
      return pack_int8_blocks<kLoadAny, T>(a);
  }
}

void pack_int8(const PackArgs& a) {
  a.dtype == kBFloat16 ? pack_int8_as<bf16>(a) : pack_int8_as<float>(a);
}
