// The choice of one token, and log-probabilities. The reference implementation is ops/choosing.py.
//
// Nothing is sorted. The few logits near the largest are gathered, and a radix search among them finds the logit at which the sum
// of probabilities (or the count) reaches its target. Probabilities are fp32 exponentials, added in fp32 within stretches of 1024
// tokens and in fp64 across them. Noise is fp64, and computed only for tokens that can still win.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.hpp"
#include "math.hpp"
#include "philox.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float LOWEST = -std::numeric_limits<float>::max();
constexpr size_t STRETCH = 1024;

// ln x for normal x > 0: 2^k (1 + f), s = f / (2 + f), ln(1 + f) by the polynomial in s^2 of FreeBSD's msun.
inline double natural_log(double x) {
    uint64_t word;
    std::memcpy(&word, &x, sizeof word);
    int64_t k = static_cast<int64_t>(word >> 52) - 1023;
    word = (word & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    double m;
    std::memcpy(&m, &word, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        ++k;
    }
    const double f = m - 1.0, s = f / (2.0 + f), z = s * s, n = static_cast<double>(k);
    double r = 1.479819860511658591e-01;
    r = r * z + 1.531383769920937332e-01;
    r = r * z + 1.818357216161805012e-01;
    r = r * z + 2.222219843214978396e-01;
    r = r * z + 2.857142874366239149e-01;
    r = r * z + 3.999999999940941908e-01;
    r = r * z + 6.666666666666735130e-01;
    r = r * z;
    const double half_square = 0.5 * f * f;
    return n * 6.93147180369123816490e-01 -
           ((half_square - (s * (half_square + r) + n * 1.90821492927058770002e-10)) - f);
}

inline float maximum(const float* x, size_t count) {
    F16 largest = set1(-INFINITE);
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) largest = greater(load(x + i), largest);
    float lanes[LANES];
    store(lanes, largest);
    float result = *std::max_element(lanes, lanes + LANES);
    for (; i < count; ++i) result = std::max(result, x[i]);
    return result;
}

inline int64_t first_of(const float* x, size_t count, float value) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        if (const uint32_t found = bitmask(load(x + i) >= set1(value))) return static_cast<int64_t>(i) + __builtin_ctz(found);
    for (; i < count; ++i)
        if (x[i] >= value) return static_cast<int64_t>(i);
    return 0;
}

RWKV_INLINE F16 load_or_lowest(const float* x, size_t n) {
    if (n >= LANES) return load(x);
    float lanes[LANES];
    store(lanes, set1(-INFINITE));
    store_first(lanes, load_first(x, n), n);
    return load(lanes);
}

// The logarithm of the sum of e^x; NaN if the sum is not positive and finite.
inline double log_sum_exp(const float* x, size_t count, float largest) {
    double total = 0.0;
    for (size_t start = 0; start < count; start += STRETCH) {
        const size_t end = std::min(start + STRETCH, count);
        F16 sum = zero();
        for (size_t i = start; i < end; i += LANES) sum = sum + exp(load_or_lowest(x + i, end - i) - set1(largest));
        total += static_cast<double>(sum_lanes(sum));
    }
    if (!(total > 0.0 && total < HUGE_VAL)) return std::numeric_limits<double>::quiet_NaN();
    return static_cast<double>(largest) + natural_log(total);
}

inline Choice logprob(const float* logits, size_t vocab_size, int64_t token) {
    const float largest = maximum(logits, vocab_size);
    const double value = static_cast<double>(logits[token]) - log_sum_exp(logits, vocab_size, largest);
    return {first_of(logits, vocab_size, largest), static_cast<float>(value)};
}

// A token that may be kept. The order of the keys is that of the logits.
struct Candidate {
    uint32_t key;
    uint32_t id;
    float weight;
    float logit;
};

inline uint32_t ordered_key(float x) {
    if (x == 0.0f) x = 0.0f;  // both zeros are equal
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    return word & 0x80000000u ? ~word : word | 0x80000000u;
}

// Distances below the largest logit, for gathering candidates; denser where most of the probability is.
constexpr float DEPTHS[] = {1.0f, 2.0f, 3.0f, 4.5f, 6.0f, 8.0f, 11.0f, 16.0f};
constexpr size_t NUM_DEPTHS = sizeof DEPTHS / sizeof DEPTHS[0];

