// Loading a window into a panel: padding, upsampling, cropping by index; normalisation, activation
// and residual on the way. Included inside an instruction set's anonymous namespace.
#pragma once
#include "half.inl"

enum LoadMode { kLoadCopy, kLoadAffine, kLoadAffineRelu, kLoadAffineAdd, kLoadAdd, kLoadAny };

inline LoadMode load_mode(const PackArgs& a) {
  if (a.post != kActNone || a.combine == kCombineMul) return kLoadAny;
  if (a.combine == kCombineAdd) {
    if (a.pre != kActNone) return kLoadAny;
    return a.scale ? kLoadAffineAdd : kLoadAdd;
  }
  if (a.pre == kActNone) return a.scale ? kLoadAffine : kLoadCopy;
  return a.pre == kActRelu && a.scale ? kLoadAffineRelu : kLoadAny;
}

template <int MODE>
inline vf transform(const PackArgs& a, vf x, vf scale, vf shift, vf res) {
  if (MODE == kLoadCopy) return x;
  if (MODE == kLoadAdd) return x + res;
  if (MODE == kLoadAffine) return x * scale + shift;
  if (MODE == kLoadAffineRelu) return activate(x * scale + shift, kActRelu, 0.0f);
  if (MODE == kLoadAffineAdd) return x * scale + shift + res;
  if (a.scale) x = x * scale + shift;
  x = activate(x, a.pre, a.pre_slope);
  if (a.combine == kCombineAdd) x += res;
  if (a.combine == kCombineMul) x *= res;
  return activate(x, a.post, a.post_slope);
}

inline float transform1(const PackArgs& a, int c, float x, float res) {
  if (a.scale) x = x * a.scale[c] + a.shift[c];
  if (a.pre) x = activate1(x, a.pre, a.pre_slope);
  if (a.combine == kCombineAdd) x += res;
  if (a.combine == kCombineMul) x *= res;
  return a.post ? activate1(x, a.post, a.post_slope) : x;
}

// One value of channel c, wherever it lies.
template <class T>
inline float fetch1(const PackArgs& a, int c, int sy, int sx, int ry, int rx) {
  const auto at = [c](const View& v, int y, int x) {
    const int64_t channel = v.planar ? c * v.block : (c / kBlock) * v.block + c % kBlock;
    return load_one(static_cast<const T*>(v.data) + channel + y * v.row + x * v.pixel);
  };
  return transform1(a, c, at(a.src, sy, sx), a.combine ? at(a.res, ry, rx) : 0.0f);
}

// Whether the row is all zero padding.
inline bool zero_row(const PackArgs& a, int y) {
  return a.src_y[y] < 0 || (a.combine && a.res_y[y] < 0);
}

// Where the row of a window is that will be packed kAhead rows after row y of block b; null behind
// the last. The runs of a window are too short for the processor to see them coming.
template <class T>
inline const T* row_ahead(const PackArgs& a, const View& v, const int32_t* rows, int b, int y) {
  constexpr int kAhead = 4;
  y += kAhead;
  while (y >= a.rows) y -= a.rows, ++b;
  if (b * kBlock >= a.channels || rows[y] < 0) return nullptr;
  return static_cast<const T*>(v.data) + b * v.block + rows[y] * v.row;
}

// One row of a channel block into a kPanel16 row; both operands blocked.
template <int MODE, class T, class D, bool WHOLE>
void pack_lanes(const PackArgs& a, const T* src, const T* res, const int32_t* rx, int c0, int n,
                const T* ahead, const T* res_ahead, D* dst) {
  vf scale{}, shift{};
  if (a.scale) scale = load(a.scale + c0), shift = load(a.shift + c0);
  for (int x = 0; x < a.cols; ++x) {
    const int sx = a.src_x[x];
    vf v{}, r{};
    if (sx >= 0) {
      if (ahead) __builtin_prefetch(ahead + sx * a.src.pixel);
      if (res_ahead) __builtin_prefetch(res_ahead + rx[x] * a.res.pixel);
      if (res) r = load_some<WHOLE>(res + rx[x] * a.res.pixel, n);
      v = transform<MODE>(a, load_some<WHOLE>(src + sx * a.src.pixel, n), scale, shift, r);
    }
    store_factor(dst + x * kBlock, v);
  }
}

