// Writing outputs: residual, activation, statistics, conversion, memory order. Included inside an
// instruction set's anonymous namespace.
#include "half.inl"

// Statistics (Chan, Golub, LeVeque 1979): every tile gives its mean and its sum of squared
// deviations, taken around the mean so far, and those are merged. Means are relative to the part's
// first value. So neither a large mean nor an unusual first value costs accuracy.
enum FinishMode { kFinishCopy, kFinishLeaky, kFinishAny };

template <class T, bool WHOLE, int MODE>
void finish_lanes(const FinishArgs& a, int b, int j, int n) {
  const float* tile = a.tile + b * kBlock + j * VL;
  T* out = static_cast<T*>(a.out) + b * a.out_block + j * VL;
  const T* res = nullptr;
  if (a.residual) res = static_cast<const T*>(a.residual) + b * a.res_block + j * VL;
  const int step = a.nb * kBlock;
  const auto value = [&](int p) {
    vf x = load(tile + p * step);
    if (MODE == kFinishCopy) return x;
    if (MODE == kFinishLeaky) return activate(x, kActLeaky, a.slope);
    if (res) x += load_some<WHOLE>(res + p * a.res_pixel, n);
    return activate(x, a.act, a.slope);
  };
  if (!a.stats) {
    for (int p = 0; p < a.pixels; ++p) store_some<WHOLE>(out + p * a.out_pixel, value(p), n);
    return;
  }
  const float count = static_cast<float>(a.pixels);
  const float share = count / (count + static_cast<float>(a.before));
  const float cross = share * static_cast<float>(a.before);
  float* stats = a.stats + b * 3 * kBlock + j * VL;
  const vf pivot = a.before ? load(stats) : value(0);
  const vf old = a.before ? load(stats + kBlock) : vf{};
  const vf base = pivot + old;  // rounded where the mean is large beside the spread
  vf sum{}, squares{};
  for (int p = 0; p < a.pixels; ++p) {
    const vf y = value(p);
    store_some<WHOLE>(out + p * a.out_pixel, y, n);
    const vf d = y - base;
    sum += d;
    squares += d * d;
  }
  const vf delta = sum * (1.0f / count);
  const vf apart = base - pivot - old + delta;  // from the mean so far
  const vf mean = old + apart * share;
  squares -= sum * delta;
  if (a.before) squares += load(stats + 2 * kBlock) + apart * apart * cross;
  store(stats, pivot);
  store(stats + kBlock, mean);
  store(stats + 2 * kBlock, squares);
}

template <class T, int MODE>
void finish_mode(const FinishArgs& a) {
  for (int b = 0; b * kBlock < a.channels; ++b)
    for (int j = 0; j < VPB; ++j) {
      const int left = a.channels - b * kBlock - j * VL;
      if (!a.exact || left >= VL) {
        finish_lanes<T, true, MODE>(a, b, j, VL);
      } else if (left > 0) {
        finish_lanes<T, false, MODE>(a, b, j, left);
      }
    }
}

template <class T>
void finish_blocked(const FinishArgs& a) {
  if (a.residual || (a.act != kActNone && a.act != kActLeaky)) return finish_mode<T, kFinishAny>(a);
  a.act == kActNone ? finish_mode<T, kFinishCopy>(a) : finish_mode<T, kFinishLeaky>(a);
}

// Channel rows: residual into the tile, the rest in place, then turned VL x VL at a time.
template <class T>
void finish_planar(const FinishArgs& a) {
  const int step = a.nb * kBlock;
  const T* res = static_cast<const T*>(a.residual);
  for (int c0 = 0; res && c0 < a.channels; c0 += VL)
    for (int x0 = 0; x0 < a.pixels; x0 += VL) {
      const int n = a.pixels - x0 < VL ? a.pixels - x0 : VL;
      const int here = a.channels - c0 < VL ? a.channels - c0 : VL;
      vf r[VL] = {};
      for (int c = 0; c < here; ++c) {
        const T* row = res + (c0 + c) * a.res_block + x0 * a.res_pixel;
        if (a.res_pixel != 1) {
          for (int i = 0; i < n; ++i) r[c][i] = load_one(row + i * a.res_pixel);
        } else {
          r[c] = n == VL ? load_as(row) : load_part(row, n);
        }
      }
      transpose(r);
      for (int i = 0; i < n; ++i) {
        float* to = a.tile + (x0 + i) * step + c0;
        store(to, load(to) + r[i]);
      }
    }
  FinishArgs inner = a;
  inner.residual = nullptr;
  inner.exact = 0;
  inner.out = a.tile;
  inner.out_block = kBlock;
  inner.out_pixel = step;
  finish_blocked<float>(inner);
  for (int c0 = 0; c0 < a.channels; c0 += VL)
    for (int x0 = 0; x0 < a.pixels; x0 += VL) {
      const int n = a.pixels - x0 < VL ? a.pixels - x0 : VL;
      const int here = a.channels - c0 < VL ? a.channels - c0 : VL;
      vf r[VL] = {};
      for (int i = 0; i < n; ++i) r[i] = load(a.tile + (x0 + i) * step + c0);
      transpose(r);
      for (int c = 0; c < here; ++c) {
        T* row = static_cast<T*>(a.out) + (c0 + c) * a.out_block + x0 * a.out_pixel;
        if (a.out_pixel != 1) {
          T line[VL];
          store_as(line, r[c]);
          for (int i = 0; i < n; ++i) row[i * a.out_pixel] = line[i];
        } else if (n == VL) {
          store_as(row, r[c]);
        } else {
          store_part(row, r[c], n);
        }
      }
    }
}

template <class T>
void finish_as(const FinishArgs& a) {
  a.planar ? finish_planar<T>(a) : finish_blocked<T>(a);
}

void finish(const FinishArgs& a) {
  if (a.dtype == kFloat16) return finish_as<f16>(a);
  if (a.dtype == kBFloat16) return finish_as<bf16>(a);
  finish_as<float>(a);
}

template <class T>
void rows_as(const RowsArgs& a) {
  for (int c = 0; c < a.channels; ++c) {
    const float* from = a.rows + c * a.stride;
    const T* res = static_cast<const T*>(a.residual);
    if (res) res += c * a.res_channel;
    T* out = static_cast<T*>(a.out) + c * a.out_channel;
    for (int x = 0; x < a.pixels; x += VL) {
      const int n = a.pixels - x < VL ? a.pixels - x : VL;
      vf v = n == VL ? load(from + x) : load_part(from + x, n);
      if (res) {
        vf r{};
        for (int i = 0; i < n; ++i) r[i] = load_one(res + (x + i) * a.res_pixel);
        v += r;
      }
      v = activate(v, a.act, a.slope);
      if (a.out_pixel == 1) {
        n == VL ? store_as(out + x, v) : store_part(out + x, v, n);
        continue;
      }
      T line[VL];
      store_as(line, v);
      for (int i = 0; i < n; ++i) out[(x + i) * a.out_pixel] = line[i];
    }
  }
}

void rows(const RowsArgs& a) {
  if (a.dtype == kFloat16) return rows_as<f16>(a);
  if (a.dtype == kBFloat16) return rows_as<bf16>(a);
  rows_as<float>(a);
}
