// Portable kernels of the stabilizer.
#include <cstdint>
#include <cstring>

#include "stabilizer_kernels.h"

namespace fastgen {
namespace {
#include "stabilizer.inl"
}  // namespace

const StabilizerKernels* stabilizer_scalar() { return &stabilizer_table; }

}  // namespace fastgen
