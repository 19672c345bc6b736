// What every op begins with: its memory, and the rows of z packed for the kernels.
#pragma once
#include <torch/csrc/stable/ops.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "ops.h"
#include "schedule.h"

namespace arec::cpu {

using torch::headeronly::ScalarType;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// One allocation, cut into arrays that start on a cache line. A thread keeps its last one of up to kKept bytes, a
// larger one rather than a smaller: memory fresh from the system costs a page fault for every page.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  ~Workspace() {
    if (block_.size <= kKept && block_.size > spare().size) spare() = std::move(block_);
  }
  // `array` is set by allocate(): copies of it must wait until then.
  template <class T>
  void want(T*& array, int64_t count) {
    requests_.push_back({&array, size_});
    size_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
  }
  void allocate() {
    if (spare().size >= size_) block_ = std::exchange(spare(), {});
    else spare() = {}, block_ = fresh(size_);
    STD_TORCH_CHECK(block_.memory != nullptr, "out of memory: a workspace of ", size_, " bytes");
    for (const auto& [array, offset] : requests_) {
      void* const at = static_cast<char*>(block_.memory.get()) + offset;
      std::memcpy(array, &at, sizeof at);
    }
  }

 private:
  static constexpr int64_t kKept = int64_t(1) << 25;  // bytes
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Block {
    std::unique_ptr<void, Free> memory;
    int64_t size = 0;
  };
  // In large pages where there is enough for some: small ones cost a tenth of a call.
  static Block fresh(int64_t size) {
    constexpr int64_t page = int64_t(1) << 21;
    const bool large = size >= 2 * page;
    if (large) size = round_up(size, page);
    Block block{std::unique_ptr<void, Free>(std::aligned_alloc(large ? page : 64, size))};
    if (block.memory) block.size = size;
#if defined(__linux__)
    if (large && block.memory) madvise(block.memory.get(), size, MADV_HUGEPAGE);  // or not, by the system
#endif
    return block;
  }
  static Block& spare() {
    thread_local Block block;
    return block;
  }
  Block block_;
  std::vector<std::pair<void*, int64_t>> requests_;
  int64_t size_ = 0;
};

template <class T>
constexpr ScalarType kScalarType = std::is_same_v<T, double>    ? ScalarType::Double
                                   : std::is_same_v<T, int64_t> ? ScalarType::Long
                                                                : ScalarType::Float;

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline Element element_of(const Tensor& z) {
  switch (z.scalar_type()) {
    case ScalarType::Float: return Element::kFloat32;
    case ScalarType::Double: return Element::kFloat64;
    case ScalarType::BFloat16: return Element::kBFloat16;
    case ScalarType::Half: return Element::kFloat16;
    default: STD_TORCH_CHECK(false, "z: expected float32, bfloat16, float16 or float64");
  }
}

// f(float()) or f(double()): the type of the similarities and everything that follows.
template <class F>
auto with_type(const Tensor& z, F f) {
  STD_TORCH_CHECK(z.dim() == 2 && z.size(0) > 0 && z.size(1) > 0,
                  "z: expected a matrix with rows and columns");
  return element_of(z) == Element::kFloat64 ? f(double()) : f(float());
}

// A vector with one value a row, as the caller's data.
template <class T>
class RowValues {
 public:
  RowValues(const char* name, const Tensor& x, int64_t n) {
    STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == n && x.scalar_type() == kScalarType<T>, name,
                    ": expected one value a row, of the op's type");
    data_ = static_cast<const T*>(x.const_data_ptr());
    stride_ = x.stride(0);
  }
  // The same for all rows.
  RowValues(const char* name, const Tensor& x) {
    STD_TORCH_CHECK(x.dim() == 0 && x.scalar_type() == kScalarType<T>, name,
                    ": expected one value, of the op's type");
    data_ = static_cast<const T*>(x.const_data_ptr());
    stride_ = 0;
  }
  T operator[](int64_t i) const { return data_[i * stride_]; }

 private:
  const T* data_;
  int64_t stride_;
};

// The packed unit rows of z, and what every op does with them.
template <class T>
struct Input {
  Tensor z;
  const Kernels<T>* kernels;
  Workspace memory;
  Embeddings<T> rows{};
  T* group = nullptr;
  std::optional<Tensor> group_ids;

  Input(const Tensor& input, bool partners, const std::optional<Tensor>& groups)
      : z(input.is_contiguous() ? input : torch::stable::contiguous(input)), group_ids(groups) {
    const Element element = element_of(z);
    if constexpr (std::is_same_v<T, double>) kernels = &kernels_double;
    else kernels = &float_kernels(element);
    const int64_t n = z.size(0), dim = z.size(1);
    STD_TORCH_CHECK(!partners || n % 2 == 0, "z: expected an even number of rows, got ", n);
    rows.z = z.const_data_ptr();
    rows.element = element;
    rows.n = n;
    rows.dim = dim;
    rows.padded_n = round_up(n, kTile);
    rows.partner = partners ? n / 2 : 0;
    rows.local = {0, partners ? n / 2 : n};
    static_cast<Layout&>(rows) = kernels->layout(dim);
    memory.want(rows.rows, rows.padded_n * rows.row_lanes);
    memory.want(rows.panels, rows.padded_n * rows.panel_lanes);
    memory.want(rows.inverse_norm, rows.padded_n);
    if (groups) memory.want(group, rows.padded_n);
  }

  void allocate() {
    memory.allocate();
    if (group_ids) number_groups(*group_ids);
  }

  void only(Rows local) {
    STD_TORCH_CHECK(0 <= local.begin && local.begin < local.end && local.end <= rows.partner,
                    "local_begin, local_end: expected a range of the ", rows.partner, " rows of a view, got ",
                    local.begin, " and ", local.end);
    rows.local = local;
  }

  void normalise(Rows range) const { kernels->normalise(rows, range); }

 private:
  // Groups numbered from 0, which a float holds exactly (up to 2^24 groups); NaN, equal to nothing, for
  // rows of none.
  void number_groups(const Tensor& groups) {
    const RowValues<int64_t> ids("groups", groups, rows.n);
    std::vector<int64_t> known;
    for (int64_t i = 0; i < rows.n; ++i)
      if (ids[i] >= 0) known.push_back(ids[i]);
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    std::fill(group, group + rows.padded_n, T(kNaN));
    for (int64_t i = 0; i < rows.n; ++i)
      if (ids[i] >= 0)
        group[i] = T(std::lower_bound(known.begin(), known.end(), ids[i]) - known.begin());
  }
};

}  // namespace arec::cpu
