// Image rows to planar floats and back. Included inside an instruction set's anonymous namespace.

template <typename T>
inline void image_load_as(const ImageRowArgs& a) {
  const T* __restrict photo = static_cast<const T*>(a.photo);
  const float gain = (a.high - a.low) / (sizeof(T) == 1 ? 255.0f : 1.0f), low = a.low;
  for (int c = 0; c < 3; ++c) {
    float* __restrict plane = a.plane[c];
    const T* __restrict from = photo + (a.bgr ? 2 - c : c);
    for (int x = 0; x < a.width; ++x) plane[x] = static_cast<float>(from[3 * x]) * gain + low;
    for (int x = a.width; x < a.padded; ++x) plane[x] = plane[a.index[x]];
  }
}

void image_load(const ImageRowArgs& a) {
  if (a.is_byte) return image_load_as<uint8_t>(a);
  image_load_as<float>(a);
}

// Clamps to 0..1; NaN becomes 0 because it compares false.
inline float unit(float x) {
  x = x > 0.0f ? x : 0.0f;
  return x < 1.0f ? x : 1.0f;
}

inline void put(uint8_t* p, float x) {
  // 0..255 plus 2^23 leaves the integer, rounded to nearest even, in the low bits.
  const float shifted = x * 255.0f + 8388608.0f;
  *p = static_cast<uint8_t>(static_cast<int32_t>(shifted - 8388608.0f));
}
inline void put(float* p, float x) { *p = x; }

template <typename T, bool COLOR, bool MIX>
inline void image_store_as(const ImageRowArgs& a) {
  const T* __restrict photo = static_cast<const T*>(a.photo);
  T* __restrict out = static_cast<T*>(a.out);
  const float* __restrict red = a.plane[0];
  const float* __restrict green = a.plane[1];
  const float* __restrict blue = a.plane[2];
  const float scale = 1.0f / (a.high - a.low), low = a.low, strength = a.strength;
  const float unit_scale = sizeof(T) == 1 ? 1.0f / 255.0f : 1.0f;
  const int first = a.bgr ? 2 : 0;
  for (int x = 0; x < a.width; ++x) {
    float r = unit((red[x] - low) * scale);
    float g = unit((green[x] - low) * scale);
    float b = unit((blue[x] - low) * scale);
    if constexpr (COLOR || MIX) {
      const float pr = static_cast<float>(photo[3 * x + first]) * unit_scale;
      const float pg = static_cast<float>(photo[3 * x + 1]) * unit_scale;
      const float pb = static_cast<float>(photo[3 * x + 2 - first]) * unit_scale;
      if constexpr (COLOR) {
        // Y of the picture with Cb and Cr of the photo: in RGB, the photo plus the difference of
        // the lumas (BT.601) in every channel.
        const float d = 0.299f * (r - pr) + 0.587f * (g - pg) + 0.114f * (b - pb);
        r = unit(pr + d), g = unit(pg + d), b = unit(pb + d);
      }
      if constexpr (MIX) {
        r = pr + (r - pr) * strength;
        g = pg + (g - pg) * strength;
        b = pb + (b - pb) * strength;
        if constexpr (sizeof(T) == 1) r = unit(r), g = unit(g), b = unit(b);
      }
    }
    put(out + 3 * x + first, r);
    put(out + 3 * x + 1, g);
    put(out + 3 * x + 2 - first, b);
  }
}

template <typename T>
inline void image_store_mode(const ImageRowArgs& a) {
  const bool mix = a.strength != 1.0f;
  if (a.preserve_color)
    return mix ? image_store_as<T, true, true>(a) : image_store_as<T, true, false>(a);
  return mix ? image_store_as<T, false, true>(a) : image_store_as<T, false, false>(a);
}

void image_store(const ImageRowArgs& a) {
  if (a.is_byte) return image_store_mode<uint8_t>(a);
  image_store_mode<float>(a);
}
