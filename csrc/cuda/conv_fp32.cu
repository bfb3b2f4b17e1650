// The convolution kernels of fp32 tensors.
#include "conv_tiles.cuh"

namespace fastgen {
namespace gpu {

int launch_conv_fp32(const CudaConvPlan& plan, const ConvArgs& args, void* stream) {
  return launch_conv<float>(plan, args, static_cast<cudaStream_t>(stream));
}

}  // namespace gpu
}  // namespace fastgen
