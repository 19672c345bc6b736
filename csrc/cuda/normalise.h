// What is done with single rows, a warp each: to unit length before everything else, the coefficients of the
// backward pass, and the gradient back through the unit length.
#pragma once
#include "tile.h"

namespace arec::cuda {

__device__ __forceinline__ double sum_over_warp(double x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
  return x;
}

// A row of z on the unit sphere. In double, which the squares of no finite float leave.
template <class F>
class UnitRow {
 public:
  __device__ UnitRow(const Rows& rows, int row) : z_(static_cast<const Unit*>(rows.z) + int64_t(row) * rows.dim) {
    double squares = 0;
    for (int d = lane(); d < rows.dim; d += 32) squares += double(number(d)) * double(number(d));
    const double norm = sqrt(sum_over_warp(squares));
    if (!(norm < kZeroNorm)) inverse_norm = 1 / norm;
    if (!(norm < double(INFINITY))) inverse_norm = nan("");  // infinite rows are NaN, not zero
  }
  __device__ float number(int d) const { return F::widen(z_[d]); }
  __device__ typename F::Unit unit(int d) const { return F::narrow(float(number(d) * inverse_norm)); }

  double inverse_norm = 0;

 private:
  using Unit = typename F::Unit;
  const Unit* z_;
};

// Writes row i.
template <class F>
__device__ void normalise_row(const Rows& rows, int i) {
  typename F::Unit* const out = static_cast<typename F::Unit*>(rows.unit) + int64_t(i) * rows.width;
  const int inside = i < rows.n ? rows.dim : 0;
  for (int d = inside + lane(); d < rows.width; d += 32) out[d] = F::narrow(0);
  if (i >= rows.n) return;
  const UnitRow<F> row(rows, i);
  for (int d = lane(); d < rows.dim; d += 32) out[d] = row.unit(d);
}

// In all lanes; 0 beyond the last row.
template <class F>
__device__ float similarity_with_partner(const Rows& rows, int i) {
  if (i >= rows.n) return 0;
  const UnitRow<F> row(rows, i), partner(rows, rows.partner_of(i));
  double similarity = 0;
  for (int d = lane(); d < rows.dim; d += 32)
    similarity += double(F::widen(row.unit(d))) * double(F::widen(partner.unit(d)));
  return float(sum_over_warp(similarity));
}

__device__ __forceinline__ int row_of_warp() { return blockIdx.x * kWarps + warp(); }

template <class F>
__global__ void __launch_bounds__(kThreads) normalise(Rows rows, float* partner_similarity) {
  const int i = row_of_warp();
  normalise_row<F>(rows, i);
  if (partner_similarity == nullptr) return;
  const float similarity = similarity_with_partner<F>(rows, i);
  if (lane() == 0) partner_similarity[i] = similarity;
}

template <class F>
__global__ void __launch_bounds__(kThreads) normalise_for_backward(Coefficients p) {
  const int i = row_of_warp(), n = p.rows.n;
  normalise_row<F>(p.rows, i);
  const float similarity = similarity_with_partner<F>(p.rows, i);
  // Even lanes for the row and odd ones for its partner: what is in double is slow on some cards.
  const int row = lane() % 2 == 0 ? i : p.rows.partner_of(i);
  const auto mine =
      i < n ? p.loss.factors<float>(p.grad_loss_weight * p.grad_loss[row * p.grad_loss_stride], p.log_denominator[row],
                                    p.num_positives[row], p.positives_similarity[row], p.loss.inverse_temperature,
                                    p.soft)
            : RowFactors<float>{};
  float partner_entry = mine.partner(similarity, float(p.loss.inverse_temperature));
  partner_entry += __shfl_xor_sync(0xffffffff, partner_entry, 1);
  if (lane() != 0) return;
  const auto store = [&](Coefficient which, float x) {
    p.coefficients[int64_t(which) * p.rows.padded_n + i] = x;
  };
  store(kThreshold, i < n ? at_least_lowest(p.threshold[i]) : INFINITY);
  store(kDenominator, mine.denominator);
  store(kPositive, mine.positive);
  store(kShift, float(mine.log_denominator * kLog2E));
  store(kPartner, partner_entry);
  store(kLinear, mine.linear);
  store(kCenter, mine.center);
  store(kExponential, mine.exponential);
}

// dz = (dẑ - (dẑ . ẑ) ẑ) / |z|, dẑ being the sum over the splits and the partner's share.
template <class F>
__global__ void __launch_bounds__(kThreads) normalise_backward(FinishBackward p) {
  const Rows& rows = p.rows;
  const int i = row_of_warp();
  if (i >= rows.n) return;
  using Unit = typename F::Unit;
  Unit* const out = static_cast<Unit*>(p.grad_z) + int64_t(i) * rows.dim;
  if (p.grad_threshold != nullptr && lane() == 0) {
    float total = 0;
    for (int split = 0; split < rows.splits; ++split)
      total += p.threshold_gradients[int64_t(split) * rows.padded_n + i];
    p.grad_threshold[i] = total / p.threshold_width;
  }
  const UnitRow<F> row(rows, i);
  const Unit* const partner_unit = static_cast<const Unit*>(rows.unit) + int64_t(rows.partner_of(i)) * rows.width;
  const double weight = p.coefficients[int64_t(kPartner) * rows.padded_n + i];
  const auto gradient = [&](int d) {
    double total = weight * F::widen(partner_unit[d]);
    for (int split = 0; split < rows.splits; ++split)
      total += p.gradients[(int64_t(split) * rows.padded_n + i) * rows.width + d];
    return total;
  };
  double radial = 0;
  for (int d = lane(); d < rows.dim; d += 32) radial += gradient(d) * (row.number(d) * row.inverse_norm);
  radial = sum_over_warp(radial);
  for (int d = lane(); d < rows.dim; d += 32) {
    const double tangential = gradient(d) - radial * (row.number(d) * row.inverse_norm);
    // A row without a direction has no gradient, whatever stands in for its own.
    out[d] = F::narrow(row.inverse_norm == 0 ? 0 : float(tangential * row.inverse_norm));
  }
}

}  // namespace arec::cuda
