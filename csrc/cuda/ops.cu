// The registered ops on CUDA tensors; schemas, shapes and types: arec_kernels/registration.py. Launches go to
// the current stream, nothing waits for the device, and all can be captured in a CUDA graph. All rows are
// computed, whichever are local.
//
// Tested on an H100, but for the float64 of log D between the passes, the reduction of the losses and the
// center in the thresholds' gradient, which are newer; elsewhere the kernels run in an emulation of a card.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "kernels.h"

// Importing arec_kernels._C_cuda loads this library, which runs the registrations below; to Python it is a
// module that knows the schemas it was built for.
PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr,
                               nullptr,               nullptr,   nullptr, nullptr};
  PyObject* const created = PyModule_Create(&module);
  if (created) PyModule_AddIntConstant(created, "SCHEMAS", AREC_SCHEMAS);
  return created;
}

namespace arec::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// From here down the backward pass has a shift for each row. With one for all, e^{1/tau} / D_i is a factor
// of a row, at most e^{2/tau}, and the upstream gradient another.
constexpr double kSharedShiftBackward = 2 * kSharedShift;
constexpr int64_t kMostRowsOfCall = int64_t(1) << 24;  // which a float counts exactly
constexpr int64_t kMostColumns = int64_t(1) << 22;
// Each split has a gradient of its own, which must not be much memory where there are many rows.
constexpr int kMostSplits = 16, kManyRows = 8192, kMostSplitsOfMany = 3;

__global__ void __launch_bounds__(kThreads) finish_forward(FinishForward p) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= p.rows.n) return;
  const auto statistic = [&](int split, Statistic which) {
    return p.statistics[(int64_t(split) * kStatistics + which) * p.rows.padded_n + i];
  };
  const double scale = p.loss.inverse_temperature;
  double largest = -1, exponentials = 0, positives = 0;
  int64_t count = 0;
  for (int split = 0; split < p.rows.splits; ++split) largest = fmax(largest, double(statistic(split, kMaximum)));
  for (int split = 0; split < p.rows.splits; ++split) {
    const double sum = statistic(split, kExponentials);
    exponentials += p.loss.own_shift ? sum * exp((statistic(split, kMaximum) - largest) * scale) : sum;
    positives += statistic(split, kPositives);
    count += int64_t(statistic(split, kNumPositives));
  }
  if (!p.loss.positives) positives = count = 0;
  const auto [loss, log_d] = p.loss.row<float>(
      {exponentials, p.loss.own_shift ? largest * scale : scale, positives, count, p.partner_similarity[i]},
      p.threshold[i]);
  p.losses[i] = loss;
  p.log_denominator[i] = log_d;
  p.num_positives[i] = count;
  p.positives_similarity[i] = float(positives);
}

// What the threads of a block have, which needs shared memory for a double each; the first thread gets it.
__device__ double sum_of_block(double mine) {
  double* const sums = reinterpret_cast<double*>(shared_memory());
  sums[threadIdx.x] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  return sums[0];
}

// One block: the sum or mean of the rows' losses.
__global__ void __launch_bounds__(kThreads) reduce_losses(const float* losses, int n, double weight, float* reduced) {
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) sum += losses[i];
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) *reduced = float(sum * weight);
}

// One block: log of the mean of exp(-2 |x_i - x_j|^2) over pairs, each of which the sums hold twice.
__global__ void __launch_bounds__(kThreads) finish_uniformity(Rows rows, const float* statistics, float* uniformity) {
  double sum = 0;
  for (int split = 0; split < rows.splits; ++split)
    for (int i = threadIdx.x; i < rows.n; i += kThreads)
      sum += statistics[(int64_t(split) * kStatistics + kExponentials) * rows.padded_n + i];
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) *uniformity = float(log(sum / (double(rows.n) * (rows.n - 1))));
}

const Kernels& kernels_for(const Tensor& z) {
  switch (z.scalar_type()) {
    case ScalarType::BFloat16: return kernels_bf16;
    case ScalarType::Half: return kernels_fp16;
    case ScalarType::Float: return kernels_fp32;
    default: STD_TORCH_CHECK(false, "z: expected float32, bfloat16 or float16");
  }
}

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// Of shared memory, for a histogram that is counted there.
int bytes_of_bins(int64_t bins) { return bins <= kSharedBins ? int(bins * sizeof(int)) : 0; }

