// The convolution kernels of fp16 tensors.
#include "conv_tiles.cuh"

namespace fastgen {
namespace gpu {

int launch_conv_fp16(const CudaConvPlan& plan, const ConvArgs& args, void* stream) {
  return launch_conv<half_t>(plan, args, static_cast<cudaStream_t>(stream));
}

}  // namespace gpu
}  // namespace fastgen
