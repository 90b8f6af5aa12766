// Operations on whole rows: layer norm, embedding, token shift, DeepEmbed's token matrix, and activations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "math.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

// Sums over a row: sixteen lanes sum up every sixteenth element, and a fixed tree adds the lanes.
RWKV_INLINE float row_mean(const float* x, size_t width) {
    F16 sum = zero();
    for (size_t i = 0; i < width; i += LANES) sum = sum + load_upto(x + i, width - i);
    return sum_lanes(sum) / static_cast<float>(width);
}

RWKV_INLINE float row_variance(const float* x, float mean, size_t width) {
    F16 sum = zero();
    size_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const F16 d = load(x + i) - set1(mean);
        sum = fma(d, d, sum);
    }
    if (i < width) {
        float tail[LANES];
        store(tail, load_first(x + i, width - i) - set1(mean));
        const F16 d = load_first(tail, width - i);
        sum = fma(d, d, sum);
    }
    return sum_lanes(sum) / static_cast<float>(width);
}

RWKV_INLINE void norm_row(const float* x, const NormJob& job, float* out) {
    const float mean = row_mean(x, job.width);
    const float scale = 1.0f / std::sqrt(row_variance(x, mean, job.width) + job.eps);
    for (size_t i = 0; i < job.width; i += LANES) {
        const size_t n = job.width - i;
        const F16 normed = (load_upto(x + i, n) - set1(mean)) * set1(scale);
        store_upto(out + i, fma(normed, load_upto(job.weight + i, n), load_upto(job.bias + i, n)), n);
    }
}

inline void layer_norm(const NormJob& job, size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
        const size_t row = job.rows != nullptr ? static_cast<size_t>(job.rows[i]) : i;
        norm_row(job.x.data + row * job.x.stride, job, job.out.data + i * job.out.stride);
    }
}

// Convert a row of a table of `width` columns to floats.
RWKV_INLINE void widen_row(const uint8_t* table, Dtype dtype, int64_t row, size_t width, float* out) {
    const uint8_t* entry = table + static_cast<size_t>(row) * width * size_of(dtype);
    switch (dtype) {
        case Dtype::FP32: std::memcpy(out, entry, width * sizeof(float)); break;
        case Dtype::BF16:
            for (size_t c = 0; c < width; ++c) {
                uint16_t half;
                std::memcpy(&half, entry + c * sizeof half, sizeof half);
                out[c] = bf16_to_float(half);
            }
            break;
        case Dtype::FP16:
            for (size_t c = 0; c < width; c += LANES) {
                uint16_t halves[LANES] = {};
                std::memcpy(halves, entry + c * sizeof(uint16_t), std::min(LANES, width - c) * sizeof(uint16_t));
                store_upto(out + c, widen_fp16(halves), width - c);
            }
            break;
        default: break;  // tables are not quantised
    }
}

inline void embed(const EmbedJob& job, size_t begin, size_t end, float* scratch) {
    for (size_t i = begin; i < end; ++i) {
        widen_row(job.table, job.dtype, job.tokens[i], job.norm.width, scratch);
        norm_row(scratch, job.norm, job.norm.out.data + i * job.norm.out.stride);
    }
}

// Each output is one chain of fused multiply-adds over the inputs, first to last, from zero.
inline void token_matrix(const TokenMatrixJob& job, size_t begin, size_t end, float* scratch) {
    const size_t size = job.size;
    for (size_t i = begin; i < end; ++i) {
        widen_row(job.table, job.dtype, job.tokens[i], size * size, scratch);
        const float* x = job.x.data + i * job.x.stride;
        const float* offset = job.offset.data + i * job.offset.stride;
        for (size_t column = 0; column < size; column += LANES) {
            const size_t n = size - column;
            F16 sum = zero();
            for (size_t k = 0; k < size; ++k) {
                const size_t index = k * size + column;
                sum = fma(load_upto(scratch + index, n) + load_upto(offset + index, n), set1(x[k]), sum);
            }
            store_upto(job.out.data + i * job.out.stride + column, sum, n);
        }
    }
}

inline void mix(const MixJob& job, size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
        const float* x = job.x.data + row * job.x.stride;
        const float* previous = job.carried[row] != nullptr ? job.carried[row] : x - job.x.stride;
        for (size_t i = 0; i < job.width; i += LANES) {
            const size_t n = job.width - i;
            const F16 current = load_upto(x + i, n);
            const F16 difference = load_upto(previous + i, n) - current;
            for (size_t m = 0; m < job.num_mixes; ++m) {
                const F16 factor = load_upto(job.factors + m * job.width + i, n);
                store_upto(job.out[m].data + row * job.out[m].stride + i, fma(difference, factor, current), n);
            }
        }
    }
}

inline void activate_all(float* values, size_t count, Activation activation) {
    for (size_t i = 0; i < count; i += LANES)
        store_upto(values + i, activate(load_upto(values + i, count - i), activation), count - i);
}

}  // namespace RWKV_ISA
}  // namespace rwkv
