// The CPU kernels of detail_channels. A row of the result needs a few rows above and below it, which are kept in two
// rings: rows of v, and rows of d (see detail_channels.h). Every pass over a row reads vectors of adjacent columns.
// Everything that a row needs stays in the L1 and L2 caches, whereas whole images between the passes would not.
#include "detail_channels.h"

#include "../common/vec_math.h"

namespace danet {
namespace {

using F = Vec<float>;
constexpr int64_t L = kLanes<float>;
// Sums over rows are computed for this many vectors of columns at a time: additions to one sum wait for one another.
constexpr int kSumsAtOnce = 4;

// The index of the pixel that continues a row or column of n pixels at i: mirrored about the outermost pixels.
inline int64_t mirrored(int64_t i, int64_t n) {
  if (n == 1) return 0;
  while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
  return i;
}

// The memory of a thread. Rows have `pitch` floats, of which the first `margin` and those from margin + W on continue
// the row beyond the border of the image.
struct DetailMemory {
  int64_t margin, pitch, value_rows, detail_rows;
  float *values = nullptr, *details = nullptr, *sums = nullptr, *smoothed = nullptr;

  explicit DetailMemory(const DetailParams& p) {
    const int64_t filter_radius = radius_of_filters(p);
    const int64_t largest = filter_radius > p.neighborhood_radius ? filter_radius : p.neighborhood_radius;
    margin = (largest + L - 1) / L * L;
    // Sums over rows write up to kSumsAtOnce vectors beyond the last column; box_sums reads a vector and twice the
    // radius beyond it.
    pitch = margin + (p.W + 2 * largest + L - 1) / L * L + kSumsAtOnce * L;
    value_rows = 2 * filter_radius + 1;
    detail_rows = 2 * p.neighborhood_radius + 1;
  }
  DetailMemory(const DetailParams& p, char* memory) : DetailMemory(p) {
    values = reinterpret_cast<float*>(memory);
    details = values + value_rows * pitch;
    sums = details + detail_rows * pitch;
    smoothed = sums + pitch;
    std::memset(memory, 0, size_t(size()));
  }
  static int64_t radius_of_filters(const DetailParams& p) {
    return p.smoothing_radius > p.detail_radius ? p.smoothing_radius : p.detail_radius;
  }
  int64_t size() const { return (value_rows + detail_rows + 2) * pitch * int64_t(sizeof(float)); }

  float* value_row(int64_t y) const { return values + y % value_rows * pitch + margin; }
  float* detail_row(int64_t y) const { return details + y % detail_rows * pitch + margin; }
  float* sum_row() const { return sums + margin; }
  float* smoothed_row() const { return smoothed + margin; }
};

// Continues a row by `radius` columns on both sides.
inline void extend(float* row, int64_t W, int64_t radius) {
  for (int64_t i = 1; i <= radius; ++i) {
    row[-i] = row[mirrored(-i, W)];
    row[W - 1 + i] = row[mirrored(W - 1 + i, W)];
  }
}

// Writes to result[x] the sum of row[x - radius] to row[x + radius], for x in [0, W). Overwrites the row, which has been
// extended by `radius`.
inline void box_sums(float* row, int64_t W, int64_t radius, float* result) {
  // Add windows whose widths are powers of two: those of the binary digits of the width. Each doubling reads only
  // elements to the right, which have not been doubled yet.
  float* const first = row - radius;
  const int64_t width = 2 * radius + 1;
  for (int64_t x = 0; x < W; x += L) store(result + x, load(first + x));
  for (int64_t power = 1, offset = 1; power * 2 <= width; power *= 2) {
    const int64_t remaining = W + width - 2 * power;
    for (int64_t x = 0; x < remaining; x += L) store(first + x, load(first + x) + load(first + x + power));
    if ((width & power * 2) == 0) continue;
    for (int64_t x = 0; x < W; x += L) store(result + x, load(result + x) + load(first + offset + x));
    offset += power * 2;
  }
}

DANET_INLINE F widen(const uint8_t* from) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
  return (F)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
  F values;
  for (int i = 0; i < L; ++i) values[i] = float(from[i]);
  return values;
#endif
}
DANET_INLINE F widen(const uint16_t* from) {
  return __builtin_convertvector(__builtin_convertvector(bits_as<U16>(from), IntVec<float>), F);
}
// Up to a vector of pixels as floats; the lanes from `count` on are zero.
template <typename T>
DANET_INLINE F load_pixels(const T* from, int64_t count) {
  if (count >= L) return widen(from);
  T pixels[L] = {};
  std::memcpy(pixels, from, size_t(count) * sizeof(T));
  return widen(pixels);
}

template <typename T>
class DetailRows {
 public:
  DetailRows(const DetailParams& p, const T* image, const T* past, int64_t begin, char* scratch)
      : p_(p), image_(image), past_(past), memory_(p, scratch), filter_radius_(DetailMemory::radius_of_filters(p)) {
    next_detail_ = begin > p.neighborhood_radius ? begin - p.neighborhood_radius : 0;
    next_value_ = next_detail_ > filter_radius_ ? next_detail_ - filter_radius_ : 0;
  }

