// What the kernels of one type of number and the code that launches them say to each other.
#pragma once
#include <machine.h>

#include "../loss.h"

namespace arec::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostRows = 128;    // of a tile, the largest of all kernels
static_assert(kMostRows % kThreads == 0, "padded rows are shared out in whole blocks of threads");
constexpr double kZeroNorm = 1e-12;  // a shorter row has cosine 0 with everything, as in reference.py
constexpr int kSharedBins = 4096;  // a histogram of more counts in global memory

// What the backward pass needs to know of a row, one array (padded_n) each. Those up to kOfColumn it needs
// of a tile's columns as well.
enum Coefficient {
  kThreshold,
  kDenominator,
  kPositive,
  kShift,  // log2 D, where each row has its own
  kOfColumn,
  kPartner = kOfColumn,  // the gradient's entry for the partner, from both sides
  kLinear,
  kCenter,
  kExponential,
  kCoefficients,
};

// What the forward pass adds up for a row in one split of the columns, one array (padded_n) each.
enum Statistic {
  kExponentials,
  kMaximum,  // where each row has its own shift: the largest similarity in the denominator, at least -1
  kPositives,
  kNumPositives,  // exact: below 2^24 columns
  kStatistics,
};

struct Rows {
  const void* z;           // (n, dim), contiguous
  void* unit;              // (padded_n, width): unit rows, zero beyond n and dim
  const int64_t* groups;   // (n), or null
  int n, dim;
  int padded_n;            // n up to whole tiles of every kernel
  int width;
  int partner;             // rows i and i + partner are two views; n: rows have no partners
  int splits;              // of the columns: with few rows a block of them alone would leave the card idle

  __device__ int partner_of(int i) const { return i < partner ? i + partner : i - partner; }
};

struct Forward {
  Rows rows;
  const float* threshold;  // (n), or null: infinite
  float scale;             // log2(e) / temperature
  bool negatives_only, own_shift;
  float* statistics;       // (splits, kStatistics, padded_n)
  unsigned long long* histogram;  // (bins), or null
  int bins;
};

struct FinishForward {
  Rows rows;
  Loss loss;
  const float *threshold, *statistics;
  const float* partner_similarity;  // (padded_n)
  float *losses, *positives_similarity;  // (n)
  double* log_denominator;               // (n)
  int64_t* num_positives;                // (n)
};

struct Coefficients {
  Rows rows;
  Loss loss;
  const float *grad_loss, *threshold, *positives_similarity;  // (n)
  const double* log_denominator;                              // (n)
  const int64_t* num_positives;                               // (n)
  int64_t grad_loss_stride;
  double grad_loss_weight;
  bool soft;            // with a gradient of the threshold
  float* coefficients;  // (kCoefficients, padded_n)
};

struct Backward {
  Rows rows;
  const float* coefficients;  // (kCoefficients, padded_n)
  float scale;                // log2(e) / temperature
  bool negatives_only, own_shift;
  float* gradients;            // (splits, padded_n, width): of the unit rows, partners aside
  float* threshold_gradients;  // (splits, padded_n), or null
  float inverse_width;         // log2(e) / h
};

struct FinishBackward {
  Rows rows;
  const float *coefficients, *gradients, *threshold_gradients;
  void* grad_z;           // (n, dim)
  float* grad_threshold;  // (n), or null
  float threshold_width;  // h
};

struct Quantile {
  Rows rows;
  double q;
  float* quantiles;  // (n)
};

// A kernel over tiles, and the launch that it needs.
template <class Arguments>
struct TileKernel {
  void (*kernel)(Arguments);
  int rows;          // of a block
  int width;         // of the gradient that a block computes; 0: none
  int shared_bytes;  // and the counters of a histogram that is counted there
};

// The kernels of one type, for unit rows of one width: forward and backward with and without what a call
// seldom needs (groups, all pairs in the denominator, a shift for each row, a histogram, a gradient of the
// threshold).
struct Tiles {
  TileKernel<Forward> forward, forward_general;
  TileKernel<Backward> backward, backward_general;
  TileKernel<Quantile> quantile;
};

struct Kernels {
  int column_step;  // columns of a tile
  int unit_bytes;   // of a number in a unit row
  // A warp a row; `partner_similarity` is (padded_n), or null.
  void (*normalise)(Rows, float* partner_similarity);
  void (*normalise_for_backward)(Coefficients);
  void (*normalise_backward)(FinishBackward);
  int (*width)(int dim);  // of unit rows with so many numbers
  const Tiles& (*tiles)(int width);
};

extern const Kernels kernels_bf16, kernels_fp16, kernels_fp32;

}  // namespace arec::cuda