template <class T>
T* data(const Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()); }

// What every op begins with: the rows, their padded memory, and how they are launched.
struct Input {
  Tensor z;
  const Kernels& kernels;
  Launcher launch;
  Rows rows{};
  Tensor unit, groups;

  Input(const Tensor& input, bool partners, const std::optional<Tensor>& with_groups)
      : z(dense(input)), kernels(kernels_for(z)), launch(z) {
    STD_TORCH_CHECK(z.dim() == 2 && z.size(0) > 0 && z.size(1) > 0, "z: expected a matrix with rows and columns");
    const int64_t n = z.size(0);
    STD_TORCH_CHECK(n <= kMostRowsOfCall && z.size(1) <= kMostColumns, "z: expected at most ", kMostRowsOfCall,
                    " rows and ", kMostColumns, " columns");
    STD_TORCH_CHECK(!partners || n % 2 == 0, "z: expected an even number of rows, got ", n);
    rows.z = z.const_data_ptr();
    rows.n = int(n);
    rows.dim = int(z.size(1));
    rows.padded_n = (rows.n + kMostRows - 1) / kMostRows * kMostRows;
    rows.width = kernels.width(rows.dim);
    rows.partner = partners ? rows.n / 2 : rows.n;
    unit = memory(int64_t(rows.padded_n) * rows.width * kernels.unit_bytes, ScalarType::Byte);
    rows.unit = unit.mutable_data_ptr();
    if (with_groups) {
      groups = row_values("groups", *with_groups, ScalarType::Long);
      rows.groups = data<int64_t>(groups);
    }
  }

  // A vector with one value a row.
  Tensor row_values(const char* name, const Tensor& x, ScalarType type = ScalarType::Float) const {
    STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == rows.n && x.scalar_type() == type && x.device() == z.device(),
                    name, ": expected one value a row, of the op's type, where z is");
    return dense(x);
  }
  Tensor memory(int64_t size, ScalarType type = ScalarType::Float) const {
    return torch::stable::new_empty(z, {size}, type);
  }
  Tensor row_memory(int64_t of_row) const { return memory(of_row * rows.padded_n); }
  const Tiles& tiles() const { return kernels.tiles(rows.width); }

  // Rows with the columns in so many splits that the kernel's blocks fill the card best.
  template <class A>
  Rows split_for(const TileKernel<A>& kernel) const {
    const int blocks = rows.padded_n / kernel.rows * chunks(kernel);
    const int slots = launch.slots(kernel.kernel, kThreads, kernel.shared_bytes);
    const int most = kernel.width && rows.padded_n >= kManyRows ? kMostSplitsOfMany : kMostSplits;
    Rows out = rows;
    out.splits = 1;
    // In rounds of as many blocks as run at once, each of which takes the time of a split.
    const auto time = [&](int splits) { return double((int64_t(blocks) * splits + slots - 1) / slots) / splits; };
    for (int splits = 2; splits <= std::min(most, rows.padded_n / kernels.column_step); ++splits)
      if (time(splits) < time(out.splits)) out.splits = splits;
    return out;
  }
  template <class A>
  void run(const TileKernel<A>& kernel, const A& arguments, int more_shared_bytes = 0) const {
    const dim3 blocks(rows.padded_n / kernel.rows, chunks(kernel), arguments.rows.splits);
    launch(kernel.kernel, blocks, kThreads, kernel.shared_bytes + more_shared_bytes, arguments);
  }
  template <class A>
  int chunks(const TileKernel<A>& kernel) const {
    return kernel.width ? rows.width / kernel.width : 1;
  }
  void normalise(float* partner_similarity = nullptr) const {
    launch(kernels.normalise, a_warp_a_row(), kThreads, 0, rows, partner_similarity);
  }
  dim3 a_warp_a_row() const { return dim3(rows.padded_n / kWarps); }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& z, const Tensor& threshold, const std::optional<Tensor>& groups, double temperature,
    bool positives, double partner_weight, const std::string& denominator, const std::string& weighting,
    const std::string& reduction, int64_t histogram_bins, int64_t /* local_begin */, int64_t /* local_end */) {
  const Loss loss(temperature, positives, partner_weight, denominator, weighting);
  const Reduction how(reduction);
  const Input input(z, true, groups);
  const int64_t n = input.rows.n;
  STD_TORCH_CHECK(histogram_bins >= 0 && histogram_bins <= kMostBins, "bins: expected at most ", kMostBins,
                  ", got ", histogram_bins);
  const Tensor thresholds = input.row_values("threshold", threshold), partner_similarity = input.row_memory(1);
  const Tensor losses = input.memory(n), log_denominator = input.memory(n, ScalarType::Double),
               similarities = input.memory(n);
  const Tensor counts = input.memory(n, ScalarType::Long), histogram = input.memory(histogram_bins, ScalarType::Long);
  if (histogram_bins) input.launch.zero(histogram.mutable_data_ptr(), histogram_bins * sizeof(int64_t));
  input.normalise(data<float>(partner_similarity));

  const bool general = groups || !loss.negatives_only || loss.own_shift || histogram_bins;
  const auto& kernel = general ? input.tiles().forward_general : input.tiles().forward;
  const Rows rows = input.split_for(kernel);
  const Tensor statistics = input.row_memory(int64_t(rows.splits) * kStatistics);
  input.run(kernel, Forward{rows, data<float>(thresholds), float(kLog2E * loss.inverse_temperature),
                            loss.negatives_only, loss.own_shift, data<float>(statistics),
                            histogram_bins ? data<unsigned long long>(histogram) : nullptr, int(histogram_bins)},
            bytes_of_bins(histogram_bins));
  input.launch(finish_forward, dim3(input.rows.padded_n / kThreads), kThreads, 0,
               FinishForward{rows, loss, data<float>(thresholds), data<float>(statistics),
                             data<float>(partner_similarity), data<float>(losses), data<float>(similarities),
                             data<double>(log_denominator), data<int64_t>(counts)});
  if (how.none) return {losses, log_denominator, counts, similarities, histogram};
  const Tensor reduced = torch::stable::new_empty(z, {}, ScalarType::Float);
  input.launch(reduce_losses, dim3(1), kThreads, int(kThreads * sizeof(double)),
               data<const float>(losses), int(n), how.weight(n), data<float>(reduced));
  return {reduced, log_denominator, counts, similarities, histogram};
}

