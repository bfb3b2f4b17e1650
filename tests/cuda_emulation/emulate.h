// The wrappers of csrc/cuda/common.cuh for the host, with checks that no GPU makes.
//
// Every thread of a block is a fiber, and fibers are switched only where threads wait for each
// other: at block barriers and at instructions of a whole warp. Those gather the operands of their
// 32 lanes, compute with the register layouts of the PTX manual and scatter the results.
//
// Checked: global accesses lie in declared buffers and are aligned; shared accesses lie in what the
// launch asked for and read only what was written; between two barriers no thread touches what
// another one writes; asynchronous copies are waited for before they are read or overwritten; all
// threads reach every barrier; all lanes of a warp execute the same instruction. What is wrong is
// thrown by the launch as std::runtime_error and names the kernel.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::fastgen::emulate::current_thread())
#define blockIdx (::fastgen::emulate::grid().block)
#define gridDim (::fastgen::emulate::grid().blocks)
#define blockDim (::fastgen::emulate::grid().threads)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

namespace fastgen {
namespace emulate {

struct Grid {
  dim3 blocks, threads, block;
};
Grid& grid();
dim3 current_thread();

void declare(uint64_t address, uint64_t bytes, bool writable, const char* name);
void forget_all();
// What was run since the program started; tests assert that it moved.
struct Counts {
  int64_t launches, blocks, barriers, mma, ldmatrix, cp_async;
};
Counts& counts();

void launch(const char* name, dim3 blocks, dim3 threads, int64_t shared_bytes,
            const std::function<void()>& kernel);
void allow_shared(int bytes);
// Between these nothing runs; what would have run is returned, to be run any number of times.
void begin_capture();
std::function<void()> end_capture();
// Does something now, or notes it during a capture.
void submit(const std::function<void()>& work);

void check_global(const void* address, int bytes, int alignment, bool write);
unsigned char* check_shared(int64_t offset, int bytes, bool write);
void barrier();
void cp_async16(int64_t offset, const void* from, bool valid);
void cp_async_commit();
void cp_async_wait(int pending);

void ldmatrix(uint32_t* r, int64_t offset, int matrices, bool transposed);
enum Operand { kHalf, kBHalf, kTf32 };
void mma(float* c, const uint32_t* a, const uint32_t* b, Operand operand);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);

}  // namespace emulate

namespace gpu {

struct half_t;
struct bhalf_t;

#define FASTGEN_LAUNCH(kernel, grid, block, shared, stream, ...)                        \
  ((void)(stream), ::fastgen::emulate::launch(__PRETTY_FUNCTION__, grid, block, shared, \
                                              [=] { kernel(__VA_ARGS__); }))

template <class T>
T load(const T* p) {
  emulate::check_global(p, sizeof(T), alignof(T), false);
  return *p;
}
template <class T>
T load_once(const T* p) {
  return load(p);
}
template <class T>
void store(T* p, T value) {
  emulate::check_global(p, sizeof(T), alignof(T), true);
  *p = value;
}

struct Shared {
  template <class T>
  T load(int offset) const {
    T value;
    std::memcpy(&value, emulate::check_shared(offset, sizeof(T), false), sizeof(T));
    return value;
  }
  template <class T>
  void store(int offset, T value) const {
    std::memcpy(emulate::check_shared(offset, sizeof(T), true), &value, sizeof(T));
  }
};
inline Shared shared_memory() { return {}; }
inline void barrier() { emulate::barrier(); }

inline void cp_async16(const Shared&, int offset, const void* from, bool valid) {
  emulate::cp_async16(offset, from, valid);
}
inline void cp_async_commit() { emulate::cp_async_commit(); }
template <int kPending>
void cp_async_wait() {
  emulate::cp_async_wait(kPending);
}

inline void ldmatrix4(uint32_t (&r)[4], const Shared&, int offset) {
  emulate::ldmatrix(r, offset, 4, false);
}
inline void ldmatrix4_transposed(uint32_t (&r)[4], const Shared&, int offset) {
  emulate::ldmatrix(r, offset, 4, true);
}
inline void ldmatrix2(uint32_t (&r)[2], const Shared&, int offset) {
  emulate::ldmatrix(r, offset, 2, false);
}

template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
  emulate::mma(c, a, b,
               std::is_same_v<T, float>    ? emulate::kTf32
               : std::is_same_v<T, half_t> ? emulate::kHalf
                                           : emulate::kBHalf);
}

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
// Nearest, ties away from zero.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = float_to_bits(x);
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}

template <class T>
std::enable_if_t<std::is_same_v<T, half_t>, float> to_float(T x) {
  return emulate::half_to_float(x.bits);
}
template <class T>
std::enable_if_t<std::is_same_v<T, bhalf_t>, float> to_float(T x) {
  return bits_to_float(static_cast<uint32_t>(x.bits) << 16);
}
template <class T>
std::enable_if_t<std::is_same_v<T, half_t>, T> from_float(float x, T) {
  return {emulate::float_to_half(x)};
}
template <class T>
std::enable_if_t<std::is_same_v<T, bhalf_t>, T> from_float(float x, T) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <class Kernel>
int allow_shared(Kernel*, int bytes) {
  emulate::allow_shared(bytes);
  return 0;
}
inline int launch_error() { return 0; }

}  // namespace gpu
}  // namespace fastgen
