// Portable vectors of FASTGEN_VL floats (GCC and Clang vector extensions). Included inside the
// anonymous namespace of one instruction set's translation unit, so no symbol can leak to another.
#pragma once

constexpr int VL = FASTGEN_VL;
constexpr int VPB = kBlock / VL;  // vectors per channel block

typedef float vf __attribute__((vector_size(VL * 4)));
typedef float vfu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4)));

inline vf load(const float* p) { return *reinterpret_cast<const vfu*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vfu*>(p) = v; }
// x - 0 is x for every x (0 + x is not for -0), so this compiles to one broadcast.
inline vf splat(float x) { return x - vf{}; }

// Keeps a value in a register: without it the compiler repeats an unaligned load per use.
inline void keep(vf& v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  (void)v;
}

inline vf select(vi mask, vf a, vf b) {
  return reinterpret_cast<vf>((mask & reinterpret_cast<vi>(a)) | (~mask & reinterpret_cast<vi>(b)));
}

// e^x within 2 units in the last place: 2^n * p(r), |r| <= ln(2)/2. NaN passes through.
inline vf vexp(vf x) {
  const vi nan = x != x;
  vf c = x > 88.0f ? splat(88.0f) : x;
  c = c < -87.0f ? splat(-87.0f) : c;
  c = select(nan, vf{}, c);
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vf biased = c * 1.44269504088896341f + magic;
  // Kept opaque: with contraction or reassociation the rounding trick would vanish.
  __asm__("" : "+m"(biased));
  const vf n = biased - magic;
  const vf r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const vi power = (__builtin_convertvector(n, vi) + 127) << 23;
  return select(nan, x, p * reinterpret_cast<vf>(power));
}

inline vf vsigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

inline vf vtanh(vf x) {
  // Near zero 1 - 2/(e^2x + 1) cancels; an odd series is exact enough below 0.1.
  const vf x2 = x * x;
  const vf series = x + x * x2 * (-0.333333333f + x2 * (0.133333333f - x2 * 0.0539682540f));
  const vf full = 1.0f - 2.0f / (vexp(2.0f * x) + 1.0f);
  const vi tiny = x2 < 0.01f;
  return select(tiny, series, full);
}

inline vf activate(vf x, int act, float slope) {
  switch (act) {
    case kActRelu:
      return x < 0 ? vf{} : x;  // written so that NaN passes through
    case kActLeaky:
      return x < 0 ? x * slope : x;
    case kActTanh:
      return vtanh(x);
    case kActSigmoid:
      return vsigmoid(x);
    default:
      return x;
  }
}

// The larger one, and b where either is NaN.
inline vf larger(vf a, vf b) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(
      _mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}

inline float activate1(float x, int act, float slope) { return activate(splat(x), act, slope)[0]; }

template <int D, int... L>
inline void exchange(vf& a, vf& b, std::integer_sequence<int, L...>) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12  // has only its own older spelling
  const vf low = __builtin_shuffle(a, b, vi{((L & D) ? VL + L - D : L)...});
  const vf high = __builtin_shuffle(a, b, vi{((L & D) ? VL + L : L + D)...});
#else
  const vf low = __builtin_shufflevector(a, b, ((L & D) ? VL + L - D : L)...);
  const vf high = __builtin_shufflevector(a, b, ((L & D) ? VL + L : L + D)...);
#endif
  a = low;
  b = high;
}

template <int D>
inline void transpose_stage(vf (&r)[VL]) {
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i)
    if ((i & D) == 0) exchange<D>(r[i], r[i + D], std::make_integer_sequence<int, VL>());
}

// Transposes VL vectors in registers.
inline void transpose(vf (&r)[VL]) {
  if constexpr (VL >= 16) transpose_stage<8>(r);
  if constexpr (VL >= 8) transpose_stage<4>(r);
  transpose_stage<2>(r);
  transpose_stage<1>(r);
}