std::tuple<Tensor, Tensor> backward(
    const Tensor& grad_loss, const Tensor& z, const Tensor& threshold, const std::optional<Tensor>& groups,
    const Tensor& log_denominator, const Tensor& num_positives, const Tensor& positives_similarity,
    double temperature, bool positives, double partner_weight, const std::string& denominator,
    const std::string& weighting, const std::string& reduction, double threshold_grad,
    int64_t /* local_begin */, int64_t /* local_end */) {
  const Reduction how(reduction);
  Loss loss(temperature, positives, partner_weight, denominator, weighting);
  loss.own_shift = temperature < kSharedShiftBackward;
  const Input input(z, true, groups);
  const int64_t n = input.rows.n;
  const Tensor thresholds = input.row_values("threshold", threshold),
               logs = input.row_values("log_denominator", log_denominator, ScalarType::Double),
               similarities = input.row_values("positives_similarity", positives_similarity),
               counts = input.row_values("num_positives", num_positives, ScalarType::Long);
  STD_TORCH_CHECK(grad_loss.dim() == (how.none ? 1 : 0) && (!how.none || grad_loss.size(0) == n) &&
                      grad_loss.scalar_type() == ScalarType::Float && grad_loss.device() == z.device(),
                  "grad_loss: expected one value, or one a row without a reduction, of the op's type, where z is");
  const bool soft = threshold_grad > 0;
  const Tensor grad_z = torch::stable::new_empty(z, {n, input.rows.dim}, z.scalar_type());
  const Tensor grad_threshold = input.memory(soft ? n : 0);
  const Tensor coefficients = input.row_memory(kCoefficients);
  input.launch(input.kernels.normalise_for_backward, input.a_warp_a_row(), kThreads, 0,
               Coefficients{input.rows, loss, static_cast<const float*>(grad_loss.const_data_ptr()),
                            data<float>(thresholds), data<float>(similarities), data<double>(logs),
                            data<int64_t>(counts), how.none ? grad_loss.stride(0) : 0, how.weight(n), soft,
                            data<float>(coefficients)});

  const bool general = groups || !loss.negatives_only || loss.own_shift || soft;
  const auto& kernel = general ? input.tiles().backward_general : input.tiles().backward;
  const Rows rows = input.split_for(kernel);
  const Tensor gradients = input.row_memory(int64_t(rows.splits) * rows.width);
  const Tensor threshold_gradients = input.row_memory(soft ? rows.splits : 0);
  input.run(kernel, Backward{rows, data<float>(coefficients), float(kLog2E * loss.inverse_temperature),
                             loss.negatives_only, loss.own_shift, data<float>(gradients),
                             soft ? data<float>(threshold_gradients) : nullptr,
                             soft ? float(kLog2E / threshold_grad) : 0.0f});
  input.launch(input.kernels.normalise_backward, input.a_warp_a_row(), kThreads, 0,
               FinishBackward{rows, data<float>(coefficients), data<float>(gradients),
                              data<float>(threshold_gradients), grad_z.mutable_data_ptr(),
                              soft ? data<float>(grad_threshold) : nullptr, float(threshold_grad)});
  return {grad_z, grad_threshold};
}

