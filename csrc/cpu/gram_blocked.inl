// Products of all pairs of channels of a panel whose positions keep their channels side by side, as
// in channels_last memory: nothing is turned. A value of one channel is broadcast and meets vectors
// of other channels, so that sums lie in the lanes of the result. Included by gram_matrix.inl.
#pragma once

// Positions that are added up in registers before the sums are put aside, against rounding.
constexpr int kGramSerial = 128;

// One 32-bit word, a value or a pair of them, in all lanes.
template <bool PAIRS>
inline vf spread(const float* p) {
  if constexpr (PAIRS) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return reinterpret_cast<vf>(pair - vi{});
  }
  return splat(*p);
}

// Vector v of the panel's channels.
inline const float* gram_vector(const GramTileArgs& a, int64_t v) {
  return a.panel + v / VPB * kGramBlock + v % VPB * VL;
}

// Channels y..y+ROWS times vectors v..v+VECTORS of channels.
template <int ROWS, int VECTORS, bool PAIRS>
void gram_blocked_tile(const GramTileArgs& a, int64_t y, int64_t v) {
  alignas(64) float total[ROWS][VECTORS * VL];
  const float* x = a.panel + y / kBlock * kGramBlock + y % kBlock;
  const float* columns[VECTORS];
  for (int s = 0; s < VECTORS; ++s) columns[s] = gram_vector(a, v + s);
  const int words = PAIRS ? (a.count + 1) / 2 : a.count;
  constexpr int SERIAL = PAIRS ? kGramSerial / 2 : kGramSerial;
  for (int done = 0; done < words; done += SERIAL) {
    vf acc[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < VECTORS; ++s) acc[r][s] = vf{};
    const int64_t end = (words - done < SERIAL ? words : done + SERIAL) * int64_t{kBlock};
    for (int64_t k = done * int64_t{kBlock}; k < end; k += kBlock) {
      vf column[VECTORS];
#pragma GCC unroll 4
      for (int s = 0; s < VECTORS; ++s) {
        column[s] = load(columns[s] + k);
        keep(column[s]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const vf value = spread<PAIRS>(x + k + r);
#pragma GCC unroll 4
        for (int s = 0; s < VECTORS; ++s)
          acc[r][s] = multiply_add<PAIRS>(acc[r][s], value, column[s]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < VECTORS; ++s) {
        float* to = total[r] + s * VL;
        store(to, done ? load(to) + acc[r][s] : acc[r][s]);
      }
  }
  const int64_t j = v * VL / kGramTile;
  for (int r = 0; r < ROWS; ++r) {
    const int64_t i = (y + r) / kGramTile;
    if (i >= a.last) break;  // channels that fill up the last block
    double* sums = a.sums + (i * (i + 1) / 2 + j) * (kGramTile * kGramTile) + r % kGramTile * 4;
    for (int q = 0; q < VECTORS * VL / kGramTile && j + q <= i; ++q)
      for (int c = 0; c < kGramTile; ++c)
        sums[q * kGramTile * kGramTile + c] += static_cast<double>(total[r][q * kGramTile + c]);
  }
}

// Rows y..y+16 times vectors [v, last).
template <bool PAIRS>
void gram_blocked_rows(const GramTileArgs& a, int64_t y, int64_t v, int64_t last,
                       GramAhead* ahead) {
  constexpr int ROWS = FASTGEN_GRAM_ROWS, MOST = FASTGEN_GRAM_VECTORS;
  while (v < last) {
    // Two vectors twice are faster than three and one.
    const int64_t left = last - v, taken = left == 4 ? 2 : left < MOST ? left : MOST;
    for (int64_t r = 0; r < kBlock; r += taken == 1 ? 2 * ROWS : ROWS) {
      ahead->some();
      if (taken == 1)
        gram_blocked_tile<2 * ROWS, 1, PAIRS>(a, y + r, v);
      else if (taken == 2)
        gram_blocked_tile<ROWS, 2, PAIRS>(a, y + r, v);
      else
        gram_blocked_tile<ROWS, MOST, PAIRS>(a, y + r, v);
    }
    v += taken;
  }
}

template <bool PAIRS>
void gram_blocked_as(const GramTileArgs& a) {
  // 128 channels of columns stay in the level 2 cache.
  constexpr int64_t kColumns = 128 / kBlock, kTiles = kBlock / kGramTile;
  const int64_t first = a.first / kTiles, last = (a.last + kTiles - 1) / kTiles;
  const int64_t squares = (last * (last + 1) - first * (first + 1)) / 2;
  GramAhead ahead(a, squares);
  for (int64_t from = 0; from < last; from += kColumns)
    for (int64_t i = from > first ? from : first; i < last; ++i)
      gram_blocked_rows<PAIRS>(a, i * kBlock, from * VPB,
                               (i + 1 < from + kColumns ? i + 1 : from + kColumns) * VPB, &ahead);
}

// A vector of one position's channels, the last ones of them with zeros behind.
template <typename T>
inline vf gram_channels(const T* p, int64_t left) {
  return left >= VL ? load_as(p) : left > 0 ? load_part(p, static_cast<int>(left)) : vf{};
}

template <typename T>
void gram_pack_blocks(const GramPackArgs& a) {
  const T* data = static_cast<const T*>(a.data);
  constexpr bool PAIRS = kPairs && std::is_same_v<T, bf16>;
  for (int k = 0; k < a.count; k += PAIRS ? 2 : 1) {
    const T* src = data + k * a.position;
    float* dst = a.panel + (PAIRS ? k / 2 : k) * kBlock;
    for (int64_t c = 0; c < a.channels; c += kBlock, dst += kGramBlock)
      for (int j = 0; j < kBlock; j += VL) {
        const vf low = gram_channels(src + c + j, a.channels - c - j);
        if constexpr (!PAIRS) {
          store(dst + j, low);
        } else {
          vf high{};
          if (k + 1 < a.count) high = gram_channels(src + a.position + c + j, a.channels - c - j);
          store(dst + j,
                reinterpret_cast<vf>(reinterpret_cast<vu>(low) >> 16 | reinterpret_cast<vu>(high)));
        }
      }
  }
}
