// All kernels for one type of number; each kernels_*.cu compiles one.
#pragma once
#include "backward.h"
#include "forward.h"
#include "normalise.h"
#include "quantile.h"

namespace arec::cuda {

template <class F, int width>
const Tiles kTiles = {
    {forward_kernel<F, width, false>, Shape<F, width>::kRows, 0, Shape<F, width>::kBytes},
    {forward_kernel<F, width, true>, Shape<F, width>::kRows, 0, Shape<F, width>::kBytes},
    {backward_kernel<F, width, false>, Shape<F, width>::kRows, Shape<F, width>::kGradient, Shape<F, width>::kBytes},
    {backward_kernel<F, width, true>, Shape<F, width>::kRows, Shape<F, width>::kGradient, Shape<F, width>::kBytes},
    {quantile_kernel<F, width>, Shape<F, width>::kRows, 0, Shape<F, width>::kBytes},
};

// The widest rows of which shared memory holds tiles of whole ones.
template <class F>
constexpr int kWidest = sizeof(typename F::Unit) == 2 ? 256 : 128;

template <class F>
int width_of(int dim) {
  for (int width = 64; width <= kWidest<F>; width *= 2)
    if (dim <= width) return width;
  return (dim + kChunk - 1) / kChunk * kChunk;
}

template <class F>
const Tiles& tiles_of(int width) {
  if (width == 64) return kTiles<F, 64>;
  if (width == 128) return kTiles<F, 128>;
  if (width == kWidest<F>) return kTiles<F, kWidest<F>>;
  return kTiles<F, kAnyWidth>;
}

template <class F>
Kernels kernels_of() {
  return {F::kColumns,      int(sizeof(typename F::Unit)), normalise<F>, normalise_for_backward<F>,
          normalise_backward<F>, width_of<F>,              tiles_of<F>};
}

}  // namespace arec::cuda
