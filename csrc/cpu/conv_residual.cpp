// Adding a residual to a convolution's output that may hold its repeated middle only once.
#include "conv.h"

namespace fastgen {
namespace {

// Where position `at` of `size` lies in the compact residual of `count`: its ends and, for all
// between them, its middle.
int64_t compact(int64_t at, int64_t size, int64_t count) {
  const int64_t edge = count / 2;
  return at < edge ? at : std::max(edge, count - (size - at));
}

}  // namespace

void Conv::finish_at(const ConvCall& c, const Tile& t, int64_t block, int64_t y, int64_t x,
                     FinishArgs* f) const {
  finish_place(c, t, block, y, x, f);
  if (!c.repeated.h) return isa_->finish(*f);
  const int64_t width = c.shape->out.w, edge = c.repeated.w / 2;
  const ConvTensor& v = c.residual;
  const int64_t channel = v.planar ? block * kBlock * v.block : block * v.block;
  const char* row =
      static_cast<char*>(v.data) +
      (t.image * v.image + channel + v.place(compact(y, c.shape->out.h, c.repeated.h))) * v.bytes();
  const int64_t pixel = f->res_pixel, before = f->before;
  const int pixels = f->pixels;
  float* const tile = f->tile;
  char* const out = static_cast<char*>(f->out);
  const int64_t end = x + pixels;
  for (int64_t at = x; at < end;) {
    const bool middle = at >= edge && at < width - edge;
    const int64_t stop = std::min(end, at < edge ? edge : middle ? width - edge : width);
    const int64_t done = at - x;
    f->pixels = static_cast<int>(stop - at);
    f->tile = tile + done * f->nb * kBlock;
    f->out = out + done * f->out_pixel * c.out.bytes();
    f->residual = row + compact(at, width, c.repeated.w) * v.pixel * v.bytes();
    f->res_pixel = middle ? 0 : pixel;
    f->before = before + done;
    isa_->finish(*f);
    at = stop;
  }
  f->pixels = pixels;
  f->tile = tile;
  f->res_pixel = pixel;
  f->before = before;
}

}  // namespace fastgen
