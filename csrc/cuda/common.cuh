// Everything that is specific to the machine, behind thin wrappers: tensor cores, asynchronous
// copies, shared and global memory, barriers, launches.
//
// Kernels use nothing else, so the same sources also compile for the host against the emulation of
// these wrappers (tests/cuda_emulation/emulate.h, FASTGEN_EMULATE), which checks every address and
// every fragment. The instructions are those of sm_80; newer cards run them unchanged.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#ifdef FASTGEN_EMULATE
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace fastgen {
namespace gpu {

struct half_t {
  uint16_t bits;
};
struct bhalf_t {
  uint16_t bits;
};
struct alignas(16) Vec16 {  // what one thread moves at once
  uint32_t word[4];
};
struct alignas(8) Vec8 {
  uint32_t word[2];
};

#ifndef FASTGEN_EMULATE

#define FASTGEN_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)

// ------------------------------------------------------------------ memory

// Read-only global memory. 16 bytes become one LDG.E.128.
template <class T>
__device__ __forceinline__ T load(const T* p) {
  return *p;
}
__device__ __forceinline__ Vec16 load(const Vec16* p) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(p));
  return {{v.x, v.y, v.z, v.w}};
}
// Memory that is read once: keep it out of the way of what is read again.
template <class T>
__device__ __forceinline__ T load_once(const T* p) {
  return *p;
}
__device__ __forceinline__ Vec16 load_once(const Vec16* p) {
  const uint4 v = __ldcs(reinterpret_cast<const uint4*>(p));
  return {{v.x, v.y, v.z, v.w}};
}
template <class T>
__device__ __forceinline__ void store(T* p, T value) {
  *p = value;
}
__device__ __forceinline__ void store(Vec16* p, Vec16 v) {
  *reinterpret_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

// The block's dynamic shared memory, addressed by byte offsets.
struct Shared {
  unsigned char* data;
  uint32_t base;

  template <class T>
  __device__ __forceinline__ T load(int offset) const {
    return *reinterpret_cast<const T*>(data + offset);
  }
  template <class T>
  __device__ __forceinline__ void store(int offset, T value) const {
    *reinterpret_cast<T*>(data + offset) = value;
  }
};

__device__ __forceinline__ Shared shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return {memory, static_cast<uint32_t>(__cvta_generic_to_shared(memory))};
}

__device__ __forceinline__ void barrier() { __syncthreads(); }

// 16 bytes from global to shared memory past the registers; zeros where not valid (nothing is
// read).
__device__ __forceinline__ void cp_async16(const Shared& s, int offset, const void* from,
                                           bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(s.base + offset), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Returns when at most `kPending` of this thread's groups are still on their way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// ------------------------------------------------------------------ tensor cores

// Four (two) 8x8 matrices of 16-bit elements; lane l names row l%8 of matrix l/8.
__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], const Shared& s, int offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(s.base + offset)
               : "memory");
}
__device__ __forceinline__ void ldmatrix4_transposed(uint32_t (&r)[4], const Shared& s,
                                                     int offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(s.base + offset)
               : "memory");
}
__device__ __forceinline__ void ldmatrix2(uint32_t (&r)[2], const Shared& s, int offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(s.base + offset)
               : "memory");
}

// c += a b: m16n8k16 for 16-bit operands, m16n8k8 for tf32; fp32 accumulators.
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    half_t) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    bhalf_t) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    float) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest tf32 value.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
  return bits;
}

// ------------------------------------------------------------------ numbers

