// Constants that the convolution kernel and its plan share.
#pragma once

namespace fastgen {
namespace gpu {

constexpr int kRowBytes = 64;  // of a halo position and of an output's weights, per step
constexpr int kStages = 4;     // slots of the ring of weights
constexpr int kTileSkew = 8;   // floats between rows of the output tile

}  // namespace gpu
}  // namespace fastgen
