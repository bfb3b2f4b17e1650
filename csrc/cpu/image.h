// Image batches (N,H,W,3) to the model's planar floats and back.
#pragma once

#include "../fastgen.h"
#include "kernels.h"
#include "parallel.h"

namespace fastgen {

// To planar (n,3,rows,columns), continued by reflection (a triangle wave, so any size works).
void image_load(const Kernels& isa, Pool* pool, const void* photo, bool is_byte, int64_t n,
                int64_t height, int64_t width, int64_t rows, int64_t columns, const ImageIO& io,
                float* out);

// From planar (n,3,rows,columns): crop, clamp, colour keep, strength, rounding.
void image_store(const Kernels& isa, Pool* pool, const float* planes, const void* photo,
                 bool is_byte, int64_t n, int64_t height, int64_t width, int64_t rows,
                 int64_t columns, const ImageIO& io, void* out);

}  // namespace fastgen
