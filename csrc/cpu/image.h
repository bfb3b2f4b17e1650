// Image batches (N,H,W,3) to the model's planar floats and back.
#pragma once

#include "engine.h"

namespace fastgen {

// Rows [first, last) of the planar value `to` at `data` (n,3,rows,columns), continued by reflection
// (a triangle wave, so any size works).
void image_load(const Kernels& isa, Pool* pool, const ImageCall& image, int64_t first, int64_t last,
                const Value& to, float* data);

// Rows [first, last) of the image from a planar value: crop, clamp, colour keep, strength,
// rounding.
void image_store(const Kernels& isa, Pool* pool, const Value& from, const float* data,
                 int64_t first, int64_t last, const ImageCall& image);

// The same as steps of a run in bands.
std::unique_ptr<Step> make_image_load(int value);
std::unique_ptr<Step> make_image_store(int value, int64_t height);

}  // namespace fastgen
