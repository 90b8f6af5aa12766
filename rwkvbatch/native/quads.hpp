// Quads: four inputs at once of a product of integers.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.hpp"
#include "vec.hpp"

#if defined(RWKV_ISA_NEON)
#include "neon_quads.hpp"
#else

namespace rwkv {
namespace RWKV_ISA {

// Four bytes, sixteen times. Two words that were copied together, GCC 12 would load as one and take apart.
RWKV_INLINE I16 word_at(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return set1(word);
}

// A quad: four inputs. Its weights for 16 outputs, its inputs of a row, and the sum of their products.
//
// Weights are unsigned bytes (`zero_weight` more than they are), inputs signed: what `vpdpbusd` multiplies, without
// saturation. The excess, zero times the sum of a group's inputs, is the start of each sum (`InputGroup`). `split_quad` takes the
// quad of that number from the bytes of a unit of inputs. A sum goes through `start_sum`, `add_products` and `finish_sum`.
//
// Without `vpdpbusd` there are two ways. `vpmaddubsw` multiplies bytes and adds two products in 16 bits: with weights of 4 bits, a
// whole group's fit (`SUMS_OF_WORDS`). Those of 8 bits would saturate, so they and their inputs are widened for `vpmaddwd`.
#if defined(RWKV_VNNI)

template <Dtype D> constexpr size_t QUAD_BYTES = 4;
template <Dtype D> struct QuadWeights { I16 bytes; };
template <Dtype D> struct QuadInputs { I16 bytes; };

template <Dtype D, int NUMBER> RWKV_INLINE QuadWeights<D> split_quad(I16 bytes) {
    if constexpr (D != Dtype::INT4) return {bytes};
    return {(NUMBER == 0 ? bytes : shift_right<4>(bytes)) & set1(0x0f0f0f0fu)};
}
template <Dtype D> RWKV_INLINE QuadInputs<D> load_inputs(const uint8_t* from) {
    return {word_at(from)};
}
template <Dtype D> RWKV_INLINE void add_products(I16& sum, QuadWeights<D> w, QuadInputs<D> x) {
#if defined(RWKV_ISA_AVX512)
    // As assembly, since GCC 12 copies the sums of a tile around the intrinsic.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(w.bytes.v), "v"(x.bytes.v));
#else
    sum = {_mm256_dpbusd_avx_epi32(sum.a, w.bytes.a, x.bytes.a), _mm256_dpbusd_avx_epi32(sum.b, w.bytes.b, x.bytes.b)};
#endif
}

#elif defined(RWKV_ISA_AVX512) || defined(RWKV_ISA_AVX2)

#define RWKV_SUMS_OF_WORDS
// How the sums of a group are kept: as two of 16 bits for each output, or as one of 32.
constexpr bool sums_of_words(Dtype dtype) { return dtype == Dtype::INT4; }
static_assert(2 * 15 * 127 * (INT4_SCALED_INPUTS / QUAD) <= INT16_MAX);

// Inputs as 16 bits lie in the order 0, 2, 1, 3, the even ones and the odd ones together.
template <Dtype D> constexpr size_t QUAD_BYTES = sums_of_words(D) ? 4 : 8;
template <Dtype D> struct QuadWeights { I16 even, odd; };
template <> struct QuadWeights<Dtype::INT4> { I16 bytes; };
template <Dtype D> struct QuadInputs { I16 even, odd; };
template <> struct QuadInputs<Dtype::INT4> { I16 bytes; };

template <Dtype D, int NUMBER> RWKV_INLINE QuadWeights<D> split_quad(I16 bytes) {
    if constexpr (D == Dtype::INT4) {
        return {(NUMBER == 0 ? bytes : shift_right<4>(bytes)) & set1(0x0f0f0f0fu)};
    } else {
        const I16 low = set1(0x00ff00ffu);
        return {bytes & low, shift_right<8>(bytes) & low};
    }
}
template <Dtype D> RWKV_INLINE QuadInputs<D> load_inputs(const uint8_t* from) {
    if constexpr (D == Dtype::INT4) return {word_at(from)};
    else return {word_at(from), word_at(from + sizeof(uint32_t))};
}
// sum += products of pairs, as assembly: GCC 12 copies the sums of a tile around the intrinsics, and keeps some of them in memory.
#if defined(RWKV_ISA_AVX512)
RWKV_INLINE void add_pairs_of_words(I16& sum, I16 w, I16 x) {
    __m512i products;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sum.v), "=&v"(products) : "v"(w.v), "v"(x.v));
}
RWKV_INLINE void add_pairs_of_bytes(I16& sum, I16 w, I16 x) {
    __m512i products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+v"(sum.v), "=&v"(products) : "v"(w.v), "v"(x.v));
}
RWKV_INLINE I16 sums_of_pairs(I16 words) { return {_mm512_madd_epi16(words.v, _mm512_set1_epi16(1))}; }
#else
RWKV_INLINE void add_pairs_of_words(__m256i& sum, __m256i w, __m256i x) {
    __m256i products;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(w), "x"(x));
}
RWKV_INLINE void add_pairs_of_bytes(__m256i& sum, __m256i w, __m256i x) {
    __m256i products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(w), "x"(x));
}
RWKV_INLINE void add_pairs_of_words(I16& sum, I16 w, I16 x) {
    add_pairs_of_words(sum.a, w.a, x.a);
    add_pairs_of_words(sum.b, w.b, x.b);
}
RWKV_INLINE void add_pairs_of_bytes(I16& sum, I16 w, I16 x) {
    add_pairs_of_bytes(sum.a, w.a, x.a);
    add_pairs_of_bytes(sum.b, w.b, x.b);
}
RWKV_INLINE I16 sums_of_pairs(I16 words) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(words.a, ones), _mm256_madd_epi16(words.b, ones)};
}
#endif
template <Dtype D> RWKV_INLINE void add_products(I16& sum, QuadWeights<D> w, QuadInputs<D> x) {
    if constexpr (D == Dtype::INT4) {
        add_pairs_of_bytes(sum, w.bytes, x.bytes);
    } else {
        add_pairs_of_words(sum, w.even, x.even);
        add_pairs_of_words(sum, w.odd, x.odd);
    }
}

