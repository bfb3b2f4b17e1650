// Element types of tensors. Emits no code: kernels of every instruction set include it.
#pragma once

namespace fastgen {

enum DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
constexpr int kInt8 = 3;  // of factors only: unsigned activations, signed weights

}  // namespace fastgen