template <int MODE, class T, class D>
void pack_row16(const PackArgs& a, int b, int y, D* dst) {
  const T* src = static_cast<const T*>(a.src.data) + b * a.src.block + a.src_y[y] * a.src.row;
  const T* res = nullptr;
  if (a.combine) res = static_cast<const T*>(a.res.data) + b * a.res.block + a.res_y[y] * a.res.row;
  const T* ahead = row_ahead<T>(a, a.src, a.src_y, b, y);
  const T* res_ahead = a.combine ? row_ahead<T>(a, a.res, a.res_y, b, y) : nullptr;
  for (int j = 0; j < kBlock; j += VL) {
    const int c0 = b * kBlock + j, left = a.channels - c0;
    const T* other = res ? res + j : nullptr;
    if (!a.exact || left >= VL) {
      pack_lanes<MODE, T, D, true>(a, src + j, other, a.res_x, c0, VL, ahead, res_ahead, dst + j);
    } else if (left > 0) {
      pack_lanes<MODE, T, D, false>(a, src + j, other, a.res_x, c0, left, ahead, res_ahead,
                                    dst + j);
    } else {
      for (int x = 0; x < a.cols; ++x) store_factor(dst + x * kBlock + j, vf{});
    }
  }
}

// r[i] = channels [c0, c0 + VL) of column xs[i], zero where that is negative.
template <class T>
inline void fetch_tile(const PackArgs& a, const View& v, int c0, int y, const int32_t* xs, int n,
                       vf (&r)[VL]) {
  const int here = a.channels - c0 < VL ? a.channels - c0 : VL;
  const int64_t channel = v.planar ? c0 * v.block : (c0 / kBlock) * v.block + c0 % kBlock;
  const T* p = static_cast<const T*>(v.data) + channel + y * v.row;
  // Indices move by at most one from column to column, so the ends tell whether this is a run.
  if (v.planar && n == VL && v.pixel == 1 && xs[0] >= 0 && xs[VL - 1] - xs[0] == VL - 1) {
#pragma GCC unroll 16
    for (int c = 0; c < VL; ++c) r[c] = c < here ? load_as(p + c * v.block + xs[0]) : vf{};
    transpose(r);
    return;
  }
  for (int i = 0; i < VL; ++i) {
    r[i] = vf{};
    if (i >= n || xs[i] < 0) continue;
    if (!v.planar) {
      r[i] = !a.exact || here == VL ? load_as(p + xs[i] * v.pixel)
                                    : load_part(p + xs[i] * v.pixel, here);
    } else {
      for (int c = 0; c < here; ++c) r[i][c] = load_one(p + c * v.block + xs[i] * v.pixel);
    }
  }
}

// The loaded and transformed values of n columns from x, where one operand at least is planar.
template <int MODE, class T>
inline void load_mixed(const PackArgs& a, int c0, int y, int x, int n, vf scale, vf shift,
                       vf (&r)[VL]) {
  vf other[VL];
  fetch_tile<T>(a, a.src, c0, a.src_y[y], a.src_x + x, n, r);
  if (a.combine) fetch_tile<T>(a, a.res, c0, a.res_y[y], a.res_x + x, n, other);
  if (MODE == kLoadCopy) return;
  for (int i = 0; i < n; ++i)
    if (a.src_x[x + i] >= 0)
      r[i] = transform<MODE>(a, r[i], scale, shift, a.combine ? other[i] : vf{});
}

// The same where both are blocked and whole vectors may be read.
template <int MODE, class T>
inline void load_blocked(const PackArgs& a, int c0, int y, int x, int n, vf scale, vf shift,
                         vf (&r)[VL]) {
  const int64_t b = c0 / kBlock, lane = c0 % kBlock;
  const T* src =
      static_cast<const T*>(a.src.data) + b * a.src.block + a.src_y[y] * a.src.row + lane;
  const T* res = nullptr;
  if (a.combine)
    res = static_cast<const T*>(a.res.data) + b * a.res.block + a.res_y[y] * a.res.row + lane;
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    const int sx = i < n ? a.src_x[x + i] : -1;
    r[i] = vf{};
    if (sx >= 0)
      r[i] = transform<MODE>(a, load_as(src + sx * a.src.pixel), scale, shift,
                             res ? load_as(res + a.res_x[x + i] * a.res.pixel) : vf{});
  }
}