#else

template <Dtype D> constexpr size_t QUAD_BYTES = 8;
template <Dtype D> struct QuadWeights { I16 even, odd; };
template <Dtype D> struct QuadInputs { I16 even, odd; };

template <Dtype D, int NUMBER> RWKV_INLINE QuadWeights<D> split_quad(I16 bytes) {
    const I16 low = set1(D == Dtype::INT4 ? 0x000f000fu : 0x00ff00ffu);
    return {(NUMBER == 0 ? bytes : shift_right<4>(bytes)) & low, shift_right<8 + 4 * NUMBER>(bytes) & low};
}
template <Dtype D> RWKV_INLINE QuadInputs<D> load_inputs(const uint8_t* from) {
    return {word_at(from), word_at(from + sizeof(uint32_t))};
}
RWKV_INLINE I16 pairs(I16 w, I16 x) {
    I16 r;
    for (size_t i = 0; i < LANES; ++i) {
        const int32_t low = static_cast<int16_t>(w.v[i] & 0xffffu) * static_cast<int16_t>(x.v[i] & 0xffffu);
        const int32_t high = static_cast<int16_t>(w.v[i] >> 16) * static_cast<int16_t>(x.v[i] >> 16);
        r.v[i] = static_cast<uint32_t>(low + high);
    }
    return r;
}
template <Dtype D> RWKV_INLINE void add_products(I16& sum, QuadWeights<D> w, QuadInputs<D> x) {
    sum = sum + pairs(w.even, x.even) + pairs(w.odd, x.odd);
}

#endif

// Inputs of a quad as `load_inputs` takes them, of 16 integers.
#if defined(RWKV_ISA_AVX512)
template <Dtype D> RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    if constexpr (QUAD_BYTES<D> == QUAD) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(integers.v));
    } else {
        const __m256i words = _mm512_cvtepi32_epi16(integers.v);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8));
    }
}
#elif defined(RWKV_ISA_AVX2)
template <Dtype D> RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(integers.a, integers.b), 0xD8);
    if constexpr (QUAD_BYTES<D> == QUAD) {
        const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(words, words), 0xD8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
    } else {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8));
    }
}
#else
template <Dtype D> RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    int16_t words[LANES];
    constexpr size_t ORDER[QUAD] = {0, 2, 1, 3};
    for (size_t i = 0; i < LANES; ++i) words[i] = static_cast<int16_t>(integers.v[i / QUAD * QUAD + ORDER[i % QUAD]]);
    std::memcpy(to, words, sizeof words);
}
#endif

// By how much weights are more than they are where they are multiplied.
constexpr int weight_excess(Dtype dtype) { return zero_weight(dtype); }

}  // namespace RWKV_ISA
}  // namespace rwkv

#endif

namespace rwkv {
namespace RWKV_ISA {

// A group's sums of 16 outputs: what they begin with, and what they are at the end, given the start of the row's group.
#if defined(RWKV_SUMS_OF_WORDS)
template <Dtype D> RWKV_INLINE I16 start_sum(int32_t start) { return set1(sums_of_words(D) ? 0u : static_cast<uint32_t>(start)); }
template <Dtype D> RWKV_INLINE I16 finish_sum(I16 sum, int32_t start) {
    return sums_of_words(D) ? sums_of_pairs(sum) + set1(static_cast<uint32_t>(start)) : sum;
}
#else
template <Dtype> RWKV_INLINE I16 start_sum(int32_t start) { return set1(static_cast<uint32_t>(start)); }
template <Dtype> RWKV_INLINE I16 finish_sum(I16 sum, int32_t) { return sum; }
#endif

}  // namespace RWKV_ISA
}  // namespace rwkv
