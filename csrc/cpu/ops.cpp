// The registered ops: the O(N) arithmetic around the tile kernels.
#include "ops.h"

#include <chrono>
#include <cmath>
#include <numeric>

#include "../loss.h"
#include "input.h"

namespace arec::cpu {
namespace {

// A contiguous tensor of at most two dimensions, without the dispatcher's way round, which is a
// fifth of the forward pass where N is small.
Tensor new_empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  const int64_t strides[] = {sizes.size() == 2 ? sizes.begin()[1] : 1, 1};
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle tensor;
  STD_TORCH_CHECK(!aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides, dtype,
                                            aoti_torch_device_type_cpu(), -1, &tensor),
                  "can't allocate memory for the result");
  return Tensor(tensor);
}

int options_of(const Loss& loss) {
  return (loss.positives ? kPositives : 0) | (loss.negatives_only ? kNegativesOnly : 0) |
         (loss.own_shift ? kOwnShift : 0);
}

template <class T>
Pairs<T> make_pairs(const Input<T>& input, const T* threshold, const T* shift, double inverse_temperature,
                    int options) {
  const double scale = kLog2E * inverse_temperature;
  return {input.rows, threshold, input.group, shift, T(std::ceil(scale)), T(scale), options};
}

// By how much the exponentials that rows share are smaller than those of s / tau - 1 / tau: the rounded scale
// is made up for where it matters most, at the largest similarities.
template <class T>
double beyond_scale(const Pairs<T>& pairs) {
  return (double(pairs.shared_shift) - double(pairs.scale)) * kLn2;
}

// A histogram a worker, summed over ordered pairs at the end: integers, so their order is no matter.
// Few bins are cut into finer ones, because an increment waits for the one before of the same counter. The
// counters are as small as will do, beside the tiles in the first cache, and emptied before they overflow.
class Histogram {
 public:
  explicit Histogram(int64_t bins) : bins_(bins) {
    STD_TORCH_CHECK(bins >= 0 && bins <= kMostBins, "bins: expected at most ", kMostBins, ", got ", bins);
    if (bins == 0) return;
    while (bins << shift_ < kFine) ++shift_;
    workers_.resize(torch::stable::get_num_threads());
  }
  int64_t fine_bins() const { return bins_ << shift_; }
  // Counters for the pairs of two ranges.
  uint32_t* of(int64_t worker, Rows rows, Rows columns) {
    if (bins_ == 0) return nullptr;
    Worker& own = workers_[worker];
    const int64_t pairs = (rows.end - rows.begin) * (columns.end - columns.begin);
    if (own.counters.empty()) own.counters.resize(fine_bins() + kNowhere);
    if (own.pairs + pairs > kMostCounted) drain(own);
    own.pairs += pairs;
    return own.counters.data();
  }
  Tensor total() {
    Tensor out = new_empty({bins_}, ScalarType::Long);
    int64_t* const totals = data<int64_t>(out);
    std::fill(totals, totals + bins_, 0);
    for (Worker& own : workers_) {
      drain(own);
      for (size_t k = 0; k < own.totals.size(); ++k) totals[k] += 2 * own.totals[k];
    }
    return out;
  }

 private:
  struct Worker {
    std::vector<uint32_t> counters;
    std::vector<int64_t> totals;
    int64_t pairs = 0;  // counted since the counters were zero
  };
  void drain(Worker& own) const {
    if (own.counters.empty()) return;
    own.totals.resize(bins_);
    for (int64_t k = 0; k < bins_; ++k) {
      int64_t sum = 0;  // in a register: through memory each addition would wait for the one before
      for (int64_t fine = k << shift_; fine < (k + 1) << shift_; ++fine) sum += own.counters[fine];
      own.totals[k] += sum;
    }
    std::fill(own.counters.begin(), own.counters.end(), 0);
    own.pairs = 0;
  }

