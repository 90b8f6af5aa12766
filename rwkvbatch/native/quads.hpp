// Quads: four inputs at once of a product of integers.
#pragma once

#include <cstring>

#include "kernels.hpp"
#include "vec.hpp"

#if defined(RWKV_ISA_NEON)
#include "neon_quads.hpp"
#else

namespace rwkv {
namespace RWKV_ISA {

// A quad: four inputs. Its weights for 16 outputs, its inputs of a row, and the sum of their products.
//
// Weights are unsigned bytes (`zero_weight` more than they are), inputs signed: what `vpdpbusd` multiplies, without
// saturation. The excess, zero times the sum of a group's inputs, is taken off where a sum begins. Without that instruction
// the bytes are widened to 16 bits for `vpmaddwd`: `vpmaddubsw` would saturate. `split_quad` takes the quad of that number
// from the bytes of a unit of inputs.
#if defined(RWKV_VNNI)

constexpr size_t QUAD_BYTES = 4;
struct QuadWeights { I16 bytes; };
struct QuadInputs { I16 bytes; };

template <Dtype D, int NUMBER> RWKV_INLINE QuadWeights split_quad(I16 bytes) {
    if constexpr (D != Dtype::INT4) return {bytes};
    return {(NUMBER == 0 ? bytes : shift_right<4>(bytes)) & set1(0x0f0f0f0fu)};
}
RWKV_INLINE QuadInputs load_inputs(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return {set1(word)};
}
#if defined(RWKV_ISA_AVX512)
RWKV_INLINE void add_products(I16& sum, QuadWeights w, QuadInputs x) {
    // As assembly, since GCC 12 copies the sums of a tile around the intrinsic.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(w.bytes.v), "v"(x.bytes.v));
}
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(integers.v));
}
#else
RWKV_INLINE void add_products(I16& sum, QuadWeights w, QuadInputs x) {
    sum = {_mm256_dpbusd_avx_epi32(sum.a, w.bytes.a, x.bytes.a), _mm256_dpbusd_avx_epi32(sum.b, w.bytes.b, x.bytes.b)};
}
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(integers.a, integers.b), 0xD8);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(words, words), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
}
#endif

#else

// Inputs as 16 bits in the order 0, 2, 1, 3, the even ones and the odd ones together.
constexpr size_t QUAD_BYTES = 8;
struct QuadWeights { I16 even, odd; };
struct QuadInputs { I16 even, odd; };

template <Dtype D, int NUMBER> RWKV_INLINE QuadWeights split_quad(I16 bytes) {
    const I16 low = set1(D == Dtype::INT4 ? 0x000f000fu : 0x00ff00ffu);
    return {(NUMBER == 0 ? bytes : shift_right<4>(bytes)) & low, shift_right<8 + 4 * NUMBER>(bytes) & low};
}
RWKV_INLINE QuadInputs load_inputs(const uint8_t* from) {
    uint32_t words[2];
    std::memcpy(words, from, sizeof words);
    return {set1(words[0]), set1(words[1])};
}
#if defined(RWKV_ISA_AVX512)
RWKV_INLINE I16 pairs(I16 w, I16 x) { return {_mm512_madd_epi16(w.v, x.v)}; }
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    const __m256i words = _mm512_cvtepi32_epi16(integers.v);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8));
}
#elif defined(RWKV_ISA_AVX2)
RWKV_INLINE I16 pairs(I16 w, I16 x) { return {_mm256_madd_epi16(w.a, x.a), _mm256_madd_epi16(w.b, x.b)}; }
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(integers.a, integers.b), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8));
}
#else
RWKV_INLINE I16 pairs(I16 w, I16 x) {
    I16 r;
    for (size_t i = 0; i < LANES; ++i) {
        const int32_t low = static_cast<int16_t>(w.v[i] & 0xffffu) * static_cast<int16_t>(x.v[i] & 0xffffu);
        const int32_t high = static_cast<int16_t>(w.v[i] >> 16) * static_cast<int16_t>(x.v[i] >> 16);
        r.v[i] = static_cast<uint32_t>(low + high);
    }
    return r;
}
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    int16_t words[LANES];
    constexpr size_t ORDER[QUAD] = {0, 2, 1, 3};
    for (size_t i = 0; i < LANES; ++i) words[i] = static_cast<int16_t>(integers.v[i / QUAD * QUAD + ORDER[i % QUAD]]);
    std::memcpy(to, words, sizeof words);
}
#endif
RWKV_INLINE void add_products(I16& sum, QuadWeights w, QuadInputs x) {
    sum = sum + pairs(w.even, x.even) + pairs(w.odd, x.odd);
}

#endif

// By how much weights are more than they are where they are multiplied.
constexpr int weight_excess(Dtype dtype) { return zero_weight(dtype); }

}  // namespace RWKV_ISA
}  // namespace rwkv

#endif
