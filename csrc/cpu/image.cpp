#include "image.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace fastgen {
namespace {

std::vector<int32_t> reflect_index(int64_t size, int64_t padded) {
  std::vector<int32_t> index(padded, 0);
  const int64_t period = std::max<int64_t>(2 * (size - 1), 1);
  for (int64_t i = 0; i < padded && size > 1; ++i)
    index[i] = static_cast<int32_t>(std::min(i % period, period - i % period));
  return index;
}

const char* row_of(const void* photo, bool is_byte, int64_t row, int64_t width) {
  return static_cast<const char*>(photo) + row * width * 3 * (is_byte ? 1 : 4);
}

class ImageLoad final : public Step {
 public:
  explicit ImageLoad(int value) : Step("image in"), value_(value) {}

  void plan(const Plan& plan, const std::vector<Slot>&, const Kernels&, int,
            StepPlan* out) const override {
    out->units = plan.values[value_].shape.h;
  }
  void flow(const Plan&, const StepPlan& step, Flow* out) const override {
    out->writes.push_back({value_, {}});
    for (int64_t y = 1; y <= step.units; ++y) out->writes[0].ready.push_back(y);
  }
  void run(const Context& c) const override {
    image_load(*c.isa, c.pool, *c.photo, c.first_unit, c.last_unit, c.value(value_),
               c.data(value_));
  }

 private:
  int value_;
};

class ImageStore final : public Step {
 public:
  ImageStore(int value, int64_t height) : Step("image out"), value_(value), height_(height) {}

  void plan(const Plan&, const std::vector<Slot>&, const Kernels&, int,
            StepPlan* out) const override {
    out->units = height_;
  }
  void flow(const Plan&, const StepPlan& step, Flow* out) const override {
    out->reads.push_back({value_, {}});
    for (int64_t y = 0; y < step.units; ++y) out->reads[0].rows.push_back({y, y + 1});
  }
  void run(const Context& c) const override {
    image_store(*c.isa, c.pool, c.value(value_), c.data(value_), c.first_unit, c.last_unit,
                *c.photo);
  }

 private:
  int value_;
  int64_t height_;
};

}  // namespace

void image_load(const Kernels& isa, Pool* pool, const ImageCall& image, int64_t first, int64_t last,
                const Value& to, float* data) {
  const int64_t columns = to.shape.w, count = last - first;
  const std::vector<int32_t> index_x = reflect_index(image.width, columns);
  const std::vector<int32_t> index_y = reflect_index(image.height, to.shape.h);
  pool->run(image.n * count, [&](int64_t item, int) {
    const int64_t n = item / count, y = first + item % count;
    ImageRowArgs a{};
    a.photo = row_of(image.photo, image.is_byte, n * image.height + index_y[y], image.width);
    a.is_byte = image.is_byte;
    a.width = static_cast<int>(image.width);
    a.padded = static_cast<int>(columns);
    a.index = index_x.data();
    for (int c = 0; c < 3; ++c)
      a.plane[c] = data + n * to.image + c * to.block + to.place(y) * to.row;
    a.low = image.io.input_low;
    a.high = image.io.input_high;
    a.bgr = image.io.bgr;
    isa.image_load(a);
  });
}

void image_store(const Kernels& isa, Pool* pool, const Value& from, const float* data,
                 int64_t first, int64_t last, const ImageCall& image) {
  const int64_t count = last - first;
  pool->run(image.n * count, [&](int64_t item, int) {
    const int64_t n = item / count, y = first + item % count, row = n * image.height + y;
    ImageRowArgs a{};
    a.photo = row_of(image.photo, image.is_byte, row, image.width);
    a.out = const_cast<char*>(row_of(image.out, image.is_byte, row, image.width));
    a.is_byte = image.is_byte;
    a.width = static_cast<int>(image.width);
    for (int c = 0; c < 3; ++c)
      a.plane[c] =
          const_cast<float*>(data) + n * from.image + c * from.block + from.place(y) * from.row;
    a.low = image.io.output_low;
    a.high = image.io.output_high;
    a.strength = image.io.strength;
    a.preserve_color = image.io.preserve_color;
    a.bgr = image.io.bgr;
    isa.image_store(a);
  });
}

std::unique_ptr<Step> make_image_load(int value) { return std::make_unique<ImageLoad>(value); }
std::unique_ptr<Step> make_image_store(int value, int64_t height) {
  return std::make_unique<ImageStore>(value, height);
}

}  // namespace fastgen
