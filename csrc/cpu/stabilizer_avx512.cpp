// The stabilizer's kernels for AVX-512 (F, DQ, BW, VL).
#include <cstdint>
#include <cstring>

#include "stabilizer_kernels.h"

namespace fastgen {
namespace {
#include "stabilizer.inl"
}  // namespace

const StabilizerKernels* stabilizer_avx512() { return &stabilizer_table; }

}  // namespace fastgen
