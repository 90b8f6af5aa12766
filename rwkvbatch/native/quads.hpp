// Quads: products of four inputs at a time with integer weights, for each instruction set.
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

// The weights of a unit of inputs for 16 outputs are multiplied in parts (`NUM_PARTS`). A part has four bytes for each output,
// which are multiplied by four bytes of each row's inputs. A row's integers are stored in the order of the parts, `WORD` bytes each
// (`store_inputs`).
//
// Weights are unsigned, with `zero_weight` added, and inputs are signed: `vpdpbusd` multiplies these without saturation. The excess
// times the sum of a group's inputs is subtracted at the start of each sum (`StartOfSum`). Without `vpdpbusd` there are two ways:
// - `vpmaddubsw` multiplies bytes and adds two products in 16 bits. With weights of 4 bits, the products of a whole group fit into
//   16 bits, so that each output has two 16-bit sums until `finish_sum`.
// - Weights of 8 bits would saturate there. They and their inputs are widened for `vpmaddwd`: the first and the third of a quad in
//   one part, the second and the fourth in the next.
constexpr size_t WORD = 4;

// The number that is added to weights when they are multiplied.
constexpr int weight_excess(Dtype dtype) { return zero_weight(dtype); }

// A word of inputs, repeated for each output. (GCC 12 loads two words that are copied together as one, and splits it.)
template <Dtype> RWKV_INLINE I16 load_inputs(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return set1(word);
}

#if defined(RWKV_VNNI) || defined(RWKV_ISA_AVX2) || defined(RWKV_ISA_AVX512)
#if defined(RWKV_VNNI)
constexpr bool as_bytes(Dtype) { return true; }
#else
constexpr bool as_bytes(Dtype dtype) { return dtype == Dtype::INT4; }
#endif

template <Dtype D> constexpr size_t NUM_PARTS = D == Dtype::INT4 || !as_bytes(D) ? 2 : 1;

template <Dtype D, size_t PART> RWKV_INLINE I16 part_of(I16 bytes) {
    if constexpr (NUM_PARTS<D> == 1) return bytes;
    if constexpr (D == Dtype::INT4) return (PART == 0 ? bytes : shift_right<4>(bytes)) & set1(0x0f0f0f0fu);
    if constexpr (PART == 0) return bytes & set1(0x00ff00ffu);
#if defined(RWKV_ISA_AVX512)
    return {_mm512_srli_epi16(bytes.v, 8)};
#else
    return {_mm256_srli_epi16(bytes.a, 8), _mm256_srli_epi16(bytes.b, 8)};
#endif
}

// Store a row's integers as bytes, or as 16-bit numbers in the order 0, 2, 1, 3.
template <Dtype D> RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
#if defined(RWKV_ISA_AVX512)
    if constexpr (as_bytes(D)) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(integers.v));
        return;
    }
    const __m256i words = _mm512_cvtepi32_epi16(integers.v);
#else
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(integers.a, integers.b), 0xD8);
    if constexpr (as_bytes(D)) {
        const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(words, words), 0xD8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
        return;
    }
#endif
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8));
}

// sum += products of a part. Assembly, since GCC 12 copies the sums of a tile around the intrinsics or keeps them in memory.
#if defined(RWKV_ISA_AVX512)
template <Dtype D> RWKV_INLINE void add_products(I16& sum, I16 w, I16 x) {
#if defined(RWKV_VNNI)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(w.v), "v"(x.v));
#else
    __m512i products;
    if constexpr (as_bytes(D))
        __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+v"(sum.v), "=&v"(products) : "v"(w.v), "v"(x.v));
    else __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sum.v), "=&v"(products) : "v"(w.v), "v"(x.v));
#endif
}
#else
template <Dtype D> RWKV_INLINE void add_products(__m256i& sum, __m256i w, __m256i x) {
#if defined(RWKV_VNNI)
    sum = _mm256_dpbusd_avx_epi32(sum, w, x);
#else
    __m256i products;
    if constexpr (as_bytes(D))
        __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(w), "x"(x));
    else __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(w), "x"(x));
#endif
}
template <Dtype D> RWKV_INLINE void add_products(I16& sum, I16 w, I16 x) {
    add_products<D>(sum.a, w.a, x.a);
    add_products<D>(sum.b, w.b, x.b);
}
#endif

#else

