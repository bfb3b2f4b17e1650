// Steadying video: its interface to the bindings.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace fastgen {

// Steadies a clip that is painted frame by frame: motion() of a frame, then blend() of its
// painting. One object is one stream. Frames are (height, width, 3) bytes.
class Stabilizer {
 public:
  Stabilizer(int threads, const std::string& isa);
  ~Stabilizer();
  Stabilizer(const Stabilizer&) = delete;
  Stabilizer& operator=(const Stabilizer&) = delete;

  // Whether the frame goes on where the one before was; not so at first, after a cut, at another
  // size.
  bool motion(const uint8_t* frame, int64_t width, int64_t height);
  // Whole pixels in 0..period-1, right and down, by which most of the picture has moved, but for
  // multiples of the period. 0 where the frame does not go on. The painting that is blended next is
  // taken to follow it.
  void shift(int period, int* x, int* y);
  // out = the painting (rows paint_row bytes apart), with at most `moving` of what was there before
  // mixed in where the picture moves and `still` where it does not; the sharpness that this costs
  // is given back.
  void blend(const uint8_t* painting, int64_t paint_row, uint8_t* out, int64_t width,
             int64_t height, double moving, double still, bool sharpen);
  void reset();
  // Per tile of 16x16 pixels: x and y where it was less where it is, and its mean difference.
  void vectors(int64_t* columns, int64_t* rows, std::vector<float>* values) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fastgen
