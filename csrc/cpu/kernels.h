// What the kernels of one instruction set and the code that drives them say to each other.
// The kernels are compiled once for each instruction set (kernels.cpp), so nothing here may
// define a function that the linker could share between them.
#pragma once
#include <stdint.h>

namespace arec::cpu {

constexpr int64_t kTile = 64;  // all work is done on square tiles of the similarity matrix

constexpr double kZeroNorm = 1e-12;  // a shorter row has cosine 0 with everything, as in reference.py

constexpr int64_t kNowhere = 16;  // counters beyond a histogram's bins: what is in none, one a lane

// What the passes over pairs need to know at compile time, as bits of a template argument.
enum Option : int {
  kPositives = 1,      // pairs above the threshold are positives (Eq. 9), not only masked
  kNegativesOnly = 2,  // pairs above the threshold leave the denominator
  kOwnShift = 4,       // one shift a row in the exponent; else both triangles share one exponential
  kMasked = 8,         // some pairs of the tile are no candidates; set by the kernels for each tile
};

enum class Element { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct Rows {  // a range of rows: whole tiles, the last of which may be cut off by n
  int64_t begin, end;
};

// Sizes of the packed rows. A lane is one number, or a pair of bfloat16 where the instruction set
// multiplies pairs.
struct Layout {
  int64_t depth;        // steps of a product over a row
  int64_t width;        // from row to row: dim up to a step of 16 or more, an odd number of steps where
                        // rows are long, which would share few sets of the cache if a power of two
                        // lay between them
  int64_t row_lanes, panel_lanes, pair_lanes;  // of rows, panels and either kind of pairs, for each row of z
  int64_t transposed;   // numbers for each row of z that the backward pass sums transposed; else 0
};

// Unit rows, packed. Rows beyond n, up to a whole tile, are zero. Where lanes are numbers, rows are
// (padded_n, width) and panels (padded_n / panel, depth, panel).
template <class T>
struct Embeddings : Layout {
  const void* z;        // (n, dim), contiguous, elements of type `element`
  Element element;
  int64_t n, dim;
  int64_t padded_n;     // n up to whole tiles
  int64_t partner;      // rows i and i + partner are two views; 0 if rows have no partners
  Rows local;           // of each view, the rows that something is wanted of; sums of others may be partial
  T* rows;              // left operand of z z^T
  T* panels;            // right operand of z z^T
  double* inverse_norm; // (padded_n): 1 / |z|, 0 where |z| < kZeroNorm
  // For the backward pass only, and where lanes are pairs; else null:
  T* row_pairs;         // right operand of G z: pairs of two rows
  T* column_pairs;      // left operand of z^T G, where that is computed
};

// What decides about a pair, and what turns its similarity into an exponential.
template <class T>
struct Pairs {
  Embeddings<T> z;
  const T* threshold;  // (padded_n)
  const T* group;      // (padded_n): equal for rows of one group, NaN for rows of none; or null
  const T* shift;      // (padded_n): kOwnShift or gradient of thresholds, the exponent of 2 is s * scale - shift ...
  T shared_shift;      // and else s * scale - shared_shift, a whole number at or above the scale
  T scale;             // log2(e) / temperature
  int options;
};

// Row sums of the forward pass. A kernel adds its tiles' share to the rows of both its ranges.
template <class T>
struct Forward {
  Pairs<T> pairs;
  double* sum_exp;        // (padded_n): over the denominator without the partner
  double* sum_positives;  // (padded_n): similarities over M+
  double* num_positives;  // (padded_n)
  T* partner_similarity;  // (padded_n)
  T* maximum;             // (padded_n): largest similarity in the denominator, partner aside
  int64_t bins;           // 0: no histogram
};

// dL/ds_ij + dL/ds_ji = denominator_i e_ij + denominator_j e_ji + positive_i + positive_j, each term
// where its mask holds; with the upstream gradient over upstream_scale and 1/temperature already in the
// coefficients.
template <class T>
struct Backward {
  Pairs<T> pairs;
  T* denominator;                   // (padded_n)
  T* positive;                      // (padded_n), of the opposite sign of the upstream gradient
  double* partner_weight;           // (padded_n): of the partner's similarity ...
  double* partner_share;            // (padded_n): ... and of exp(s/tau - log D)
  double* log_denominator;          // (padded_n)
  T inverse_temperature;
  double upstream_scale;            // a power of two, and the weight of a row's loss
  T* gradient;                      // (padded_n, width): of the unit rows
  T* transposed;                    // its share from z^T G (amx.h); else null
  void* grad_z;                     // (n, dim), elements of type `element`
  // Straight-through gradient of the threshold:
  // sum of sigma' * (linear * (s - center) + exponential * exp(s/tau - log D)) over the candidates.
  double* grad_threshold;           // (padded_n), or null
  T *linear, *center, *exponential;
  T inverse_width;                  // log2(e) / h
};

template <class T>
struct Kernels {
  int band;  // rows that row_similarities computes at a time
  Layout (*layout)(int64_t dim);
  void (*normalise)(const Embeddings<T>&, Rows);
  void (*maximum)(const Forward<T>&, Rows, Rows);
  // counts: (bins + kNowhere) of the calling worker, or null
  void (*forward)(const Forward<T>&, Rows, Rows, uint32_t* counts);
  void (*backward)(const Backward<T>&, Rows, Rows);
  void (*normalise_backward)(const Backward<T>&, Rows);
  void (*histogram)(const Forward<T>&, Rows, Rows, uint32_t* counts);
  // Similarities of rows [row, row + band) with all rows, into out (band, padded_n).
  void (*row_similarities)(const Embeddings<T>&, int64_t row, T* out);
  // Of the candidates of a row, from its similarities, which it overwrites: values (padded_n).
  T (*row_quantile)(T* values, int64_t n, int64_t row, int64_t partner, const T* group, double q);
};

struct IsaKernels {
  const Kernels<float>*float32, *bfloat16;  // by input; null: those of the next instruction set will do
  void (*exp2)(const float* x, float* y, int64_t n);  // n: a multiple of 16
  double (*multiply_adds)(int64_t repeats);           // FLOP done, for the peak
};

}  // namespace arec::cpu
