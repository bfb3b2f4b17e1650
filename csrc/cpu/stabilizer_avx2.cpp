// The stabilizer's kernels for AVX2.
#include <cstdint>
#include <cstring>

#include "stabilizer_kernels.h"

namespace fastgen {
namespace {
#include "stabilizer.inl"
}  // namespace

const StabilizerKernels* stabilizer_avx2() { return &stabilizer_table; }

}  // namespace fastgen