// The cut that keeps the largest tokens until their weights reach `target` (top-p), or with `counted` their number (top-k).
struct Cut {
    uint32_t key;      // the smallest kept key
    double above;      // total weight of all larger keys
};

inline Cut find_cut(const Candidate* candidates, size_t count, double target, bool counted, Candidate* work) {
    constexpr unsigned DIGIT = 10;
    constexpr size_t BUCKETS = size_t(1) << DIGIT;
    double above = 0.0;
    const Candidate* current = candidates;
    uint32_t low = 0xffffffffu, high = 0;
    for (size_t i = 0; i < count; ++i) {
        low = std::min(low, current[i].key);
        high = std::max(high, current[i].key);
    }
    while (low < high) {
        unsigned shift = 0;
        while ((high - low) >> shift >= BUCKETS) ++shift;
        double weights[BUCKETS] = {};
        for (size_t i = 0; i < count; ++i)
            weights[(current[i].key - low) >> shift] += counted ? 1.0f : current[i].weight;
        size_t bucket = (high - low) >> shift;
        while (bucket > 0 && above + weights[bucket] < target) above += weights[bucket--];
        const uint32_t begin = low + (static_cast<uint32_t>(bucket) << shift);
        const uint32_t end = begin + ((uint32_t(1) << shift) - 1);
        uint32_t new_low = 0xffffffffu, new_high = 0;
        size_t kept = 0;
        for (size_t i = 0; i < count; ++i) {
            const Candidate c = current[i];
            if (c.key < begin || c.key > end) continue;
            new_low = std::min(new_low, c.key);
            new_high = std::max(new_high, c.key);
            work[kept++] = c;
        }
        current = work;
        count = kept;
        low = new_low;
        high = new_high;
    }
    return {low, above};
}

class Sampler {
public:
    Sampler(const SampleRow& row, float* scratch)
        : row_(row), size_(row.vocab_size), logits_(scratch),
          candidates_(reinterpret_cast<Candidate*>(scratch + padded())), work_(candidates_ + padded()) {}

    Choice choose() {
        if (!copy_finite()) return {-1, logprob(row_.logits, size_, 0).logprob};
        for (size_t i = 0; i < row_.num_penalties; ++i) logits_[row_.penalty_ids[i]] -= row_.penalty_values[i];
        largest_ = maximum(logits_, size_);
        if (!(largest_ > -INFINITE)) return {-1, logprob(row_.logits, size_, 0).logprob};
        best_ = first_of(logits_, size_, largest_);
        if (row_.temperature != 0.0f && row_.top_p != 0.0f && row_.top_k != 1) draw();
        return {best_, static_cast<float>(static_cast<double>(row_.logits[best_]) - raw_log_sum())};
    }

private:
    size_t padded() const { return ceil_div(size_, 64) * 64 + 64; }

    double raw_log_sum() const { return log_sum_exp(row_.logits, size_, maximum(row_.logits, size_)); }

    // Copy the logits; false if one is NaN or +infinity.
    bool copy_finite() {
        uint32_t finite = 0xffffu;
        for (size_t i = 0; i < size_; i += LANES) {
            const F16 x = load_or_lowest(row_.logits + i, size_ - i);
            finite &= bitmask(x < set1(INFINITE));
            store(logits_ + i, x);
        }
        return finite == 0xffffu;
    }

    void draw() {
        const bool cuts_p = row_.top_p < 1.0f, cuts_k = row_.top_k > 0 && row_.top_k < static_cast<int64_t>(size_);
        const bool cuts_scores = row_.min_p_cutoff > -HUGE_VAL;
        best_score_ = score(best_);
        if (!cuts_p && !cuts_k && !cuts_scores) return draw_from_all();
        size_t count;
        if (cuts_p && !(cuts_k && row_.top_k_first)) {
            const double target = static_cast<double>(row_.top_p) * weigh(true);
            count = keep_probable(gather(depth_of(target)), target);
            if (cuts_k) count = keep_largest(count);
        } else if (cuts_k) {
            weigh(false);
            count = keep_largest(gather(depth_of(static_cast<double>(row_.top_k))));
            if (cuts_p) {
                double total = 0.0;
                for (size_t i = 0; i < count; ++i) total += static_cast<double>(candidates_[i].weight);
                count = keep_probable(count, static_cast<double>(row_.top_p) * total);
            }
        } else {
            const float near = static_cast<float>(static_cast<double>(largest_) + row_.min_p_cutoff);
            count = gather(std::max(std::nextafter(near, -INFINITE), LOWEST));
        }
        draw_from(cuts_scores ? keep_scores(count) : count);
    }

