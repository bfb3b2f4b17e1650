// Moving elements of 2 or 4 bytes: copies of rows, fills and transpositions. Included inside an
// instruction set's anonymous namespace.
#include "vec.inl"

constexpr int64_t kLine = 64;  // bytes of a cache line

// Copies (REPEAT: repeats the first vector's bytes) with stores that do not read the line first.
// dst is aligned to a line, bytes a multiple of it.
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
  const int64_t head = to_line(reinterpret_cast<char*>(dst)) / static_cast<int64_t>(sizeof(T));
  constexpr int64_t kCount = kLine / static_cast<int64_t>(sizeof(T));
  if (!stream || count < head + kCount) {
    __builtin_memcpy(dst, src, static_cast<size_t>(count) * sizeof(T));
    return;
  }
  int64_t i = 0;
  for (; i < head; ++i) dst[i] = src[i];
  for (; i + kCount <= count; i += kCount) {
    vf line[kLine / (VL * 4)];
    __builtin_memcpy(line, src + i, kLine);
    stream_line(reinterpret_cast<char*>(dst + i), line);
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

// dst[r][c] = src[c][r]
template <typename T>
void turn(T* __restrict dst, int64_t dst_row, const T* __restrict src, int64_t src_col,
          int64_t rows, int64_t cols) {
  int64_t r = 0;
  for (; r + VL <= rows; r += VL) {
    int64_t c = 0;
    if constexpr (sizeof(T) == 4) {
      for (; c + VL <= cols; c += VL) {
        vf v[VL];
#pragma GCC unroll 16
        for (int i = 0; i < VL; ++i) __builtin_memcpy(&v[i], src + (c + i) * src_col + r, VL * 4);
        transpose(v);
#pragma GCC unroll 16
        for (int i = 0; i < VL; ++i) __builtin_memcpy(dst + (r + i) * dst_row + c, &v[i], VL * 4);
      }
    }
    for (; c < cols; ++c)
      for (int i = 0; i < VL; ++i) dst[(r + i) * dst_row + c] = src[c * src_col + r + i];
  }
  for (; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) dst[r * dst_row + c] = src[c * src_col + r];
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
    // src_row is 1. Tiles of 64 columns, so that a line of the source is used up while it is there.
    for (int64_t c = 0; c < a.cols; c += 64)
      turn(dst + c, a.dst_row, src + c * a.src_col, a.src_col, a.rows,
           a.cols - c < 64 ? a.cols - c : 64);
  }
  if (a.stream) stream_end();
}

void move(const MoveArgs& a) { a.size == 4 ? move_as<uint32_t>(a) : move_as<uint16_t>(a); }
