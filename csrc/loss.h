// The arithmetic of one row, which all compiled backends share: its loss from the sums over its pairs,
// and the factors with which these pairs enter the gradient. In double: a call does it N times, not N^2.
#pragma once
#include <stdint.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <string>

#ifdef __CUDACC__
#define AREC_HOST_DEVICE __host__ __device__
#else
#define AREC_HOST_DEVICE
#endif

namespace arec {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
constexpr double kSharedShift = 0.025;  // the smallest temperature with one shift for all rows
constexpr int64_t kMostBins = int64_t(1) << 22;  // of a histogram, as arec_kernels/arguments.py has it

// What a row's pairs add up to.
template <class T>
struct RowSums {
  double exponentials;   // over the denominator without the partner: of exp(s / tau - shift)
  double shift;
  double positives;      // of the similarities over M+
  int64_t num_positives;
  T partner_similarity;
};

template <class T>
struct RowLoss {
  T loss;
  double log_denominator;  // its small excess over the partner's logit is a gradient
};

// What the gradient needs of a row. All but log D and the center have the upstream gradient in them.
template <class T>
struct RowFactors {
  // dl_i/ds_ip = partner_share exp(s / tau - log D) - partner_weight
  double log_denominator, partner_weight, partner_share;
  // dl_i/ds_ij = denominator exp(s / tau - shift) - positive, each where its mask holds
  T denominator, positive;
  // Straight-through for the threshold, times the width: the sum over the candidates of
  // sigma' (linear (s - center) + exponential exp(s / tau - log D))
  T linear, center, exponential;

  // Where the denominator holds nothing but the partner, the exponential is exactly 1: without positives
  // the difference is exactly zero.
  AREC_HOST_DEVICE T partner(T similarity, T inverse_temperature) const {
    const double logit = T(similarity * inverse_temperature);
    return T(partner_share * exp(logit - log_denominator) - partner_weight);
  }
};

// What becomes of the rows' losses.
struct Reduction {
  bool none, mean;

  explicit Reduction(const std::string& name) : none(name == "none"), mean(name == "mean") {
    STD_TORCH_CHECK(none || mean || name == "sum", "reduction: expected mean, sum or none, got ", name);
  }
  double weight(int64_t n) const { return mean ? 1 / double(n) : 1; }  // of a row's loss
};

struct Loss {
  double inverse_temperature, alpha;
  bool positives, negatives_only, printed, unnormalised, own_shift;

  Loss(double temperature, bool positives, double partner_weight, const std::string& denominator,
       const std::string& weighting)
      : inverse_temperature(1 / temperature),
        alpha(partner_weight),
        positives(positives),
        negatives_only(denominator == "negatives"),
        printed(weighting == "printed"),
        unnormalised(weighting == "label-unnormalised"),
        own_shift(temperature < kSharedShift) {
    STD_TORCH_CHECK(temperature > 0, "temperature: expected a number > 0, got ", temperature);
    STD_TORCH_CHECK(negatives_only || denominator == "all",
                    "denominator: expected negatives or all, got ", denominator);
    STD_TORCH_CHECK(printed || unnormalised || weighting == "label",
                    "weighting: expected label, label-unnormalised or printed, got ", weighting);
  }

  // Weights of a row with m positives: the partner's, each positive's, and their sum.
  struct Weights {
    double partner, positive, total;
  };
  AREC_HOST_DEVICE Weights weights(int64_t m) const {
    if (!positives) return {1, 0, 1};
    if (printed) return {1, m > 0 ? 1.0 : 0.0, 1.0 + double(m)};
    if (m > 0) return {alpha, (1 - alpha) / double(m), 1};
    return unnormalised ? Weights{alpha, 0, alpha} : Weights{1, 0, 1};
  }
  // What Eq. 9 as printed adds for its weights inside the logarithm.
  AREC_HOST_DEVICE double constant(int64_t m) const {
    if (!positives || !printed) return 0;
    return -log(alpha) - (m > 0 ? double(m) * log((1 - alpha) / double(m)) : 0);
  }

  template <class T>
  AREC_HOST_DEVICE RowLoss<T> row(const RowSums<T>& sums, T threshold) const {
    const double logit = T(sums.partner_similarity * T(inverse_temperature));
    const double top = logit > sums.shift ? logit : sums.shift;
    // With nothing but the partner in the denominator, log D is its logit to the bit.
    double log_d = sums.exponentials == 0 && logit == logit
                       ? logit
                       : log(sums.exponentials * exp(sums.shift - top) + exp(logit - top)) + top;
    if (threshold != threshold) log_d = nan("");  // as every NaN here one whose low bits are 0
    const int64_t m = sums.num_positives;
    const Weights w = weights(m);
    // Each weight times its own difference: exactly zero where there is no candidate.
    return {T(w.partner * (log_d - logit) +
              w.positive * (double(m) * log_d - sums.positives * inverse_temperature) + constant(m)),
            log_d};
  }

  template <class T>
  AREC_HOST_DEVICE RowFactors<T> factors(double upstream, double log_denominator, int64_t m,
                                         double sum_positives,
                                         double shift,  // of all rows' exponentials, where it is one
                                         bool soft) const {  // with a gradient of the threshold
    const Weights w = weights(m);
    const double per_similarity = upstream * inverse_temperature;
    const double share = own_shift ? 1 : exp(shift - log_denominator);
    RowFactors<T> f{};
    f.log_denominator = log_denominator;
    f.partner_weight = per_similarity * w.partner;
    f.partner_share = per_similarity * w.total;
    f.denominator = T(per_similarity * w.total * share);
    f.positive = T(per_similarity * w.positive);
    if (soft) {
      f.exponential = T(negatives_only ? upstream * w.total : 0);
      if (positives && m > 0) {
        f.linear = T(per_similarity * w.positive);
        f.center = T(printed ? (log_denominator - log((1 - alpha) / double(m)) + 1) / inverse_temperature
                             : sum_positives / double(m));
      }
    }
    return f;
  }
};

}  // namespace arec