template <Dtype D> constexpr size_t NUM_PARTS = D == Dtype::INT4 ? 4 : 2;

template <Dtype D, size_t PART> RWKV_INLINE I16 part_of(I16 bytes) {
    return shift_right<8 * (PART % 2) + 4 * (PART / 2)>(bytes) & set1(D == Dtype::INT4 ? 0x000f000fu : 0x00ff00ffu);
}
template <Dtype> RWKV_INLINE void add_products(I16& sum, I16 w, I16 x) {
    for (size_t i = 0; i < LANES; ++i) {
        const int32_t low = static_cast<int16_t>(w.v[i] & 0xffffu) * static_cast<int16_t>(x.v[i] & 0xffffu);
        const int32_t high = static_cast<int16_t>(w.v[i] >> 16) * static_cast<int16_t>(x.v[i] >> 16);
        sum.v[i] += static_cast<uint32_t>(low + high);
    }
}
template <Dtype> RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    int16_t words[LANES];
    constexpr size_t ORDER[QUAD] = {0, 2, 1, 3};
    for (size_t i = 0; i < LANES; ++i) words[i] = static_cast<int16_t>(integers.v[i / QUAD * QUAD + ORDER[i % QUAD]]);
    std::memcpy(to, words, sizeof words);
}

#endif

}  // namespace RWKV_ISA
}  // namespace rwkv

#endif

namespace rwkv {
namespace RWKV_ISA {

// Bytes of a row's integers for a unit of inputs, and for a quad.
template <Dtype D> constexpr size_t UNIT_INPUT_BYTES = NUM_PARTS<D> * WORD;
template <Dtype D> constexpr size_t QUAD_BYTES = UNIT_INPUT_BYTES<D> * QUAD / unit_inputs(D);

// A row's inputs for a unit (or for a quad, if these are the same), and their products with weights.
template <Dtype D> struct UnitInputs {
    decltype(load_inputs<D>(nullptr)) parts[NUM_PARTS<D>];

    RWKV_INLINE explicit UnitInputs(const uint8_t* from) {
        for (size_t part = 0; part < NUM_PARTS<D>; ++part) parts[part] = load_inputs<D>(from + part * WORD);
    }
    template <size_t PART = 0> RWKV_INLINE void add_products_to(I16& sum, I16 bytes) const {
        add_products<D>(sum, part_of<D, PART>(bytes), parts[PART]);
        if constexpr (PART + 1 < NUM_PARTS<D>) add_products_to<PART + 1>(sum, bytes);
    }
};

// The start of the sum of a group of inputs: minus the excess of its weights times the sum of its inputs.
template <Dtype D> struct StartOfSum {
    F16 inputs = zero();
    RWKV_INLINE int32_t value() const { return -weight_excess(D) * static_cast<int32_t>(sum_lanes(inputs)); }
};

// The sums of a group as 32-bit numbers.
template <Dtype> RWKV_INLINE I16 finish_sum(I16 sum) { return sum; }

#if (defined(RWKV_ISA_AVX2) || defined(RWKV_ISA_AVX512)) && !defined(RWKV_VNNI)

static_assert(2 * 15 * 127 * (INT4_SCALED_INPUTS / QUAD) <= INT16_MAX);

// Two 16-bit sums: the low half is for the first two inputs of each quad, the high half for the other two.
template <> struct StartOfSum<Dtype::INT4> {
    F16 inputs = zero();
    RWKV_INLINE int32_t value() const {
#if defined(RWKV_ISA_AVX512)
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(inputs.v), _mm512_extractf32x8_ps(inputs.v, 1));
#else
        const __m256 eight = _mm256_add_ps(inputs.a, inputs.b);
#endif
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 halves = _mm_mul_ps(_mm_hadd_ps(four, four), _mm_set1_ps(-weight_excess(Dtype::INT4)));
        const __m128i integers = _mm_cvtps_epi32(halves);
        return _mm_cvtsi128_si32(_mm_packs_epi32(integers, integers));
    }
};

template <> RWKV_INLINE I16 finish_sum<Dtype::INT4>(I16 sum) {
#if defined(RWKV_ISA_AVX512)
    return {_mm512_madd_epi16(sum.v, _mm512_set1_epi16(1))};
#else
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(sum.a, ones), _mm256_madd_epi16(sum.b, ones)};
#endif
}

#endif

}  // namespace RWKV_ISA
}  // namespace rwkv
