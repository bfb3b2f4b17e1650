// Element types of tensors. Emits no code: kernels of every instruction set include it.
#pragma once

namespace fastgen {

enum DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

}  // namespace fastgen
