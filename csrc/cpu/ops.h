// The registered ops on CPU tensors; schemas, shapes and types: arec_kernels/registration.py.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace arec::cpu {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& z, const Tensor& threshold, const std::optional<Tensor>& groups,
    double temperature, bool positives, double partner_weight, const std::string& denominator,
    const std::string& weighting, const std::string& reduction, int64_t histogram_bins,
    int64_t local_begin, int64_t local_end);

std::tuple<Tensor, Tensor> backward(
    const Tensor& grad_loss, const Tensor& z, const Tensor& threshold,
    const std::optional<Tensor>& groups, const Tensor& log_denominator,
    const Tensor& num_positives, const Tensor& positives_similarity, double temperature,
    bool positives, double partner_weight, const std::string& denominator,
    const std::string& weighting, const std::string& reduction, double threshold_grad,
    int64_t local_begin, int64_t local_end);

Tensor histogram(const Tensor& z, const std::optional<Tensor>& groups, int64_t bins);
Tensor quantile(const Tensor& z, double q, const std::optional<Tensor>& groups);
Tensor uniformity(const Tensor& x);

// For tests and benchmarks: 2^x as the kernels compute it (float32, a multiple of 16 numbers), and
// the FLOP/s of multiply-adds that never leave the registers, all threads together.
Tensor exp2(const Tensor& x);
double peak_flops(double seconds);

}  // namespace arec::cpu