__device__ __forceinline__ float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t float_to_bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float to_float(half_t x) {
  return __half2float(__ushort_as_half(x.bits));
}
__device__ __forceinline__ float to_float(bhalf_t x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ half_t from_float(float x, half_t) {
  return {__half_as_ushort(__float2half_rn(x))};
}
__device__ __forceinline__ bhalf_t from_float(float x, bhalf_t) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

// ------------------------------------------------------------------ launches

// More than 48 KB of dynamic shared memory has to be asked for.
template <class Kernel>
int allow_shared(Kernel* kernel, int bytes) {
  if (bytes <= 48 * 1024) return 0;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
inline int launch_error() { return cudaGetLastError(); }

#endif  // FASTGEN_EMULATE

#define FASTGEN_DEVICE __device__ __forceinline__
#define FASTGEN_HOST_DEVICE __host__ __device__ __forceinline__

FASTGEN_DEVICE float to_float(float x) { return x; }
FASTGEN_DEVICE float from_float(float x, float) { return x; }

// ------------------------------------------------------------------ vectors of 16 bytes

// How many elements 16 bytes hold, and their conversion to and from float.
template <class T>
struct Chunk {
  static constexpr int kSize = 16 / sizeof(T);

  static FASTGEN_DEVICE void unpack(const Vec16& v, float (&x)[kSize]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        x[i] = bits_to_float(v.word[i]);
      } else {
        x[2 * i] = to_float(T{static_cast<uint16_t>(v.word[i] & 0xffff)});
        x[2 * i + 1] = to_float(T{static_cast<uint16_t>(v.word[i] >> 16)});
      }
    }
  }
  static FASTGEN_DEVICE Vec16 pack(const float (&x)[kSize]) {
    Vec16 v;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        v.word[i] = float_to_bits(x[i]);
      } else {
        v.word[i] = from_float(x[2 * i], T{}).bits |
                    static_cast<uint32_t>(from_float(x[2 * i + 1], T{}).bits) << 16;
      }
    }
    return v;
  }
};

// ------------------------------------------------------------------ warp tiles

// A warp's (16 kM) x (8 kN) piece of a product, for one step of 32 bytes of depth.
//
// fp32 operands are split into two tf32 values each and multiplied three times (3xTF32): the lost
// term is the product of both low parts, 2^-22 of the result, so products are as good as fp32's.
// Their sum is rounded towards zero by each mma: up to 2^-23 of it, three times for 8 of depth.
// (Steps of their own, added by rounding to nearest, would avoid that but spill on sm_90a.)
template <class T, int kM, int kN>
struct WarpTile {
  float c[kM][kN][4];

  FASTGEN_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i)
#pragma unroll
      for (int j = 0; j < kN; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) c[i][j][e] = 0.0f;
  }

  FASTGEN_DEVICE void multiply(uint32_t (&a)[kM][4], uint32_t (&b)[kN][2]) {
    if constexpr (sizeof(T) == 4) {
      uint32_t low_b[kN][2];
#pragma unroll
      for (int j = 0; j < kN; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) split(b[j][e], low_b[j][e]);
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        uint32_t low_a[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) split(a[i][e], low_a[e]);
#pragma unroll
        for (int j = 0; j < kN; ++j) mma(c[i][j], low_a, b[j], T{});  // small terms first
#pragma unroll
        for (int j = 0; j < kN; ++j) mma(c[i][j], a[i], low_b[j], T{});
#pragma unroll
        for (int j = 0; j < kN; ++j) mma(c[i][j], a[i], b[j], T{});
      }
    } else {
#pragma unroll
      for (int i = 0; i < kM; ++i)
#pragma unroll
        for (int j = 0; j < kN; ++j) mma(c[i][j], a[i], b[j], T{});
    }
  }

 private:
  static FASTGEN_DEVICE void split(uint32_t& high, uint32_t& low) {
    const float x = bits_to_float(high);
    high = to_tf32(x);
    low = to_tf32(x - bits_to_float(high));
  }
};

// Calls `use` with a value of the type that is stored for a DType.
template <class Use>
int with_type(int dtype, const Use& use) {
  if (dtype == 1) return use(half_t{});
  if (dtype == 2) return use(bhalf_t{});
  return use(float{});
}

}  // namespace gpu
}  // namespace fastgen
