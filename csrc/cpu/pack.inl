// Loading a window into a panel: padding, upsampling, cropping by index; normalisation, activation
// and residual on the way. Included inside an instruction set's anonymous namespace.
#include "vec.inl"

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
inline vf transform(const PackArgs& a, vf x, vf scale, vf shift, const float* res) {
  if (MODE == kLoadCopy) return x;
  if (MODE == kLoadAdd) return x + load(res);
  if (MODE == kLoadAffine) return x * scale + shift;
  if (MODE == kLoadAffineRelu) return activate(x * scale + shift, kActRelu, 0.0f);
  if (MODE == kLoadAffineAdd) return x * scale + shift + load(res);
  if (a.scale) x = x * scale + shift;
  x = activate(x, a.pre, a.pre_slope);
  if (a.combine == kCombineAdd) x += load(res);
  if (a.combine == kCombineMul) x *= load(res);
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
inline float fetch1(const PackArgs& a, int c, int sy, int sx, int ry, int rx) {
  const auto at = [c](const View& v, int y, int x) {
    const int64_t channel = v.planar ? c * v.block : (c / kBlock) * v.block + c % kBlock;
    return v.data[channel + y * v.row + x * v.pixel];
  };
  return transform1(a, c, at(a.src, sy, sx), a.combine ? at(a.res, ry, rx) : 0.0f);
}

// Whether the row is all zero padding.
inline bool zero_row(const PackArgs& a, int y) {
  return a.src_y[y] < 0 || (a.combine && a.res_y[y] < 0);
}

template <int MODE>
void pack_row16(const PackArgs& a, int b, int y, float* dst) {
  const float* src = a.src.data + b * a.src.block + a.src_y[y] * a.src.row;
  const float* res = a.combine ? a.res.data + b * a.res.block + a.res_y[y] * a.res.row : nullptr;
  for (int j = 0; j < VPB; ++j) {
    vf scale{}, shift{};
    if (a.scale) {
      scale = load(a.scale + b * kBlock + j * VL);
      shift = load(a.shift + b * kBlock + j * VL);
    }
    for (int x = 0; x < a.cols; ++x) {
      const int sx = a.src_x[x];
      vf v{};
      if (sx >= 0) {
        const float* r = res ? res + a.res_x[x] * a.res.pixel + j * VL : nullptr;
        v = transform<MODE>(a, load(src + sx * a.src.pixel + j * VL), scale, shift, r);
      }
      store(dst + x * kBlock + j * VL, v);
    }
  }
}

template <int MODE>
void pack16(const PackArgs& a) {
  const int blocks = (a.channels + kBlock - 1) / kBlock;
  for (int b = 0; b < blocks; ++b)
    for (int y = 0; y < a.rows; ++y) {
      float* dst = a.dst + b * a.dst_block + y * a.dst_row;
      if (zero_row(a, y)) {
        for (int x = 0; x < a.cols * kBlock; x += VL) store(dst + x, vf{});
        continue;
      }
      if (a.src.planar || a.res.planar) {
        const int here = a.channels - b * kBlock < kBlock ? a.channels - b * kBlock : kBlock;
        for (int x = 0; x < a.cols; ++x)
          for (int c = 0; c < kBlock; ++c)
            dst[x * kBlock + c] =
                c < here && a.src_x[x] >= 0
                    ? fetch1(a, b * kBlock + c, a.src_y[y], a.src_x[x], a.combine ? a.res_y[y] : 0,
                             a.combine ? a.res_x[x] : 0)
                    : 0.0f;
      } else {
        pack_row16<MODE>(a, b, y, dst);
      }
      if (a.store && y >= a.store_y0 && y < a.store_y1) {
        float* out = a.store + b * a.store_block + a.src_y[y] * a.store_row;
        for (int x = a.store_x0; x < a.store_x1; ++x)
          for (int j = 0; j < kBlock; j += VL)
            store(out + a.src_x[x] * kBlock + j, load(dst + x * kBlock + j));
      }
    }
}

void pack4(const PackArgs& a) {
  for (int y = 0; y < a.rows; ++y) {
    float* dst = a.dst + y * a.dst_row;
    const bool plain = a.src.planar && !a.scale && !a.pre && !a.combine && !a.post;
    if (zero_row(a, y)) {
      for (int x = 0; x < a.cols * 4; ++x) dst[x] = 0.0f;
    } else if (plain) {
      for (int c = 0; c < a.channels; ++c) {
        const float* src = a.src.data + c * a.src.block + a.src_y[y] * a.src.row;
        for (int x = 0; x < a.cols; ++x)
          dst[x * 4 + c] = a.src_x[x] >= 0 ? src[a.src_x[x] * a.src.pixel] : 0.0f;
      }
    } else {
      for (int x = 0; x < a.cols; ++x)
        for (int c = 0; c < a.channels; ++c)
          dst[x * 4 + c] = a.src_x[x] >= 0
                               ? fetch1(a, c, a.src_y[y], a.src_x[x], a.combine ? a.res_y[y] : 0,
                                        a.combine ? a.res_x[x] : 0)
                               : 0.0f;
    }
  }
}

// VL pixels x VL channels at a time, turned in registers.
template <int MODE>
void pack_planar_row(const PackArgs& a, int y) {
  for (int c0 = 0; c0 < a.channels; c0 += VL) {
    const int b = c0 / kBlock, lane = c0 % kBlock;
    const float* src = a.src.data + b * a.src.block + a.src_y[y] * a.src.row + lane;
    const float* res =
        a.combine ? a.res.data + b * a.res.block + a.res_y[y] * a.res.row + lane : nullptr;
    float* dst = a.dst + c0 * a.dst_block + y * a.dst_row;
    const int here = a.channels - c0 < VL ? a.channels - c0 : VL;
    vf scale{}, shift{};
    if (a.scale) scale = load(a.scale + c0), shift = load(a.shift + c0);
    int x = 0;
    for (; x + VL <= a.cols; x += VL) {
      vf r[VL];
#pragma GCC unroll 16
      for (int i = 0; i < VL; ++i) {
        const int sx = a.src_x[x + i];
        r[i] = vf{};
        if (sx >= 0)
          r[i] = transform<MODE>(a, load(src + sx * a.src.pixel), scale, shift,
                                 res ? res + a.res_x[x + i] * a.res.pixel : nullptr);
      }
      transpose(r);
      if (here == VL) {
#pragma GCC unroll 16
        for (int i = 0; i < VL; ++i) store(dst + i * a.dst_block + x, r[i]);
      } else {
        for (int i = 0; i < here; ++i) store(dst + i * a.dst_block + x, r[i]);
      }
    }
    for (; x < a.cols; ++x) {
      const int sx = a.src_x[x];
      vf v{};
      if (sx >= 0)
        v = transform<MODE>(a, load(src + sx * a.src.pixel), scale, shift,
                            res ? res + a.res_x[x] * a.res.pixel : nullptr);
      for (int i = 0; i < here; ++i) dst[i * a.dst_block + x] = v[i];
    }
  }
}

template <int MODE>
void pack_planar(const PackArgs& a) {
  for (int y = 0; y < a.rows; ++y) {
    if (zero_row(a, y)) {
      for (int c = 0; c < a.channels; ++c)
        for (int x = 0; x < a.cols; ++x) a.dst[c * a.dst_block + y * a.dst_row + x] = 0.0f;
    } else if (a.src.planar || a.res.planar) {
      for (int c = 0; c < a.channels; ++c)
        for (int x = 0; x < a.cols; ++x)
          a.dst[c * a.dst_block + y * a.dst_row + x] =
              a.src_x[x] >= 0 ? fetch1(a, c, a.src_y[y], a.src_x[x], a.combine ? a.res_y[y] : 0,
                                       a.combine ? a.res_x[x] : 0)
                              : 0.0f;
    } else {
      pack_planar_row<MODE>(a, y);
    }
  }
}

template <int MODE>
inline void pack_as(const PackArgs& a) {
  if (a.format == kPanel16) return pack16<MODE>(a);
  if (a.format == kPanelPlanar) return pack_planar<MODE>(a);
  pack4(a);
}

void pack(const PackArgs& a) {
  switch (load_mode(a)) {
    case kLoadCopy:
      return pack_as<kLoadCopy>(a);
    case kLoadAffine:
      return pack_as<kLoadAffine>(a);
    case kLoadAffineRelu:
      return pack_as<kLoadAffineRelu>(a);
    case kLoadAffineAdd:
      return pack_as<kLoadAffineAdd>(a);
    case kLoadAdd:
      return pack_as<kLoadAdd>(a);
    default:
      return pack_as<kLoadAny>(a);
  }
}