  // Writes row y of the result. The rows are computed in ascending order.
  void write(int64_t y, float* out) {
    const int64_t last = y + p_.neighborhood_radius;
    for (; next_detail_ <= last && next_detail_ < p_.H; ++next_detail_) compute_details(next_detail_);
    // Sum the squares of the details over the rows, and then over the columns
    float *const sums = memory_.sum_row(), *const squares = memory_.smoothed_row();
    const int64_t rows = 2 * p_.neighborhood_radius + 1;
    for (int64_t i = 0; i < rows; ++i) rows_[i] = memory_.detail_row(mirrored(y - p_.neighborhood_radius + i, p_.H));
    for (int64_t x = 0; x < p_.W; x += kSumsAtOnce * L) {
      F sum[kSumsAtOnce] = {};
      for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kSumsAtOnce; ++v) {
          const F d = load(rows_[i] + x + v * L);
          sum[v] = multiply_add<float>(d, d, sum[v]);
        }
#pragma GCC unroll 4
      for (int v = 0; v < kSumsAtOnce; ++v) store(sums + x + v * L, sum[v]);
    }
    extend(sums, p_.W, p_.neighborhood_radius);
    box_sums(sums, p_.W, p_.neighborhood_radius, squares);
    const float* details = memory_.detail_row(y);
    const float mean = 1.0f / float(area(p_.neighborhood_radius)), slope = p_.units / p_.limit;
    for (int64_t x = 0; x < p_.W; x += L) {
      const F d = load(details + x);
      const F divisor = square_root(load(squares + x) * mean) + p_.min_deviation + magnitude(d) * slope;
      store_up_to(out + x, d * p_.units / divisor, p_.W - x);
    }
  }

 private:
  static int64_t area(int64_t radius) { return (2 * radius + 1) * (2 * radius + 1); }
  static DANET_INLINE F square_root(F v) {
#if defined(__AVX512F__)
    return (F)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (F)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < L; ++i) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
  }

  // Converts row y of the image, or of its difference to the earlier frame.
  void load_values(int64_t y) {
    float* const row = memory_.value_row(y);
    const T *image = image_ + y * p_.W, *past = past_ == nullptr ? nullptr : past_ + y * p_.W;
    for (int64_t x = 0; x < p_.W; x += L) {
      F values = load_pixels(image + x, p_.W - x);
      if (past != nullptr) values -= load_pixels(past + x, p_.W - x);
      store(row + x, values);
    }
  }
  // Computes row y of the details: both filters over the rows first, then over the columns.
  void compute_details(int64_t y) {
    for (; next_value_ <= y + filter_radius_ && next_value_ < p_.H; ++next_value_) load_values(next_value_);
    float *const sums = memory_.sum_row(), *const smoothed = memory_.smoothed_row(), *const out = memory_.detail_row(y);
    const int64_t radius = p_.smoothing_radius;
    for (int64_t i = -filter_radius_; i <= filter_radius_; ++i)
      rows_[filter_radius_ + i] = memory_.value_row(mirrored(y + i, p_.H));
    for (int64_t x = 0; x < p_.W; x += kSumsAtOnce * L) {
      F sum[kSumsAtOnce] = {}, weighted[kSumsAtOnce] = {};
      for (int64_t i = -p_.detail_radius; i <= p_.detail_radius; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kSumsAtOnce; ++v) sum[v] += load(rows_[filter_radius_ + i] + x + v * L);
      for (int64_t i = -radius; i <= radius; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kSumsAtOnce; ++v)
          weighted[v] = multiply_add<float>(
              load(rows_[filter_radius_ + i] + x + v * L), broadcast(p_.smoothing[i + radius]), weighted[v]);
#pragma GCC unroll 4
      for (int v = 0; v < kSumsAtOnce; ++v) {
        store(sums + x + v * L, sum[v]);
        store(smoothed + x + v * L, weighted[v]);
      }
    }
    extend(sums, p_.W, p_.detail_radius);
    extend(smoothed, p_.W, radius);
    box_sums(sums, p_.W, p_.detail_radius, out);
    const float mean = 1.0f / float(area(p_.detail_radius));
    for (int64_t x = 0; x < p_.W; x += L) {
      F d{};
      for (int64_t i = -radius; i <= radius; ++i)
        d = multiply_add<float>(load(smoothed + x + i), broadcast(p_.smoothing[i + radius]), d);
      store(out + x, d - load(out + x) * mean);
    }
  }

  const DetailParams& p_;
  const T *const image_, *const past_;
  const DetailMemory memory_;
  const int64_t filter_radius_;
  int64_t next_value_, next_detail_;
  const float* rows_[kMaxDetailSize];  // the rows that a pass adds
};

int64_t scratch_size(const DetailParams& p) { return DetailMemory(p).size(); }

template <typename T>
void details(
    const DetailParams& p, const T* image, const T* past, float* out, int64_t begin, int64_t end, char* scratch) {
  DetailRows<T> rows(p, image, past, begin, scratch);
  for (int64_t y = begin; y < end; ++y) rows.write(y, out + y * p.W);
}

void common(const float* const* channels, int64_t count, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += L) {
    F smallest = load_up_to(channels[0] + i, end - i), largest = smallest;
    for (int64_t c = 1; c < count; ++c) {
      const F values = load_up_to(channels[c] + i, end - i);
      smallest = values < smallest ? values : smallest;
      largest = values > largest ? values : largest;
    }
    store_up_to(out + i, clamp_min(smallest, 0.0f) + clamp_max(largest, 0.0f), end - i);
  }
}

}  // namespace

const DetailKernels& DANET_ISA::detail_channels_kernels(DType) {
  static constexpr DetailKernels kernels = {scratch_size, details<uint8_t>, details<uint16_t>, common};
  return kernels;
}

}  // namespace danet
