// Exact conversion of 16-bit numbers to fp32. The functions are static: with external linkage, code for one instruction set could
// call a version that was compiled for another.
#pragma once

#include <cstdint>
#include <cstring>

namespace rwkv {

static inline float float_of_bits(uint32_t word) {
    float result;
    std::memcpy(&result, &word, sizeof result);
    return result;
}

static inline float bf16_to_float(uint16_t half) { return float_of_bits(static_cast<uint32_t>(half) << 16); }

static inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = half >> 10 & 0x1fu, mantissa = half & 0x3ffu;
    uint32_t word;
    if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in fp32
        const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
        std::memcpy(&word, &magnitude, sizeof word);
    } else {
        word = (exponent == 31 ? 255u : exponent + 112u) << 23 | mantissa << 13;
    }
    return float_of_bits(word | sign);
}

}  // namespace rwkv