namespace {

// Sums of exponentials over all candidates, and a histogram of them where asked for.
Tensor count_pairs(const Input& input, const TileKernel<Forward>& kernel, Rows rows, double temperature,
                   const Tensor* histogram) {
  const Tensor statistics = input.row_memory(int64_t(rows.splits) * kStatistics);
  input.run(kernel, Forward{rows, nullptr, float(kLog2E / temperature), true, false, data<float>(statistics),
                            histogram ? data<unsigned long long>(*histogram) : nullptr,
                            histogram ? int(histogram->numel()) : 0},
            histogram ? bytes_of_bins(histogram->numel()) : 0);
  return statistics;
}

}  // namespace

Tensor histogram(const Tensor& z, const std::optional<Tensor>& groups, int64_t bins) {
  STD_TORCH_CHECK(bins > 0 && bins <= kMostBins, "bins: expected a number in [1, ", kMostBins, "], got ", bins);
  const Input input(z, true, groups);
  const Tensor counts = input.memory(bins, ScalarType::Long);
  input.launch.zero(counts.mutable_data_ptr(), bins * sizeof(int64_t));
  input.normalise();
  const auto& kernel = input.tiles().forward_general;
  count_pairs(input, kernel, input.split_for(kernel), 1, &counts);
  return counts;
}

Tensor uniformity(const Tensor& x) {
  const Input input(x, false, std::nullopt);
  const Tensor out = torch::stable::new_empty(x, {}, ScalarType::Float);
  input.normalise();
  const auto& kernel = input.tiles().forward;
  const Rows rows = input.split_for(kernel);
  // -2 |x_i - x_j|^2 = (s - 1) / tau at tau = 1/4.
  const Tensor statistics = count_pairs(input, kernel, rows, 0.25, nullptr);
  input.launch(finish_uniformity, dim3(1), kThreads, int(kThreads * sizeof(double)), rows,
               data<const float>(statistics), data<float>(out));
  return out;
}

Tensor quantile(const Tensor& z, double q, const std::optional<Tensor>& groups) {
  STD_TORCH_CHECK(q >= 0 && q <= 1, "q: expected a number in [0, 1], got ", q);
  const Input input(z, true, groups);
  const Tensor out = input.memory(input.rows.n);
  input.normalise();
  Rows rows = input.rows;
  rows.splits = 1;  // a block has to see all columns
  input.run(input.tiles().quantile, Quantile{rows, q, data<float>(out)});
  return out;
}

}  // namespace arec::cuda

// A macro around the macro, so that the key's own name is expanded before it becomes part of another.
#define AREC_REGISTER(key, m) STABLE_TORCH_LIBRARY_IMPL(arec_kernels, key, m)
AREC_REGISTER(AREC_DISPATCH_KEY, m) {
  m.impl("cuda_forward", TORCH_BOX(&arec::cuda::forward));
  m.impl("cuda_backward", TORCH_BOX(&arec::cuda::backward));
  m.impl("cuda_histogram", TORCH_BOX(&arec::cuda::histogram));
  m.impl("cuda_quantile", TORCH_BOX(&arec::cuda::quantile));
  m.impl("cuda_uniformity", TORCH_BOX(&arec::cuda::uniformity));
}
