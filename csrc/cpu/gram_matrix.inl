// Products of all pairs of channels over a block of positions. Vector lanes run over positions, so
// no value is broadcast and a sum is spread over the lanes until the block ends: that is fast, and
// adds few numbers in a row. Included inside an instruction set's anonymous namespace.
#include "half.inl"

// Lane i of the result is the sum of the lanes of r[i].
inline vf sum_lanes(vf (&r)[VL]) {
  constexpr auto lanes = std::make_integer_sequence<int, VL>();
  if constexpr (VL >= 16) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) exchange<8>(r[i], r[(i + 8) % VL], lanes), r[i] += r[(i + 8) % VL];
  }
  if constexpr (VL >= 8) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) exchange<4>(r[i], r[(i + 4) % VL], lanes), r[i] += r[(i + 4) % VL];
  }
  for (int i = 0; i < 2; ++i) exchange<2>(r[i], r[i + 2], lanes), r[i] += r[i + 2];
  exchange<1>(r[0], r[1], lanes);
  return r[0] + r[1];
}

// With AVX512_BF16 the rows of a panel of bfloat16 stay as they are: a multiplication takes pairs
// of neighbouring positions, twice as many. It treats subnormal numbers as zero.
#if defined(__AVX512BF16__)
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

template <bool PAIRS>
inline vf multiply_add(vf acc, vf x, vf y) {
#if defined(__AVX512BF16__)
  if constexpr (PAIRS)
    return reinterpret_cast<vf>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(acc),
                                                 reinterpret_cast<__m512bh>(x),
                                                 reinterpret_cast<__m512bh>(y)));
#endif
  return acc + x * y;
}

// The elements of a panel that is loaded from T.
template <typename T>
using Factor = std::conditional_t<kPairs && std::is_same_v<T, bf16>, bf16, float>;

inline void put(float* p, vf v) { store(p, v); }
inline void put1(float* p, float v) { *p = v; }
// Exact: the value was a bfloat16.
inline void put(bf16* p, vf v) {
  *reinterpret_cast<vhu*>(p) = __builtin_convertvector(reinterpret_cast<vu>(v) >> 16, vh);
}
inline void put1(bf16* p, float v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  p->bits = static_cast<uint16_t>(bits >> 16);
}

// Four rows times COLS rows of the panel.
template <int COLS, bool PAIRS>
inline void gram_tile(const float* a, const float* b, int count, double* sums) {
  constexpr int SUMS = kGramTile * COLS;
  static_assert(SUMS % VL == 0, "sums fill whole vectors");
  vf acc[SUMS];
#pragma GCC unroll 16
  for (int i = 0; i < SUMS; ++i) acc[i] = vf{};
  const int steps = PAIRS ? count / 2 : count;
  for (int k = 0; k < steps; k += VL) {
    vf x[kGramTile];
#pragma GCC unroll 4
    for (int r = 0; r < kGramTile; ++r) x[r] = load(a + r * kGramPositions + k);
#pragma GCC unroll 4
    for (int s = 0; s < COLS; ++s) {
      vf y = load(b + s * kGramPositions + k);
      keep(y);
#pragma GCC unroll 4
      for (int r = 0; r < kGramTile; ++r)
        acc[r * COLS + s] = multiply_add<PAIRS>(acc[r * COLS + s], x[r], y);
    }
  }
#pragma GCC unroll 4
  for (int group = 0; group < SUMS / VL; ++group) {
    vf part[VL];
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) part[i] = acc[group * VL + i];
    float total[VL];
    store(total, sum_lanes(part));
    for (int i = 0; i < VL; ++i) {
      const int at = group * VL + i;
      sums[at / COLS * kGramTile + at % COLS] += static_cast<double>(total[i]);
    }
  }
}

// Brings what the next panel will load into a cache, some of it with every tile.
struct GramAhead {
  const GramTileArgs& a;
  int64_t each, row = 0, line = 0;

  GramAhead(const GramTileArgs& args, int64_t tiles)
      : a(args), each((args.next_rows * args.next_lines + tiles - 1) / tiles) {}
  void some() {
    for (int64_t k = 0; k < each && row < a.next_rows; ++k) {
      __builtin_prefetch(a.next + row * a.next_row + line * 64, 0, 2);
      if (++line == a.next_lines) line = 0, ++row;
    }
  }
};

