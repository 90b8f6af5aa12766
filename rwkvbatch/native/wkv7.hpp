// The recurrence of RWKV-7 for one head of one sequence, fused with all other per-head arithmetic.
//
// The state is stored with keys before values, S[key][value]. Vectors run along the values, so S kk and S r are chains over the
// keys, and no sums across lanes are needed.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.hpp"
#include "norm.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

// Blocks of sixteen values that are computed together; their sums fit into the registers.
#if defined(RWKV_ISA_AVX512)
constexpr size_t WKV_BLOCKS = 4;
#else
constexpr size_t WKV_BLOCKS = 2;
#endif

constexpr float GROUP_NORM_EPS = 64e-5f;
constexpr float NORMALIZE_EPS = 1e-12f;

// Rows that are prepared together before, and finished together after, the state is advanced by all of them. One by one, each would
// wait for its own sums, roots and quotients.
constexpr size_t WKV_ROWS = 8;

// The data of one row for one head. Lanes after the head's size are zero.
struct HeadRow {
    const float *r, *w, *v;
    float *removal_key;    // kk, of length one
    float *removal_value;  // kk * a
    float *key;
    float *y;
    float bonus;           // sum r * k * r_k
};

RWKV_INLINE void prepare_row(const Wkv7Job& job, size_t row, size_t offset, HeadRow& head) {
    const size_t size = job.head_size;
    const float* k = job.k.data + row * job.k.stride + offset;
    const float* a = job.a.data + row * job.a.stride + offset;
    const float* g = job.g.data + row * job.g.stride + offset;
    head.r = job.r.data + row * job.r.stride + offset;
    head.w = job.w.data + row * job.w.stride + offset;
    head.v = job.v.data + row * job.v.stride + offset;
    F16 squares = zero(), bonus = zero();
    for (size_t i = 0; i < size; i += LANES) {
        const size_t n = size - i;
        for (const float* later : {head.w, head.v, g}) __builtin_prefetch(later + i);
        const F16 key = load_upto(k + i, n);
        const F16 direction = key * load_upto(job.k_k + offset + i, n);
        store(head.removal_key + i, direction);
        squares = fma(direction, direction, squares);
        const F16 rate = load_upto(a + i, n) - set1(1.0f);
        const F16 scaled = key * fma(rate, load_upto(job.k_a + offset + i, n), set1(1.0f));
        store(head.key + i, scaled);
        bonus = fma(load_upto(head.r + i, n) * scaled, load_upto(job.r_k + offset + i, n), bonus);
    }
    head.bonus = sum_lanes(bonus);
    const float norm = std::sqrt(sum_lanes(squares));
    const F16 length = set1(NORMALIZE_EPS > norm ? NORMALIZE_EPS : norm);  // NaN stays
    for (size_t i = 0; i < size; i += LANES) {
        const F16 direction = load(head.removal_key + i) / length;
        store(head.removal_key + i, direction);
        store(head.removal_value + i, direction * load_upto(a + i, size - i));
    }
}

// S <- S diag(w) - (S kk)(kk * a)^T + v k^T for BLOCKS * 16 values from `first`; y = S r. S is read from `before`, which may be
// `state`. SIZE is the head's size if it is a compile-time constant, else 0; then the last block may extend beyond it. The state at
// `ahead` is prefetched.
template <size_t BLOCKS, size_t SIZE>
RWKV_INLINE void advance_state(float* state, const float* before, const float* ahead, size_t head_size, size_t first,
                               const HeadRow& head) {
    const float *const w = head.w, *const r = head.r, *const v = head.v;
    const size_t size = SIZE > 0 ? SIZE : head_size;
    const auto at = [&](const float* row, size_t i) { return SIZE > 0 ? load(row + i) : load_upto(row + i, size - i); };
    F16 removed[BLOCKS], value[BLOCKS], sum[BLOCKS];
    for (size_t b = 0; b < BLOCKS; ++b) {
        removed[b] = sum[b] = zero();
        value[b] = at(v, first + b * LANES);
    }
    for (size_t j = 0; j < size; ++j) {
        const F16 direction = set1(head.removal_key[j]);
        for (size_t b = 0; b < BLOCKS; ++b)
            removed[b] = fma(at(before + j * size, first + b * LANES), direction, removed[b]);
    }
    for (size_t b = 0; b < BLOCKS; ++b) removed[b] = zero() - removed[b];
    for (size_t j = 0; j < size; ++j) {
        const F16 decay = set1(w[j]), back = set1(head.removal_value[j]);
        const F16 key = set1(head.key[j]), query = set1(r[j]);
        for (size_t b = 0; b < BLOCKS; ++b) {
            const size_t i = first + b * LANES;
            __builtin_prefetch(ahead + j * size + i, 0, 2);
            F16 s = at(before + j * size, i) * decay;
            s = fma(removed[b], back, s);
            s = fma(value[b], key, s);
            if constexpr (SIZE > 0) store(state + j * size + i, s);
            else store_upto(state + j * size + i, s, size - i);
            sum[b] = fma(s, query, sum[b]);
        }
    }
    for (size_t b = 0; b < BLOCKS; ++b) store(head.y + first + b * LANES, sum[b]);
}