  static constexpr int64_t kFine = 2048, kMostCounted = UINT32_MAX;
  int64_t bins_;
  int shift_ = 0;
  std::vector<Worker> workers_;
};

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_rows(
    const Tensor& z, const Tensor& threshold, const std::optional<Tensor>& groups, const Loss& loss,
    const Reduction& reduction, int64_t bins, Rows local) {
  Input<T> input(z, true, groups);
  input.only(local);
  const int64_t n = input.rows.n, padded_n = input.rows.padded_n;
  STD_TORCH_CHECK(reduction.none || 2 * (local.end - local.begin) == n,
                  "reduction: expected none where some rows only are local");
  const RowValues<T> thresholds("threshold", threshold, n);
  T *k, *shift = nullptr;
  Forward<T> p{};
  for (double** sum : {&p.sum_exp, &p.sum_positives, &p.num_positives})
    input.memory.want(*sum, padded_n);
  input.memory.want(p.partner_similarity, padded_n);
  input.memory.want(k, padded_n);
  if (loss.own_shift) {
    input.memory.want(p.maximum, padded_n);
    input.memory.want(shift, padded_n);
  }
  input.allocate();
  p.pairs = make_pairs(input, k, shift, loss.inverse_temperature, options_of(loss));

  Tensor out_loss = new_empty({n}, kScalarType<T>);
  Tensor out_log = new_empty({n}, ScalarType::Double);
  Tensor out_count = new_empty({n}, ScalarType::Long);
  Tensor out_similarity = new_empty({n}, kScalarType<T>);
  T* const losses = data<T>(out_loss);
  double* const logs = data<double>(out_log);
  int64_t* const counts = data<int64_t>(out_count);
  T* const similarities = data<T>(out_similarity);
  Histogram histogram(bins);
  p.bins = histogram.fine_bins();

  const auto prepare = [&](Rows rows) {
    input.normalise(rows);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      p.sum_exp[i] = p.sum_positives[i] = p.num_positives[i] = 0;
      k[i] = i < n ? thresholds[i] : 0;
      if (p.maximum) p.maximum[i] = -2;
    }
  };
  const auto pair = [&](Rows rows, Rows columns, int64_t worker) {
    input.kernels->forward(p, rows, columns, histogram.of(worker, rows, columns));
  };
  const double shared_shift = loss.inverse_temperature + beyond_scale(p.pairs);
  const auto finish = [&](Rows rows) {
    for (int64_t i = rows.begin; i < std::min(rows.end, n); ++i) {
      const int64_t m = int64_t(p.num_positives[i]);
      const auto [row_loss, log_d] = loss.row<T>(
          {p.sum_exp[i], shift ? double(shift[i]) * kLn2 : shared_shift,
           p.sum_positives[i], m, p.partner_similarity[i]},
          k[i]);
      losses[i] = row_loss;
      logs[i] = log_d;
      counts[i] = m;
      similarities[i] = T(p.sum_positives[i]);
    }
  };
  if (loss.own_shift) {
    for_each_block_pair(
        input.rows, prepare,
        [&](Rows rows, Rows columns, int64_t) { input.kernels->maximum(p, rows, columns); },
        [&](Rows rows) {
          for (int64_t i = rows.begin; i < rows.end; ++i)
            shift[i] = std::max(p.maximum[i], T(-1)) * p.pairs.scale;
        });
    for_each_block_pair(input.rows, [](Rows) {}, pair, finish);
  } else {
    for_each_block_pair(input.rows, prepare, pair, finish);
  }
  if (!reduction.none) {
    const double sum = std::accumulate(losses, losses + n, 0.0);
    out_loss = new_empty({}, kScalarType<T>);
    *data<T>(out_loss) = T(sum * reduction.weight(n));
  }
  return {out_loss, out_log, out_count, out_similarity, histogram.total()};
}

// A power of two near the largest factor that a row's weight, its upstream gradient and the temperature are
// together, which is divided by it on its way into the kernels: parts of very small numbers would be subnormal
// there, and products of very large ones infinite. (Where rows share a shift, that of a row far from all others
// makes its factor e^81 times as large, which a float still holds.)
template <class T>
double power_near_largest(const Loss& loss, const RowValues<T>& upstream, int64_t n) {
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(double(upstream[i])));
  largest *= loss.inverse_temperature * loss.weights(n).total;
  const bool finite = largest > 0 && largest <= std::numeric_limits<double>::max();
  return finite ? std::ldexp(1, std::clamp(std::ilogb(largest), -1000, 1000)) : 1;
}

