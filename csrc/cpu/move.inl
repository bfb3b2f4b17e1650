// Moving elements of 2 or 4 bytes: copies of rows, fills and transpositions. Included inside an
// instruction set's anonymous namespace.
#include "half.inl"

constexpr int64_t kLine = 64;  // bytes of a cache line

// A store to an aligned line that does not read it first, nor keeps it in a cache.
inline void stream_line(char* dst, const vf* line) {
  for (int i = 0; i < kLine / (VL * 4); ++i) {
#if defined(__AVX512F__)
    _mm512_stream_ps(reinterpret_cast<float*>(dst) + i * VL, line[i]);
#elif defined(__AVX2__)
    _mm256_stream_ps(reinterpret_cast<float*>(dst) + i * VL, line[i]);
#elif defined(__x86_64__)
    _mm_stream_ps(reinterpret_cast<float*>(dst) + i * VL, line[i]);
#else
    store(reinterpret_cast<float*>(dst) + i * VL, line[i]);
#endif
  }
}

// Stores of stream_line become visible to other threads in order again.
inline void stream_end() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

inline int64_t to_line(const char* p) {
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % kLine);
  return past ? kLine - past : 0;
}

template <typename T>
inline void copy_row(T* __restrict dst, const T* __restrict src, int64_t count, bool stream) {
  constexpr int64_t kCount = kLine / static_cast<int64_t>(sizeof(T));
  int64_t i = 0;
  if (stream) {
    const int64_t head = to_line(reinterpret_cast<char*>(dst)) / static_cast<int64_t>(sizeof(T));
    for (; i < head && i < count; ++i) dst[i] = src[i];
    for (; i + kCount <= count; i += kCount) {
      vf line[kLine / (VL * 4)];
      __builtin_memcpy(line, src + i, kLine);
      stream_line(reinterpret_cast<char*>(dst + i), line);
    }
  } else {
    __builtin_memcpy(dst, src, static_cast<size_t>(count) * sizeof(T));
    return;
  }
  for (; i < count; ++i) dst[i] = src[i];
}

template <typename T>
inline void fill_row(T* __restrict dst, T value, int64_t count, bool stream) {
  constexpr int64_t kCount = kLine / static_cast<int64_t>(sizeof(T));
  int64_t i = 0;
  if (stream) {
    const int64_t head = to_line(reinterpret_cast<char*>(dst)) / static_cast<int64_t>(sizeof(T));
    T values[kCount];
    for (T& one : values) one = value;
    vf line[kLine / (VL * 4)];
    __builtin_memcpy(line, values, kLine);
    for (; i < head && i < count; ++i) dst[i] = value;
    for (; i + kCount <= count; i += kCount) stream_line(reinterpret_cast<char*>(dst + i), line);
  }
  for (; i < count; ++i) dst[i] = value;
}

// Elements of 2 bytes are turned as if they had 4.
inline vf load_bits(const uint32_t* p) { return load(reinterpret_cast<const float*>(p)); }
inline void store_bits(uint32_t* p, vf v) { store(reinterpret_cast<float*>(p), v); }
inline vf load_bits(const uint16_t* p) {
  return reinterpret_cast<vf>(__builtin_convertvector(*reinterpret_cast<const vhu*>(p), vu));
}
inline void store_bits(uint16_t* p, vf v) {
  *reinterpret_cast<vhu*>(p) = __builtin_convertvector(reinterpret_cast<vu>(v), vh);
}

// dst[r][c] = src[c][r]
template <typename T>
void turn(T* dst, int64_t dst_row, const T* src, int64_t src_col, int64_t rows, int64_t cols) {
  const int64_t whole_rows = rows / VL * VL, whole_cols = cols / VL * VL;
  for (int64_t r = 0; r < whole_rows; r += VL)
    for (int64_t c = 0; c < whole_cols; c += VL) {
      vf v[VL];
#pragma GCC unroll 16
      for (int i = 0; i < VL; ++i) v[i] = load_bits(src + (c + i) * src_col + r);
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < VL; ++i) store_bits(dst + (r + i) * dst_row + c, v[i]);
    }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_cols : 0; c < cols; ++c)
      dst[r * dst_row + c] = src[c * src_col + r];
}

template <typename T>
void move_as(const MoveArgs& a) {
  T* dst = static_cast<T*>(a.dst);
  const T* src = static_cast<const T*>(a.src);
  if (a.src_col == 1) {
    for (int64_t r = 0; r < a.rows; ++r)
      copy_row(dst + r * a.dst_row, src + r * a.src_row, a.cols, a.stream);
  } else if (a.src_col == 0) {
    for (int64_t r = 0; r < a.rows; ++r)
      fill_row(dst + r * a.dst_row, src[r * a.src_row], a.cols, a.stream);
  } else {
    // src_row is 1. Tiles of 64 x 64 of source and result lie in the level 1 cache together.
    constexpr int64_t kTile = 64;
    for (int64_t c = 0; c < a.cols; c += kTile)
      for (int64_t r = 0; r < a.rows; r += kTile)
        turn(dst + r * a.dst_row + c, a.dst_row, src + c * a.src_col + r, a.src_col,
             a.rows - r < kTile ? a.rows - r : kTile, a.cols - c < kTile ? a.cols - c : kTile);
  }
  if (a.stream) stream_end();
}

void move(const MoveArgs& a) { a.size == 4 ? move_as<uint32_t>(a) : move_as<uint16_t>(a); }

typedef float vfb __attribute__((vector_size(VL * 4), aligned(1), may_alias));

// The rows are the channels of one position. For so few bytes a call of memcpy takes longer than
// the copy, so the compiler is kept from recognising one.
template <bool STREAM>
inline void join_row(char* __restrict dst, const char* __restrict src, int64_t bytes) {
  int64_t i = 0;
  for (; i + kLine <= bytes; i += kLine) {
    vf line[kLine / (VL * 4)];
    for (int k = 0; k < kLine / (VL * 4); ++k) {
      line[k] = *reinterpret_cast<const vfb*>(src + i + k * VL * 4);
      keep(line[k]);
    }
    if (STREAM) {
      stream_line(dst + i, line);
    } else {
      for (int k = 0; k < kLine / (VL * 4); ++k)
        *reinterpret_cast<vfb*>(dst + i + k * VL * 4) = line[k];
    }
  }
  for (; i + 16 <= bytes; i += 16) {
    __builtin_memcpy(dst + i, src + i, 16);
    __asm__ volatile("" : : : "memory");
  }
  for (; i < bytes; i += 2) {
    __builtin_memcpy(dst + i, src + i, 2);
    __asm__ volatile("" : : : "memory");
  }
}

template <bool STREAM>
inline void join_rows(const JoinArgs& a) {
  const int64_t bytes = a.a_bytes + a.b_bytes;
  for (int64_t r = 0; r < a.rows; ++r) {
    char* dst = a.dst + r * bytes;
    join_row<STREAM>(dst, a.a + r * a.a_row, a.a_bytes);
    join_row<STREAM>(dst + a.a_bytes, a.b + r * a.b_row, a.b_bytes);
  }
}

void join(const JoinArgs& a) {
  // Only whole aligned lines can be streamed.
  if (a.stream && to_line(a.dst) == 0 && (a.a_bytes | a.b_bytes) % kLine == 0) {
    join_rows<true>(a);
    stream_end();
  } else {
    join_rows<false>(a);
  }
}