RWKV_INLINE void finish_row(const Wkv7Job& job, size_t row, size_t offset, const HeadRow& head) {
    const size_t size = job.head_size;
    const float *const y = head.y, *const g = job.g.data + row * job.g.stride + offset;
    const float mean = row_mean(y, size);
    const float scale = 1.0f / std::sqrt(row_variance(y, mean, size) + GROUP_NORM_EPS);
    for (size_t i = 0; i < size; i += LANES) {
        const size_t n = size - i;
        const F16 normed = (load_upto(y + i, n) - set1(mean)) * set1(scale);
        F16 result = fma(normed, load_upto(job.norm_weight + offset + i, n), load_upto(job.norm_bias + offset + i, n));
        result = fma(set1(head.bonus), load_upto(head.v + i, n), result);
        store_upto(job.out.data + row * job.out.stride + offset + i, result * load_upto(g + i, n), n);
    }
}

inline void wkv7_head(const Wkv7Job& job, size_t sequence, size_t number) {
    const size_t size = job.head_size, offset = number * size;
    float* const state = job.states[sequence] + offset * size;
    const float* const start = job.starting_states[sequence] + offset * size;
    const float* before = start;
    const size_t padded = ceil_div(size, LANES) * LANES;
    float memory[WKV_ROWS * 4 * MAX_HEAD_SIZE];
    HeadRow heads[WKV_ROWS];
    for (size_t i = 0; i < WKV_ROWS; ++i) {
        float* const buffer = memory + i * 4 * padded;
        heads[i] = {nullptr, nullptr, nullptr, buffer, buffer + padded, buffer + 2 * padded, buffer + 3 * padded, 0.0f};
    }
    const size_t end = static_cast<size_t>(job.starts[sequence + 1]);
    for (size_t row = static_cast<size_t>(job.starts[sequence]), count; row < end; row += count) {
        count = std::min(WKV_ROWS, end - row);
        for (size_t i = 0; i < count; ++i) prepare_row(job, row + i, offset, heads[i]);
        for (size_t i = 0; i < count; ++i, before = state) {
            // Decoding uses each state once per token, so its time is that of reading the states: prefetch the next head's.
            const float* ahead = row + i + 1 == end ? start + size * size : state;
            if (size == 64) {
                for (size_t first = 0; first < size; first += WKV_BLOCKS * LANES)
                    advance_state<WKV_BLOCKS, 64>(state, before, ahead, size, first, heads[i]);
            } else {
                for (size_t first = 0; first < size; first += LANES)
                    advance_state<1, 0>(state, before, ahead, size, first, heads[i]);
            }
        }
        for (size_t i = 0; i < count; ++i) finish_row(job, row + i, offset, heads[i]);
    }
}

inline void wkv7(const Wkv7Job& job, size_t task) {
    const size_t parts = ceil_div(job.num_heads, job.heads_per_task);
    const size_t sequence = static_cast<size_t>(job.order[task / parts]);
    const size_t begin = task % parts * job.heads_per_task;
    const size_t end = std::min(begin + job.heads_per_task, job.num_heads);
    for (size_t number = begin; number < end; ++number) wkv7_head(job, sequence, number);
}

}  // namespace RWKV_ISA
}  // namespace rwkv