template <bool PAIRS>
void gram_tiles_as(const GramTileArgs& a) {
  // Columns of at most 128 channels stay in the level 2 cache; 2x2 tiles share rows in level 1.
  constexpr int64_t kColumns = 32;
  const int64_t tiles = (a.last * (a.last + 1) - a.first * (a.first + 1)) / 2;
  GramAhead ahead(a, tiles);
  if (tiles < 32) ahead.each = 0;  // too quick to hide it
  const auto row = [&a](int64_t tile) { return a.panel + tile * kGramTile * kGramPositions; };
  for (int64_t from = 0; from < a.last; from += kColumns)
    for (int64_t i2 = from > a.first ? from : a.first; i2 < a.last; i2 += 2)
      for (int64_t j2 = from; j2 < from + kColumns && j2 <= i2 + 1; j2 += 2)
        for (int64_t i = i2; i < i2 + 2 && i < a.last; ++i)
          for (int64_t j = j2; j < j2 + 2 && j <= i; ++j) {
            ahead.some();
            double* sums = a.sums + (i * (i + 1) / 2 + j) * (kGramTile * kGramTile);
            for (int s = 0; s < kGramTile; s += FASTGEN_GRAM_COLS)
              gram_tile<FASTGEN_GRAM_COLS, PAIRS>(row(i), row(j) + s * kGramPositions, a.count,
                                                  sums + s);
          }
}

#include "gram_blocked.inl"

template <bool PAIRS>
void gram_tiles_of(const GramTileArgs& a) {
  a.blocked ? gram_blocked_as<PAIRS>(a) : gram_tiles_as<PAIRS>(a);
}

void gram_tiles(const GramTileArgs& a) {
  kPairs&& a.dtype == kBFloat16 ? gram_tiles_of<kPairs>(a) : gram_tiles_of<false>(a);
}

// Row c of the panel.
template <typename T>
inline Factor<T>* panel_row(const GramPackArgs& a, int64_t c) {
  return reinterpret_cast<Factor<T>*>(a.panel + c * kGramPositions);
}

template <typename T>
void gram_pack_rows(const GramPackArgs& a) {
  const T* data = static_cast<const T*>(a.data);
  const int whole = a.count / VL * VL;
  for (int64_t c = 0; c < a.channels; ++c) {
    const T* src = data + c * a.channel;
    Factor<T>* dst = panel_row<T>(a, c);
    int k = 0;
    for (; k < whole; k += VL) put(dst + k, load_as(src + k));
    for (; k < a.count; ++k) put1(dst + k, load_one(src + k));
  }
}

// Positions have their channels side by side: turned in registers, VL positions at a time. Only the
// first ROWS channels of every vector are kept.
template <int ROWS, typename T>
inline void gram_turn(const GramPackArgs& a, int k, int64_t c, int64_t rows) {
  const T* src = static_cast<const T*>(a.data) + k * a.position + c;
  vf r[VL];
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) r[i] = load_as(src + i * a.position);
  transpose(r);
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
    if (ROWS <= 4 || i < rows) put(panel_row<T>(a, c + i) + k, r[i]);
}

template <typename T>
void gram_pack_turned(const GramPackArgs& a) {
  const T* data = static_cast<const T*>(a.data);
  int k = 0;
  if (a.channels >= VL) {
    for (; k + VL <= a.count; k += VL)
      for (int64_t c = 0; c < a.channels; c += VL) {
        const int64_t from = c + VL <= a.channels ? c : a.channels - VL;  // the last one overlaps
        gram_turn<VL, T>(a, k, from, VL);
      }
  } else {
    // A vector reads on into the next positions, as long as there are some.
    const int64_t end = (a.count - 1) * a.position + a.channels - VL;
    for (; (k + VL - 1) * a.position <= end; k += VL) {
      if (a.channels <= 4)  // rows up to the fourth exist in the panel
        gram_turn<4, T>(a, k, 0, 4);
      else
        gram_turn<VL, T>(a, k, 0, a.channels);
    }
  }
  for (; k < a.count; ++k)
    for (int64_t c = 0; c < a.channels; ++c)
      put1(panel_row<T>(a, c) + k, load_one(data + k * a.position + c * a.channel));
}

template <typename T>
void gram_pack_as(const GramPackArgs& a) {
  if (a.blocked) return gram_pack_blocks<T>(a);
  a.position == 1 ? gram_pack_rows<T>(a) : gram_pack_turned<T>(a);
  const int64_t rows = (a.channels + kGramTile - 1) / kGramTile * kGramTile;
  const int filled = (a.count + kGramFill - 1) / kGramFill * kGramFill;
  for (int64_t c = 0; c < rows; ++c) {
    Factor<T>* row = panel_row<T>(a, c);
    for (int k = c < a.channels ? a.count : 0; k < filled; ++k) put1(row + k, 0.0f);
  }
}

void gram_pack(const GramPackArgs& a) {
  if (a.dtype == kFloat32) gram_pack_as<float>(a);
  if (a.dtype == kFloat16) gram_pack_as<f16>(a);
  if (a.dtype == kBFloat16) gram_pack_as<bf16>(a);
}
