// Elements of tensors as vectors of floats: float32, float16, bfloat16; whole and partial vectors.
// Results are rounded to nearest, ties to even. Included inside an instruction set's namespace.
#pragma once
#include "vec.inl"

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef uint16_t vhu __attribute__((vector_size(VL * 2), aligned(2), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));

inline vu words(vh h) {
#if defined(__AVX512F__)  // GCC 12 would convert quarters and put them together
  return reinterpret_cast<vu>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(h)));
#else
  return __builtin_convertvector(h, vu);
#endif
}

inline vf widen(vh h, const bf16*) { return reinterpret_cast<vf>(words(h) << 16); }

inline vh narrow(vf x, const bf16*) {
#if defined(__AVX512BF16__)  // subnormal numbers become zero
  return reinterpret_cast<vh>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  const vu bits = reinterpret_cast<vu>(x);
  const vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const vu quiet = (bits >> 16) | 0x40;  // rounding could turn a NaN into infinity
  const vu nan = reinterpret_cast<vu>(x != x);
  return __builtin_convertvector((nan & quiet) | (~nan & rounded), vh);
#endif
}

#if defined(__AVX512F__)
// Masks of all lanes: GCC 12 warns of its own headers for the plain forms.
inline vf widen(vh h, const f16*) {
  return reinterpret_cast<vf>(_mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(h)));
}
inline vh narrow(vf x, const f16*) {
  return reinterpret_cast<vh>(
      _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
inline vf widen(vh h, const f16*) {
  return reinterpret_cast<vf>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(h)));
}
inline vh narrow(vf x, const f16*) {
  return reinterpret_cast<vh>(
      _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
}
#else
inline vf widen(vh h, const f16*) {
  const vu bits = __builtin_convertvector(h, vu);
  const vu sign = (bits & 0x8000) << 16, rest = (bits & 0x7fff) << 13;
  // The multiplication moves the exponent and makes subnormal numbers normal.
  const vu value = reinterpret_cast<vu>(reinterpret_cast<vf>(rest) * 0x1p112f);
  const vu special = reinterpret_cast<vu>(rest >= (0x7c00u << 13));
  return reinterpret_cast<vf>(sign | (special & (rest | 0x7f800000)) | (~special & value));
}
inline vh narrow(vf x, const f16*) {
  const vu bits = reinterpret_cast<vu>(x), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  const vu normal = (rest - (112u << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
  // Adding 0.5 leaves the bits of a subnormal result, rounded, at the end of the sum.
  const vu small = reinterpret_cast<vu>(reinterpret_cast<vf>(rest) + 0.5f) - (126u << 23);
  const vu is_small = reinterpret_cast<vu>(rest < (113u << 23));
  const vu is_large = reinterpret_cast<vu>(rest >= (143u << 23));  // 65536, infinity, NaN
  const vu is_nan = reinterpret_cast<vu>(rest > 0x7f800000u);
  vu value = (is_small & small) | (~is_small & normal);
  value = (is_large & 0x7c00) | (~is_large & value);
  return __builtin_convertvector((is_nan & 0x7e00) | (~is_nan & value) | sign, vh);
}
#endif

inline vf load_as(const float* p) { return load(p); }
inline void store_as(float* p, vf v) { store(p, v); }
template <class T>
inline vf load_as(const T* p) {
  return widen(*reinterpret_cast<const vhu*>(p), p);
}
template <class T>
inline void store_as(T* p, vf v) {
  *reinterpret_cast<vhu*>(p) = narrow(v, p);
}

// The first n < VL elements; the others are zero, and are not touched in memory.
#if defined(__AVX512F__)
inline vf load_part(const float* p, int n) {
  return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
inline void store_part(float* p, vf v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(v));
}
template <class T>
inline vf load_part(const T* p, int n) {
  const auto mask = static_cast<__mmask16>((1u << n) - 1);
  return widen(reinterpret_cast<vh>(_mm256_maskz_loadu_epi16(mask, p)), p);
}
template <class T>
inline void store_part(T* p, vf v, int n) {
  const auto mask = static_cast<__mmask16>((1u << n) - 1);
  _mm256_mask_storeu_epi16(p, mask, reinterpret_cast<__m256i>(narrow(v, p)));
}
#else
inline vf load_part(const float* p, int n) {
  vf v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_part(float* p, vf v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
template <class T>
inline vf load_part(const T* p, int n) {
  vh h{};
  for (int i = 0; i < n; ++i) h[i] = p[i].bits;
  return widen(h, p);
}
template <class T>
inline void store_part(T* p, vf v, int n) {
  const vh h = narrow(v, p);
  for (int i = 0; i < n; ++i) p[i].bits = h[i];
}
#endif

template <bool WHOLE, class T>
inline vf load_some(const T* p, int n) {
  return WHOLE ? load_as(p) : load_part(p, n);
}
template <bool WHOLE, class T>
inline void store_some(T* p, vf v, int n) {
  WHOLE ? store_as(p, v) : store_part(p, v, n);
}
inline float load_one(const float* p) { return *p; }
inline float load_one(const bf16* p) {
  const uint32_t bits = uint32_t{p->bits} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float load_one(const f16* p) { return load_part(p, 1)[0]; }

// Factors of a product: float32, or rounded to bfloat16.
inline void store_factor(float* p, vf v) { store(p, v); }
inline void store_factor(bf16* p, vf v) { store_as(p, v); }

inline void store_one(float* p, float v) { *p = v; }
inline void store_one(bf16* p, float v) { store_part(p, splat(v), 1); }