// Any layout of the operands and of the panel: VL pixels x VL channels at a time.
template <int MODE, class T, class D>
void pack_row(const PackArgs& a, int y, int first, int last, D* dst) {
  const bool planar = a.format == kPanelPlanar;
  const bool mixed = a.src.planar || (a.combine && a.res.planar);
  for (int c0 = first; c0 < last; c0 += VL) {
    vf scale{}, shift{};
    if (a.scale) scale = load(a.scale + c0), shift = load(a.shift + c0);
    const bool whole = !a.exact || a.channels - c0 >= VL;
    for (int x = 0; x < a.cols; x += VL) {
      const int n = a.cols - x < VL ? a.cols - x : VL;
      vf r[VL];
      if (c0 >= a.channels) {  // of the last block
        for (int i = 0; i < VL; ++i) r[i] = vf{};
      } else if (mixed || !whole) {
        load_mixed<MODE, T>(a, c0, y, x, n, scale, shift, r);
      } else {
        load_blocked<MODE, T>(a, c0, y, x, n, scale, shift, r);
      }
      if (!planar) {
        for (int i = 0; i < n; ++i) store_factor(dst + (x + i) * kBlock + c0 - first, r[i]);
        continue;
      }
      transpose(r);
      for (int c = 0; c < VL && c0 + c < last; ++c) {
        D* to = dst + (c0 + c) * a.dst_block + x;
        n == VL ? store_factor(to, r[c]) : store_part(to, r[c], n);
      }
    }
  }
}

// Copies a loaded row of a block to where it is kept.
template <class S, class D>
void store_row(const PackArgs& a, int b, int y, const D* from) {
  S* out = static_cast<S*>(a.store) + b * a.store_block + a.store_y[y] * a.store_row;
  for (int x = a.store_x0; x < a.store_x1; ++x)
    for (int j = 0; j < kBlock; j += VL)
      store_factor(out + a.src_x[x] * kBlock + j, load_as(from + x * kBlock + j));
}

template <int MODE, class T, class D>
void pack16(const PackArgs& a) {
  const int blocks = (a.channels + kBlock - 1) / kBlock;
  for (int b = 0; b < blocks; ++b)
    for (int y = 0; y < a.rows; ++y) {
      D* dst = static_cast<D*>(a.dst) + b * a.dst_block + y * a.dst_row;
      if (zero_row(a, y)) {
        for (int x = 0; x < a.cols * kBlock; x += VL) store_factor(dst + x, vf{});
        continue;
      }
      if (a.src.planar || (a.combine && a.res.planar)) {
        pack_row<MODE, T, D>(a, y, b * kBlock, (b + 1) * kBlock, dst);
      } else {
        pack_row16<MODE, T, D>(a, b, y, dst);
      }
      if (a.store && y >= a.store_y0 && y < a.store_y1)
        a.store_bf16 ? store_row<bf16>(a, b, y, dst) : store_row<float>(a, b, y, dst);
    }
}

// The longest run of columns whose sources are neighbours: [first, last).
inline void longest_run(const int32_t* src_x, int cols, int* first, int* last) {
  *first = *last = 0;
  for (int x = 0, from = 0; x < cols; ++x) {
    if (x > from && src_x[x] != src_x[x - 1] + 1) from = x;
    if (src_x[x] < 0) from = x + 1;
    if (x + 1 - from > *last - *first) *first = from, *last = x + 1;
  }
}

template <class T, class D>
inline void copy_factors(const T* src, int count, D* dst) {
  int i = 0;
  for (; i + VL <= count; i += VL) store_factor(dst + i, load_as(src + i));
  if (i < count) store_part(dst + i, load_part(src + i, count - i), count - i);
}

// Planes of N channels into pixels of N.
template <int N, class T, class D>
void weave(const T* src, int64_t plane, int count, D* dst) {
  constexpr int CHUNK = 64;
  alignas(64) float planes[N][CHUNK], pixels[CHUNK * N];
  for (int x = 0; x < count; x += CHUNK) {
    const int n = count - x < CHUNK ? count - x : CHUNK;
    for (int c = 0; c < N; ++c) copy_factors(src + c * plane + x, n, planes[c]);
    for (int i = 0; i < n; ++i)
      for (int c = 0; c < N; ++c) pixels[i * N + c] = planes[c][i];
    copy_factors(pixels, n * N, dst + x * N);
  }
}