template <class T>
std::tuple<Tensor, Tensor> backward_rows(const Tensor& grad_loss, const Tensor& z,
                                         const Tensor& threshold,
                                         const std::optional<Tensor>& groups,
                                         const Tensor& log_denominator, const Tensor& num_positives,
                                         const Tensor& positives_similarity, const Loss& loss,
                                         const Reduction& reduction, double width, Rows local) {
  Input<T> input(z, true, groups);
  input.only(local);
  const int64_t n = input.rows.n, padded_n = input.rows.padded_n;
  Backward<T> p{};
  const RowValues<T> upstream = reduction.none ? RowValues<T>("grad_loss", grad_loss, n)
                                               : RowValues<T>("grad_loss", grad_loss);
  const double power = power_near_largest(loss, upstream, reduction.none ? n : 1);
  p.upstream_scale = power * reduction.weight(n);
  const RowValues<T> thresholds("threshold", threshold, n),
      similarities("positives_similarity", positives_similarity, n);
  const RowValues<double> logs("log_denominator", log_denominator, n);
  const RowValues<int64_t> counts("num_positives", num_positives, n);
  T *k, *shift = nullptr;
  for (T** values : {&k, &p.denominator, &p.positive}) input.memory.want(*values, padded_n);
  for (double** values : {&p.partner_weight, &p.partner_share, &p.log_denominator})
    input.memory.want(*values, padded_n);
  const Layout& layout = input.rows;
  if (layout.pair_lanes) input.memory.want(input.rows.row_pairs, padded_n * layout.pair_lanes);
  if (layout.transposed) {
    input.memory.want(input.rows.column_pairs, padded_n * layout.pair_lanes);
    input.memory.want(p.transposed, padded_n * layout.transposed);
  }
  input.memory.want(p.gradient, padded_n * layout.width);
  if (loss.own_shift || width > 0) input.memory.want(shift, padded_n);
  if (width > 0) {
    input.memory.want(p.grad_threshold, padded_n);
    for (T** values : {&p.linear, &p.center, &p.exponential}) input.memory.want(*values, padded_n);
  }
  input.allocate();
  p.pairs = make_pairs(input, k, shift, loss.inverse_temperature, options_of(loss));
  p.inverse_temperature = T(loss.inverse_temperature);
  p.inverse_width = width > 0 ? T(kLog2E / width) : T(0);

  Tensor grad_z = new_empty({n, input.rows.dim}, z.scalar_type());
  p.grad_z = grad_z.mutable_data_ptr();
  Tensor grad_threshold = new_empty({width > 0 ? n : 0}, kScalarType<T>);
  T* const threshold_gradients = data<T>(grad_threshold);

  const double shared_shift = loss.inverse_temperature + beyond_scale(p.pairs);
  const auto prepare = [&](Rows rows) {
    input.normalise(rows);
    const auto clear = [&](T* sums, int64_t each) {
      std::fill(sums + rows.begin * each, sums + rows.end * each, T(0));
    };
    clear(p.gradient, layout.width);
    if (layout.transposed) clear(p.transposed, layout.transposed);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const bool row = i < n;
      const auto f = row ? loss.factors<T>(upstream[i] / power, logs[i], counts[i], similarities[i], shared_shift,
                                           width > 0)
                         : RowFactors<T>{};
      k[i] = !row ? 0 : thresholds[i] == thresholds[i] ? thresholds[i] : T(kNaN);  // as in normalise.h
      p.log_denominator[i] = f.log_denominator;
      if (shift) shift[i] = T(f.log_denominator * kLog2E);
      p.denominator[i] = f.denominator;
      p.positive[i] = -f.positive;
      p.partner_weight[i] = f.partner_weight;
      p.partner_share[i] = f.partner_share;
      if (width > 0) {
        p.grad_threshold[i] = 0;
        p.linear[i] = f.linear;
        p.center[i] = f.center;
        p.exponential[i] = f.exponential;
      }
    }
  };
  for_each_block_pair(
      input.rows, prepare,
      [&](Rows rows, Rows columns, int64_t) { input.kernels->backward(p, rows, columns); },
      [&](Rows rows) {
        input.kernels->normalise_backward(p, rows);
        if (width > 0)
          for (int64_t i = rows.begin; i < std::min(rows.end, n); ++i)
            threshold_gradients[i] = logs[i] == logs[i] ? T(p.grad_threshold[i] / width * p.upstream_scale)
                                                      : T(kNaN);
      });
  return {grad_z, grad_threshold};
}

template <class T>
Tensor quantile_rows(const Tensor& z, double q, const std::optional<Tensor>& groups) {
  Input<T> input(z, true, groups);
  input.allocate();
  const auto& rows = input.rows;
  const int64_t tiles = rows.padded_n / kTile, band = input.kernels->band;
  Tensor out = new_empty({rows.n}, kScalarType<T>);
  T* const quantiles = data<T>(out);
  const int64_t most = workers_for(rows.n, rows.dim);
  parallel(most, [&](int64_t worker, int64_t workers) {
    input.normalise({tiles * worker / workers * kTile, tiles * (worker + 1) / workers * kTile});
  });
  parallel(most, [&](int64_t worker, int64_t workers) {
    std::vector<T> similarities(band * rows.padded_n);
    for (int64_t first = worker * band; first < rows.n; first += workers * band) {
      input.kernels->row_similarities(rows, first, similarities.data());
      for (int64_t i = first; i < std::min(first + band, rows.n); ++i) {
        T* const s = similarities.data() + (i - first) * rows.padded_n;
        const int64_t partner = i < rows.partner ? i + rows.partner : i - rows.partner;
        quantiles[i] = input.kernels->row_quantile(s, rows.n, i, partner, input.group, q);
      }
    }
  });
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& z, const Tensor& threshold, const std::optional<Tensor>& groups,
    double temperature, bool positives, double partner_weight, const std::string& denominator,
    const std::string& weighting, const std::string& reduction, int64_t histogram_bins,
    int64_t local_begin, int64_t local_end) {
  const Loss loss(temperature, positives, partner_weight, denominator, weighting);
  const Reduction how(reduction);
  return with_type(z, [&](auto type) {
    return forward_rows<decltype(type)>(z, threshold, groups, loss, how, histogram_bins,
                                        {local_begin, local_end});
  });
}

