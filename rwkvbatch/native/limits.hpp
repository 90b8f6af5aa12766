// Measures the two limits of linear layers on this machine: memory bandwidth and fused multiply-adds.
#pragma once

#include "kernels.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

// Sum up `count` floats, a multiple of 256, from four streams at once, as a linear layer reads its panels.
inline float read(const float* data, size_t count) {
    constexpr size_t STREAMS = 4;
    const size_t part = count / STREAMS / (2 * LANES) * (2 * LANES);
    F16 sums[STREAMS][2];
    for (size_t s = 0; s < STREAMS; ++s) sums[s][0] = sums[s][1] = zero();
    for (size_t i = 0; i < part; i += 2 * LANES)
        for (size_t s = 0; s < STREAMS; ++s) {
            sums[s][0] = sums[s][0] + load(data + s * part + i);
            sums[s][1] = sums[s][1] + load(data + s * part + i + LANES);
        }
    F16 sum = zero();
    for (size_t s = 0; s < STREAMS; ++s) sum = sum + sums[s][0] + sums[s][1];
    return sum_lanes(sum);
}

// Run independent chains in registers, whose values converge: as many as the registers hold, because a processor that begins two
// operations at once and takes four cycles for each needs eight.
inline float multiply_add(size_t rounds) {
#if defined(RWKV_ISA_AVX512)
    constexpr size_t CHAINS = MULTIPLY_ADDS / LANES;
#else
    constexpr size_t CHAINS = MULTIPLY_ADDS / LANES / 2;
#endif
    constexpr size_t LOOPS = MULTIPLY_ADDS / LANES / CHAINS;
    F16 sums[CHAINS];
    for (size_t c = 0; c < CHAINS; ++c) sums[c] = set1(static_cast<float>(c));
    const F16 factor = set1(0.5f), term = set1(0.25f);
    for (size_t i = 0; i < LOOPS * rounds; ++i) {
        for (size_t c = 0; c < CHAINS; ++c) sums[c] = fma(sums[c], factor, term);
    }
    F16 sum = zero();
    for (size_t c = 0; c < CHAINS; ++c) sum = sum + sums[c];
    return sum_lanes(sum);
}

}  // namespace RWKV_ISA
}  // namespace rwkv