    size_t keep_probable(size_t count, double target) {
        return keep(count, find_cut(candidates_, count, target, false, work_).key, count);
    }

    size_t keep_largest(size_t count) {
        if (count <= static_cast<size_t>(row_.top_k)) return count;
        const Cut cut = find_cut(candidates_, count, static_cast<double>(row_.top_k), true, work_);
        return keep(count, cut.key, static_cast<size_t>(row_.top_k) - static_cast<size_t>(cut.above));
    }

    // Keep the candidates whose logit less the largest one is at least `min_p_cutoff`; returns their number.
    size_t keep_scores(size_t count) {
        size_t kept = 0;
        for (size_t i = 0; i < count; ++i)
            if (static_cast<double>(candidates_[i].logit) - static_cast<double>(largest_) >= row_.min_p_cutoff)
                candidates_[kept++] = candidates_[i];
        return kept;
    }

    // The weight of a logit in the cuts: its unnormalised probability.
    RWKV_INLINE F16 weight(F16 logits) const {
        F16 score = logits - set1(largest_);
        if (row_.temperature_first) score = score / set1(row_.temperature);
        return exp(score);
    }

    float depth(size_t i) const { return row_.temperature_first ? DEPTHS[i] * row_.temperature : DEPTHS[i]; }

    // The sum of all weights (or their number). Sets `within_` to the sums within each depth.
    double weigh(bool by_probability) {
        double total = 0.0;
        std::fill_n(within_, NUM_DEPTHS, 0.0);
        F16 limits[NUM_DEPTHS];
        for (size_t d = 0; d < NUM_DEPTHS; ++d) limits[d] = set1(largest_ - depth(d));
        for (size_t start = 0; start < size_; start += STRETCH) {
            const size_t end = std::min(start + STRETCH, size_);
            F16 sum = zero(), sums[NUM_DEPTHS];
            for (size_t d = 0; d < NUM_DEPTHS; ++d) sums[d] = zero();
            for (size_t i = start; i < end; i += LANES) {
                const F16 x = load(logits_ + i);
                const F16 w = by_probability ? weight(x) : set1(1.0f);
                sum = sum + w;
                for (size_t d = 0; d < NUM_DEPTHS; ++d) sums[d] = sums[d] + select(x >= limits[d], w, zero());
            }
            total += static_cast<double>(sum_lanes(sum));
            for (size_t d = 0; d < NUM_DEPTHS; ++d) within_[d] += static_cast<double>(sum_lanes(sums[d]));
        }
        return total;
    }

    // The logit at the smallest depth within which the weights reach `target`.
    float depth_of(double target) const {
        size_t d = 0;
        while (d < NUM_DEPTHS && within_[d] < target) ++d;
        return d < NUM_DEPTHS ? largest_ - depth(d) : LOWEST;
    }

    // Gather candidates: all tokens with a logit of at least `limit`, in the order of their ids; returns their number.
    size_t gather(float limit) {
        size_t count = 0;
        for (size_t i = 0; i < size_; i += LANES) {
            const F16 x = load(logits_ + i);
            uint32_t found = bitmask(x >= set1(limit));
            if (found == 0) continue;
            float weights[LANES];
            store(weights, weight(x));
            for (; found != 0; found &= found - 1) {
                const size_t lane = static_cast<size_t>(__builtin_ctz(found));
                const float logit = logits_[i + lane];
                candidates_[count++] = {ordered_key(logit), static_cast<uint32_t>(i + lane), weights[lane], logit};
            }
        }
        return count;
    }

    // Keep the candidates above `key` and the first `num_equal` at it; returns their number.
    size_t keep(size_t count, uint32_t key, size_t num_equal) {
        size_t kept = 0;
        for (size_t i = 0; i < count; ++i) {
            const Candidate c = candidates_[i];
            if (c.key < key || (c.key == key && num_equal == 0)) continue;
            if (c.key == key) --num_equal;
            candidates_[kept++] = c;
        }
        return kept;
    }