std::tuple<Tensor, Tensor> backward(
    const Tensor& grad_loss, const Tensor& z, const Tensor& threshold,
    const std::optional<Tensor>& groups, const Tensor& log_denominator,
    const Tensor& num_positives, const Tensor& positives_similarity, double temperature,
    bool positives, double partner_weight, const std::string& denominator,
    const std::string& weighting, const std::string& reduction, double threshold_grad,
    int64_t local_begin, int64_t local_end) {
  const Loss loss(temperature, positives, partner_weight, denominator, weighting);
  const Reduction how(reduction);
  return with_type(z, [&](auto type) {
    return backward_rows<decltype(type)>(grad_loss, z, threshold, groups, log_denominator,
                                         num_positives, positives_similarity, loss, how, threshold_grad,
                                         {local_begin, local_end});
  });
}

Tensor histogram(const Tensor& z, const std::optional<Tensor>& groups, int64_t bins) {
  STD_TORCH_CHECK(bins > 0, "bins: expected a number > 0, got ", bins);
  return with_type(z, [&](auto type) {
    using T = decltype(type);
    Input<T> input(z, true, groups);
    input.allocate();
    Forward<T> p{};
    p.pairs = make_pairs<T>(input, nullptr, nullptr, 1, 0);
    Histogram counts(bins);
    p.bins = counts.fine_bins();
    for_each_block_pair(
        input.rows, [&](Rows rows) { input.normalise(rows); },
        [&](Rows rows, Rows columns, int64_t worker) {
          input.kernels->histogram(p, rows, columns, counts.of(worker, rows, columns));
        },
        [](Rows) {});
    return counts.total();
  });
}

Tensor quantile(const Tensor& z, double q, const std::optional<Tensor>& groups) {
  STD_TORCH_CHECK(q >= 0 && q <= 1, "q: expected a number in [0, 1], got ", q);
  return with_type(z, [&](auto type) { return quantile_rows<decltype(type)>(z, q, groups); });
}

Tensor uniformity(const Tensor& x) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    Input<T> input(x, false, std::nullopt);
    const int64_t n = input.rows.n, padded_n = input.rows.padded_n;
    Forward<T> p{};
    T* k;  // of no effect without options, but read
    input.memory.want(p.sum_exp, padded_n);
    input.memory.want(k, padded_n);
    input.allocate();
    p.pairs = make_pairs<T>(input, k, nullptr, 4, 0);  // -2 |x_i - x_j|^2 = 4 (s_ij - 1)
    for_each_block_pair(
        input.rows,
        [&](Rows rows) {
          input.normalise(rows);
          std::fill(p.sum_exp + rows.begin, p.sum_exp + rows.end, 0);
          std::fill(k + rows.begin, k + rows.end, T(0));
        },
        [&](Rows rows, Rows columns, int64_t) { input.kernels->forward(p, rows, columns, nullptr); },
        [](Rows) {});
    const double sum = std::accumulate(p.sum_exp, p.sum_exp + n, 0.0);  // over ordered pairs
    Tensor out = new_empty({}, kScalarType<T>);
    *data<T>(out) = T(std::log(sum / (double(n) * double(n - 1))) + beyond_scale(p.pairs));
    return out;
  });
}

Tensor exp2(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous() && x.numel() % 16 == 0,
                  "x: expected a contiguous float32 tensor of a multiple of 16 numbers");
  Tensor y = torch::stable::empty_like(x);
  instruction_set().exp2(static_cast<const float*>(x.const_data_ptr()), data<float>(y), x.numel());
  return y;
}

double peak_flops(double seconds) {
  using Clock = std::chrono::steady_clock;
  const IsaKernels& isa = instruction_set();
  std::atomic<double> rate{0};
  parallel(torch::stable::get_num_threads(), [&](int64_t, int64_t) {
    const auto start = Clock::now();
    double flop = 0, elapsed = 0;
    while (elapsed < seconds) {
      flop += isa.multiply_adds(100000);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    for (double old = rate; !rate.compare_exchange_weak(old, old + flop / elapsed);) {
    }
  });
  return rate;
}

}  // namespace arec::cpu