template <class T, class D>
inline void weave_of(int channels, const T* src, int64_t plane, int count, D* dst) {
  switch (channels) {
    case 2:
      return weave<2>(src, plane, count, dst);
    case 3:
      return weave<3>(src, plane, count, dst);
    default:
      return weave<4>(src, plane, count, dst);
  }
}

// Few channels, one by one; but an image without arithmetic on load is mostly runs of pixels.
template <class T, class D>
void pack4(const PackArgs& a) {
  const int n = a.channels;
  const bool plain = a.src.planar && !a.scale && !a.pre && !a.combine && !a.post;
  const bool beside = a.src.pixel == n && (n == 1 || a.src.block == 1);
  int first = 0, last = 0;
  if (plain && (beside || a.src.pixel == 1)) longest_run(a.src_x, a.cols, &first, &last);
  for (int y = 0; y < a.rows; ++y) {
    D* dst = static_cast<D*>(a.dst) + y * a.dst_row;
    if (zero_row(a, y)) {
      for (int x = 0; x < a.cols * n; ++x) store_one(dst + x, 0.0f);
      continue;
    }
    if (last > first) {
      const T* src =
          static_cast<const T*>(a.src.data) + a.src_y[y] * a.src.row + a.src_x[first] * a.src.pixel;
      if (beside)
        copy_factors(src, (last - first) * n, dst + first * n);
      else
        weave_of(n, src, a.src.block, last - first, dst + first * n);
    }
    for (int x = 0; x < a.cols; ++x) {
      if (x == first) x = last;
      if (x == a.cols) break;
      for (int c = 0; c < n; ++c)
        store_one(dst + x * n + c, a.src_x[x] >= 0 ? fetch1<T>(a, c, a.src_y[y], a.src_x[x],
                                                               a.combine ? a.res_y[y] : 0,
                                                               a.combine ? a.res_x[x] : 0)
                                                   : 0.0f);
    }
  }
}

template <int MODE, class T>
void pack_planar(const PackArgs& a) {
  for (int y = 0; y < a.rows; ++y) {
    float* dst = static_cast<float*>(a.dst) + y * a.dst_row;
    if (!zero_row(a, y)) {
      pack_row<MODE, T, float>(a, y, 0, a.channels, dst);
      continue;
    }
    for (int c = 0; c < a.channels; ++c)
      for (int x = 0; x < a.cols; ++x) dst[c * a.dst_block + x] = 0.0f;
  }
}

template <int MODE, class T>
inline void pack_as(const PackArgs& a) {
  if (a.format == kPanelPlanar) return pack_planar<MODE, T>(a);
  if (a.format == kPanel16) return a.bf16 ? pack16<MODE, T, bf16>(a) : pack16<MODE, T, float>(a);
  a.bf16 ? pack4<T, bf16>(a) : pack4<T, float>(a);
}

template <class T>
void pack_modes(const PackArgs& a) {
  switch (load_mode(a)) {
    case kLoadCopy:
      return pack_as<kLoadCopy, T>(a);
    case kLoadAffine:
      return pack_as<kLoadAffine, T>(a);
    case kLoadAffineRelu:
      return pack_as<kLoadAffineRelu, T>(a);
    case kLoadAffineAdd:
      return pack_as<kLoadAffineAdd, T>(a);
    case kLoadAdd:
      return pack_as<kLoadAdd, T>(a);
    default:
      return pack_as<kLoadAny, T>(a);
  }
}

template <class T>
void pack_half(const PackArgs& a) {
  load_mode(a) == kLoadCopy ? pack_as<kLoadCopy, T>(a) : pack_as<kLoadAny, T>(a);
}

void pack(const PackArgs& a) {
  if (a.dtype == kFloat16) return pack_half<f16>(a);
#if defined(__AVX512BF16__)  // where activations of networks are bfloat16
  if (a.dtype == kBFloat16) return pack_modes<bf16>(a);
#else
  if (a.dtype == kBFloat16) return pack_half<bf16>(a);
#endif
  pack_modes<float>(a);
}
