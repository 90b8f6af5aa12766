// Linear layers of few rows whose inputs are mostly zero, as after relu squared: only the weights of nonzero inputs are read.
//
// An output is the same chain of fused multiply-adds as in `linear.hpp`, without those of zero inputs. fma(0, w, sum) does not
// change a sum, except that -0 becomes +0 if the product is +0. A sum becomes -0 only if a product is so small that it is rounded
// to zero. If a sum ends as -0, it is therefore computed again from all inputs. Otherwise both ways agree.
#pragma once

#include <cmath>

#include "linear.hpp"

namespace rwkv {
namespace RWKV_ISA {

// Prefetch distance in bytes, and the number of inputs that are processed together.
constexpr size_t SPARSE_AHEAD = 8192, SPARSE_INPUTS = 8;

inline size_t count_nonzero(ConstRows x, size_t num_rows, size_t width) {
    size_t count = 0;
    for (size_t k = 0; k < width; k += LANES) {
        uint32_t nonzero = 0;
        for (size_t row = 0; row < num_rows; ++row) {
            const F16 values = load_upto(x.data + row * x.stride + k, width - k);
            nonzero |= bitmask(values < zero()) | bitmask(zero() < values) | bitmask(unordered(values));
        }
        count += static_cast<size_t>(__builtin_popcount(nonzero));
    }
    return count;
}

// The nonzero inputs of some panels: the location of their weights, and their values.
template <size_t PANELS> struct NonzeroInputs {
    const SparseInputs& inputs;
    const uint8_t* weights;
    size_t input_bytes, ahead;

    RWKV_INLINE const uint8_t* at(size_t k) const { return weights + inputs.offsets[k] * input_bytes; }
    RWKV_INLINE F16 value(size_t row, size_t k) const { return set1(inputs.x[row * inputs.x_stride + k]); }
};

// Add the products of the inputs number `begin` to `end`. One cache line of several inputs is read before the next line of them,
// starting with the last line: up to twice as fast as reading one input after the other.
template <Dtype D, size_t ROWS, size_t PANELS>
RWKV_INLINE void add_nonzero(const NonzeroInputs<PANELS>& inputs, size_t begin, size_t end, F16 (&sum)[ROWS][PANELS]) {
    constexpr size_t PANEL_BYTES = PANEL * size_of(D), NUM_LINES = ceil_div(PANELS * PANEL_BYTES, LINE);
    constexpr size_t LINE_PANELS = PANELS / NUM_LINES;
    const auto add = [&](size_t k, size_t line, const uint8_t* weights, const uint8_t* ahead) __attribute__((always_inline)) {
        __builtin_prefetch(ahead + line * LINE, 0, 2);
        __asm__ volatile("" ::: "memory");  // or the compiler reads an input's lines together
        F16 weight[LINE_PANELS];
        load_panels<D>(weights + line * LINE_PANELS * PANEL_BYTES, weight);
        for (size_t i = 0; i < ROWS; ++i) {
            const F16 input = inputs.value(i, k);
            for (size_t p = 0; p < LINE_PANELS; ++p)
                sum[i][line * LINE_PANELS + p] = fma(input, weight[p], sum[i][line * LINE_PANELS + p]);
        }
    };
    size_t k = begin;
    for (; k + SPARSE_INPUTS <= end; k += SPARSE_INPUTS) {
        const uint8_t *weights[SPARSE_INPUTS], *ahead[SPARSE_INPUTS];
#pragma GCC unroll 8
        for (size_t i = 0; i < SPARSE_INPUTS; ++i) {
            weights[i] = inputs.at(k + i);
            ahead[i] = inputs.at(k + i + inputs.ahead);
        }
#pragma GCC unroll 4
        for (size_t number = 0; number < NUM_LINES; ++number) {
            const size_t line = number == 0 ? NUM_LINES - 1 : number - 1;
#pragma GCC unroll 8
            for (size_t i = 0; i < SPARSE_INPUTS; ++i) add(k + i, line, weights[i], ahead[i]);
        }
    }
    for (; k < end; ++k)
#pragma GCC unroll 4
        for (size_t line = 0; line < NUM_LINES; ++line) add(k, line, inputs.at(k), inputs.at(k + inputs.ahead));
}

// The sums of some panels, [row][panel][16].
template <Dtype D, size_t ROWS, size_t PANELS> void sum_nonzero(const LinearJob& job, size_t first_panel, float* sums) {
    const PackedMatrix& weight = job.weight;
    const size_t band_width = weight.band_width(first_panel), input_bytes = weight.input_bytes(band_width);
    const NonzeroInputs<PANELS> inputs{job.sparse, weight.at(first_panel, 0), input_bytes,
                                       std::min(SPARSE_AHEAD / input_bytes, MAX_SPARSE_AHEAD)};
    F16 total[ROWS][PANELS];
    for (size_t i = 0; i < ROWS; ++i)
        for (size_t p = 0; p < PANELS; ++p) total[i][p] = zero();
    if constexpr (D != Dtype::INT8) {
        add_nonzero<D>(inputs, 0, job.sparse.count, total);
    } else {
        for (size_t block = 0, begin = 0, end; block * SCALED_INPUTS < weight.in; ++block, begin = end) {
            end = job.sparse.block_ends[block];
            if (begin == end) continue;
            const size_t first = block * SCALED_INPUTS, size = std::min(SCALED_INPUTS, weight.in - first);
            const uint8_t* const scales_at = weight.at(first_panel, first) + scales_after(size, input_bytes, first_panel % BAND);
            const uint8_t* const next_scales = scales_at + weight.bytes_before(SCALED_INPUTS, band_width);
            for (size_t p = 0; p < PANELS; ++p) __builtin_prefetch(next_scales + p * PANEL * sizeof(float), 0, 2);
            F16 sum[ROWS][PANELS];
            for (size_t i = 0; i < ROWS; ++i)
                for (size_t p = 0; p < PANELS; ++p) sum[i][p] = zero();
            add_nonzero<D>(inputs, begin, end, sum);
            const Scales scales{scales_at};
            for (size_t p = 0; p < PANELS; ++p) {
                const F16 scale = scales[p];
                for (size_t i = 0; i < ROWS; ++i) total[i][p] = fma(sum[i][p], scale, total[i][p]);
            }
        }
    }
    for (size_t i = 0; i < ROWS; ++i)
        for (size_t p = 0; p < PANELS; ++p) store(sums + (i * PANELS + p) * PANEL, total[i][p]);
}

// Whether one of 16 numbers is -0.
inline bool has_negative_zero(const float* numbers) {
    const F16 values = load(numbers);
    if ((bitmask(values < zero()) | bitmask(zero() < values) | bitmask(unordered(values))) == 0xffffu) return false;
    for (size_t i = 0; i < LANES; ++i)
        if (numbers[i] == 0.0f && std::signbit(numbers[i])) return true;
    return false;
}

template <Dtype D, size_t ROWS>
void linear_sparse(const LinearJob& job, size_t first_panel, size_t end_panel, float* sums, const uint8_t* next) {
    constexpr size_t PANELS = tile_panels(ROWS);
    for (size_t first = first_panel, panels; first < end_panel; first += panels) {
        panels = std::min(end_panel - first, job.weight.band_width(first) - first % BAND);
        panels = panels >= PANELS ? PANELS : panels >= 2 ? std::min<size_t>(2, PANELS) : 1;
        (panels == PANELS ? sum_nonzero<D, ROWS, PANELS>
         : panels == 2    ? sum_nonzero<D, ROWS, std::min<size_t>(2, PANELS)>
                          : sum_nonzero<D, ROWS, 1>)(job, first, sums);
        bool exact = true;
        for (size_t i = 0; i < ROWS * panels; ++i) exact &= !has_negative_zero(sums + i * PANEL);
        if (!exact) {
            linear_dense(job, first, first + panels, sums, next);
            continue;
        }
        finish_tile(job, 0, ROWS, first, panels, {sums, panels * PANEL, PANEL});
    }
}

template <Dtype D>
void linear_sparse(const LinearJob& job, size_t first_panel, size_t end_panel, float* sums, const uint8_t* next) {
    switch (job.num_rows) {
        case 1: return linear_sparse<D, 1>(job, first_panel, end_panel, sums, next);
        case 2: return linear_sparse<D, 2>(job, first_panel, end_panel, sums, next);
        default: return linear_sparse<D, MAX_SPARSE_ROWS>(job, first_panel, end_panel, sums, next);
    }
}

// Compute a task of a layer. `sums` is scratch memory; `next` are the weights that this thread reads next.
inline void linear(const LinearJob& job, size_t task, float* sums, const uint8_t* next) {
    const size_t first_panel = task * job.panels_per_task;
    const size_t end_panel = std::min(first_panel + job.panels_per_task, job.weight.num_panels());
    if (job.sparse.offsets == nullptr) return linear_dense(job, first_panel, end_panel, sums, next);
    switch (job.weight.dtype) {
        case Dtype::FP32: return linear_sparse<Dtype::FP32>(job, first_panel, end_panel, sums, next);
        case Dtype::BF16: return linear_sparse<Dtype::BF16>(job, first_panel, end_panel, sums, next);
        case Dtype::FP16: return linear_sparse<Dtype::FP16>(job, first_panel, end_panel, sums, next);
        default: return linear_sparse<Dtype::INT8>(job, first_panel, end_panel, sums, next);
    }
}

}  // namespace RWKV_ISA
}  // namespace rwkv