    NoiseKey noise_key() const { return {row_.noise_key, row_.turn, row_.step}; }

    double score_with(uint32_t word, float logit) const {
        const double uniform = (static_cast<double>(word) + 0.5) * 0x1p-32;
        const double scaled = (static_cast<double>(logit) - static_cast<double>(largest_)) / static_cast<double>(row_.temperature);
        return scaled - natural_log(-natural_log(uniform));
    }

    double score(int64_t token) const {
        I16 words[4];
        philox(noise_key(), set1(static_cast<uint32_t>(token / 4)), words);
        uint32_t word[LANES];
        store(word, words[token % 4]);
        return score_with(word[0], logits_[token]);
    }

    // Update the best token with sixteen tokens and their noise words. Since -ln u >= 1 - u, a token whose 1 - u exceeds
    // e^(logit / temperature - best score) cannot win; the few others are computed exactly. Among equals the smaller id wins.
    RWKV_INLINE void consider(F16 logits, I16 words, const uint32_t* ids) {
        const F16 ratio = exp((logits - set1(largest_)) / set1(row_.temperature) - set1(static_cast<float>(best_score_)));
        const F16 complement = from_int(shift_right<1>(words ^ set1(0xffffffffu))) * set1(0x1p-31f);
        uint32_t possible = bitmask(ratio * set1(1.001f) >= complement);
        if (possible == 0) return;
        float logit[LANES];
        uint32_t word[LANES];
        store(logit, logits);
        store(word, words);
        for (; possible != 0; possible &= possible - 1) {
            const int lane = __builtin_ctz(possible);
            const double value = score_with(word[lane], logit[lane]);
            const int64_t id = ids[lane];
            if (value > best_score_ || (value == best_score_ && id < best_)) {
                best_score_ = value;
                best_ = id;
            }
        }
    }

    void draw_from(size_t count) {
        for (size_t start = 0; start < count; start += LANES) {
            const size_t n = std::min(LANES, count - start);
            uint32_t ids[LANES] = {}, blocks[LANES] = {}, word[LANES];
            float logit[LANES];
            store(logit, set1(-INFINITE));
            for (size_t i = 0; i < n; ++i) {
                ids[i] = candidates_[start + i].id;
                blocks[i] = ids[i] / 4;
                logit[i] = candidates_[start + i].logit;
            }
            I16 words[4];
            philox(noise_key(), load(blocks), words);
            uint32_t all[4][LANES];
            for (size_t w = 0; w < 4; ++w) store(all[w], words[w]);
            for (size_t i = 0; i < LANES; ++i) word[i] = all[ids[i] % 4][i];
            consider(load(logit), load(word), ids);
        }
    }

    void draw_from_all() {
        for (size_t start = 0; start < size_; start += 4 * LANES) {
            uint32_t blocks[LANES], ids[LANES], all[4][LANES], word[4 * LANES];
            for (size_t i = 0; i < LANES; ++i) blocks[i] = static_cast<uint32_t>(start / 4 + i);
            I16 words[4];
            philox(noise_key(), load(blocks), words);
            for (size_t w = 0; w < 4; ++w) store(all[w], words[w]);
            for (size_t i = 0; i < LANES; ++i)
                for (size_t w = 0; w < 4; ++w) word[4 * i + w] = all[w][i];
            for (size_t part = 0; part < 4 && start + part * LANES < size_; ++part) {
                const size_t first = start + part * LANES;
                for (size_t i = 0; i < LANES; ++i) ids[i] = static_cast<uint32_t>(first + i);
                consider(load(logits_ + first), load(word + part * LANES), ids);
            }
        }
    }

    const SampleRow& row_;
    const size_t size_;
    float* logits_;  // after penalties; -infinity beyond the vocabulary
    Candidate* candidates_;
    Candidate* work_;
    float largest_ = 0.0f;
    int64_t best_ = 0;
    double best_score_ = 0.0;
    double within_[NUM_DEPTHS];
};

inline Choice sample(const SampleRow& row, float* scratch) { return Sampler(row, scratch).choose(); }

}  // namespace RWKV_ISA
}  // namespace rwkv
